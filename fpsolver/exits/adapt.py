"""Answers with error bars, on request to a prescribed accuracy: refined where the error at the start comes from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ufl
from dolfinx import fem
from ufl.corealg.traversal import unique_pre_traversal

from .._answer import steps_of, with_bar
from .._arguments import check_share, is_number
from .._errors import NotConverged
from .._log import logger
from .._petsc import Options
from ..chain import Chain
from ..chain.refinement import NEGATIVE, marked, refined, unknowns
from ..discretisation.generator import Generator
from ..discretisation.metastable import UNRESOLVED
from ..discretisation.solution import Level, Solution, as_points
from ..evolution.initial import is_density
from ..evolution.spread import Spread
from ..models.fields import Batched
from ._expectation import Part, check_times
from .error import DualWeighted


@dataclass(frozen=True)
class Problem:
    """A question about leaving, of any generator or chain; its answer is the last of a few that build on each other."""

    name: str  #: of the verb, for messages
    solve: Callable[[Any, int], list[Part]]  #: gives the first n answers of a generator or chain
    order: int = 1  #: how many are asked for
    killing: Any = 0.0  #: rate
    options: Options | None = None  #: PETSc options of the solves
    is_time: bool = False  #: whether the n-th answer is a time to the n-th power
    sources: tuple[Any, ...] = ()  #: none of which may be tied to a mesh if there are to be several

    def answer(self, gen: Generator | Chain, start: Any, rtol: float | None, max_unknowns: int) -> list[Solution]:
        """The answers, on finer and finer meshes until the error bar of the last at the start is below ``rtol``.

        Collective.  Each mesh is refined where the dual-weighted residual (error.py) says that the error at the start
        comes from; boundary parts keep their names.  The first mesh should know the shape of the domain; layers,
        corners, ends of absorbing parts and grazing points are found.  Where a mesh resolves nothing yet, the cells to
        blame or, if they are not known, all of them are refined; of a chain, always all.

        Raises:
            ValueError: bad arguments; a coefficient of the process is a ``Function``, which is tied to the first mesh.
            NotConverged: ``max_unknowns`` or the floor of rounding was reached; ``partial`` is the answer so far.
        """
        if rtol is None:
            return self._ask(gen, start)
        _check(gen, self.name, start, rtol, max_unknowns, self.sources)
        history: tuple[Level, ...] = ()
        answers, here = list[Solution](), gen
        while True:
            try:
                answers = self._ask(here, start, history)
            except NotConverged as failure:
                if failure.reason not in (UNRESOLVED, NEGATIVE):
                    raise
                logger.info("%s on %d unknowns", failure.reason, unknowns(here))
                finer, _ = refined(here, failure.partial, max_unknowns)
                if finer is None:
                    failure.partial = answers[-1] if answers else None
                    raise
            else:
                answer = answers[-1]
                history = answer.history
                logger.info("%s: %s", answer.name, history[-1])
                if _reached(history, rtol, trusted=isinstance(gen, Chain)):
                    return answers
                floor = answer.stats.get("roundoff", 0.0)
                if _stalled(history, floor):
                    advice = f"Rounding, about {floor:.0e}, is what is left of the error; take a larger rtol."
                    raise _failure(answer, "DIVERGED_ROUNDOFF", rtol, advice)
                finer, size = _next(here, answer, max_unknowns)
                if finer is None:
                    advice = (
                        f"The next mesh has {size} unknowns; raise max_unknowns (now {max_unknowns}), rtol or the "
                        "degree."
                    )
                    raise _failure(answer, "DIVERGED_MAX_UNKNOWNS", rtol, advice)
            if here is not gen and isinstance(here, Generator):
                here.close()
            here = finer

    def _ask(self, gen: Generator | Chain, start: Any, history: tuple[Level, ...] | None = None) -> list[Solution]:
        """The answers, with error bars if a start is given."""
        parts, found = self.solve(gen, self.order), list[Solution]()
        if isinstance(gen, Chain) and self.is_time:
            check_times(gen, parts[0])  # not of the variants: what is wrong with them widens the bar
        bent = isinstance(gen, Generator) and any(_bends(gen, source) for source in self.sources)
        for n, part in enumerate(parts, 1):
            again = lambda other, n=n: [p.u for p in self.solve(other, n)]  # noqa: E731
            estimate: Any = (
                Spread(gen, part.u, again, start, part.stats["roundoff"])
                if isinstance(gen, Chain)
                else DualWeighted(gen, [p.u for p in parts[:n]], again, start, self.killing, self.options, bent)
            )
            about: Any = {"generator": gen, "unit": steps_of(gen.process, n) if self.is_time else None}
            if start is not None:
                value, error = estimate.value(), estimate.at_start()
                about |= {"start": estimate.start, "value": value, "error": error}
                if history is not None and n == self.order:
                    cells = gen.domain.mesh.topology.index_map(gen.domain.dim).size_global
                    about["history"] = (*history, Level(cells, unknowns(gen), float(value[0]), float(error[0])))
                _warn_if_lost(part.name, error, value)
            function = gen.function(part.u) if isinstance(gen, Chain) else part.u
            found.append(Solution(function, part.stats, part.name, estimate, **about))
            logger.info("%s", found[-1])
        return found


def _bends(gen: Generator, source: Any) -> bool:
    """Whether a source may jump or bend inside cells: by its formula; of values at points nothing is known."""
    if is_number(source) or isinstance(source, fem.Function | Solution):
        return False
    formula = gen.weak.space.scalar(source, "source")
    kinds = (
        ufl.classes.Condition | ufl.classes.Conditional | ufl.classes.Abs | ufl.classes.MinValue | ufl.classes.MaxValue
    )
    return isinstance(source, Batched) or any(isinstance(node, kinds) for node in unique_pre_traversal(formula))


def _next(here: Generator | Chain, answer: Solution, most: int) -> tuple[Any, int]:
    """On the next mesh and its size, or None where it has more than ``most`` unknowns."""
    estimate: Any = answer.estimate
    if isinstance(here, Chain):
        return refined(here, None, most)
    closer = here.domain.closer() if estimate.of_shape()[0] > 0.5 * answer.history[-1].error else None
    if closer is not None:  # what is left is the shape of the domain, not the size of cells
        return here.with_domain(closer), 0
    return refined(here, marked(here.domain.comm, estimate.indicators()), most)


def _check(gen: Generator | Chain, name: str, start: Any, rtol: float, max_unknowns: int, data: Any) -> None:
    check_share(f"{name}: rtol", rtol)
    if start is None:
        raise ValueError(f"{name}: start is None; with rtol a point or an initial density was expected.")
    if not is_density(start) and len(as_points(start, gen.domain.dim, f"{name}: start")) != 1:
        raise ValueError(f"{name}: start is {len(np.asarray(start))} points; with rtol one was expected, or a density.")
    if any(isinstance(f, fem.Function | Solution) for f in (start, *data)):
        raise ValueError(
            f"{name}: start or a source is a Function, which is tied to the first mesh; with rtol a number or a "
            "callable of x was expected, which can be taken to finer meshes."
        )
    size = unknowns(gen)
    if not is_number(max_unknowns) or max_unknowns < size:
        raise ValueError(
            f"{name}: max_unknowns is {max_unknowns!r}; at least {size} was expected, as many as the first mesh has."
        )


def _reached(history: tuple[Level, ...], rtol: float, trusted: bool) -> bool:
    """Whether the error bar is small enough, and the one before did not turn out to be wrong.

    On a mesh that misses a layer an error bar can be small by accident: a first mesh is not trusted, but of a chain,
    whose bars are those of four meshes.
    """
    if trusted or len(history) < 2:
        return trusted and history[-1].error <= rtol * abs(history[-1].value)
    before, now = history[-2:]
    return now.error <= rtol * abs(now.value) and abs(now.value - before.value) <= 2 * (before.error + now.error)


def _stalled(history: tuple[Level, ...], roundoff: float) -> bool:
    """Whether the error bar, of the size of the rounding errors, no longer falls."""
    if len(history) < 3:
        return False
    return history[-1].error <= roundoff * abs(history[-1].value) and history[-1].error >= history[-3].error


def _failure(answer: Solution, reason: str, rtol: float, advice: str) -> NotConverged:
    last = answer.history[-1]
    what = f"{answer.name} to rtol {rtol:g} ({with_bar(last.value, last.error)})"
    failure = NotConverged(
        what, reason, len(answer.history), last.error / max(abs(last.value), 1e-300), "fp_exit_", advice
    )
    failure.partial = answer
    return failure


def _warn_if_lost(name: str, error: np.ndarray, value: np.ndarray) -> None:
    if (lost := ~(error <= 0.5 * np.abs(value))).any():
        k = int(np.argmax(lost))
        logger.warning("%s: %.3g with an error bar of %.3g: the mesh does not resolve it", name, value[k], error[k])
