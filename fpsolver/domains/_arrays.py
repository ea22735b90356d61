"""Meshes of simplices as plain arrays on one rank."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from .._log import logger

Array = npt.NDArray[Any]

SHAPES = ("point", "interval", "triangle", "tetrahedron")
"""Shape of a simplex by its dimension."""


@dataclass(frozen=True)
class RawMesh:
    """A mesh of simplices as arrays: all of it on one rank, or the share of each rank."""

    points: Array  #: nodes, shape (nodes, dim); those of rank 0 come first
    cells: Array  #: nodes of each cell in DOLFINx order, numbered over all ranks, shape (cells, nodes per cell)
    degree: int  #: of the map from the reference cell
    facets: dict[str, Array]  #: vertices of the facets of each part of the boundary or surface inside, (facets, dim)
    groups: dict[str, Array] = field(default_factory=dict)  #: rows of ``cells`` in each named region
    periods: Array | None = None  #: ends of periodic coordinates, (dim, 2), NaN where there is none; None: none at all

    @property
    def dim(self) -> int:
        """Dimension of space and of the cells."""
        return self.points.shape[1]

    def empty(self) -> "RawMesh":
        """The share of a rank that has nothing of it."""
        facets, groups = ({k: v[:0] for k, v in named.items()} for named in (self.facets, self.groups))
        return RawMesh(self.points[:0], self.cells[:0], self.degree, facets, groups, self.periods)


def opposite(d: int) -> Array:
    """The other vertices of a simplex for each of its vertices, shape (d + 1, d): facet i is opposite to vertex i."""
    return np.array([[v for v in range(d + 1) if v != i] for i in range(d + 1)])


def find(rows: Array, among: Array) -> Array:
    """Which of ``among`` (sorted rows) occur in ``rows``."""
    number = np.unique(np.vstack([np.sort(rows, axis=1), among]), axis=0, return_inverse=True)[1].ravel()
    return np.isin(number[len(rows) :], number[: len(rows)])


def tidy(
    points: Array, cells: Array, degree: int, facets: dict[str, Array], source: str, groups: dict[str, Array]
) -> RawMesh:
    """Drop unused nodes and coordinates that do not vary, and refuse what is no mesh of a region of R^dim."""
    dim = next(d for d in (1, 2, 3) if comb(d + degree, d) == cells.shape[1])
    points = np.asarray(points, dtype=np.float64)
    check_numbers(cells, len(points), source)
    for name, vertices in facets.items():
        check_numbers(vertices, len(points), f"{source}: part {name!r}")
    used, cells = np.unique(cells, return_inverse=True)
    cells = cells.reshape(-1, comb(dim + degree, dim))
    number = np.full(len(points), -1, dtype=np.int64)
    number[used] = np.arange(len(used))
    points = points[used]
    if not np.isfinite(points).all():
        raise ValueError(f"{source} has nodes whose coordinates are not finite")
    points = _in_its_plane(points, dim, source)
    corners = cells[:, : dim + 1]
    check_cells(points, corners, source)
    if len(np.unique(points, axis=0)) < len(points):
        logger.warning(
            "%s has nodes at the same place: cells that do not share nodes are not connected. Unless this is a slit, "
            "merge them (gmsh.model.mesh.removeDuplicateNodes)", source
        )  # fmt: skip
    if degree == 1:  # the vertices of curved cells do not tell whether these overlap
        check_conforms(points, corners, source)
    facets = {name: number[np.unique(np.sort(f, axis=1), axis=0)].reshape(-1, dim) for name, f in facets.items()}
    return RawMesh(points, cells, degree, facets, {name: np.unique(rows) for name, rows in groups.items()})


def _in_its_plane(points: Array, dim: int, source: str) -> Array:
    """The coordinates that vary, in their order: a mesh in the x-z plane has the coordinates (x, z)."""
    extent = np.ptp(points, axis=0)
    varies = extent > 1e-12 * extent.max()
    if varies.sum() > dim:
        raise ValueError(
            f"{source} is a {SHAPES[dim]} mesh embedded in {int(varies.sum())} dimensions; a process needs as many "
            f"coordinates as its domain has dimensions, {dim} here, so that all others must be constant"
        )
    if varies.sum() < dim:
        where = ("at a point", "on a line", "in a plane")[dim - 1]
        raise ValueError(f"{source} is a {SHAPES[dim]} mesh whose nodes lie {where}: its cells are without volume")
    return np.ascontiguousarray(points[:, varies])


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
