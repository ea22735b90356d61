"""Points on a mesh: which cells hold them, and what functions are there."""

from typing import Any

from mpi4py import MPI

import numpy as np
from dolfinx import fem, geometry

from .. import _compat


def as_points(points: Any, dim: int, what: str = "points") -> np.ndarray:
    """Points as an array of shape (n, dim); a single point or a list of numbers in 1D is accepted."""
    try:
        array = np.asarray(points, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"{what}: {points!r} is no array of numbers; expected shape (n, {dim}).") from None
    if array.ndim == 0:
        array = array.reshape(1, 1)
    elif array.ndim == 1:
        array = array.reshape(-1, 1) if dim == 1 else array.reshape(1, -1)
    if array.ndim != 2 or array.shape[1] != dim:
        raise ValueError(
            f"{what}: shape {np.shape(points)} does not give points in {dim} dimension(s); expected (n, {dim})."
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{what}: {array[~np.isfinite(array).all(axis=1)][0]} is not finite.")
    return array


def locate(mesh: Any, points: np.ndarray, what: str = "points") -> tuple[np.ndarray, np.ndarray]:
    """Owned cells that contain each point: arrays (point index, cell), one row per pair (collective).

    A point on a facet belongs to every cell around it.  On curved boundaries a point between the curve and its chord
    is found by Newton's method in the nearest cell.

    Raises:
        ValueError: a point lies in no cell of any rank.
    """
    x = np.zeros((len(points), 3))
    x[:, : points.shape[1]] = points
    tdim = mesh.topology.dim
    owned = mesh.topology.index_map(tdim).size_local
    if owned:
        tree = _compat.bb_tree(mesh, tdim, padding=_padding(mesh), entities=np.arange(owned, dtype=np.int32))
        candidates = geometry.compute_collisions_points(tree, x)
        index = np.repeat(np.arange(len(x)), np.diff(candidates.offsets))
        cells = np.asarray(candidates.array, dtype=np.int32)
        inside = _inside(mesh, x[index], cells)
        index, cells = index[inside], cells[inside]
    else:
        index, cells = np.zeros(0, dtype=int), np.zeros(0, dtype=np.int32)
    count = np.bincount(index, minlength=len(x))
    total = np.zeros_like(count)
    mesh.comm.Allreduce(count, total)
    if (total == 0).any():
        missing = points[np.argmax(total == 0)]
        lower, upper = bounds(mesh)
        raise ValueError(
            f"{what}: {tuple(float(c) for c in missing)} lies outside the mesh, which spans "
            + " x ".join(f"[{a:g}, {b:g}]" for a, b in zip(lower, upper, strict=True))
            + "."
        )
    return index, cells


def bounds(mesh: Any) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the mesh's bounding box (collective)."""
    x = mesh.geometry.x[:, : mesh.geometry.dim]
    lower = x.min(axis=0) if len(x) else np.full(mesh.geometry.dim, np.inf)
    upper = x.max(axis=0) if len(x) else np.full(mesh.geometry.dim, -np.inf)
    corners, extreme = np.concatenate([lower, -upper]), np.empty(2 * len(lower))
    mesh.comm.Allreduce(corners, extreme, op=MPI.MIN)
    return extreme[: len(lower)], -extreme[len(lower) :]


def _padding(mesh: Any) -> float:
    extent = np.ptp(mesh.geometry.x, axis=0).max()
    return 1e-10 * float(extent)


def _inside(mesh: Any, x: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Whether each point lies in its candidate cell, by its reference coordinates (simplices)."""
    inside = np.zeros(len(x), dtype=bool)
    cmap, dofmap = _compat.coordinate_map(mesh), _compat.geometry_dofmap(mesh)
    gdim = mesh.geometry.dim
    affine = dofmap.shape[1] == mesh.topology.dim + 1
    nodes = mesh.geometry.x[dofmap[cells]][:, :, :gdim]
    if affine:
        J = (nodes[:, 1:] - nodes[:, :1]).transpose(0, 2, 1)
        X = np.linalg.solve(J, (x[:, :gdim] - nodes[:, 0])[..., None])[..., 0]
        return (X.min(axis=1) > -1e-9) & (X.sum(axis=1) < 1 + 1e-9)
    for i in range(len(x)):  # few: the candidates of each requested point
        try:
            X = cmap.pull_back(x[i : i + 1, :gdim].copy(), nodes[i].copy())[0]
        except RuntimeError:  # Newton diverges only for points far outside the cell
            continue
        inside[i] = X.min() > -1e-6 and X.sum() < 1 + 1e-6
    return inside


def evaluate(function: fem.Function, points: Any) -> np.ndarray:
    """Values of a scalar function at points (collective); see :meth:`Solution.at`."""
    mesh = function.function_space.mesh
    array = as_points(points, mesh.geometry.dim)
    index, cells = locate(mesh, array)
    sums = np.zeros((2, len(array)))
    if len(index):
        x = np.zeros((len(index), 3))
        x[:, : array.shape[1]] = array[index]
        values = function.eval(x, cells).reshape(len(index), -1)[:, 0]
        np.add.at(sums[0], index, values)
        np.add.at(sums[1], index, 1.0)
    total = np.zeros_like(sums)
    mesh.comm.Allreduce(sums, total)
    return total[0] / total[1]
