"""Evolutions, also of numbers that follow a schedule: M v' = G(t) v and its dual.

Without a schedule there is one exponential.  Where the scheduled numbers are constant each piece is one, exact but for
the tolerance.  Where they vary smoothly, steps of adaptive length are taken (:mod:`._rosenbrock`).  Mass is conserved
to rounding, and what leaves is counted by the same formula.  The dual equation runs through the schedule in reverse
with transposed matrices.

G(t) is assembled for the numbers of that time; where it is affine in the only number scheduled, as of most processes in
learning rate or temperature, two matrices are combined instead.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Generator as Generation
from typing import Any, NamedTuple

from petsc4py import PETSc

import numpy as np

from .._errors import NotConverged
from .._petsc import LinearSolver, Options, direct_preset
from ..discretisation.generator import Generator, derived
from ..discretisation.solver import Key, basis_integrals, exit_flux, merged, total_flux
from ._expm import LEAST, Propagator, Stats
from ._krylov import Snapshot
from ._rosenbrock import Frozen, Moment, step
from .schedule import Piece, pieces

KEPT = 8  # generators: cyclic schedules alternate between few, a step of varying numbers uses five and its neighbour's
AFFINE = 1e-12  # largest relative deviation of G from an affine function
SAMPLES = np.linspace(0.0, 1.0, 65)  # of a leg, for the range of its numbers
FIRST = 1 / 8  # of a piece: the first step tried
SHARE = 1 / 8  # of the reserve: what a step may spend of it
TRIALS = 30  # attempts at one step until giving up

Values = dict[str, float]
Iteration = Generation[Snapshot, None, Snapshot]


def propagator(gen: Generator, options: Options | None = None) -> Propagator:
    """The generator's propagator, with the factorisations that earlier evolutions made (collective)."""
    return _propagator(gen, merged(gen, options))


@derived
def _propagator(gen: Generator, options: Key) -> Propagator:
    return Propagator(gen.M, gen.G, dim=gen.domain.dim, options=dict(options), leaks=bool(gen.absorbing))


def functionals(gen: Generator, parts: Sequence[str]) -> list[PETSc.Vec]:
    """Outflux in all and through each absorbing part."""
    return [total_flux(gen), *(exit_flux(gen, part) for part in parts)] if parts else []


class _Leg(NamedTuple):
    """A stretch of one piece up to ``end``: its outputs in order, the last maybe at its end, and its tolerance."""

    at: Callable[[float], Values]
    constant: bool
    outputs: list[float]
    end: float
    tol: float
    transpose: bool


class Equation:
    """M v' = G(t) v with outflux, or M v' = G(T − t)ᵀ v for each output T, of whose last ``stats`` has the error."""

    def __init__(
        self, gen: Generator, schedule: Mapping[str, Any] | None, parts: Sequence[str], options: Options | None
    ):
        self.gen, self._scheduled = gen, schedule is not None
        self.pieces = [Piece(0.0, np.inf, {})] if schedule is None else pieces(gen, schedule)
        self.options = {**gen.options, **(options or {})}
        self._parts, self._assemblies, self._kept = list(parts), 0, dict[tuple[float, ...], Generator]()
        self.stats, self._scale = Stats(), 1.0

    def run(
        self, v0: PETSc.Vec, begin: Snapshot, spent: float, times: Sequence[float], tol: float, transpose: bool
    ) -> Iterator[Snapshot]:
        """Yield the solution at each time, from ``begin`` to which an earlier run came with this error ``spent``."""
        if transpose and self._scheduled:
            yield from self._dual(v0, times, tol)
            return
        pending = list(times)
        self._scale = abs(v0.dot(basis_integrals(self.gen))) or 1.0  # errors of integrals are relative to it
        last = max([*pending, begin.time])
        legs = [p for p in self.pieces if p.end > begin.time and p.begin < last] or self.pieces[-1:]
        share = (max(tol - spent, LEAST) if spent else tol) / len(legs)  # too small a tol is told later
        for piece in legs:
            here = [t for t in pending if t <= piece.end or piece is legs[-1]]
            pending = pending[len(here) :]
            end = piece.end if pending else max([*here, begin.time])
            begin = yield from self._leg(begin, _Leg(piece.at, piece.constant, here, end, share, transpose))

    def _dual(self, v0: PETSc.Vec, times: Sequence[float], tol: float) -> Iterator[Snapshot]:
        """Yield u for each time T: the pieces before T in reversed order, with transposed matrices."""
        for T in times:
            legs = [p for p in self.pieces if p.begin < T][::-1]
            self.stats.error, now = 0.0, Snapshot(0.0, v0, np.zeros(0))
            for piece in legs:
                at = lambda s, piece=piece, T=T: piece.at(T - s)  # noqa: E731
                leg = _Leg(at, piece.constant, [], T - piece.begin, tol / len(legs), True)
                now = yield from self._leg(now, leg)  # nothing: no output is asked for
            yield now._replace(time=T)

    def work(self) -> dict[str, Any]:
        """What it cost, for answers."""
        cost = {name: getattr(self.stats, name) for name in ("solves", "factorisations", "steps", "basis")}
        return cost | {"time_error": self.stats.error} | ({"assemblies": self._assemblies} if self._scheduled else {})

    def signature(self, horizon: float) -> dict[str, Any]:
        """The numbers at three times of each piece until ``horizon``: callables cannot be compared."""
        rows = []
        for p in self.pieces if self._scheduled else []:
            length = min(p.end, horizon) - p.begin
            if length >= 0:
                found = [p.at(p.begin + c * length) for c in ((0.0,) if p.constant else (0.0, 0.3, 0.9))]
                rows.append({"begin": [p.begin], **{name: [row[name] for row in found] for name in p.values}})
        return {"schedule": rows} if self._scheduled else {}

    def _leg(self, now: Snapshot, leg: _Leg) -> Iteration:
        """Advance to ``end``, which is returned, yielding the outputs on the way, maybe with the end."""
        while leg.outputs and leg.outputs[0] <= now.time:
            yield now._replace(time=leg.outputs[0])
            leg = leg._replace(outputs=leg.outputs[1:])
        if leg.end > now.time:
            now = yield from (self._frozen_leg if leg.constant else self._smooth_leg)(now, leg)
        return now

    def _frozen_leg(self, now: Snapshot, leg: _Leg) -> Iteration:
        """One exponential for all times."""
        gen, begin = self._generator(leg.at(now.time)), now
        core, flux = propagator(gen, self.options), functionals(gen, self._parts)
        stops = leg.outputs if leg.outputs[-1:] == [leg.end] else [*leg.outputs, leg.end]
        scales = [self._scale] * len(flux)
        run = core.run(begin.vector, [t - begin.time for t in stops], leg.tol, leg.transpose, flux, scales, self.stats)
        for t, snapshot in zip(stops, run, strict=True):
            now = Snapshot(t, snapshot.vector, begin.integrals + snapshot.integrals)
            if t in leg.outputs:
                yield now
        return now

    def _smooth_leg(self, now: Snapshot, leg: _Leg) -> Iteration:
        """Steps of adaptive length, whatever the outputs."""
        moment = self._varying(leg.at, now.time, leg.end)
        preset = direct_preset(self.gen.M.comm, self.gen.domain.dim)
        factorised = lambda A: LinearSolver(A, "fp_evolve_", "evolution", preset, self.options)  # noqa: E731
        length, trials, speed, outputs = leg.end - now.time, 0, np.inf, list(leg.outputs)
        # half of the tolerance is spent evenly, the rest on first steps: rough data, whose errors decay, make them dear
        h, reserve = FIRST * length, max(leg.tol, LEAST) / 2
        while now.time < leg.end:
            h = (leg.end - now.time) / float(np.ceil((leg.end - now.time) / h - 0.01))  # no crumb before the end
            even = max(leg.tol, LEAST) / 2 * h / length
            allowed = even + SHARE * reserve
            # a jump that the nodes do not see
            hidden = _mismatch(leg.at, now.time, h) * min(1.0, 2 * speed * h) > allowed
            if trials > TRIALS or (hidden and now.time + 1e-3 * h <= now.time):
                advice = (
                    f"It came to t = {now.time:.6g} with time_rtol = {leg.tol:.1e}. Where the schedule jumps or bends, "
                    "begin a new piece: [(0, f), (10, g)]."
                )
                solves, what = self.stats.solves, f"evolution to t = {leg.end:.6g}"
                raise NotConverged(what, "DIVERGED_STEP_SIZE", solves, self.stats.error, "fp_evolve_", advice)
            if hidden:
                h /= 2
                continue
            made = step(self.gen.M, moment, now, h, leg.transpose, factorised)
            PETSc.garbage_cleanup(self.gen.M.comm)  # factors that went out of use, on several ranks
            self.stats.solves, self.stats.factorisations = self.stats.solves + 6, self.stats.factorisations + 1
            error = self._size(made.defect, made.end)
            trials += 1
            if error <= allowed:
                trials, self.stats.steps = 0, self.stats.steps + 1
                self.stats.error += error
                reserve -= max(error - even, 0.0)
                last = leg.end - now.time < 1.5 * h  # its end is a time that was asked for, to the last digit
                end = leg.end if last else made.end.time
                while outputs and outputs[0] < end:
                    yield made.at(outputs.pop(0))
                change = Snapshot(0.0, now.vector - made.end.vector, now.integrals - made.end.integrals)
                speed = self._size(change, made.end) / h
                now = made.end._replace(time=end)
            h *= min(4.0, max(0.1, 0.9 * (allowed / max(error, 1e-4 * allowed)) ** 0.25))
        if outputs:
            yield now
        return now

    def _generator(self, values: Values) -> Generator:
        """The generator with these numbers, new or from the last few."""
        key = tuple(values.values())
        if not key:  # no schedule
            return self.gen
        if key not in self._kept:
            while len(self._kept) >= KEPT:
                self._kept.pop(next(iter(self._kept))).close()
            self._kept[key] = self.gen.replace(**values)
            self._assemblies += 1
        self._kept[key] = self._kept.pop(key)  # most recently used last
        return self._kept[key]

    def _frozen(self, values: Values) -> Frozen:
        """G and what leaves with these numbers."""
        gen = self._generator(values)
        return Frozen(gen.G, functionals(gen, self._parts))

    def _varying(self, at: Callable[[float], Values], begin: float, end: float) -> Callable[[float], Moment]:
        """G(t) between two times: combined from two where it is affine in the only number."""
        numbers = np.array([list(at(begin + s * (end - begin)).values()) for s in SAMPLES])
        low, high = float(numbers.min()), float(numbers.max())
        name = next(iter(at(begin)))
        if numbers.shape[1] > 1 or low == high:
            return lambda t: [(1.0, self._frozen(at(t)))]
        share = 0.382
        inner, *ends = [self._frozen({name: x}) for x in (low + share * (high - low), low, high)]
        rest, scale = inner.G.copy(), inner.G.norm(PETSc.NormType.INFINITY)
        for weight, kept in zip((share - 1.0, -share), ends, strict=True):
            rest.axpy(weight, kept.G, PETSc.Mat.Structure.SAME_NONZERO_PATTERN)
        if rest.norm(PETSc.NormType.INFINITY) > AFFINE * scale:
            return lambda t: [(1.0, self._frozen(at(t)))]

        def combined(t: float) -> Moment:
            share = (at(t)[name] - low) / (high - low)
            return [(1.0 - share, self._frozen({name: low})), (share, self._frozen({name: high}))]

        return combined

    def _size(self, d: Snapshot, b: Snapshot) -> float:
        """M-norm of d relative to b, or an integral's share where it is larger; the same on all ranks."""
        norms = [float(np.sqrt(abs(v.dot(self.gen.M * v)))) for v in (d.vector, b.vector)]
        errors = abs(d.integrals) / np.maximum(abs(b.integrals), self._scale)
        return float(self.gen.domain.comm.bcast(max([norms[0] / norms[1] if norms[1] > 0 else norms[0], *errors])))


def _mismatch(at: Callable[[float], Values], t: float, h: float) -> float:
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
