"""Regions as markers of points: balls and polygons; corners and named edges of polygons, checked."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .._arguments import check_numbers, check_positive, is_number
from ._arrays import Array
from ._parts import Marker, as_inside

__all__ = ["as_inside", "check_polygon", "is_ball", "marker_of"]


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
