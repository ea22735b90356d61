"""The invariant density: the null vector of G with mass one."""

from petsc4py import PETSc

import numpy as np
from dolfinx import fem

from .._arguments import need_still
from .._log import logger
from .._petsc import LinearSolver, Options, direct_preset
from ..chain import Chain
from ..discretisation.assembly import to_density, to_vector
from ..discretisation.fluxes import basis_integrals
from ..discretisation.generator import Generator
from ..discretisation.positivity import limiter
from ..discretisation.solution import Solution, bounds
from ..discretisation.solver import statistics
from .law import Law, check_unique, invariant

# inverse iteration with (M − γG)⁻¹M contracts a mode of rate λ by 1/(1 + γλ); γ = 1e13 / ‖M⁻¹G‖ leaves three digits
# for the contraction of the slowest resolvable mode and keeps the shifted matrix factorisable in double precision
_SHIFT = 1e13
_MAX_ITERATIONS = 60
_TOLERANCE = 1e-12
# relaxation rate times the time in which the drift crosses the domain: below it, degenerate noise may have several laws
_SLOW = 1e-3


def stationary(gen: Generator | Chain, *, options: Options | None = None) -> Solution:
    """Density p of the invariant law: G p = 0, ∫p = 1 (collective).

    Inverse iteration on a mass-conserving shift of G, for a density and for a zero-mass perturbation at once: how
    fast the perturbation contracts tells whether the law is unique to rounding.  It does not tell a slow process from
    one with several laws whose supports the mesh does not separate, so that it leaks from one to the other: where D
    is small and relaxation slow, a warning says so, and :func:`~fpsolver.ergodic_laws` decides.  ``stats``
    carries the smallest value before limiting (``minimum``), the residual, and the relaxation rate λ₁ where it was
    seen.

    Of a chain, p = P*p: a :class:`~fpsolver.longtime.law.Law`, which may be singular, so that its density is a
    projection; ``.mass_in``, ``.mean``, ``.covariance`` and ``.expectation`` have error bars.  ``options`` are PETSc's
    without the prefix ``fp_stationary_``.

    Raises:
        ValueError: mass leaves, or the invariant law is not unique to rounding.
        NotConverged: the factorisation failed.
    """
    need_still(gen, "stationary")
    if gen.absorbing:
        raise ValueError(
            f"stationary: mass leaves through {', '.join(gen.absorbing)}, so there is no invariant law; "
            f"build the {type(gen).__name__.lower()} without absorbing parts."
        )
    if isinstance(gen, Chain):
        moments, figures = invariant(gen, options)
        check_unique(gen, moments, figures, options)
        again = lambda other: other.inverse * invariant(other, options)[0]  # noqa: E731
        law = Law(gen, gen.inverse * moments, again, {**gen.stats(), **figures.stats()}, "invariant law")
        logger.info("%s", law)
        return law
    gamma = _SHIFT * gen.M.norm(PETSc.NormType.INFINITY) / gen.G.norm(PETSc.NormType.INFINITY)
    A = gen.G.copy()
    A.scale(-gamma)
    A.axpy(1.0, gen.M, PETSc.Mat.Structure.SUBSET_NONZERO_PATTERN)
    preset = direct_preset(A.comm, gen.domain.dim)
    solver = LinearSolver(A, "fp_stationary_", "invariant density", preset, {**gen.options, **(options or {})})
    p, rate, iterations = _iterate(gen, solver, gamma)
    _warn_if_slow(gen, rate)
    function = to_density(gen, p)
    sizes = [float(item.norm(PETSc.NormType.INFINITY)) for item in (gen.G * p, gen.G, p)]
    stats = {
        **statistics(gen), "iterations": iterations, "residual": sizes[0] / (sizes[1] * sizes[2]),
        "relaxation_rate": rate, "minimum": limiter(gen).minimum(function),
    }  # fmt: skip
    solution = Solution(function, stats, "invariant density", limiter=limiter(gen))
    logger.info("%s", solution)
    return solution


def _iterate(gen: Generator, solver: LinearSolver, gamma: float) -> tuple[PETSc.Vec, float, int]:
    tilt = fem.Function(gen.V)  # a perturbation that no symmetry of the domain makes vanish against the slow modes
    tilt.interpolate(lambda x: np.sin(1.0 + x[0] + 0.61803 * x[1] + 0.38197 * x[2]))
    p, q = gen.G.createVecRight(), to_vector(gen, tilt)
    p.set(1.0)
    work, new, m = p.duplicate(), p.duplicate(), basis_integrals(gen)

    def step(v: PETSc.Vec) -> None:
        gen.M.mult(v, work)
        solver.solve(work, new)
        new.copy(v)

    def settle() -> None:
        p.scale(1.0 / m.dot(p))
        q.axpy(-m.dot(q), p)  # no mass

    settle()
    contraction = 1.0
    for iteration in range(1, _MAX_ITERATIONS + 1):
        before = p.copy()
        size = q.norm()
        step(p)
        step(q)
        settle()
        contraction = q.norm() / size
        q.scale(1.0 / max(q.norm(), 1e-300))
        change = (before - p).norm() / p.norm()
        if change < _TOLERANCE and (contraction < 0.9 or iteration > 10):
            break
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
