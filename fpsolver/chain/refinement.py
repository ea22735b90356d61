"""Generators and chains on finer meshes: which cells, how many unknowns that takes, and until when."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, NoReturn, Self, TypeVar

from mpi4py import MPI

import numpy as np

from .._answer import Answer, with_bar
from .._arguments import check_share, expect, is_number
from .._errors import NotConverged
from .._log import logger, once
from .._sample import own_cells
from ..discretisation.generator import Generator
from ..discretisation.metastable import UNRESOLVED
from ..discretisation.others import Others
from ..discretisation.solution import Level
from .chain import Chain
from .equations import bar, variants

Array = np.ndarray[Any, Any]
MAX_UNKNOWNS = 500_000
NEGATIVE = "DIVERGED_NEGATIVE"  # the reason of an answer of the wrong sign
_SHARE = 0.8  # of the sum of the indicators lies in the cells that are refined (Dörfler, SIAM J. Numer. Anal. 33, 1996)


def unknowns(gen: Generator | Chain) -> int:
    """Of the answers, on all ranks."""
    return int(gen.V.dofmap.index_map.size_global)


A = TypeVar("A")


@dataclass(frozen=True, kw_only=True)
class Numbers(Answer):
    """Base of answers that consist of numbers with error bars.

    Attributes:
        generator: with which it was computed.
        ask: the same answer of another generator or chain, of which error bars are made; None: there are none.
        history: the meshes of an answer to a prescribed accuracy, the coarsest first.
    """

    generator: Any = field(default=None, repr=False)
    ask: Callable[[Any], Any] | None = field(default=None, repr=False)
    history: tuple[Level, ...] = field(default=(), repr=False)
    roundoff: ClassVar[float] = 0.0

    @property
    def sure(self) -> bool:
        """Of chains, whose bars are those of four meshes."""
        return isinstance(self.generator, Chain)

    def numbers(self) -> Array:
        """The numbers of which there are error bars, shape (n,)."""
        raise NotImplementedError

    def _in_unit(self, **changes: Any) -> Self:
        """With some fields in steps, of other generators as well."""
        return replace(self, ask=self.ask and (lambda other: self.ask(other).in_steps()), **changes)  # type: ignore[misc]

    @cached_property
    def bars(self) -> Array:
        """Error bars of :meth:`numbers` (collective when first asked for)."""
        if self.ask is None:
            return np.full_like(self.numbers(), np.nan)
        if isinstance(self.generator, Chain):
            return bar(np.array([self.numbers(), *(self.ask(c).numbers() for c in variants(self.generator))]), 1e-12)
        return self._others.bars(lambda _, answer: answer.numbers())

    @cached_property
    def _others(self) -> Others:
        assert self.ask is not None
        return Others(self.generator, self, self.ask)

    def shape_error(self) -> float:
        """Of the number with the largest one."""
        return float(self._others.of_shape(lambda _, answer: answer.numbers()).max())

    def accuracy(self) -> tuple[float, float]:
        """The number with the largest relative error bar, and that."""
        values = self.numbers()
        worst = int(np.argmax(self.bars / np.maximum(np.abs(values), 1e-300)))
        return float(values[worst]), float(self.bars[worst])

    def by_cells(self) -> None:
        """Where the error comes from is not known: all cells are refined."""

    def keep(self, history: tuple[Level, ...]) -> None:
        """Remember the meshes that led here."""
        object.__setattr__(self, "history", history)


def to_accuracy(
    name: str, gen: Any, ask: Callable[[Any], A], prefix: str, *, rtol: float | None = None,
    max_unknowns: int = MAX_UNKNOWNS,
) -> A:  # fmt: skip
    """The answer of a generator or chain, with ``rtol`` on finer and finer meshes until its error bar is that small.

    Collective.  An answer has a number and its error bar (``accuracy()``), shares of cells in that (``by_cells()``,
    None: unknown), what of it the domain's shape has (``shape_error()``), the relative error by rounding
    (``roundoff``), whether a bar that is small on the first mesh is no accident (``sure``); ``keep`` takes the history.

    Boundary parts keep their names.  The first mesh should know the shape of the domain; layers, corners, ends of
    absorbing parts and grazing points are found.  Where a mesh resolves nothing yet, the cells to blame or, if they are
    not known, all of them are refined; of a chain, always all.

    Raises:
        ValueError: unsuitable ``rtol`` or ``max_unknowns``.
        NotConverged: the next mesh has more than ``max_unknowns``, or the floor of rounding was reached; ``partial``
            is the answer so far.
    """
    if rtol is None:
        return ask(gen)
    check_share(f"{name}: rtol", rtol)
    size = unknowns(gen)
    expect(f"{name}: max_unknowns", max_unknowns, f"at least {size}", is_number(max_unknowns) and max_unknowns >= size)
    history, here = list[Level](), gen
    answer: Any = None

    def refuse(reason: str, advice: str) -> NoReturn:
        value, error = history[-1].value, history[-1].error
        what = f"{name} to rtol {rtol:g} ({with_bar(value, error)})"
        failure = NotConverged(what, reason, len(history), error / max(abs(value), 1e-300), prefix, advice)
        failure.partial = answer
        raise failure

    with once(set()):  # warnings of one cause are given once, not on every mesh
        while True:
            try:
                answer = ask(here)
            except NotConverged as failure:
                if failure.reason not in (UNRESOLVED, NEGATIVE):
                    raise
                logger.info("%s: %s on %d unknowns", name, failure.reason, unknowns(here))
                finer, _ = refined(here, failure.partial, max_unknowns)
                if finer is None:
                    failure.partial = answer
                    raise
            else:
                cells = here.domain.mesh.topology.index_map(here.domain.dim).size_global
                history.append(Level(cells, unknowns(here), *answer.accuracy()))
                answer.keep(tuple(history))
                logger.info("%s: %s", name, history[-1])
                if _reached(history, rtol, answer.sure):
                    return answer
                if _stalled(history, answer.roundoff):
                    floor = f"Rounding, about {answer.roundoff:.0e}, is what is left of the error; take a larger rtol."
                    refuse("DIVERGED_ROUNDOFF", floor)
                finer, size = _next(here, answer, history[-1].error, max_unknowns)
                if finer is None:
                    needs = (
                        f"The next mesh has {size} unknowns; raise max_unknowns (now {max_unknowns}), rtol or degree."
                    )
                    refuse("DIVERGED_MAX_UNKNOWNS", needs)
            if here is not gen and isinstance(here, Generator):
                here.close()
            here = finer


def _reached(history: list[Level], rtol: float, sure: bool) -> bool:
    """Whether the error bar is small enough, and the one before was right: a mesh that misses a layer may have none."""
    *others, now = history
    right = others and abs(now.value - others[-1].value) <= 2 * (others[-1].error + now.error)
    return now.error <= rtol * abs(now.value) and bool(sure or right)


def _stalled(history: list[Level], roundoff: float) -> bool:
    """Whether the error bar, of the size of the rounding errors, no longer falls."""
    now = history[-1]
    return len(history) > 2 and history[-3].error <= now.error <= roundoff * abs(now.value)


def _next(here: Generator | Chain, answer: Any, error: float, most: int) -> tuple[Any, int]:
    """On the next mesh and its size, or None where it has more than ``most`` unknowns."""
    if isinstance(here, Chain):
        return refined(here, None, most)
    closer = here.domain.closer() if answer.shape_error() > 0.5 * error else None
    if closer is not None:  # what is left is the shape of the domain, not the size of cells
        return here.with_domain(closer), 0
    shares = answer.by_cells()
    return refined(here, None if shares is None else marked(here.domain.comm, shares), most)


def refined(here: Generator | Chain, marked: Any, most: int) -> tuple[Any, int]:
    """With the marked cells refined, or with all of them where that is None or marks nothing (collective)."""
    if isinstance(here, Chain):
        size = unknowns(here) * 2**here.domain.dim
        return (here.refined() if size <= most else None), size
    cells = own_cells(here.domain.mesh)
    if marked is not None and here.domain.comm.allreduce(int(np.any(marked[: len(cells)]))):
        cells = cells[marked[: len(cells)]]
    finer = here.with_domain(here.domain.refine(cells))
    size = unknowns(finer)
    if size > most:
        finer.close()
        return None, size
    return finer, size


def marked(comm: MPI.Comm, indicators: np.ndarray) -> np.ndarray:
    """Which of this rank's cells are among the fewest with a given share of the sum of the indicators (collective)."""
    # those above a threshold, found by bisection of its logarithm: no rank sees all indicators
    total, top = comm.allreduce(float(indicators.sum())), comm.allreduce(float(indicators.max(initial=0.0)), op=MPI.MAX)
    low, high = np.log(1e-30), 0.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        above = float(indicators[indicators >= np.exp(middle) * top].sum())
        low, high = (middle, high) if comm.allreduce(above) >= _SHARE * total else (low, middle)
    return indicators >= np.exp(low) * top
