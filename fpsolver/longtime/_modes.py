"""Right and left modes of a generator, paired so that they are biorthogonal, also where eigenvalues coincide."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import numpy.typing as npt
from dolfinx import fem
from scipy.optimize import linear_sum_assignment

from .._sample import total
from ..chain import Chain
from ..discretisation.generator import Generator
from ..discretisation.solver import basis_integrals

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
    gen: Generator | Chain, values: Complex, right: Complex, left_values: Complex, left: Complex, last: bool
) -> tuple[Complex, Complex] | None:
    """Right modes of maximum one, and combinations of the left ones with ⟨left_i, right_j⟩ = δ_ij (collective).

    From eigenvalues (k,) and this rank's coefficients (k, n) of right modes, and at least as many left ones.  None if
    equal eigenvalues have right and left modes that do not span the same, as some of a multiple one are missing; with
    ``last`` the pseudo-inverse is taken there, as at defective eigenvalues.
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


def _scale(gen: Generator | Chain, modes: Complex) -> npt.NDArray[np.float64]:
    """Factors that make the largest coefficient one, and the integral of the real part positive where it is not 0."""
    largest = np.maximum(np.abs(modes.real), np.abs(modes.imag)).max(axis=1, initial=0.0)
    integrals, top = gen.integrals if isinstance(gen, Chain) else basis_integrals(gen), np.zeros_like(largest)
    gen.domain.comm.Allreduce(largest, top, op=MPI.MAX)
    return np.asarray(np.where(total(gen.domain.comm, modes.real @ integrals.array_r) < 0, -1.0, 1.0) / top)


def _times_mass(gen: Generator | Chain, modes: Complex) -> Complex:
    return np.array([(gen.M * re).array_r + 1j * (gen.M * im).array_r for re, im in vectors(gen, modes)])


def vectors(gen: Generator | Chain, modes: Complex) -> list[tuple[PETSc.Vec, PETSc.Vec]]:
    """Real and imaginary parts of this rank's coefficients (k, n) as vectors."""
    found = [(gen.M.createVecRight(), gen.M.createVecRight()) for _ in modes]
    for mode, (re, im) in zip(modes, found, strict=True):
        re.array_w, im.array_w = mode.real, mode.imag
    return found


def functions(gen: Generator | Chain, modes: Complex, make: Any) -> list[Mode]:
    """Real and imaginary parts as functions; ``make`` is ``to_function`` or ``to_density`` (collective)."""
    into: Callable[[PETSc.Vec], fem.Function] = gen.function if isinstance(gen, Chain) else partial(make, gen)
    return [Mode(into(re), into(im)) for re, im in vectors(gen, modes)]
