"""Answers to a prescribed accuracy: refine where the error at the start comes from, until the error bar is small."""

from collections.abc import Callable
from typing import Any

from mpi4py import MPI

import numpy as np
import numpy.typing as npt
from dolfinx import fem

from .._answer import with_bar
from .._arguments import check_share
from .._errors import NotConverged
from .._log import logger
from ..discretisation.generator import Generator
from ..discretisation.metastable import UNRESOLVED
from ..discretisation.solution import Level, Solution, as_points
from ..models.fields import is_number
from ._guards import NEGATIVE
from .error import is_density

MAX_UNKNOWNS = 500_000
_SHARE = 0.8  # of the sum of the indicators lies in the cells that are refined (Dörfler, SIAM J. Numer. Anal. 33, 1996)


def to_accuracy(
    ask: Callable[[Generator, tuple[Level, ...]], Solution],
    gen: Generator,
    name: str,
    start: Any,
    rtol: float,
    max_unknowns: int,
    data: Any = (),
) -> Solution:
    """The answer on finer and finer meshes until its error bar at the start is below rtol (collective).

    Each mesh is refined where the dual-weighted residual (error.py) says that the error at the start comes from;
    boundary parts keep their names.  The mesh of ``gen`` is the first, and should know the shape of the domain; layers,
    corners, ends of absorbing parts and grazing points are found.  Where a mesh resolves nothing yet, the cells to
    blame or, if they are not known, all of them are refined.

    Args:
        ask: the question: maps a generator, and the meshes so far, to the answer with an error bar at the start.
        gen: generator on the first mesh; it is left as it is.
        name: of the verb, for messages.
        start: a point of shape (d,), or an initial density.
        rtol: largest error bar relative to the answer, between 0 and 1.
        max_unknowns: no mesh with more unknowns is tried.
        data: sources of the question, none of which may be tied to a mesh.

    Raises:
        ValueError: bad arguments; a coefficient of the process is a ``Function``, which is tied to the first mesh.
        NotConverged: ``max_unknowns`` or the floor of rounding was reached; ``partial`` is the answer so far.
    """
    _check(gen, name, start, rtol, max_unknowns, data)
    history: tuple[Level, ...] = ()
    answer, here = None, gen
    while True:
        try:
            answer = ask(here, history)
        except NotConverged as failure:
            if failure.reason not in (UNRESOLVED, NEGATIVE):
                raise
            logger.info("%s on %d unknowns", failure.reason, here.G.getSize()[0])
            owned = here.domain.mesh.topology.index_map(here.domain.dim).size_local
            coarse = np.ones(owned, dtype=bool) if failure.partial is None else failure.partial[:owned]
            finer = _refined(here, np.flatnonzero(coarse))
            if finer.G.getSize()[0] > max_unknowns:
                finer.close()
                failure.partial = answer
                raise
            here = _replace(here, finer, gen)
            continue
        history = answer.history
        logger.info("%s: %s", answer.name, history[-1])
        if _reached(history, rtol):
            return answer
        floor = answer.stats.get("roundoff", 0.0)
        if _stalled(history, floor):
            advice = f"Rounding, about {floor:.0e}, is what is left of the error; take a larger rtol."
            raise _failure(answer, "DIVERGED_ROUNDOFF", rtol, advice)
        shape = answer.estimate.of_shape()[0]
        closer = here.domain.closer() if shape > 0.5 * history[-1].error else None
        if closer is not None:  # what is left is the shape of the domain, not the size of cells
            here = _replace(here, here.with_domain(closer), gen)
            continue
        finer = _refined(here, _marked(here.domain.comm, answer.estimate.indicators()))
        size = finer.G.getSize()[0]
        if size > max_unknowns:
            finer.close()
            advice = f"The next mesh has {size} unknowns; raise max_unknowns (now {max_unknowns}), rtol or the degree."
            raise _failure(answer, "DIVERGED_MAX_UNKNOWNS", rtol, advice)
        here = _replace(here, finer, gen)


def _refined(gen: Generator, cells: npt.ArrayLike) -> Generator:
    return gen.with_domain(gen.domain.refine(cells))


def _replace(old: Generator, new: Generator, keep: Generator) -> Generator:
    if old is not keep:
        old.close()
    return new


def _check(gen: Generator, name: str, start: Any, rtol: float, max_unknowns: int, data: Any) -> None:
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
    size = gen.G.getSize()[0]
    if not is_number(max_unknowns) or max_unknowns < size:
        raise ValueError(
            f"{name}: max_unknowns is {max_unknowns!r}; at least {size} was expected, as many as the first mesh has."
        )


def _reached(history: tuple[Level, ...], rtol: float) -> bool:
    """Whether the error bar is small enough, and the one before did not turn out to be wrong.

    On a mesh that misses a layer an error bar can be small by accident, so that a first mesh is never trusted.
    """
    if len(history) < 2:
        return False
    before, now = history[-2:]
    return now.error <= rtol * abs(now.value) and abs(now.value - before.value) <= 2 * (before.error + now.error)


def _stalled(history: tuple[Level, ...], roundoff: float) -> bool:
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


def _failure(answer: Solution, reason: str, rtol: float, advice: str) -> NotConverged:
    last = answer.history[-1]
    what = f"{answer.name} to rtol {rtol:g} ({with_bar(last.value, last.error)})"
    failure = NotConverged(what, reason, len(answer.history), last.error / abs(last.value), "fp_exit_", advice)
    failure.partial = answer
    return failure
