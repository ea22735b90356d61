"""Slow modes of the generator: its spectrum near zero."""

from dataclasses import dataclass
from typing import Any

from petsc4py import PETSc

import numpy as np

from .._answer import need_steps, steps_of
from .._arguments import check_integer, need_still
from .._errors import NotConverged
from .._log import logger
from .._petsc import Options, direct_preset, eigenpairs
from ..chain import Chain
from ..chain.equations import Operator, eigenvalues
from ..chain.refinement import MAX_UNKNOWNS, Numbers, to_accuracy
from ..discretisation.assembly import to_density, to_function
from ..discretisation.generator import Generator
from ..discretisation.metastable import estimated_rate
from ._modes import Mode, biorthogonal, functions, vectors

_SPARE = 4  # modes
_DIGITS = 2e-17  # of the scaled pencil's norm: rounding error of slow rates, measured 1e-19 ... 2e-18 in double wells


@dataclass(frozen=True)
class Spectrum(Numbers):
    """The slowest modes of G p = λ M p, slowest first.

    Attributes:
        eigenvalues: λ of the generator, complex, shape (k,); real parts are at most zero up to discretisation error.
        timescales: −1/Re λ, shape (k,); infinite for λ = 0.
        right: densities' modes (forward), pairs of ``Function`` (real, imaginary).
        left: observables' modes (backward), likewise, with ⟨left_i, right_i⟩ = 1.
        residuals: relative residuals of the right modes.
        error: error bars of the eigenvalues, shape (k,) (collective when first asked for).
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

    def numbers(self) -> np.ndarray:
        """Real and imaginary parts, as error bars are made of them."""
        return np.concatenate((self.eigenvalues.real, self.eigenvalues.imag))

    @property
    def error(self) -> np.ndarray:
        """Error bars of the eigenvalues."""
        return np.hypot(*self.bars.reshape(2, -1))

    def accuracy(self) -> tuple[float, float]:
        """Of the eigenvalues but zero."""
        size = np.abs(self.eigenvalues)
        ratio = np.where(size > 1e-9 * size.max(), self.error / np.maximum(size, 1e-300), 0.0)
        return float(size[ratio.argmax()]), float(self.error[ratio.argmax()])

    def in_steps(self) -> "Spectrum":
        """Rates per step of an algorithm, so that timescales count steps."""
        unit = need_steps(self._unit, "this spectrum")
        return self._in_unit(eigenvalues=unit * self.eigenvalues, _unit=None)

    def __repr__(self) -> str:
        times = ", ".join(f"{t:.6g}" for t in self.timescales)
        steps = "" if self._unit is None else f" = {', '.join(f'{t / self._unit:.6g}' for t in self.timescales)} steps"
        return f"eigenvalues {np.array2string(self.eigenvalues, precision=8)}\n  timescales {times}{steps}"


def spectrum(
    gen: Generator | Chain, k: int = 6, *, rtol: float | None = None, max_unknowns: int = MAX_UNKNOWNS,
    options: Options | None = None,
) -> Spectrum:  # fmt: skip
    """The ``k`` eigenvalues of the generator closest to zero, with right and left modes (collective).

    SLEPc's Krylov–Schur method on the shift-inverted pencil (G, M), and on its transpose for the left modes.
    Complex pairs, as non-reversible processes have them, are never split: one more mode may be returned.  Of a chain,
    the ``k`` largest eigenvalues λ of P as rates log λ / η.  ``.error`` are error bars; with ``rtol`` the mesh is
    refined until all eigenvalues but zero meet it.  ``options`` are SLEPc's without the prefix ``fp_spectrum_``.

    Raises:
        ImportError: slepc4py is missing.
        NotConverged: fewer than ``k`` eigenvalues converged, or the slowest rate is below rounding.
    """
    need_still(gen, "spectrum")
    k = check_integer("spectrum: k", k, most=gen.V.dofmap.index_map.size_global - 1)
    return to_accuracy(
        "spectrum",
        gen,
        lambda other: slow_modes(other, k, options),
        "fp_spectrum_",
        rtol=rtol,
        max_unknowns=max_unknowns,
    )


def slow_modes(gen: Generator | Chain, k: int, options: Options | None) -> Spectrum:
    """As :func:`spectrum`, on the given mesh."""
    for spare in (0, _SPARE):  # with some more where a multiple eigenvalue has lost modes of one side
        values, right, residuals = modes_of(gen, k, spare, False, options)
        left_values, left, _ = modes_of(gen, len(values), 0, True, options)
        one: Any = complex(isinstance(gen, Chain))  # eigenvalues near one are told apart by their distance from it
        paired = biorthogonal(gen, values - one, right, left_values - one, left, last=spare > 0)
        if paired is not None:
            break
    assert paired is not None
    count = _whole_pairs(values, k)
    values = _rates(gen, values)
    right, left = (modes[:count] for modes in paired)
    answer = Spectrum(
        values[:count],
        functions(gen, right, to_density),
        functions(gen, left, to_function),
        residuals[:count],
        steps_of(gen.process),
        generator=gen,
        ask=lambda other: _nearest(other, values[:count], options),
    )
    logger.info("%s", answer)
    return answer


def _rates(gen: Generator | Chain, values: np.ndarray) -> np.ndarray:
    """Eigenvalues of a generator; of a chain's operator, what its diffusion would have."""
    with np.errstate(divide="ignore"):
        return np.log(values) / gen.time_per_step if isinstance(gen, Chain) else values


def _nearest(gen: Generator | Chain, values: np.ndarray, options: Options | None) -> Spectrum:
    """For each of some eigenvalues the nearest of another generator or chain, without modes."""
    other = _rates(gen, modes_of(gen, len(values), 0, False, options)[0])
    nearest = other[np.abs(other[None] - values[:, None]).argmin(axis=1)]
    return Spectrum(nearest, [], [], np.zeros(0), steps_of(gen.process))


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


def modes_of(
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
