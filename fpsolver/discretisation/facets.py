"""Facets: the cells beside them, and quadrature over them seen from either cell."""

import basix
import numpy as np
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh

from .. import _compat


def on_sides(
    mesh: dmesh.Mesh, rows: list[ufl.core.expr.Expr], sides: np.ndarray, degree: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scalars at quadrature points of facets, seen from the cell in each pair of cell and local facet.

    Returns:
        Values (facets, points, rows), weights (facets, points) that integrate over the facets, and the cell's height
        normal to each facet (facets, points).
    """
    tdim = mesh.topology.dim
    points, weights = _facet_rule(mesh, degree)
    # FFCx has no facet Jacobian in expressions; with the reference normal n̂, |F| = |det J| |J⁻ᵀ n̂| |F̂| (Nanson)
    # and the height is d|K|/|F|; the facet opposite to vertex 0 is √d times larger than its parameter domain
    covector = ufl.dot(ufl.transpose(ufl.JacobianInverse(mesh)), ufl.classes.ReferenceNormal(mesh))
    stretch = ufl.sqrt(ufl.dot(covector, covector))
    rows = [*rows, stretch, abs(ufl.JacobianDeterminant(mesh))]
    values = np.zeros((0, len(points), len(rows)))
    expression = fem.Expression(ufl.as_vector(rows), points)
    if len(sides):
        values = _compat.evaluate_on_facets(expression, mesh, sides).reshape(len(sides), len(points), len(rows))
    slanted = np.where(sides[:, 1] == 0, np.sqrt(tdim), 1.0)[:, None]
    covector_length, detJ = values[..., -2], values[..., -1]
    area = covector_length * detJ * slanted if tdim > 1 else np.ones_like(detJ)
    return values[..., :-2], area * weights, 1.0 / (covector_length * slanted)


def _facet_rule(mesh: dmesh.Mesh, degree: int) -> tuple[np.ndarray, np.ndarray]:
    tdim = mesh.topology.dim
    if tdim == 1:
        return np.zeros((1, 0)), np.ones(1)
    cell = basix.CellType.interval if tdim == 2 else basix.CellType.triangle
    return basix.make_quadrature(cell, degree)


def neighbours(mesh: dmesh.Mesh, facets: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Cells beside facets (by default all owned ones) and their numbers in them, shape (facets, 2) each; −1: none."""
    dim = mesh.topology.dim
    for ends in ((dim - 1, dim), (dim, dim - 1)):
        mesh.topology.create_connectivity(*ends)
    to_cell, to_facet = mesh.topology.connectivity(dim - 1, dim), mesh.topology.connectivity(dim, dim - 1)
    if facets is None:
        facets = np.arange(mesh.topology.index_map(dim - 1).size_local)
    first, count = to_cell.offsets[facets], to_cell.offsets[facets + 1] - to_cell.offsets[facets]
    around = to_facet.array.reshape(-1, dim + 1)
    cells, local = np.full((len(facets), 2), -1, np.int32), np.full((len(facets), 2), -1, np.int32)
    for side in range(2):
        has = np.flatnonzero(count > side)
        cells[has, side] = to_cell.array[first[has] + side]
        local[has, side] = np.argmax(around[cells[has, side]] == facets[has, None], axis=1)
    return cells, local


def cell_volumes(mesh: dmesh.Mesh) -> np.ndarray:
    """Volumes of this rank's own cells."""
    points, weights = basix.make_quadrature(getattr(basix.CellType, mesh.topology.cell_name()), 4)
    owned = np.arange(mesh.topology.index_map(mesh.topology.dim).size_local, dtype=np.int32)
    J = fem.Expression(abs(ufl.JacobianDeterminant(mesh)), points).eval(mesh, owned)
    return J.reshape(len(owned), len(points)) @ weights
