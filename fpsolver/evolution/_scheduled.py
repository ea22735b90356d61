"""Evolutions, also of numbers that follow a schedule: M v' = G(t) v and its dual.

Without a schedule there is one exponential.  Where the scheduled numbers are constant each piece is one, exact but for
the tolerance.  Where they vary smoothly, steps of adaptive length are taken (:mod:`._rosenbrock`).  Mass is conserved
to rounding, and what leaves is counted by the same formula.  The dual equation runs through the schedule in reverse
with transposed matrices.

G(t) is assembled for the numbers of that time; where it is affine in the only number scheduled, as of most processes in
learning rate or temperature, two matrices are combined instead.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from petsc4py import PETSc

import numpy as np

from .._errors import NotConverged
from .._petsc import Options, direct_preset
from ..discretisation.fluxes import basis_integrals
from ..discretisation.generator import Generator
from ._expm import LEAST, Snapshot, Stats
from ._krylov import dots
from ._moments import Moments, functionals, propagator
from ._rosenbrock import Point, Rosenbrock
from .schedule import Piece, pieces

FIRST = 1 / 8  # of a piece: the first step tried
SHARE = 1 / 8  # of the reserve: what a step may spend of it
TRIALS = 30  # attempts at one step until giving up


@dataclass
class State:
    """How far an evolution has come; the vectors belong to it."""

    start: PETSc.Vec  #: vector at time 0
    v: PETSc.Vec  #: vector at time ``t``
    integrals: np.ndarray  #: of the functionals over (0, t)
    t: float = 0.0
    spent: float = 0.0  #: estimated error so far

    @classmethod
    def at_start(cls, v0: PETSc.Vec, parts: Sequence[str]) -> "State":
        """At time 0, with an integral for all absorbing parts together and for each of them; ``v0`` is taken over."""
        return cls(v0, v0.copy(), np.zeros(len(parts) + 1 if parts else 0))

    def advance(self, t: float, v: PETSc.Vec, integrals: np.ndarray) -> None:
        """Go to time ``t``; ``v`` is taken over."""
        self.v.destroy()
        self.t, self.v, self.integrals = t, v, integrals


class Equation:
    """M v' = G(t) v, or for the dual equation M v' = G(T − t)ᵀ v for each output T (collective).

    With the outflux in all and through each of some absorbing parts.
    """

    def __init__(
        self, gen: Generator, schedule: Mapping[str, Any] | None, parts: Sequence[str], options: Options | None
    ):
        self.gen, self._scheduled = gen, schedule is not None
        self.pieces = [Piece(0.0, np.inf, {})] if schedule is None else pieces(gen, schedule)
        self.options = {**gen.options, **(options or {})}
        self._moments = Moments(gen, parts, self.options)
        self._stats, self._scale = Stats(), 1.0

    def run(self, state: State, times: Sequence[float], tol: float, transpose: bool) -> Iterator[Snapshot]:
        """Yield the solution at each time, with ``transpose`` of the dual equation."""
        if transpose and self._scheduled:
            yield from self._dual(state, times, tol)
            return
        begin, pending = state.t, list(times)
        self._scale = abs(state.start.dot(basis_integrals(self.gen))) or 1.0  # errors of integrals are relative to it
        legs = [p for p in self.pieces if p.end > begin and p.begin < max([*pending, begin])] or self.pieces[-1:]
        share = (max(tol - state.spent, LEAST) if state.spent else tol) / len(legs)  # too small a tol is told later
        for piece in legs:
            here = [t for t in pending if t <= piece.end or piece is legs[-1]]
            pending = pending[len(here) :]
            end = piece.end if pending else max([*here, state.t])
            yield from self._leg(state, _Leg(piece.at, piece.constant, here, end, share, transpose))

    def _dual(self, state: State, times: Sequence[float], tol: float) -> Iterator[Snapshot]:
        """Yield u for each time T: the pieces before T in reversed order, with transposed matrices."""
        for T in times:
            legs = [p for p in self.pieces if p.begin < T][::-1]
            start = State.at_start(state.start.copy(), [])
            self._stats.error = 0.0
            for piece in legs:
                at = lambda s, piece=piece, T=T: piece.at(T - s)  # noqa: E731
                leg = _Leg(at, piece.constant, [], T - piece.begin, tol / len(legs), True)
                list(self._leg(start, leg))  # no output is asked for
            yield Snapshot(T, start.v, np.zeros(0), np.zeros(0))

    @property
    def error(self) -> float:
        """Estimated error of what this object has computed; of the last time for the dual equation."""
        return self._stats.error

    def work(self) -> dict[str, Any]:
        """What it cost, for answers."""
        return self._stats.work() | ({"assemblies": self._moments.assemblies} if self._scheduled else {})

    def signature(self, horizon: float) -> dict[str, Any]:
        """What tells this equation from others with the same generator, up to ``horizon``."""
        rows = [_sampled(p, horizon) for p in self.pieces if p.begin <= horizon]
        return {"schedule": rows} if self._scheduled else {}

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
        gen = self._moments.generator(values)
        core, flux = propagator(gen, self.options), functionals(gen, self._moments.parts)
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
            done, mine = core.stats, self._stats
            mine.solves, mine.factorisations = mine.solves + done.solves, mine.factorisations + done.factorisations
            mine.steps, mine.basis = mine.steps + done.steps, max(mine.basis, done.basis)

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
                    d = Point(0.0, step.begin.v - step.end.v, step.begin.integrals - step.end.integrals)
                    speed = self._size(d, step.end) / h
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
        norms = [float(np.sqrt(abs(v.dot(self.gen.M * v)))) for v in (d.v, b.v)]
        errors = abs(d.integrals) / np.maximum(abs(b.integrals), self._scale)
        return float(self.gen.domain.comm.bcast(max([norms[0] / norms[1] if norms[1] > 0 else norms[0], *errors])))

    def _failure(self, t: float, end: float, tol: float) -> NotConverged:
        advice = (
            f"It came to t = {t:.6g} with time_rtol = {tol:.1e}. Where the schedule jumps or bends, begin a new piece: "
            "[(0, f), (10, g)]."
        )
        done, until = self._stats, f"evolution to t = {end:.6g}"
        return NotConverged(until, "DIVERGED_STEP_SIZE", done.solves, done.error, "fp_evolve_", advice)

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
