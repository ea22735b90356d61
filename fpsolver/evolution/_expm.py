"""The action of exp(t M⁻¹G) and of exp(t M⁻¹Gᵀ) on a vector, with error control, sub-steps and dense output.

Steps of shift-and-invert Krylov spaces (:mod:`._krylov`).  One factorisation of M − γG serves all solves of a step, its
transpose the dual equation, and often the next step and the next run.  The constants below come from comparisons with
dense matrix exponentials: Ornstein-Uhlenbeck and double-well P4, transport DG2 without diffusion, kinetic DG2, with
smooth and with point data, forward and backward, tol 1e-4 ... 1e-10.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from petsc4py import PETSc

import numpy as np

from .. import _petsc
from .._errors import NotConverged
from .._log import logger
from ._krylov import ROUNDING, IncrementSpace, Snapshot, conserved_constant

SHIFTS = 12.0  # step / γ: fewest solves at all tolerances; 4 or 20 instead cost 15 % more
REUSE = (2.0, 40.0)  # a factorisation at hand is used for these step / γ: +50 % solves cost less than a new one in 2D
SPAN = 30.0  # last / first output of one step: at this ratio point data need twice the solves, as two steps would
MAX_BASIS = 100  # vectors kept; diffusion needs 10-30, transport of point data 80
KEPT = 3  # factorisations kept: outputs from 1e-3 to 50 use three
LEAST = 1e-11  # tol below which rounding would decide
SHARE = 1 / 8  # of the tolerance that is left: the least a step may spend; 1/32 costs two more solves per step
DIGITS = 1e-17  # times γ‖A‖: rounding error of the slow modes, measured 2e-19 ... 7e-18 in metastable double wells
ZERO = 1e-10  # times 1/γ: the rate of a conserved mode, rounded
FOLDS = 25.0  # e-folds after which a decay is below 1e-10 and its errors are absolute
LOST = 1e-2  # estimated relative error by rounding from which what leaves is refused; true ones came up to 3e-2 at it
FAILURES = 8  # attempts at one step, each shorter than the one before, until giving up

_TOLERANCE = (
    "Ask for a larger time_rtol or resolve the solution better: what is transported without being resolved needs many "
    "solves."
)
_ROUNDED = (
    "Mass leaves too slowly for double precision: at later times rounding may have made much of the loss. Such times "
    "are ruled by the slowest mode, of which fp.quasi_stationary(gen) finds rate and shape with scheme='weighted', if "
    "the invariant density is known."
)


@dataclass
class Stats:
    """What runs cost."""

    solves: int = 0
    factorisations: int = 0
    steps: int = 0
    basis: int = 0
    error: float = 0.0  #: estimated relative error, summed over the steps
    rounding: float = 0.0  #: estimated relative error by rounding, which grows with the slowest time scale


@dataclass
class _Run:
    """One evolution: what is asked for and how far it has come."""

    tol: float
    transpose: bool
    functionals: list[PETSc.Vec]
    scales: np.ndarray
    stats: Stats
    v: PETSc.Vec
    integrals: np.ndarray
    t: float = 0.0
    error: float = 0.0  # estimated, relative, so far
    largest: float = 0.0  # norm so far
    longest: float = np.inf  # step to be tried next
    shift: float = np.inf  # largest useful γ


class Propagator:
    """exp(t M⁻¹G) and exp(t M⁻¹Gᵀ) on vectors; ``leaks``: mass is lost, even if more slowly than rounding shows."""

    def __init__(
        self, M: PETSc.Mat, G: PETSc.Mat, *, dim: int, options: _petsc.Options | None = None, leaks: bool = False
    ):
        self.M, self.G, self._options, self._leaks = M, G, options, leaks
        self._preset = _petsc.direct_preset(M.comm, dim)
        self._solvers: dict[float, _petsc.LinearSolver] = {}
        self._ones = [] if leaks else conserved_constant(M, G)
        # ‖S G S‖ with S = diag(M)^-1/2, that of M⁻¹G within a factor of two or three, whatever the weights in M
        S, scaled = M.getDiagonal(), G.copy()
        S.sqrtabs()
        S.reciprocal()
        scaled.diagonalScale(S, S)
        self._norm = scaled.norm(PETSc.NormType.INFINITY)
        self.stats = Stats()

    def run(
        self, v0: PETSc.Vec, times: Sequence[float], tol: float, transpose: bool = False,
        functionals: Sequence[PETSc.Vec] = (), scales: Sequence[float] | None = None, stats: Stats | None = None,
    ) -> Iterator[Snapshot]:  # fmt: skip
        """Yield the solution of M v' = G v (of M v' = Gᵀ v with ``transpose``), v(0) = v0, at each time (collective).

        ``tol``, at least 1e-11, is of the error's M-norm relative to that of v(t), or to 1e-10 times the largest norm
        so far where v(t) is smaller.  Errors of early steps are taken to decay as v does; where v leaves the domain by
        transport alone they do not, and are relative to the largest norm.  Of the functionals ℓ, ∫₀ᵗ ℓᵀv ds is given
        with errors of at most ``tol`` times the integral or the ``scales`` (1), whichever is larger.

        Raises:
            NotConverged: after all that could be computed has been yielded.
        """
        if tol < LEAST:
            logger.warning("evolution: time_rtol = %.1e is below what rounding allows; %.0e is used", tol, LEAST)
            tol = LEAST
        size, self.stats = len(functionals), stats or Stats()
        scale = np.ones(size) if scales is None else np.asarray(scales, float)
        run = _Run(tol, transpose, list(functionals), scale, self.stats, v0, np.zeros(size))
        pending, failures = [float(t) for t in times], 0
        while pending and pending[0] <= 0.0:
            yield Snapshot(pending.pop(0), v0, np.zeros(size))
        while pending:
            before = run.t
            for snapshot in self._step(run, pending):
                pending.pop(0)
                yield snapshot
            PETSc.garbage_cleanup(self.M.comm)  # bases and factors that went out of use, on several ranks
            failures = 0 if run.t > before else failures + 1
            # near the least tol, rounding may add as much again as was asked for
            if failures > FAILURES or run.error > max(tol, 10 * LEAST):
                raise _failure(run, "DIVERGED_TOLERANCE", pending[0] if pending else run.t, run.error, _TOLERANCE)
        if run.stats.rounding > tol:
            message = "evolution: slow modes make rounding errors up to %.0e, more than time_rtol = %.0e"
            logger.warning(message, run.stats.rounding, tol)

    def _step(self, run: _Run, pending: list[float]) -> Iterator[Snapshot]:
        """Advance by one Krylov space, yielding the outputs on the way; if that fails, have the next step shorter."""
        outputs, stop = _plan(run, pending)
        share = max(SHARE, (stop - run.t) / (pending[-1] - run.t))
        allowed = max(share * (run.tol - run.error) / 2, 4 * ROUNDING)
        gamma = self._shift(stop - run.t, run.shift, run.stats)
        space = IncrementSpace(self.M, self.G, self._solvers[gamma], gamma, run, allowed, MAX_BASIS, self._ones)
        run.largest = max(run.largest, space.norm0)
        reached = space.build(outputs, stop)
        run.stats.solves += space.m + 1
        run.stats.basis = max(run.stats.basis, space.m)
        slow, digits = space.slowest(0.0 if self._leaks else ZERO), DIGITS * self._norm * space.norm0 / run.largest
        if digits * gamma > allowed / 2 and 8 < gamma * slow < np.inf:
            run.shift = 2 / slow  # beyond the slowest time scale γ gains nothing and loses digits: once more
            return
        if reached == stop:
            run.longest *= 2
        elif outputs and reached < outputs[0] < stop:  # rough data: early times need a smaller γ
            run.longest = outputs[0] - reached
        else:
            run.longest = 2 * (reached - run.t) if reached > run.t else (stop - run.t) / 8
        if reached == run.t:
            return
        memory = (FOLDS if self._leaks else 1.0) / slow if slow > 0 else np.inf
        lost = digits * max(gamma, min(reached - run.t, memory))
        run.stats.rounding = max(run.stats.rounding, lost)
        if self._leaks and not lost < LOST:
            raise _failure(run, "DIVERGED_ROUNDOFF", reached, run.stats.rounding, _ROUNDED)
        error = space.error(reached)  # told before outputs are seen: a checkpoint spends what is left
        run.stats.steps, run.error, run.stats.error = run.stats.steps + 1, run.error + error, run.stats.error + error
        for t in (t for t in outputs if t <= reached):
            yield Snapshot(t, space.at(t - run.t), run.integrals + space.integrals(t - run.t))
        run.integrals = run.integrals + space.integrals(reached - run.t)
        run.v, run.t = space.at(reached - run.t), reached

    def _shift(self, step: float, most: float, stats: Stats) -> float:
        """A γ for this step whose factorisation is at hand, made if necessary."""
        wanted = min(step / SHIFTS, most)
        low, high = step / REUSE[1], step / REUSE[0]
        usable = [g for g in self._solvers if min(low, wanted / 2) <= g <= min(high, 2 * most)]
        if usable:
            gamma = min(usable, key=lambda g: abs(np.log(wanted / g)))
            self._solvers[gamma] = self._solvers.pop(gamma)  # most recently used last
            return gamma
        gamma = float(2.0 ** np.round(np.log2(wanted)))  # a ladder, so that later runs meet the same ones
        while len(self._solvers) >= KEPT:
            self._solvers.pop(next(iter(self._solvers)))
        matrix = self.G.copy()
        matrix.scale(-gamma)
        matrix.axpy(1.0, self.M, PETSc.Mat.Structure.SUBSET_NONZERO_PATTERN)
        self._solvers[gamma] = _petsc.LinearSolver(matrix, "fp_evolve_", "evolution", self._preset, self._options)
        stats.factorisations += 1
        return gamma

    def destroy(self) -> None:
        """Free the factorisations (collective)."""
        for solver in self._solvers.values():
            solver.destroy()
        self._solvers = {}


def _plan(run: _Run, pending: list[float]) -> tuple[list[float], float]:
    """The outputs of the next step and its end."""
    first = pending[0] - run.t
    reach = min(SPAN * max(run.t, first), run.longest)
    outputs = [t for t in pending if t - run.t <= reach * (1 + 1e-9)]
    if outputs:
        return outputs, outputs[-1]
    return [], run.t + first / np.ceil(first / reach)  # equal parts leave no crumb before the output


def _failure(run: _Run, reason: str, t: float, share: float, advice: str) -> NotConverged:
    advice = f"It came to t = {run.t:.6g} with time_rtol = {run.tol:.1e}. {advice}"
    return NotConverged(f"evolution to t = {t:.6g}", reason, run.stats.solves, share, "fp_evolve_", advice)
