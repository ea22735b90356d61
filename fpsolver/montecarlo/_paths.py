"""Many paths at once: random numbers in reproducible blocks, steps of the process, what happens at the walls."""

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np

from .._answer import place
from ..pointwise.meeting import BRIDGE_REACH, Meeting, land, meet
from ..pointwise.walls import Walls

Array = np.ndarray[Any, Any]
BLOCK = 1024
"""Paths that share a stream of random numbers, whatever the number of ranks."""


class Draws:
    """Random numbers for paths in blocks: one counter-based stream (Philox) per block of paths.

    ``block`` is the place in ``blocks`` of each path, in increasing order; levels have numbers of their own.
    """

    def __init__(self, seed: int, blocks: Sequence[int], block: Array, level: int = 0):
        keys = [(b, level) if level else (b,) for b in blocks]
        streams = [np.random.SeedSequence(seed, spawn_key=key) for key in keys]
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


class Swarm:
    """The paths of some blocks that have not left yet, and what is known of all of them.

    Before an exit its time and point are not a number, its part is -1, and so are records after it.
    """

    def __init__(self, x: Array, draws: Draws, records: int):
        d, n = x.shape
        self.x, self.draws = x, draws  # positions, shape (d, n)
        self.ids, self.slack = np.arange(n), np.zeros(n)  # numbers, and how far each is from the boundary at least
        # of all paths: positions at recorded times, shape (times, d, all), and of the exit time, part and point; where
        # those that diverge were before, and when; whether a wall has mirrored a step of more than half the domain
        self.records = np.full((records, d, n), np.nan)
        self.time, self.part, self.point = np.full(n, np.nan), np.full(n, -1), np.full((d, n), np.nan)
        self.diverged, self.leapt = np.full(n, np.nan), np.zeros(n, dtype=bool)
        self.steps = self.rounds = 0  # of all paths together, and in time

    def move(self, y: Array, t: float) -> Any:
        """Take new positions at time t, take those out that are not finite, and give the index of those that stay."""
        x, self.x, n = self.x, y, y.shape[1]
        first, self.steps = self.steps == 0, self.steps + n
        if np.isfinite(y.sum()) or (finite := np.isfinite(y).all(axis=0)).all():
            return slice(None)
        if first and not finite.any():
            raise ValueError(
                f"simulate: a path is not finite after a step from {place(x[:, 0])}: the gradients are not finite "
                "there, or the step is too long for the growth of the drift."
            )
        lost = self.ids[~finite]
        self.diverged[lost], self.point[:, lost] = t, x[:, ~finite]
        self._keep(finite)
        return np.flatnonzero(finite)

    def _keep(self, who: Any) -> None:
        self.x, self.ids, self.slack = self.x[:, who], self.ids[who], self.slack[who]
        self.draws.keep(self.draws.block[who])

    def leave(self, who: Array, time: Array, part: Array, point: Array) -> None:
        """Take paths out."""
        ids = self.ids[who]
        self.time[ids], self.part[ids], self.point[:, ids] = time, part, point
        if who.size:
            self._keep(np.delete(np.arange(len(self.ids)), who))


def diffuse(swarm: Swarm, coefficients: Any, walls: Walls | None, t: float, dt: float) -> None:
    """One step of Euler and Maruyama."""
    b, S = coefficients(swarm.x)
    spread = np.sqrt(dt) * S
    change = b * dt + (spread * swarm.draws.normal(S.shape[1])).sum(axis=1)
    x = swarm.x
    kept = swarm.move(x + change, t + dt)
    if walls is None or not swarm.ids.size:
        return
    x, spread = x[:, kept], spread[..., kept] if spread.shape[-1] > 1 else spread
    reach = BRIDGE_REACH * np.sqrt((spread * spread).sum(axis=(0, 1)))
    near = _near(swarm, walls, x, reach)
    if near.size:
        spread = np.broadcast_to(spread, (*spread.shape[:2], x.shape[1]))[:, :, near]
        uniform = swarm.draws.uniform(3 * walls.surfaces, near)
        met = meet(walls, x[:, near], swarm.x[:, near], spread, uniform)
        _finish(swarm, near, met, t + dt * met.fraction[met.out])


def descend(swarm: Swarm, step: Callable[..., Array], walls: Walls | None, t: float, drawn: Sequence[Any]) -> None:
    """One step of the algorithm, at the end of which it is time t; see :func:`~fpsolver.pointwise.meeting.land`."""
    x = swarm.x
    x = x[:, swarm.move(step(x, *drawn), t)]
    if walls is None or not swarm.ids.size:
        return
    near = _near(swarm, walls, x, 0.0)
    if near.size:
        met = land(walls, x[:, near], swarm.x[:, near])
        who = near[met.mirrored]
        if who.size:  # through half the domain: no chance of a random walk
            change = np.abs(swarm.x[:, who] - x[:, who])
            swarm.leapt[swarm.ids[who]] |= (change > walls.extent[:, None] / 2).any(axis=0)
        _finish(swarm, near, met, np.full(int(met.out.sum()), t))


def _near(swarm: Swarm, walls: Walls, before: Array, reach: Any) -> Array:
    """Paths that may have come within ``reach`` of a wall at either end of the step."""
    if walls.quick:
        old, swarm.slack = swarm.slack, walls.depth(swarm.x)
        return np.flatnonzero(np.minimum(old, swarm.slack) <= reach)
    change = swarm.x - before
    swarm.slack -= np.sqrt((change * change).sum(axis=0))
    return np.flatnonzero(swarm.slack <= reach)


def _finish(swarm: Swarm, near: Array, met: Meeting, time: Array) -> None:
    swarm.x[:, near], swarm.slack[near] = met.y, met.slack
    swarm.leave(near[met.out], time, met.part[met.out], met.point[:, met.out])


def time_steps(times: Sequence[float], horizon: float, step: float) -> Iterator[tuple[float, float, int]]:
    """Steps (begin, length, number of the recorded time at the end or -1) that hit times and horizon exactly."""
    begin = 0.0
    for index, stop in [*enumerate(times), (-1, horizon)]:
        if stop == np.inf:
            yield from ((begin + k * step, step, -1) for k in count())
        steps = int(np.ceil((stop - begin) / step - 1e-9))
        dt = (stop - begin) / steps if steps > 0 else 0.0
        last = max(steps - 1, 0 if index >= 0 else -1)
        yield from ((begin + k * dt, dt, index if k == last else -1) for k in range(last + 1))
        begin = max(begin, stop)
