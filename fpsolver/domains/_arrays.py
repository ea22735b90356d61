"""Meshes of simplices as plain arrays on one rank."""

from dataclasses import dataclass, field
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt

from .._log import logger
from ._conform import check_cells, check_conforms, check_numbers

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
    """Drop unused nodes and coordinates that do not vary, and refuse what is no mesh of a region of R^dim.

    The arrays are those of :class:`RawMesh`, points with up to three coordinates; ``source`` is what messages call it.
    """
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
