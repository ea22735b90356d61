"""UFL expressions at any points of space, on each rank by itself."""

from collections.abc import Callable
from typing import Any

from mpi4py import MPI

import basix.ufl
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh
from ufl.core.expr import Expr

from .._compat import geometry_dofmap
from ..models.process import Coefficients

Array = npt.NDArray[Any]
_CELLS = {1: "interval", 2: "triangle", 3: "tetrahedron"}
_CHUNK = 1024  # cells whose corners are the points that a compiled expression sees at once


def private_simplices(dim: int, corners: Array) -> dmesh.Mesh:
    """A mesh of this rank alone: disjoint simplices with these corners, shape (cells, dim + 1, dim)."""
    element = ufl.Mesh(basix.ufl.element("Lagrange", _CELLS[dim], 1, shape=(dim,)))
    cells = np.arange(len(corners) * (dim + 1), dtype=np.int64).reshape(-1, dim + 1)
    mesh = dmesh.create_mesh(MPI.COMM_SELF, cells=cells, x=corners.reshape(-1, dim), e=element)
    mesh.geometry.x[geometry_dofmap(mesh), :dim] = corners  # the cells may have been reordered
    return mesh


def compiled(mesh: dmesh.Mesh, expression: Expr, X: Array, comm: MPI.Comm) -> Callable[[Array], Array]:
    """A function of cells that gives the values of an expression at reference points, shape (cells, points, ...).

    Making it is collective on ``comm``, calling it is not.
    """
    shape = expression.ufl_shape
    row = [expression[i] for i in np.ndindex(*shape)] if shape else [expression]
    row.append(ufl.SpatialCoordinate(mesh)[0])  # makes constants belong to the mesh
    table = fem.Expression(ufl.as_vector(row), X, comm=comm)

    def values(cells: Array) -> Array:
        found = table.eval(mesh, cells).reshape(len(cells), len(X), len(row))
        return found[..., :-1].reshape(len(cells), len(X), *shape)

    return values


class Pointwise:
    """A UFL expression without tabulated sources at any points, on each rank by itself.

    DOLFINx compiles expressions for fixed points of the reference cell.  Here the points are made the corners of
    private cells, which are only a place to keep them.

    Args:
        dim: dimension of space.
        build: maps a mesh to the expression.
        comm: communicator on which the expression is compiled (collective).
    """

    def __init__(self, dim: int, build: Callable[[dmesh.Mesh], Expr], comm: MPI.Comm):
        X = np.concatenate([np.zeros((1, dim)), np.eye(dim)])
        self._mesh = private_simplices(dim, np.tile(X, (_CHUNK, 1, 1)))
        expression = build(self._mesh)
        self._shape, self._table = expression.ufl_shape, compiled(self._mesh, expression, X, comm)
        self._places = geometry_dofmap(self._mesh).ravel()
        self._cells = np.arange(_CHUNK, dtype=np.int32)

    def __call__(self, points: Array) -> Array:
        """Values at points, shape (n, d): shape (n, ...)."""
        n, dim = points.shape
        step, values = len(self._places), np.empty((n, *self._shape))
        for begin in range(0, n, step):
            part = points[begin : begin + step]
            self._mesh.geometry.x[self._places[: len(part)], :dim] = part
            table = self._table(self._cells[: -(-len(part) // (dim + 1))])
            values[begin : begin + step] = table.reshape(-1, *self._shape)[: len(part)]
        return values


def ito_drift(coefficients: Coefficients) -> Expr:
    """b = β + ∇·D."""
    return coefficients.beta + ufl.div(coefficients.D)
