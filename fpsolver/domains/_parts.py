"""The boundary of a mesh, and the named parts it is divided into."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from dolfinx import mesh as dmesh

from .. import _compat
from .._errors import agree, together
from .._log import logger
from .._sample import largest, outer_sides, smallest
from ._arrays import opposite
from ._tables import find

Facets = npt.NDArray[np.int32]
Marker = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.bool_]]
Inside = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.bool_]]
"""A marker of points (n, dim), checked."""

NUDGE = 1e-8
"""How far from a vertex, towards the middle of its facet, markers are looked at: on its side of an end there."""
REST = "unnamed"
"""Name of the part that collects the boundary facets which no other part covers."""


def as_inside(marker: Marker, what: str) -> Inside:
    """The marker as a checked function of points (n, dim)."""

    def inside(x: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        try:
            holds = np.asarray(marker(np.ascontiguousarray(x.T)))
        except Exception as e:
            raise ValueError(
                f"the marker of the {what} raised {type(e).__name__}: {e} (it is called with an array of shape "
                f"{x.T.shape})"
            ) from e
        if holds.shape != (len(x),) or holds.dtype != bool:
            raise ValueError(
                f"the marker of the {what} returned {holds.dtype} of shape {holds.shape} for points of shape "
                f"{x.T.shape}; expected booleans of shape {(len(x),)}, as from lambda x: x[0] > 0"
            )
        return holds

    return inside


@dataclass(frozen=True)
class Boundary:
    """The boundary facets that this rank owns.

    Attributes:
        facets: their local indices, sorted, shape (n,).
        cells: the cell of each.
        local: its number within that cell.
        nodes: nodes of its vertices, shape (n, dim).
        corners: their coordinates, shape (n, dim, dim).
    """

    facets: Facets
    cells: Facets
    local: npt.NDArray[np.int64]
    nodes: npt.NDArray[np.int32]
    corners: npt.NDArray[np.float64]

    def marked(self, inside: Inside) -> Facets:
        """Facets on which the marker holds at the midpoint or by all vertices."""
        n, dim, _ = self.corners.shape
        middle = self.corners.mean(axis=1)
        near = self.corners + NUDGE * (middle[:, None] - self.corners)
        holds = inside(np.concatenate((middle, near.reshape(-1, dim))))
        return self.facets[holds[:n] | holds[n:].reshape(n, dim).all(axis=1)]

    def find(self, mesh: dmesh.Mesh, vertices: npt.NDArray[np.int64]) -> Facets:
        """Those among facets that are given by the nodes of their vertices in the order of input, shape (m, dim)."""
        mine = np.asarray(mesh.geometry.input_global_indices)[self.nodes]
        return self.facets[find(vertices, np.sort(mine, axis=1))]


def find_boundary(mesh: dmesh.Mesh) -> Boundary:
    """The boundary facets of a mesh of simplices (collective)."""
    dim = mesh.topology.dim
    mesh.topology.create_connectivity(dim - 1, dim)
    facets = np.sort(dmesh.exterior_facet_indices(mesh.topology)).astype(np.int32)
    cells, local = outer_sides(mesh, facets).T
    vertices = opposite(dim)[local] if dim > 1 else local[:, None]  # the facets of an interval are its vertices
    nodes = _compat.geometry_dofmap(mesh)[cells[:, None], vertices]
    return Boundary(facets, cells, local, nodes, mesh.geometry.x[nodes][:, :, :dim])


class Parts:
    """Names for the facets of a boundary; every method is collective.

    Attributes:
        boundary: all its facets.
        facets: for each name the facets of this rank, sorted; parts may overlap.
    """

    def __init__(self, mesh: dmesh.Mesh):
        self._mesh, self._comm = mesh, mesh.comm
        self.boundary = find_boundary(mesh)
        self.facets: dict[str, Facets] = {}

    def add(self, name: str, facets: Facets) -> None:
        """Name some facets of the boundary; an empty part is refused."""
        self.check_new(name)
        if self._comm.allreduce(len(facets)) == 0:
            x = self.boundary.corners.reshape(-1, self._mesh.geometry.dim).T
            ends = [(smallest(self._comm, row), largest(self._comm, row)) for row in x]
            where = " x ".join(f"[{a:.6g}, {b:.6g}]" for a, b in ends)
            raise ValueError(f"the boundary part {name!r} is empty: no facet of the boundary, which lies in {where}")
        facets = np.array(facets, dtype=np.int32)
        facets.flags.writeable = False
        self.facets[name] = facets

    def check_new(self, name: str) -> None:
        """Refuse what is no name, and a name that is used."""
        if not isinstance(name, str) or not name:
            raise ValueError(f"the name of a boundary part must be a non-empty string, got {name!r}")
        if name in self.facets:
            raise ValueError(f"there is a boundary part {name!r} already; the parts are {', '.join(self.facets)}")

    def add_given(self, name: str, facets: npt.ArrayLike) -> None:
        """Name facets that the user gives by local indices, those of other ranks dropped."""
        index_map = self._mesh.topology.index_map(self._mesh.topology.dim - 1)
        owned, known = index_map.size_local, index_map.size_local + index_map.num_ghosts
        found, problem = np.unique(np.asarray(facets).ravel()), None
        if found.size and not np.issubdtype(found.dtype, np.integer):
            problem = f"the facets of the part {name!r} must be integers, got {found.dtype}"
        elif found.size and (found[0] < 0 or found[-1] >= known):
            problem = f"the part {name!r} has facets from {found[0]} to {found[-1]}, but this rank knows {known} facets"
        else:
            found = found[found < owned].astype(np.int32)
            if inside := int((~np.isin(found, self.boundary.facets)).sum()):
                problem = f"{inside} facets of the part {name!r} are not on the boundary"
        agree(self._comm, problem)
        self.add(name, found)

    def marked(self, inside: Inside) -> Facets:
        """The facets on which a marker holds."""
        with together(self._comm):
            return self.boundary.marked(inside)

    def add_rest(self) -> None:
        """Give the facets without a name one."""
        rest = np.setdiff1d(self.boundary.facets, np.concatenate([self.boundary.facets[:0], *self.facets.values()]))
        count = self._comm.allreduce(len(rest))
        if count and REST not in self.facets:
            if self.facets:
                logger.info("%d boundary facets belong to no named part: they form the part %r", count, REST)
            self.add(REST, rest)

    def replace(self, named: Mapping[str, npt.NDArray[np.int64]]) -> None:
        """Divide the boundary anew: parts by the nodes, in the order of input, of the vertices of their facets."""
        self.facets = {}
        for name, vertices in named.items():
            found = self.boundary.find(self._mesh, vertices)
            missing = len(vertices) - self._comm.allreduce(len(found))
            if missing:
                logger.warning(
                    "%d of %d facets of the part %r are not on the boundary: left out", missing, len(vertices), name
                )
            if missing < len(vertices):
                self.add(name, found)
        self.add_rest()
