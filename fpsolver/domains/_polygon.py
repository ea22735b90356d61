"""Polygons: their corners and named edges, checked."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from .._arguments import check_positive
from ._arrays import Array


def check_polygon(
    vertices: npt.ArrayLike, h: float, edges: Mapping[str, Sequence[int]] | None
) -> tuple[npt.NDArray[np.float64], dict[str, list[int]]]:
    """Corners of a polygon and the edges of its parts, checked; edges without a name form the part "wall"."""
    corners = np.asarray(vertices, dtype=float)
    if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3 or not np.isfinite(corners).all():
        raise ValueError(
            f"Domain.polygon: vertices has shape {corners.shape}; (n, 2) with n >= 3 was expected, all finite."
        )
    check_positive("Domain.polygon: h", h)
    _check_simple(corners)
    parts = {name: [int(i) for i in chosen] for name, chosen in (edges or {}).items()}
    named = [i for chosen in parts.values() for i in chosen]
    if len(set(named)) < len(named) or not set(named) <= set(range(len(corners))):
        raise ValueError(
            f"Domain.polygon: the named edges are {named}; each of 0 to {len(corners) - 1} once at most was expected."
        )
    if rest := sorted(set(range(len(corners))) - set(named)):
        parts["wall"] = [*parts.get("wall", []), *rest]
    return corners, parts


def _check_simple(corners: Array) -> None:
    """Refuse a polygon of which two edges meet elsewhere than in their common corner."""
    n, size = len(corners), np.ptp(corners, axis=0).max()
    a, b = corners, np.roll(corners, -1, axis=0)
    same = np.flatnonzero(np.linalg.norm(b - a, axis=1) <= 1e-12 * size)
    if same.size:
        raise ValueError(
            f"Domain.polygon: vertices {same[0]} and {(same[0] + 1) % n} are the same; each corner was expected once."
        )
    for i in range(n - 1):  # against all later edges at once; the common corner of neighbours does not count
        j = np.arange(i + 1, n)
        after, before = j == i + 1, (j + 1) % n == i
        p, q, r, s = a[i], b[i], a[j], b[j]
        near = [(_distance(p, r, s), before), (_distance(q, r, s), after)]
        near += [(_distance(r, p, q), after), (_distance(s, p, q), before)]
        touch = np.any([(distance <= 1e-12 * size) & ~common for distance, common in near], axis=0)
        crossed = (_side(p, q, r) * _side(p, q, s) < 0) & (_side(r, s, p) * _side(r, s, q) < 0)
        if (meet := touch | (crossed & ~after & ~before)).any():
            raise ValueError(
                f"Domain.polygon: edges {i} and {j[np.argmax(meet)]} cross or touch; the corners of a polygon that "
                "does not meet itself were expected, in order around it."
            )


def _distance(q: Array, p: Array, r: Array) -> Array:
    """Distance of points q from segments p–r."""
    along = r - p
    t = np.clip(((q - p) * along).sum(axis=-1) / (along**2).sum(axis=-1), 0.0, 1.0)
    return np.linalg.norm(q - p - t[..., None] * along, axis=-1)


def _side(p: Array, r: Array, q: Array) -> Array:
    """On which side of the line p–r points q lie."""
    u, v = r - p, q - p
    return np.sign(u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0])
