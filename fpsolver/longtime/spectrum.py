"""Slow modes of the generator: its spectrum near zero and the quasi-stationary law of an absorbed process."""

from dataclasses import dataclass, replace
from typing import Any

from petsc4py import PETSc

import numpy as np
from dolfinx import fem

from .._answer import Answer, figures, need_steps, steps_of
from .._arguments import check_integer, need_still
from .._errors import NotConverged
from .._log import logger
from .._petsc import Options, direct_preset, eigenpairs
from ..chain import Chain
from ..chain.equations import Operator, eigenvalues
from ..discretisation.assembly import to_density, to_function
from ..discretisation.generator import Generator
from ..discretisation.metastable import UNRESOLVED, estimated_rate, slowest_mode
from ..discretisation.positivity import limiter
from ..discretisation.solution import Solution
from ..discretisation.solver import statistics
from ..models.fields import integrate
from ._modes import Mode, biorthogonal, functions, vectors

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
        self,
        rate: float,
        density: fem.Function,
        mode: fem.Function,
        stats: Any,
        limiter: Any,
        gen: Generator | Chain,
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


def spectrum(gen: Generator | Chain, k: int = 6, *, options: Options | None = None) -> Spectrum:
    """The ``k`` eigenvalues of the generator closest to zero, with right and left modes (collective).

    SLEPc's Krylov–Schur method on the shift-inverted pencil (G, M), and on its transpose for the left modes.
    Complex pairs, as non-reversible processes have them, are never split: one more mode may be returned.  Of a chain,
    the ``k`` largest eigenvalues λ of P as rates log λ / η.  ``options`` are SLEPc's without the prefix
    ``fp_spectrum_``.

    Raises:
        ImportError: slepc4py is missing.
        NotConverged: fewer than ``k`` eigenvalues converged, or the slowest rate is below rounding.
    """
    need_still(gen, "spectrum")
    k = check_integer("spectrum: k", k, most=gen.V.dofmap.index_map.size_global - 1)
    for spare in (0, _SPARE):  # with some more where a multiple eigenvalue has lost modes of one side
        values, right, residuals = _modes(gen, k, spare, False, options)
        left_values, left, _ = _modes(gen, len(values), 0, True, options)
        one: Any = complex(isinstance(gen, Chain))  # eigenvalues near one are told apart by their distance from it
        paired = biorthogonal(gen, values - one, right, left_values - one, left, last=spare > 0)
        if paired is not None:
            break
    assert paired is not None
    count = _whole_pairs(values, k)
    if isinstance(gen, Chain):
        with np.errstate(divide="ignore"):
            values = np.log(values) / gen.time_per_step
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


def quasi_stationary(gen: Generator | Chain, *, options: Options | None = None) -> QuasiStationary:
    """Rate, density and backward mode of the slowest decay of an absorbed process (collective).

    With the ``weighted`` scheme through the capacities of the wells, so that rates far below rounding are right.  Of a
    chain the rate is −log λ / η; from the density the number of steps is geometric with mean 1/(1 − λ),
    ``stats["steps"]``.  ``options`` as for :func:`spectrum`, with ``weighted`` PETSc's without the prefix ``fp_exit_``.

    Raises:
        ValueError: nothing absorbs, or the slowest mode is not real and of one sign.
        NotConverged: the eigenvalue solver failed, or rounding has made the rate meaningless.
    """
    need_still(gen, "quasi_stationary")
    if not gen.absorbing:
        raise ValueError("quasi_stationary: nothing absorbs; the invariant law is what stationary(gen) computes.")
    by_capacities = isinstance(gen, Generator) and gen.weak.scheme.by_capacities
    rate, density, mode, residual = (_by_capacities if by_capacities else _slowest)(gen, options)
    mass = _mass(gen, density)
    density.x.array[:] /= mass
    mode.x.array[:] *= mass
    if isinstance(gen, Chain):
        top = float(np.exp(-rate * gen.time_per_step))
        stats = {**gen.stats(), "residual": residual, "steps": 1.0 / (1.0 - top), "eigenvalue": top}
        return QuasiStationary(rate, density, mode, stats, None, gen)
    stats = {**statistics(gen), "residual": residual, "minimum": limiter(gen).minimum(density)}
    return QuasiStationary(rate, density, mode, stats, limiter(gen), gen)


def _mass(gen: Generator | Chain, density: fem.Function) -> float:
    if isinstance(gen, Chain):  # by its own points
        return float(gen.integrals.dot(gen.vector(density)))
    return integrate(gen.domain.mesh, density, 2 * gen.degree)


def _slowest(gen: Any, options: Options | None) -> tuple[float, fem.Function, fem.Function, float]:
    """Rate, density and mode whose product has integral one, residual."""
    chain = isinstance(gen, Chain)
    slow = spectrum(gen, 1 if chain else min(2, gen.G.getSize()[0] - 1), options=options)
    value, density = slow.eigenvalues[0], slow.right[0][0]
    rate, least = -float(value.real), 1e-11 / gen.time_per_step if chain else 0.0
    if abs(value.imag) > 1e-8 * abs(rate) or rate <= least or _mass(gen, density) == 0:
        advice = "no path ever leaves from some part of the domain, or" if chain else "use scheme='dg', or"
        raise ValueError(
            f"quasi_stationary: the eigenvalue closest to zero is {value:.6g}; a real negative one was expected: "
            f"{advice} the mesh resolves too little. Refine it."
        )
    if isinstance(gen, Generator) and rate < _METASTABLE * abs(slow.eigenvalues[-1]):
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


def _by_capacities(gen: Any, options: Options | None) -> tuple[float, fem.Function, fem.Function, float]:
    """The same with the scheme ``weighted``, in which forward and backward modes are one vector."""
    rate, u, change = slowest_mode(gen, options)
    return rate, to_density(gen, u), to_function(gen, u), change


def _check_rounding(A: PETSc.Mat, M: PETSc.Mat, rate: float) -> None:
    """Refuse modes of an absorbed process whose slowest rate rounding may have made."""
    noise = _DIGITS * A.norm(PETSc.NormType.INFINITY) / M.getDiagonal().max()[1]
    if not rate > noise:
        raise NotConverged(
            "spectrum", "DIVERGED_ROUNDOFF", 0, noise / rate if rate > 0 else np.inf, "fp_spectrum_",
            f"The slowest rate, {rate:.2g}, is below what rounding may have caused, {noise:.2g}. "
            "fp.quasi_stationary(gen) finds the slowest mode with scheme='weighted', if the invariant density is "
            "known; otherwise raise the noise.",
        )  # fmt: skip


def _modes(
    gen: Generator | Chain, k: int, spare: int, transpose: bool, options: Options | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eigenvalues, this rank's coefficients of the modes, residuals: at least ``k``, and ``spare`` more at best."""
    if isinstance(gen, Chain):
        values, modes, residuals = eigenvalues(Operator(gen, 1.0, 0.0, not transpose), k, options, spare)
        if not transpose:  # moments so far
            pairs = vectors(gen, modes)
            modes = np.array([(gen.inverse * re).array_r + 1j * (gen.inverse * im).array_r for re, im in pairs])
        return values, modes, residuals
    # S A S and S M S with S = diag(M)^-1/2: weights and graded meshes spread the entries over hundreds of decades
    S = gen.M.getDiagonal()
    S.sqrtabs()
    S.reciprocal()
    scaled = [gen.G.transpose(PETSc.Mat()) if transpose else gen.G.copy(), gen.M.copy()]
    for matrix in scaled:
        matrix.diagonalScale(S, S)
    if gen.absorbing and gen.weak.scheme.by_capacities:  # the eigenvalue solver itself may see rounding only
        _check_rounding(scaled[0], scaled[1], estimated_rate(gen))
    # zero itself is an eigenvalue when nothing absorbs: a small positive target keeps the shifted matrix regular
    target = 0.0 if gen.absorbing else 1e-9 * scaled[0].norm(PETSc.NormType.INFINITY)
    direct = {f"st_{key}": value for key, value in direct_preset(S.comm, gen.domain.dim).items()}
    preset = {"eps_type": "krylovschur", "st_type": "sinvert", **direct}
    values, modes, residuals = eigenpairs(scaled, k, k + spare, "spectrum", preset, options, target)
    order = np.argsort(np.abs(values), kind="stable")
    order = order[: _whole_pairs(values[order], min(k + spare, len(order)))]
    if gen.absorbing:
        _check_rounding(scaled[0], scaled[1], float(abs(values[order[0]])))
    return values[order], modes[order] * S.array_r, residuals[order]


def _whole_pairs(values: np.ndarray, k: int) -> int:
    """k, or one more where a complex pair would be split."""
    split = k < len(values) and values[k - 1].imag != 0 and np.isclose(values[k], values[k - 1].conj())
    return k + int(split)
