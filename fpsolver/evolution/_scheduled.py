"""Evolutions whose numbers follow a schedule: M v' = G(t) v and its dual.

Where the scheduled numbers are constant each piece is one exponential, exact but for the tolerance.  Where they vary
smoothly,

    v(t + h) ≈ exp(h(a₂A₁ + a₁A₂)) exp(h(a₁A₁ + a₂A₂)) v(t),    A_i = M⁻¹G(t + c_i h),

with a = 1/4 ± √3/6 and c = 1/2 ∓ √3/6: of order four and free of commutators (S. Blanes, P. C. Moan, Appl. Numer. Math.
56 (2006) 1519).  A step is compared with its two halves.  Mass is conserved to rounding, and the scheme for reversed
time and transposed matrices is the dual one.

Chosen over PETSc's TS because constant pieces cost one factorisation each and smooth ones fewer assembled matrices:
rosw takes 0.8 to 3 times as long at equal error, though fewer solves (benchmarks/schedules.py).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from petsc4py import PETSc

import numpy as np

from .._errors import NotConverged
from .._petsc import Options
from ..discretisation.generator import Generator
from ._expm import LEAST, Propagator, Snapshot, Stats
from ._integrate import State, functionals, initial_mass, work_of
from ._krylov import dots
from .schedule import Piece, pieces

KEPT = 4  # generators with a propagator kept: cyclic schedules alternate between few
GAUSS = 0.5 - np.sqrt(3) / 6, 0.5 + np.sqrt(3) / 6
WEIGHTS = 0.25 + np.sqrt(3) / 6, 0.25 - np.sqrt(3) / 6
FIRST = 1 / 8  # of a piece: the first step tried
SHARE = 1 / 16  # of the tolerance that is left: the least a step may spend
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
        self.gen, self.parts = gen, list(parts)
        self.pieces, self._leaks = pieces(gen, schedule), bool(gen.absorbing)
        self.options = {**gen.options, **(options or {})}
        self._stats, self._assemblies, self._scale = Stats(), 0, 1.0
        self._kept: dict[tuple[float, ...], tuple[Generator, Propagator]] = {}

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
        return {**work_of(self._stats), "assemblies": self._assemblies}

    def signature(self, horizon: float) -> dict[str, Any]:
        """Pieces and samples of the schedule up to ``horizon``."""
        return {"schedule": [_sampled(p, horizon) for p in self.pieces if p.begin <= horizon]}

    def _leg(self, state: State, leg: "_Leg") -> Iterator[Snapshot]:
        """Advance to ``end``, yielding the outputs on the way, which include the end where it is one."""
        while leg.outputs and leg.outputs[0] <= state.t:
            yield self._snapshot(leg.outputs[0], _Point(state.t, state.v, state.integrals), leg.at)
            leg = leg._replace(outputs=leg.outputs[1:])
        if leg.end > state.t:
            yield from (self._frozen_leg if leg.constant else self._smooth_leg)(state, leg)

    def _frozen_leg(self, state: State, leg: "_Leg") -> Iterator[Snapshot]:
        """One exponential for all times."""
        gen, core = self._frozen(leg.at(state.t))
        flux = functionals(gen, self.parts)
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
        """Steps of adaptive length, each compared with its two halves."""
        at, end = leg.at, leg.end
        h, trials, before, speed = FIRST * (end - state.t), 0, self._stats.error, np.inf
        while state.t < end:
            # equal parts leave no crumb before the end
            h = (end - state.t) / float(np.ceil((end - state.t) / h - 0.01))
            # rough data, whose errors decay, make the first steps expensive: they may spend more than their time
            share = max(SHARE, h / (end - state.t))
            allowed = share * max(leg.tol - (self._stats.error - before), LEAST) / 2
            inner = max(allowed / 10, LEAST)
            if _mismatch(at, state.t, h) * min(1.0, 2 * speed * h) > allowed:  # a jump that the nodes do not see
                h /= 2
                if state.t + 1e-3 * h <= state.t:
                    raise self._failure(state.t, end, leg.tol)
                continue
            begin = _Point(state.t, state.v, state.integrals)
            whole = self._step(begin, h, inner, leg)
            middle = self._step(begin, h / 2, inner, leg)
            halves = self._step(middle, h / 2, inner, leg)
            error = self._distance(whole, halves) / 15
            whole.v.destroy()
            if error <= allowed:
                trials = 0
                self._stats.steps += 1
                self._stats.error += error + 4 * inner
                for t in (t for t in leg.outputs if begin.t < t < min(begin.t + h, end)):
                    near = begin if t <= middle.t else middle
                    found = self._step(near, t - near.t, inner, leg)
                    yield self._snapshot(t, found, at)
                    found.v.destroy()
                speed = self._distance(begin, halves) / h
                last = end - state.t < 1.5 * h  # its end is a time that was asked for, to the last digit
                state.advance(end if last else begin.t + h, halves.v, halves.integrals)
            else:
                trials += 1
                halves.v.destroy()
            middle.v.destroy()
            if trials > TRIALS:
                raise self._failure(state.t, end, leg.tol)
            h *= min(4.0, max(0.1, 0.9 * (allowed / max(error, 1e-4 * allowed)) ** 0.25))
        if leg.outputs[-1:] == [end]:
            yield self._snapshot(end, _Point(end, state.v, state.integrals), at)

    def _step(self, begin: "_Point", h: float, tol: float, leg: "_Leg") -> "_Point":
        """One commutator-free step."""
        gens = [self._frozen(leg.at(begin.t + c * h))[0] for c in GAUSS]
        flux = [functionals(g, self.parts) for g in gens]
        v, integrals = begin.v, begin.integrals
        for a, b in (WEIGHTS, WEIGHTS[::-1]):
            G = gens[0].G.copy()
            G.scale(2 * a)
            G.axpy(2 * b, gens[1].G, PETSc.Mat.Structure.SAME_NONZERO_PATTERN)
            mixed = [first.copy() for first in flux[0]]
            for vector, second in zip(mixed, flux[1], strict=True):
                vector.axpby(2 * b, 2 * a, second)
            core = Propagator(self.gen.M, G, dim=self.gen.domain.dim, options=self.options, leaks=self._leaks)
            try:
                (snapshot,) = core.run(v, [h / 2], tol, leg.transpose, mixed, [self._scale] * len(mixed))
            finally:
                self._account(core.stats)
                core.destroy()
                for item in (G, *mixed, *([] if v is begin.v else [v])):
                    item.destroy()
            v, integrals = snapshot.vector, integrals + snapshot.integrals
        return _Point(begin.t + h, v, integrals)

    def _frozen(self, values: dict[str, float]) -> tuple[Generator, Propagator]:
        """Generator and propagator with these numbers."""
        key = tuple(values.values())
        if key not in self._kept:
            while len(self._kept) >= KEPT:
                self._drop(next(iter(self._kept)))
            other = self.gen.replace(**values)
            self._assemblies += 1
            core = Propagator(self.gen.M, other.G, dim=self.gen.domain.dim, options=self.options, leaks=self._leaks)
            self._kept[key] = other, core
        self._kept[key] = self._kept.pop(key)  # most recently used last
        return self._kept[key]

    def _snapshot(self, t: float, point: "_Point", at: Callable[[float], dict[str, float]]) -> Snapshot:
        values = dots(point.v, functionals(self._frozen(at(t))[0], self.parts)) if self.parts else np.zeros(0)
        return Snapshot(t, point.v.copy(), point.integrals, values)

    def _distance(self, a: "_Point", b: "_Point") -> float:
        """M-norm of a − b relative to b, or the difference of an integral where it is larger; same on all ranks."""
        d, work = a.v.copy(), b.v.duplicate()
        d.axpy(-1.0, b.v)
        self.gen.M.mult(d, work)
        difference = float(np.sqrt(abs(d.dot(work))))
        self.gen.M.mult(b.v, work)
        size = float(np.sqrt(abs(b.v.dot(work))))
        for vector in (d, work):
            vector.destroy()
        errors = abs(a.integrals - b.integrals) / np.maximum(abs(b.integrals), self._scale)
        return float(self.gen.domain.comm.bcast(max([difference / size if size > 0 else difference, *errors])))

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

    def _drop(self, key: tuple[float, ...]) -> None:
        gen, core = self._kept.pop(key)
        core.destroy()
        gen.destroy()

    def destroy(self) -> None:
        """Free matrices and factorisations (collective)."""
        for key in list(self._kept):
            self._drop(key)


class _Leg(NamedTuple):
    """A stretch of one piece up to ``end``: its outputs in order, the last maybe at its end, and its tolerance."""

    at: Callable[[float], dict[str, float]]
    constant: bool
    outputs: list[float]
    end: float
    tol: float
    transpose: bool


class _Point(NamedTuple):
    """A vector on the way, and the integrals of the functionals until then."""

    t: float
    v: PETSc.Vec
    integrals: np.ndarray


def _mismatch(at: Callable[[float], dict[str, float]], t: float, h: float) -> float:
    """Relative error of the numbers' integrals over a step, and of their moments, from the nodes of its halves."""

    def integrals(nodes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        s = np.concatenate([nodes / 2, (nodes + 1) / 2])
        values = np.array([list(at(t + h * float(c)).values()) for c in s])
        w = np.concatenate([weights, weights])[:, None] / 2
        return np.vstack([(w * values).sum(0), (w * (s[:, None] - 0.5) * values).sum(0)]), (w * abs(values)).sum(0)

    used, _ = integrals(np.array(GAUSS), np.full(2, 0.5))
    x, w = np.polynomial.legendre.leggauss(7)
    better, size = integrals((1 + x) / 2, w / 2)
    return float((abs(used - better).max(axis=0) / np.maximum(size, 1e-300)).max())


def _sampled(piece: Piece, horizon: float) -> dict[str, list[float]]:
    """The numbers at three times of a piece, with its beginning: callables cannot be compared."""
    end = min(piece.end, horizon)
    rows = [piece.at(piece.begin + c * (end - piece.begin)) for c in ((0.0,) if piece.constant else (0.0, 0.3, 0.9))]
    return {"begin": [piece.begin], **{name: [row[name] for row in rows] for name in piece.values}}
