"""Largest eigenvalues of the transition operator K = M⁻¹P, by SLEPc's Krylov–Schur method without any shift."""

from typing import Any

from petsc4py import PETSc

import numpy as np

from .._errors import NotConverged
from .._petsc import Options, inserted_options
from ._solve import Shell
from .chain import Chain

Array = np.ndarray[Any, Any]


def eigenpairs(chain: Chain, k: int, transpose: bool, options: Options | None) -> tuple[Array, list[Any], Array]:
    """Eigenvalues of K or of its transpose, largest modulus first, with vectors (real, imaginary) and residuals."""
    try:
        from slepc4py import SLEPc
    except ImportError as error:
        raise ImportError("spectrum needs slepc4py: install python3-slepc4py (apt) or slepc4py (conda).") from error
    shell = _Power(chain, transpose)
    matrix = shell.matrix()
    eps = SLEPc.EPS().create(chain.domain.comm)
    eps.setOperators(matrix)
    eps.setProblemType(SLEPc.EPS.ProblemType.NHEP)
    eps.setWhichEigenpairs(SLEPc.EPS.Which.LARGEST_MAGNITUDE)
    eps.setDimensions(k, min(max(2 * k + 10, 30), matrix.getSize()[0]))
    eps.setTolerances(1e-11, 2000)
    eps.setOptionsPrefix("fp_spectrum_")
    with inserted_options("fp_spectrum_", options, {}):
        eps.setFromOptions()
        eps.solve()
    found = eps.getConverged()
    if found < k:
        advice = "Ask for fewer modes, or refine the mesh."
        raise NotConverged(
            "spectrum of the chain", "DIVERGED_ITS", eps.getIterationNumber(), 1.0, "fp_spectrum_", advice
        )
    vectors, values, residuals = [], [], []
    for i in range(min(found, k)):
        re, im = matrix.createVecs("right"), matrix.createVecs("right")
        values.append(eps.getEigenpair(i, re, im))
        residuals.append(eps.computeError(i, SLEPc.EPS.ErrorType.RELATIVE))
        vectors.append((re, im))
    eps.destroy()
    matrix.destroy()
    return np.array(values), vectors, np.array(residuals)


class _Power(Shell):
    """y = K x or Kᵀ x."""

    def __init__(self, chain: Chain, transpose: bool):
        super().__init__(chain.assembled.inverse, chain.P, 1.0, transpose)

    def mult(self, _: Any, x: PETSc.Vec, y: PETSc.Vec) -> None:
        """One product."""
        super().mult(None, x, y)
        y.aypx(-1.0, x)


def spectral_radius(chain: Chain) -> float:
    """Largest modulus of an eigenvalue (collective)."""
    return float(abs(eigenpairs(chain, 1, False, None)[0][0]))
