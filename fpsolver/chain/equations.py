"""Equations with I − zK, K = M⁻¹P, by GMRES, and the largest eigenvalues of K, by Krylov–Schur without any shift.

Iterations grow with the logarithm of the steps, not with the mesh.  Measured on a neuron with 20 samples: 43, 62, 76
and 108 for 150, 2.2e3, 2.1e4 and 1.4e6 steps, whatever mesh and degree.  Incomplete factorisations cost more than they
save, exact ones fill 14 to 29 times.

Error bars ask the same question to other points, other meshes and the next degree. What limits accuracy is noise of
the points at the jumps of an answer, and where the jumps lie in their cells, neither of which a pair of degrees or of
meshes can show. Two variants with other points and moved inner nodes give the scatter s of single answers, a third of
degree k + 1 (in 1D on cells cut in two) the step Δ; the bar is 1.5 √(Δ² + (3s)²).
"""

from dataclasses import dataclass, replace
from typing import Any

from petsc4py import PETSc

import numpy as np

from .._errors import NotConverged
from .._petsc import Options, eigenpairs, inserted_options, ksp_failure
from .chain import Chain

Array = np.ndarray[Any, Any]
PREFIX = "fp_exit_"
RTOL = 1e-11
EPS = float(np.finfo(float).eps)


@dataclass(frozen=True)
class Figures:
    """How a solve went."""

    iterations: int  #: of GMRES
    residual: float  #: relative, computed afresh
    suspect: bool  #: whether GMRES saw an eigenvalue of zK beyond one: surely if there is one
    roundoff: float  #: relative error that rounding may cause, ε times the steps

    def stats(self) -> dict[str, Any]:
        """For answers."""
        return {"iterations": self.iterations, "residual": self.residual, "roundoff": self.roundoff}


@dataclass
class Operator:
    """y = c x + z M⁻¹P x, or its transpose y = c x + z Pᵀ M⁻¹ x; plus ``fixed`` f, f 1ᵀx."""

    chain: Chain  #: the chain
    z: float = -1.0  #: factor
    identity: float = 1.0  #: c
    transpose: bool = False  #: which of the two
    fixed: Any = None  #: a vector, or None
    P: Any = None  #: the transition matrix, where it is not the chain's

    def __post_init__(self) -> None:
        self._work = self.chain.M.createVecLeft()

    def mult(self, _: Any, x: PETSc.Vec, y: PETSc.Vec) -> None:
        """One product."""
        P, inverse = self.P or self.chain.P, self.chain.inverse
        if self.transpose:
            inverse.mult(x, self._work)
            P.multTranspose(self._work, y)
        else:
            P.mult(x, self._work)
            inverse.mult(self._work, y)
        y.axpby(self.identity, self.z, x)
        if self.fixed is not None:
            y.axpy(x.sum(), self.fixed)

    def matrix(self) -> PETSc.Mat:
        """As a PETSc matrix."""
        matrix = PETSc.Mat().createPython(self.chain.P.getSizes(), self, comm=self.chain.P.comm)
        matrix.setUp()
        return matrix


def solve(
    operator: Operator, rhs: PETSc.Vec, what: str, options: Options | None = None, prefix: str = PREFIX
) -> tuple[PETSc.Vec, Figures]:
    """Solve into a new vector (collective): (x, figures)."""
    preset = {
        "ksp_type": "gmres", "ksp_rtol": RTOL, "ksp_atol": 0.0, "ksp_gmres_restart": 400, "ksp_max_it": 2000,
        "pc_type": "none",
    }  # fmt: skip
    ksp, matrix = PETSc.KSP().create(rhs.comm), operator.matrix()
    ksp.setOperators(matrix)
    ksp.setOptionsPrefix(prefix)
    with inserted_options(prefix, options, preset):
        ksp.setFromOptions()
        ksp.setComputeEigenvalues(True)
        ksp.setUp()
    x = rhs.duplicate()
    with PETSc.Log.Stage("fpsolver solve"):
        ksp.solve(rhs, x)
    iterations, reason = ksp.getIterationNumber(), ksp_failure(ksp)
    slowest = float(np.min(ksp.computeEigenvalues().real, initial=np.inf)) if iterations else np.inf
    ksp.destroy()  # with hundreds of vectors
    size = max(rhs.norm(), 1e-300)
    residual, growth = (rhs - matrix * x).norm() / size, x.norm() / size
    if not residual <= max(100 * RTOL, 100 * EPS * growth):
        advice = (
            "Refine the mesh or raise the degree: where a mesh resolves too little, the operator is no contraction."
        )
        raise NotConverged(what, reason or "DIVERGED_RESIDUAL", iterations, residual, prefix, advice)
    return x, Figures(iterations, residual, slowest <= 0.0, float(EPS * growth))


def eigenvalues(
    operator: Operator, k: int, options: Options | None = None, spare: int = 0
) -> tuple[Array, Array, Array]:
    """Those of largest modulus first, this rank's vectors (k, n), residuals; ``spare`` more at best (collective)."""
    found = eigenpairs([operator.matrix()], k, k + spare, "spectrum of the chain", {}, options)
    return found[0][: k + spare], found[1][: k + spare], found[2][: k + spare]


def check_sound(operator: Operator, name: str, figures: Figures) -> None:
    """Refuse what no chain can give: I − zK with zK no contraction, digits that are gone (collective)."""
    if figures.suspect and (radius := spectral_radius(operator)) >= 1.0:
        raise NotConverged(
            name, "DIVERGED_NO_CONTRACTION", figures.iterations, figures.residual, PREFIX,
            f"The discrete transition operator has an eigenvalue of {radius:.12g}, and one below 1 was expected. "
            "Either no path ever leaves from some part of the domain, or a negative killing rate outgrows the leaving, "
            "or the mesh resolves too little: refine it or raise the degree.",
        )  # fmt: skip
    if figures.roundoff > 1e-3:
        raise NotConverged(
            name, "DIVERGED_ROUNDOFF", figures.iterations, figures.residual, PREFIX,
            f"Exit takes so many steps that rounding may have changed the answer by {figures.roundoff:.1g} of itself: "
            "take a larger learning rate and extrapolate the logarithm in 1/η.",
        )  # fmt: skip


def spectral_radius(operator: Operator) -> float:
    """Largest modulus of an eigenvalue of K z, of I − zK (collective)."""
    return float(abs(eigenvalues(replace(operator, z=-operator.z, identity=0.0, fixed=None), 1)[0][0]))


def variants(chain: Chain) -> list[Chain]:
    """Two like this one and one that resolves more, with other points on moved meshes (collective)."""
    return [chain.varied(1), chain.varied(2), chain.varied(3, finer=True)]


def bar(values: Array, floor: float = 0.0) -> Array:
    """Error bars of values[0] from those of :func:`variants` in the following rows, shape (4, ...) -> (...)."""
    scatter = values[:3].std(axis=0, ddof=1)
    step = np.abs(values[3] - values[0])
    return np.asarray(1.5 * np.sqrt(step**2 + (3 * scatter) ** 2) + (floor + 10 * RTOL) * np.abs(values[0]))
