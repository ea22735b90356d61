"""Generators and chains on finer meshes: which cells, how many unknowns that takes, and until when."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar

from mpi4py import MPI

import numpy as np

from .._answer import Answer, with_bar
from .._arguments import check_share
from .._errors import NotConverged
from .._log import logger
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


class Accurate(Protocol):
    """An answer that can be asked for to a prescribed accuracy."""

    def accuracy(self) -> tuple[float, float]: ...  # noqa: D102  a number and its error bar (collective)

    def by_cells(self) -> np.ndarray | None: ...  # noqa: D102  shares of this rank's cells in it, None: unknown

    def keep(self, history: tuple[Level, ...]) -> None: ...  # noqa: D102  the meshes on which it was asked for


A = TypeVar("A", bound=Accurate)


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

    def numbers(self) -> Array:
        """The numbers of which there are error bars, shape (n,)."""
        raise NotImplementedError

    @cached_property
    def bars(self) -> Array:
        """Error bars of :meth:`numbers` (collective when first asked for)."""
        if self.ask is None:
            return np.full_like(self.numbers(), np.nan)
        if isinstance(self.generator, Chain):
            return bar(np.array([self.numbers(), *(self.ask(c).numbers() for c in variants(self.generator))]), 1e-12)
        return Others(self.generator, self, self.ask).bars(lambda _, answer: answer.numbers())

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
    name: str, gen: Any, ask: Callable[[Any], A], rtol: float | None, most: int, prefix: str = "fp_stationary_"
) -> A:
    """The answer of a generator or chain, with ``rtol`` on finer and finer meshes until its error bar is that small.

    Collective.  Where a mesh resolves nothing, the cells to blame or, if they are not known, all of them are refined.

    Raises:
        NotConverged: the next mesh has more than ``most`` unknowns; ``partial`` is the answer so far.
    """
    if rtol is None:
        return ask(gen)
    check_share(f"{name}: rtol", rtol)
    history, here, answer = list[Level](), gen, None
    while True:
        try:
            answer = ask(here)
        except NotConverged as failure:
            if failure.reason not in (UNRESOLVED, NEGATIVE):
                raise
            logger.info("%s: %s on %d unknowns", name, failure.reason, unknowns(here))
            finer, _ = refined(here, failure.partial, most)
            if finer is None:
                failure.partial = answer
                raise
            here = finer
            continue
        value, error = answer.accuracy()
        cells = here.domain.mesh.topology.index_map(here.domain.dim).size_global
        history.append(Level(cells, unknowns(here), value, error))
        answer.keep(tuple(history))
        logger.info("%s: %s", name, history[-1])
        if error <= rtol * abs(value):
            return answer
        shares = answer.by_cells()
        finer, size = refined(here, None if shares is None else marked(here.domain.comm, shares), most)
        if finer is None:
            what = f"{name} to rtol {rtol:g} ({with_bar(value, error)})"
            advice = f"The next mesh has {size} unknowns; raise max_unknowns (now {most}), rtol or the degree."
            error /= max(abs(value), 1e-300)
            refused = NotConverged(what, "DIVERGED_MAX_UNKNOWNS", len(history), error, prefix, advice)
            refused.partial = answer
            raise refused
        here = finer


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
    """Which of this rank's cells are among the fewest with a given share of the sum of the indicators (collective).

    They are those above a threshold, found by bisection of its logarithm: no rank sees all indicators.
    """
    total, top = comm.allreduce(float(indicators.sum())), comm.allreduce(float(indicators.max(initial=0.0)), op=MPI.MAX)
    low, high = np.log(1e-30), 0.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        above = float(indicators[indicators >= np.exp(middle) * top].sum())
        low, high = (middle, high) if comm.allreduce(above) >= _SHARE * total else (low, middle)
    return indicators >= np.exp(low) * top
