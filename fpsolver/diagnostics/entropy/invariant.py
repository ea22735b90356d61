"""Whether an invariant law exists in the space of which the mesh is a part: a Lyapunov function on the mesh.

If L V <= C − a V outside nothing, every invariant law has ∫ V dπ <= C/a, and laws started anywhere stay tight
(Krylov-Bogoliubov; Meyn, Tweedie, Adv. Appl. Probab. 25, 1993).  At reflecting walls the same bound needs
n·D∇V >= 0, because ∫ LV dπ = ∫_walls π n·D∇V.
"""

from dataclasses import dataclass
from typing import Any

from mpi4py import MPI

import basix
import numpy as np
import ufl
from dolfinx import fem
from scipy import optimize

from ..._answer import Answer
from ...discretisation.generator import Generator
from ...models.fields import Space

_RATES = (1e-6, 1e6)  # between which a is sought, relative to max |LV| / max |V|


@dataclass(frozen=True)
class Tightness(Answer):
    """A Lyapunov function V, evaluated at quadrature points of every cell.

    Attributes:
        inwards: largest L V in the cells at the boundary; negative means that the process is drawn back there.
        tight: ``inwards <= 0`` and ``wall >= 0``.
        rate: a, and
        constant: C in L V <= C − a V, chosen to make C/a smallest.
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

    Values are those at quadrature points, not bounds between them.

    Args:
        gen: any generator.
        lyapunov: V, a non-negative scalar source of all coordinates; |x|² by default.  For a kinetic process take
            something like x² + v² + xv: friction acts on v alone.

    Raises:
        ValueError: V is negative or not finite somewhere.
    """
    mesh = gen.domain.mesh
    space = Space(mesh, gen.degree, mesh.geometry.dim)
    V = space.scalar(lyapunov or (lambda x: ufl.dot(x, x)), "Lyapunov function")
    D, beta = gen.weak.coefficients.D, gen.weak.coefficients.beta
    gradient = space.grad(V)
    LV = ufl.div(ufl.dot(D, gradient)) + ufl.dot(beta, gradient)
    cell = getattr(basix.CellType, mesh.topology.cell_name())
    points = np.concatenate([basix.make_quadrature(cell, 2 * gen.degree)[0], basix.geometry(cell)])
    owned = np.arange(mesh.topology.index_map(mesh.topology.dim).size_local, dtype=np.int32)
    row = ufl.as_vector([*ufl.SpatialCoordinate(mesh), V, LV])
    table = fem.Expression(row, points).eval(mesh, owned).reshape(len(owned), len(points), len(row))
    values, changes = table[..., -2], table[..., -1]
    comm = mesh.comm
    lowest, finite = _smallest(comm, values), _smallest(comm, np.isfinite(table).astype(float))
    if not finite or lowest < 0:
        raise ValueError(f"tightness: V has values like {lowest:.6g}; finite, non-negative ones were expected.")
    layer = np.isin(owned, boundary_cells(gen))
    inwards = -_smallest(comm, -changes[layer])
    wall = _smallest_on_walls(gen, ufl.dot(D, gradient))
    wall = 0.0 if abs(wall) <= 1e-12 * gen.survey.diffusion else wall
    rate, bound = _best_bound(comm, values.ravel(), changes.ravel())
    return Tightness(inwards, inwards <= 0 <= wall, rate, rate * bound, bound, wall)


def boundary_cells(gen: Generator, facets: Any = None) -> np.ndarray:
    """Owned cells with one of these facets, or any facet, on the boundary (collective)."""
    mesh = gen.domain.mesh
    dim = mesh.topology.dim
    mesh.topology.create_connectivity(dim - 1, dim)
    cells = mesh.topology.connectivity(dim - 1, dim)
    facets = gen.boundary.facets if facets is None else facets
    return np.unique(cells.array[cells.offsets[facets]]).astype(np.int32)


def _smallest(comm: MPI.Comm, values: np.ndarray) -> float:
    return float(comm.allreduce(float(values.min(initial=np.inf)), op=MPI.MIN))


def _smallest_on_walls(gen: Generator, field: Any) -> float:
    """Minimum of n·field over the quadrature points of the boundary (collective)."""
    mesh = gen.domain.mesh
    n, X = ufl.FacetNormal(mesh), ufl.SpatialCoordinate(mesh)
    values, _ = gen.boundary.evaluate([ufl.dot(field, n), X[0]], gen.boundary.facets)
    return _smallest(gen.domain.comm, values[..., 0])


def _best_bound(comm: MPI.Comm, V: np.ndarray, LV: np.ndarray) -> tuple[float, float]:
    """a and the smallest max(V + LV/a) over the points (collective)."""
    scale = -_smallest(comm, -abs(LV)) / max(-_smallest(comm, -V), 1e-300)
    low, high = np.log(np.array(_RATES) * max(scale, 1e-300))
    # convex in 1/a, a maximum of linear functions
    found = optimize.minimize_scalar(
        lambda s: -_smallest(comm, -(V + LV * np.exp(-s))),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return float(np.exp(found.x)), float(found.fun)
