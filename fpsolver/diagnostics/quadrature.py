"""Values at quadrature points of all cells as arrays.

Functionals such as ∫ p ln p are no polynomials of the coefficients and are wanted at many times: basis functions are
tabulated once, and every density is then a matrix product.
"""

from dataclasses import dataclass
from typing import Any

from mpi4py import MPI

import basix
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh

from .. import _compat

Array = npt.NDArray[Any]


def cell_type(mesh: dmesh.Mesh) -> basix.CellType:
    """The mesh's cells for basix."""
    return getattr(basix.CellType, mesh.topology.cell_name())


def coordinate_element(mesh: dmesh.Mesh) -> Any:
    """Basis of the map from the reference cell."""
    cmap = _compat.coordinate_map(mesh)
    return basix.create_element(
        basix.ElementFamily.P, cell_type(mesh), cmap.degree, basix.LagrangeVariant(cmap.variant)
    )


def owned_nodes(mesh: dmesh.Mesh) -> Array:
    """Coordinates of the nodes of this rank's own cells, shape (cells, nodes, d)."""
    owned = mesh.topology.index_map(mesh.topology.dim).size_local
    return mesh.geometry.x[_compat.geometry_dofmap(mesh)[:owned]][:, :, : mesh.geometry.dim]


def total(mesh: dmesh.Mesh, values: Array) -> Array:
    """Sum of an array over all ranks (collective)."""
    mine = np.ascontiguousarray(values, dtype=float)
    result = np.empty_like(mine)
    mesh.comm.Allreduce(mine, result)
    return result


@dataclass(frozen=True)
class Quadrature:
    """Quadrature points of this rank's own cells.

    Attributes:
        mesh: dolfinx mesh of simplices.
        X: points of the reference cell, shape (q, d).
        x: their images, shape (cells, q, d).
        weights: weights including the Jacobian, shape (cells, q).
        inverse: derivative of the reference coordinates, ∂X_a/∂x_i, shape (cells, q, d, d).
    """

    mesh: dmesh.Mesh
    X: Array
    x: Array
    weights: Array
    inverse: Array

    @classmethod
    def of(cls, mesh: dmesh.Mesh, degree: int) -> "Quadrature":
        """The standard rule of this degree."""
        return cls._at(mesh, *basix.make_quadrature(cell_type(mesh), degree))

    @classmethod
    def with_vertices(cls, mesh: dmesh.Mesh, degree: int) -> "Quadrature":
        """The same points, and the vertices with weight zero."""
        X, w = basix.make_quadrature(cell_type(mesh), degree)
        corners = basix.geometry(cell_type(mesh))
        return cls._at(mesh, np.concatenate([X, corners]), np.concatenate([w, np.zeros(len(corners))]))

    @classmethod
    def _at(cls, mesh: dmesh.Mesh, X: Array, w: Array) -> "Quadrature":
        table = coordinate_element(mesh).tabulate(1, X)[:, :, :, 0]
        nodes = owned_nodes(mesh)
        x = np.einsum("qn,cnx->cqx", table[0], nodes)
        J = np.einsum("aqn,cnx->cqxa", table[1:], nodes)
        return cls(mesh, X, x, w * np.abs(np.linalg.det(J)), np.linalg.inv(J))

    def values(self, f: fem.Function) -> Array:
        """A scalar Lagrange function at the points, shape (cells, q)."""
        return self._coefficients(f) @ self._table(f, 0)[0].T

    def gradients(self, f: fem.Function) -> Array:
        """Its gradient, shape (cells, q, d)."""
        reference = np.einsum("aqn,cn->cqa", self._table(f, 1)[1:], self._coefficients(f))
        return np.einsum("cqa,cqai->cqi", reference, self.inverse)

    def _coefficients(self, f: fem.Function) -> Array:
        return f.x.array[f.function_space.dofmap.list[: len(self.x)]]

    def _table(self, f: fem.Function, derivatives: int) -> Array:
        return f.function_space.element.basix_element.tabulate(derivatives, self.X)[:, :, :, 0]

    def expression(self, expression: Any) -> Array:
        """UFL at the points, shape (cells, q, ...) (collective: it may be compiled)."""
        shape = expression.ufl_shape
        # the coordinate makes constants belong to the mesh
        row = [expression[i] for i in np.ndindex(*shape)] if shape else [expression]
        row.append(ufl.SpatialCoordinate(self.mesh)[0])
        cells = np.arange(len(self.x), dtype=np.int32)
        table = fem.Expression(ufl.as_vector(row), self.X).eval(self.mesh, cells)
        return table.reshape(*self.weights.shape, len(row))[:, :, :-1].reshape(*self.weights.shape, *shape)

    def integrate(self, values: Array) -> float:
        """Integral over the whole mesh of values at the points (collective)."""
        return float(self.mesh.comm.allreduce(float(np.sum(self.weights * values)), op=MPI.SUM))

    def minimum(self, values: Array) -> tuple[float, Array]:
        """Smallest of some values, shape (cells, q), over all ranks, and where it is (collective)."""
        at = int(np.argmin(values)) if values.size else 0
        mine = float(values.ravel()[at]) if values.size else np.inf
        lowest, rank = self.mesh.comm.allreduce((mine, self.mesh.comm.rank), op=MPI.MINLOC)
        place = self.x.reshape(-1, self.x.shape[2])[at] if rank == self.mesh.comm.rank else None
        return float(lowest), self.mesh.comm.bcast(place, root=rank)


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
