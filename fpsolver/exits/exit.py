"""Leaving the domain: expectations over exit paths, each one backward solve with the factorised generator."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from petsc4py import PETSc

import numpy as np
import ufl
from dolfinx import fem

from .._answer import Answer, steps_of
from .._arguments import check_integer
from .._errors import agree
from .._log import logger
from .._petsc import Options
from .._verbs import verb
from ..discretisation.assembly import assemble_vector, to_function, to_vector
from ..discretisation.fluxes import basis_integrals, exit_vector
from ..discretisation.generator import Generator
from ..discretisation.metastable import capacity_solver
from ..discretisation.solution import Level, Solution
from ..discretisation.solver import statistics
from ..models.fields import is_number
from ._guards import check_certain_exit, check_growth, check_reach, check_roundoff, check_sign, need_exit
from ._killed import backward_operator, is_killed
from ._stopped import Region, is_ball, stopped
from .adapt import MAX_UNKNOWNS, to_accuracy
from .error import with_error_bars


@verb
def feynman_kac(
    gen: Generator,
    *,
    exit: Any = 0.0,
    running: Any = 0.0,
    killing: Any = 0.0,
    start: Any = None,
    rtol: float | None = None,
    max_unknowns: int = MAX_UNKNOWNS,
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
        start: points of shape (n, d) or (d,), or an initial density as in :func:`fpsolver.exit_distribution`.  For it
            ``solution.error`` gives the error bars, at the price of solving with degrees k + 1 and k − 1 as well
            (about three times the time of the answer).  Without it that is done when the error is first asked for.
        rtol: refine the mesh until the error bar at the start, one point or density, is at most this times the answer;
            ``solution.generator`` is then that of the last mesh and ``solution.history`` has them all.
        max_unknowns: with ``rtol``, no mesh with more unknowns is tried.
        options: PETSc options without the prefix ``fp_exit_``.
        name: what the answer is called.

    Raises:
        ValueError: nothing absorbs and nothing kills; unknown part; sources that are not finite; the killing rate is so
            negative that the expectation is infinite; with ``rtol``, sources or coefficients of the process that are
            tied to the mesh.
        NotConverged: the solve failed; with ``rtol``, ``max_unknowns`` or the floor of rounding was reached, and
            ``exception.partial`` is the answer so far.
    """
    time = is_number(running) and running == 1 and is_number(exit) and exit == 0 and not is_killed(killing)

    def again(other: Generator) -> list[fem.Function]:
        return [_expectation(other, exit, running, killing, options, name).raw]

    def ask(here: Generator, history: tuple[Level, ...] | None = None) -> Solution:
        answer = _expectation(here, exit, running, killing, options, name)
        chain = [answer.raw]
        return with_error_bars(
            here, answer, chain, again, start, killing, options, power=1 if time else None, history=history
        )

    if rtol is None:
        return ask(gen)
    data = [running, killing, *(exit.values() if isinstance(exit, Mapping) else [exit])]
    return to_accuracy(ask, gen, name, start, rtol, max_unknowns, data)


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


@verb
def mean_exit_time(
    gen: Generator,
    *,
    start: Any = None,
    rtol: float | None = None,
    max_unknowns: int = MAX_UNKNOWNS,
    options: Options | None = None,
) -> Solution:
    """τ(x) = E[exit time | X₀ = x]: Lτ = −1, τ = 0 on the absorbing part (collective).

    Also called mean first-passage time, or escape time.  In the process' time units; :meth:`Solution.in_steps` counts
    steps of an algorithm.  Everything optional as in :func:`feynman_kac`.
    """
    more: Any = {"start": start, "rtol": rtol, "max_unknowns": max_unknowns, "options": options}
    if steps_of(gen.process) is not None:
        logger.info(
            "mean exit time: of the diffusion. How long rare escapes of the algorithm take, all cumulants of its noise "
            "decide, and the two may differ by orders of magnitude: fp.Chain answers for the algorithm, "
            "fp.diagnostics.validity compares them."
        )
    return feynman_kac(gen, running=1.0, name="mean exit time", **more)


@dataclass(frozen=True)
class ExitTimeMoments(Answer, Sequence[Solution]):
    """Moments of the exit time; ``moments[n - 1]`` is the :class:`Solution` E τⁿ."""

    solutions: tuple[Solution, ...]

    def __getitem__(self, i: Any) -> Any:
        return self.solutions[i]

    def __len__(self) -> int:
        return len(self.solutions)

    def in_steps(self) -> "ExitTimeMoments":
        """Moments of the number of steps of an algorithm (collective)."""
        return ExitTimeMoments(tuple(m.in_steps() for m in self.solutions))

    def __repr__(self) -> str:
        return "\n".join(str(m).partition("\n")[0] for m in self.solutions)


@verb
def exit_time_moments(
    gen: Generator,
    order: int,
    *,
    start: Any = None,
    rtol: float | None = None,
    max_unknowns: int = MAX_UNKNOWNS,
    options: Options | None = None,
) -> ExitTimeMoments:
    """E τ, E τ², ..., E τ^order: L T_n = −n T_{n−1}, one solve each with the same factors (collective).

    Everything optional as in :func:`feynman_kac`, with ``rtol`` of the highest moment; error bars contain what the
    lower moments contribute.
    """
    order = check_integer("exit_time_moments: order", order)

    def again(n: int) -> Callable[[Generator], list[fem.Function]]:
        return lambda other: [m.raw for m in _moments(other, n, options)]

    def ask(here: Generator, history: tuple[Level, ...] | None = None) -> list[Solution]:
        plain, bars = _moments(here, order, options), []
        for n, moment in enumerate(plain, 1):
            chain, more = [m.raw for m in plain[:n]], history if n == order else None
            about: Any = {"options": options, "power": n, "history": more}
            bars.append(with_error_bars(here, moment, chain, again(n), start, **about))
        return bars

    if rtol is None:
        return ExitTimeMoments(tuple(ask(gen)))
    found: list[Solution] = []

    def highest(here: Generator, history: tuple[Level, ...]) -> Solution:
        found[:] = ask(here, history)
        return found[-1]

    to_accuracy(highest, gen, "exit_time_moments", start, rtol, max_unknowns)
    return ExitTimeMoments(tuple(found))


def _moments(gen: Generator, order: int, options: Options | None) -> list[Solution]:
    moments = [_expectation(gen, 0.0, 1.0, 0.0, options, "mean exit time")]
    for n in range(2, order + 1):
        cost = fem.Function(gen.V)
        cost.x.array[:] = n * moments[-1].raw.x.array
        moments.append(_expectation(gen, 0.0, cost, 0.0, options, f"exit time moment {n}"))
    return moments


@verb
def exit_probability(
    gen: Generator,
    to: Region | Iterable[Region],
    *,
    start: Any = None,
    rtol: float | None = None,
    max_unknowns: int = MAX_UNKNOWNS,
    options: Options | None = None,
) -> Solution:
    """Probability of leaving through ``to`` rather than the other absorbing parts (collective).

    Also called splitting probability.

    Args:
        gen: generator with absorbing parts, unless regions are given.
        to: one or several absorbing parts, or regions as :func:`~fpsolver.committor` takes them, where the process then
            stops as well.
        start: as in :func:`feynman_kac`, like all that follow.
        rtol: as there.
        max_unknowns: as there.
        options: as there.
    """
    many = isinstance(to, Iterable) and not (isinstance(to, str) or callable(to) or is_ball(to))
    targets: list[Any] = list(cast(Iterable[Any], to)) if many else [to]
    regions = {f"target {i}": t for i, t in enumerate(targets, 1) if callable(t) or is_ball(t)}
    names = [t for t in targets if not (callable(t) or is_ball(t))]
    if not regions:
        need_exit(gen, "exit_probability")
    expected = f"names of absorbing parts ({', '.join(gen.absorbing)}), balls or callables were expected."
    if not all(isinstance(part, str) for part in names):
        raise TypeError(f"exit_probability: to is {to!r}; {expected}")
    if not targets:
        raise ValueError(f"exit_probability: to is empty; {expected}")
    if regions:
        gen = stopped(gen, regions)
    more: Any = {"start": start, "rtol": rtol, "max_unknowns": max_unknowns, "options": options}
    return feynman_kac(gen, exit=dict.fromkeys([*names, *regions], 1.0), name="exit probability", **more)
