"""Answers to a prescribed accuracy: refine where the error at the start comes from, until the error bar is small."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mpi4py import MPI

import numpy as np
import numpy.typing as npt

from .._errors import NotConverged
from .._log import logger
from ..discretisation.generator import Generator
from ..discretisation.metastable import UNRESOLVED
from ..discretisation.solution import Solution, as_points
from ..models.fields import is_number
from ._guards import NEGATIVE
from .error import DualWeighted, is_density
from .exit import exit_probability, exit_time_moments, feynman_kac, mean_exit_time

_VERBS = (mean_exit_time, exit_time_moments, exit_probability, feynman_kac)
_SHARE = 0.8  # of the sum of the indicators lies in the cells that are refined (Dörfler, SIAM J. Numer. Anal. 33, 1996)


@dataclass(frozen=True)
class Level:
    """One mesh of an adaptive computation.

    Attributes:
        cells: their number.
        unknowns: of the answer; the error bar takes those of degree k + 1 and k − 1 on the same mesh as well.
        value: the answer at the start.
        error: its absolute error bar.
    """

    cells: int
    unknowns: int
    value: float
    error: float


@dataclass(frozen=True)
class Adapted:
    """An answer with the mesh that it needed.

    Attributes:
        solution: the answer on the last mesh; ``solution.error`` is its error bar at the start.
        generator: the generator on the last mesh, for further questions.
        history: one :class:`Level` per mesh, the coarsest first.
    """

    solution: Solution
    generator: Generator
    history: tuple[Level, ...]

    @property
    def value(self) -> float:
        """The answer at the start."""
        return self.history[-1].value

    @property
    def error(self) -> float:
        """Its absolute error bar."""
        return self.history[-1].error

    def __repr__(self) -> str:
        rows = [f"{self.solution.name}: {self.value:.10g}, error bar {self.error:.1e}"]
        rows += [f"{x.unknowns:>9} unknowns: {x.value:.10g}, error bar {x.error:.1e}" for x in self.history]
        return "\n".join(rows)


def solve_to(
    goal: Callable[..., Any],
    gen: Generator,
    *,
    start: Any,
    rtol: float = 1e-3,
    max_unknowns: int = 500_000,
    **question: Any,
) -> Adapted:
    """Ask an exit question on finer and finer meshes until its error bar at the start is below rtol (collective).

    Each mesh is refined where the dual-weighted residual (error.py) says that the error at the start comes from;
    boundary parts keep their names.  The mesh of ``gen`` is the first, and should know the shape of the domain; layers,
    corners, ends of absorbing parts and grazing points are found.  Where a mesh resolves nothing yet, the cells to
    blame or, if they are not known, all of them are refined.

    Args:
        goal: ``fp.mean_exit_time``, ``fp.exit_time_moments`` (its highest moment), ``fp.exit_probability`` or
            ``fp.feynman_kac``.
        gen: generator on the first mesh; it is left as it is.
        start: a point of shape (d,), or an initial density as in :func:`~fpsolver.exit_distribution`.
        rtol: largest error bar relative to the answer, between 0 and 1.
        max_unknowns: no mesh with more unknowns is tried.
        question: further arguments of the goal (``to=...``, ``order=...``, ``exit=...``).

    Raises:
        ValueError: bad arguments; a coefficient of the process is a ``Function``, which is tied to the first mesh.
        NotConverged: ``max_unknowns`` or the floor of rounding was reached; its ``partial`` is the :class:`Adapted`
            so far.
    """
    _check(goal, gen, start, rtol, max_unknowns)
    history: list[Level] = []
    here = gen
    while True:
        try:
            answer = goal(here, start=start, **question)
        except NotConverged as failure:
            if failure.reason not in (UNRESOLVED, NEGATIVE):
                raise
            logger.info("%s on %d unknowns", failure.reason, here.G.getSize()[0])
            owned = here.domain.mesh.topology.index_map(here.domain.dim).size_local
            coarse = np.ones(owned, dtype=bool) if failure.partial is None else failure.partial[:owned]
            finer = _refined(here, np.flatnonzero(coarse))
            if finer.G.getSize()[0] > max_unknowns:
                finer.close()
                raise
            here = _replace(here, finer, gen)
            continue
        solution: Solution = answer[-1] if isinstance(answer, list) else answer
        estimate = solution.estimate
        assert isinstance(estimate, DualWeighted)
        history.append(_level(solution, estimate))
        adapted = Adapted(solution, here, tuple(history))
        logger.info("%s: %s", solution.name, history[-1])
        if _reached(history, rtol):
            return adapted
        floor = solution.stats.get("roundoff", 0.0)
        if _stalled(history, floor):
            advice = f"Rounding, about {floor:.0e}, is what is left of the error; take a larger rtol."
            raise _failure(adapted, "DIVERGED_ROUNDOFF", rtol, advice)
        finer = _refined(here, _marked(here.domain.comm, estimate.indicators()))
        size = finer.G.getSize()[0]
        if size > max_unknowns:
            finer.close()
            advice = f"The next mesh has {size} unknowns; raise max_unknowns (now {max_unknowns}), rtol or the degree."
            raise _failure(adapted, "DIVERGED_MAX_UNKNOWNS", rtol, advice)
        here = _replace(here, finer, gen)


def _refined(gen: Generator, cells: npt.ArrayLike) -> Generator:
    return gen.with_domain(gen.domain.refine(cells))


def _replace(old: Generator, new: Generator, keep: Generator) -> Generator:
    if old is not keep:
        old.close()
    return new


def _check(goal: Any, gen: Generator, start: Any, rtol: float, max_unknowns: int) -> None:
    if goal not in _VERBS:
        known = ", ".join(f"fp.{verb.__name__}" for verb in _VERBS)
        raise ValueError(f"solve_to: the goal is {getattr(goal, '__name__', goal)!r}; expected one of {known}.")
    if not is_number(rtol) or not 0 < rtol < 1:
        raise ValueError(f"solve_to: rtol is {rtol!r}; a number between 0 and 1 was expected.")
    if start is None:
        raise ValueError("solve_to: start is None; a point or an initial density was expected.")
    if not is_density(start) and len(as_points(start, gen.domain.dim, "solve_to: start")) != 1:
        raise ValueError(f"solve_to: start has {len(np.asarray(start))} points; one was expected, or a density.")
    size = gen.G.getSize()[0]
    if not is_number(max_unknowns) or max_unknowns < size:
        raise ValueError(f"solve_to: max_unknowns is {max_unknowns!r}; the first mesh has {size} unknowns already.")


def _level(solution: Solution, estimate: DualWeighted) -> Level:
    domain = estimate.gen.domain
    cells = domain.mesh.topology.index_map(domain.dim).size_global
    value, error = float(estimate.value()[0]), float(estimate.at_start()[0])
    return Level(cells, int(solution.stats["unknowns"]), value, error)


def _reached(history: list[Level], rtol: float) -> bool:
    """Whether the error bar is small enough, and the one before did not turn out to be wrong.

    On a mesh that misses a layer an error bar can be small by accident, so that a first mesh is never trusted.
    """
    if len(history) < 2:
        return False
    before, now = history[-2:]
    return now.error <= rtol * abs(now.value) and abs(now.value - before.value) <= 2 * (before.error + now.error)


def _stalled(history: list[Level], roundoff: float) -> bool:
    """Whether the error bar, of the size of the rounding errors, no longer falls."""
    if len(history) < 3:
        return False
    return history[-1].error <= roundoff * abs(history[-1].value) and history[-1].error >= history[-3].error


def _marked(comm: MPI.Comm, indicators: np.ndarray) -> np.ndarray:
    """The fewest cells with a given share of the sum of the indicators, this rank's (collective).

    They are those above a threshold, found by bisection of its logarithm: no rank sees all indicators.
    """
    total, top = comm.allreduce(float(indicators.sum())), comm.allreduce(float(indicators.max(initial=0.0)), op=MPI.MAX)
    low, high = np.log(1e-30), 0.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        above = float(indicators[indicators >= np.exp(middle) * top].sum())
        low, high = (middle, high) if comm.allreduce(above) >= _SHARE * total else (low, middle)
    return np.flatnonzero(indicators >= np.exp(low) * top)


def _failure(adapted: Adapted, reason: str, rtol: float, advice: str) -> NotConverged:
    last = adapted.history[-1]
    what = f"{adapted.solution.name} to rtol {rtol:g} ({last.value:.10g} with error bar {last.error:.1e})"
    failure = NotConverged(what, reason, len(adapted.history), last.error / abs(last.value), "fp_exit_", advice)
    failure.partial = adapted
    return failure
