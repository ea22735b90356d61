"""Slow modes of the generator: its spectrum near zero and the quasi-stationary law of an absorbed process."""

from dataclasses import dataclass, replace
from typing import Any

from petsc4py import PETSc

import numpy as np
from dolfinx import fem

from .._answer import Answer, figures, need_steps, steps_of
from .._arguments import check_integer
from .._errors import NotConverged
from .._log import logger
from .._petsc import Options, direct_preset, inserted_options
from .._verbs import verb
from ..discretisation.assembly import to_density, to_function
from ..discretisation.generator import Generator
from ..discretisation.metastable import UNRESOLVED, estimated_rate, slowest_mode
from ..discretisation.positivity import limiter
from ..discretisation.solution import Limits, Solution
from ..discretisation.solver import statistics
from ..models.fields import integrate
from ._modes import Mode, biorthogonal, functions

_SPARE = 4  # modes
_METASTABLE = 1e-4  # rate relative to the next one below which the next degree must confirm it
_CHANGE = 0.5
_DIGITS = 2e-17  # of the scaled pencil's norm: rounding error of slow rates, measured 1e-19 ... 2e-18 in double wells


@dataclass(frozen=True)
class Spectrum(Answer):
    """The slowest modes of G p = λ M p, slowest first.

    Attributes:
        eigenvalues: λ of the generator, complex, shape (k,); real parts are at most zero up to discretisation error.
        timescales: −1/Re λ, shape (k,); infinite for λ = 0.
        right: densities' modes (forward), pairs of ``Function`` (real, imaginary).
        left: observables' modes (backward), likewise, with ⟨left_i, right_i⟩ = 1.
        residuals: relative residuals of the right modes.
    """

    eigenvalues: np.ndarray
    right: list[Mode]
    left: list[Mode]
    residuals: np.ndarray
    _unit: float | None = None

    @property
    def timescales(self) -> np.ndarray:
        """−1/Re λ."""
        with np.errstate(divide="ignore"):
            return -1.0 / self.eigenvalues.real

    def in_steps(self) -> "Spectrum":
        """Rates per step of an algorithm, so that timescales count steps."""
        return replace(self, eigenvalues=need_steps(self._unit, "this spectrum") * self.eigenvalues, _unit=None)

    def __repr__(self) -> str:
        times = ", ".join(f"{t:.6g}" for t in self.timescales)
        steps = "" if self._unit is None else f" = {', '.join(f'{t / self._unit:.6g}' for t in self.timescales)} steps"
        return f"eigenvalues {np.array2string(self.eigenvalues, precision=8)}\n  timescales {times}{steps}"


class QuasiStationary(Solution):
    """The quasi-stationary law: started from ``density``, the process leaves at constant ``rate``.

    Attributes:
        rate: λ > 0; the exit time from ``density`` is exponential with this rate.
        density: ``Function``, mass one, non-negative (also ``function``); ``stats["minimum"]`` is the smallest
            value before it was made so.
        mode: backward mode φ with ∫ φ·density = 1: P(τ > t | x) ≈ φ(x) e^{−λt} for large t.
    """

    def __init__(
        self, rate: float, density: fem.Function, mode: fem.Function, stats: Any, limiter: Limits | None, gen: Generator
    ):
        super().__init__(density, stats, "quasi-stationary density", limiter=limiter, generator=gen)
        self._rate = rate
        self._mode = mode

    rate = property(lambda self: self._rate, doc="λ, per unit of time.")
    mode = property(lambda self: self._mode, doc="The backward mode φ.")

    def in_steps(self) -> "QuasiStationary":
        """The same with the rate per step of an algorithm (collective)."""
        unit = need_steps(steps_of(self.generator.process), "this rate")
        return QuasiStationary(unit * self._rate, self._raw, self._mode, self._stats, self._limiter, self.generator)

    def __repr__(self) -> str:
        unit = steps_of(self.generator.process)
        steps = "" if unit is None else f" ({1 / (self._rate * unit):.6g} steps)"
        text = f"quasi-stationary law: rate {self._rate:.6g}, mean exit time {1 / self._rate:.6g}{steps}"
        return f"{text}\n  {figures(self._stats)}"

    @property
    def density(self) -> fem.Function:
        """The same as ``function``."""
        return self.function


@verb
def spectrum(gen: Generator, k: int = 6, *, options: Options | None = None) -> Spectrum:
    """The ``k`` eigenvalues of the generator closest to zero, with right and left modes (collective).

    SLEPc's Krylov–Schur method on the shift-inverted pencil (G, M), and on its transpose for the left modes.
    Complex pairs, as non-reversible processes have them, are never split: one more mode may be returned.

    Args:
        gen: any generator.
        k: number of eigenvalues.
        options: SLEPc options without the prefix ``fp_spectrum_``.

    Raises:
        ImportError: slepc4py is missing.
        NotConverged: fewer than ``k`` eigenvalues converged, or the slowest rate is below rounding.
    """
    n = gen.G.getSize()[0]
    k = check_integer("spectrum: k", k, most=n - 1)
    Gt = gen.G.transpose(PETSc.Mat())
    for spare in (0, _SPARE):  # with some more where a multiple eigenvalue has lost modes of one side
        values, right, residuals = _solve(gen, gen.G, k, min(k + spare, n), options)
        left_values, left, _ = _solve(gen, Gt, len(values), len(values), options)
        paired = biorthogonal(gen, values, right, left_values, left, last=spare > 0)
        if paired is not None:
            break
    Gt.destroy()
    assert paired is not None
    count = _whole_pairs(values, k)
    right, left = (modes[:count] for modes in paired)
    answer = Spectrum(
        values[:count],
        functions(gen, right, to_density),
        functions(gen, left, to_function),
        residuals[:count],
        steps_of(gen.process),
    )
    logger.info("%s", answer)
    return answer


@verb
def quasi_stationary(gen: Generator, *, options: Options | None = None) -> QuasiStationary:
    """Rate, density and backward mode of the slowest decay of an absorbed process (collective).

    With the ``weighted`` scheme through the capacities of the wells, so that rates far below rounding are right.

    Args:
        gen: generator with absorbing parts.
        options: as for :func:`spectrum`; with the ``weighted`` scheme, PETSc options without the prefix ``fp_exit_``.

    Raises:
        ValueError: nothing absorbs, or the slowest mode is not real and of one sign.
        NotConverged: the eigenvalue solver failed, or rounding has made the rate meaningless.
    """
    if not gen.absorbing:
        raise ValueError("quasi_stationary: nothing absorbs; the invariant law is what stationary(gen) computes.")
    rate, density, mode, residual = (_by_capacities if gen.weak.scheme.by_capacities else _slowest)(gen, options)
    mass = integrate(gen.domain.mesh, density, 2 * gen.degree)
    density.x.array[:] /= mass
    mode.x.array[:] *= mass
    stats = {**statistics(gen), "residual": residual}
    stats["minimum"] = limiter(gen).minimum(density)
    return QuasiStationary(rate, density, mode, stats, limiter(gen), gen)


def _slowest(gen: Generator, options: Options | None) -> tuple[float, fem.Function, fem.Function, float]:
    """Rate, density and mode whose product has integral one, residual."""
    slow = spectrum(gen, min(2, gen.G.getSize()[0] - 1), options=options)
    rate, density = -float(slow.eigenvalues[0].real), slow.right[0][0]
    mass = integrate(gen.domain.mesh, density, 2 * gen.degree)
    if abs(slow.eigenvalues[0].imag) > 1e-8 * abs(rate) or rate <= 0 or mass == 0:
        raise ValueError(
            f"quasi_stationary: the eigenvalue closest to zero is {slow.eigenvalues[0]:.6g}; a real negative one was "
            "expected. Refine the mesh, or use scheme='dg'."
        )
    if rate < _METASTABLE * abs(slow.eigenvalues[-1]):
        _check_resolution(gen, rate, options)
    return rate, density, slow.left[0][0], float(slow.residuals[0])


def _check_resolution(gen: Generator, rate: float, options: Options | None) -> None:
    """Refuse a metastable rate that the next degree does not confirm: meshes that miss a barrier give any (collective).

    Raises:
        NotConverged: it does not, or rounding is all that it sees.
    """
    with gen.with_degree(gen.degree + 1) as finer:
        other = -float(spectrum(finer, 1, options=options).eigenvalues[0].real)
    change = abs(other - rate) / rate
    if not change < _CHANGE:
        advice = (
            f"The rate is {rate:.3g}, but {other:.3g} with degree {gen.degree + 1}: the mesh does not resolve where "
            "paths leave. Refine it, or take scheme='weighted' if the invariant density is known."
        )
        raise NotConverged("quasi_stationary", UNRESOLVED, 0, change, "fp_spectrum_", advice)
    if change > 0.01:
        logger.warning("quasi_stationary: the rate %.4g changes by %.1g %% with the next degree", rate, 100 * change)


def _by_capacities(gen: Generator, options: Options | None) -> tuple[float, fem.Function, fem.Function, float]:
    """The same with the scheme ``weighted``, in which forward and backward modes are one vector."""
    rate, u, change = slowest_mode(gen, options)
    density, mode = to_density(gen, u), to_function(gen, u)
    u.destroy()
    return rate, density, mode, change


def _check_rounding(A: PETSc.Mat, M: PETSc.Mat, rate: float) -> None:
    """Refuse modes of an absorbed process whose slowest rate rounding may have made."""
    diagonal = M.getDiagonal()
    noise = _DIGITS * A.norm(PETSc.NormType.INFINITY) / diagonal.max()[1]
    diagonal.destroy()
    if not rate > noise:
        raise NotConverged(
            "spectrum", "DIVERGED_ROUNDOFF", 0, noise / rate if rate > 0 else np.inf, "fp_spectrum_",
            f"The slowest rate, {rate:.2g}, is below what rounding may have caused, {noise:.2g}. "
            "fp.quasi_stationary(gen) finds the slowest mode with scheme='weighted', if the invariant density is "
            "known; otherwise raise the noise.",
        )  # fmt: skip


def _solve(
    gen: Generator, A: PETSc.Mat, k: int, wanted: int, options: Options | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eigenvalues, this rank's coefficients of the modes, residuals: ``wanted`` of them, and at least ``k``."""
    try:
        from slepc4py import SLEPc
    except ImportError as error:
        raise ImportError("spectra need slepc4py: install python3-slepc4py (apt) or slepc4py (conda).") from error
    # S A S and S M S with S = diag(M)^-1/2: weights and graded meshes spread the entries over hundreds of decades
    S = gen.M.getDiagonal()
    S.sqrtabs()
    S.reciprocal()
    scaled = [A.copy(), gen.M.copy()]
    for matrix in scaled:
        matrix.diagonalScale(S, S)
    if gen.absorbing and gen.weak.scheme.by_capacities:  # the eigenvalue solver itself may see rounding only
        _check_rounding(scaled[0], scaled[1], estimated_rate(gen))
    eps = SLEPc.EPS().create(A.comm)
    eps.setOptionsPrefix("fp_spectrum_")
    eps.setOperators(*scaled)
    eps.setProblemType(SLEPc.EPS.ProblemType.GNHEP)
    eps.setWhichEigenpairs(SLEPc.EPS.Which.TARGET_MAGNITUDE)
    # zero itself is an eigenvalue when nothing absorbs: a small positive target keeps the shifted matrix regular
    target = 0.0 if gen.absorbing else 1e-9 * scaled[0].norm(PETSc.NormType.INFINITY)
    eps.setTarget(target)
    eps.setDimensions(wanted, max(2 * wanted + 10, 20))
    eps.setTolerances(1e-11, 500)
    direct = {f"st_{key}": value for key, value in direct_preset(A.comm, gen.domain.dim).items()}
    preset = {"eps_type": "krylovschur", "st_type": "sinvert", **direct}
    with inserted_options("fp_spectrum_", options, preset):
        eps.setFromOptions()
        eps.setUp()
        eps.solve()
    converged = eps.getConverged()
    if converged < k:
        residual = max((eps.computeError(i) for i in range(converged)), default=float("nan"))
        reason = _reason_name(SLEPc, eps.getConvergedReason())
        advice = f"{converged} of {k} modes converged; allow more work (-fp_spectrum_eps_max_it, -fp_spectrum_eps_ncv)."
        raise NotConverged("spectrum", reason, eps.getIterationNumber(), residual, "fp_spectrum_", advice)
    answer = _collect(eps, min(wanted, converged), S)
    if gen.absorbing:
        _check_rounding(scaled[0], scaled[1], float(abs(answer[0][0])))
    for item in (eps, S, *scaled):
        item.destroy()
    return answer


def _whole_pairs(values: np.ndarray, k: int) -> int:
    """k, or one more where a complex pair would be split."""
    split = k < len(values) and values[k - 1].imag != 0 and np.isclose(values[k], values[k - 1].conj())
    return k + int(split)


def _collect(eps: Any, k: int, S: PETSc.Vec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    real, imag = S.duplicate(), S.duplicate()
    values = np.array([eps.getEigenvalue(i) for i in range(eps.getConverged())], dtype=complex)
    order = np.argsort(np.abs(values), kind="stable")
    order = order[: _whole_pairs(values[order], k)]
    modes = np.zeros((len(order), S.getLocalSize()), dtype=complex)
    for mode, i in zip(modes, order, strict=True):
        eps.getEigenvector(int(i), real, imag)
        mode[:] = S.array_r * (real.array_r + 1j * imag.array_r)
    residuals = np.array([eps.computeError(int(i)) for i in order])
    for v in (real, imag):
        v.destroy()
    return values[order], modes, residuals


def _reason_name(SLEPc: Any, reason: int) -> str:
    names = {v: k for k, v in vars(SLEPc.EPS.ConvergedReason).items() if isinstance(v, int)}
    return names.get(reason, f"EPS reason {reason}")
