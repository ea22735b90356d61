"""Many paths at once: random numbers in reproducible blocks, steps of the process, what happens at the walls."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import ndtri

from ._walls import Walls

Array = np.ndarray[Any, Any]
BLOCK = 1024
"""Paths that share a stream of random numbers, whatever the number of ranks."""
BRIDGE_REACH = 3.8
"""In standard deviations of a step: with both ends farther from a wall, it was met with probability below 1e-12."""


class Draws:
    """Random numbers for paths in blocks: one counter-based stream (Philox) per block of paths.

    Args:
        seed: of the whole ensemble.
        blocks: numbers of the blocks.
        block: place in ``blocks`` of each path, in increasing order.
    """

    def __init__(self, seed: int, blocks: Sequence[int], block: Array):
        streams = [np.random.SeedSequence(seed, spawn_key=(b,)) for b in blocks]
        self.streams = [np.random.Generator(np.random.Philox(s)) for s in streams]
        self.keep(block)

    def keep(self, block: Array) -> None:
        """Draw for these paths from now on."""
        self.block, self.counts = block, np.bincount(block, minlength=len(self.streams))

    def _each(self, draw: Callable[[np.random.Generator, int], Array], counts: Array | None = None) -> Array:
        counts = self.counts if counts is None else counts
        parts = [draw(self.streams[b], int(counts[b])) for b in np.flatnonzero(counts)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def normal(self, rows: int) -> Array:
        """Standard normal numbers, shape (rows, n)."""
        return self._each(lambda stream, n: stream.standard_normal((rows, n)))

    def uniform(self, rows: int, some: Array) -> Array:
        """Numbers in (0, 1) for some of the paths, shape (rows, len(some))."""
        counts = np.bincount(self.block[some], minlength=len(self.streams))
        return self._each(lambda stream, n: 1.0 - stream.random((rows, n)), counts)

    def samples(self, N: int, B: int, replacement: bool) -> Array:
        """Indices of the samples of a batch for each path, shape (B, n)."""
        if replacement or B == 1:
            return self._each(lambda stream, n: stream.integers(N, size=(B, n)))
        if B == N:
            return np.broadcast_to(np.arange(N)[:, None], (N, len(self.block)))
        return self._each(lambda stream, n: stream.random((N, n)).argpartition(B, axis=0)[:B])


@dataclass
class Swarm:
    """The paths of some blocks that have not left yet, and what is known of all of them.

    Attributes:
        x: positions, shape (d, n).
        ids: their numbers within the swarm, shape (n,).
        draws: their random numbers.
        slack: how far each is from the boundary at least, shape (n,).
        time, part, point: of the exit, shapes (all,), (all,), (d, all); not a number and -1 before it.
        records: positions at recorded times, shape (times, d, all), not a number after the exit.
        kept, asked: steps that were star-convex, and steps looked at, for each path.
    """

    x: Array
    draws: Draws
    records: Array
    ids: Array = field(init=False)
    slack: Array = field(init=False)
    time: Array = field(init=False)
    part: Array = field(init=False)
    point: Array = field(init=False)
    steps: int = 0

    def __post_init__(self) -> None:
        d, n = self.x.shape
        self.ids, self.slack = np.arange(n), np.zeros(n)
        self.time, self.part, self.point = np.full(n, np.nan), np.full(n, -1), np.full((d, n), np.nan)
        self.kept, self.asked = np.zeros(n), np.zeros(n)

    def move(self, y: Array) -> None:
        """Take new positions, all of them finite."""
        self.steps += y.shape[1]
        if not np.isfinite(y.sum()):
            bad = int(np.flatnonzero(~np.isfinite(y).all(axis=0))[0])
            raise FloatingPointError(
                f"a path is not finite after a step from {tuple(float(c) for c in self.x[:, bad])}: the gradients are "
                "not finite there, or the step is too long for the growth of the drift."
            )
        self.x = y

    def leave(self, who: Array, time: Array, part: Array, point: Array) -> None:
        """Take paths out."""
        if not who.size:
            return
        ids = self.ids[who]
        self.time[ids], self.part[ids], self.point[:, ids] = time, part, point
        stay = np.ones(len(self.ids), dtype=bool)
        stay[who] = False
        self.x, self.ids, self.slack = self.x[:, stay], self.ids[stay], self.slack[stay]
        self.draws.keep(self.draws.block[stay])


@dataclass(frozen=True)
class Meeting:
    """What happened to paths that came near the walls in a step.

    Attributes:
        out: which of them left, shape (m,).
        fraction, part, point: when within the step, through which absorbing part, and where, for all m.
        y: where the others are, reflected, shape (d, m).
        slack: their distance from the boundary, shape (m,).
    """

    out: Array
    fraction: Array
    part: Array
    point: Array
    y: Array
    slack: Array


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
    inside = _reflect(walls, y, spread, ~out & (after < 0).any(axis=0))
    slack = after.min(axis=0) if inside is y else walls.distance(inside).min(axis=0)
    return Meeting(out, fraction, part, point, inside, np.maximum(slack, 0.0))


def _inverse_gaussian(a: Array, b: Array, variance: Array, u: Array, v: Array) -> Array:
    """Inverse Gaussian numbers of mean a/b and shape a²/variance (Michael, Schucany, Haas 1976).

    b = 0 is the limit of infinite mean, a Lévy distribution.
    """
    b = np.maximum(b, 1e-12 * (a + np.sqrt(variance)) + 1e-100)
    w = ndtri(u) ** 2 * variance
    both = w + 2 * a * b + np.sqrt(w * w + 4 * a * b * w)
    small, large = 2 * a * a / np.maximum(both, 1e-300), both / (2 * b * b)
    return np.where(v * (a / b + small) <= a / b, small, large)


def _reflect(walls: Walls, y: Array, spread: Array | None, who: Array) -> Array:
    """Positions mirrored at the walls until they are inside."""
    todo, result = np.flatnonzero(who), y
    for attempt in range(6):
        if not todo.size:
            break
        result = result.copy() if attempt == 0 else result
        for s in range(walls.surfaces):
            depth = -walls.distance(result[:, todo])[s]
            some, depth = todo[depth > 0], depth[depth > 0]
            if not some.size:
                continue
            z = result[:, some]
            n = walls.normal(s, z)
            # after a few mirrors in a corner, the wall itself will do
            length, direction = (2 * depth, _conormal(n, spread, some, depth)) if attempt < 4 else (depth, n)
            result[:, some] = z - length * direction
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


def diffuse(swarm: Swarm, coefficients: Any, walls: Walls | None, t: float, dt: float) -> None:
    """One step of Euler and Maruyama."""
    b, S = coefficients(swarm.x)
    spread = np.sqrt(dt) * S
    change = b * dt + (spread * swarm.draws.normal(S.shape[1])).sum(axis=1)
    x = swarm.x
    swarm.move(x + change)
    if walls is None:
        return
    reach = BRIDGE_REACH * np.sqrt((spread * spread).sum(axis=(0, 1)))
    near = _near(swarm, walls, x, reach)
    if near.size:
        spread = np.broadcast_to(spread, (*spread.shape[:2], x.shape[1]))[:, :, near]
        uniform = swarm.draws.uniform(3 * walls.surfaces, near)
        met = meet(walls, x[:, near], swarm.x[:, near], spread, uniform)
        _finish(swarm, near, met, t + dt * met.fraction[met.out])


def descend(swarm: Swarm, step: Callable[..., Array], walls: Walls | None, t: float, numbers: Sequence[Any]) -> None:
    """One step of the algorithm, at the end of which it is time t; only the ends of steps are watched."""
    x = swarm.x
    y = step(x, *numbers)
    swarm.move(y)
    if walls is None:
        return
    near = _near(swarm, walls, x, 0.0)
    if near.size:
        met = meet(walls, x[:, near], y[:, near], None, None)
        _finish(swarm, near, met, np.full(int(met.out.sum()), t))


def _near(swarm: Swarm, walls: Walls, before: Array, reach: Any) -> Array:
    """Paths that may have come within ``reach`` of a wall at either end of the step."""
    if walls.quick:
        old, swarm.slack = swarm.slack, walls.depth(swarm.x)
        return np.flatnonzero(np.minimum(old, swarm.slack) <= reach)
    if not walls.lipschitz:
        return np.arange(swarm.x.shape[1])
    change = swarm.x - before
    swarm.slack -= np.sqrt((change * change).sum(axis=0))
    return np.flatnonzero(swarm.slack <= reach)


def _finish(swarm: Swarm, near: Array, met: Meeting, time: Array) -> None:
    swarm.x[:, near], swarm.slack[near] = met.y, met.slack
    swarm.leave(near[met.out], time, met.part[met.out], met.point[:, met.out])


def time_steps(times: Sequence[float], horizon: float, step: float) -> Iterator[tuple[float, float, int]]:
    """Steps (begin, length, number of the recorded time at the end or -1) that hit times and horizon exactly."""
    begin = 0.0
    stops = [*((t, i) for i, t in enumerate(times)), (horizon, -1)]
    for stop, index in stops:
        if stop == np.inf:
            break
        count = int(np.ceil((stop - begin) / step - 1e-9))
        for k in range(count):
            yield begin + k * (stop - begin) / count, (stop - begin) / count, index if k == count - 1 else -1
        if count == 0 and index >= 0:
            yield begin, 0.0, index
        begin = max(begin, stop)
    k = 0
    while horizon == np.inf:
        yield begin + k * step, step, -1
        k += 1
