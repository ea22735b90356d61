"""Reflecting walls on which the drift presses harder than the mesh resolves, and what keeps dg stable there."""

from mpi4py import MPI

import basix
import numpy as np
import ufl
from dolfinx import fem

from .._log import logger
from ..models.process import Coefficients
from .boundary import Boundary, neighbours


def lacking_diffusion(boundary: Boundary, coefficients: Coefficients, absorbing: np.ndarray, degree: int) -> np.ndarray:
    """Diffusion κ = (h q / 2 − k n·D̄n)⁺ that cells at reflecting walls lack, shape (local cells,) (collective).

    Nothing flows through such a wall, so the drift q = min(b·n, β·n)⁺ feeds modes inside the cells at it.  Where
    polynomials of degree k do not resolve the layer that forms, those modes grow without bound: with rate 8 for kinetic
    noise in 10 × 10 cells of degree 6.  As p(wall) − p̄ is bounded by √h ‖∇p‖, diffusion of the size h q / 2 inside
    these cells makes them decay and changes neither mass nor constants.  D̄ is the mean over the cell: diffusion that
    only vanishes at the wall, linearly as that of square-root processes, suffices.

    Args:
        boundary: the Fichera classes.
        coefficients: D and β.
        absorbing: local facets that are no walls.
        degree: k.
    """
    mesh, d = boundary.mesh, boundary.mesh.geometry.dim
    cells_map = mesh.topology.index_map(mesh.topology.dim)
    wanted = np.zeros(cells_map.size_local + cells_map.num_ghosts)
    pressed = np.flatnonzero((boundary.pressure > 0) & ~np.isin(boundary.facets, absorbing))
    if not mesh.comm.allreduce(len(pressed)):
        return wanted
    points, weights = basix.make_quadrature(getattr(basix.CellType, mesh.topology.cell_name()), 4)
    row = [abs(ufl.JacobianDeterminant(mesh)), *(coefficients.D[i, j] for i in range(d) for j in range(d))]
    expression = fem.Expression(ufl.as_vector(row), points)
    if len(pressed):
        cells, n = neighbours(mesh, boundary.facets[pressed])[0][:, 0], boundary.normals[pressed]
        values = expression.eval(mesh, cells).reshape(len(cells), len(points), -1)
        weights = values[..., 0] * weights
        D = np.einsum("cq,cqi->ci", weights, values[..., 1:]) / weights.sum(axis=1)[:, None]
        present = np.einsum("cij,ci,cj->c", D.reshape(-1, d, d), n, n)
        np.maximum.at(wanted, cells, 0.5 * boundary.pressure[pressed] - degree * present)
    return wanted


def warn_of_added(comm: MPI.Comm, added: np.ndarray) -> None:
    """Warn where diffusion is added (collective)."""
    value = float(comm.allreduce(float(added.max(initial=0.0)), op=MPI.MAX))
    if value > 0:
        logger.warning(
            "the drift presses on a reflecting wall with less diffusion than this mesh needs there; up to %.3g is "
            "added inside the cells at it, or modes would grow. That is legitimate only as a truncation of a larger "
            "space, with negligible mass there; otherwise refine at the wall.",
            value,
        )
