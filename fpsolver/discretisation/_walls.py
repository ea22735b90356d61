"""Reflecting walls on which the drift presses harder than the mesh resolves, and what keeps dg right there.

Nothing flows through such a wall, so the drift q = min(b·n, β·n)⁺ feeds modes inside the cells at it.  Where
polynomials of degree k do not resolve the layer that forms, those modes grow without bound: with rate 8 for kinetic
noise in 10 × 10 cells of degree 6.  As p(wall) − p̄ is bounded by √h ‖∇p‖, diffusion of the size κ = h q / 2 inside
these cells makes them decay.  It acts along the wall's normal n only, as κ n nᵀ: a process that is pressed on a wall
slides along it, and a solution that does not depend on the distance from the wall is not changed at all.  It couples
the cells of the layer at the wall, also those that touch the wall in a corner only, through which one that slides must
pass.  Mass and constants are kept.
"""

import numpy as np
from dolfinx import fem, la
from dolfinx import mesh as dmesh

from .._log import logger
from .._sample import Array, at_quadrature, largest, own_cells
from ..models.process import Coefficients
from .boundary import Boundary


def lacking_diffusion(boundary: Boundary, coefficients: Coefficients, absorbing: Array, degree: int) -> Array:
    """Diffusion κ n nᵀ, κ = (h q / 2 − k n·D̄n)⁺, that cells at walls lack, shape (local cells, d, d) (collective).

    D̄ is the mean over the cell: diffusion that only vanishes at the wall, linearly as that of square-root processes,
    suffices.  Cells that touch walls in a vertex or an edge only get the mean over the walls around it.
    """
    mesh, d = boundary.mesh, boundary.mesh.geometry.dim
    wanted = np.zeros((len(own_cells(mesh, ghosts=True)), d, d))
    pressed = np.flatnonzero((boundary.pressure > 0) & ~np.isin(boundary.facets, absorbing))
    if not mesh.comm.allreduce(len(pressed)):
        return wanted
    sides, n = boundary.sides[pressed], boundary.normals[pressed]
    rows = [coefficients.D[i, j] for i in range(d) for j in range(d)]
    found, weights = at_quadrature(mesh, rows, 4, sides[:, 0])
    D = np.einsum("cq,cqi->ci", weights, found) / weights.sum(axis=1)[:, None]
    present = np.einsum("cij,ci,cj->c", D.reshape(-1, d, d), n, n)
    lacking = np.maximum(0.5 * boundary.pressure[pressed] - degree * present, 0.0)
    tensors = lacking[:, None, None] * n[:, :, None] * n[:, None, :]
    np.add.at(wanted, sides[:, 0], tensors)
    return wanted if d == 1 else _spread(mesh, wanted, sides, tensors)


def _spread(mesh: dmesh.Mesh, wanted: Array, sides: Array, tensors: Array) -> Array:
    """Give cells that only touch walls the mean over those around their vertices, as far as it acts along their own."""
    d = mesh.geometry.dim
    V = fem.functionspace(mesh, ("Lagrange", 1, (d * d + 1,)))
    around, corners = fem.Function(V), V.dofmap.list
    table = np.column_stack([tensors.reshape(-1, d * d), np.trace(tensors, axis1=1, axis2=2) > 0])
    nodes = around.x.array.reshape(-1, d * d + 1)
    for i in range(d + 1):  # the facet opposite to vertex i has the others
        opposite = np.flatnonzero(sides[:, 1] != i)
        np.add.at(nodes, corners[sides[opposite, 0], i], table[opposite])
    around.x.scatter_reverse(la.InsertMode.add)
    around.x.scatter_forward()
    touching = nodes[corners].sum(axis=1)
    mean = touching[:, :-1] / np.maximum(touching[:, -1:], 1.0)
    free = np.eye(d) - wanted @ np.linalg.pinv(wanted, rcond=1e-8, hermitian=True)  # along the cell's own walls
    spread = wanted + free @ mean.reshape(-1, d, d) @ free
    # of a ghost's own walls only its owner knows
    known = fem.Function(fem.functionspace(mesh, ("DG", 0, (d, d))))
    known.x.array[:] = spread.ravel()
    known.x.scatter_forward()
    return np.asarray(known.x.array.reshape(-1, d, d).copy())


def warn_of_added(boundary: Boundary, added: Array) -> bool:
    """Whether diffusion is added anywhere, which is warned about (collective)."""
    value = largest(boundary.mesh.comm, np.trace(added, axis1=1, axis2=2), 0.0)
    if value > 0:
        logger.warning(
            "the drift presses on a reflecting wall with less diffusion than this mesh needs there; up to %.3g is "
            "added across it in the cells at it, or modes would grow. Error bars of exit times contain what that "
            "changes; densities have none, so let there be negligible mass at the wall, or refine there.",
            value,
        )
    return value > 0
