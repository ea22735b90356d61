"""Edges, facets and measures of a mesh that is held as arrays, and the cutting of its edges."""

from mpi4py import MPI

import numpy as np

from . import _refine
from ._arrays import Array, RawMesh, find, opposite


def edges_of(raw: RawMesh) -> tuple[Array, Array, Array, Array]:
    """Edges as pairs of vertices, the lower first; those of each cell; nodes along each, and a cell around it."""
    d, n = raw.dim, int(raw.cells.max()) + 1
    local = _refine.local_edges(d)
    pairs = raw.cells[:, local]
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


def numbers_of(pairs: Array, ends: Array, n: int) -> Array:
    """Which of all edges, as :func:`edges_of` gives them, have these ends; n is above the vertices' numbers."""
    return np.searchsorted(pairs[:, 0] * n + pairs[:, 1], ends[:, 0] * n + ends[:, 1])


def faces_of(raw: RawMesh) -> tuple[Array, Array]:
    """Distinct facets by sorted vertices (facets, d), and those of each cell, opposite to its vertices."""
    d = raw.dim
    rows = np.sort(raw.cells[:, opposite(d)].reshape(-1, d), axis=1)
    unique, of_cell = np.unique(rows, axis=0, return_inverse=True)
    return unique, of_cell.reshape(-1, d + 1)


def boundary_of(raw: RawMesh) -> Array:
    """Vertices of the facets that one cell only has, shape (facets, d)."""
    faces, of_cell = faces_of(raw)
    return faces[np.bincount(of_cell.ravel(), minlength=len(faces)) == 1]


def split(raw: RawMesh, ends: Array, at: Array) -> tuple[RawMesh, Array]:
    """Cut edges, given by vertices with the lower first, at a fraction of the way; and parents of the new cells."""
    d, n = raw.dim, int(raw.cells.max()) + 1
    pairs, of_cell, _, _ = edges_of(raw)
    where = numbers_of(pairs, ends, n)
    bisected, fraction = np.zeros(len(pairs), dtype=bool), np.full(len(pairs), 0.5)
    bisected[where], fraction[where] = True, at
    length = np.linalg.norm(raw.points[pairs[:, 1]] - raw.points[pairs[:, 0]], axis=1)
    order = np.argsort(np.argsort(length, kind="stable"))
    children = _refine.cut(raw.cells[:, : d + 1], of_cell, bisected, order, np.arange(len(pairs)), n, fraction)
    faces, sides = faces_of(raw)
    on = {name: find(vertices, faces)[sides] for name, vertices in raw.facets.items()}
    given = (raw.points[raw.cells], _refine.element(d, raw.degree), children, raw.degree, on, raw.groups)
    return _refine.divided(MPI.COMM_SELF, *given, periods=raw.periods), children[2]


def along(x: Array, t: Array) -> Array:
    """Points at parameters t, shape (k,) or (edges, 1), of curves through equispaced nodes (edges, nodes, d)."""
    knots = np.linspace(0.0, 1.0, x.shape[1])
    t = np.broadcast_to(t, (len(x), np.shape(t)[-1]))
    values = np.ones((x.shape[1], *t.shape))
    for i, a in enumerate(knots):
        for b in np.delete(knots, i):
            values[i] *= (t - b) / (a - b)
    return np.einsum("iek,eid->ekd", values, x)


def normals_of(corners: Array) -> Array:
    """Unit normals of facets with these corners, shape (facets, d, d)."""
    d = corners.shape[2]
    edges = corners[:, 1:] - corners[:, :1]
    if d == 1:
        return np.ones((len(corners), 1))
    n = np.stack([edges[:, 0, 1], -edges[:, 0, 0]], axis=1) if d == 2 else np.cross(edges[:, 0], edges[:, 1])
    return n / np.linalg.norm(n, axis=1, keepdims=True)


def measures_of(corners: Array) -> Array:
    """Measures of simplices with these corners, shape (n, m + 1, d)."""
    m = corners.shape[1] - 1
    edges = corners[:, 1:] - corners[:, :1]
    gram = np.linalg.det(edges @ edges.transpose(0, 2, 1)) if m else np.ones(len(corners))
    return np.sqrt(np.maximum(gram, 0.0)) / np.prod(np.arange(1, m + 1))
