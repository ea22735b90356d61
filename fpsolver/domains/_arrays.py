"""Meshes of simplices as plain arrays on one rank."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .._log import logger

Array = npt.NDArray[Any]

SHAPES = ("point", "interval", "triangle", "tetrahedron")
"""Shape of a simplex by its dimension."""


@dataclass(frozen=True)
class RawMesh:
    """A mesh of simplices as arrays: all of it on one rank, or the share of each rank.

    Attributes:
        points: nodes, shape (nodes, dim); those of rank 0 come first.
        cells: nodes of each cell in DOLFINx order, numbered over all ranks, shape (cells, nodes per cell).
        degree: degree of the map from the reference cell.
        facets: vertices of the facets of each named part of the boundary or surface inside, shape (facets, dim).
        groups: rows of ``cells`` in each named region.
    """

    points: Array
    cells: Array
    degree: int
    facets: dict[str, Array]
    groups: dict[str, Array] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """Dimension of space and of the cells."""
        return self.points.shape[1]

    def empty(self) -> "RawMesh":
        """The share of a rank that has nothing of it."""
        facets, groups = ({k: v[:0] for k, v in named.items()} for named in (self.facets, self.groups))
        return RawMesh(self.points[:0], self.cells[:0], self.degree, facets, groups)


def tidy(points: Array, cells: Array, degree: int, facets: dict[str, Array], source: str) -> RawMesh:
    """Drop unused nodes and coordinates that do not vary, and refuse what is no mesh of a region of R^dim."""
    dim = _dimension(cells.shape[1], degree)
    points = np.asarray(points, dtype=np.float64)
    used, cells = np.unique(cells, return_inverse=True)
    cells = cells.reshape(-1, _nodes(dim, degree))
    number = np.full(len(points), -1, dtype=np.int64)
    number[used] = np.arange(len(used))
    points = points[used]
    if not np.isfinite(points).all():
        raise ValueError(f"{source} has nodes whose coordinates are not finite")

    extent = np.ptp(points, axis=0)
    if np.any(extent[dim:] > 1e-12 * extent.max()):
        raise ValueError(
            f"{source} is a {SHAPES[dim]} mesh embedded in {int((extent > 1e-12 * extent.max()).sum())} dimensions; "
            f"expected a region of the {'plane (z constant)' if dim == 2 else 'line' if dim == 1 else 'space'}, "
            f"because a process needs as many coordinates as its domain has dimensions"
        )
    points = np.ascontiguousarray(points[:, :dim])

    corners = points[cells[:, : dim + 1]]
    edges = corners[:, 1:] - corners[:, :1]
    flat = np.abs(np.linalg.det(edges)) <= 1e-13 * np.abs(edges).max(axis=(1, 2)) ** dim
    if flat.any():
        raise ValueError(f"{source} has {flat.sum()} cells without volume; mesh the geometry again")
    if len(np.unique(np.sort(cells[:, : dim + 1], axis=1), axis=0)) < len(cells):
        raise ValueError(f"{source} lists some cells twice; write each cell once")
    if len(np.unique(points, axis=0)) < len(points):
        logger.warning(
            "%s has nodes at the same place: cells that do not share nodes are not connected. Unless this is a slit, "
            "merge them (gmsh.model.mesh.removeDuplicateNodes)", source
        )  # fmt: skip
    facets = {name: number[f].reshape(-1, dim) for name, f in facets.items()}
    return RawMesh(points, cells, degree, facets)


def _nodes(dim: int, degree: int) -> int:
    return int(np.prod([degree + i for i in range(1, dim + 1)]) // np.prod(range(1, dim + 1)))


def _dimension(nodes: int, degree: int) -> int:
    return next(d for d in (1, 2, 3) if _nodes(d, degree) == nodes)
