"""One backward equation, L u − s u + f = 0 with u = g where the process leaves, and the moments of the exit time."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb
from typing import Any, NamedTuple

from petsc4py import PETSc

import numpy as np
import ufl
from dolfinx import fem

from .._arguments import is_number
from .._errors import NotConverged, agree
from .._log import logger
from .._petsc import LinearSolver, Options
from .._sample import smallest
from ..chain import Chain
from ..chain.equations import PREFIX, Figures, Operator, check_sound, solve
from ..chain.refinement import NEGATIVE
from ..chain.sources import field
from ..discretisation.assembly import assemble_matrix, assemble_vector, to_function, to_vector
from ..discretisation.generator import Generator, derived
from ..discretisation.metastable import capacity_solver
from ..discretisation.solver import Key, basis_integrals, exit_preset, exit_solver, exit_vector, merged, statistics
from ._guards import check_certain_exit, check_growth, check_reach, check_roundoff, check_sign


class Part(NamedTuple):
    """An answer, or one that it is computed from: a Function, of a chain a vector; its figures; what it is."""

    u: Any
    stats: dict[str, Any]
    name: str


@dataclass(frozen=True)
class Question:
    """E[g(X_τ) e^{−∫s} + ∫ f e^{−∫s} dt] as of :func:`~fpsolver.feynman_kac`; ``exit`` has g by part."""

    name: str
    exit: Mapping[str, Any]
    running: Any = 0.0
    killing: Any = 0.0
    options: Options | None = None

    @property
    def killed(self) -> bool:
        """Whether the killing rate is anything but the number zero."""
        return not (is_number(self.killing) and self.killing == 0)

    @property
    def is_time(self) -> bool:
        """Whether it is the exit time."""
        none = not self.killed and all(is_number(g) and g == 0 for g in self.exit.values())
        return none and is_number(self.running) and self.running == 1


def expectation(gen: Generator | Chain, q: Question) -> Part:
    """The answer (collective)."""
    if isinstance(gen, Chain):
        u, figures = _of_chain(gen, q)
        return Part(u, {**gen.stats(), **figures.stats()}, q.name)
    rhs = _running_cost(gen, q.running)
    check_reach(gen, q.name, q.killing)
    given = {part: g for part, g in q.exit.items() if not (is_number(g) and g == 0)}
    by_capacities = gen.weak.scheme.by_capacities and not q.killed
    if given and not q.killed and not by_capacities:
        check_certain_exit(gen, q.name, q.options)
    constants = {part: float(g) for part, g in given.items() if is_number(g) and by_capacities}
    for part in given.keys() - constants.keys():
        rhs.axpy(1.0, exit_vector(gen, gen.weak.space.scalar(given[part], f"exit data on {part!r}"), part))
    finite = np.isfinite([*rhs.array_r, *constants.values()]).all()
    agree(gen.domain.comm, None if finite else f"{q.name}: exit data or running cost is not finite on the domain.")
    u, stats = _by_capacities(gen, rhs, constants, q) if by_capacities else _solve(gen, rhs, q)
    function = to_function(gen, u)
    gen.territory.complete(function, q.exit)
    return Part(function, {**statistics(gen), **stats}, q.name)


def moments(gen: Generator | Chain, order: int, options: Options | None) -> list[Part]:
    """E τ, ..., E τ^order: L T_n = −n T_{n−1}, of chains (M − P) T_n = Σ_{j<n} C(n, j) P T_j + exits (collective)."""
    names = ["mean exit time", *(f"exit time moment {n}" for n in range(2, order + 1))]
    found: list[Part] = []
    if isinstance(gen, Chain):
        after = [gen.integrals]  # P T_0 and the exits together are M1: what is counted after a step is its own 1
        for n, name in enumerate(names, 1):
            rhs = gen.integrals.duplicate()
            rhs.set(0.0)
            rhs.maxpy([float(comb(n, j)) for j in range(n)], after)
            u, figures = solve(Operator(gen), gen.inverse * rhs, name, options)
            check_sound(Operator(gen), name, figures)
            after.append(gen.P * u)
            u.scale(gen.time_per_step**n)
            found.append(Part(u, {**gen.stats(), **figures.stats()}, name))
        return found
    for n, name in enumerate(names, 1):
        cost: Any = 1.0
        if found:
            cost = fem.Function(gen.V)
            cost.x.array[:] = n * found[-1].u.x.array
        found.append(expectation(gen, Question(name, {}, cost, options=options)))
    return found


def _of_chain(chain: Chain, q: Question) -> tuple[PETSc.Vec, Figures]:
    """Solve (M − zP) u = η M f + z g."""
    eta, z, found, discount = chain.time_per_step, 1.0, chain.assembled, None
    data = {part: field(chain, g, f"exit data on {part!r}") for part, g in q.exit.items() if not is_number(g)}
    if is_number(q.killing):
        z = float(np.exp(-eta * q.killing))
    else:
        rate = field(chain, q.killing, "killing rate")
        discount = lambda x: np.exp(-eta * rate(x))  # noqa: E731
    if discount is not None or data:
        found = chain.discounted(discount, tuple(data.get(part) for part in chain.absorbing))
    if is_number(q.running):
        rhs = chain.integrals.copy()
        rhs.scale(float(q.running))
    else:
        rhs = chain.load(field(chain, q.running, "running cost"))
    rhs.scale(eta)
    for part, vector in zip(chain.absorbing, found.exits, strict=True):
        rhs.axpy(z * (1.0 if part in data else float(q.exit.get(part, 0.0))), vector)
    operator = Operator(chain, -z, P=found.P)
    u, figures = solve(operator, chain.inverse * rhs, q.name, q.options)
    check_sound(operator, q.name, figures)
    return u, figures


def check_times(chain: Chain, tau: Part) -> None:
    """Refuse exit times that are negative, and warn of those below one step (collective)."""
    cells, volumes = (v.array_r.reshape(chain.cells.end - chain.cells.begin, -1).sum(axis=1)
                      for v in (chain.M * tau.u, chain.integrals))  # fmt: skip
    least = smallest(chain.domain.comm, cells / volumes / chain.time_per_step)
    if least < 0:
        advice = (
            f"The mean over a cell is {least:.3g} steps, which cannot be negative: the mesh resolves too little. "
            "Refine it or raise the degree."
        )
        raise NotConverged(tau.name, NEGATIVE, tau.stats["iterations"], tau.stats["residual"], PREFIX, advice)
    if least < 1 - 1e-6:
        logger.warning("%s: a cell has a mean of %.3g steps, less than one: the mesh is coarse there", tau.name, least)


def _running_cost(gen: Generator, running: Any) -> PETSc.Vec:
    """F_i = ∫ f φ_i as a new vector."""
    if is_number(running):
        rhs = basis_integrals(gen).copy()
        rhs.scale(float(running))
        return rhs
    if isinstance(running, fem.Function) and running.function_space == gen.V:
        return gen.M * to_vector(gen, running)
    weak, v = gen.weak, ufl.TestFunction(gen.V)
    return assemble_vector(gen, weak.space.scalar(running, "running cost") * v * weak.dx)


def _solve(gen: Generator, rhs: PETSc.Vec, q: Question) -> tuple[PETSc.Vec, dict[str, Any]]:
    """(−Gᵀ + S) u = rhs."""
    solver = backward_operator(gen, q.killing, q.options, q.name)
    if q.killed:
        check_growth(gen, q.killing, solver, q.name, q.options)
    u = gen.G.createVecRight()
    rhs.scale(-1.0)
    with PETSc.Log.Stage("fpsolver solve"):
        solver.solve(rhs, u, transpose=True)
    stats = {"iterations": solver.iterations, "residual": solver.residual}
    # relative error that rounding alone may cause: backward error times an estimate of the condition number
    size, scale = (v.norm(PETSc.NormType.INFINITY) for v in (u, rhs))
    stats["roundoff"] = float(np.finfo(float).eps * solver.norm * size / scale) if scale > 0 else 0.0
    check_roundoff(gen, q.name, stats, solver)
    if all(is_number(g) and g >= 0 for g in (q.running, *q.exit.values())):
        check_sign(q.name, u, solver)
    return u, stats


def _by_capacities(
    gen: Generator, rhs: PETSc.Vec, constants: Mapping[str, float], q: Question
) -> tuple[PETSc.Vec, dict[str, Any]]:
    capacity = capacity_solver(gen, q.name, q.options)
    u = capacity.solve(rhs, constants)
    problem = f"{q.name}: beyond the range of floating point numbers (capacity {capacity.capacity:.3g})."
    agree(gen.domain.comm, None if np.isfinite(u.array_r).all() else problem, OverflowError)
    return u, {
        "residual": capacity.solver.residual, "capacity": capacity.capacity, "wells": len(capacity.wells)
    }  # fmt: skip


def backward_operator(gen: Generator, killing: Any, options: Options | None, name: str) -> LinearSolver:
    """G, or G − S with S_ij = ∫ s φ_i φ_j, factorised; of the killed ones a generator keeps the last (collective)."""
    if is_number(killing) and killing == 0:
        return exit_solver(gen, name, options)
    key = merged(gen, options)
    last = _last(gen, key)
    known, rate = last.get("solver"), last.get("rate")
    same = rate is killing or (is_number(rate) and is_number(killing) and rate == killing)
    if known is None or not same:
        last.clear()  # its factors, before there are others
        last |= {"rate": killing, "solver": (known := _killed(gen, killing, key, name))}
    return known


@derived
def _last(gen: Generator, options: Key) -> dict[str, Any]:
    return {}


def _killed(gen: Generator, killing: Any, options: Key, name: str) -> LinearSolver:
    A = gen.G.copy()
    if is_number(killing):
        A.axpy(-float(killing), gen.M, PETSc.Mat.Structure.SUBSET_NONZERO_PATTERN)
    else:
        p, v = ufl.TrialFunction(gen.V), ufl.TestFunction(gen.V)
        S = assemble_matrix(gen.weak.mass(gen.weak.space.scalar(killing, "killing") * p, v))
        A.axpy(-1.0, S, PETSc.Mat.Structure.SUBSET_NONZERO_PATTERN)
    if not np.isfinite(A.norm(PETSc.NormType.FROBENIUS)):
        raise ValueError(f"{name}: the killing rate is not finite (NaN or inf) somewhere on the domain.")
    return LinearSolver(A, "fp_exit_", name, exit_preset(gen), dict(options))
