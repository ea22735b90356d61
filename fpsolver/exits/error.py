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
from functools import cached_property
from typing import Any

from petsc4py import PETSc

import numpy as np
from dolfinx import fem

from .._arguments import is_number
from .._log import logger
from .._petsc import LinearSolver, Options
from .._sample import own_cells
from ..discretisation.assembly import to_function, to_vector
from ..discretisation.generator import Generator, derived
from ..discretisation.solution import as_points, evaluate, locate
from ..evolution.initial import dirac, is_density, load, load_density
from ._expectation import backward_operator
from ._indicators import indicators

_POWERS = np.linspace(40.0, 2.0, 400)  # of k in the error of J; the slowest is that of r^½ singularities
# J_{k+1} − J_k over J_k − J_{k−1}: below by symmetry, above at singularities, degree k + 2 is needed as well.
# Measured at a kinetic exit: with 0.08 the bar is 0.39 times the error without it, and 0.92 with it.  In three
# dimensions it costs ten times the answer.
_TRUSTED = {1: (0.02, 0.05), 2: (0.02, 0.05), 3: (0.02, 0.4)}

Measure = Callable[[Generator, fem.Function], np.ndarray]


@derived
def _halved(gen: Generator) -> Generator:
    return gen.with_domain(gen.domain.refine(own_cells(gen.domain.mesh)))


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
    """Error estimates of one answer (collective)."""

    gen: Generator  #: its generator
    answers: list[fem.Function]  #: the last one, preceded by those that it was computed from
    solve: Callable[[Generator], list[fem.Function]]  #: the same of another generator
    start: Any  #: points (n, d), an initial density, or None for the uniform law on the domain
    killing: Any = 0.0  #: rate
    options: Options | None = None  #: PETSc options of the solves
    bent: bool = False  #: whether data may jump or bend inside cells
    _others: dict[int, list[fem.Function]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.start is not None and not is_density(self.start):
            self.start = as_points(self.start, self.gen.domain.dim, "start")
            locate(self.gen.domain.mesh, self.start, "start")

    def operator(self, gen: Generator) -> LinearSolver:
        """G, or G − S with killing, factorised."""
        return backward_operator(gen, self.killing, self.options, "error bar")

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
        return self._shape

    @cached_property
    def _shape(self) -> np.ndarray:
        return self._of_shape(self._values)

    def _of_shape(self, measure: Measure) -> np.ndarray:
        here = measure(self.gen, self.answers[-1])
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
        return self._values(self.gen, self.answers[-1])

    def _answers(self, degree: int) -> tuple[Generator, list[fem.Function]]:
        gen = _of_degree(self.gen, degree)
        if degree not in self._others:
            self._others[degree] = self.solve(gen)
        return gen, self._others[degree]

    def _at_degree(self, degree: int, measure: Measure) -> np.ndarray:
        gen, answers = self._answers(degree)
        return measure(gen, answers[-1])

    def _values(self, gen: Generator, u: fem.Function) -> np.ndarray:
        if isinstance(self.start, np.ndarray):
            return evaluate(u, self.start)
        return np.array([float(self._functional(gen).dot(to_vector(gen, u)))])

    def _functional(self, gen: Generator) -> PETSc.Vec:
        """J(φ_i); for several points the sum over them."""
        if isinstance(self.start, np.ndarray):
            vector = load(gen, dirac(self.start[0]), "start")
            for point in self.start[1:]:
                vector.axpy(1.0, load(gen, dirac(point), "start"))
            return vector
        if self.start is not None:
            return load_density(gen, self.start)
        vector = load(gen, 1.0, "start")
        vector.scale(1.0 / vector.sum())
        return vector

    def _bars(self, measure: Measure) -> np.ndarray:
        self.gen = self.gen.opened()
        bars = self._of_degrees(measure)
        if self.gen.at_walls is not None:  # every degree adds it
            first = self._of_walls([to_vector(self.gen, u) for u in self.answers])
            change = first[-1] + self._of_walls(first)[-1]
            bars = bars + np.abs(measure(self.gen, to_function(self.gen, change, "effect of walls")))
        return bars

    def _of_walls(self, chain: list[PETSc.Vec]) -> list[PETSc.Vec]:
        """What the diffusion W added at walls changes, to first order: K δ_j = j M δ_{j−1} + W u_j.

        Applied to what it gives, the next term of a series in W; both together are 0.75 to 1.4 times the whole.
        """
        gen, W, changes = self.gen, self.gen.at_walls, list[PETSc.Vec]()
        assert W is not None
        solver = self.operator(gen)
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

    def _of_degrees(self, measure: Measure) -> np.ndarray:
        k = self.gen.degree
        here = measure(self.gen, self.answers[-1])
        if self.gen.rough.number or self.bent:
            return self._rough_bars(measure, here)
        step = self._at_degree(k + 1, measure) - here
        if k == 1:
            return np.abs(step)
        before = here - self._at_degree(k - 1, measure)
        bars = _remaining(k, step, k - 1, before, step)
        low, high = (factor * np.abs(before) for factor in _TRUSTED[self.gen.domain.dim])
        if ((np.abs(step) < low) | (np.abs(step) > high)).any():
            beyond = self._at_degree(k + 2, measure) - here - step
            bars = np.maximum(_remaining(k, step, k, step, beyond), np.abs(step + beyond))
        return bars

    def _rough_bars(self, measure: Measure, here: np.ndarray) -> np.ndarray:
        """Three times the range of the answers of three other degrees: where D, β or data jump, J converges slowly.

        And not monotonically, as each degree has its own quadrature.  In one dimension half the mesh size is asked as
        well, and counts twice.  Measured on 60 jumps of D at random places of an interval: the bar is 1 to 30 times
        the error, 3 in the median; on a square from 0.7.
        """
        k, gen = self.gen.degree, self.gen
        others = [self._at_degree(degree, measure) for degree in (k - 1, k + 1, k + 2) if degree > 0]
        bars = 3.0 * np.max([np.abs(other - here) for other in others], axis=0)
        if gen.domain.dim == 1:
            try:
                bars = np.maximum(bars, 2.0 * np.abs(measure(_halved(gen), self.solve(_halved(gen))[-1]) - here))
            except ValueError:  # functions that users gave on this mesh do not exist on another
                logger.info("where D jumps, functions given on the mesh itself leave its half out of the error bar")
        return np.asarray(bars)

    def indicators(self) -> np.ndarray:
        """Share of each owned cell in the error at the start, shape (cells,), not negative."""
        self.gen = self.gen.opened()
        finer, fine = self._answers(self.gen.degree + 1)
        by_capacities = finer.weak.scheme.by_capacities and is_number(self.killing) and self.killing == 0
        operator = None if by_capacities else self.operator(finer)
        return indicators(self.gen, finer, self.answers, fine, self._functional(finer), operator)
