"""Equations with I − zK, K = M⁻¹P, by GMRES: iterations grow with the logarithm of the steps, not with the mesh.

Measured on a neuron with 20 samples: 43, 62, 76 and 108 iterations for 150, 2.2e3, 2.1e4 and 1.4e6 steps, whatever
mesh and degree.  Incomplete factorisations cost more than they save, exact ones fill 14 to 29 times.
"""

from dataclasses import dataclass
from typing import Any

from petsc4py import PETSc

import numpy as np

from .._errors import NotConverged
from .._petsc import Options, inserted_options

PREFIX = "fp_exit_"
RTOL = 1e-11
EPS = float(np.finfo(float).eps)


@dataclass(frozen=True)
class Figures:
    """How a solve went.

    Attributes:
        iterations: of GMRES.
        residual: relative, computed afresh.
        suspect: whether GMRES saw an eigenvalue of zK beyond one.  It does where there is one, and may where the
            operator is far from normal.
        roundoff: relative error that rounding may cause, ε times the steps.
    """

    iterations: int
    residual: float
    suspect: bool
    roundoff: float


class Shell:
    """y = x − z M⁻¹P x, or its transpose y = x − z Pᵀ M⁻¹ x; plus a multiple of ``fixed`` in the direction of one.

    Args:
        inverse: of the mass matrix.
        P: transition matrix.
        z: discount.
        transpose: which of the two.
        fixed: a vector f, for y + f 1ᵀx.
    """

    def __init__(self, inverse: Any, P: Any, z: float = 1.0, transpose: bool = False, fixed: Any = None):
        self.inverse, self.P, self.z, self.transpose, self.fixed = inverse, P, z, transpose, fixed
        self.work = P.createVecLeft()

    def mult(self, _: Any, x: PETSc.Vec, y: PETSc.Vec) -> None:
        """One product."""
        if self.transpose:
            self.inverse.multTranspose(x, self.work)
            self.P.multTranspose(self.work, y)
        else:
            self.P.mult(x, self.work)
            self.inverse.mult(self.work, y)
        y.aypx(-self.z, x)
        if self.fixed is not None:
            y.axpy(x.sum(), self.fixed)

    def matrix(self) -> PETSc.Mat:
        """As a PETSc matrix."""
        matrix = PETSc.Mat().createPython(self.P.getSizes(), self, comm=self.P.comm)
        matrix.setUp()
        return matrix


def solve(
    shell: Shell, rhs: PETSc.Vec, what: str, options: Options | None = None, prefix: str = PREFIX
) -> tuple[PETSc.Vec, Figures]:
    """Solve with a shell into a new vector (collective): (x, figures).

    Raises:
        NotConverged: GMRES stopped above what rounding explains.
    """
    preset = {
        "ksp_type": "gmres",
        "ksp_rtol": RTOL,
        "ksp_atol": 0.0,
        "ksp_gmres_restart": 400,
        "ksp_max_it": 2000,
        "pc_type": "none",
    }
    ksp, matrix = PETSc.KSP().create(rhs.comm), shell.matrix()
    ksp.setOperators(matrix)
    ksp.setOptionsPrefix(prefix)
    with inserted_options(prefix, options, preset):
        ksp.setFromOptions()
        ksp.setComputeEigenvalues(True)
        ksp.setUp()
    x, r = rhs.duplicate(), rhs.duplicate()
    ksp.solve(rhs, x)
    iterations, reason = ksp.getIterationNumber(), ksp.getConvergedReason()
    slowest = float(np.min(ksp.computeEigenvalues().real, initial=np.inf)) if iterations else np.inf
    shell.mult(None, x, r)
    r.aypx(-1.0, rhs)
    size = rhs.norm()
    residual = r.norm() / size if size else r.norm()
    floor = 100 * EPS * x.norm() / max(size, 1e-300)
    for thing in (r, matrix, ksp):
        thing.destroy()
    if not residual <= max(100 * RTOL, floor):
        advice = (
            "Refine the mesh or raise the degree: where a mesh resolves too little, the operator is no contraction."
        )
        raise NotConverged(what, f"KSP reason {reason}", iterations, residual, prefix, advice)
    return x, Figures(iterations, residual, slowest <= 0.0, float(EPS * x.norm() / max(size, 1e-300)))
