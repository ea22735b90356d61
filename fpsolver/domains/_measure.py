"""How well a mesh follows a marker: what is inside, and by how much chords miss it."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from . import _refine
from ._arrays import Array, RawMesh, find, opposite
from ._conform import equal_rows
from ._parts import NUDGE, Inside
from ._tables import along, boundary_of, edges_of, faces_of, measures_of, numbers_of

ACCURACY = 1e-4  # of the measure of what is marked: meshes are refined at its edge until chords are as close


class Fit(NamedTuple):
    """A mesh that follows a marker."""

    raw: RawMesh  #: with what is inside as a part or region
    size: float  #: measure of what is inside
    defect: float  #: measure of the difference of both sets
    coarse: Array  #: cells of the given mesh to refine, because chords miss too much there, or something was missed


def measured(raw: RawMesh, name: str, parent: Array, inside: Inside, on_boundary: bool) -> Fit:
    """What is inside a mesh whose cells come from those numbered ``parent``, as a part or region with a name."""
    d = raw.dim
    top = boundary_of(raw) if on_boundary else raw.cells[:, : d + 1]
    x = raw.points[top]
    middle = _centers(raw, top) if on_boundary else x.mean(axis=1)
    member = solid = inside(middle)
    if on_boundary:  # markers of a curve hold at vertices
        near = x + NUDGE * (middle[:, None] - x)
        member = solid | inside(near.reshape(-1, d)).reshape(len(x), d).all(axis=1)
    size, missed, coarse = float(measures_of(x)[member].sum()), np.zeros(0), np.zeros(0, dtype=np.int64)
    if top.shape[1] > 2:
        missed, sides = _distances(top, x, member, solid, inside)
        coarse = np.unique(sides[missed > 0.05 * missed.sum() / max(len(missed), 1)])
    if on_boundary:
        faces, of_cell = faces_of(raw)
        coarse = np.flatnonzero(find(top[coarse], faces)[of_cell].any(axis=1))
        raw = replace(raw, facets={**raw.facets, name: top[member]})
    else:
        coarse = np.union1d(coarse, _missed(raw, inside)).astype(np.int64)
        raw = replace(raw, groups={**raw.groups, name: np.flatnonzero(member)})
    if 0 < size and not missed.sum() > ACCURACY * size:
        coarse = coarse[:0]
    return Fit(raw, size, float(missed.sum()), np.unique(parent[coarse]))


def _centers(raw: RawMesh, facets: Array) -> Array:
    """Points in the middle of boundary facets; of edges on their curve."""
    if raw.dim != 2 or raw.degree == 1:
        return raw.points[facets].mean(axis=1)
    pairs, _, nodes, _ = edges_of(raw)
    where = numbers_of(pairs, np.sort(facets, axis=1), int(raw.cells.max()) + 1)
    return along(raw.points[nodes[where]], np.array([0.5]))[:, 0]


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


def _missed(raw: RawMesh, inside: Inside) -> Array:
    """Cells in which the marker changes although it does not on their edges."""
    inner = _refine.lattice(raw.dim, 6)
    inner = inner[(inner > 0).all(axis=1)] if raw.dim > 1 else inner[1:-1]
    x = raw.points[raw.cells[:, : raw.dim + 1]]
    values = inside((inner @ x).reshape(-1, raw.dim)).reshape(len(x), -1)
    return np.flatnonzero(values.any(axis=1) != values.all(axis=1))
