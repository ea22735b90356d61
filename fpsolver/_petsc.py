"""PETSc behind one door: options with a fixed precedence, factorise once, and no solve without a verdict.

Precedence is command line (or ``PETSC_OPTIONS``) > ``options=`` argument > preset.  What an argument or preset adds to
PETSc's database is removed again once the solver has read it.
"""

import ctypes
import difflib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import petsc4py

import numpy as np


def _petsc_arguments() -> list[tuple[str, ...]]:
    """The arguments that are meant for PETSc, with their values; it would complain of the others at the end."""
    chosen: list[tuple[str, ...]] = []
    for arg, follows in zip(sys.argv[1:], [*sys.argv[2:], ""], strict=False):
        if arg.startswith(("-fp_", "-log_", "-info", "-malloc_", "-options_")):
            is_value = follows and (not follows.startswith("-") or follows[1:2].isdigit())
            chosen.append((arg, follows) if is_value else (arg,))
    return chosen


petsc4py.init(["fpsolver", *(word for option in _petsc_arguments() for word in option)])

from petsc4py import PETSc  # noqa: E402

from ._errors import NotConverged, import_optional  # noqa: E402
from ._log import logger  # noqa: E402

PREFIXES = ("fp_evolve_", "fp_exit_", "fp_stationary_", "fp_spectrum_")
Options = Mapping[str, Any]


def ksp_failure(ksp: PETSc.KSP) -> str | None:
    """The name of the reason for which a solver has stopped before it converged; None if it has converged."""
    reason = ksp.getConvergedReason()
    return _name_of(PETSc.KSP.ConvergedReason, reason) if reason < 0 else None


def _name_of(reasons: type, reason: int) -> str:
    return next((name for name, value in vars(reasons).items() if value == reason), f"reason {reason}")


_ADVICE = {
    "DIVERGED_MAX_IT": "Allow more iterations (-{p}ksp_max_it), strengthen the preconditioner, or solve directly "
    "(-{p}ksp_type preonly -{p}pc_type lu).",
    "DIVERGED_PCSETUP_FAILED": "The factorisation failed{info}: the matrix may be singular (is the absorbing part "
    "reachable from everywhere?) or memory ran out; coarsen the mesh or use an iterative solver "
    "(-{p}ksp_type gmres -{p}pc_type hypre).",
    "DIVERGED_BACKWARD_ERROR": "The direct solver lost all accuracy: the matrix is singular to rounding. Is the "
    "absorbing part reachable from everywhere, is the barrier so high that exit times exceed 1/rounding?",
    "": "Look at -{p}ksp_monitor_true_residual; a direct solve is -{p}ksp_type preonly -{p}pc_type lu.",
}


def _adopt_command_line(database: PETSc.Options) -> None:
    """Read our options from ``sys.argv`` where another package initialised PETSc without it."""
    present = database.getAll()
    for option in _petsc_arguments():
        if option[0].startswith("-fp_") and option[0][1:] not in present:
            database.insertString(" ".join(option))
    for name in database.getAll():
        if name.startswith("fp_") and not name.startswith(PREFIXES):
            warn_once(name, f"option -{name} has no known prefix; known are {', '.join('-' + p for p in PREFIXES)}")


_warned: set[str] = set()


def warn_once(name: str, message: str) -> None:
    """Log a warning unless one of this name has been logged before."""
    if name not in _warned:
        _warned.add(name)
        logger.warning(message)


@contextmanager
def inserted_options(prefix: str, given: Options | None, preset: Options) -> Iterator[None]:
    """Have ``given`` and ``preset`` in PETSc's database while the block runs; report options that nothing asks for."""
    database = PETSc.Options()
    _adopt_command_line(database)
    present = database.getAll()
    given = dict(given or {})
    for key in ("pc_type", "st_pc_type"):  # what belongs to a preconditioner that is replaced: MUMPS cannot do ILU
        if present.get(prefix + key, given.get(key, preset.get(key))) != preset.get(key):
            detail = key.removesuffix("type")
            preset = {k: v for k, v in preset.items() if not k.startswith((detail, detail.replace("pc_", "mat_")))}
    if "ksp_type" in preset:  # "preonly" reads these without effect
        preset = {**ITERATIVE, **preset}
    mine = {prefix + k: v for k, v in {**preset, **given}.items() if prefix + k not in present}
    for name, value in mine.items():
        database.setValue(name, value)
    used, library = ctypes.c_int(0), ctypes.CDLL(PETSc.__file__)
    try:
        yield
        for name in database.getAll():
            short = name.removeprefix(prefix)
            failed = library.PetscOptionsUsed(None, name.encode(), ctypes.byref(used))  # petsc4py has no wrapper of it
            if name.startswith(prefix) and short not in preset and not failed and not used.value & 0xFF:
                near = difflib.get_close_matches(short, _COMMON_OPTIONS, n=1)
                advice = f"did you mean -{prefix}{near[0]}" if near else "is it spelt as in PETSc's manual"
                warn_once(name, f"option -{name} was not used by any solver; {advice}?")
    finally:
        for name in mine:
            database.delValue(name)


# what an iterative method gets that the user puts in place of a direct one; PETSc would be content with 1e-5
ITERATIVE = {"ksp_rtol": 1e-12, "ksp_max_it": 2000, "ksp_gmres_restart": 200}
_COMMON_OPTIONS = (
    "ksp_type ksp_rtol ksp_atol ksp_max_it ksp_monitor ksp_converged_reason ksp_view ksp_gmres_restart pc_type "
    "pc_factor_mat_solver_type pc_hypre_type pc_hypre_boomeramg_strong_threshold mat_mumps_icntl_7 mat_mumps_icntl_14 "
    "eps_type eps_tol eps_max_it eps_ncv eps_monitor st_type st_ksp_type st_pc_type"
).split()


def direct_preset(comm: Any, dim: int) -> dict[str, Any]:
    """LU with MUMPS, in 1D and 2D in the QAMD ordering (icntl_7 = 6), which is faster; else with SuperLU_DIST."""
    package = "mumps" if PETSc.Sys.hasExternalPackage("mumps") else "superlu_dist"
    ordering = {"mat_mumps_icntl_7": 6} if package == "mumps" and dim < 3 else {}
    return {"ksp_type": "preonly", "pc_type": "lu", "pc_factor_mat_solver_type": package, **ordering}


def multigrid_preset() -> dict[str, Any]:
    """GMRES with BoomerAMG, whose coarsening takes half the time of hypre's default on tetrahedra."""
    hypre = {"coarsen_type": "HMIS", "interp_type": "ext+i", "agg_nl": 1, "P_max": 4, "strong_threshold": 0.5}
    krylov = {"ksp_type": "gmres", "ksp_rtol": 1e-12, "ksp_max_it": 400, "ksp_gmres_restart": 100}
    boomeramg = {f"pc_hypre_boomeramg_{key}": value for key, value in hypre.items()}
    return {**krylov, "pc_type": "hypre", "pc_hypre_type": "boomeramg", **boomeramg}


class LinearSolver:
    """A x = b and Aᵀ x = b for one matrix, set up once and reused; every solve is checked."""

    def __init__(self, A: PETSc.Mat, prefix: str, what: str, preset: Options, options: Options | None = None):
        self.prefix, self.what, self._preset, self._options = prefix, what, preset, options
        self._adjoint: LinearSolver | None = None
        self.A, self.norm = A, A.norm(PETSc.NormType.INFINITY)
        self.iterations, self.residual = 0, 0.0
        self.ksp = PETSc.KSP().create(A.comm)
        self.ksp.setOperators(A)
        self.ksp.setOptionsPrefix(prefix)
        with inserted_options(prefix, options, preset):
            self.ksp.setFromOptions()
            self.ksp.setUp()
        self.direct = self.ksp.getType() == PETSc.KSP.Type.PREONLY
        # SuperLU_DIST's transposed solve gives wrong answers (PETSc 3.22): a second factorisation serves it
        self._transposable = self.direct and self.ksp.getPC().getFactorSolverType() != "superlu_dist"
        self._work = A.createVecLeft()

    def solve(self, b: PETSc.Vec, x: PETSc.Vec, transpose: bool = False) -> None:
        """Solve into ``x``, or raise :class:`NotConverged` (collective)."""
        if transpose and not self._transposable:
            if self._adjoint is None:  # most preconditioners have no transposed application
                At = self.A.transpose(PETSc.Mat())
                self._adjoint = LinearSolver(At, self.prefix, self.what, self._preset, self._options)
            self._adjoint.solve(b, x)
            self.iterations, self.residual = self._adjoint.iterations, self._adjoint.residual
            return
        (self.ksp.solveTranspose if transpose else self.ksp.solve)(b, x)
        self.iterations = self.ksp.getIterationNumber()
        (self.A.multTranspose if transpose else self.A.mult)(x, self._work)
        self._work.aypx(-1.0, b)
        norm_r, norm_b, norm_x = (v.norm(PETSc.NormType.INFINITY) for v in (self._work, b, x))
        self.residual = norm_r / norm_b if norm_b > 0 else norm_r
        if (reason := ksp_failure(self.ksp)) is not None:
            raise self._failure(reason)
        # a direct solver never reports failure by itself; a backward stable one stays near 1e-16
        if self.direct and not norm_r <= 1e-9 * (self.norm * norm_x + norm_b):
            raise self._failure("DIVERGED_BACKWARD_ERROR")

    def _failure(self, reason: str) -> NotConverged:
        reason = {"DIVERGED_PC_FAILED": "DIVERGED_PCSETUP_FAILED"}.get(reason, reason)
        pc, info = self.ksp.getPC(), ""
        if pc.getType() in ("lu", "cholesky") and pc.getFactorSolverType() == "mumps":
            factor = pc.getFactorMatrix()
            info = f" (MUMPS INFOG(1) = {factor.getMumpsInfog(1)}, INFOG(2) = {factor.getMumpsInfog(2)})"
        advice = _ADVICE.get(reason, _ADVICE[""]).format(p=self.prefix, info=info)
        return NotConverged(self.what, reason, self.iterations, self.residual, self.prefix, advice)

    def destroy(self) -> None:
        """Free the factors (collective)."""
        if self._adjoint is not None:
            self._adjoint.destroy()
        self.ksp.destroy()


def eigenpairs(
    matrices: Sequence[PETSc.Mat], k: int, wanted: int, what: str, preset: Options, options: Options | None,
    target: float | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """At least ``k`` eigenvalues of A x = λ x or A x = λ B x, this rank's vectors (n, owned), residuals (collective).

    Those closest to a target or, without one, of the largest modulus, which come first; ``wanted`` are asked for.
    Fewer than ``k`` raise :class:`NotConverged`.
    """
    import_optional("slepc4py", what)
    from slepc4py import SLEPc

    size = matrices[0].getSize()[0]
    eps = SLEPc.EPS().create(matrices[0].comm)
    eps.setOptionsPrefix("fp_spectrum_")
    eps.setOperators(*matrices)
    kinds, which = SLEPc.EPS.ProblemType, SLEPc.EPS.Which
    eps.setProblemType(kinds.NHEP if len(matrices) == 1 else kinds.GNHEP)
    eps.setWhichEigenpairs(which.LARGEST_MAGNITUDE if target is None else which.TARGET_MAGNITUDE)
    if target is not None:
        eps.setTarget(target)
    eps.setDimensions(min(wanted, size), min(max(2 * wanted + 10, 30 if target is None else 20), size))
    eps.setTolerances(1e-11, 2000 if target is None else 500)
    with inserted_options("fp_spectrum_", options, preset):
        eps.setFromOptions()
        eps.setUp()
        eps.solve()
    converged = eps.getConverged()
    if converged < k:
        residual = max((eps.computeError(i) for i in range(converged)), default=float("nan"))
        reason, its = _name_of(SLEPc.EPS.ConvergedReason, eps.getConvergedReason()), eps.getIterationNumber()
        advice = f"{converged} of {k} modes converged; allow more work (-fp_spectrum_eps_max_it, -fp_spectrum_eps_ncv)."
        raise NotConverged(what, reason, its, residual, "fp_spectrum_", advice)
    re, im = matrices[0].createVecs("right"), matrices[0].createVecs("right")
    values, vectors = [], []
    for i in range(converged):
        values.append(eps.getEigenpair(i, re, im))
        vectors.append(re.array_r + 1j * im.array_r)
    return np.array(values, dtype=complex), np.array(vectors), np.array([eps.computeError(i) for i in range(converged)])
