"""Values at points of all cells or of boundary facets, as arrays: integrals and extremes over all ranks.

Suprema are taken on a lattice in every cell.  Half its points are midpoints of a coarser lattice; the deviation e there
from the mean of the two neighbours estimates the second derivative.  Within the finer lattice the deviation from linear
interpolation is about e/4, so that the largest sample plus e bounds the supremum wherever the lattice resolves the
function: a measured bound, not a proof.
"""

from collections.abc import Callable
from typing import Any

from mpi4py import MPI

import basix
import numpy as np
import ufl
from dolfinx import mesh as dmesh
from ufl.core.expr import Expr

from .. import _compat
from .._sample import Array, cell_type, compiled, lattice, outer_sides, own_cells, push_forward, quadrature
from ..models.process import Coefficients
from ..pointwise.family import lambdify
from ..pointwise.lambdify import PointSpace

LEVEL = 4  # lattice intervals per edge at least; even
_POINTS, _FINEST = 40_000, 64


class Samples:
    """Reference points X in this rank's own cells, or on local boundary facets: ``x`` (entities, points, d)."""

    weights: Array  # of a quadrature, with the Jacobian, shape (cells, points)

    def __init__(self, mesh: dmesh.Mesh, X: Array, facets: Array | None = None):
        self.mesh, self.X = mesh, X
        self._middle: Array = np.zeros((0, 3), dtype=int)
        # cells, or pairs of cell and local facet
        self.entities: Array = own_cells(mesh) if facets is None else outer_sides(mesh, facets)
        self.x = push_forward(mesh, X, self.entities) if facets is None else self.values(ufl.SpatialCoordinate(mesh))

    @classmethod
    def quadrature(cls, mesh: dmesh.Mesh, degree: int, vertices: bool = False) -> "Samples":
        """The standard rule of a degree in the cells; ``vertices`` adds those, with weight zero."""
        X, _, weights = quadrature(mesh, degree)
        corners = basix.geometry(cell_type(mesh))[: None if vertices else 0]
        samples = cls(mesh, np.concatenate([X, corners]))
        samples.weights = np.pad(weights, ((0, 0), (0, len(corners))))
        return samples

    @classmethod
    def lattice(cls, mesh: dmesh.Mesh, facets: Array | None = None) -> "Samples":
        """A lattice in the cells or on facets, finer where there are few cells."""
        d = mesh.topology.dim
        n = int((_POINTS / max(mesh.topology.index_map(d).size_global, 1)) ** (1 / d))
        n = int(np.clip(n - n % 2, LEVEL, _FINEST))
        if facets is not None and d == 1:
            return cls(mesh, np.zeros((1, 0)), facets)
        samples = cls(mesh, lattice(d if facets is None else d - 1, n)[0], facets)
        samples._middle = _midpoints(samples.X, n)
        return samples

    def compiled(self, expression: Expr | list[Expr]) -> Callable[[], Array]:
        """A function that gives the values of UFL with its coefficients as they then are (making it is collective)."""
        table = compiled(self.mesh, expression, self.X)
        return lambda: table(self.entities)

    def values(self, expression: Expr | list[Expr]) -> Array:
        """UFL at the points, shape (entities, points, ...); a list counts as a vector (collective)."""
        return self.compiled(expression)()

    def integrate(self, values: Array) -> float:
        """Integral over the whole mesh of values at quadrature points (collective)."""
        return float(self.mesh.comm.allreduce(float(np.sum(self.weights * values))))

    def minimum(self, values: Array) -> tuple[float, Array]:
        """Smallest of some values, shape (entities, points), over all ranks, and where it is (collective)."""
        mine = self.x[np.unravel_index(np.argmin(values), values.shape)] if values.size else None
        lowest, _, place = min(self.mesh.comm.allgather((values.min(initial=np.inf), self.mesh.comm.rank, mine)))
        return float(lowest), place

    def margin(self, values: Array) -> Array:
        """Largest deviation of midpoints from the mean of their neighbours, shape (entities,)."""
        m = self._middle
        return np.abs(values[:, m[:, 0]] - 0.5 * (values[:, m[:, 1]] + values[:, m[:, 2]])).max(axis=1, initial=0.0)

    def upper(self, values: Array) -> Array:
        """Supremum on each entity with its margin (entities,), from values (entities, points); inf if not finite."""
        with np.errstate(invalid="ignore"):
            top = values.max(axis=1, initial=-np.inf) + self.margin(values)
        return np.where(np.isfinite(values).all(axis=1), top, np.inf)

    def lower(self, values: Array) -> Array:
        """Infimum on each entity with its margin."""
        return -self.upper(-values)


def at_points(expressions: Any, space: PointSpace) -> Callable[[Array], Array]:
    """UFL of a space of points as a function that maps points (n, d) to components (n, k), on each rank by itself."""
    values = lambdify(expressions, space)
    # where a formula has no value, that is not a number
    return np.errstate(all="ignore")(lambda points: values(points.T).T)


def _midpoints(X: Array, n: int) -> Array:
    """Rows (point, neighbour, neighbour) of the lattice points that are midpoints of the lattice with n/2."""
    k = np.rint(np.column_stack([n - n * X.sum(axis=1), n * X])).astype(int)
    number = {tuple(row): i for i, row in enumerate(k)}
    rows = []
    for i, row in enumerate(k):
        odd = np.flatnonzero(row % 2)
        if len(odd):
            step = np.zeros_like(row)
            step[odd] = (-1) ** np.arange(len(odd))
            rows.append((i, number[tuple(row + step)], number[tuple(row - step)]))
    return np.array(rows, dtype=int).reshape(-1, 3)


def owned_nodes(mesh: dmesh.Mesh) -> Array:
    """Coordinates of the nodes of this rank's own cells, shape (cells, nodes, d)."""
    return mesh.geometry.x[_compat.geometry_dofmap(mesh)[own_cells(mesh)]][:, :, : mesh.geometry.dim]


def maxima(comm: MPI.Comm, values: Any) -> Array:
    """Elementwise maximum over ranks of an array of the same shape everywhere (collective)."""
    return np.max(comm.allgather(values), axis=0)


def directions(dim: int) -> Array:
    """Unit vectors spread over the sphere, shape (n, dim): both ends, 720 angles, or a Fibonacci lattice of 4000."""
    if dim == 1:
        return np.array([[-1.0], [1.0]])
    if dim == 2:
        angle = 2 * np.pi * np.arange(720) / 720
        return np.column_stack([np.cos(angle), np.sin(angle)])
    n = np.arange(4000) + 0.5
    z, angle = 1 - 2 * n / 4000, np.pi * (1 + 5**0.5) * n
    r = np.sqrt(1 - z**2)
    return np.column_stack([r * np.cos(angle), r * np.sin(angle), z])


def axes_and_sums(dim: int) -> Array:
    """e_i, then e_i + e_j for j < i: a quadratic form is known from its values there, see :func:`quadratic_form`."""
    e = np.eye(dim)
    return np.array([*e, *(e[i] + e[j] for i in range(dim) for j in range(i))])


def quadratic_form(values: Array, dim: int) -> Array:
    """Symmetric matrices (..., dim, dim) from a·Qa at the vectors a of :func:`axes_and_sums`, shape (..., vectors)."""
    Q = np.zeros((*values.shape[:-1], dim, dim))
    Q[..., range(dim), range(dim)] = values[..., :dim]
    pairs = [(i, j) for i in range(dim) for j in range(i)]
    for k, (i, j) in enumerate(pairs, start=dim):
        Q[..., i, j] = Q[..., j, i] = 0.5 * (values[..., k] - values[..., i] - values[..., j])
    return Q


def ito_drift(coefficients: Coefficients) -> Expr:
    """b = β + ∇·D."""
    return coefficients.beta + ufl.div(coefficients.D)
