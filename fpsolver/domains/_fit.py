"""Meshes that follow the ends of a marked part of the boundary, or the edge of a region inside.

Where a marker changes along an edge, the place is found by bisection.  Vertices close to such a place move there, if
the boundary and what is marked already allow; the remaining edges are cut there, and the cells around them by the rule
of refinement (_refine.py).  Then no cell (facet) has vertices on both sides: in one dimension, and on the boundary of a
plane domain, the ends are exact; an edge of a region that is no polygon is followed by chords, whose distance from it
is measured.  All of this is serial, on rank 0, where the mesh is gathered.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .. import _compat
from .._errors import on_root
from . import _refine
from ._arrays import Array, RawMesh, equal_rows, find, opposite
from ._meshes import distribute
from ._tables import along, boundary_of, edges_of, faces_of, measures_of, normals_of, numbers_of, split
from .regions import NUDGE, Inside

if TYPE_CHECKING:
    from .domain import Domain

ACCURACY = 1e-4  # of the measure of what is marked: meshes are refined at its edge until chords are as close
_SAMPLES = 32  # of a marker along an edge: what is shorter than their distance may be missed
_NEAR = 0.25  # of an edge: a vertex as close as that moves to the place where the marker changes
_SAME = 1e-10  # of the size of the domain
_ASIDE = 1e-10  # of the way to the middle of a cell or facet
_TOLERANCE = 2e-3  # of the size: markers such as x[1] > 0.999 reach around corners by that much, which is not meant
ROUNDS = 4  # of refinement at most: what chords miss falls by four each time
_PASSES = 12  # each cuts an edge once


class Fit(NamedTuple):
    """A mesh that follows a marker."""

    raw: RawMesh  #: with what is inside as a part or region
    size: float  #: measure of what is inside
    defect: float  #: measure of the difference of both sets
    coarse: Array  #: cells of the given mesh to refine, because chords miss too much there, or something was missed


def follow(raw: RawMesh, name: str, inside: Inside, on_boundary: bool) -> Fit:
    """Let a mesh follow the marker of a part of its boundary, or of a region."""
    cells: Array = np.arange(len(raw.cells))
    raw = _warped(raw, inside, on_boundary)
    for _ in range(_PASSES):
        ends, at = changes(raw, inside, boundary_of(raw) if on_boundary else None)
        if not len(ends):
            break
        raw, parents = split(raw, ends, at)
        cells = cells[parents]
    return measured(raw, name, cells, inside, on_boundary)


# -- Where a marker changes


def changes(raw: RawMesh, inside: Inside, outer: Array | None, corners: bool = True) -> tuple[Array, Array]:
    """Edges on which the marker changes away from their ends, and where, as a fraction from the lower vertex.

    Of the boundary's facets ``outer`` alone if they are given, there without ``corners`` that it reaches around.
    """
    pairs, _, nodes, cell = edges_of(raw)
    within = raw.cells[cell, : raw.dim + 1]
    if outer is not None:
        if raw.dim == 1:
            return pairs[:0], np.zeros(0)
        rim = np.sort(np.concatenate([outer[:, [i, j]] for i in range(raw.dim) for j in range(i)]), axis=1)
        rim, first = np.unique(rim, axis=0, return_index=True)  # in the order of the edges
        chosen = find(rim, pairs)
        pairs, nodes, within = pairs[chosen], nodes[chosen], outer[first % len(outer)]
    # points are looked at slightly inside a cell (a facet), so that an edge on which a region ends has one side
    x = raw.points[nodes]
    x = x + _ASIDE * (raw.points[within].mean(axis=1)[:, None] - x)
    at = lambda t, some=slice(None): inside(along(x[some], t).reshape(-1, raw.dim))  # noqa: E731
    t = np.linspace(0.0, 1.0, _SAMPLES + 1)
    values = at(t).reshape(len(x), len(t))
    differ = values[:, 1:] != values[:, :-1]
    if outer is not None:
        differ[_chords(raw, inside, pairs, nodes, values)] = False
    some = np.flatnonzero(differ.any(axis=1))
    # of several changes on an edge the one that is next to its middle comes first
    nearest = np.argmin(np.where(differ[some], np.abs(np.arange(_SAMPLES) + 0.5 - _SAMPLES / 2), np.inf), axis=1)
    low, high, before = t[nearest], t[nearest + 1], values[some, nearest]
    for _ in range(45 if len(some) else 0):
        middle = 0.5 * (low + high)
        same = at(middle[:, None], some) == before
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    pairs, t = pairs[some], 0.5 * (low + high)
    size, length = np.ptp(raw.points, axis=0).max(), np.linalg.norm(np.diff(raw.points[pairs], axis=1)[:, 0], axis=1)
    distance = np.minimum(t, 1 - t) * length
    keep = distance > _SAME * size
    if outer is not None and corners:
        normals = normals_of(raw.points[outer])
        for k in np.flatnonzero(keep & (distance < _TOLERANCE * size)):  # few
            at_end = pairs[k] if t[k] < 0.5 else pairs[k, ::-1]
            keep[k] = not _around_a_corner(raw.points, inside, outer, normals, at_end, distance[k])
    return pairs[keep], t[keep]


def _chords(raw: RawMesh, inside: Inside, pairs: Array, nodes: Array, values: Array) -> Array:
    """Which edges of the boundary stand for a marked curve or surface: markers of it hold at vertices only.

    On straight edges that is told from two windows, one at each end, by the size of what is marked.
    """
    ends = (
        inside(along(raw.points[nodes], np.array([NUDGE, 1 - NUDGE])).reshape(-1, raw.dim)).reshape(-1, 2).all(axis=1)
    )
    if raw.degree > 1 or not ends.any():
        return np.asarray(ends)
    a, b = raw.points[pairs].transpose(1, 0, 2)
    length, size = np.linalg.norm(b - a, axis=1), np.ptp(raw.points, axis=0).max()
    share = np.minimum(_TOLERANCE * size / length, 0.5)[:, None]
    beside = np.stack([a + share * (b - a), b + share * (a - b)], axis=1)
    wide = inside(beside.reshape(-1, raw.dim)).reshape(-1, 2).any(axis=1)
    return np.asarray(ends & ~wide & ~values[:, 1:-1].any(axis=1))


def _around_a_corner(x: Array, inside: Inside, outer: Array, normals: Array, edge: Array, distance: float) -> bool:
    """Whether the piece of a boundary edge between its first vertex and a change is as what lies around that corner."""
    here = np.flatnonzero((outer == edge[0]).any(axis=1))
    mine = here[(outer[here] == edge[1]).any(axis=1)]
    others = here[(np.abs(normals[here] @ normals[mine].T) < 0.94).all(axis=1)]
    towards = np.vstack([x[edge[1:]], x[outer[others]].mean(axis=1)]) - x[edge[0]]
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    towards[0] *= 0.05
    values = inside(x[edge[0]] + 10 * distance * towards)
    return bool((values[1:] == values[0]).any())


# -- Vertices that move


def _warped(raw: RawMesh, inside: Inside, on_boundary: bool) -> RawMesh:
    """The mesh with vertices moved along edges to where the marker changes, if that is close and harmless."""
    pairs, t = changes(raw, inside, boundary_of(raw) if on_boundary else None)
    pairs[t > 0.5] = pairs[t > 0.5, ::-1]
    t = np.minimum(t, 1 - t)
    vertex, other = pairs[t < _NEAR].T
    x = raw.points
    shift = t[t < _NEAR, None] * (x[other] - x[vertex])
    free = _may_move(raw, vertex, shift)
    vertex, shift = vertex[free], shift[free]
    shortest = np.argsort(np.linalg.norm(shift, axis=1), kind="stable")
    vertex, first = np.unique(vertex[shortest], return_index=True)
    moved, corners = np.zeros_like(x), raw.cells[:, : raw.dim + 1]
    moved[vertex] = shift[shortest][first]
    volumes = lambda x: np.linalg.det(x[corners[:, 1:]] - x[corners[:, :1]])  # noqa: E731
    for _ in range(20):
        bad = (volumes(x + moved) / volumes(x) < 0.2) & (moved[corners] != 0).any(axis=(1, 2))
        if not bad.any():
            break
        moved[corners[bad]] = 0.0
    points = x.copy()  # cells agree on the shift of the nodes that they share
    points[raw.cells] = x[raw.cells] + _refine.lattice(raw.dim, raw.degree) @ moved[corners]
    return replace(raw, points=points)


def _may_move(raw: RawMesh, vertex: Array, shift: Array) -> Array:
    """Whether vertices may go in these directions: in the planes of the boundary and of what is marked."""
    faces, of_cell = faces_of(raw)
    count = np.bincount(of_cell.ravel(), minlength=len(faces))
    kept, fixed = count == 1, np.zeros(len(raw.points), dtype=bool)
    for vertices in raw.facets.values():  # ends of parts
        mine, ends = find(vertices, faces), np.zeros((2, len(fixed)), dtype=bool)
        ends[0, faces[mine]] = ends[1, faces[(count == 1) & ~mine]] = True
        fixed |= ends.all(axis=0)
    for rows in raw.groups.values():
        kept |= (np.bincount(of_cell[rows].ravel(), minlength=len(faces)) == 1) & (count == 2)
    if raw.degree > 1 or raw.dim == 1:
        fixed[faces[kept]] = True
    normals, planes = normals_of(raw.points[faces[kept]]), np.zeros((len(fixed), raw.dim, raw.dim))
    np.add.at(planes, faces[kept], (normals[:, :, None] * normals[:, None, :])[:, None])
    across = np.einsum("vi,vij,vj->v", shift, planes[vertex], shift)
    return ~fixed[vertex] & (across <= 1e-13 * (shift**2).sum(axis=1))


# -- What is inside, and by how much chords miss it


def measured(raw: RawMesh, name: str, parent: Array, inside: Inside, on_boundary: bool) -> Fit:
    """What is inside a mesh whose cells come from those numbered ``parent``, as a part or region with a name."""
    d = raw.dim
    top = boundary_of(raw) if on_boundary else raw.cells[:, : d + 1]
    x = raw.points[top]
    middle = x.mean(axis=1)
    if on_boundary and d == 2:  # of edges on their curve
        pairs, _, nodes, _ = edges_of(raw)
        where = numbers_of(pairs, np.sort(top, axis=1), int(raw.cells.max()) + 1)
        middle = along(raw.points[nodes[where]], np.array([0.5]))[:, 0]
    member = solid = inside(middle)
    if on_boundary:  # markers of a curve hold at vertices
        near = x + NUDGE * (middle[:, None] - x)
        member = solid | inside(near.reshape(-1, d)).reshape(len(x), d).all(axis=1)
    size = float(measures_of(x)[member].sum())
    missed: Array = np.zeros(0)
    coarse: Array = np.zeros(0, dtype=np.int64)
    if top.shape[1] > 2:
        missed, sides = _distances(top, x, member, solid, inside)
        coarse = np.unique(sides[missed > 0.05 * missed.sum() / max(len(missed), 1)])
    if on_boundary:
        faces, of_cell = faces_of(raw)
        coarse = np.flatnonzero(find(top[coarse], faces)[of_cell].any(axis=1))
        raw = replace(raw, facets={**raw.facets, name: top[member]})
    else:
        # cells in which the marker changes although it does not on their edges
        inner = _refine.lattice(d, 6)
        inner = inner[(inner > 0).all(axis=1)] if d > 1 else inner[1:-1]
        values = inside((inner @ x).reshape(-1, d)).reshape(len(x), -1)
        coarse = np.union1d(coarse, np.flatnonzero(values.any(axis=1) != values.all(axis=1))).astype(np.int64)
        raw = replace(raw, groups={**raw.groups, name: np.flatnonzero(member)})
    if 0 < size and not missed.sum() > ACCURACY * size:
        coarse = coarse[:0]
    return Fit(raw, size, float(missed.sum()), np.unique(parent[coarse]))


def _distances(top: Array, x: Array, member: Array, solid: Array, inside: Inside) -> tuple[Array, Array]:
    """For each face between inside and outside: measure of what lies between it and the marked set, and its sides.

    The set's edge is looked for from the middle, normally to the face.  Members that are not solid stand for a curved
    piece, and nothing is missed before the edges of these.
    """
    m = top.shape[1] - 1
    others = opposite(m)
    _, order, start, count = equal_rows(np.sort(top[:, others].reshape(-1, m), axis=1))
    sides = np.stack([order[start[count == 2]], order[start[count == 2] + 1]], axis=1)
    differ = member[sides // (m + 1)]
    sides[differ[:, 1]] = sides[differ[:, 1], ::-1]  # the first is inside
    tops, local = np.divmod(sides[differ[:, 0] != differ[:, 1]], m + 1)
    face = np.take_along_axis(x[tops[:, 0]], others[local[:, 0]][:, :, None], axis=1)
    middle = face.mean(axis=1)
    away = x[tops, local] - middle[:, None]
    if m > 1:
        q, _ = np.linalg.qr((face[:, 1:] - face[:, :1]).transpose(0, 2, 1))
        away = away - away @ q @ q.transpose(0, 2, 1)
    low: Array = -np.ones((len(face), 1))  # inside
    high: Array = np.ones((len(face), 1))
    for _ in range(40):
        half = 0.5 * (low + high)
        holds = inside(middle + np.abs(half) * np.where(half < 0, away[:, 0], away[:, 1]))[:, None]
        low, high = np.where(holds, half, low), np.where(holds, high, half)
    length = np.abs(half) * np.linalg.norm(np.where(half < 0, away[:, 0], away[:, 1]), axis=1, keepdims=True)
    counts = (np.abs(half) > 1e-6) & ((half > 0) | solid[tops[:, :1]])
    return 2 / 3 * np.where(counts, length, 0.0)[:, 0] * measures_of(face), tops


# -- Domains, gathered on rank 0 and distributed again


def gathered(domain: "Domain") -> RawMesh | None:
    """The whole mesh on rank 0, None elsewhere; cells in the order of ranks (collective)."""
    mesh, comm, dim = domain.mesh, domain.comm, domain.dim
    owned = mesh.topology.index_map(dim).size_local
    index = mesh.geometry.index_map()
    number = index.local_to_global(np.arange(index.size_local + index.num_ghosts, dtype=np.int32))
    if domain.periods is not None:  # whose cells have nodes of their own
        number = np.asarray(mesh.geometry.input_global_indices)
    cells = number[_compat.geometry_dofmap(mesh)[:owned]]
    first = sum(comm.allgather(owned)[: comm.rank])
    place = {name: np.searchsorted(domain.boundary.facets, domain.facets(name)) for name in domain.parts}
    facets = {name: number[domain.boundary.nodes[at]] for name, at in place.items()}
    groups = {name: first + rows[rows < owned] for name, rows in domain._regions.items()}
    shares = comm.gather((number, mesh.geometry.x[:, :dim], cells, facets, groups), root=0)
    if shares is None:
        return None
    used, points, cells = (np.concatenate([s[i] for s in shares]) for i in range(3))
    unique, where = np.unique(used, return_index=True)
    facets = {name: np.searchsorted(unique, np.vstack([s[3][name] for s in shares])) for name in facets}
    groups = {name: np.concatenate([s[4][name] for s in shares]) for name in groups}
    degree = _compat.coordinate_map(mesh).degree
    return RawMesh(points[where], np.searchsorted(unique, cells), degree, facets, groups, domain.periods)


def changes_inside_facets(domain: "Domain", inside: Inside) -> bool:
    """Whether a marker changes inside a facet of this rank's boundary, corners included."""
    mesh, boundary = domain.mesh, domain.boundary
    if domain.dim == 1 or not len(boundary.facets):
        return False
    cells = _compat.geometry_dofmap(mesh)[np.unique(boundary.cells)].astype(np.int64)
    raw = RawMesh(mesh.geometry.x[:, : domain.dim], cells, _compat.coordinate_map(mesh).degree, {})
    return len(changes(raw, inside, boundary.nodes.astype(np.int64), corners=False)[0]) > 0


def followed(domain: "Domain", name: str, inside: Inside, on_boundary: bool) -> tuple["Domain", float, float]:
    """A domain whose named part or region follows a marker, refined where chords miss it; defect, size (collective)."""
    comm = domain.comm
    for turn in range(ROUNDS + 1):
        raw = gathered(domain)
        fit = on_root(comm, lambda raw=raw: follow(raw, name, inside, on_boundary))  # type: ignore[misc]
        same = fit and len(fit.raw.cells) == len(raw.cells) and np.array_equal(fit.raw.points, raw.points)  # type: ignore[union-attr]
        defect, size, coarse, same = comm.bcast((fit.defect, fit.size, fit.coarse, same) if fit else None, root=0)
        if same and on_boundary and turn == 0 and not len(coarse):
            return domain, defect, size  # whose numbers of facets somebody may hold
        if not len(coarse) or turn == ROUNDS:
            break
        owned = domain.mesh.topology.index_map(domain.dim).size_local
        mine = coarse - sum(comm.allgather(owned)[: comm.rank])
        domain = domain._divided(mine[(mine >= 0) & (mine < owned)], domain._round)
    return domain._of(distribute(comm, lambda: fit and fit.raw), domain._round), defect, size
