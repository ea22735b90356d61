"""What bounds need of a generator, sampled: drift and diffusion in the cells, what boundary facets do."""

from dataclasses import dataclass, field

import numpy as np
import ufl

from ..._answer import Answer
from ..._compat import coordinate_map
from ..._sample import largest
from ...discretisation.boundary import CURVED, TOLERANCE
from ...discretisation.generator import Generator
from ...discretisation.solution import bounds
from ..sampling import Samples, ito_drift


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
    """L = b·∇ + D:∇∇ and the boundary of a generator, sampled (collective).

    ``accepts`` tells where on absorbing facets data act, ``conormal`` is Dn on reflecting ones, shape (facets, points,
    d), and ``leaks`` tells through which of these the drift leaves without diffusion.
    """

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
        # grazing points count as accepting: they are limits of points that do
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
