"""Fields at points of cells and facets, and their extremes over all ranks: the one place where fields are sampled."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise, permutations, product
from typing import Any

from mpi4py import MPI

import basix
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh
from ufl.core.expr import Expr

from . import _compat

Array = npt.NDArray[Any]


def lagrange(V: fem.FunctionSpace) -> tuple[str, int] | None:
    """Family ("Lagrange" or "DG") and degree of a space, None if its values are not those at nodes."""
    try:
        e = V.element.basix_element
    except RuntimeError:  # a mixed element
        return None
    if e.family != basix.ElementFamily.P:
        return None
    return "DG" if e.discontinuous or e.degree == 0 else "Lagrange", e.degree


def degree(V: fem.FunctionSpace) -> int:
    """Degree of the smallest complete polynomial space that contains the functions of V on a cell."""
    known = lagrange(V)
    return known[1] if known else int(V.ufl_element().embedded_superdegree)


def cell_type(mesh: dmesh.Mesh) -> basix.CellType:
    """The mesh's cells for basix."""
    return getattr(basix.CellType, mesh.topology.cell_name())


def own_cells(mesh: dmesh.Mesh, ghosts: bool = False) -> npt.NDArray[np.int32]:
    """Local indices of the cells that this rank owns, or of all that it knows."""
    index = mesh.topology.index_map(mesh.topology.dim)
    return np.arange(index.size_local + (index.num_ghosts if ghosts else 0), dtype=np.int32)


def coordinate_element(mesh: dmesh.Mesh) -> Any:
    """Basis of the map from the reference cell."""
    cmap = _compat.coordinate_map(mesh)
    variant = basix.LagrangeVariant(cmap.variant)
    return basix.create_element(basix.ElementFamily.P, cell_type(mesh), cmap.degree, variant)


def push_forward(mesh: dmesh.Mesh, X: Array, cells: Array) -> Array:
    """Images of reference points X, shape (n, tdim), in some cells: shape (cells, n, gdim)."""
    nodes = mesh.geometry.x[_compat.geometry_dofmap(mesh)[cells]][:, :, : mesh.geometry.dim]
    return np.einsum("pn,cnx->cpx", coordinate_element(mesh).tabulate(0, X)[0, :, :, 0], nodes)


@lru_cache
def lattice(dim: int, n: int) -> tuple[Array, Array]:
    """Points of the reference simplex with spacing 1/n, and the n^dim small simplices of Freudenthal between them."""
    numbers: dict[tuple[int, ...], int] = {}
    cells = []
    for corner in product(range(n), repeat=dim):
        for order in permutations(range(dim)):
            y, path = list(corner), [corner]
            for axis in order:
                y[axis] += 1
                path.append(tuple(y))
            if all(a >= b for p in path for a, b in pairwise(p)):
                cells.append([numbers.setdefault(p, len(numbers)) for p in path])
    levels = np.array(list(numbers), dtype=np.float64)
    return np.clip(-np.diff(levels, axis=1, append=0.0) / n, 0, 1), np.array(cells)


def compiled(mesh: dmesh.Mesh, expression: Expr | list[Expr], X: Array) -> Callable[[Array], Array]:
    """UFL at reference points X of cells, or of (cell, local facet): a function, which is collective to make only."""
    expression = ufl.as_vector(expression) if isinstance(expression, list) else expression
    shape = expression.ufl_shape
    row = [expression[i] for i in np.ndindex(*shape)] if shape else [expression]
    row.append(ufl.SpatialCoordinate(mesh)[0])  # makes constants belong to the mesh
    table = fem.Expression(ufl.as_vector(row), X)

    def values(entities: Array) -> Array:
        if not len(entities):
            return np.zeros((0, len(X), *shape))
        on_facets = entities.ndim == 2
        found = _compat.evaluate_on_facets(table, mesh, entities) if on_facets else table.eval(mesh, entities)
        return found.reshape(len(entities), len(X), len(row))[..., :-1].reshape(len(entities), len(X), *shape)

    return values


def values(mesh: dmesh.Mesh, rows: Sequence[Any], X: Array, cells: Array | None = None) -> Array:
    """Scalars at reference points of cells, by default of this rank's own: shape (cells, points, rows) (collective)."""
    cells = own_cells(mesh) if cells is None else np.ascontiguousarray(cells, dtype=np.int32)
    return compiled(mesh, [*rows], X)(cells)


def at_quadrature(
    mesh: dmesh.Mesh, rows: Sequence[Any], degree: int, cells: Array | None = None
) -> tuple[Array, Array]:
    """Scalars at quadrature points of cells as :func:`values`, and weights that integrate, shape (cells, points)."""
    X, w = basix.make_quadrature(cell_type(mesh), degree)
    found = values(mesh, [abs(ufl.JacobianDeterminant(mesh)), *rows], X, cells)
    return found[..., 1:], found[..., 0] * w


def quadrature(mesh: dmesh.Mesh, degree: int, cells: Array | None = None) -> tuple[Array, Array, Array]:
    """Reference points (n, tdim), points (cells, n, gdim) and weights (cells, n), compiling nothing."""
    cells = own_cells(mesh) if cells is None else cells
    X, w = basix.make_quadrature(cell_type(mesh), degree)
    table = coordinate_element(mesh).tabulate(1, X)[..., 0]
    nodes = mesh.geometry.x[_compat.geometry_dofmap(mesh)[cells]][:, :, : mesh.geometry.dim]
    J = np.einsum("kpn,cnx->cpxk", table[1:], nodes)
    return X, np.einsum("pn,cnx->cpx", table[0], nodes), np.abs(np.linalg.det(J)) * w


def nodal(function: fem.Function, X: Array) -> Array:
    """Values of a Lagrange or DG function at reference points of this rank's own cells, shape (cells, n)."""
    V = function.function_space
    table = V.element.basix_element.tabulate(0, X)[0, :, :, 0]
    return np.asarray(function.x.array[V.dofmap.list[: len(own_cells(V.mesh))]] @ table.T)


def volumes(mesh: dmesh.Mesh) -> Array:
    """Volumes of this rank's own cells."""
    return at_quadrature(mesh, [], 4)[1].sum(axis=1)


def neighbours(mesh: dmesh.Mesh, facets: Array | None = None) -> tuple[Array, Array]:
    """Cells beside facets (by default all owned ones) and their numbers in them, shape (facets, 2) each; −1: none."""
    dim = mesh.topology.dim
    for ends in ((dim - 1, dim), (dim, dim - 1)):
        mesh.topology.create_connectivity(*ends)
    to_cell, to_facet = mesh.topology.connectivity(dim - 1, dim), mesh.topology.connectivity(dim, dim - 1)
    if facets is None:
        facets = np.arange(mesh.topology.index_map(dim - 1).size_local)
    first, count = to_cell.offsets[facets], to_cell.offsets[facets + 1] - to_cell.offsets[facets]
    around = to_facet.array.reshape(-1, dim + 1)
    cells, local = np.full((2, len(facets), 2), -1, np.int32)
    for side in range(2):
        has = np.flatnonzero(count > side)
        cells[has, side] = to_cell.array[first[has] + side]
        local[has, side] = np.argmax(around[cells[has, side]] == facets[has, None], axis=1)
    return cells, local


def outer_sides(mesh: dmesh.Mesh, facets: Array) -> npt.NDArray[np.int32]:
    """Facets of the boundary as pairs of their cell and local facet, shape (facets, 2)."""
    return np.stack([column[:, 0] for column in neighbours(mesh, facets)], axis=1)


def on_sides(mesh: dmesh.Mesh, rows: Sequence[Any], sides: Array, degree: int) -> tuple[Array, Array, Array]:
    """Scalars at quadrature points of (cell, local facet): (facets, points, rows), weights, the cells' heights."""
    dim = mesh.topology.dim
    facet = (basix.CellType.point, basix.CellType.interval, basix.CellType.triangle)[dim - 1]
    X, weights = basix.make_quadrature(facet, degree) if dim > 1 else (np.zeros((1, 0)), np.ones(1))
    # FFCx has no facet Jacobian in expressions; with the reference normal n̂, |F| = |det J| |J⁻ᵀ n̂| |F̂| (Nanson)
    # and the height is d|K|/|F|; the facet opposite to vertex 0 is √d times larger than its parameter domain
    covector = ufl.dot(ufl.transpose(ufl.JacobianInverse(mesh)), ufl.classes.ReferenceNormal(mesh))
    rows = [*rows, ufl.sqrt(ufl.dot(covector, covector)), abs(ufl.JacobianDeterminant(mesh))]
    found = compiled(mesh, rows, X)(sides)
    stretch = found[..., -2] * np.where(sides[:, 1] == 0, np.sqrt(dim), 1.0)[:, None]
    area = stretch * found[..., -1] if dim > 1 else np.ones_like(stretch)
    return found[..., :-2], area * weights, 1.0 / stretch


def largest(comm: MPI.Comm, values: Any, least: float = -np.inf) -> float:
    """Maximum over all ranks of rank-local values and of ``least`` (collective)."""
    return float(comm.allreduce(float(np.max(values, initial=least)), op=MPI.MAX))


def smallest(comm: MPI.Comm, values: Any, most: float = np.inf) -> float:
    """Minimum over all ranks of rank-local values and of ``most`` (collective)."""
    return -largest(comm, -np.asarray(values), -most)


def total(comm: MPI.Comm, values: Any) -> Array:
    """Sum over all ranks of arrays of one shape (collective)."""
    result = np.array(values, dtype=float, order="C")
    comm.Allreduce(MPI.IN_PLACE, result)
    return result
