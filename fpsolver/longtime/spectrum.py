"""Slow modes of the generator: its spectrum near zero and the quasi-stationary law of an absorbed process."""

from typing import Any

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
from dolfinx import fem

from .._errors import NotConverged
from .._log import logger
from .._petsc import Options, direct_preset, inserted_options
from ..discretisation.generator import Generator
from ..discretisation.metastable import estimated_rate, slowest_mode
from ..discretisation.positivity import Limiter, limiter
from ..discretisation.solution import Solution
from ..models.fields import integrate, is_number

_DIGITS = 2e-17  # of the scaled pencil's norm: rounding error of slow rates, measured 1e-19 ... 2e-18 in double wells


class Spectrum:
    """The slowest modes of G p = λ M p, slowest first.

    Attributes:
        eigenvalues: λ of the generator, complex, shape (k,); real parts are at most zero up to discretisation error.
        timescales: −1/Re λ, shape (k,); infinite for λ = 0.
        right: densities' modes (forward), pairs of ``Function`` (real, imaginary).
        left: observables' modes (backward), likewise, with ⟨left_i, right_i⟩ = 1.
        residuals: relative residuals of the right modes.
    """

    def __init__(self, eigenvalues: np.ndarray, right: list[Any], left: list[Any], residuals: np.ndarray):
        self.eigenvalues, self.right, self.left, self.residuals = eigenvalues, right, left, residuals

    @property
    def timescales(self) -> np.ndarray:
        """−1/Re λ."""
        with np.errstate(divide="ignore"):
            return -1.0 / self.eigenvalues.real

    def __repr__(self) -> str:
        return f"<spectrum: {np.array2string(self.eigenvalues, precision=8)}>"


class QuasiStationary(Solution):
    """The quasi-stationary law: started from ``density``, the process leaves at constant ``rate``.

    Attributes:
        rate: λ > 0; the exit time from ``density`` is exponential with this rate.
        density: ``Function``, mass one, non-negative (also ``function``); ``stats["minimum"]`` is the smallest nodal
            value before it was made so.
        mode: backward mode φ with ∫ φ·density = 1: P(τ > t | x) ≈ φ(x) e^{−λt} for large t.
    """

    def __init__(self, rate: float, density: fem.Function, mode: fem.Function, stats: dict[str, Any], limiter: Limiter):
        super().__init__(density, stats, "quasi-stationary density", limiter=limiter)
        self.rate, self.mode = rate, mode

    @property
    def density(self) -> fem.Function:
        """The same as ``function``."""
        return self.function


def spectrum(gen: Generator, k: int = 6, options: Options | None = None) -> Spectrum:
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
    if not is_number(k) or int(k) != k or not 1 <= k < n:
        raise ValueError(f"spectrum: k is {k!r}; an integer between 1 and {n - 1} (unknowns less one) was expected.")
    values, right, residuals = _solve(gen, gen.G, int(k), options)
    Gt = gen.G.transpose(PETSc.Mat())
    left_values, left, _ = _solve(gen, Gt, len(values), options)
    Gt.destroy()
    match = [int(np.argmin(np.abs(left_values - v))) for v in values]
    pairs = [_normalised(gen, right[i], left[j]) for i, j in enumerate(match)]
    answer = Spectrum(values, [p for p, _ in pairs], [q for _, q in pairs], residuals)
    logger.info("%s", answer)
    return answer


def quasi_stationary(gen: Generator, options: Options | None = None) -> QuasiStationary:
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
    rate, density, mode, residual = (_by_capacities if gen.scheme == "weighted" else _slowest)(gen, options)
    mass = integrate(gen.domain.mesh, density, 2 * gen.degree)
    density.x.array[:] /= mass
    mode.x.array[:] *= mass
    stats = {**gen.stats(), "residual": residual}
    minimum = float(density.x.array.min(initial=np.inf))
    stats["minimum"] = float(gen.domain.comm.allreduce(minimum, op=MPI.MIN))
    return QuasiStationary(rate, density, mode, stats, limiter(gen))


def _slowest(gen: Generator, options: Options | None) -> tuple[float, fem.Function, fem.Function, float]:
    """Rate, density and mode whose product has integral one, residual."""
    slow = spectrum(gen, 1, options)
    rate, density = -float(slow.eigenvalues[0].real), slow.right[0][0]
    mass = integrate(gen.domain.mesh, density, 2 * gen.degree)
    if abs(slow.eigenvalues[0].imag) > 1e-8 * abs(rate) or rate <= 0 or mass == 0:
        raise ValueError(
            f"quasi_stationary: the eigenvalue closest to zero is {slow.eigenvalues[0]:.6g}; a real negative one was "
            "expected. Refine the mesh, or use scheme='dg'."
        )
    return rate, density, slow.left[0][0], float(slow.residuals[0])


def _by_capacities(gen: Generator, options: Options | None) -> tuple[float, fem.Function, fem.Function, float]:
    """The same with the scheme ``weighted``, in which forward and backward modes are one vector."""
    rate, u, change = slowest_mode(gen, options)
    density, mode = gen.density(u), gen.function(u)
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


def _solve(gen: Generator, A: PETSc.Mat, k: int, options: Options | None) -> tuple[np.ndarray, list[Any], np.ndarray]:
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
    if gen.absorbing and gen.scheme == "weighted":  # the eigenvalue solver itself may see rounding only
        _check_rounding(scaled[0], scaled[1], estimated_rate(gen))
    eps = SLEPc.EPS().create(A.comm)
    eps.setOptionsPrefix("fp_spectrum_")
    eps.setOperators(*scaled)
    eps.setProblemType(SLEPc.EPS.ProblemType.GNHEP)
    eps.setWhichEigenpairs(SLEPc.EPS.Which.TARGET_MAGNITUDE)
    # zero itself is an eigenvalue when nothing absorbs: a small positive target keeps the shifted matrix regular
    target = 0.0 if gen.absorbing else 1e-9 * scaled[0].norm(PETSc.NormType.INFINITY)
    eps.setTarget(target)
    eps.setDimensions(k, max(2 * k + 10, 20))
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
    answer = _collect(eps, k, S)
    if gen.absorbing:
        _check_rounding(scaled[0], scaled[1], float(abs(answer[0][0])))
    for item in (eps, S, *scaled):
        item.destroy()
    return answer


def _collect(eps: Any, k: int, S: PETSc.Vec) -> tuple[np.ndarray, list[Any], np.ndarray]:
    real, imag = S.duplicate(), S.duplicate()
    values = np.array([eps.getEigenvalue(i) for i in range(eps.getConverged())])
    order = list(np.argsort(np.abs(values), kind="stable"))
    count = k
    last = values[order[k - 1]]
    if k < len(order) and last.imag != 0 and np.isclose(values[order[k]], last.conj()):
        count += 1
    vectors, residuals = [], []
    for i in order[:count]:
        eps.getEigenvector(int(i), real, imag)
        real.pointwiseMult(S, real)
        imag.pointwiseMult(S, imag)
        vectors.append((real.copy(), imag.copy()))
        residuals.append(eps.computeError(int(i)))
    real.destroy()
    imag.destroy()
    return values[order[:count]].astype(complex), vectors, np.array(residuals)


def _normalised(gen: Generator, right: Any, left: Any) -> tuple[Any, Any]:
    """Functions with right modes of maximum one and ⟨left, right⟩ = 1 (no conjugation: qᵀM p)."""
    (pr, pi), (qr, qi) = right, left
    # a real mode's sign, a complex one's phase: make the integral of the density's mode positive where it is not zero
    sign = -1.0 if gen.integrals.dot(pr) < 0 else 1.0
    scale = sign / max(pr.norm(PETSc.NormType.INFINITY), pi.norm(PETSc.NormType.INFINITY))
    for v in (pr, pi):
        v.scale(scale)
    Mp = [gen.G.createVecLeft() for _ in range(2)]
    gen.M.mult(pr, Mp[0])
    gen.M.mult(pi, Mp[1])
    product = complex(qr.dot(Mp[0]) - qi.dot(Mp[1]), qr.dot(Mp[1]) + qi.dot(Mp[0]))
    factor = 1.0 / product if product != 0 else 1.0
    q = (qr.copy(), qi.copy())
    q[0].scale(factor.real)
    q[0].axpy(-factor.imag, qi)
    q[1].scale(factor.real)
    q[1].axpy(factor.imag, qr)
    functions = (gen.density(pr), gen.density(pi), gen.function(q[0]), gen.function(q[1]))
    for v in (pr, pi, qr, qi, *q, *Mp):
        v.destroy()
    return functions[:2], functions[2:]


def _reason_name(SLEPc: Any, reason: int) -> str:
    names = {v: k for k, v in vars(SLEPc.EPS.ConvergedReason).items() if isinstance(v, int)}
    return names.get(reason, f"EPS reason {reason}")
