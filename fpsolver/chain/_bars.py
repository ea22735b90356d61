"""Error bars of a chain's answers: the same question to other points, other meshes and the next degree.

What limits accuracy is noise of the points at the jumps of an answer, and where the jumps lie in their cells, neither
of which a pair of degrees or of meshes can show.  Two variants with other points and moved inner nodes give the
scatter s of single answers, a third of degree k + 1 (in 1D on cells cut in two) the step Δ; the bar is
1.5 √(Δ² + (3s)²).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from petsc4py import PETSc

import numpy as np

from .._errors import NotConverged
from .._log import logger
from ..discretisation.solution import Level, Solution, as_points
from ..models.fields import is_number
from ._solve import PREFIX, RTOL
from ._sources import is_density, load_density
from .chain import Chain

Array = np.ndarray[Any, Any]


def variants(chain: Chain) -> list[Chain]:
    """Two like this one and one that resolves more, with other points on moved meshes (collective)."""
    same = [chain.varied(seed) for seed in (1, 2)]
    return [*same, chain.varied(3, finer=True)]


def bar(values: Array, floor: float = 0.0) -> Array:
    """Error bars of values[0] from those of :func:`variants` in the following rows, shape (4, n) -> (n,)."""
    scatter = values[:3].std(axis=0, ddof=1)
    step = np.abs(values[3] - values[0])
    return 1.5 * np.sqrt(step**2 + (3 * scatter) ** 2) + (floor + 10 * RTOL) * np.abs(values[0])


@dataclass
class Spread:
    """Error bars of one answer (collective), as :class:`~fpsolver.discretisation.solution.ErrorEstimate`.

    Attributes:
        chain: the one that answered.
        vector: its answer.
        again: gives the answer of another chain.
        start: points (n, d), an initial law, or None for the uniform law on the domain.
        floor: relative error from rounding.
    """

    chain: Chain
    vector: PETSc.Vec
    again: Callable[[Chain], PETSc.Vec]
    start: Any
    floor: float
    _vectors: list[PETSc.Vec] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.start is not None and not is_density(self.start):
            self.start = as_points(self.start, self.chain.domain.dim, "start")

    def all(self) -> list[tuple[Chain, PETSc.Vec]]:
        """The chains and their answers."""
        chains = variants(self.chain)
        if not self._vectors:
            self._vectors = [self.again(c) for c in chains]
        return [(self.chain, self.vector), *zip(chains, self._vectors, strict=True)]

    def values(self) -> Array:
        """Answers at the starts of all variants, shape (4, n)."""
        return np.array([at_start(c, u, self.start) for c, u in self.all()])

    def at_start(self) -> Array:
        """Error bars at the starts."""
        return bar(self.values(), self.floor)

    def at(self, points: Any) -> Array:
        """Error bars at points."""
        x = as_points(points, self.chain.domain.dim)
        return bar(np.array([c.values(u, x) for c, u in self.all()]), self.floor)


def at_start(chain: Chain, u: PETSc.Vec, start: Any) -> Array:
    """Values at points, or the mean over an initial law, shape (n,) (collective)."""
    if start is None:
        return np.array([u.dot(chain.integrals) / chain.integrals.sum()])
    if not is_density(start):
        return chain.values(u, start)
    source = load_density(chain, start)
    return np.array([u.dot(source)])


def to_accuracy(
    answer: Callable[[Chain, Any], Solution], chain: Chain, name: str, start: Any, rtol: float | None, max_unknowns: int
) -> Solution:
    """The answer of a chain; with ``rtol``, on meshes cut in two again and again until its bar is small (collective).

    Args:
        answer: of a chain, given the meshes so far (None: none are kept).
        chain: on the first mesh.
        name: of the verb.
        start: one point or law, for ``rtol``.
        rtol: largest error bar relative to the answer.
        max_unknowns: no mesh with more unknowns is tried.

    Raises:
        ValueError: an unsuitable ``rtol``, or no single start.
        NotConverged: ``max_unknowns`` was reached; ``partial`` is the answer so far.
    """
    if rtol is None:
        return answer(chain, None)
    if not is_number(rtol) or not 0 < rtol < 1:
        raise ValueError(f"{name}: rtol is {rtol!r}; a number between 0 and 1 was expected.")
    if start is None or (not is_density(start) and len(as_points(start, chain.domain.dim, "start")) != 1):
        raise ValueError(f"{name}: with rtol one start was expected, a point or an initial density.")
    history: tuple[Level, ...] = ()
    while True:
        found = answer(chain, history)
        history = found.history
        last = history[-1]
        logger.info("%s: %s", name, last)
        if last.error <= rtol * abs(last.value):
            return found
        size = last.unknowns * 2**chain.domain.dim
        if size > max_unknowns:
            advice = f"The next mesh has {size} unknowns; raise max_unknowns (now {max_unknowns}), rtol or the degree."
            reached = last.error / abs(last.value) if last.value else np.inf
            failure = NotConverged(name, "DIVERGED_MAX_UNKNOWNS", len(history), reached, PREFIX, advice)
            failure.partial = found
            raise failure
        chain = chain.refined()
