"""The invariant density: the null vector of G with mass one."""

from typing import Any

from petsc4py import PETSc

import numpy as np
from dolfinx import fem

from .._arguments import expect, need_still
from .._log import logger
from .._petsc import LinearSolver, Options, direct_preset
from ..chain import Chain
from ..chain.refinement import MAX_UNKNOWNS, to_accuracy
from ..discretisation.assembly import to_density, to_vector
from ..discretisation.generator import Generator
from ..discretisation.positivity import limiter
from ..discretisation.solution import bounds
from ..discretisation.solver import basis_integrals, statistics
from ..evolution.law import SINGULAR, Law
from ._of_chain import check_unique, invariant

# inverse iteration with (M − γG)⁻¹M contracts a mode of rate λ by 1/(1 + γλ); γ = 1e13 / ‖M⁻¹G‖ leaves three digits
# for the contraction of the slowest resolvable mode and keeps the shifted matrix factorisable in double precision
_SHIFT = 1e13
_MAX_ITERATIONS = 60
_TOLERANCE = 1e-12
# relaxation rate times the time in which the drift crosses the domain: below it, degenerate noise may have several laws
_SLOW = 1e-3


def stationary(
    gen: Generator | Chain, *, rtol: float | None = None, max_unknowns: int = MAX_UNKNOWNS,
    options: Options | None = None,
) -> Law:  # fmt: skip
    """Density p of the invariant law: G p = 0, ∫p = 1 (collective).

    Inverse iteration on a mass-conserving shift of G, for a density and for a zero-mass perturbation at once: how
    fast the perturbation contracts tells whether the law is unique to rounding.  It does not tell a slow process from
    one with several laws whose supports the mesh does not separate, so that it leaks from one to the other: where D
    is small and relaxation slow, a warning says so, and :func:`~fpsolver.ergodic_laws` decides.  ``stats``
    carries the smallest value before limiting (``minimum``), the residual, and the relaxation rate λ₁ where it was
    seen.

    ``.mass_in(region)``, ``.mean()``, ``.covariance()`` and ``.expectation(f)`` have error bars, and so have values at
    points (``.error_at``); ``.error`` is that of the whole density in total variation, ∫ |p − p*|.  With ``rtol`` the
    mesh is refined where it comes from, until it is at most ``rtol``.  Of a chain, p = P*p may be singular: its density
    is a projection, while masses and expectations converge; ``rtol`` is then refused.  ``options`` are PETSc's without
    the prefix ``fp_stationary_``.

    Raises:
        ValueError: mass leaves, or the invariant law is not unique to rounding.
        NotConverged: the factorisation failed; with ``rtol``, ``max_unknowns`` was reached, and
            ``exception.partial`` is the answer so far.
    """
    need_still(gen, "stationary")
    if gen.absorbing:
        raise ValueError(
            f"stationary: mass leaves through {', '.join(gen.absorbing)}, so there is no invariant law; "
            f"build the {type(gen).__name__.lower()} without absorbing parts."
        )
    if isinstance(gen, Chain):
        expect("stationary: rtol", rtol, "None: the density of a chain's law is a projection, which", rtol is None)
        moments, figures = invariant(gen, options)
        check_unique(gen, moments, figures, options)
        stats = {**gen.stats(), **figures.stats(), "density": SINGULAR}
        again = lambda other: other.inverse * invariant(other, options)[0]  # noqa: E731
        law = Law(gen, gen.function(gen.inverse * moments), stats, "invariant law", again)
        logger.info("%s", law)
        return law
    return to_accuracy(
        "stationary",
        gen,
        lambda other: _of_generator(other, options),
        "fp_stationary_",
        rtol=rtol,
        max_unknowns=max_unknowns,
    )


def _of_generator(gen: Generator, options: Options | None) -> Law:
    function, rate, stats = _density(gen, options)
    _warn_if_slow(gen, rate)
    again = lambda other: _density(other, options)[0]  # noqa: E731
    stats["minimum"] = limiter(gen).minimum(function)
    law = Law(gen, function, stats, "invariant density", again, limiter(gen))
    logger.info("%s", law)
    return law


def _density(gen: Generator, options: Options | None) -> tuple[fem.Function, float, dict[str, Any]]:
    """The density, the relaxation rate, and how the solve went."""
    gamma = _SHIFT * gen.M.norm(PETSc.NormType.INFINITY) / gen.G.norm(PETSc.NormType.INFINITY)
    A = gen.G.copy()
    A.scale(-gamma)
    A.axpy(1.0, gen.M, PETSc.Mat.Structure.SUBSET_NONZERO_PATTERN)
    preset = direct_preset(A.comm, gen.domain.dim)
    solver = LinearSolver(A, "fp_stationary_", "invariant density", preset, {**gen.options, **(options or {})})
    p, rate, iterations = _iterate(gen, solver, gamma)
    sizes = [float(item.norm(PETSc.NormType.INFINITY)) for item in (gen.G * p, gen.G, p)]
    residual = sizes[0] / (sizes[1] * sizes[2])
    stats = {**statistics(gen), "iterations": iterations, "residual": residual, "relaxation_rate": rate}
    return to_density(gen, p), rate, stats


def _iterate(gen: Generator, solver: LinearSolver, gamma: float) -> tuple[PETSc.Vec, float, int]:
    tilt = fem.Function(gen.V)  # a perturbation that no symmetry of the domain makes vanish against the slow modes
    tilt.interpolate(lambda x: np.sin(1.0 + x[0] + 0.61803 * x[1] + 0.38197 * x[2]))
    p, q = gen.G.createVecRight(), to_vector(gen, tilt)
    p.set(1.0)
    m = basis_integrals(gen)

    def settle() -> None:
        p.scale(1.0 / m.dot(p))
        q.axpy(-m.dot(q), p)  # no mass

    settle()
    for iteration in range(1, _MAX_ITERATIONS + 1):
        before, size = p.copy(), q.norm()
        for v in (p, q):
            solver.solve(gen.M * v, v)
        settle()
        contraction = q.norm() / size
        q.scale(1.0 / max(q.norm(), 1e-300))
        change = (before - p).norm() / p.norm()
        if change < _TOLERANCE and (contraction < 0.9 or iteration > 10):
            break
    if contraction > 0.9:
        known = gen.process.potential(gen.weak.space) is not None
        better = ": scheme='weighted' keeps its accuracy there" if known else ""
        raise ValueError(
            "stationary: the invariant law is not unique to rounding: a second one, or a mode slower than "
            f"{gamma:.2g} time units, was found. The domain may fall apart into regions the process does not leave, "
            f"or a barrier is too high for double precision{better}. fp.ergodic_laws(gen) gives all invariant laws."
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
