"""Evolutions whose numbers follow a schedule: M v' = G(t) v and its dual.

Where the scheduled numbers are constant each piece is one exponential, exact but for the tolerance.  Where they vary
smoothly, steps of adaptive length are taken (:mod:`._rosenbrock`).  Mass is conserved to rounding, and what leaves is
counted by the same formula.  The dual equation runs through the schedule in reverse with transposed matrices.

G(t) is assembled for the numbers of that time; where it is affine in the only number scheduled, as of most processes in
learning rate or temperature, two matrices are combined instead.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._errors import NotConverged
from .._petsc import Options, direct_preset
from ..discretisation.generator import Generator
from ._expm import LEAST, Snapshot, Stats
from ._integrate import State, initial_mass, work_of
from ._krylov import dots
from ._moments import Moments
from ._rosenbrock import Point, Rosenbrock, Step
from .schedule import Piece, pieces

FIRST = 1 / 8  # of a piece: the first step tried
SHARE = 1 / 8  # of the reserve: what a step may spend of it
TRIALS = 30  # attempts at one step until giving up


class Scheduled:
    """M v' = G(t) v, or for the dual equation M v' = G(T − t)ᵀ v for each output T (collective).

    Args:
        gen: generator of the process at any parameters.
        schedule: see :func:`~fpsolver.evolution.schedule.pieces`.
        parts: absorbing parts whose outflux is wanted; the total comes first.
        options: PETSc options without the prefix ``fp_evolve_``.
    """

    def __init__(self, gen: Generator, schedule: Mapping[str, Any], parts: Sequence[str], options: Options | None):
        self.gen, self.pieces = gen, pieces(gen, schedule)
        self.options = {**gen.options, **(options or {})}
        self._moments = Moments(gen, parts, self.options)
        self._stats, self._scale = Stats(), 1.0

    def forward(self, state: State, times: Sequence[float], tol: float) -> Iterator[Snapshot]:
        """Yield the solution at each time."""
        self._scale, begin, pending = initial_mass(self.gen, state), state.t, list(times)
        legs = [p for p in self.pieces if p.end > begin and p.begin < max([*pending, begin])] or self.pieces[-1:]
        share = max(tol - state.spent, LEAST) / len(legs)
        for piece in legs:
            here = [t for t in pending if t <= piece.end or piece is legs[-1]]
            pending = pending[len(here) :]
            end = piece.end if pending else max([*here, state.t])
            yield from self._leg(state, _Leg(piece.at, piece.constant, here, end, share, False))

    def dual(self, state: State, times: Sequence[float], tol: float) -> Iterator[Snapshot]:
        """Yield u for each time T: the pieces before T in reversed order, with transposed matrices."""
        self._scale = 1.0
        for T in times:
            legs = [p for p in self.pieces if p.begin < T][::-1]
            start = State.at_start(state.start.copy(), [])
            self._stats.error = 0.0
            try:
                for piece in legs:
                    at = lambda s, piece=piece, T=T: piece.at(T - s)  # noqa: E731
                    leg = _Leg(at, piece.constant, [], T - piece.begin, tol / len(legs), True)
                    for _ in self._leg(start, leg):
                        raise AssertionError("no output was asked for")
                yield Snapshot(T, start.v.copy(), np.zeros(0), np.zeros(0))
            finally:
                start.destroy()

    @property
    def error(self) -> float:
        """Estimated error of what this object has computed; of the last time for the dual equation."""
        return self._stats.error

    def work(self) -> dict[str, Any]:
        """What it cost, for answers."""
        return {**work_of(self._stats), "assemblies": self._moments.assemblies}

    def signature(self, horizon: float) -> dict[str, Any]:
        """Pieces and samples of the schedule up to ``horizon``."""
        return {"schedule": [_sampled(p, horizon) for p in self.pieces if p.begin <= horizon]}

    def _leg(self, state: State, leg: "_Leg") -> Iterator[Snapshot]:
        """Advance to ``end``, yielding the outputs on the way, which include the end where it is one."""
        while leg.outputs and leg.outputs[0] <= state.t:
            yield self._snapshot(leg.outputs[0], Point(state.t, state.v, state.integrals), leg.at)
            leg = leg._replace(outputs=leg.outputs[1:])
        if leg.end > state.t:
            yield from (self._frozen_leg if leg.constant else self._smooth_leg)(state, leg)

    def _frozen_leg(self, state: State, leg: "_Leg") -> Iterator[Snapshot]:
        """One exponential for all times."""
        values = leg.at(state.t)
        core, flux = self._moments.propagator(values), list(self._moments.frozen(values).flux)
        begin, before, error = state.t, state.integrals, self._stats.error
        stops = leg.outputs if leg.outputs[-1:] == [leg.end] else [*leg.outputs, leg.end]
        core.stats = Stats()
        run = core.run(state.v, [t - begin for t in stops], leg.tol, leg.transpose, flux, [self._scale] * len(flux))
        try:
            for t, snapshot in zip(stops, run, strict=True):
                self._stats.error = error + core.stats.error
                integrals = before + snapshot.integrals
                if t == leg.end:
                    state.advance(leg.end, snapshot.vector.copy(), integrals)
                if t in leg.outputs:
                    yield Snapshot(t, snapshot.vector, integrals, snapshot.values)
                else:
                    snapshot.vector.destroy()
        finally:
            self._account(core.stats)
            self._stats.steps += core.stats.steps

    def _smooth_leg(self, state: State, leg: "_Leg") -> Iterator[Snapshot]:
        """Steps of adaptive length, whatever the outputs."""
        moment, derivative = self._moments.varying(leg.at, state.t, leg.end)
        preset = direct_preset(self.gen.M.comm, self.gen.domain.dim)
        method = Rosenbrock(self.gen.M, moment, derivative, leg.transpose, preset, self.options)
        length, trials, speed, outputs = leg.end - state.t, 0, np.inf, list(leg.outputs)
        # half of the tolerance is spent evenly, the rest on first steps: rough data, whose errors decay, make them dear
        h, reserve = FIRST * length, max(leg.tol, LEAST) / 2
        while state.t < leg.end:
            h = (leg.end - state.t) / float(np.ceil((leg.end - state.t) / h - 0.01))  # no crumb before the end
            even = max(leg.tol, LEAST) / 2 * h / length
            allowed = even + SHARE * reserve
            if _mismatch(leg.at, state.t, h) * min(1.0, 2 * speed * h) > allowed:  # a jump that the nodes do not see
                h /= 2
                if state.t + 1e-3 * h <= state.t:
                    raise self._failure(state.t, leg.end, leg.tol)
                continue
            step = method.step(Point(state.t, state.v, state.integrals), h)
            self._stats.solves, self._stats.factorisations = self._stats.solves + 6, self._stats.factorisations + 1
            error = self._size(step.defect, step.end)
            try:
                if error <= allowed:
                    trials, self._stats.steps = 0, self._stats.steps + 1
                    self._stats.error += error
                    reserve -= max(error - even, 0.0)
                    last = leg.end - state.t < 1.5 * h  # its end is a time that was asked for, to the last digit
                    end = leg.end if last else step.end.t
                    while outputs and outputs[0] < end:
                        inside = step.at(outputs[0])
                        yield self._snapshot(outputs.pop(0), inside, leg.at)
                        inside.v.destroy()
                    speed = self._change(step) / h
                    state.advance(end, step.end.v, step.end.integrals)
                else:
                    trials += 1
                    step.end.v.destroy()
            finally:
                step.destroy_stages()
            if trials > TRIALS:
                raise self._failure(state.t, leg.end, leg.tol)
            h *= min(4.0, max(0.1, 0.9 * (allowed / max(error, 1e-4 * allowed)) ** 0.25))
        if outputs:
            yield self._snapshot(leg.end, Point(leg.end, state.v, state.integrals), leg.at)

    def _snapshot(self, t: float, point: Point, at: Callable[[float], dict[str, float]]) -> Snapshot:
        values = dots(point.v, self._moments.frozen(at(t)).flux)
        return Snapshot(t, point.v.copy(), point.integrals, values)

    def _size(self, d: Point, b: Point) -> float:
        """M-norm of d relative to b, or an integral's share where it is larger; the same on all ranks."""
        norms = []
        work = b.v.duplicate()
        for v in (d.v, b.v):
            self.gen.M.mult(v, work)
            norms.append(float(np.sqrt(abs(v.dot(work)))))
        work.destroy()
        errors = abs(d.integrals) / np.maximum(abs(b.integrals), self._scale)
        return float(self.gen.domain.comm.bcast(max([norms[0] / norms[1] if norms[1] > 0 else norms[0], *errors])))

    def _change(self, step: Step) -> float:
        """Relative size of what a step changes."""
        d = step.begin.v.copy()
        d.axpy(-1.0, step.end.v)
        change = self._size(Point(0.0, d, step.begin.integrals - step.end.integrals), step.end)
        d.destroy()
        return change

    def _account(self, done: Stats) -> None:
        """Add the work of one exponential, but not its error."""
        self._stats.solves += done.solves
        self._stats.factorisations += done.factorisations
        self._stats.basis = max(self._stats.basis, done.basis)

    def _failure(self, t: float, end: float, tol: float) -> NotConverged:
        return NotConverged(
            f"evolution to t = {end:.6g}",
            "DIVERGED_STEP_SIZE",
            self._stats.solves,
            self._stats.error,
            "fp_evolve_",
            f"It came to t = {t:.6g} with time_rtol = {tol:.1e}. Where the schedule jumps or bends, begin a new piece: "
            "[(0, f), (10, g)].",
        )

    def destroy(self) -> None:
        """Free matrices and factorisations (collective)."""
        self._moments.destroy()


class _Leg(NamedTuple):
    """A stretch of one piece up to ``end``: its outputs in order, the last maybe at its end, and its tolerance."""

    at: Callable[[float], dict[str, float]]
    constant: bool
    outputs: list[float]
    end: float
    tol: float
    transpose: bool


def _mismatch(at: Callable[[float], dict[str, float]], t: float, h: float) -> float:
    """Relative error of the numbers' integrals over a step, and of their moments, from the nodes of its halves."""

    def integrals(nodes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        s = np.concatenate([nodes / 2, (nodes + 1) / 2])
        values = np.array([list(at(t + h * float(c)).values()) for c in s])
        w = np.concatenate([weights, weights])[:, None] / 2
        return np.vstack([(w * values).sum(0), (w * (s[:, None] - 0.5) * values).sum(0)]), (w * abs(values)).sum(0)

    used, _ = integrals(np.array([0.5 - np.sqrt(3) / 6, 0.5 + np.sqrt(3) / 6]), np.full(2, 0.5))
    x, w = np.polynomial.legendre.leggauss(7)
    better, size = integrals((1 + x) / 2, w / 2)
    return float((abs(used - better).max(axis=0) / np.maximum(size, 1e-300)).max())


def _sampled(piece: Piece, horizon: float) -> dict[str, list[float]]:
    """The numbers at three times of a piece, with its beginning: callables cannot be compared."""
    end = min(piece.end, horizon)
    rows = [piece.at(piece.begin + c * (end - piece.begin)) for c in ((0.0,) if piece.constant else (0.0, 0.3, 0.9))]
    return {"begin": [piece.begin], **{name: [row[name] for row in rows] for name in piece.values}}
