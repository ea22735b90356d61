"""Parts of the boundary and regions inside: facets that a user means, markers of points, balls, polygons."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from dolfinx import mesh as dmesh

from .. import _compat
from .._arguments import check_numbers, check_positive, expect, is_number
from .._errors import agree
from .._sample import largest, outer_sides, smallest
from ._arrays import Array, find, opposite

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


def is_ball(region: Any) -> bool:
    """Whether this is a ball (centre, radius)."""
    return isinstance(region, tuple) and len(region) == 2 and is_number(region[1])


def marker_of(region: Any, dim: int, name: str) -> Marker:
    """The marker of a ball (centre, radius), of a polygon, given by its corners, or the given one."""
    if callable(region):
        return region
    if is_ball(region):
        radius = check_positive(f"region {name!r}: radius", region[1])
        center = np.array(check_numbers(f"region {name!r}: center", np.atleast_1d(region[0]).tolist(), dim))[:, None]
        return lambda x: ((x - center) ** 2).sum(axis=0) <= radius**2
    if np.ndim(region) != 2 or dim != 2:
        raise ValueError(
            f"the region {name!r} is {region!r}; a name of a boundary part or of a region of the domain, a ball "
            "(centre, radius), the corners of a polygon in the plane, or a marker of points was expected."
        )
    a, _ = check_polygon(region, 1.0, None, f"region {name!r}")
    edges = np.hstack([a, np.roll(a, -1, axis=0)])

    def inside(x: Array) -> Array:
        odd = np.zeros(x.shape[1], dtype=bool)
        for edge in edges:  # to the right of a point
            ax, ay, bx, by = map(float, edge)
            crosses = (ay > x[1]) != (by > x[1])
            odd ^= crosses & (x[0] < ax + (x[1] - ay) * (bx - ax) / (by - ay if by != ay else 1.0))
        return odd

    return inside


def check_polygon(
    vertices: npt.ArrayLike, h: float, edges: Mapping[str, Sequence[int]] | None, what: str = "Domain.polygon"
) -> tuple[npt.NDArray[np.float64], dict[str, list[int]]]:
    """Corners of a polygon and the edges of its parts, checked; edges without a name form the part "wall"."""
    corners = np.asarray(vertices, dtype=float)
    if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3 or not np.isfinite(corners).all():
        raise ValueError(f"{what}: vertices has shape {corners.shape}; (n, 2) with n >= 3 was expected, all finite.")
    check_positive(f"{what}: h", h)
    _check_simple(corners, what)
    parts = {name: [int(i) for i in chosen] for name, chosen in (edges or {}).items()}
    named = [i for chosen in parts.values() for i in chosen]
    if len(set(named)) < len(named) or not set(named) <= set(range(len(corners))):
        raise ValueError(
            f"{what}: the named edges are {named}; each of 0 to {len(corners) - 1} once at most was expected."
        )
    if rest := sorted(set(range(len(corners))) - set(named)):
        parts["wall"] = [*parts.get("wall", []), *rest]
    return corners, parts


def _check_simple(corners: Array, what: str) -> None:
    """Refuse a polygon of which two edges meet elsewhere than in their common corner."""
    n, size = len(corners), np.ptp(corners, axis=0).max()
    i, j = np.triu_indices(n, 1)
    after, before = j == i + 1, (j + 1) % n == i
    p, q, r, s = corners[i], corners[(i + 1) % n], corners[j], corners[(j + 1) % n]
    # the common corner of neighbours does not count
    near = [(_distance(p, r, s), before), (_distance(q, r, s), after)]
    near += [(_distance(r, p, q), after), (_distance(s, p, q), before)]
    meet = np.any([(distance <= 1e-12 * size) & ~common for distance, common in near], axis=0)
    meet |= (_side(p, q, r) * _side(p, q, s) < 0) & (_side(r, s, p) * _side(r, s, q) < 0) & ~after & ~before
    if meet.any():
        k = np.argmax(meet)
        raise ValueError(
            f"{what}: edges {i[k]} and {j[k]} cross or touch; the corners of a polygon that does not meet itself were "
            "expected, in order around it, each once."
        )


def _distance(q: Array, p: Array, r: Array) -> Array:
    """Distance of points q from segments p–r."""
    along = r - p
    t = np.clip(((q - p) * along).sum(axis=-1) / np.maximum((along**2).sum(axis=-1), 1e-300), 0.0, 1.0)
    return np.linalg.norm(q - p - t[..., None] * along, axis=-1)


def _side(p: Array, r: Array, q: Array) -> Array:
    """On which side of the line p–r points q lie."""
    u, v = r - p, q - p
    return np.sign(u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0])
