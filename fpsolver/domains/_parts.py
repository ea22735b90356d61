"""The boundary of a mesh, and the named parts it is divided into."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mpi4py import MPI

import numpy as np
import numpy.typing as npt
from dolfinx import mesh as dmesh

from .. import _compat
from .._errors import agree, together
from .._log import logger

Facets = npt.NDArray[np.int32]
Marker = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.bool_]]

NUDGE = 1e-8
"""How far from a vertex, towards the middle of its facet, markers are looked at: on its side of an end there."""
REST = "unnamed"
"""Name of the part that collects the boundary facets which no other part covers."""


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

    def marked(self, marker: Marker) -> Facets:
        """Facets on which the marker holds at the midpoint or by all vertices; the caller completes the messages."""
        n, dim, _ = self.corners.shape
        middle = self.corners.mean(axis=1)
        near = self.corners + NUDGE * (middle[:, None] - self.corners)
        points = np.concatenate((middle, near.reshape(-1, dim))).T
        try:
            holds = np.asarray(marker(np.ascontiguousarray(points)))
        except Exception as e:
            raise ValueError(
                f"raised {type(e).__name__}: {e} (it is called with an array of shape {points.shape})"
            ) from e
        if holds.shape != points.shape[1:] or holds.dtype != bool:
            raise ValueError(
                f"returned {holds.dtype} of shape {holds.shape} for points of shape {points.shape}; expected "
                f"booleans of shape {points.shape[1:]}, as from lambda x: x[0] > 0"
            )
        return self.facets[holds[:n] | holds[n:].reshape(n, dim).all(axis=1)]

    def find(self, mesh: dmesh.Mesh, vertices: npt.NDArray[np.int64]) -> Facets:
        """Those among facets that are given by the nodes of their vertices in the order of input, shape (m, dim)."""
        mine = np.asarray(mesh.geometry.input_global_indices)[self.nodes]
        rows = np.sort(np.vstack((vertices, mine)), axis=1)
        number = np.unique(rows, axis=0, return_inverse=True)[1].ravel()
        return self.facets[np.isin(number[len(vertices) :], number[: len(vertices)])]

    def extent(self, comm: MPI.Comm) -> str:
        """Their bounding box in words (collective)."""
        x = self.corners.reshape(-1, self.corners.shape[2])
        low = np.min(comm.allgather(x.min(axis=0, initial=np.inf)), axis=0)
        high = np.max(comm.allgather(x.max(axis=0, initial=-np.inf)), axis=0)
        return " x ".join(f"[{a:.6g}, {b:.6g}]" for a, b in zip(low, high, strict=True))


def find_boundary(mesh: dmesh.Mesh) -> Boundary:
    """The boundary facets of a mesh of simplices (collective)."""
    topology, dim = mesh.topology, mesh.topology.dim
    topology.create_connectivity(dim - 1, dim)
    topology.create_connectivity(dim, dim - 1)
    facets = np.sort(dmesh.exterior_facet_indices(topology)).astype(np.int32)
    to_cell, to_facet = topology.connectivity(dim - 1, dim), topology.connectivity(dim, dim - 1)
    cells = to_cell.array[to_cell.offsets[facets]]
    local = np.argmax(to_facet.array.reshape(-1, dim + 1)[cells] == facets[:, None], axis=1)
    # the facets of an interval are its vertices; in other simplices facet i is opposite to vertex i
    vertices = [[i] if dim == 1 else [j for j in range(dim + 1) if j != i] for i in range(dim + 1)]
    nodes = _compat.geometry_dofmap(mesh)[cells[:, None], np.array(vertices)[local]]
    return Boundary(facets, cells, local, nodes, mesh.geometry.x[nodes][:, :, :dim])


def sides(low: Sequence[float], high: Sequence[float], names: Sequence[str]) -> dict[str, Marker]:
    """Markers of the sides of a box: for each coordinate the lower and the upper one."""

    def side(i: int, value: float) -> Marker:
        return lambda x: np.abs(x[i] - value) <= 1e-10 * (high[i] - low[i])

    values = [v for pair in zip(low, high, strict=True) for v in pair]
    return {name: side(k // 2, values[k]) for k, name in enumerate(names)}


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

    def add(self, name: str, facets: Facets, why_empty: str = "it has no facet on the boundary") -> None:
        """Name some facets of the boundary; an empty part is refused."""
        self.check_new(name)
        if self._comm.allreduce(len(facets)) == 0:
            raise ValueError(f"the boundary part {name!r} is empty: {why_empty}")
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

    def marked(self, name: str, marker: Marker) -> Facets:
        """The facets on which a marker holds."""
        with together(self._comm):
            try:
                return self.boundary.marked(marker)
            except Exception as e:
                raise ValueError(f"the marker of the part {name!r} {e}") from e

    def add_found(self, name: str, facets: Facets) -> None:
        """Name the facets on which a marker was found to hold."""
        where = self.boundary.extent(self._comm)
        self.add(name, facets, f"its marker holds on no boundary facet; the boundary lies in {where}")

    def add_rest(self) -> int:
        """Give the facets without a name one, and return how many there are on all ranks."""
        named = np.concatenate([self.boundary.facets[:0], *self.facets.values()])
        rest = np.setdiff1d(self.boundary.facets, named)
        count = self._comm.allreduce(len(rest))
        if count and REST not in self.facets:
            self.add(REST, rest)
        return count

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
        if count := self.add_rest():
            logger.info("%d boundary facets belong to no named part: they form the part %r", count, REST)

    def check_names(self, names: Sequence[str]) -> None:
        """Refuse unknown and repeated names."""
        for name in names:
            if name not in self.facets:
                raise ValueError(f"no boundary part is called {name!r}; the parts are {', '.join(self.facets)}")
        if len(set(names)) < len(names):
            raise ValueError(f"a boundary part is named twice in {names}")

    def tags(self, names: Sequence[str]) -> dmesh.MeshTags:
        """Tag the facets of ``names[i]`` with i + 1; parts that share facets are refused."""
        self.check_names(names)
        parts, problem = [self.facets[name] for name in names], None
        for i, a in enumerate(names):
            for b in names[:i]:
                if np.intersect1d(self.facets[a], self.facets[b]).size:
                    problem = f"the parts {b!r} and {a!r} share facets; use one of them, or parts that do not overlap"
        agree(self._comm, problem)
        facets = np.concatenate([np.empty(0, np.int32), *parts])
        values = np.repeat(np.arange(1, len(names) + 1, dtype=np.int32), [len(part) for part in parts])
        order = np.argsort(facets)
        dim = self._mesh.topology.dim
        return dmesh.meshtags(self._mesh, dim - 1, facets[order].astype(np.int32), values[order])
