"""An ensemble of paths with steps of one length: blocks of paths divided among the ranks, followed to their ends."""

import time as clock
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpi4py import MPI

import numpy as np

from .._answer import place
from .._errors import together
from ..evolution.initial import Dirac, Gaussian
from ..pointwise.dynamics import Descent, diffusion
from ..pointwise.native import NotCompilable
from ..pointwise.walls import Walls
from ._paths import BLOCK, Draws, Swarm, descend, diffuse, time_steps
from .ensemble import Ensemble

Array = np.ndarray[Any, Any]
POOL = 64
"""Blocks of paths that are moved together."""
_AT_REST = 1000  # steps
_PATIENCE = 1_000_000  # steps
_GATHERED = ("time", "part", "point", "records", "diverged", "leapt")


@dataclass(frozen=True)
class Plan:
    """What is followed, all but the length of the steps, as of ``simulate``."""

    process: Any
    start: Any
    method: str
    seed: int
    paths: int
    walls: Walls | None
    absorbing: tuple[str, ...]
    comm: MPI.Comm
    dim: int
    record: Array  # times at which positions are recorded
    end: float  # when paths that have not left are stopped
    unit: float | None  # time of one step of the algorithm
    backend: str
    varying: Mapping[str, Callable[[float], float]]  # numbers of the process by time

    def run(self, length: float, level: int = 0) -> Ensemble:
        """Follow all paths with steps of at most this length, with a level's own random numbers (collective)."""
        begin, comm = clock.perf_counter(), self.comm
        blocks = [(b, min(BLOCK, self.paths - b * BLOCK)) for b in range(comm.rank, -(-self.paths // BLOCK), comm.size)]
        swarms: list[Swarm] = []
        with together(comm):
            advance, backend = _mover(self, self.backend)
            for i in range(0, len(blocks), POOL):
                swarms.append(self._begin(blocks[i : i + POOL], level))
                self._follow(swarms[-1], advance, length)
        gathered = [_joined(comm, [getattr(s, name) for s in swarms], blocks, self.paths) for name in _GATHERED]
        exits, parts, points, records, diverged, leapt = gathered
        names = np.array([*self.absorbing, ""])
        moved, rounds = (comm.allreduce(sum(getattr(s, what) for s in swarms)) for what in ("steps", "rounds"))
        stats = {"path_steps": moved, "steps": rounds // comm.size, "step": length, "backend": backend}
        stats |= {"diverged": int(np.isfinite(diverged).sum()), "leapt": int(leapt.sum())}
        stats["seconds"] = clock.perf_counter() - begin
        where = (exits, names[parts.astype(int)], points.T, self.record, records.transpose(0, 2, 1), diverged)
        return Ensemble(self.method, *where, self.end, self.absorbing, self.unit, stats)

    def _follow(self, swarm: Swarm, advance: Any, length: float) -> None:
        rest = last = 0
        for k, (t, dt, index) in enumerate(time_steps([float(t) for t in self.record], self.end, length), 1):
            before, swarm.rounds = swarm.x, k
            if dt > 0:
                with np.errstate(all="ignore"):  # what is not finite is found by the swarm
                    advance(swarm, t, dt)
            if index >= 0:
                swarm.records[index][:, swarm.ids] = swarm.x
            if not swarm.ids.size:
                break
            if self.end < np.inf:
                continue
            rest = rest + 1 if np.array_equal(before, swarm.x) else 0
            last = k if before.shape != swarm.x.shape else last
            if rest >= _AT_REST:
                raise ValueError(
                    f"simulate: {len(swarm.ids)} paths that have not left did not move in the last {rest} steps, one "
                    f"at {place(swarm.x[:, 0])}: drift and noise vanish there, and they would stay for ever. Give "
                    "horizon=."
                )
            if k - last > max(_PATIENCE, 3 * last):
                raise ValueError(
                    f"simulate: {len(swarm.ids)} of {len(swarm.time)} paths that move together have not left by time "
                    f"{t + dt:.4g}, none of them in the last {k - last} steps: this could go on for ever. "
                    "Give horizon= (and mean_exit_time tail='bound'), or ask the equation: fp.mean_exit_time(gen)."
                )

    def _begin(self, blocks: Sequence[tuple[int, int]], level: int) -> Swarm:
        """A swarm of some blocks at the start."""
        d, walls, start = self.dim, self.walls, self.start
        block = np.repeat(np.arange(len(blocks)), [n for _, n in blocks])
        draws = Draws(self.seed, [b for b, _ in blocks], block, level)
        ids = np.concatenate([b * BLOCK + np.arange(n) for b, n in blocks])
        if isinstance(start, Gaussian):
            mean, std = np.array(start.mean)[:, None], np.array(start.std)[:, None]
            x = mean + std * draws.normal(d)
            for _ in range(100):
                outside = np.zeros(len(ids), bool) if walls is None else (walls.distance(x) <= 0).any(axis=0)
                if not outside.any():
                    break
                x = np.where(outside, mean + std * draws.normal(d), x)
        else:
            given = np.asarray(start.point if isinstance(start, Dirac) else start, dtype=float)
            each = given.ndim == 2 or (d == 1 and given.shape == (self.paths,) and self.paths > 1)
            x = given.reshape(self.paths, d)[ids].T.copy() if each else np.tile(given.reshape(d, 1), len(ids))
        if not np.isfinite(x).all():
            raise ValueError("simulate: start is not finite.")
        if walls is not None and (outside := (walls.distance(x) < 0).any(axis=0)).any():
            raise ValueError(f"simulate: the start {place(x[:, outside.argmax()])} lies outside the domain.")
        return Swarm(x, draws, len(self.record))


def _joined(comm: MPI.Comm, mine: list[Array], blocks: Sequence[tuple[int, int]], paths: int) -> Array:
    """Arrays (..., paths) of all ranks' blocks in the order of the paths (collective)."""
    local = np.concatenate(mine, axis=-1) if mine else None
    ids = np.concatenate([b * BLOCK + np.arange(n) for b, n in blocks]) if blocks else np.zeros(0, int)
    pieces = [p for p in comm.allgather((ids, local)) if p[1] is not None]
    result = np.empty((*pieces[0][1].shape[:-1], paths), dtype=pieces[0][1].dtype)
    for where, values in pieces:
        result[..., where] = values
    return result


def _mover(plan: Plan, backend: Any) -> tuple[Callable[[Swarm, float, float], None], str]:
    """What moves paths from a time by a step, and its backend: compiled where that is possible, if that is "auto"."""
    if backend == "auto":
        try:
            return _mover(plan, "c")
        except NotCompilable:
            return _mover(plan, "numpy")
    if plan.method == "sgd":
        algorithm = Descent(plan.process, plan.dim, backend)
        step, draw = algorithm.step, algorithm.draw
        return lambda swarm, t, dt: descend(swarm, step, plan.walls, t + dt, draw(swarm.draws)), backend
    coefficients = diffusion(plan.process, plan.dim, backend, tuple(plan.varying))

    def advance(swarm: Swarm, t: float, dt: float) -> None:
        now = [np.full((1, swarm.x.shape[1]), value(t)) for value in plan.varying.values()]
        diffuse(swarm, lambda x: coefficients(np.concatenate((x, *now)) if now else x), plan.walls, t, dt)

    return advance, backend
