"""What cutting a larger space off at the mesh's walls does to the invariant law."""

from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from mpi4py import MPI

import basix
import numpy as np
import ufl
from dolfinx import fem

from ... import _sample
from ..._answer import Answer
from ...discretisation.generator import Generator
from ...discretisation.solution import Solution, bounds, evaluate
from ...domains.domain import Domain
from ...longtime.stationary import stationary
from ...models.fields import integrate
from ...models.noise import Sum
from .invariant import boundary_cells


@dataclass(frozen=True)
class Wall:
    """One boundary part.

    Attributes:
        mass: in the cells at the part.
        density: largest on it.
        flux: ∫ |J·n| of the computed density, zero for the exact one at a reflecting wall.
    """

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
        mean: change of the mean, shape (d,).
        second_moment: change of ∫|x|² p.
    """

    walls: dict[str, Wall]
    change: float
    outside: float
    mean: np.ndarray
    second_moment: float

    def __repr__(self) -> str:
        mean = ", ".join(f"{m:.2e}" for m in np.atleast_1d(self.mean))
        larger = (
            f"on a larger domain: L1 change {self.change:.2e}, outside {self.outside:.2e}, mean moves by ({mean}), "
        )
        walls = [
            f"  {name}: mass in its cells {wall.mass:.2e}, density up to {wall.density:.2e}, flux {wall.flux:.2e}"
            for name, wall in self.walls.items()
        ]
        return "\n".join([f"{larger}second moment by {self.second_moment:.2e}", *walls])


def truncation(gen: Generator, *, p: Solution | None = None, enlarge: float = 1.25) -> Truncation:
    """How much the walls of the domain matter to its invariant law (collective).

    The invariant density is computed again on a larger domain: along each axis the outer half of the mesh (beyond half
    of the way from the centre of its bounding box to the side) is stretched so that the box becomes ``enlarge`` times
    as large, while the inner half keeps its cells.  The number of cells does not change, so that the outer ones become
    up to 2·enlarge − 1 times as long; differences below the discretisation error there say nothing.

    Exponential tails give changes like the density at the walls; algebraic ones, as noise that grows with the
    distance has them, decrease slowly: then only a sequence of domains tells the limit.

    Args:
        gen: generator with nothing absorbing.
        p: its ``stationary(gen)``, if it is known.
        enlarge: ratio of the lengths of the bounding boxes, above 1.

    Raises:
        ValueError: mass leaves; ``enlarge``; a coefficient is a ``Function``, which has no values outside.
        NotConverged: a factorisation failed.
    """
    if not 1 < enlarge < np.inf:
        raise ValueError(f"truncation: enlarge is {enlarge!r}; a number above 1 was expected.")
    _check_extensible(gen.process)
    p = stationary(gen) if p is None else p
    mesh, density = gen.domain.mesh, p.raw
    walls = {part: _wall(gen, density, part) for part in gen.domain.parts}
    points, weights, values = _samples(density, 2 * gen.degree + 2)
    with Generator(gen.process, _stretched(gen, enlarge), (), gen.degree, gen.scheme, options=gen.options) as large:
        q = stationary(large).raw
        moments = _moments(q, gen.degree)
    found = _everywhere(q, points, mesh.comm)
    sums, local = np.zeros(2), np.array([(weights * abs(found - values)).sum(), (weights * found).sum()])
    mesh.comm.Allreduce(local, sums)
    change = moments - _moments(density, gen.degree)
    return Truncation(walls, float(sums[0]), float(1 - sums[1]), change[:-1], float(change[-1]))


def _wall(gen: Generator, p: fem.Function, part: str) -> Wall:
    mesh = gen.domain.mesh
    facets, n = gen.domain.facets(part), ufl.FacetNormal(mesh)
    J = ufl.dot(gen.weak.scheme.flux(gen.weak, p), n)
    values, weights = gen.boundary.evaluate([p, J], facets)
    cells = boundary_cells(gen, facets)
    indicator = fem.Function(fem.functionspace(mesh, ("DG", 0)))
    indicator.x.array[cells] = 1.0
    indicator.x.scatter_forward()
    mass = integrate(mesh, indicator * p, gen.degree)
    largest = mesh.comm.allreduce(float(values[..., 0].max(initial=-np.inf)), op=MPI.MAX)
    flux = mesh.comm.allreduce(float((weights * abs(values[..., 1])).sum()), op=MPI.SUM)
    return Wall(mass, largest, flux)


def _moments(p: fem.Function, degree: int) -> np.ndarray:
    """First moments and that of |x|² (collective)."""
    mesh = p.function_space.mesh
    x = ufl.SpatialCoordinate(mesh)
    powers = [*(x[i] for i in range(mesh.geometry.dim)), ufl.dot(x, x)]
    return np.array([integrate(mesh, f * p, degree + 2) for f in powers])


def _samples(p: fem.Function, degree: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quadrature points of this rank's cells (n, d), their weights and the function there."""
    mesh = p.function_space.mesh
    X, w = basix.make_quadrature(getattr(basix.CellType, mesh.topology.cell_name()), degree)
    cells = np.arange(mesh.topology.index_map(mesh.topology.dim).size_local, dtype=np.int32)
    row = ufl.as_vector([abs(ufl.JacobianDeterminant(mesh)), p])
    table = fem.Expression(row, X).eval(mesh, cells).reshape(len(cells), len(X), 2)
    points = _sample.push_forward(mesh, X, cells).reshape(-1, mesh.geometry.dim)
    return points, (table[..., 0] * w).ravel(), table[..., 1].ravel()


def _everywhere(f: fem.Function, points: np.ndarray, comm: MPI.Comm) -> np.ndarray:
    """Values at points that differ from rank to rank (collective)."""
    found = np.zeros(0)
    for rank in range(comm.size):
        values = evaluate(f, comm.bcast(points, root=rank))
        found = values if rank == comm.rank else found
    return found


def _stretched(gen: Generator, enlarge: float) -> Domain:
    """The domain with its outer half moved outwards."""
    lower, upper = bounds(gen.domain.mesh)
    center, half = ((lower + upper) / 2)[:, None], ((upper - lower) / 2)[:, None]

    def outwards(x: np.ndarray) -> np.ndarray:
        t = (x - center) / half
        outer = 0.5 + (abs(t) - 0.5) * (2 * enlarge - 1)
        return center + half * np.where(abs(t) > 0.5, np.sign(t) * outer, t)

    return gen.domain.mapped(outwards)


def _check_extensible(process: Any) -> None:
    for field in fields(process) if is_dataclass(process) else ():
        value = getattr(process, field.name)
        for part in value.parts if isinstance(value, Sum) else (value,):
            if isinstance(part, fem.Function):
                raise ValueError(
                    f"truncation: {field.name} is a Function on the mesh, which has no values outside. Give the "
                    "process a callable, fp.batched(f) for a function of points."
                )
            if is_dataclass(part):
                _check_extensible(part)
