"""Error bars of exit times, moments and probabilities, and where on the mesh the error comes from.

For a start (a point, or a density p₀) the answer is J(u) = ∫ u p₀.  The same problem is solved once more with
polynomials of degree k + 1 on the same mesh, and J(u⁺) − J(u_h) is the dual-weighted residual of u_h with the
occupation density z⁺ of the start in that space, r(u_h)(z⁺) (Becker, Rannacher, Acta Numerica 10, 2001).  The
difference itself is computed, which serves any number of starts with one solve and keeps its relative accuracy in the
weighted scheme, where a residual would drown in rounding; z⁺ is computed only where the error is to be localised.

At singularities the next degree removes only part of the error: J converges like k⁻² where absorbing and reflecting
boundaries meet (solution and occupation density behave like r^½), of which k = 4 → 5 removes 36 %.  The answer of
degree k − 1 shows how fast J converges.  Where that is slow, or too fast to be true, degree k + 2 is taken as well; the
power law through three answers gives what remains.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from petsc4py import PETSc

import numpy as np
from dolfinx import fem, la
from dolfinx.fem.petsc import interpolation_matrix

from .._answer import steps_of
from .._log import logger
from .._petsc import LinearSolver, Options
from ..discretisation.assembly import to_function, to_vector
from ..discretisation.fluxes import basis_integrals
from ..discretisation.generator import Generator, derived
from ..discretisation.metastable import capacity_solver
from ..discretisation.solution import Level, Solution, as_points, evaluate, locate
from ..discretisation.solver import exit_solver
from ..evolution.initial import Dirac, Gaussian, dirac, load
from ._killed import backward_operator, is_killed

_POWERS = np.linspace(40.0, 2.0, 400)  # of k in the error of J; the slowest is that of r^½ singularities
# J_{k+1} − J_k over J_k − J_{k−1}: below by symmetry, above at singularities, degree k + 2 is needed as well.
# Measured at a kinetic exit: with 0.08 the bar is 0.39 times the error without it, and 0.92 with it.  In three
# dimensions it costs ten times the answer.
_TRUSTED = {1: (0.02, 0.05), 2: (0.02, 0.05), 3: (0.02, 0.4)}
_FLAT = 1e-6  # where h is within this of 0 or 1, weighted residuals are rounding; of a capacity it is that share

Chain = list[fem.Function]


def is_density(start: Any) -> bool:
    """Whether a start is an initial density rather than points."""
    return isinstance(start, Gaussian | Dirac | fem.Function | Solution) or callable(start)


def load_density(gen: Generator, start: Any) -> PETSc.Vec:
    """∫ start φ_i, whose sum must be one (collective)."""
    source = load(gen, start, "start")
    mass = float(source.sum())
    if not abs(mass - 1) < 1e-3:
        source.destroy()
        raise ValueError(f"start: the density has mass {mass:.6g} in the domain where 1 was expected; normalise it.")
    return source


@derived
def _halved(gen: Generator) -> Generator:
    owned = gen.domain.mesh.topology.index_map(gen.domain.dim).size_local
    return gen.with_domain(gen.domain.refine(np.arange(owned)))


@derived
def _of_degree(gen: Generator, degree: int) -> Generator:
    return gen.with_degree(degree)


def _remaining(k: int, step: np.ndarray, lowest: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Error at degree k over ``step`` = J_{k+1} − J_k, if it is a power of k; shape (n,).

    The power fits the corrections ``first`` and ``second`` from degree ``lowest`` to the next and the one after.  It is
    nearly one where J converges fast, or not monotonically, which tells nothing.
    """
    error = [float(lowest + i) ** -_POWERS for i in range(3)]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.nan_to_num(second / first, nan=0.0, posinf=np.inf, neginf=0.0)
    power = np.interp(ratio, (error[1] - error[2]) / (error[0] - error[1]), _POWERS)
    return np.abs(step) / (1.0 - (k / (k + 1.0)) ** power)


@dataclass
class DualWeighted:
    """Error estimates of one answer (collective).

    Attributes:
        gen: its generator.
        chain: the answer, preceded by those that it was computed from (lower moments).
        solve: gives the chain on another generator.
        operator: G, or G − S with killing, factorised.
        start: points (n, d), an initial density, or None for the uniform law on the domain.
    """

    gen: Generator
    chain: Chain
    solve: Callable[[Generator], Chain]
    operator: Callable[[Generator], LinearSolver] | None
    start: Any
    _others: dict[int, Chain] = field(default_factory=dict)
    _shape: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.start is not None and not is_density(self.start):
            self.start = as_points(self.start, self.gen.domain.dim, "start")
            locate(self.gen.domain.mesh, self.start, "start")

    def at_start(self) -> np.ndarray:
        """Error bars at the starts, shape (n,)."""
        return self._bars(self._values) + self.of_shape()

    def at(self, points: Any) -> np.ndarray:
        """Error bars at points, shape (n,)."""

        def measure(gen: Generator, u: fem.Function) -> np.ndarray:
            return evaluate(u, points)

        return self._bars(measure) + self._of_shape(measure)

    def of_shape(self) -> np.ndarray:
        """What cells that follow the domain's shape better change at the starts, shape (n,)."""
        if self._shape is None:
            self._shape = self._of_shape(self._values)
        return self._shape

    def _of_shape(self, measure: Callable[[Generator, fem.Function], np.ndarray]) -> np.ndarray:
        here = measure(self.gen, self.chain[-1])
        closer = self.gen.domain.closer()
        if closer is None:
            return np.zeros_like(here)
        try:
            with self.gen.with_domain(closer) as other:
                return np.abs(measure(other, self.solve(other)[-1]) - here)
        except Exception as e:  # sources may be tied to the mesh in many ways
            logger.warning("the error bar leaves out how well curved cells follow the domain's shape: %s", e)
            return np.zeros_like(here)

    def value(self) -> np.ndarray:
        """The answer at the starts, shape (n,)."""
        return self._values(self.gen, self.chain[-1])

    def _of_degree(self, degree: int) -> Generator:
        return _of_degree(self.gen, degree)

    def _answers(self, degree: int) -> tuple[Generator, Chain]:
        gen = self._of_degree(degree)
        if degree not in self._others:
            self._others[degree] = self.solve(gen)
        return gen, self._others[degree]

    def _values(self, gen: Generator, u: fem.Function) -> np.ndarray:
        if isinstance(self.start, np.ndarray):
            return evaluate(u, self.start)
        functional, coefficients = self._functional(gen), to_vector(gen, u)
        value = float(functional.dot(coefficients))
        for v in (functional, coefficients):
            v.destroy()
        return np.array([value])

    def _functional(self, gen: Generator) -> PETSc.Vec:
        """J(φ_i); for several points the sum over them."""
        if isinstance(self.start, np.ndarray):
            vector = load(gen, dirac(self.start[0]), "start")
            for point in self.start[1:]:
                other = load(gen, dirac(point), "start")
                vector.axpy(1.0, other)
                other.destroy()
            return vector
        if self.start is not None:
            return load_density(gen, self.start)
        vector = load(gen, 1.0, "start")
        vector.scale(1.0 / vector.sum())
        return vector

    def _bars(self, measure: Callable[[Generator, fem.Function], np.ndarray]) -> np.ndarray:
        self.gen = self.gen.opened()
        bars = self._of_degrees(measure)
        if self.gen.at_walls is not None:  # every degree adds it
            first = self._of_walls([to_vector(self.gen, u) for u in self.chain])
            second = self._of_walls(first)
            change = first[-1].copy()
            change.axpy(1.0, second[-1])
            bars = bars + np.abs(measure(self.gen, to_function(self.gen, change, "effect of walls")))
        return bars

    def _of_walls(self, chain: list[PETSc.Vec]) -> list[PETSc.Vec]:
        """What the diffusion W added at walls changes, to first order: K δ_j = j M δ_{j−1} + W u_j.

        Applied to what it gives, the next term of a series in W; both together are 0.75 to 1.4 times the whole.
        """
        gen, W, changes = self.gen, self.gen.at_walls, list[PETSc.Vec]()
        assert W is not None
        solver = self.operator(gen) if self.operator else exit_solver(gen, "effect of walls")
        for j, u in enumerate(chain, start=1):
            rhs, change = W.createVecLeft(), W.createVecRight()
            W.multTranspose(u, rhs)
            if changes:
                gen.M.multTranspose(changes[-1], change)
                rhs.axpy(float(j), change)
            rhs.scale(-1.0)
            solver.solve(rhs, change, transpose=True)
            changes.append(change)
        return changes

    def _of_degrees(self, measure: Callable[[Generator, fem.Function], np.ndarray]) -> np.ndarray:
        k = self.gen.degree
        here = measure(self.gen, self.chain[-1])
        if self.gen.rough.number:
            return self._rough_bars(measure, here)
        finer, above = self._answers(k + 1)
        step = measure(finer, above[-1]) - here
        if k == 1:
            return np.abs(step)
        coarser, below = self._answers(k - 1)
        before = here - measure(coarser, below[-1])
        bars = _remaining(k, step, k - 1, before, step)
        low, high = (factor * np.abs(before) for factor in _TRUSTED[self.gen.domain.dim])
        if ((np.abs(step) < low) | (np.abs(step) > high)).any():
            finest, top = self._answers(k + 2)
            beyond = measure(finest, top[-1]) - here - step
            bars = np.maximum(_remaining(k, step, k, step, beyond), np.abs(step + beyond))
        return bars

    def _rough_bars(self, measure: Callable[[Generator, fem.Function], np.ndarray], here: np.ndarray) -> np.ndarray:
        """Three times the range of the answers of three other degrees: where D or β jumps, J converges slowly.

        And not monotonically, as each degree has its own quadrature.  In one dimension half the mesh size is asked as
        well, and counts twice.  Measured on 60 jumps of D at random places of an interval: the bar is 1 to 30 times
        the error, 3 in the median; on a square from 0.7.
        """
        k, gen = self.gen.degree, self.gen
        others = [measure(*self._last(degree)) for degree in (k - 1, k + 1, k + 2) if degree > 0]
        bars = 3.0 * np.max([np.abs(other - here) for other in others], axis=0)
        if gen.domain.dim == 1:
            try:
                bars = np.maximum(bars, 2.0 * np.abs(measure(_halved(gen), self.solve(_halved(gen))[-1]) - here))
            except ValueError:  # functions that users gave on this mesh do not exist on another
                logger.info("where D jumps, functions given on the mesh itself leave its half out of the error bar")
        return np.asarray(bars)

    def _last(self, degree: int) -> tuple[Generator, fem.Function]:
        gen, answers = self._answers(degree)
        return gen, answers[-1]

    def indicators(self) -> np.ndarray:
        """Share of each owned cell in the error at the start, shape (cells,), not negative.

        The sum Σ_i r_i (z⁺ − I z⁺)_i over the degrees of freedom of the space of degree k + 1, with I the
        interpolation to degree k, is split among the cells around each of them: nothing needs compiling.
        """
        self.gen = self.gen.opened()
        gen, fine = self._answers(self.gen.degree + 1)
        shares, defects = fem.Function(gen.V), np.zeros(self.gen.G.getLocalSize()[0])
        source = self._functional(gen)
        errors = [self._raised(gen, coarse, u) for coarse, u in zip(self.chain, fine, strict=True)]
        for j in range(len(fine), 0, -1):
            z = self._occupation(gen, source)
            residual = self._residual(gen, errors, j)
            weight = self._detail(gen, z)
            if gen.at_walls is not None:
                shares.x.array[: residual.local_size] += z.array_r * _image(gen.at_walls, to_vector(gen, fine[j - 1]))
            shares.x.array[: residual.local_size] += residual.array_r * weight.array_r
            if gen.weak.scheme.by_capacities:
                defects += self._defects(gen, residual, z)
            source.destroy()
            source = gen.G.createVecLeft()
            gen.M.mult(z, source)
            source.scale(j)
            for v in (z, residual, weight):
                v.destroy()
        for v in (source, *errors):
            v.destroy()
        defect = fem.Function(self.gen.V)
        defect.x.array[: len(defects)] = defects
        return _by_cell(shares) + _by_cell(defect)

    def _raised(self, gen: Generator, coarse: fem.Function, fine: fem.Function) -> PETSc.Vec:
        """Coefficients of u⁺ − u_h."""
        raised = fem.Function(gen.V)
        raised.interpolate(coarse)
        raised.x.array[:] = fine.x.array - raised.x.array
        return to_vector(gen, raised)

    def _residual(self, gen: Generator, errors: list[PETSc.Vec], j: int) -> PETSc.Vec:
        """K e_j − j M e_{j−1} with K = −Gᵀ (+ S), which is the residual of the j-th answer of the chain."""
        A = self.operator(gen).A if self.operator else gen.G
        residual = A.createVecRight()
        A.multTranspose(errors[j - 1], residual)
        residual.scale(-1.0)
        if j > 1:
            lower = residual.duplicate()
            gen.M.multTranspose(errors[j - 2], lower)
            residual.axpy(-float(j), lower)
            lower.destroy()
        return residual

    def _occupation(self, gen: Generator, source: PETSc.Vec) -> PETSc.Vec:
        """z with Kᵀ z = source."""
        if self.operator is None:
            return capacity_solver(gen, "occupation density").solve(source)
        z, b = gen.G.createVecRight(), source.copy()
        b.scale(-1.0)
        self.operator(gen).solve(b, z)
        b.destroy()
        return z

    def _detail(self, gen: Generator, z: PETSc.Vec) -> PETSc.Vec:
        """Coefficients of z − I z; zero where the residual is nothing but rounding."""
        detail, below, smooth = to_function(gen, z), fem.Function(self.gen.V), fem.Function(gen.V)
        below.interpolate(detail)
        smooth.interpolate(below)
        detail.x.array[:] -= smooth.x.array
        vector = to_vector(gen, detail)
        if self.operator is None:
            vector.array_w[:] *= ~_flat(gen)
        return vector

    def _defects(self, gen: Generator, residual: PETSc.Vec, z: PETSc.Vec) -> np.ndarray:
        """r(φ_i) (I z)_i on the space of degree k: what the quadrature of the weight missed, zero with exact integrals.

        Where r is nothing but rounding, the defect of ∫ w φ_i stands for it.
        """
        raise_, nodal = interpolation_matrix(self.gen.V, gen.V), fem.Function(self.gen.V)
        raise_.assemble()
        nodal.interpolate(to_function(gen, z))
        defect, missed = self.gen.G.createVecRight(), self.gen.G.createVecRight()
        raise_.multTranspose(residual, defect)
        raise_.multTranspose(basis_integrals(gen), missed)
        missed.axpy(-np.exp(float(gen.weak.offset.value - self.gen.weak.offset.value)), basis_integrals(self.gen))
        flat = _flat(self.gen) if self.operator is None else np.zeros(defect.local_size, dtype=bool)
        found = np.where(flat, missed.array_r, defect.array_r) * nodal.x.array[: defect.local_size]
        for item in (raise_, defect, missed):
            item.destroy()
        return found


def _image(A: PETSc.Mat, x: PETSc.Vec) -> np.ndarray:
    y = A.createVecRight()
    A.multTranspose(x, y)
    return np.asarray(y.array_r)


def _flat(gen: Generator) -> np.ndarray:
    """Where the probabilities of hitting each well or part first are 0 or 1 up to rounding, at owned nodes."""
    h = np.array([column.array_r for column in capacity_solver(gen, "occupation density").h])
    return (np.minimum(np.abs(h), np.abs(1.0 - h)) <= _FLAT).all(axis=0)


def _by_cell(shares: fem.Function) -> np.ndarray:
    V = shares.function_space
    mesh = V.mesh
    owned = mesh.topology.index_map(mesh.topology.dim).size_local
    dofs = V.dofmap.list[:owned]
    around = fem.Function(V)
    np.add.at(around.x.array, dofs.ravel(), 1.0)
    around.x.scatter_reverse(la.InsertMode.add)
    for f in (around, shares):
        f.x.scatter_forward()
    return np.abs((shares.x.array[dofs] / around.x.array[dofs]).sum(axis=1))


def with_error_bars(
    gen: Generator,
    answer: Solution,
    chain: Chain,
    again: Callable[[Generator], Chain],
    start: Any,
    killing: Any = 0.0,
    options: Options | None = None,
    *,
    power: int | None = None,
    history: tuple[Level, ...] | None = None,
) -> Solution:
    """The answer with error bars, which are computed at once if a start is given (collective).

    Args:
        gen: its generator.
        answer: without them.
        chain: the answer, preceded by those that it was computed from.
        again: gives the chain on another generator.
        start: points, an initial density, or None.
        killing: the killing rate.
        options: PETSc options of the solves.
        power: of time in the answer's unit, None of what has no such unit.
        history: the coarser meshes of an answer to a prescribed accuracy, to which this one is added.
    """

    def operator(other: Generator) -> LinearSolver:
        return backward_operator(other, killing, options, answer.name)

    by_capacity = gen.weak.scheme.by_capacities and not is_killed(killing)
    estimate = DualWeighted(gen, chain, again, None if by_capacity else operator, start)
    about: dict[str, Any] = {"generator": gen, "unit": None if power is None else steps_of(gen.process, power)}
    if start is not None:
        value, error = estimate.value(), estimate.at_start()
        about |= {"start": estimate.start, "value": value, "error": error}
        if history is not None:
            cells = gen.domain.mesh.topology.index_map(gen.domain.dim).size_global
            about["history"] = (*history, Level(cells, gen.G.getSize()[0], float(value[0]), float(error[0])))
        _warn_if_lost(answer.name, error, value)
    return Solution(answer.raw, answer.stats, answer.name, estimate, **about)


def _warn_if_lost(name: str, error: np.ndarray | None, value: np.ndarray) -> None:
    if error is not None and (lost := ~(error <= 0.5 * np.abs(value))).any():
        k = int(np.argmax(lost))
        logger.warning("%s: %.3g with an error bar of %.3g: the mesh does not resolve it", name, value[k], error[k])
