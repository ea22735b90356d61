"""Meshes that follow the ends of a marked part of the boundary, or the edge of a region inside.

Where a marker changes along an edge, the place is found by bisection.  Vertices close to such a place move there, if
the boundary and what is marked already allow; the remaining edges are cut there, and the cells around them by the rule
of refinement (_refine.py).  Then no cell (facet) has vertices on both sides: in one dimension, and on the boundary of a
plane domain, the ends are exact; an edge of a region that is no polygon is followed by chords, whose distance from it
is measured.  All of this is serial, on rank 0.
"""

from dataclasses import replace

import numpy as np

from . import _refine
from ._arrays import Array, RawMesh
from ._measure import Fit, measured
from ._parts import NUDGE, Inside
from ._tables import along, boundary_of, edges_of, faces_of, find, normals_of, split

_SAMPLES = 32  # of a marker along an edge: what is shorter than their distance may be missed
_NEAR = 0.25  # of an edge: a vertex as close as that moves to the place where the marker changes
_SAME = 1e-10  # of the size of the domain
_ASIDE = 1e-10  # of the way to the middle of a cell or facet
_TOLERANCE = 2e-3  # of the size: markers such as x[1] > 0.999 reach around corners by that much, which is not meant
_PASSES = 12  # each cuts an edge once


def follow(raw: RawMesh, inside: Inside, on_boundary: bool) -> Fit:
    """Let a mesh follow the marker of a part of its boundary, or of a region."""
    parent: Array = np.arange(len(raw.cells))
    raw = _warped(raw, inside, on_boundary)
    for _ in range(_PASSES):
        ends, at = changes(raw, inside, boundary_of(raw) if on_boundary else None)
        if not len(ends):
            break
        raw, of = split(raw, ends, at)
        parent = parent[of]
    return measured(raw, parent, inside, on_boundary)


# -- Where a marker changes


def changes(raw: RawMesh, inside: Inside, outer: Array | None, corners: bool = True) -> tuple[Array, Array]:
    """Edges on which the marker changes away from their ends, and where, as a fraction from the lower vertex.

    Of the boundary's facets ``outer`` alone if they are given, there without ``corners`` that it reaches around.
    """
    pairs, t = _crossings(raw, inside, outer)
    length = np.linalg.norm(raw.points[pairs[:, 1]] - raw.points[pairs[:, 0]], axis=1)
    size = np.ptp(raw.points, axis=0).max()
    keep = np.minimum(t, 1 - t) * length > _SAME * size
    pairs, t, length = pairs[keep], t[keep], length[keep]
    if outer is not None and corners and len(pairs):
        keep = ~_around_a_corner(raw, inside, outer, pairs, t, length)
        pairs, t = pairs[keep], t[keep]
    return pairs, t


def _crossings(raw: RawMesh, inside: Inside, outer: Array | None) -> tuple[Array, Array]:
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
    t = np.linspace(0.0, 1.0, _SAMPLES + 1)
    values = inside(along(x, t).reshape(-1, raw.dim)).reshape(len(x), len(t))
    differ = values[:, 1:] != values[:, :-1]
    if outer is not None:
        differ[_chords(raw, inside, pairs, nodes, values)] = False
    some = np.flatnonzero(differ.any(axis=1))
    # of several changes on an edge the one that is next to its middle comes first
    nearest = np.argmin(np.where(differ[some], np.abs(np.arange(_SAMPLES) + 0.5 - _SAMPLES / 2), np.inf), axis=1)
    low, high, before = t[nearest], t[nearest + 1], values[some, nearest]
    for _ in range(45):
        middle = 0.5 * (low + high)
        same = inside(along(x[some], middle[:, None])[:, 0]) == before if len(some) else before
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    return pairs[some], 0.5 * (low + high)


def _chords(raw: RawMesh, inside: Inside, pairs: Array, nodes: Array, values: Array) -> Array:
    """Which edges of the boundary stand for a marked curve or surface: markers of it hold at vertices only.

    On straight edges that is told from two windows, one at each end, by the size of what is marked.
    """
    at = lambda t: inside(along(raw.points[nodes], t).reshape(-1, raw.dim)).reshape(len(nodes), -1)  # noqa: E731
    ends = at(np.array([NUDGE, 1 - NUDGE])).all(axis=1)
    if raw.degree > 1 or not ends.any():
        return np.asarray(ends)
    length = np.linalg.norm(raw.points[pairs[:, 1]] - raw.points[pairs[:, 0]], axis=1)
    share = np.minimum(_TOLERANCE * np.ptp(raw.points, axis=0).max() / length, 0.5)
    beside = np.stack([share, 1 - share], axis=1)[..., None]
    a, b = raw.points[pairs].transpose(1, 0, 2)
    wide = inside((a[:, None] + beside * (b - a)[:, None]).reshape(-1, raw.dim)).reshape(-1, 2).any(axis=1)
    return np.asarray(ends & ~wide & ~values[:, 1:-1].any(axis=1))


def _around_a_corner(raw: RawMesh, inside: Inside, outer: Array, pairs: Array, t: Array, length: Array) -> Array:
    """Which changes lie so close to a corner that the marker only reaches around it by its tolerance.

    The piece between the corner and the change is then as the boundary on the corner's other side.
    """
    size = np.ptp(raw.points, axis=0).max()
    end = (t > 0.5).astype(int)
    corner = pairs[np.arange(len(pairs)), end]
    distance = np.minimum(t, 1 - t) * length
    close = np.flatnonzero(distance < _TOLERANCE * size)
    found = np.zeros(len(pairs), dtype=bool)
    normals = normals_of(raw.points[outer])
    for k in map(int, close):  # few
        here = np.flatnonzero((outer == corner[k]).any(axis=1))
        mine = here[(outer[here] == pairs[k, 1 - end[k]]).any(axis=1)]
        others = here[(np.abs(normals[here] @ normals[mine].T) < 0.94).all(axis=1)]
        x = raw.points[corner[k]]
        towards = raw.points[outer[others]].mean(axis=1) - x
        towards /= np.linalg.norm(towards, axis=1, keepdims=True)
        piece = x + 0.5 * distance[k] / length[k] * (raw.points[pairs[k, 1 - end[k]]] - x)
        values = inside(np.vstack([piece, x + 10 * distance[k] * towards]))
        found[k] = (values[1:] == values[0]).any()
    return found


# -- Vertices that move


def _warped(raw: RawMesh, inside: Inside, on_boundary: bool) -> RawMesh:
    """The mesh with vertices moved along edges to where the marker changes, if that is close and harmless."""
    pairs, t = changes(raw, inside, boundary_of(raw) if on_boundary else None)
    near = np.minimum(t, 1 - t) < _NEAR
    pairs, t = pairs[near], t[near]
    if not len(pairs):
        return raw
    x = raw.points
    end = (t > 0.5).astype(int)
    vertex, other = (pairs[np.arange(len(pairs)), e] for e in (end, 1 - end))
    shift = np.minimum(t, 1 - t)[:, None] * (x[other] - x[vertex])
    free = _may_move(raw, vertex, shift)
    vertex, shift = vertex[free], shift[free]
    shortest = np.argsort(np.linalg.norm(shift, axis=1), kind="stable")
    vertex, first = np.unique(vertex[shortest], return_index=True)
    shift = shift[shortest][first]
    corners = raw.cells[:, : raw.dim + 1]
    before = _volumes(x[corners])
    moved = np.zeros_like(x)
    moved[vertex] = shift
    for _ in range(20):
        bad = (_volumes((x + moved)[corners]) / before < 0.2) & (moved[corners] != 0).any(axis=(1, 2))
        if not bad.any():
            break
        moved[corners[bad]] = 0.0
    points = x.copy()  # cells agree on the shift of the nodes that they share
    points[raw.cells] = x[raw.cells] + _refine.lattice(raw.dim, raw.degree) @ moved[corners]
    return replace(raw, points=points)


def _volumes(corners: Array) -> Array:
    return np.linalg.det(corners[:, 1:] - corners[:, :1])


def _may_move(raw: RawMesh, vertex: Array, shift: Array) -> Array:
    """Whether vertices may go in these directions: in the planes of the boundary and of what is marked."""
    faces, of_cell = faces_of(raw)
    count = np.bincount(of_cell.ravel(), minlength=len(faces))
    kept = count == 1
    fixed = np.zeros(int(raw.cells.max()) + 1, dtype=bool)
    for rows in raw.groups.values():
        inner = np.bincount(of_cell[np.unique(rows)].ravel(), minlength=len(faces))
        kept |= (inner == 1) & (count == 2)
    if raw.degree > 1 or raw.dim == 1:
        fixed[faces[kept]] = True
    outer = np.unique(faces[count == 1])
    for vertices in raw.facets.values():  # ends of parts
        mine = find(vertices, faces) if len(vertices) else np.zeros(len(faces), dtype=bool)
        rest = np.zeros(len(fixed), dtype=bool)
        rest[faces[(count == 1) & ~mine]] = True
        ends = np.unique(faces[mine])
        fixed[ends[rest[ends]]] = True
        fixed[np.setdiff1d(ends, outer)] = True
    plane = faces[kept]
    order = np.argsort(plane, axis=None, kind="stable")
    of_facets = plane.ravel()[order]
    first, last = np.searchsorted(of_facets, vertex, "left"), np.searchsorted(of_facets, vertex, "right")
    number = last - first
    i = np.repeat(np.arange(len(vertex)), number)  # with each facet around that is kept
    at = order[np.arange(len(i)) - np.repeat(np.cumsum(number) - number - first, number)] // raw.dim
    across = np.abs((normals_of(raw.points[plane])[at] * shift[i]).sum(axis=1))
    held = i[across > 1e-9 * np.linalg.norm(shift[i], axis=1)]
    return ~fixed[vertex] & ~np.isin(np.arange(len(vertex)), held)
