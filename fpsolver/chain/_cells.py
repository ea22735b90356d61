"""All cells of a mesh as plain arrays on every rank: where images lie, points to integrate with, moved nodes.

An image of a point may lie in any cell of any rank.  Sending images around would take about a hundred bytes for each
of millions of them; the corners of all cells take 48 bytes per triangle once, a thousandth of the transition matrix.
So every rank holds all corners and finds its images' cells by itself, whoever owns them.
"""

import ctypes
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from .. import _compat
from ..domains.domain import Domain
from ..pointwise.native import library

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Cells:
    """Simplices in the order of their global numbers."""

    vertices: Array  #: corners, shape (C, d + 1, d)
    nodes: Array  #: of the corners in lexicographic order of the mesh's own coordinates, (C, d + 1)
    fixed: Array  #: for each node, whether it lies on the boundary
    keys: Array  #: depend on nothing but the corners in the mesh, shape (C,)
    begin: int  #: the cells of this rank
    end: int

    @property
    def dim(self) -> int:
        """d."""
        return self.vertices.shape[2]

    @property
    def size(self) -> int:
        """Number of cells of all ranks."""
        return len(self.vertices)

    @cached_property
    def volumes(self) -> Array:
        """Of the cells, shape (C,)."""
        edges = self.vertices[:, 1:] - self.vertices[:, :1]
        return np.abs(np.linalg.det(edges)) / np.prod(np.arange(1, self.dim + 1))

    @cached_property
    def inverse(self) -> Array:
        """Rows: gradients of the barycentric coordinates 1, ..., d, shape (C, d, d)."""
        return np.ascontiguousarray(np.linalg.inv((self.vertices[:, 1:] - self.vertices[:, :1]).transpose(0, 2, 1)))

    @cached_property
    def _bins(self) -> "_Bins":
        return _Bins(self.vertices)

    def locate(self, x: Array, tolerance: float = 1e-12) -> tuple[Array, Array]:
        """Cell (n,) of each point x (n, d), -1 outside by more than a part of it; reference coordinates (n, d)."""
        x, found, X = np.ascontiguousarray(x), np.empty(len(x), dtype=np.int64), np.empty(x.shape)
        bins, (n, d) = self._bins, x.shape
        arrays = (bins.low, bins.high, bins.shape, bins.offsets, bins.cells, self._first, self.inverse, x, found, X)
        library(_SOURCE).locate(
            ctypes.c_int(d),
            ctypes.c_longlong(n),
            ctypes.c_double(-tolerance),
            *(ctypes.c_void_p(a.ctypes.data) for a in arrays),
        )
        return found, X

    @cached_property
    def _first(self) -> Array:
        return np.ascontiguousarray(self.vertices[:, 0])

    def moved(self, seed: int) -> "Cells":
        """The same cells with inner nodes moved by a share of the smallest height around them."""
        # mostly in one direction, another for each seed, so that what is regular in mesh and answer gets out of step
        gradients = np.concatenate((-self.inverse.sum(axis=1, keepdims=True), self.inverse), axis=1)
        height = 1.0 / np.linalg.norm(gradients, axis=2).max(axis=1)
        reach = np.full(len(self.fixed), np.inf)
        np.minimum.at(reach, self.nodes.ravel(), np.repeat(height, self.dim + 1))
        random = np.random.default_rng([seed, 1])
        common = _COMMON * _direction(seed, self.dim)
        own = _OWN * random.uniform(-1.0, 1.0, (len(self.fixed), self.dim)) / np.sqrt(self.dim)
        step = np.where(self.fixed, 0.0, reach)[:, None] * (common + own)
        return replace(self, vertices=self.vertices + step[self.nodes])


_COMMON, _OWN = 0.33, 0.1


def _direction(seed: int, dim: int) -> Array:
    """Directions that point away from one another for successive seeds, of length one or, in 1D, less."""
    if dim == 1:
        return np.array([(1.0, -1.0, 0.5, -0.5)[(seed - 1) % 4]])
    angle, flat = 0.7 + 2 * np.pi * seed / 3, 1.0 if dim == 2 else 0.8
    return np.array([flat * np.cos(angle), flat * np.sin(angle), 0.6 * (-1.0) ** seed])[:dim]


class _Bins:
    """A lattice of boxes over the mesh, each with the cells whose bounding boxes meet it."""

    def __init__(self, vertices: Array):
        C, _, d = vertices.shape
        low, high = vertices.min(axis=1), vertices.max(axis=1)
        self.low, self.high = low.min(axis=0), high.max(axis=0)
        extent, size = self.high - self.low, (high - low).mean(axis=0)
        shape = np.clip(np.ceil(2 * extent / size), 1, None)
        self.shape = shape * min(1.0, (16.0 * C / shape.prod()) ** (1 / d))  # graded meshes: no more boxes than needed
        self.shape = np.maximum(self.shape, 1).astype(np.int64)
        self.width = extent / self.shape
        first, last = (self._index(corner) for corner in (low, high))
        many = last - first + 1
        total = many.prod(axis=1)
        cell = np.repeat(np.arange(C), total)
        number = np.arange(len(cell)) - np.repeat(np.cumsum(total) - total, total)
        box = np.zeros(len(cell), dtype=np.int64)
        for i in range(d):
            box = box * self.shape[i] + first[cell, i] + number % many[cell, i]
            number //= many[cell, i]
        order = np.argsort(box, kind="stable")
        self.cells = cell[order]
        self.offsets = np.concatenate(([0], np.cumsum(np.bincount(box, minlength=int(self.shape.prod())))))

    def _index(self, x: Array) -> Array:
        return np.clip(((x - self.low) / self.width).astype(np.int64), 0, self.shape - 1)


_SOURCE = """
/* the first cell of a point's box that contains it, by barycentric coordinates of at least `least` */
void locate(int d, long long n, double least, const double *low, const double *high, const long long *shape,
            const long long *offsets, const long long *cells, const double *first, const double *inverse,
            const double *x, long long *found, double *X)
{
    for (long long i = 0; i < n; i++) {
        const double *p = x + i * d;
        double *out = X + i * d;
        long long box = 0;
        int inside = 1;
        found[i] = -1;
        for (int k = 0; k < d; k++) {
            double extent = high[k] - low[k], s = (p[k] - low[k]) / extent;
            out[k] = 0.0;
            if (!(s >= -1e-6 && s <= 1 + 1e-6)) { inside = 0; break; }
            long long j = s <= 0 ? 0 : (long long)(s * shape[k]);
            box = box * shape[k] + (j < shape[k] ? j : shape[k] - 1);
        }
        if (!inside) continue;
        for (long long c = offsets[box]; c < offsets[box + 1]; c++) {
            const double *v = first + cells[c] * d, *A = inverse + cells[c] * d * d;
            double r[3], sum = 0.0;
            int hit = 1;
            for (int k = 0; k < d; k++) {
                r[k] = 0.0;
                for (int j = 0; j < d; j++) r[k] += A[k * d + j] * (p[j] - v[j]);
                sum += r[k];
                if (r[k] < least) { hit = 0; break; }
            }
            if (!hit || sum > 1 - least) continue;
            found[i] = cells[c];
            for (int k = 0; k < d; k++) out[k] = r[k];
            break;
        }
    }
}
"""


def cells_of(domain: Domain) -> Cells:
    """The cells of a domain on every rank (collective)."""
    comm, mesh, d = domain.comm, domain.mesh, domain.dim
    if _compat.coordinate_map(mesh).degree > 1:
        raise ValueError(
            "a chain needs straight cells; this mesh is curved: give it domain.straightened(), or a box around it."
        )
    owned = mesh.topology.index_map(d).size_local
    mine = mesh.geometry.x[_compat.geometry_dofmap(mesh)[:owned]][:, :, :d] + 0.0  # no negative zeros
    pieces = comm.allgather(mine)
    vertices = np.concatenate(pieces)
    begin = sum(len(p) for p in pieces[: comm.rank])
    flat, nodes = np.unique(vertices.reshape(-1, d), axis=0, return_inverse=True)
    nodes = nodes.reshape(len(vertices), d + 1)
    corners = np.concatenate(comm.allgather(domain.boundary.corners)).reshape(-1, d) + 0.0
    _, number = np.unique(np.concatenate((flat, corners)), axis=0, return_inverse=True)
    fixed = np.isin(number.ravel()[: len(flat)], number.ravel()[len(flat) :])
    if domain.periods is not None:  # both copies of a node stay
        fixed |= np.isclose(flat[:, :, None], domain.periods, atol=1e-9 * np.ptp(flat), rtol=0).any(axis=(1, 2))
    ordered = flat[np.sort(nodes, axis=1)].reshape(len(vertices), -1)
    keys = np.zeros(len(vertices), dtype=np.uint64)
    for column in ordered.T:
        keys = mixed(keys ^ np.ascontiguousarray(column).view(np.uint64))
    return Cells(vertices, nodes, fixed, keys, begin, begin + owned)


def mixed(z: Array) -> Array:
    """Numbers of 64 bits, well mixed (splitmix64; Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def uniform(z: Array) -> Array:
    """Numbers in (0, 1) from numbers of 64 bits."""
    return ((z >> np.uint64(11)).astype(float) + 0.5) * 2.0**-53
