"""The boundary of a mesh, and which of its facets a user means."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from dolfinx import mesh as dmesh

from .. import _compat
from .._arguments import expect
from .._errors import agree
from .._sample import largest, outer_sides, smallest
from ._arrays import find, opposite

Facets = npt.NDArray[np.int32]
Marker = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.bool_]]
Inside = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.bool_]]
"""A marker of points (n, dim), checked."""

NUDGE = 1e-8
"""How far from a vertex, towards the middle of its facet, markers are looked at: on its side of an end there."""


def as_inside(marker: Marker, what: str) -> Inside:
    """The marker as a checked function of points (n, dim)."""

    def inside(x: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        called = f"the marker of the {what}, called with an array of shape {x.T.shape},"
        try:
            holds = np.asarray(marker(np.ascontiguousarray(x.T)))
        except Exception as e:
            raise ValueError(f"{called} raised {type(e).__name__}: {e}") from e
        if holds.shape != (len(x),) or holds.dtype != bool:
            raise ValueError(
                f"{called} returned {holds.dtype} of shape {holds.shape}; expected booleans of shape {(len(x),)}, as "
                "from lambda x: x[0] > 0"
            )
        return holds

    return inside


@dataclass(frozen=True)
class Boundary:
    """The boundary facets that this rank owns: local indices, cells, numbers in these, and vertices of n facets."""

    mesh: dmesh.Mesh
    facets: Facets  #: sorted, shape (n,)
    cells: Facets
    local: npt.NDArray[np.int64]
    nodes: npt.NDArray[np.int32]  #: of the vertices, shape (n, dim)
    corners: npt.NDArray[np.float64]  #: their coordinates, shape (n, dim, dim)

    def marked(self, inside: Inside) -> Facets:
        """Facets on which the marker holds at the midpoint or by all vertices."""
        n, dim, _ = self.corners.shape
        middle = self.corners.mean(axis=1)
        near = self.corners + NUDGE * (middle[:, None] - self.corners)
        holds = inside(np.concatenate((middle, near.reshape(-1, dim))))
        return self.facets[holds[:n] | holds[n:].reshape(n, dim).all(axis=1)]

    def find(self, vertices: npt.NDArray[np.int64]) -> Facets:
        """Those among facets that are given by the nodes of their vertices in the order of input, shape (m, dim)."""
        mine = np.asarray(self.mesh.geometry.input_global_indices)[self.nodes]
        return self.facets[find(vertices, np.sort(mine, axis=1))]

    def given(self, facets: npt.ArrayLike, name: str) -> Facets:
        """Facets that the user gives by local indices, checked, without those of other ranks (collective)."""
        found = local_indices(self.mesh, self.mesh.topology.dim - 1, facets, f"the part {name!r}", "knows")
        found = found[found < self.mesh.topology.index_map(self.mesh.topology.dim - 1).size_local]
        inside = int((~np.isin(found, self.facets)).sum())
        agree(self.mesh.comm, f"{inside} facets of the part {name!r} are not on the boundary" if inside else None)
        return found

    def part(self, name: str, facets: Facets) -> Facets:
        """Some of the facets, protected, as the part of this name, unless there are none (collective)."""
        comm = self.mesh.comm
        if comm.allreduce(len(facets)) == 0:
            rows = self.corners.reshape(-1, self.mesh.geometry.dim).T
            where = " x ".join(f"[{smallest(comm, x):.6g}, {largest(comm, x):.6g}]" for x in rows)
            raise ValueError(f"the boundary part {name!r} is empty: no facet of the boundary, which lies in {where}")
        facets = np.array(facets, dtype=np.int32)
        facets.flags.writeable = False
        return facets


def check_new(name: str, known: Sequence[str]) -> None:
    """Refuse what is no name, and a name that is used."""
    expect("the name of a part or region", name, "a non-empty string", isinstance(name, str) and name)
    used = ", ".join(known)
    expect("the name of a part or region", name, f"none of those used already, {used},", name not in known)


def local_indices(mesh: dmesh.Mesh, dim: int, indices: npt.ArrayLike, what: str, verb: str) -> Facets:
    """Sorted local indices of cells or facets that this rank "knows" or "owns", checked (collective)."""
    found, index_map = np.unique(np.asarray(indices).ravel()), mesh.topology.index_map(dim)
    count, problem = index_map.size_local + (index_map.num_ghosts if verb == "knows" else 0), None
    if found.size and not np.issubdtype(found.dtype, np.integer):
        problem = f"{what} is given by {found.dtype}; indices were expected"
    elif found.size and (found[0] < 0 or found[-1] >= count):
        problem = f"{what} has indices from {found[0]} to {found[-1]}, but this rank {verb} {count} of them"
    agree(mesh.comm, problem)
    return found.astype(np.int32)


def find_boundary(mesh: dmesh.Mesh) -> Boundary:
    """The boundary facets of a mesh of simplices (collective)."""
    dim = mesh.topology.dim
    mesh.topology.create_connectivity(dim - 1, dim)
    facets = np.sort(dmesh.exterior_facet_indices(mesh.topology)).astype(np.int32)
    cells, local = outer_sides(mesh, facets).T
    vertices = opposite(dim)[local] if dim > 1 else local[:, None]  # the facets of an interval are its vertices
    nodes = _compat.geometry_dofmap(mesh)[cells[:, None], vertices]
    return Boundary(mesh, facets, cells, local, nodes, mesh.geometry.x[nodes][:, :, :dim])
