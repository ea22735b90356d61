"""Answers with error bars, on request to a prescribed accuracy: refined where the error at the start comes from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ufl
from dolfinx import fem
from ufl.corealg.traversal import unique_pre_traversal

from .._answer import steps_of
from .._arguments import is_number
from .._errors import NotConverged
from .._log import logger
from .._petsc import Options
from ..chain import Chain
from ..chain.refinement import to_accuracy
from ..discretisation.generator import Generator
from ..discretisation.solution import Level, Solution, as_points
from ..evolution.initial import is_density
from ..evolution.law import Spread
from ..models.fields import Batched
from ._expectation import Part, check_times
from .error import DualWeighted


def answers(
    name: str,
    gen: Generator | Chain,
    solve: Callable[[Any, int], list[Part]],
    start: Any,
    rtol: float | None,
    max_unknowns: int,
    *,
    order: int = 1,
    killing: Any = 0.0,
    options: Options | None = None,
    is_time: bool = False,
    sources: tuple[Any, ...] = (),
) -> list[Solution]:
    """A few answers that build on each other, on finer meshes until the last one's bar at the start is below ``rtol``.

    Collective.  ``solve`` gives the first n of them; with ``is_time`` the n-th is a time to the n-th power.  None of
    the ``sources`` may be tied to a mesh if there are to be several.  Meshes are refined where the dual-weighted
    residual (error.py) says that the error at the start comes from.
    """
    if rtol is not None:
        _check(gen, name, start, sources)

    def ask(gen: Generator | Chain) -> _Answers:
        parts, found = solve(gen, order), list[Solution]()
        if isinstance(gen, Chain) and is_time:
            check_times(gen, parts[0])  # not of the variants: what is wrong with them widens the bar
        bent = isinstance(gen, Generator) and any(_bends(gen, source) for source in sources)
        for n, part in enumerate(parts, 1):
            again = lambda other, n=n: [p.u for p in solve(other, n)]  # noqa: E731
            estimate: Any = (
                Spread(gen, part.u, again, start, part.stats["roundoff"])
                if isinstance(gen, Chain)
                else DualWeighted(gen, [p.u for p in parts[:n]], again, start, killing, options, bent)
            )
            about: Any = {"generator": gen, "unit": steps_of(gen.process, n) if is_time else None}
            if start is not None:
                value, error = estimate.value(), estimate.at_start()
                about |= {"start": estimate.start, "value": value, "error": error}
                _warn_if_lost(part.name, error, value)
            function = gen.function(part.u) if isinstance(gen, Chain) else part.u
            found.append(Solution(function, part.stats, part.name, estimate, **about))
            logger.info("%s", found[-1])
        return _Answers(found, isinstance(gen, Chain))

    try:
        return to_accuracy(name, gen, ask, "fp_exit_", rtol=rtol, max_unknowns=max_unknowns).solutions
    except NotConverged as failure:
        if isinstance(failure.partial, _Answers):
            failure.partial = failure.partial.solutions[-1]
        raise


@dataclass
class _Answers:
    """Some answers, of which the last is to be accurate, as :func:`~fpsolver.chain.refinement.to_accuracy` asks."""

    solutions: list[Solution]
    sure: bool  #: as those of chains, whose bars are those of four meshes

    @property
    def last(self) -> Any:
        return self.solutions[-1]

    @property
    def roundoff(self) -> float:
        return float(self.last.stats.get("roundoff", 0.0))

    def accuracy(self) -> tuple[float, float]:
        return float(self.last.value[0]), float(self.last.error[0])

    def shape_error(self) -> float:
        return float(self.last.estimate.of_shape()[0])

    def by_cells(self) -> np.ndarray:
        return np.asarray(self.last.estimate.indicators())

    def keep(self, history: tuple[Level, ...]) -> None:
        self.last._history = history


def _bends(gen: Generator, source: Any) -> bool:
    """Whether a source may jump or bend inside cells: by its formula; of values at points nothing is known."""
    if is_number(source) or isinstance(source, fem.Function | Solution):
        return False
    formula = gen.weak.space.scalar(source, "source")
    kinds = (
        ufl.classes.Condition | ufl.classes.Conditional | ufl.classes.Abs | ufl.classes.MinValue | ufl.classes.MaxValue
    )
    return isinstance(source, Batched) or any(isinstance(node, kinds) for node in unique_pre_traversal(formula))


def _check(gen: Generator | Chain, name: str, start: Any, data: Any) -> None:
    if start is None:
        raise ValueError(f"{name}: start is None; with rtol a point or an initial density was expected.")
    if not is_density(start) and len(as_points(start, gen.domain.dim, f"{name}: start")) != 1:
        raise ValueError(f"{name}: start is {len(np.asarray(start))} points; with rtol one was expected, or a density.")
    if any(isinstance(f, fem.Function | Solution) for f in (start, *data)):
        raise ValueError(
            f"{name}: start or a source is a Function, which is tied to the first mesh; with rtol a number or a "
            "callable of x was expected, which can be taken to finer meshes."
        )


def _warn_if_lost(name: str, error: np.ndarray, value: np.ndarray) -> None:
    if (lost := ~(error <= 0.5 * np.abs(value))).any():
        k = int(np.argmax(lost))
        logger.warning("%s: %.3g with an error bar of %.3g: the mesh does not resolve it", name, value[k], error[k])
