"""The invariant density: the null vector of G with mass one."""

from petsc4py import PETSc

import numpy as np
from dolfinx import fem

from .._log import logger
from .._petsc import LinearSolver, Options, direct_preset
from .._verbs import verb
from ..discretisation.assembly import to_density, to_vector
from ..discretisation.fluxes import basis_integrals
from ..discretisation.generator import Generator
from ..discretisation.positivity import limiter
from ..discretisation.solution import Solution, bounds
from ..discretisation.solver import statistics

# inverse iteration with (M − γG)⁻¹M contracts a mode of rate λ by 1/(1 + γλ); γ = 1e13 / ‖M⁻¹G‖ leaves three digits
# for the contraction of the slowest resolvable mode and keeps the shifted matrix factorisable in double precision
_SHIFT = 1e13
_MAX_ITERATIONS = 60
_TOLERANCE = 1e-12
# relaxation rate times the time in which the drift crosses the domain: below it, degenerate noise may have several laws
_SLOW = 1e-3


@verb
def stationary(gen: Generator, *, options: Options | None = None) -> Solution:
    """Density p of the invariant law: G p = 0, ∫p = 1 (collective).

    Inverse iteration on a mass-conserving shift of G, for a density and for a zero-mass perturbation at once: how
    fast the perturbation contracts tells whether the law is unique to rounding.  It does not tell a slow process from
    one with several laws whose supports the mesh does not separate, so that it leaks from one to the other: where D
    is small and relaxation slow, a warning says so, and :func:`~fpsolver.ergodic_laws` decides.  ``stats``
    carries the smallest value before limiting (``minimum``), the residual, and the relaxation rate λ₁ where it was
    seen.

    Args:
        gen: generator with nothing absorbing.
        options: PETSc options without the prefix ``fp_stationary_``.

    Raises:
        ValueError: mass leaves, or the invariant law is not unique to rounding.
        NotConverged: the factorisation failed.
    """
    if gen.absorbing:
        raise ValueError(
            f"stationary: mass leaves through {', '.join(gen.absorbing)}, so there is no invariant law; "
            "build the generator without absorbing parts."
        )
    gamma = _SHIFT * gen.M.norm(PETSc.NormType.INFINITY) / gen.G.norm(PETSc.NormType.INFINITY)
    A = gen.G.copy()
    A.scale(-gamma)
    A.axpy(1.0, gen.M, PETSc.Mat.Structure.SUBSET_NONZERO_PATTERN)
    preset = direct_preset(A.comm, gen.domain.dim)
    solver = LinearSolver(A, "fp_stationary_", "invariant density", preset, {**gen.options, **(options or {})})
    try:
        p, rate, iterations = _iterate(gen, solver, gamma)
    finally:
        solver.destroy()
        A.destroy()
    _warn_if_slow(gen, rate)
    function = to_density(gen, p)
    stats = {**statistics(gen), "iterations": iterations, "residual": _residual(gen, p), "relaxation_rate": rate}
    stats["minimum"] = limiter(gen).minimum(function)
    p.destroy()
    solution = Solution(function, stats, "invariant density", limiter=limiter(gen))
    logger.info("%s", solution)
    return solution


def _iterate(gen: Generator, solver: LinearSolver, gamma: float) -> tuple[PETSc.Vec, float, int]:
    p, q = gen.G.createVecRight(), to_vector(gen, _tilt(gen))
    p.set(1.0)
    work, new = p.duplicate(), p.duplicate()

    def step(v: PETSc.Vec) -> None:
        gen.M.mult(v, work)
        solver.solve(work, new)
        new.copy(v)

    _normalise(gen, p)
    _remove_mass(gen, q, p)
    contraction = 1.0
    for iteration in range(1, _MAX_ITERATIONS + 1):
        before = p.copy()
        step(p)
        _normalise(gen, p)
        size = q.norm()
        step(q)
        _remove_mass(gen, q, p)
        contraction = q.norm() / size
        q.scale(1.0 / max(q.norm(), 1e-300))
        before.axpy(-1.0, p)
        change = before.norm() / p.norm()
        before.destroy()
        if change < _TOLERANCE and (contraction < 0.9 or iteration > 10):
            break
    for v in (q, work, new):
        v.destroy()
    if contraction > 0.9:
        raise ValueError(
            "stationary: the invariant law is not unique to rounding: a second one, or a mode slower than "
            f"{gamma:.2g} time units, was found. The domain may fall apart into regions the process does not leave, "
            "or a barrier is too high for double precision"
            + (
                ": scheme='weighted' keeps its accuracy there"
                if gen.process.potential(gen.weak.space) is not None
                else ""
            )
            + ". fp.ergodic_laws(gen) gives all invariant laws."
        )
    return p, (1.0 / contraction - 1.0) / gamma, iteration


def _warn_if_slow(gen: Generator, rate: float) -> None:
    low, high = bounds(gen.domain.mesh)
    crossing = float((high - low).max()) / max(gen.survey.drift, 1e-300)
    # where D vanishes between the points at which it was looked at, only the Péclet number tells
    if gen.survey.peclet > 1 and gen.process.potential(gen.weak.space) is None and rate * crossing < _SLOW:
        logger.warning(
            "stationary: the slowest mode relaxes with rate %.2g, in %.2g times the time in which the drift crosses "
            "the domain. D vanishes or is small: perhaps only the mesh joins regions that the process never leaves, "
            "and decides how much mass each has. fp.ergodic_laws(gen) tells.", rate, 1 / max(rate * crossing, 1e-300)
        )  # fmt: skip


def _tilt(gen: Generator) -> fem.Function:
    """A perturbation that no symmetry of the domain makes vanish against the slow modes."""
    tilt = fem.Function(gen.V)
    tilt.interpolate(lambda x: np.sin(1.0 + x[0] + 0.61803 * x[1] + 0.38197 * x[2]))
    return tilt


def _normalise(gen: Generator, p: PETSc.Vec) -> None:
    p.scale(1.0 / basis_integrals(gen).dot(p))


def _remove_mass(gen: Generator, q: PETSc.Vec, p: PETSc.Vec) -> None:
    q.axpy(-basis_integrals(gen).dot(q), p)


def _residual(gen: Generator, p: PETSc.Vec) -> float:
    """‖Gp‖ relative to ‖G‖‖p‖."""
    r = gen.G.createVecLeft()
    gen.G.mult(p, r)
    value = r.norm(PETSc.NormType.INFINITY) / (gen.G.norm(PETSc.NormType.INFINITY) * p.norm(PETSc.NormType.INFINITY))
    r.destroy()
    return float(value)
