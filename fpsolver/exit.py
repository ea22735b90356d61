"""Leaving the domain: expectations over exit paths, each one backward solve with the factorised generator."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from petsc4py import PETSc

import numpy as np
import ufl
from dolfinx import fem

from ._errors import agree
from ._guards import check_certain_exit, check_reach, check_roundoff
from ._log import logger
from ._petsc import LinearSolver, Options
from .evolution import backward, evolve
from .fields import is_number
from .generator import Generator
from .initial import Dirac, Gaussian, dirac, load
from .metastable import capacity_solver
from .solution import Solution, as_points


def feynman_kac(
    gen: Generator,
    exit: Any = 0.0,
    running: Any = 0.0,
    killing: Any = 0.0,
    options: Options | None = None,
    name: str = "expectation",
) -> Solution:
    """u(x) = E[g(X_τ) e^{−∫s} + ∫₀^τ f(X_t) e^{−∫s} dt | X₀ = x] (collective).

    Solves L u − s u + f = 0 with u = g where the absorbing boundary accepts data.

    Args:
        gen: generator with at least one absorbing part, or a positive killing rate.
        exit: g, a scalar source for the whole absorbing boundary, or a dictionary part -> source (others: zero).
        running: f, a scalar source or a ``Function`` on ``gen.V``.
        killing: s, a scalar source.
        options: PETSc options without the prefix ``fp_exit_``.
        name: what the answer is called.

    Raises:
        ValueError: nothing absorbs and nothing kills; unknown part; sources that are not finite.
        NotConverged: the solve failed.
    """
    killed = not (is_number(killing) and killing == 0)
    if not gen.absorbing and not killed:
        raise ValueError(
            f"{name}: nothing absorbs, so the process never leaves. Give the generator absorbing parts; "
            f"the domain has {', '.join(gen.domain.parts) or 'none'}."
        )
    rhs = _running_cost(gen, running)
    if not killed:
        check_reach(gen, name)
        if gen.scheme != "weighted" and not (is_number(exit) and exit == 0):
            gen.cached("exit is certain", lambda: check_certain_exit(gen, name, options))
    constants: dict[str, float] = {}
    for part, g in _exit_data(gen, exit).items():
        if is_number(g) and gen.scheme == "weighted" and not killed:
            constants[part] = float(g)
        elif not (is_number(g) and g == 0):
            data = gen.exit_vector(gen.space.scalar(g, f"exit data on {part!r}"), part)
            rhs.axpy(1.0, data)
            data.destroy()
    finite = np.isfinite([*rhs.array_r, *constants.values()]).all()
    agree(gen.domain.comm, None if finite else f"{name}: exit data or running cost is not finite on the domain.")
    if gen.scheme == "weighted" and not killed:
        return _solve_by_capacity(gen, rhs, constants, options, name)
    return _solve(gen, rhs, killing if killed else None, options, name)


def _exit_data(gen: Generator, exit: Any) -> dict[str, Any]:
    if not isinstance(exit, Mapping):
        return dict.fromkeys(gen.absorbing, exit)
    for part in exit:
        if part not in gen.absorbing:
            raise ValueError(f"exit data on {part!r}, which does not absorb; absorbing are {', '.join(gen.absorbing)}.")
    return dict(exit)


def _running_cost(gen: Generator, running: Any) -> PETSc.Vec:
    """F_i = ∫ f φ_i as a new vector."""
    if is_number(running):
        rhs = gen.integrals.copy()
        rhs.scale(float(running))
        return rhs
    if isinstance(running, fem.Function) and running.function_space == gen.V:
        rhs, f = gen.G.createVecLeft(), gen.vector(running)
        gen.M.mult(f, rhs)
        f.destroy()
        return rhs
    weak, v = gen.weak, ufl.TestFunction(gen.V)
    return gen.assemble_vector(gen.space.scalar(running, "running cost") * v * weak.dx)


def _solve(gen: Generator, rhs: PETSc.Vec, killing: Any, options: Options | None, name: str) -> Solution:
    """Solve (−Gᵀ + S) u = rhs; ``rhs`` is consumed."""
    solver = gen.solver(name, options) if killing is None else _killed_solver(gen, killing, options, name)
    u = gen.G.createVecRight()
    rhs.scale(-1.0)
    with PETSc.Log.Stage("fpsolver solve"):
        solver.solve(rhs, u, transpose=True)
    stats = {**gen.stats(), "iterations": solver.iterations, "residual": solver.residual}
    # relative error that rounding alone may cause: backward error times an estimate of the condition number
    size = u.norm(PETSc.NormType.INFINITY)
    scale = rhs.norm(PETSc.NormType.INFINITY)
    stats["roundoff"] = float(np.finfo(float).eps * solver.norm * size / scale) if scale > 0 else 0.0
    if killing is not None:
        solver.A.destroy()
        solver.destroy()
    check_roundoff(gen, name, stats, solver)
    solution = Solution(gen.function(u), stats, name)
    u.destroy()
    rhs.destroy()
    logger.info("%s", solution)
    return solution


def _solve_by_capacity(
    gen: Generator, rhs: PETSc.Vec, constants: Mapping[str, float], options: Options | None, name: str
) -> Solution:
    capacity = capacity_solver(gen, name, options)
    u = capacity.solve(rhs, constants)
    stats = {**gen.stats(), "residual": capacity.solver.residual, "capacity": capacity.capacity}
    stats["wells"] = len(capacity.wells)
    finite = np.isfinite(u.array_r).all()
    problem = f"{name}: beyond the range of floating point numbers (capacity {capacity.capacity:.3g})."
    agree(gen.domain.comm, None if finite else problem, OverflowError)
    solution = Solution(gen.function(u), stats, name)
    for v in (u, rhs):
        v.destroy()
    logger.info("%s", solution)
    return solution


def _killed_solver(gen: Generator, killing: Any, options: Options | None, name: str) -> LinearSolver:
    """G − S with S_ij = ∫ s φ_i φ_j; its transpose is the killed backward operator."""
    A = gen.G.copy()
    if is_number(killing):
        A.axpy(-float(killing), gen.M, PETSc.Mat.Structure.SUBSET_NONZERO_PATTERN)
    else:
        p, v = ufl.TrialFunction(gen.V), ufl.TestFunction(gen.V)
        S = gen.assemble_matrix(gen.weak.mass(gen.space.scalar(killing, "killing") * p, v))
        A.axpy(-1.0, S, PETSc.Mat.Structure.SUBSET_NONZERO_PATTERN)
        S.destroy()
    return LinearSolver(A, "fp_exit_", name, gen.exit_preset(), {**gen.options, **(options or {})})


def mean_exit_time(gen: Generator, options: Options | None = None) -> Solution:
    """τ(x) = E[exit time | X₀ = x]: Lτ = −1, τ = 0 on the absorbing part (collective).

    In the process' time units: for :class:`~fpsolver.SGD`, divide by the learning rate to count steps.
    """
    return feynman_kac(gen, running=1.0, options=options, name="mean exit time")


def exit_time_moments(gen: Generator, order: int, options: Options | None = None) -> list[Solution]:
    """[E τ, E τ², ..., E τ^order]: L T_n = −n T_{n−1}, one solve each with the same factors (collective)."""
    if int(order) != order or order < 1:
        raise ValueError(f"order is {order!r}; an integer of at least 1 was expected.")
    moments: list[Solution] = []
    previous: fem.Function | None = None
    for n in range(1, int(order) + 1):
        if previous is None:
            cost: Any = 1.0
        else:
            cost = fem.Function(gen.V)
            cost.x.array[:] = n * previous.x.array
        name = "mean exit time" if n == 1 else f"exit time moment {n}"
        moments.append(feynman_kac(gen, running=cost, options=options, name=name))
        previous = moments[-1].function
    return moments


def exit_probability(gen: Generator, to: Sequence[str], options: Options | None = None) -> Solution:
    """Probability of leaving through the parts ``to`` rather than the other absorbing parts (collective)."""
    names = [to] if isinstance(to, str) else list(to)
    return feynman_kac(gen, exit=dict.fromkeys(names, 1.0), options=options, name="exit probability")


@dataclass(frozen=True)
class ExitDistribution:
    """Where and through which part a process leaves.

    Attributes:
        probability: dictionary part -> probability; sums to the probability of ever leaving.
        mean_time: E τ from the same start, the integral of the occupation density.
        occupation: occupation density ∫₀^∞ p(t) dt (the Green measure of the start), a ``Function``.
    """

    probability: dict[str, float]
    mean_time: float
    occupation: fem.Function
    _forward: fem.Function
    _gen: Generator

    def density(self, part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Exit density along a part, at quadrature points of its facets, gathered on every rank (collective).

        Returns:
            Points (n, d), density per length or area (n,), weights (n,): ``density @ weights`` is the probability of
            the part, to rounding.
        """
        gen = self._gen
        gen.activate()
        return gen.boundary.flux(self._forward, gen.domain.facets(part), gen.weak)


def exit_distribution(gen: Generator, start: Any, options: Options | None = None) -> ExitDistribution:
    """Exit probabilities of the absorbing parts and the exit density along them (collective).

    One forward solve −G g = M p₀; the flux of g through a part is the consistent one of the scheme, so that the
    probabilities sum to one to solver tolerance.

    Args:
        gen: generator with absorbing parts.
        start: a point, or an initial density as in :func:`~fpsolver.evolve`.
        options: PETSc options without the prefix ``fp_exit_``.
    """
    if not gen.absorbing:
        raise ValueError("exit_distribution: nothing absorbs, so the process never leaves.")
    source = load(gen, start if _is_density(start) else dirac(start), "start")
    if gen.scheme == "weighted":
        capacity = capacity_solver(gen, "occupation density", options)
        g, shares = capacity.solve(source), capacity.absorbed(source)
        probability = {part: float(share) for part, share in zip(gen.absorbing, shares, strict=True)}
    else:
        g = gen.G.createVecRight()
        source.scale(-1.0)
        gen.solver("occupation density", options).solve(source, g)
        probability = {part: float(gen.exit_flux(part).dot(g)) for part in gen.absorbing}
    answer = ExitDistribution(
        probability, float(gen.integrals.dot(g)), gen.density(g, "occupation"), gen.function(g), gen
    )
    for v in (source, g):
        v.destroy()
    return answer


def survival(gen: Generator, start: Any, times: Any, tol: float = 1e-6, options: Options | None = None) -> np.ndarray:
    """P(τ > t) at the given times, shape (times,), or (points, times) for several starting points (collective).

    Points are served by one backward evolution of the constant 1, whatever their number; an initial density by one
    forward evolution.  ``tol`` and ``options`` as in :func:`~fpsolver.evolve`.
    """
    if not gen.absorbing:
        raise ValueError("survival: nothing absorbs, so the process never leaves.")
    if _is_density(start):
        return evolve(gen, start, times, tol, options).mass
    points = as_points(start, gen.domain.dim, "start")
    values = np.array([u.at(points) for u in backward(gen, 1.0, times, tol, options)]).T
    return values[0] if len(points) == 1 else values


def _is_density(start: Any) -> bool:
    return isinstance(start, Gaussian | Dirac | fem.Function) or callable(start)
