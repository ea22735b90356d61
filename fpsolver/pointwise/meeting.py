"""What happens to a path whose step meets the boundary: where it leaves, or where it is put back."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri

from .walls import Walls

Array = np.ndarray[Any, Any]
BRIDGE_REACH = 3.8  # standard deviations of a step: of ends farther from a wall, below 1e-12 have met it on the way


@dataclass(frozen=True)
class Meeting:
    """What happened to m paths that came near the walls in a step."""

    out: Array  # which of them left, shape (m,)
    fraction: Array  # when within the step,
    part: Array  # through which absorbing part,
    point: Array  # and where, for all
    y: Array  # where the others are, reflected, shape (d, m)
    slack: Array  # their distance from the boundary, shape (m,)
    mirrored: Array  # numbers of those that a wall put back


def meet(walls: Walls, x: Array, y: Array, spread: Array | None, uniform: Array | None) -> Meeting:
    """Exits and reflections in steps from x to y, shapes (d, m).

    With ``spread`` = √dt S (d, K, m) the path within a step is a Brownian bridge between its ends: it met a plane at
    distances a and b from its ends with probability exp(−2ab/s²), s² = |nᵀ spread|² (Gobet 2000: weak order one for
    exits from smooth domains), and first did so at the fraction θ/(1 + θ) of the step, θ being inverse Gaussian with
    mean a/|b| and shape a²/s².  Where the noise is tangential, this is the crossing of the straight line.  Without
    ``spread`` only ends of steps outside count.  Reflection is in the mirror, in the direction Dn of the no-flux
    condition (Bossy, Gobet, Talay 2004).
    """
    d, m = x.shape
    before, after = np.maximum(walls.distance(x), 0.0), walls.distance(y)
    size = np.zeros(m) if spread is None else (spread * spread).sum(axis=(0, 1))
    possible = (after <= 0) | (before * after < BRIDGE_REACH**2 * size)
    fraction, part, point = np.full(m, np.inf), np.full(m, -1), np.full((d, m), np.nan)
    for s in range(walls.surfaces):
        who = np.flatnonzero(possible[s])
        if not who.size:
            continue
        a, b, p, q = before[s, who], after[s, who], x[:, who], y[:, who]
        hit, variance = b <= 0, np.zeros(len(who))
        if spread is not None and uniform is not None:
            n = walls.normal(s, np.where(a < b, p, q))
            variance = ((n[:, None] * spread[:, :, who]).sum(axis=0) ** 2).sum(axis=0)
            noisy = variance > 0
            exponent = -2 * a * b / np.where(noisy, variance, 1.0)
            hit |= noisy & (np.log(uniform[3 * s, who]) < np.minimum(exponent, 0.0))
        if not hit.any():
            continue
        who, a, b, variance, p, q = who[hit], a[hit], np.abs(b[hit]), variance[hit], p[:, hit], q[:, hit]
        when = a / np.maximum(a + b, 1e-300)
        if uniform is not None:
            theta = _inverse_gaussian(a, b, variance, uniform[3 * s + 1, who], uniform[3 * s + 2, who])
            when = np.where((variance > 0) & (a > 0), theta / (1 + theta), when)
        z = p + when * (q - p)
        z = z + walls.normal(s, z) * walls.distance(z)[s]
        label = walls.label(s, z)
        first = (label >= 0) & (when < fraction[who])
        chosen = who[first]
        fraction[chosen], part[chosen], point[:, chosen] = when[first], label[first], z[:, first]
    out = part >= 0
    if out.any():  # a long last step may have crossed a reflecting wall as well
        found = point[:, out]
        point[:, out] = _reflect(walls, found, None, np.any(walls.distance(found) < 0, axis=0))
    back = ~out & (after < 0).any(axis=0)
    inside = _reflect(walls, y, spread, back)
    slack = (after if inside is y else walls.distance(inside)).min(axis=0, initial=np.inf)
    return Meeting(out, fraction, part, point, inside, np.maximum(slack, 0.0), np.flatnonzero(back))


def land(walls: Walls, x: Array, y: Array) -> Meeting:
    """Exits and reflections of an algorithm, which is seen at the ends of steps only, from x to y, shapes (d, m).

    For paths as for the chain's operator: a step that ends inside stays as it is, wherever it was on the way.  Else
    each surface on whose outer side y is, or on which, is crossed at the point of the straight line that divides it as
    the distances of its ends do, moved onto the surface.  The first such point on an absorbing part is where the step
    leaves, whatever reflecting surface it crossed before.  All others are mirrored in turn along the normals at the
    nearest points, at most four times over; what is still outside then is put onto the wall.
    """
    return meet(walls, x, y, None, None)


def _inverse_gaussian(a: Array, b: Array, variance: Array, u: Array, v: Array) -> Array:
    """Inverse Gaussian numbers of mean a/b, which may be infinite, and shape a²/variance (Michael et al. 1976)."""
    b = np.maximum(b, 1e-12 * (a + np.sqrt(variance)) + 1e-100)
    w = ndtri(u) ** 2 * variance
    both = w + 2 * a * b + np.sqrt(w * w + 4 * a * b * w)
    small, large = 2 * a * a / np.maximum(both, 1e-300), both / (2 * b * b)
    return np.where(v * (a / b + small) <= a / b, small, large)


def _reflect(walls: Walls, y: Array, spread: Array | None, who: Array) -> Array:
    """Positions mirrored at the walls until they are inside."""
    todo, result = np.flatnonzero(who), y.copy() if who.any() else y
    for attempt in range(6):
        if not todo.size:
            break
        for s in range(walls.surfaces):
            depth = -walls.distance(result[:, todo])[s]
            some, depth = todo[depth > 0], depth[depth > 0]
            if not some.size:
                continue
            n = walls.normal(s, result[:, some])
            # after a few mirrors in a corner, the wall itself will do
            length, direction = (2 * depth, _conormal(n, spread, some, depth)) if attempt < 4 else (depth, n)
            result[:, some] -= length * direction
        todo = todo[(walls.distance(result[:, todo]) < 0).any(axis=0)]
    return result


def _conormal(n: Array, spread: Array | None, some: Array, depth: Array) -> Array:
    """Dn / (n·Dn), or the normal where the noise is tangential or cannot have led so deep."""
    if spread is None:
        return n
    S = spread[:, :, some]
    Dn = (S * (n[:, None] * S).sum(axis=0)).sum(axis=1)
    across, size = (n * Dn).sum(axis=0), np.sqrt((S * S).sum(axis=(0, 1)))
    direction = Dn / np.where(across > 0, across, 1.0)
    usable = (across > 0) & (depth * np.linalg.norm(direction, axis=0) < 4 * size)
    return np.where(usable, direction, n)
