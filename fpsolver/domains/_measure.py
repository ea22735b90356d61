"""How well a mesh follows a marker: what is inside, and by how much chords miss it."""

from dataclasses import dataclass

import numpy as np

from . import _refine
from ._arrays import Array, RawMesh, opposite
from ._parts import NUDGE, Inside
from ._tables import along, boundary_of, edges_of, faces_of, find, measures_of, numbers_of


@dataclass(frozen=True)
class Fit:
    """A mesh that follows a marker.

    Attributes:
        raw: the mesh.
        inside: which cells, or which facets of ``surface``, are inside.
        surface: vertices of the boundary's facets, if they are marked; None if cells are.
        size: measure of what is inside.
        defect: measure of the difference of both sets.
        coarse: cells of the given mesh to refine if the defect is too large, or in which something was missed.
    """

    raw: RawMesh
    inside: Array
    surface: Array | None
    size: float
    defect: float
    coarse: Array


def measured(raw: RawMesh, parent: Array, inside: Inside, on_boundary: bool) -> Fit:
    d = raw.dim
    top = boundary_of(raw) if on_boundary else raw.cells[:, : d + 1]
    x = raw.points[top]
    middle = _centers(raw, top) if on_boundary else x.mean(axis=1)
    member = inside(middle)
    solid = member  # not by vertices only
    if on_boundary:  # markers of a curve hold at vertices
        near = x + NUDGE * (middle[:, None] - x)
        member = member | inside(near.reshape(-1, d)).reshape(len(x), d).all(axis=1)
    measure = measures_of(x)
    signed: Array = np.zeros(0)
    coarse: Array = np.zeros(0, dtype=np.int64)
    if top.shape[1] > 2:
        signed, sides = _distances(top, x, member, solid, inside)
        bad = np.abs(signed) > 0.05 * np.abs(signed).sum() / max(len(signed), 1)
        coarse = np.unique(sides[bad])
    if on_boundary and len(coarse):
        faces, of_cell = faces_of(raw)
        coarse = np.flatnonzero(find(top[coarse], faces)[of_cell].any(axis=1))
    elif not on_boundary:
        coarse = np.union1d(coarse, _missed(raw, inside)).astype(np.int64)
    size, defect = float(measure[member].sum()), float(np.abs(signed).sum())
    return Fit(raw, member, top if on_boundary else None, size, defect, np.unique(parent[coarse]))


def _centers(raw: RawMesh, facets: Array) -> Array:
    """Points in the middle of boundary facets; of edges on their curve."""
    if raw.dim != 2 or raw.degree == 1:
        return raw.points[facets].mean(axis=1)
    pairs, _, nodes, _ = edges_of(raw)
    where = numbers_of(pairs, np.sort(facets, axis=1), int(raw.cells.max()) + 1)
    return along(raw.points[nodes[where]], np.array([0.5]))[:, 0]


def _distances(top: Array, x: Array, member: Array, solid: Array, inside: Inside) -> tuple[Array, Array]:
    """For each simplex between inside and outside: measure of what lies between it and the marked set, and its sides.

    The set is looked for from the middle, normally to the simplex: beyond it (positive), or before (negative).
    Members that are not solid stand for a curved piece, and nothing is missed before the edges of these.
    """
    m = top.shape[1] - 1
    others = opposite(m)
    rows = np.sort(top[:, others].reshape(-1, m), axis=1)
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
    face = np.take_along_axis(x[tops[:, 0]], others[sides[:, 0] % (m + 1)][:, :, None], axis=1)
    middle, signed = face.mean(axis=1), np.zeros(len(face))
    for side, sign in ((1, 1.0), (0, -1.0)):
        apex = x[tops[:, side], sides[:, side] % (m + 1)] - middle
        if m > 1:
            q, _ = np.linalg.qr((face[:, 1:] - face[:, :1]).transpose(0, 2, 1))
            apex = apex - (q @ (q.transpose(0, 2, 1) @ apex[..., None]))[..., 0]
        wrong = inside(middle + 1e-6 * apex) == (side == 1)
        if side == 0:
            wrong &= solid[tops[:, 0]]
        low: Array = np.full(len(face), 1e-6)
        high: Array = np.ones(len(face))
        for _ in range(30):
            half = np.sqrt(low * high)
            still = inside(middle + half[:, None] * apex) == (side == 1)
            low, high = np.where(still, half, low), np.where(still, high, half)
        signed += np.where(wrong, sign * low * np.linalg.norm(apex, axis=1), 0.0)
    return 2 / 3 * signed * measures_of(face), tops


def _missed(raw: RawMesh, inside: Inside) -> Array:
    """Cells in which the marker changes although it does not on their edges."""
    inner = _refine.lattice(raw.dim, 6)
    inner = inner[(inner > 0).all(axis=1)] if raw.dim > 1 else inner[1:-1]
    x = raw.points[raw.cells[:, : raw.dim + 1]]
    values = inside((inner @ x).reshape(-1, raw.dim)).reshape(len(x), -1)
    return np.flatnonzero(values.any(axis=1) != values.all(axis=1))
