"""What bounds need of a generator, sampled: drift and diffusion in the cells, what boundary facets do."""

from dataclasses import dataclass

import numpy as np
import ufl

from ..._compat import coordinate_map
from ...discretisation.boundary import CURVED, TOLERANCE
from ...discretisation.generator import Generator
from ...discretisation.solution import bounds
from ...models.process import Coefficients
from ..sampling import CellSamples, FacetSamples, supremum

_OUTWARDS = "the drift leaves through a reflecting wall without diffusion"

Verdict = tuple[str, np.ndarray | None, bool, str, dict[str, float]]
"""Kind, value, whether the hypotheses hold, why, constants: see ``Bound``."""


@dataclass
class Wall:
    """Reflecting facets: samples, co-normal Dn (facets, points, d), and where the drift leaves without diffusion."""

    samples: FacetSamples
    facets: np.ndarray
    conormal: np.ndarray
    leaks: np.ndarray


class Operator:
    """L = b·∇ + D:∇∇ and the boundary of a generator, sampled (collective).

    Attributes:
        cells, x: samples in the cells and their points (cells, points, d).
        D, b: diffusion (cells, points, d, d) and Itô drift (cells, points, d).
        exits: samples of the absorbing facets; ``accepts`` tells where data act there.
        wall: the reflecting facets.
        low, high: corners of the bounding box.
    """

    def __init__(self, gen: Generator):
        self.gen, self.comm, self.dim = gen, gen.domain.comm, gen.domain.dim
        mesh, d = gen.domain.mesh, gen.domain.dim
        self.low, self.high = bounds(mesh)
        self.extent = float((self.high - self.low).max())
        # afresh, because the weighted scheme multiplies the generator's own by the density
        self.space = gen.process.space(mesh, gen.degree)
        c = gen.process.coefficients(self.space)
        drift = c.beta + ufl.div(c.D)
        self.cells = CellSamples(mesh)
        table = self.cells.values([*(c.D[i, j] for i in range(d) for j in range(d)), *(drift[i] for i in range(d))])
        self.x, self.D, self.b = self.cells.x, table[..., : d * d].reshape(*table.shape[:2], d, d), table[..., d * d :]
        self.scale = max(supremum(self.comm, np.abs(self.D[np.isfinite(self.D)])), 1e-300)
        self.speed = max(supremum(self.comm, np.abs(self.b[np.isfinite(self.b)])), 1e-300)
        curved = coordinate_map(mesh).degree > 1
        self._tolerance = CURVED if curved else TOLERANCE
        self._boundary(c)

    def _boundary(self, c: Coefficients) -> None:
        domain, d = self.gen.domain, self.dim
        mine = [domain.facets(name) for name in self.gen.absorbing]
        self.exit_facets = np.unique(np.concatenate(mine)).astype(np.int32)
        everything = np.unique(np.concatenate([domain.facets(name) for name in domain.parts])).astype(np.int32)
        rest = np.setdiff1d(everything, self.exit_facets).astype(np.int32)
        n = ufl.FacetNormal(domain.mesh)
        rows = [*ufl.dot(c.D, n), ufl.dot(ufl.dot(c.D, n), n), ufl.dot(c.beta, n)]
        self.exits, walls = FacetSamples(domain.mesh, self.exit_facets), FacetSamples(domain.mesh, rest)
        at_exit, at_wall = self.exits.values(rows), walls.values(rows)
        flat = self._tolerance * self.scale
        still = self._tolerance * self.speed
        # grazing points count as accepting: they are limits of points that do
        self.accepts = (at_exit[..., d] > flat) | (at_exit[..., d + 1] > -still)
        leaks = np.any((at_wall[..., d] <= flat) & (at_wall[..., d + 1] > still), axis=1)
        conormal = np.where(at_wall[..., d : d + 1] > flat, at_wall[..., :d], 0.0)
        self.wall = Wall(walls, rest, conormal, np.asarray(leaks))

    def generate(self, gradient: np.ndarray, hessian: np.ndarray) -> np.ndarray:
        """L w at the cells' points from ∇w and ∇∇w there."""
        return np.einsum("cpi,cpi->cp", self.b, gradient) + np.einsum("cpij,cpij->cp", self.D, hessian)

    def blocked(self, slope: np.ndarray) -> np.ndarray:
        """Which wall facets spoil n·D∇w ≤ 0, from ``slope`` = n·D∇w on them; those that leak always do."""
        tolerance = 1e-9 * max(supremum(self.comm, np.abs(slope)), 0.0)
        return (self.wall.samples.upper(slope) > tolerance) | self.wall.leaks

    def why_blocked(self, sign: str) -> str:
        """What to say of blocked walls (collective)."""
        if self.comm.allreduce(int(self.wall.leaks.sum())):
            return _OUTWARDS
        return f"reflecting walls: n·D∇w {sign} 0 does not hold on them"
