"""Right and left modes of a generator, paired so that they are biorthogonal, also where eigenvalues coincide."""

from typing import Any, NamedTuple

from mpi4py import MPI

import numpy as np
import numpy.typing as npt
from dolfinx import fem
from scipy.optimize import linear_sum_assignment

from ..discretisation.fluxes import basis_integrals
from ..discretisation.generator import Generator

Complex = npt.NDArray[np.complex128]


class Mode(NamedTuple):
    """A mode of an eigenvalue that may be complex."""

    real: fem.Function
    imaginary: fem.Function


_EQUAL = 1e-7  # eigenvalues closer than that, relative to their size, share their modes
_KERNEL = 1e-12  # likewise those so close to zero, relative to the largest
_SINGULAR = 1e-8  # reciprocal condition number beyond which left and right modes do not span the same


def clusters(values: Complex) -> list[npt.NDArray[np.int64]]:
    """Indices of equal eigenvalues, grouped; singletons mostly."""
    size = np.abs(values)
    scale = np.maximum(_EQUAL * np.maximum.outer(size, size), _KERNEL * size.max(initial=0.0))
    label = np.arange(len(values))
    for i, j in np.argwhere(np.abs(values[:, None] - values) <= scale):
        label[label == label[j]] = label[i]
    return [np.flatnonzero(label == c) for c in np.unique(label)]


def biorthogonal(
    gen: Generator, values: Complex, right: Complex, left_values: Complex, left: Complex, last: bool
) -> tuple[Complex, Complex] | None:
    """Right modes of maximum one, and combinations of the left ones with ⟨left_i, right_j⟩ = δ_ij (collective).

    Args:
        gen: the generator.
        values: eigenvalues of the right modes, shape (k,).
        right: this rank's coefficients, shape (k, n).
        left_values: at least as many eigenvalues of the left modes.
        left: likewise.
        last: take the pseudo-inverse where modes do not pair, as at defective eigenvalues.

    Returns:
        Both, or None if equal eigenvalues have right and left modes that do not span the same and ``last`` is not set:
        of a multiple eigenvalue some are missing.
    """
    comm = gen.domain.comm
    left = left[linear_sum_assignment(np.abs(values[:, None] - left_values))[1]]
    right = right * _scale(gen, right)[:, None]
    products = np.zeros((len(values), len(values)), dtype=complex)
    comm.Allreduce(left @ _times_mass(gen, right).T, products)
    paired = np.zeros_like(left)
    for c in clusters(values):
        block = products[np.ix_(c, c)]
        singular = np.linalg.svd(block, compute_uv=False)
        if len(c) > 1 and not last and not singular[-1] > _SINGULAR * singular[0]:
            return None
        paired[c] = np.linalg.pinv(block, rcond=_SINGULAR) @ left[c]
    return right, paired


def _scale(gen: Generator, modes: Complex) -> npt.NDArray[np.float64]:
    """Factors that make the largest coefficient one, and the integral of the real part positive where it is not 0."""
    largest = np.maximum(np.abs(modes.real), np.abs(modes.imag)).max(axis=1, initial=0.0)
    integral = modes.real @ basis_integrals(gen).array_r
    top, total = np.zeros_like(largest), np.zeros_like(integral)
    gen.domain.comm.Allreduce(largest, top, op=MPI.MAX)
    gen.domain.comm.Allreduce(integral, total)
    return np.asarray(np.where(total < 0, -1.0, 1.0) / top)


def _times_mass(gen: Generator, modes: Complex) -> Complex:
    p, Mp = gen.G.createVecRight(), gen.G.createVecLeft()
    images = np.zeros_like(modes)
    for mode, image in zip(modes, images, strict=True):
        for part in ("real", "imag"):
            p.array_w[:] = getattr(mode, part)
            gen.M.mult(p, Mp)
            getattr(image, part)[:] = Mp.array_r
    for v in (p, Mp):
        v.destroy()
    return images


def functions(gen: Generator, modes: Complex, make: Any) -> list[Mode]:
    """Real and imaginary parts as functions; ``make`` is ``to_function`` or ``to_density`` (collective)."""
    vector, found = gen.G.createVecRight(), []
    for mode in modes:
        pair = []
        for part in (mode.real, mode.imag):
            vector.array_w[:] = part
            pair.append(make(gen, vector))
        found.append(Mode(*pair))
    vector.destroy()
    return found
