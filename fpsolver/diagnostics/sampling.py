"""Extremes of functions over cells and boundary facets, from samples with a margin.

A function is sampled on a lattice in every cell.  Half the points are midpoints of a coarser lattice; the deviation e
there from the mean of the two neighbours estimates the second derivative.  Within the finer lattice the deviation from
linear interpolation is about e/4, so that the largest sample plus e bounds the supremum wherever the lattice resolves
the function: a measured bound, not a proof.
"""

from typing import Any

from mpi4py import MPI

import numpy as np
from dolfinx import fem
from dolfinx import mesh as dmesh
from ufl import SpatialCoordinate, as_vector
from ufl.core.expr import Expr

from .. import _compat
from .._sample import lattice, neighbours, push_forward

LEVEL = 4  # lattice intervals per edge at least; even
_POINTS, _FINEST = 40_000, 64


def level_of(mesh: dmesh.Mesh) -> int:
    """Lattice intervals per edge: more of them where there are few cells."""
    d = mesh.topology.dim
    n = int((_POINTS / max(mesh.topology.index_map(d).size_global, 1)) ** (1 / d))
    return int(np.clip(n - n % 2, LEVEL, _FINEST))


def midpoints(X: np.ndarray, n: int) -> np.ndarray:
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


class Samples:
    """Lattice values on this rank's cells or boundary facets.

    Attributes:
        x: points, shape (cells, points, d).
    """

    x: np.ndarray
    _middle: np.ndarray

    def margin(self, values: np.ndarray) -> np.ndarray:
        """Largest deviation of midpoints from the mean of their neighbours, shape (cells,)."""
        if not len(self._middle):
            return np.zeros(len(values))
        m = self._middle
        return np.abs(values[:, m[:, 0]] - 0.5 * (values[:, m[:, 1]] + values[:, m[:, 2]])).max(axis=1, initial=0.0)

    def upper(self, values: np.ndarray) -> np.ndarray:
        """Supremum on each cell with its margin, shape (cells,), from values (cells, points); inf if not finite."""
        with np.errstate(invalid="ignore"):
            top = values.max(axis=1, initial=-np.inf) + self.margin(values)
        return np.where(np.isfinite(values).all(axis=1), top, np.inf)

    def lower(self, values: np.ndarray) -> np.ndarray:
        """Infimum on each cell with its margin."""
        return -self.upper(-values)


class CellSamples(Samples):
    """On the owned cells."""

    def __init__(self, mesh: dmesh.Mesh):
        d, n = mesh.topology.dim, level_of(mesh)
        self.mesh, self.cells = mesh, np.arange(mesh.topology.index_map(d).size_local, dtype=np.int32)
        self.X = lattice(d, n)[0]
        self._middle = midpoints(self.X, n)
        self.x = push_forward(mesh, self.X, self.cells)

    def values(self, rows: list[Expr]) -> np.ndarray:
        """Scalars at the points, shape (cells, points, rows)."""
        table = fem.Expression(as_vector(rows), self.X).eval(self.mesh, self.cells)
        return table.reshape(len(self.cells), len(self.X), len(rows))


class FacetSamples(Samples):
    """On local boundary facets."""

    def __init__(self, mesh: dmesh.Mesh, facets: np.ndarray):
        d, n = mesh.topology.dim, level_of(mesh)
        cells, local = neighbours(mesh, facets)
        self.mesh, self.entities = mesh, np.column_stack([cells[:, 0], local[:, 0]])
        self.X = lattice(d - 1, n)[0] if d > 1 else np.zeros((1, 0))
        self._middle = midpoints(self.X, n) if d > 1 else np.zeros((0, 3), dtype=int)
        self.x = self.values([*SpatialCoordinate(mesh)])

    def values(self, rows: list[Expr]) -> np.ndarray:
        """Scalars at the points, shape (facets, points, rows)."""
        expression = fem.Expression(as_vector(rows), self.X)
        shape = (len(self.entities), len(self.X), len(rows))
        if not len(self.entities):
            return np.zeros(shape)
        return _compat.evaluate_on_facets(expression, self.mesh, self.entities).reshape(shape)


def largest(comm: MPI.Comm, values: Any) -> np.ndarray:
    """Elementwise maximum over ranks of an array of the same shape everywhere (collective)."""
    mine = np.ascontiguousarray(np.atleast_1d(np.asarray(values, dtype=float)))
    result = np.empty_like(mine)
    comm.Allreduce(mine, result, op=MPI.MAX)
    return result


def supremum(comm: MPI.Comm, values: np.ndarray) -> float:
    """Maximum of rank-local values, −inf of none (collective)."""
    return float(largest(comm, np.max(values, initial=-np.inf))[0])


def infimum(comm: MPI.Comm, values: np.ndarray) -> float:
    """Minimum of rank-local values, inf of none (collective)."""
    return -supremum(comm, -np.asarray(values))
