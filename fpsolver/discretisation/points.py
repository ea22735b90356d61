"""Points on a mesh: which cells hold them, and what functions are there."""

from typing import Any

import numpy as np
from dolfinx import fem, geometry

from .. import _compat
from .._arguments import expect
from .._sample import largest, own_cells, smallest, total


def as_points(points: Any, dim: int, what: str = "points") -> np.ndarray:
    """Points as an array of shape (n, dim); a single point or a list of numbers in 1D is accepted."""
    try:
        array = np.asarray(points, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"{what}: {points!r} is no array of numbers; expected shape (n, {dim}).") from None
    if array.ndim < 2:
        array = array.reshape(-1, 1) if dim == 1 or array.ndim == 0 else array.reshape(1, -1)
    good = array.ndim == 2 and array.shape[1] == dim
    expect(f"{what}: shape", np.shape(points), f"(n, {dim}), points in {dim} dimension(s),", good)
    if not np.isfinite(array).all():
        raise ValueError(f"{what}: {array[~np.isfinite(array).all(axis=1)][0]} is not finite.")
    return array


def locate(mesh: Any, points: np.ndarray, what: str = "points") -> tuple[np.ndarray, np.ndarray]:
    """Owned cells that contain each point: arrays (point index, cell), one row per pair (collective).

    A point on a facet belongs to every cell around it; one in no cell of any rank is refused.
    """
    index, cells, found = _search(mesh, points)
    if not found.all():
        spans = " x ".join(f"[{a:g}, {b:g}]" for a, b in zip(*bounds(mesh), strict=True))
        raise ValueError(
            f"{what}: {tuple(float(c) for c in points[np.argmin(found)])} lies outside the mesh, which spans {spans}."
        )
    return index, cells


def contains(mesh: Any, points: np.ndarray) -> np.ndarray:
    """Which points lie in a cell of some rank, shape (n,) (collective)."""
    return _search(mesh, points)[2]


def _search(mesh: Any, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = np.zeros((len(points), 3))
    x[:, : points.shape[1]] = points
    index: np.ndarray = np.zeros(0, dtype=int)
    cells: np.ndarray = np.zeros(0, dtype=np.int32)
    if len(owned := own_cells(mesh)):
        padding = 1e-10 * float(np.ptp(mesh.geometry.x, axis=0).max())
        tree = geometry.bb_tree(mesh, mesh.topology.dim, padding=padding, entities=owned)
        candidates = geometry.compute_collisions_points(tree, x)
        index = np.repeat(np.arange(len(x)), np.diff(candidates.offsets))
        cells = np.asarray(candidates.array, dtype=np.int32)
        inside = _inside(mesh, x[index], cells)
        index, cells = index[inside], cells[inside]
    return index, cells, total(mesh.comm, np.bincount(index, minlength=len(x))) > 0


def bounds(mesh: Any) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the mesh's bounding box (collective)."""
    x = mesh.geometry.x[:, : mesh.geometry.dim].T
    lower, upper = ([extreme(mesh.comm, row) for row in x] for extreme in (smallest, largest))
    return np.array(lower), np.array(upper)


def _inside(mesh: Any, x: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Whether each point lies in its candidate cell, by its reference coordinates (simplices)."""
    inside = np.zeros(len(x), dtype=bool)
    cmap, dofmap, gdim = _compat.coordinate_map(mesh), _compat.geometry_dofmap(mesh), mesh.geometry.dim
    nodes = mesh.geometry.x[dofmap[cells]][:, :, :gdim]
    if dofmap.shape[1] == mesh.topology.dim + 1:
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
    values, count = total(mesh.comm, sums)
    return values / count
