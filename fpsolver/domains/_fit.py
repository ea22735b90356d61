"""Meshes that follow the ends of a marked part of the boundary, or the edge of a region inside.

Where a marker changes along an edge, the place is found by bisection.  Vertices close to such a place move there, if
the boundary and what is marked already allow; the remaining edges are cut there, and the cells around them by the rule
of refinement (_refine.py).  Then no cell (facet) has vertices on both sides: in one dimension, and on the boundary of a
plane domain, the ends are exact; an edge of a region that is no polygon is followed by chords, whose distance from it
is measured.  All of this is serial, on rank 0.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from mpi4py import MPI

import numpy as np
import numpy.typing as npt

from . import _refine
from ._arrays import Array, RawMesh
from ._parts import NUDGE

Inside = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.bool_]]
_SAMPLES = 32  # of a marker along an edge: what is shorter than their distance may be missed
_NEAR = 0.25  # of an edge: a vertex as close as that moves to the place where the marker changes
_SAME = 1e-10  # of the size of the domain
_ASIDE = 1e-10  # of the way to the middle of a cell or facet
_TOLERANCE = 2e-3  # of the size: markers such as x[1] > 0.999 reach around corners by that much, which is not meant
_PASSES = 12  # each cuts an edge once


@dataclass(frozen=True)
class Fit:
    """A mesh that follows a marker.

    Attributes:
        raw: the mesh.
        parent: the cell of the given mesh that each of its cells lies in.
        inside: which cells, or which facets of ``surface``, are inside.
        surface: vertices of the boundary's facets, if they are marked; None if cells are.
        size: measure of what is inside.
        missing: how much larger the marked set is by the distance of chords from it; negative if smaller.
        defect: measure of the difference of both sets.
        coarse: cells of the given mesh to refine if the defect is too large, or in which something was missed.
    """

    raw: RawMesh
    parent: Array
    inside: Array
    surface: Array | None
    size: float
    missing: float
    defect: float
    coarse: Array


def follow(raw: RawMesh, inside: Inside, on_boundary: bool) -> Fit:
    """Let a mesh follow the marker of a part of its boundary, or of a region.

    Args:
        raw: the whole mesh.
        inside: takes points (n, dim) and returns n booleans.
        on_boundary: whether facets of the boundary are marked, or cells.
    """
    parent = np.arange(len(raw.cells))
    raw = _warped(raw, inside, on_boundary)
    for _ in range(_PASSES):
        ends, at = changes(raw, inside, boundary_of(raw) if on_boundary else None)
        if not len(ends):
            break
        raw, of = split(raw, ends, at)
        parent = parent[of]
    return _measured(raw, parent, inside, on_boundary)


# -- Tables of a mesh


def _edges(raw: RawMesh) -> tuple[Array, Array, Array, Array]:
    """Edges as pairs of vertices, the lower first; those of each cell; nodes along each, and a cell around it."""
    d, n = raw.dim, int(raw.cells.max()) + 1
    local = _refine.local_edges(d)
    pairs = raw.cells[:, :][:, local]
    key = np.minimum(pairs[..., 0], pairs[..., 1]) * n + np.maximum(pairs[..., 0], pairs[..., 1])
    unique, first, of_cell = np.unique(key.ravel(), return_index=True, return_inverse=True)
    lattice = np.rint(_refine.lattice(d, raw.degree) * raw.degree).astype(int)
    along = []
    for a, b in local:
        on = np.flatnonzero(lattice[:, a] + lattice[:, b] == raw.degree)
        along.append(on[np.argsort(lattice[on, b])])
    cell, which = np.divmod(first, len(local))
    nodes = raw.cells[cell[:, None], np.array(along)[which]]
    flip = nodes[:, 0] > nodes[:, -1]
    nodes[flip] = nodes[flip, ::-1]
    return np.stack([unique // n, unique % n], axis=1), of_cell.reshape(key.shape), nodes, cell


def _faces(raw: RawMesh) -> tuple[Array, Array]:
    """Distinct facets (facets, d) by sorted vertices, and those of each cell, opposite to its vertices (cells, d + 1)."""
    d = raw.dim
    opposite = np.array([[v for v in range(d + 1) if v != i] for i in range(d + 1)])
    rows = np.sort(raw.cells[:, opposite].reshape(-1, d), axis=1)
    unique, of_cell = np.unique(rows, axis=0, return_inverse=True)
    return unique, of_cell.reshape(-1, d + 1)


def boundary_of(raw: RawMesh) -> Array:
    """Vertices of the facets that one cell only has, shape (facets, d)."""
    faces, of_cell = _faces(raw)
    return faces[np.bincount(of_cell.ravel(), minlength=len(faces)) == 1]


def _find(rows: Array, among: Array) -> Array:
    """Which of ``among`` (sorted rows) occur in ``rows``."""
    number = np.unique(np.vstack([np.sort(rows, axis=1), among]), axis=0, return_inverse=True)[1].ravel()
    return np.isin(number[len(rows) :], number[: len(rows)])


def split(raw: RawMesh, ends: Array, at: Array) -> tuple[RawMesh, Array]:
    """Cut edges, given by their vertices with the lower first, at a fraction of the way; and parents of the new cells."""
    d, edges = raw.dim, _edges(raw)
    pairs, of_cell = edges[0], edges[1]
    n = int(raw.cells.max()) + 1
    where = np.searchsorted(pairs[:, 0] * n + pairs[:, 1], ends[:, 0] * n + ends[:, 1])
    bisected, fraction = np.zeros(len(pairs), dtype=bool), np.full(len(pairs), 0.5)
    bisected[where], fraction[where] = True, at
    length = np.linalg.norm(raw.points[pairs[:, 1]] - raw.points[pairs[:, 0]], axis=1)
    order = np.empty(len(pairs), dtype=np.int64)
    order[np.lexsort((np.arange(len(pairs)), length))] = np.arange(len(pairs))
    numbers = raw.cells[:, : d + 1]
    cells = _refine.cut(numbers, of_cell, bisected, order, np.arange(len(pairs)), n, fraction)
    keys, points = _refine.nodes(raw.points[raw.cells], raw.degree, *cells, raw.degree)
    flat, x = _refine.number(MPI.COMM_SELF, keys.reshape(-1, keys.shape[2]), points.reshape(-1, d))
    new = flat.reshape(keys.shape[:2])
    faces, sides = _faces(raw)
    facets = {}
    for name, vertices in raw.facets.items():
        on = _find(vertices, faces)[sides] if len(vertices) else np.zeros(sides.shape, dtype=bool)
        facets[name] = _refine.children(on, *cells[1:], new)
    groups = {name: np.flatnonzero(np.isin(cells[2], rows)) for name, rows in raw.groups.items()}
    return RawMesh(x, new, raw.degree, facets, groups), cells[2]


# -- Where a marker changes


def changes(raw: RawMesh, inside: Inside, outer: Array | None, corners: bool = True) -> tuple[Array, Array]:
    """Edges on which the marker changes away from their ends, and where, as a fraction from the lower vertex.

    Args:
        raw: the mesh.
        inside: the marker.
        outer: vertices of the boundary's facets if only their edges matter, else None.
        corners: whether to leave out changes that are no more than a tolerance around a corner.
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
    pairs, _, nodes, cell = _edges(raw)
    within = raw.cells[cell, : raw.dim + 1]
    if outer is not None:
        if raw.dim == 1:
            return pairs[:0], np.zeros(0)
        rim = np.sort(np.concatenate([outer[:, [i, j]] for i in range(raw.dim) for j in range(i)]), axis=1)
        rim, first = np.unique(rim, axis=0, return_index=True)  # in the order of the edges
        chosen = _find(rim, pairs)
        pairs, nodes, within = pairs[chosen], nodes[chosen], outer[first % len(outer)]
    # points are looked at slightly inside a cell (a facet), so that an edge on which a region ends has one side
    x = raw.points[nodes]
    x = x + _ASIDE * (raw.points[within].mean(axis=1)[:, None] - x)
    t = np.linspace(0.0, 1.0, _SAMPLES + 1)
    values = inside(_along(x, t).reshape(-1, raw.dim)).reshape(len(x), len(t))
    differ = values[:, 1:] != values[:, :-1]
    if outer is not None and raw.degree > 1:  # markers of a curve hold at vertices, but not everywhere between
        near = inside(_along(raw.points[nodes], np.array([NUDGE, 1 - NUDGE])).reshape(-1, raw.dim)).reshape(len(x), 2)
        differ[near.all(axis=1)] = False
    some = np.flatnonzero(differ.any(axis=1))
    # of several changes on an edge the one that is next to its middle comes first
    nearest = np.argmin(np.where(differ[some], np.abs(np.arange(_SAMPLES) + 0.5 - _SAMPLES / 2), np.inf), axis=1)
    low, high, before = t[nearest], t[nearest + 1], values[some, nearest]
    for _ in range(45):
        middle = 0.5 * (low + high)
        same = inside(_along(x[some], middle[:, None])[:, 0]) == before if len(some) else before
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    return pairs[some], 0.5 * (low + high)


def _along(x: Array, t: Array) -> Array:
    """Points at parameters t, shape (k,) or (edges, 1), of curves through equispaced nodes (edges, nodes, d)."""
    knots = np.linspace(0.0, 1.0, x.shape[1])
    t = np.broadcast_to(t, (len(x), np.shape(t)[-1]))
    values = np.ones((x.shape[1], *t.shape))
    for i, a in enumerate(knots):
        for b in np.delete(knots, i):
            values[i] *= (t - b) / (a - b)
    return np.einsum("iek,eid->ekd", values, x)


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
    normals = _normals(raw.points[outer])
    for k in close.tolist():  # few
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


def _normals(corners: Array) -> Array:
    """Unit normals of facets with these corners, shape (facets, d, d)."""
    d = corners.shape[2]
    edges = corners[:, 1:] - corners[:, :1]
    if d == 1:
        return np.ones((len(corners), 1))
    n = np.stack([edges[:, 0, 1], -edges[:, 0, 0]], axis=1) if d == 2 else np.cross(edges[:, 0], edges[:, 1])
    return n / np.linalg.norm(n, axis=1, keepdims=True)


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
    faces, of_cell = _faces(raw)
    count = np.bincount(of_cell.ravel(), minlength=len(faces))
    kept, flat = count == 1, np.ones(len(vertex), dtype=bool)
    fixed = np.zeros(int(raw.cells.max()) + 1, dtype=bool)
    if raw.degree > 1 or raw.dim == 1:
        fixed[faces[kept]] = True
    for rows in raw.groups.values():
        member = np.zeros(len(raw.cells), dtype=bool)
        member[rows] = True
        inner = np.bincount(of_cell[member].ravel(), minlength=len(faces))
        kept |= (inner == 1) & (count == 2)
        if raw.dim == 1 or raw.degree > 1:
            fixed[faces[(inner == 1) & (count == 2)]] = True
    outer = np.unique(faces[count == 1])
    for vertices in raw.facets.values():  # ends of parts
        mine = _find(vertices, faces) if len(vertices) else np.zeros(len(faces), dtype=bool)
        rest = np.zeros(len(fixed), dtype=bool)
        rest[faces[(count == 1) & ~mine]] = True
        ends = np.unique(faces[mine])
        fixed[ends[rest[ends]]] = True
        fixed[np.setdiff1d(ends, outer)] = True
    plane = faces[kept]
    normals = _normals(raw.points[plane])
    around: dict[int, list[int]] = {}
    wanted = set(vertex.tolist())
    for k in np.flatnonzero(np.isin(plane, vertex).any(axis=1)).tolist():
        for v in plane[k].tolist():
            if v in wanted:
                around.setdefault(v, []).append(k)
    for i, v in enumerate(vertex.tolist()):
        if v in around:
            n = normals[around[v]]
            flat[i] = (np.abs(n @ shift[i]) <= 1e-9 * np.linalg.norm(shift[i])).all()
    return flat & ~fixed[vertex]


# -- What is inside, and by how much it is missed


def _measured(raw: RawMesh, parent: Array, inside: Inside, on_boundary: bool) -> Fit:
    d = raw.dim
    top = boundary_of(raw) if on_boundary else raw.cells[:, : d + 1]
    x = raw.points[top]
    middle = _centers(raw, top) if on_boundary else x.mean(axis=1)
    member = inside(middle)
    if on_boundary:  # markers of a curve hold at vertices
        near = x + NUDGE * (middle[:, None] - x)
        member |= inside(near.reshape(-1, d)).reshape(len(x), d).all(axis=1)
    measure = _measures(x)
    signed = np.zeros(0)
    coarse: Array = np.zeros(0, dtype=np.int64)
    if top.shape[1] > 2:
        signed, sides = _distances(top, x, member, inside)
        bad = np.abs(signed) > 0.05 * np.abs(signed).sum() / max(len(signed), 1)
        coarse = np.unique(sides[bad])
    if on_boundary:
        cells = _find_cells(raw, top[coarse]) if len(coarse) else coarse
    else:
        cells = np.union1d(coarse, _missed(raw, inside))
    return Fit(
        raw, parent, member, top if on_boundary else None, float(measure[member].sum()), float(signed.sum()),
        float(np.abs(signed).sum()), np.unique(parent[cells.astype(np.int64)]),
    )  # fmt: skip


def _centers(raw: RawMesh, facets: Array) -> Array:
    """Points in the middle of boundary facets; of edges on their curve."""
    if raw.dim != 2 or raw.degree == 1:
        return raw.points[facets].mean(axis=1)
    pairs, _, nodes, _ = _edges(raw)
    n = int(raw.cells.max()) + 1
    low, high = facets.min(axis=1), facets.max(axis=1)
    where = np.searchsorted(pairs[:, 0] * n + pairs[:, 1], low * n + high)
    return _along(raw.points[nodes[where]], np.array([0.5]))[:, 0]


def _find_cells(raw: RawMesh, facets: Array) -> Array:
    faces, of_cell = _faces(raw)
    return np.flatnonzero(_find(facets, faces)[of_cell].any(axis=1))


def _measures(corners: Array) -> Array:
    """Measures of simplices with these corners, shape (n, m + 1, d)."""
    m = corners.shape[1] - 1
    edges = corners[:, 1:] - corners[:, :1]
    gram = np.linalg.det(edges @ edges.transpose(0, 2, 1)) if m else np.ones(len(corners))
    return np.sqrt(np.maximum(gram, 0.0)) / np.prod(np.arange(1, m + 1))


def _distances(top: Array, x: Array, member: Array, inside: Inside) -> tuple[Array, Array]:
    """For each simplex between inside and outside: measure of what lies between it and the marked set, and its sides.

    The set is looked for from the middle, normally to the simplex: beyond it (positive), or before (negative).
    """
    m = top.shape[1] - 1
    opposite = np.array([[v for v in range(m + 1) if v != i] for i in range(m + 1)])
    rows = np.sort(top[:, opposite].reshape(-1, m), axis=1)
    unique, which = np.unique(rows, axis=0, return_inverse=True)
    which = which.ravel()
    order = np.argsort(which, kind="stable")
    twice = np.flatnonzero(np.bincount(which, minlength=len(unique)) == 2)
    begin = np.searchsorted(which[order], twice)
    sides = np.stack([order[begin], order[begin + 1]], axis=1)
    tops = sides // (m + 1)
    differ = member[tops[:, 0]] != member[tops[:, 1]]
    sides, tops = sides[differ], tops[differ]
    swap = member[tops[:, 1]]  # the first is inside
    sides[swap], tops[swap] = sides[swap][:, ::-1], tops[swap][:, ::-1]
    face = np.take_along_axis(x[tops[:, 0]], opposite[sides[:, 0] % (m + 1)][:, :, None], axis=1)
    middle, signed = face.mean(axis=1), np.zeros(len(face))
    for side, sign in ((1, 1.0), (0, -1.0)):
        apex = x[tops[:, side], sides[:, side] % (m + 1)] - middle
        if m > 1:
            q, _ = np.linalg.qr((face[:, 1:] - face[:, :1]).transpose(0, 2, 1))
            apex = apex - (q @ (q.transpose(0, 2, 1) @ apex[..., None]))[..., 0]
        wrong = inside(middle + 1e-6 * apex) == (side == 1)
        low, high = np.full(len(face), 1e-6), np.ones(len(face))
        for _ in range(30):
            half = np.sqrt(low * high)
            still = inside(middle + half[:, None] * apex) == (side == 1)
            low, high = np.where(still, half, low), np.where(still, high, half)
        signed += np.where(wrong, sign * low * np.linalg.norm(apex, axis=1), 0.0)
    return 2 / 3 * signed * _measures(face), tops


def _missed(raw: RawMesh, inside: Inside) -> Array:
    """Cells in which the marker changes although it does not on their edges."""
    inner = _refine.lattice(raw.dim, 6)
    inner = inner[(inner > 0).all(axis=1)] if raw.dim > 1 else inner[1:-1]
    x = raw.points[raw.cells[:, : raw.dim + 1]]
    values = inside((inner @ x).reshape(-1, raw.dim)).reshape(len(x), -1)
    return np.flatnonzero(values.any(axis=1) != values.all(axis=1))
