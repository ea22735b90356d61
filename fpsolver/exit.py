"""Leaving the domain: expectations over exit paths, each one backward solve with the factorised generator."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from petsc4py import PETSc

import numpy as np
import ufl
from dolfinx import fem

from ._errors import NotConverged, agree
from ._killed import backward_operator, is_killed
from ._log import logger
from ._petsc import LinearSolver, Options
from .error import is_density, with_error_bars
from .evolution import backward, evolve
from .fields import is_number
from .generator import Generator
from .initial import dirac, load
from .metastable import capacity_solver
from .solution import Solution, as_points


def feynman_kac(
    gen: Generator,
    exit: Any = 0.0,
    running: Any = 0.0,
    killing: Any = 0.0,
    options: Options | None = None,
    name: str = "expectation",
    start: Any = None,
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
        start: points of shape (n, d) or (d,), or an initial density as in :func:`exit_distribution`, for which
            ``solution.error`` gives the error bars, at the price of solving with degrees k + 1 and k − 1 as well
            (about three times the time of the answer).  Without it that is done when the error is first asked for.

    Raises:
        ValueError: nothing absorbs and nothing kills; unknown part; sources that are not finite.
        NotConverged: the solve failed.
    """
    answer = _expectation(gen, exit, running, killing, options, name)

    def again(other: Generator) -> list[fem.Function]:
        return [_expectation(other, exit, running, killing, options, name).function]

    return with_error_bars(gen, answer, [answer.function], again, start, killing, options)


def _expectation(gen: Generator, exit: Any, running: Any, killing: Any, options: Options | None, name: str) -> Solution:
    killed = is_killed(killing)
    if not killed:
        _need_exit(gen, name)
    rhs = _running_cost(gen, running)
    if not killed and gen.scheme != "weighted" and not (is_number(exit) and exit == 0):
        gen.cached("exit is certain", lambda: _check_certain_exit(gen, name, options))
    for part, g in _exit_data(gen, exit).items():
        if not (is_number(g) and g == 0):
            data = gen.exit_vector(gen.space.scalar(g, f"exit data on {part!r}"), part)
            rhs.axpy(1.0, data)
            data.destroy()
    finite = np.isfinite(rhs.array_r).all()
    agree(gen.domain.comm, None if finite else f"{name}: exit data or running cost is not finite on the domain.")
    return _solve(gen, rhs, killing, options, name)


def _need_exit(gen: Generator, name: str) -> None:
    if not gen.absorbing:
        raise ValueError(
            f"{name}: nothing absorbs, so the process never leaves. Give the generator absorbing parts; "
            f"the domain has {', '.join(gen.domain.parts) or 'none'}."
        )


def _check_certain_exit(gen: Generator, name: str, options: Options | None) -> bool:
    """Refuse exit data where paths may stay for ever: the answer with data 1 must be 1, as constants solve Lu = 0."""
    one, data = gen.G.createVecRight(), gen.G.createVecLeft()
    one.set(1.0)
    gen.G.multTranspose(one, data)
    gen.solver(name, options).solve(data, one, transpose=True)
    one.shift(-1.0)
    deviation = one.norm(PETSc.NormType.INFINITY)
    for v in (one, data):
        v.destroy()
    if not deviation < 1e-6:
        raise ValueError(
            f"{name}: exit is not certain. With data 1 on the whole absorbing boundary the answer should be 1, and it "
            f"is off by {deviation:.2g}: the process stays for ever in a part of the domain, or leaves it too slowly "
            "for double precision. Add noise there, or a killing rate."
        )
    return True


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
    if gen.scheme == "weighted" and not is_killed(killing):
        return _solve_by_capacity(gen, rhs, options, name)
    solver = backward_operator(gen, killing, options, name)
    u = gen.G.createVecRight()
    rhs.scale(-1.0)
    with PETSc.Log.Stage("fpsolver solve"):
        solver.solve(rhs, u, transpose=True)
    stats = {**gen.stats(), "iterations": solver.iterations, "residual": solver.residual}
    # relative error that rounding alone may cause: backward error times an estimate of the condition number
    size = u.norm(PETSc.NormType.INFINITY)
    scale = rhs.norm(PETSc.NormType.INFINITY)
    stats["roundoff"] = float(np.finfo(float).eps * solver.norm * size / scale) if scale > 0 else 0.0
    _check_roundoff(name, stats, solver)
    solution = Solution(gen.function(u), stats, name)
    u.destroy()
    rhs.destroy()
    logger.info("%s", solution)
    return solution


def _solve_by_capacity(gen: Generator, rhs: PETSc.Vec, options: Options | None, name: str) -> Solution:
    capacity = capacity_solver(gen, name, options)
    u = capacity.solve(rhs)
    stats = {**gen.stats(), "residual": capacity.solver.residual, "capacity": capacity.capacity}
    finite = np.isfinite(u.array_r).all()
    problem = f"{name}: beyond the range of floating point numbers (capacity {capacity.capacity:.3g})."
    agree(gen.domain.comm, None if finite else problem, OverflowError)
    solution = Solution(gen.function(u), stats, name)
    for v in (u, rhs):
        v.destroy()
    logger.info("%s", solution)
    return solution


def _check_roundoff(name: str, stats: dict[str, Any], solver: LinearSolver) -> None:
    """Refuse an answer that rounding has made meaningless.

    The estimate exceeded the true error by 10 to 50 on double wells from τ = 1e3 to 1e22, and reached one before the
    last correct digit was gone.
    """
    if stats["roundoff"] > 1:
        advice = (
            "Exit takes longer than double precision resolves: rounding alone may have changed every digit (estimate "
            f"{stats['roundoff']:.2g}). Take scheme='weighted' if the invariant density is known (Langevin); otherwise "
            "raise the noise, and extrapolate the logarithm of the answer."
        )
        raise NotConverged(name, "DIVERGED_ROUNDOFF", solver.iterations, solver.residual, solver.prefix, advice)
    if stats["roundoff"] > 1e-3:
        logger.warning("%s: rounding may have caused a relative error of %.1e", name, stats["roundoff"])


def mean_exit_time(gen: Generator, options: Options | None = None, start: Any = None) -> Solution:
    """τ(x) = E[exit time | X₀ = x]: Lτ = −1, τ = 0 on the absorbing part (collective).

    In the process' time units: for :class:`~fpsolver.SGD`, divide by the learning rate to count steps.
    ``start`` as in :func:`feynman_kac`.
    """
    return feynman_kac(gen, running=1.0, options=options, name="mean exit time", start=start)


def exit_time_moments(gen: Generator, order: int, options: Options | None = None, start: Any = None) -> list[Solution]:
    """[E τ, E τ², ..., E τ^order]: L T_n = −n T_{n−1}, one solve each with the same factors (collective).

    ``start`` as in :func:`feynman_kac`; the error bars contain what the lower moments contribute.
    """
    if int(order) != order or order < 1:
        raise ValueError(f"order is {order!r}; an integer of at least 1 was expected.")
    moments = _moments(gen, int(order), options)
    chain = [m.function for m in moments]

    def again(n: int) -> Callable[[Generator], list[fem.Function]]:
        return lambda other: [m.function for m in _moments(other, n, options)]

    return [
        with_error_bars(gen, m, chain[: n + 1], again(n + 1), start, options=options) for n, m in enumerate(moments)
    ]


def _moments(gen: Generator, order: int, options: Options | None) -> list[Solution]:
    moments = [_expectation(gen, 0.0, 1.0, 0.0, options, "mean exit time")]
    for n in range(2, order + 1):
        cost = fem.Function(gen.V)
        cost.x.array[:] = n * moments[-1].function.x.array
        moments.append(_expectation(gen, 0.0, cost, 0.0, options, f"exit time moment {n}"))
    return moments


def exit_probability(gen: Generator, to: Sequence[str], options: Options | None = None, start: Any = None) -> Solution:
    """Probability of leaving through the parts ``to`` rather than the other absorbing parts (collective).

    ``start`` as in :func:`feynman_kac`.
    """
    _need_exit(gen, "exit_probability")
    names = [to] if isinstance(to, str) else list(to) if isinstance(to, Iterable) else [to]
    absorbing = ", ".join(gen.absorbing)
    if not all(isinstance(part, str) for part in names):
        raise TypeError(f"exit_probability: to is {to!r}; names of absorbing parts were expected: {absorbing}.")
    if not names:
        raise ValueError(f"exit_probability: no part to leave through is given; absorbing are {absorbing}.")
    return feynman_kac(gen, exit=dict.fromkeys(names, 1.0), options=options, name="exit probability", start=start)


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

        Raises:
            ValueError: the part does not absorb.
        """
        gen = self._gen
        if part not in gen.absorbing:
            raise ValueError(f"exit density: {part!r} does not absorb; absorbing are {', '.join(gen.absorbing)}.")
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

    Raises:
        ValueError: nothing absorbs, the start is outside or has not mass one, exit is not certain.
        NotConverged: the solve failed, or rounding has made the answer meaningless.
    """
    _need_exit(gen, "exit_distribution")
    if not is_density(start):
        points = as_points(start, gen.domain.dim, "start")
        if len(points) != 1:
            raise ValueError(f"start: {len(points)} points; one was expected, or a density.")
        start = dirac(points[0])
    source = _load_density(gen, start)
    g = _occupation(gen, source, options)
    probability = {part: float(gen.exit_flux(part).dot(g)) for part in gen.absorbing}
    answer = ExitDistribution(
        probability, float(gen.integrals.dot(g)), gen.density(g, "occupation"), gen.function(g), gen
    )
    missing = abs(sum(probability.values()) - source.sum())
    for v in (source, g):
        v.destroy()
    if not missing < 1e-6:
        raise ValueError(
            f"exit_distribution: the probabilities {probability} do not add up to one: the process stays for ever in a "
            "part of the domain, or leaves it too slowly for double precision. Add noise there."
        )
    return answer


def _load_density(gen: Generator, start: Any) -> PETSc.Vec:
    """∫ start φ_i, whose sum must be one."""
    source = load(gen, start, "start")
    mass = float(source.sum())
    if not abs(mass - 1) < 1e-3:
        source.destroy()
        raise ValueError(f"start: the density has mass {mass:.6g} in the domain where 1 was expected; normalise it.")
    return source


def _occupation(gen: Generator, source: PETSc.Vec, options: Options | None) -> PETSc.Vec:
    """Solve −G g = source for the occupation density; a new vector (collective)."""
    what = "occupation density"
    if gen.scheme == "weighted":
        return capacity_solver(gen, what, options).solve(source)
    solver, g = gen.solver(what, options), gen.G.createVecRight()
    solver.solve(source, g)
    g.scale(-1.0)
    return g


def survival(gen: Generator, start: Any, times: Any, tol: float = 1e-6, options: Options | None = None) -> np.ndarray:
    """P(τ > t) at the given times, shape (times,), or (points, times) for several starting points (collective).

    Points are served by one backward evolution of the constant 1, whatever their number; an initial density by one
    forward evolution.  ``tol`` and ``options`` as in :func:`~fpsolver.evolve`.

    Raises:
        ValueError: nothing absorbs, the start is outside or has not mass one, times that are not increasing.
    """
    _need_exit(gen, "survival")
    if is_density(start):
        _load_density(gen, start).destroy()
        return evolve(gen, start, times, tol, options).mass
    points = as_points(start, gen.domain.dim, "start")
    values = np.array([u.at(points) for u in backward(gen, 1.0, times, tol, options)]).T
    return values[0] if len(points) == 1 else values
