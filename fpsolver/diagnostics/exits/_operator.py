"""A generator sampled in cells and on boundary facets, and lowest passes of a landscape from cell to cell."""

from bisect import bisect_left
from dataclasses import dataclass, field

import numpy as np
import ufl
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from ..._answer import Answer
from ..._compat import coordinate_map
from ..._sample import largest
from ...discretisation.boundary import CURVED, TOLERANCE
from ...discretisation.generator import Generator
from ...discretisation.solution import bounds, locate
from ...domains.domain import Domain
from ..sampling import Samples, ito_drift, maxima


@dataclass(frozen=True, eq=False)
class Bound(Answer):
    """One bound of the mean exit time.

    Attributes:
        name: "quadratic", "arrhenius", "one noisy direction" or "residual certificate".
        kind: "lower" or "upper".
        value: at the starts, shape (n,); None where the hypotheses fail.
        why: the hypotheses, or which of them fails.
        constants: the numbers of the Arrhenius bound (those of the first start).
    """

    name: str
    kind: str
    value: np.ndarray | None
    why: str
    constants: dict[str, float] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether the hypotheses hold on the mesh."""
        return self.value is not None

    def __repr__(self) -> str:
        return f"{self.kind} bound {'unknown' if self.value is None else self.value} ({self.name}: {self.why})"


class Operator:
    """L = b·∇ + D:∇∇ and the boundary of a generator, sampled (collective)."""

    def __init__(self, gen: Generator):
        domain, mesh, d = gen.domain, gen.domain.mesh, gen.domain.dim
        self.gen, self.comm, self.dim = gen, domain.comm, d
        self.low, self.high = bounds(mesh)
        self.extent = float((self.high - self.low).max())
        # afresh, because the weighted scheme multiplies the generator's own by the density
        self.space = gen.process.space(mesh, gen.degree)
        c = gen.process.coefficients(self.space)
        self.cells = Samples.lattice(mesh)
        table = self.cells.values([*(c.D[i, j] for i in range(d) for j in range(d)), *ito_drift(c)])
        self.x, self.D, self.b = self.cells.x, table[..., : d * d].reshape(*table.shape[:2], d, d), table[..., d * d :]
        self.scale, speed = (max(largest(self.comm, np.abs(v[np.isfinite(v)])), 1e-300) for v in (self.D, self.b))
        self.exit_facets, everything = (
            np.unique(np.concatenate([domain.facets(name) for name in names])).astype(np.int32)
            for names in (gen.absorbing, domain.parts)
        )
        self.wall_facets = np.setdiff1d(everything, self.exit_facets).astype(np.int32)
        n = ufl.FacetNormal(mesh)
        rows = [*ufl.dot(c.D, n), ufl.dot(ufl.dot(c.D, n), n), ufl.dot(c.beta, n)]
        self.exits, self.walls = (Samples.lattice(mesh, f) for f in (self.exit_facets, self.wall_facets))
        at_exit, at_wall = self.exits.values(rows), self.walls.values(rows)
        tolerance = CURVED if coordinate_map(mesh).degree > 1 else TOLERANCE
        flat, still = tolerance * self.scale, tolerance * speed
        # where on absorbing facets data act; grazing points count: they are limits of points that do
        self.accepts = (at_exit[..., d] > flat) | (at_exit[..., d + 1] > -still)
        self.leaks = np.any((at_wall[..., d] <= flat) & (at_wall[..., d + 1] > still), axis=1)
        self.conormal = np.where(at_wall[..., d : d + 1] > flat, at_wall[..., :d], 0.0)

    def generate(self, gradient: np.ndarray, hessian: np.ndarray) -> np.ndarray:
        """L w at the cells' points from ∇w and ∇∇w there."""
        return np.einsum("cpi,cpi->cp", self.b, gradient) + np.einsum("cpij,cpij->cp", self.D, hessian)

    def slope(self, gradient: np.ndarray) -> np.ndarray:
        """n·D∇w on the walls from ∇w there, shape (facets, points)."""
        return np.einsum("fpi,fpi->fp", self.conormal, gradient)

    def blocked(self, slope: np.ndarray) -> np.ndarray:
        """Which wall facets spoil n·D∇w ≤ 0, from ``slope`` = n·D∇w on them; those that leak always do."""
        tolerance = 1e-9 * max(largest(self.comm, np.abs(slope)), 0.0)
        return (self.walls.upper(slope) > tolerance) | self.leaks

    def why_blocked(self, sign: str) -> str:
        """What to say of blocked walls (collective)."""
        if self.comm.allreduce(int(self.leaks.sum())):
            return "the drift leaves through a reflecting wall without diffusion"
        return f"reflecting walls: n·D∇w {sign} 0 does not hold on them"


class Passes:
    """Cells of all ranks joined through their facets, and as the last node the exit; made of the levels of own cells.

    ``exits`` are (own cell, level) of facets through which one can leave.  The pass between two nodes is the lowest of
    the heights of paths from cell to cell, which are the largest of their cells' levels (collective).
    """

    def __init__(self, domain: Domain, level: np.ndarray, exits: tuple[np.ndarray, np.ndarray]):
        self._domain, mesh, d, n = domain, domain.mesh, domain.dim, len(level)
        self._first = int(domain.comm.exscan(n) or 0)
        self._own = slice(self._first, self._first + n)
        mesh.topology.create_connectivity(d, d - 1)
        facets = mesh.topology.connectivity(d, d - 1).array[: n * (d + 1)].astype(np.int32)
        numbers = mesh.topology.index_map(d - 1).local_to_global(facets)
        pieces = domain.comm.allgather((level, numbers, exits[0] + self._first, exits[1]))
        self.level, shared, leaving, height = (np.concatenate(p) for p in zip(*pieces, strict=True))
        order = np.argsort(shared, kind="stable")
        twice = np.flatnonzero(shared[order][1:] == shared[order][:-1])
        a, b = order[twice] // (d + 1), order[twice + 1] // (d + 1)
        self._a = np.append(a, leaving)
        self._b = np.append(b, np.full(len(leaving), len(self.level)))
        self._height = np.append(np.maximum(*self.level[[a, b]]), np.maximum(self.level[leaving], height))

    def number(self, x: np.ndarray) -> np.ndarray:
        """One cell for each of several points in the mesh, shape (n, d) (collective)."""
        index, cells = locate(self._domain.mesh, x)
        mine = np.full(len(x), np.inf)
        np.minimum.at(mine, index, cells + self._first)
        return (-maxima(self._domain.comm, -mine)).astype(int)

    def labels(self, height: float) -> np.ndarray:
        """Which part each cell and, last, the exit belong to, where paths no higher than ``height`` join them."""
        low, n = self._height <= height, len(self.level) + 1
        graph = coo_matrix((np.ones(low.sum()), (self._a[low], self._b[low])), shape=(n, n))
        label: np.ndarray = connected_components(graph, directed=False)[1]
        return label

    def below(self, cell: int, height: float) -> np.ndarray:
        """Which of this rank's owned cells are joined to ``cell`` through cells below ``height``, as a mask."""
        label = self.labels(np.nextafter(height, -np.inf))
        return label[self._own] == label[cell]

    def lowest(self, a: int, b: int) -> tuple[float, int]:
        """Height of the pass between two nodes, −1 being the exit, and the cell that it is; inf if no path leads."""
        if a == b:
            return -np.inf, a
        heights = np.unique(self._height)

        def joined(height: float) -> bool:
            label = self.labels(height)
            return bool(label[a] == label[b])

        first = bisect_left(heights, True, key=joined)
        if first == len(heights):
            return np.inf, -1
        label = self.labels(np.nextafter(heights[first], -np.inf))
        left, right = label[self._a] == label[a], label[self._b] == label[a]
        edge = np.flatnonzero((self._height == heights[first]) & (left != right))[0]
        level = np.append(self.level, -np.inf)
        return float(heights[first]), int(max(self._a[edge], self._b[edge], key=lambda k: level[k]))
