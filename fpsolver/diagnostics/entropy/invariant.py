"""What the walls of the mesh, a part of a larger space, do to an invariant law.

If L V <= C − a V, every invariant law has ∫ V dπ <= C/a, and laws started anywhere stay tight (Meyn, Tweedie, Adv.
Appl. Probab. 25, 1993); reflecting walls need n·D∇V >= 0 as well.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import ufl
from dolfinx import fem
from scipy import optimize

from ..._answer import Answer
from ..._sample import largest, neighbours, smallest
from ...discretisation.generator import Generator
from ...discretisation.solution import Solution, bounds, evaluate
from ...longtime.stationary import stationary
from ...models.fields import Space
from ..sampling import Samples

_RATES = (1e-6, 1e6)  # between which a is sought, relative to max |LV| / max |V|


@dataclass(frozen=True)
class Tightness(Answer):
    """A Lyapunov function V, evaluated at quadrature points of every cell.

    Attributes:
        inwards: largest L V in the cells at the boundary; negative means that the process is drawn back there.
        tight: ``inwards <= 0`` and ``wall >= 0``.
        rate, constant: a and C in L V <= C − a V, chosen to make C/a smallest.
        bound: C/a, which bounds ∫ V dπ for every invariant law π; for V = |x|² the second moment.
        wall: smallest n·D∇V on the boundary.
    """

    inwards: float
    tight: bool
    rate: float
    constant: float
    bound: float
    wall: float

    def __repr__(self) -> str:
        verdict = "tight" if self.tight else "tightness not shown"
        drawn = f"L V <= {self.inwards:.4g} at the walls, n.D grad V >= {self.wall:.4g} on them"
        mean = f"L V <= {self.constant:.4g} - {self.rate:.4g} V, so that E V <= {self.bound:.4g} in the long run"
        return f"{verdict}: {drawn}; {mean}"


def tightness(gen: Generator, *, lyapunov: Any = None) -> Tightness:
    """Check a Lyapunov function in the mesh's boundary layer and bound its mean (collective).

    Values are those at quadrature points, not bounds between them.  ``lyapunov`` is V, a non-negative scalar source of
    all coordinates; |x|² by default.  For a kinetic process take something like x² + v² + xv: friction acts on v alone.

    Raises:
        ValueError: V is negative or not finite somewhere.
    """
    mesh, comm = gen.domain.mesh, gen.domain.comm
    space = Space(mesh, gen.degree, mesh.geometry.dim)
    V = space.scalar(lyapunov or (lambda x: ufl.dot(x, x)), "Lyapunov function")
    D, beta = gen.weak.coefficients.D, gen.weak.coefficients.beta
    gradient = space.grad(V)
    LV = ufl.div(ufl.dot(D, gradient)) + ufl.dot(beta, gradient)
    samples = Samples.quadrature(mesh, 2 * gen.degree, vertices=True)
    table = samples.values([V, LV])
    values, changes = table[..., 0], table[..., 1]
    lowest, finite = smallest(comm, values), smallest(comm, np.isfinite(table).astype(float))
    if not finite or lowest < 0:
        raise ValueError(f"tightness: V has values like {lowest:.6g}; finite, non-negative ones were expected.")
    inwards = largest(comm, changes[np.isin(samples.entities, _boundary_cells(gen, gen.boundary.facets))])
    n, X = ufl.FacetNormal(mesh), ufl.SpatialCoordinate(mesh)
    slopes, _ = gen.boundary.evaluate([ufl.dot(ufl.dot(D, gradient), n), X[0]], gen.boundary.facets)
    wall = smallest(comm, slopes[..., 0])
    wall = 0.0 if abs(wall) <= 1e-12 * gen.survey.diffusion else wall
    # the smallest max(V + LV/a) over the points is convex in 1/a, a maximum of linear functions
    scale = max(largest(comm, np.abs(changes)) / max(largest(comm, values), 1e-300), 1e-300)
    best = optimize.minimize_scalar(
        lambda s: largest(comm, values + changes * np.exp(-s)),
        bounds=np.log(np.array(_RATES) * scale),
        method="bounded",
        options={"xatol": 1e-9},
    )
    rate, bound = float(np.exp(best.x)), float(best.fun)
    return Tightness(inwards, inwards <= 0 <= wall, rate, rate * bound, bound, wall)


def _boundary_cells(gen: Generator, facets: np.ndarray) -> np.ndarray:
    """Owned cells with one of these facets on the boundary."""
    return np.unique(neighbours(gen.domain.mesh, facets)[0][:, 0])


@dataclass(frozen=True)
class Wall:
    """A boundary part: mass in the cells at it, largest density on it, and ∫ |J·n|, exactly zero if it reflects."""

    mass: float
    density: float
    flux: float


@dataclass(frozen=True)
class Truncation(Answer):
    """Truncation of an invariant law.

    Attributes:
        walls: for each boundary part.
        change: ∫ |p_large − p| over the domain, where p_large is the invariant density of the enlarged one.
        outside: mass of p_large outside the domain.
        mean, second_moment: changes of the mean, shape (d,), and of ∫|x|² p.
    """

    walls: dict[str, Wall]
    change: float
    outside: float
    mean: np.ndarray
    second_moment: float

    def __repr__(self) -> str:
        mean = ", ".join(f"{m:.2e}" for m in self.mean)
        head = f"on a larger domain: L1 change {self.change:.2e}, outside {self.outside:.2e}, mean moves by ({mean}), "
        walls = [
            f"  {name}: mass in its cells {wall.mass:.2e}, density up to {wall.density:.2e}, flux {wall.flux:.2e}"
            for name, wall in self.walls.items()
        ]
        return "\n".join([f"{head}second moment by {self.second_moment:.2e}", *walls])


def truncation(gen: Generator, *, p: Solution | None = None, enlarge: float = 1.25) -> Truncation:
    """How much the walls of the domain matter to its invariant law (collective).

    The invariant density is computed again on a larger domain: along each axis the outer half of the mesh is stretched
    so that its bounding box becomes ``enlarge`` > 1 times as large.  Outer cells become up to 2·enlarge − 1 times as
    long; differences below the discretisation error there say nothing.  Algebraic tails, as noise that grows with the
    distance has them, decrease slowly: then only a sequence of domains tells the limit.  ``p`` is ``stationary(gen)``.

    Raises:
        ValueError: mass leaves; ``enlarge``; a coefficient is a ``Function``, which has no values outside.
        NotConverged: a factorisation failed.
    """
    if not 1 < enlarge < np.inf:
        raise ValueError(f"truncation: enlarge is {enlarge!r}; a number above 1 was expected.")
    p = stationary(gen) if p is None else p
    mesh, comm, n = gen.domain.mesh, gen.domain.comm, ufl.FacetNormal(gen.domain.mesh)
    samples = Samples.quadrature(mesh, 2 * gen.degree + 2)
    density, walls = samples.values(p.raw), dict[str, Wall]()
    for part in gen.domain.parts:
        facets = gen.domain.facets(part)
        values, weights = gen.boundary.evaluate([p.raw, ufl.dot(gen.weak.scheme.flux(gen.weak, p.raw), n)], facets)
        mass = samples.integrate(density * np.isin(samples.entities, _boundary_cells(gen, facets))[:, None])
        flux = comm.allreduce(float((weights * abs(values[..., 1])).sum()))
        walls[part] = Wall(mass, largest(comm, values[..., 0]), flux)
    lower, upper = bounds(mesh)
    center, half = ((lower + upper) / 2)[:, None], ((upper - lower) / 2)[:, None]

    def outwards(x: np.ndarray) -> np.ndarray:
        t = (x - center) / half
        outer = 0.5 + (abs(t) - 0.5) * (2 * enlarge - 1)
        return center + half * np.where(abs(t) > 0.5, np.sign(t) * outer, t)

    domain = gen.domain.mapped(outwards)
    with Generator(gen.process, domain, (), gen.degree, gen.scheme, options=gen.options) as large:
        q = stationary(large).raw
        change = _moments(q, gen.degree) - _moments(p.raw, gen.degree)
    # the larger mesh is distributed in its own way: each rank asks all of them
    everywhere = [evaluate(q, comm.bcast(samples.x.reshape(-1, gen.domain.dim), root=r)) for r in range(comm.size)]
    found = everywhere[comm.rank].reshape(samples.weights.shape)
    difference = samples.integrate(np.abs(found - density))
    return Truncation(walls, difference, 1 - samples.integrate(found), change[:-1], float(change[-1]))


def _moments(p: fem.Function, degree: int) -> np.ndarray:
    """First moments and that of |x|² (collective)."""
    samples = Samples.quadrature(p.function_space.mesh, degree + 2)
    values, x = samples.values(p), samples.x
    return np.array([samples.integrate(values * g) for g in (*np.moveaxis(x, -1, 0), (x**2).sum(axis=-1))])
