"""Checked arguments of the constructors of domains."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ._arrays import Array


def check_finite(where: str, **given: Sequence[float]) -> dict[str, list[float]]:
    """The given numbers as floats, all of them finite."""
    for name, values in given.items():
        try:
            finite = bool(np.isfinite(np.asarray(values, dtype=np.float64)).all())
        except (TypeError, ValueError):
            finite = False
        if not finite:
            raise ValueError(f"{where}: {name} is {values}; finite numbers were expected.")
    return {name: [float(v) for v in values] for name, values in given.items()}


def check_box(
    kind: str, low: Sequence[float], high: Sequence[float], n: Sequence[int]
) -> tuple[list[float], list[float], list[int]]:
    """Corners and numbers of cells of a box, checked."""
    where, dim = f"Domain.{kind}", {"interval": 1, "rectangle": 2, "box": 3}[kind]
    for what, values in (("lower corner", low), ("upper corner", high), ("n", n)):
        if np.shape(values) != (dim,):
            raise ValueError(f"{where}: the {what} is {values!r}; {dim} entries were expected.")
    x = check_finite(where, low=low, high=high, n=n)
    if any(a >= b for a, b in zip(low, high, strict=True)):
        ends = f"[{low[0]}, {high[0]}]" if dim == 1 else f"corners {tuple(low)} and {tuple(high)}"
        raise ValueError(f"{where}: the box is {ends}; lower ends below the upper ones were expected.")
    if any(k < 1 or k != int(k) for k in n):
        raise ValueError(f"{where}: n is {n[0] if dim == 1 else tuple(n)}; positive integers were expected.")
    return x["low"], x["high"], [int(k) for k in n]


def check_round(
    kind: str, dim: int, center: Sequence[float], radii: Sequence[float], h: float, order: int
) -> tuple[list[float], list[float]]:
    """Center and radii of a disk, ball or annulus, checked."""
    where = f"Domain.{kind}"
    if len(center) != dim:
        raise ValueError(f"{where}: center is {center}; {dim} coordinates were expected.")
    values = check_finite(where, center=center, radius=radii, h=[h])
    if h <= 0 or radii[0] <= 0:
        raise ValueError(f"{where}: radii are {radii} and h is {h}; positive numbers were expected.")
    if len(radii) == 2 and radii[0] >= radii[1]:
        raise ValueError(f"{where}: r_inner is {radii[0]}, r_outer {radii[1]}; a smaller r_inner was expected.")
    if order not in (1, 2, 3):
        raise ValueError(f"{where}: order is {order}; 1, 2 or 3 was expected.")
    return values["center"], values["radius"]


def check_polygon(
    vertices: npt.ArrayLike, h: float, edges: Mapping[str, Sequence[int]] | None
) -> tuple[npt.NDArray[np.float64], dict[str, list[int]]]:
    """Corners of a polygon and the edges of its parts, checked; edges without a name form the part "wall"."""
    corners = np.asarray(vertices, dtype=float)
    if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3 or not np.isfinite(corners).all():
        raise ValueError(
            f"Domain.polygon: vertices has shape {corners.shape}; (n, 2) with n >= 3 was expected, all finite."
        )
    if not np.isfinite(h) or h <= 0:
        raise ValueError(f"Domain.polygon: h is {h}; a positive number was expected.")
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
    for i in range(n - 1):  # against all later edges at once
        j = np.arange(i + 1, n)
        c, d, after, before = a[j], b[j], j == i + 1, (j + 1) % n == i
        # the common corner of neighbours does not count
        near = [
            (_distance(a[i], c, d), before),
            (_distance(b[i], c, d), after),
            (_distance(c, a[i], b[i]), after),
            (_distance(d, a[i], b[i]), before),
        ]
        touch = np.any([(distance <= 1e-12 * size) & ~common for distance, common in near], axis=0)
        crossed = (_side(a[i], b[i], c) * _side(a[i], b[i], d) < 0) & (_side(c, d, a[i]) * _side(c, d, b[i]) < 0)
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
