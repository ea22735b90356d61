"""Where paths meet the boundary of a domain, which every rank holds in full: distances, normals, absorbing parts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from .. import _compat
from .._sample import largest, smallest
from ..domains.domain import Domain

Array = np.ndarray[Any, Any]
REFLECTING = -1  # label of boundary facets that belong to no absorbing part


class Walls(ABC):
    """The boundary as one or several surfaces; points have shape (d, n)."""

    surfaces = 1
    quick = False  # whether it costs no more than a step
    extent: Array  # of the domain in each coordinate, shape (d,)
    sides: Sequence[Callable[[Array], Array]]  # labels of points on each surface
    periods: Array | None = None  # ends of periodic coordinates, as Domain.periods; paths may be any turns off

    def depth(self, x: Array) -> Array:
        """Distance to the nearest surface, shape (n,)."""
        return self.distance(x).min(axis=0, initial=np.inf)

    def wrapped(self, x: Array) -> Array:
        """Points (d, n) with periodic coordinates between their ends."""
        if self.periods is None:
            return x
        begin, length = self.periods[:, :1], np.ptp(self.periods, axis=1, keepdims=True)
        return x - np.nan_to_num(np.floor((x - begin) / length) * length)

    @abstractmethod
    def distance(self, x: Array) -> Array:
        """Distance to each surface, positive inside, shape (surfaces, n)."""

    @abstractmethod
    def normal(self, surface: int, x: Array) -> Array:
        """Outward unit normals of a surface at the points nearest to x, shape (d, n)."""

    def label(self, surface: int, x: Array) -> Array:
        """Number of the absorbing part nearest to x on a surface, -1 where it reflects, shape (n,)."""
        return self.sides[surface](self.wrapped(x))


def _labels(corners: Array, labels: Array) -> Callable[[Array], Array]:
    """The label of the facet nearest to a point."""
    if (labels == labels[0]).all():
        return lambda x: np.full(x.shape[1], int(labels[0]))
    tree = cKDTree(corners.mean(axis=1))
    return lambda x: labels[tree.query(x.T)[1]]


class _Box(Walls):
    """An interval, a rectangle or a box; surfaces are lower and upper sides of each coordinate in turn."""

    quick = True

    def __init__(self, low: Array, high: Array, corners: Array, labels: Array, periods: Array | None = None):
        self.bounded = np.arange(len(low)) if periods is None else np.flatnonzero(np.isnan(periods[:, 0]))
        self.low, self.high, self.periods = low[self.bounded, None], high[self.bounded, None], periods
        self.extent, self.surfaces = high - low, 2 * len(self.bounded)
        planes = [(i, plane) for i in self.bounded for plane in (low[i], high[i])]
        on = [np.abs(corners[:, :, i] - plane).max(axis=1) < 1e-9 * self.extent.max() for i, plane in planes]
        self.sides = [_labels(corners[o], labels[o]) for o in on]
        self.labels = [int(labels[o][0]) if (labels[o] == labels[o][0]).all() else None for o in on]

    def distance(self, x: Array) -> Array:
        x = x[self.bounded]
        return np.stack((x - self.low, self.high - x), axis=1).reshape(-1, x.shape[1])

    def normal(self, surface: int, x: Array) -> Array:
        n = np.zeros_like(x)
        n[self.bounded[surface // 2]] = 1.0 if surface % 2 else -1.0
        return n


class _Round(Walls):
    """A disk, a ball, or what lies between two concentric circles or spheres, whose smooth boundary is meant."""

    def __init__(self, center: Array, radii: Sequence[float], corners: Array, labels: Array):
        self.center = center[:, None]
        outer, self.surfaces = max(radii), len(radii)
        self.extent = np.full(len(center), 2 * outer)
        self.spheres = [(r, 1.0 if r == outer else -1.0) for r in radii]
        distance = np.linalg.norm(corners[:, 0] - center, axis=1)
        on = [np.abs(distance - r) < 1e-6 * outer for r in radii]
        self.sides = [_labels(corners[o], labels[o]) for o in on]

    def distance(self, x: Array) -> Array:
        r = np.linalg.norm(x - self.center, axis=0)
        return np.stack([sign * (radius - r) for radius, sign in self.spheres])

    def normal(self, surface: int, x: Array) -> Array:
        away = x - self.center
        return self.spheres[surface][1] * away / np.linalg.norm(away, axis=0)


class _Facets(Walls):
    """Any boundary of straight facets: one surface, the nearest facet, found among those with the nearest centres.

    Distances are exact except deep inside, where they may be a tenth too long.
    """

    def __init__(self, corners: Array, normals: Array, labels: Array):
        self.corners, self.normals, self.labels = corners, normals, labels
        centers, self.extent = corners.mean(axis=1), np.ptp(corners, axis=(0, 1))
        self.reach = np.linalg.norm(corners - centers[:, None], axis=2).max()
        self.tree = cKDTree(centers)
        self.near = min(4 if corners.shape[2] == 2 else 24, len(corners))
        self.sides = [lambda x: labels[self.nearest(x)[1]]]

    def nearest(self, x: Array) -> tuple[Array, Array, Array]:
        """Signed distance (n,), number of the nearest facet (n,) and the nearest point on it (n, d)."""
        points, N = x.T, len(self.labels)
        distances, candidates = self.tree.query(points, np.arange(1, self.near + 1))
        found = self._among(points, candidates)
        # a facet whose centre is farther away than all candidates' is itself at least that minus its size away
        unsure = np.flatnonzero((0.9 * np.abs(found[0]) > distances[:, -1] - self.reach) & (self.near < N))
        for some in np.array_split(unsure, -(-len(unsure) * N // 1_000_000)) if len(unsure) else ():
            exact = self._among(points[some], np.broadcast_to(np.arange(N), (len(some), N)))
            for old, new in zip(found, exact, strict=True):
                old[some] = new
        return found

    def _among(self, points: Array, candidates: Array) -> tuple[Array, Array, Array]:
        closest = closest_points(points[:, None], self.corners[candidates])
        away = points[:, None] - closest
        distance, height = np.sqrt(_dot(away, away)), _dot(away, self.normals[candidates])
        # at a common vertex the facet that is seen most directly tells the side
        tied = distance <= distance.min(axis=1, keepdims=True) + 1e-12 * self.reach
        best = np.where(tied, np.abs(height), -1.0).argmax(axis=1)
        row = np.arange(len(points))
        sign = np.where(height[row, best] > 0, -1.0, 1.0)
        return sign * distance[row, best], candidates[row, best], closest[row, best]

    def distance(self, x: Array) -> Array:
        return self.nearest(x)[0][None]

    def normal(self, surface: int, x: Array) -> Array:
        # from the nearest point on the boundary to x, or the facet's where x is on it
        signed, facet, closest = self.nearest(x)
        far = np.abs(signed) > 1e-9 * self.reach
        away = (closest.T - x) / np.where(far, signed, 1.0)
        return np.where(far, away, self.normals[facet].T)


def closest_points(x: Array, corners: Array) -> Array:
    """Nearest points on segments (..., 2, 2) or triangles (..., 3, 3) to points (..., d)."""
    if corners.shape[-1] == 2:
        return _on_segment(x, corners[..., 0, :], corners[..., 1, :])
    a, b, c = np.moveaxis(corners, -2, 0)
    u, v, w = b - a, c - a, x - a
    uu, uv, vv, wu, wv = (_dot(p, q) for p, q in ((u, u), (u, v), (v, v), (w, u), (w, v)))
    det = uu * vv - uv * uv
    s, t = (vv * wu - uv * wv) / det, (uu * wv - uv * wu) / det
    inside = ((s >= 0) & (t >= 0) & (s + t <= 1))[..., None]
    edges = np.stack([_on_segment(x, p, q) for p, q in ((a, b), (b, c), (c, a))])
    best = np.linalg.norm(edges - x, axis=-1).argmin(axis=0)
    edge = np.take_along_axis(edges, best[None, ..., None], axis=0)[0]
    return np.where(inside, a + s[..., None] * u + t[..., None] * v, edge)


def _dot(a: Array, b: Array) -> Array:
    return np.einsum("...i,...i->...", a, b)


def _on_segment(x: Array, a: Array, b: Array) -> Array:
    along = b - a
    t = _dot(x - a, along) / _dot(along, along)
    return a + np.clip(t, 0.0, 1.0)[..., None] * along


def walls_of(domain: Domain, absorbing: Sequence[str]) -> Walls:
    """The boundary of a domain, which may be curved where it is circles or spheres, on every rank (collective)."""
    boundary, comm, dim = domain.boundary, domain.comm, domain.dim
    labels = np.full(len(boundary.facets), REFLECTING)
    for k, name in reversed(list(enumerate(absorbing))):
        labels[np.searchsorted(boundary.facets, domain.facets(name))] = k
    cells = domain.mesh.geometry.x[_compat.geometry_dofmap(domain.mesh)[boundary.cells][:, : dim + 1]][:, :, :dim]
    gathered = [np.concatenate(comm.allgather(a)) for a in (boundary.corners, cells.mean(axis=1), labels)]
    corners, inner, labels = gathered
    if domain.periods is not None:
        x = domain.mesh.geometry.x[:, :dim].T
        ends = (np.array([extreme(comm, row) for row in x]) for extreme in (smallest, largest))
        return _Box(*ends, corners, labels, domain.periods)  # type: ignore[call-arg]
    low, high = corners.min(axis=(0, 1)), corners.max(axis=(0, 1))
    tolerance = 1e-9 * (high - low).max()
    if np.any([(np.abs(corners - end) < tolerance).all(axis=1).any(axis=1) for end in (low, high)], axis=0).all():
        return _Box(low, high, corners, labels)
    if _compat.coordinate_map(domain.mesh).degree > 1:
        return _Round(*_spheres(domain, corners), corners, labels)
    edges = np.moveaxis(corners[:, 1:] - corners[:, :1], 1, 0)
    normals = np.cross(*edges) if dim == 3 else np.stack((edges[0, :, 1], -edges[0, :, 0]), axis=1)
    outward = np.sign(np.sum(normals * (corners[:, 0] - inner), axis=1))
    return _Facets(corners, normals * (outward / np.linalg.norm(normals, axis=1))[:, None], labels)


def _spheres(domain: Domain, corners: Array) -> tuple[Array, list[float]]:
    """Centre and radii of one or two concentric circles or spheres through the boundary's vertices (collective)."""
    boundary, comm = domain.boundary, domain.comm
    everything = corners.reshape(-1, domain.dim)
    parts = [boundary.corners[np.searchsorted(boundary.facets, domain.facets(p))] for p in domain.parts]
    size = np.ptp(everything, axis=0).max()
    for x in (everything, *(np.concatenate(comm.allgather(p)).reshape(-1, domain.dim) for p in parts)):
        matrix = np.column_stack((2 * x, np.ones(len(x))))
        center = np.linalg.lstsq(matrix, (x**2).sum(axis=1), rcond=None)[0][:-1]
        distance = np.linalg.norm(everything - center, axis=1)
        radii = [float(distance.min()), float(distance.max())]
        if radii[1] - radii[0] < 1e-6 * size:
            return center, [radii[1]]
        if np.minimum(np.abs(distance - radii[0]), np.abs(distance - radii[1])).max() < 1e-6 * size:
            return center, radii
    raise ValueError(
        "paths need a boundary of straight facets, or one or two concentric circles or spheres; this mesh has other "
        "curved cells. Give domain.straightened()."
    )
