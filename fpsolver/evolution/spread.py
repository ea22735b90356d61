"""Error bars of a chain's answers about leaving, from its variants."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from petsc4py import PETSc

import numpy as np

from ..chain import Chain
from ..chain.equations import bar, variants
from ..discretisation.solution import as_points
from .initial import is_density, load_density

Array = np.ndarray[Any, Any]


@dataclass
class Spread:
    """Error bars of one answer, ``at_start()`` and ``at(points)`` (collective)."""

    chain: Chain  #: the one that answered
    u: PETSc.Vec  #: its answer
    solve: Callable[[Chain], list[PETSc.Vec]]  #: the answers of another chain, this one last
    start: Any  #: points (n, d), an initial law, or None for the uniform law on the domain
    floor: float  #: relative error from rounding

    def __post_init__(self) -> None:
        if self.start is not None and not is_density(self.start):
            self.start = as_points(self.start, self.chain.domain.dim, "start")

    @cached_property
    def _all(self) -> list[tuple[Chain, PETSc.Vec]]:
        return [(self.chain, self.u), *((c, self.solve(c)[-1]) for c in variants(self.chain))]

    def value(self) -> Array:
        """The answer at the starts, shape (n,)."""
        return _at_start(self.chain, self.u, self.start)

    def at_start(self) -> Array:
        """Error bars at the starts."""
        return bar(np.array([_at_start(c, u, self.start) for c, u in self._all]), self.floor)

    def at(self, points: Any) -> Array:
        """Error bars at points."""
        x = as_points(points, self.chain.domain.dim)
        return bar(np.array([c.values(u, x) for c, u in self._all]), self.floor)


def _at_start(chain: Chain, u: PETSc.Vec, start: Any) -> Array:
    """Values at points, or the mean over an initial law, shape (n,) (collective)."""
    if isinstance(start, np.ndarray):
        return chain.values(u, start)
    if start is None:
        return np.array([u.dot(chain.integrals) / chain.integrals.sum()])
    return np.array([u.dot(load_density(chain, start))])
