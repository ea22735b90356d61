"""Whether cells form a mesh: what a file must not have is found on one rank, and named by where it is."""

from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

Array = npt.NDArray[Any]

ZERO = 1e-9
"""Barycentric coordinates below this count as zero."""


def _refuse(bad: Array, message: Callable[[int], str]) -> None:
    """Raise what the message says of the first bad one."""
    if bad.any():
        raise ValueError(message(int(np.argmax(bad))))


def check_numbers(cells: Array, nodes: int, source: str) -> None:
    """Refuse cells with nodes that do not exist, or with one node twice."""
    ordered = np.sort(cells, axis=1)
    wrong, twice = (ordered[:, 0] < 0) | (ordered[:, -1] >= nodes), (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    _refuse(wrong, lambda i: (
        f"{source} has {wrong.sum()} cells with nodes that do not exist: cell {i} has the nodes {cells[i].tolist()}; "
        f"numbers from 0 to {nodes - 1} were expected"
    ))  # fmt: skip
    _refuse(twice, lambda i: (
        f"{source} has {twice.sum()} degenerate cells: cell {i} has the nodes {cells[i].tolist()}; different ones were "
        "expected"
    ))  # fmt: skip


def check_cells(points: Array, cells: Array, source: str) -> None:
    """Refuse straight cells without volume, and cells that are listed twice."""
    edges = points[cells[:, 1:]] - points[cells[:, :1]]
    flat = np.abs(np.linalg.det(edges)) <= 1e-13 * np.abs(edges).max(axis=(1, 2)) ** points.shape[1]
    _refuse(flat, lambda i: (
        f"{source} has {flat.sum()} cells without volume, one of them at {_place(points[cells[i]])}; mesh it again"
    ))  # fmt: skip
    _, order, start, count = equal_rows(np.sort(cells, axis=1))
    _refuse(count > 1, lambda i: (
        f"{source} lists {len(cells) - len(start)} cells twice, one of them at "
        f"{_place(points[cells[order[start[i]]]])}; write each cell once"
    ))  # fmt: skip


def check_conforms(points: Array, cells: Array, source: str) -> None:
    """Refuse straight cells that overlap, or whose facets fit together otherwise than in a mesh.

    Facets must belong to one or two cells, on both sides of it, and no vertex may lie inside another cell's facet;
    where that holds, cells can only overlap if something at the boundary lies inside a cell.
    """
    d = cells.shape[1] - 1
    facets = np.concatenate([np.delete(cells, i, axis=1) for i in range(d + 1)])  # facet i is opposite to vertex i
    owner, opposite = np.tile(np.arange(len(cells)), d + 1), np.repeat(np.arange(d + 1), len(cells))
    _, order, start, count = equal_rows(np.sort(facets, axis=1))
    _refuse(count > 2, lambda i: (
        f"{source} has {(count > 2).sum()} facets of more than two cells: {count[i]} cells share the one at "
        f"{_place(points[facets[order[start[i]]]])}"
    ))  # fmt: skip
    a, b = order[start[count == 2]], order[start[count == 2] + 1]
    beyond = _barycentric(points[cells[owner[a]]], points[cells[owner[b], opposite[b]]])
    same = np.take_along_axis(beyond, opposite[a][:, None], axis=1)[:, 0] >= 0
    _refuse(same, lambda i: (
        f"{source} has cells that overlap: {same.sum()} pairs lie on the same side of the facet that they share, one "
        f"of them at {_place(points[facets[a[i]]])}"
    ))  # fmt: skip
    outer = order[start[count == 1]]
    _check_boundary(points, cells, facets[outer], np.unique(owner[outer]), source)


def _check_boundary(points: Array, cells: Array, facets: Array, outer: Array, source: str) -> None:
    """Refuse a mesh in which something at the boundary lies inside a cell, or a vertex of it on a cell's facet."""
    nodes = np.unique(facets)
    x = np.concatenate([points[nodes], points[facets].mean(axis=1), points[cells[outer]].mean(axis=1)])
    own = np.concatenate([np.full(len(x) - len(outer), -1), outer])
    which, at, radius = _near(x, points[cells])
    which, at = (v[own[at] != which] for v in (which, at))
    corners, x = points[cells[which]], x[at]
    within = _barycentric(corners, x)
    lowest = within.min(axis=1, initial=1.0)
    apart = np.linalg.norm(corners - x[:, None], axis=2).min(axis=1, initial=np.inf) > 1e-6 * radius[which]
    hanging = (at < len(nodes)) & (np.abs(lowest) < ZERO) & apart
    _refuse(hanging, lambda i: (
        f"{source} has hanging nodes: {len(np.unique(at[hanging]))} vertices lie inside a facet of another cell, for "
        f"example {_place(x[i : i + 1])} in the one at {_place(corners[i][within[i] > ZERO])}, so that the cells are "
        "not connected there; divide those cells too"
    ))  # fmt: skip
    _refuse(lowest > 1e-6, lambda i: (
        f"{source} has cells that overlap: {_place(x[i : i + 1])} belongs to the boundary or to a cell at it, and lies "
        f"inside the cell at {_place(corners[i])} as well"
    ))  # fmt: skip


def equal_rows(rows: Array) -> tuple[Array, Array, Array, Array]:
    """Group equal rows: group of each row, an order in which groups follow each other, their starts and lengths."""
    _, number, count = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    number = number.ravel()
    return number, np.argsort(number, kind="stable"), np.cumsum(count) - count, count


def _near(x: Array, corners: Array) -> tuple[Array, Array, Array]:
    """Pairs (simplex, point) of the points in a ball around each simplex, and the radii of the balls."""
    centers = corners.mean(axis=1)
    radii = np.linalg.norm(corners - centers[:, None], axis=2).max(axis=1)
    tree, reach = cKDTree(x), radii * (1 + 1e-9)
    nearest = tree.query(centers, distance_upper_bound=float(reach.max(initial=0.0)))[0]
    some = np.flatnonzero(nearest <= reach)  # few, where the points are those of the boundary
    found = tree.query_ball_point(centers[some], reach[some], return_sorted=False)
    sizes = np.fromiter(map(len, found), np.int64, len(found))
    return np.repeat(some, sizes), np.fromiter(chain.from_iterable(found), np.int64, int(sizes.sum())), radii


def _barycentric(corners: Array, x: Array) -> Array:
    """Barycentric coordinates of one point per cell, shape (cells, d + 1)."""
    edges = (corners[:, 1:] - corners[:, :1]).transpose(0, 2, 1)
    inner = np.linalg.solve(edges, (x - corners[:, 0])[..., None])[..., 0]
    return np.column_stack([1.0 - inner.sum(axis=1), inner])


def _place(corners: Array) -> str:
    return " – ".join(f"({', '.join(f'{float(c):.6g}' for c in x)})" for x in corners)
