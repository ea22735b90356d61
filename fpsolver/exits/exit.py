"""Leaving the domain: expectations over exit paths, each one backward solve with the factorised generator."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from petsc4py import PETSc

import numpy as np
import ufl
from dolfinx import fem

from .._errors import agree
from .._log import logger
from .._petsc import Options
from ..discretisation.assembly import assemble_vector, to_function, to_vector
from ..discretisation.fluxes import basis_integrals, exit_vector
from ..discretisation.generator import Generator
from ..discretisation.metastable import capacity_solver
from ..discretisation.solution import Solution
from ..discretisation.solver import statistics
from ..models.fields import is_number
from ._guards import check_certain_exit, check_growth, check_reach, check_roundoff, check_sign, need_exit
from ._killed import backward_operator, is_killed
from .error import with_error_bars


def feynman_kac(
    gen: Generator,
    *,
    exit: Any = 0.0,
    running: Any = 0.0,
    killing: Any = 0.0,
    start: Any = None,
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
        start: points of shape (n, d) or (d,), or an initial density as in :func:`fpsolver.exit_distribution`.  For it
            ``solution.error`` gives the error bars, at the price of solving with degrees k + 1 and k − 1 as well
            (about three times the time of the answer).  Without it that is done when the error is first asked for.

    Raises:
        ValueError: nothing absorbs and nothing kills; unknown part; sources that are not finite; the killing rate is so
            negative that the expectation is infinite.
        NotConverged: the solve failed.
    """
    answer = _expectation(gen, exit, running, killing, options, name)

    def again(other: Generator) -> list[fem.Function]:
        return [_expectation(other, exit, running, killing, options, name).function]

    return with_error_bars(gen, answer, [answer.function], again, start, killing, options)


def _expectation(gen: Generator, exit: Any, running: Any, killing: Any, options: Options | None, name: str) -> Solution:
    killed = is_killed(killing)
    if not killed:
        need_exit(gen, name)
    rhs = _running_cost(gen, running)
    check_reach(gen, name, killing)
    if not killed:
        if not gen.weak.scheme.by_capacities and not (is_number(exit) and exit == 0):
            check_certain_exit(gen, name, options)
    constants: dict[str, float] = {}
    for part, g in _exit_data(gen, exit).items():
        if is_number(g) and gen.weak.scheme.by_capacities and not killed:
            constants[part] = float(g)
        elif not (is_number(g) and g == 0):
            data = exit_vector(gen, gen.weak.space.scalar(g, f"exit data on {part!r}"), part)
            rhs.axpy(1.0, data)
            data.destroy()
    finite = np.isfinite([*rhs.array_r, *constants.values()]).all()
    agree(gen.domain.comm, None if finite else f"{name}: exit data or running cost is not finite on the domain.")
    if gen.weak.scheme.by_capacities and not killed:
        answer = _solve_by_capacity(gen, rhs, constants, options, name)
    else:
        given = [running, *_exit_data(gen, exit).values()]
        positive = all(is_number(g) and g >= 0 for g in given)
        answer = _solve(gen, rhs, killing, options, name, positive)
    gen.territory.complete(answer.function, _exit_data(gen, exit))
    return answer


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
        rhs = basis_integrals(gen).copy()
        rhs.scale(float(running))
        return rhs
    if isinstance(running, fem.Function) and running.function_space == gen.V:
        rhs, f = gen.G.createVecLeft(), to_vector(gen, running)
        gen.M.mult(f, rhs)
        f.destroy()
        return rhs
    weak, v = gen.weak, ufl.TestFunction(gen.V)
    return assemble_vector(gen, gen.weak.space.scalar(running, "running cost") * v * weak.dx)


def _solve(
    gen: Generator, rhs: PETSc.Vec, killing: Any, options: Options | None, name: str, positive: bool
) -> Solution:
    """Solve (−Gᵀ + S) u = rhs; ``rhs`` is consumed, ``positive`` tells whether u must be."""
    solver = backward_operator(gen, killing, options, name)
    if is_killed(killing):
        check_growth(gen, killing, solver, name, options)
    u = gen.G.createVecRight()
    rhs.scale(-1.0)
    with PETSc.Log.Stage("fpsolver solve"):
        solver.solve(rhs, u, transpose=True)
    stats = {**statistics(gen), "iterations": solver.iterations, "residual": solver.residual}
    # relative error that rounding alone may cause: backward error times an estimate of the condition number
    size = u.norm(PETSc.NormType.INFINITY)
    scale = rhs.norm(PETSc.NormType.INFINITY)
    stats["roundoff"] = float(np.finfo(float).eps * solver.norm * size / scale) if scale > 0 else 0.0
    check_roundoff(gen, name, stats, solver)
    if positive:
        check_sign(gen, name, u, solver)
    solution = Solution(to_function(gen, u), stats, name)
    u.destroy()
    rhs.destroy()
    logger.info("%s", solution)
    return solution


def _solve_by_capacity(
    gen: Generator, rhs: PETSc.Vec, constants: Mapping[str, float], options: Options | None, name: str
) -> Solution:
    capacity = capacity_solver(gen, name, options)
    u = capacity.solve(rhs, constants)
    stats = {**statistics(gen), "residual": capacity.solver.residual, "capacity": capacity.capacity}
    stats["wells"] = len(capacity.wells)
    finite = np.isfinite(u.array_r).all()
    problem = f"{name}: beyond the range of floating point numbers (capacity {capacity.capacity:.3g})."
    agree(gen.domain.comm, None if finite else problem, OverflowError)
    solution = Solution(to_function(gen, u), stats, name)
    for v in (u, rhs):
        v.destroy()
    logger.info("%s", solution)
    return solution


def mean_exit_time(gen: Generator, *, start: Any = None, options: Options | None = None) -> Solution:
    """τ(x) = E[exit time | X₀ = x]: Lτ = −1, τ = 0 on the absorbing part (collective).

    In the process' time units: for :class:`~fpsolver.SGD`, divide by the learning rate to count steps.
    ``start`` as in :func:`feynman_kac`.
    """
    return feynman_kac(gen, running=1.0, options=options, name="mean exit time", start=start)


def exit_time_moments(
    gen: Generator, order: int, *, start: Any = None, options: Options | None = None
) -> list[Solution]:
    """[E τ, E τ², ..., E τ^order]: L T_n = −n T_{n−1}, one solve each with the same factors (collective).

    ``start`` as in :func:`feynman_kac`; the error bars contain what the lower moments contribute.
    """
    if not is_number(order) or int(order) != order or order < 1:
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


def exit_probability(
    gen: Generator, to: Sequence[str], *, start: Any = None, options: Options | None = None
) -> Solution:
    """Probability of leaving through the parts ``to`` rather than the other absorbing parts (collective).

    ``start`` as in :func:`feynman_kac`.
    """
    need_exit(gen, "exit_probability")
    names = [to] if isinstance(to, str) else list(to) if isinstance(to, Iterable) else [to]
    absorbing = ", ".join(gen.absorbing)
    if not all(isinstance(part, str) for part in names):
        raise TypeError(f"exit_probability: to is {to!r}; names of absorbing parts were expected: {absorbing}.")
    if not names:
        raise ValueError(f"exit_probability: no part to leave through is given; absorbing are {absorbing}.")
    return feynman_kac(gen, exit=dict.fromkeys(names, 1.0), options=options, name="exit probability", start=start)
