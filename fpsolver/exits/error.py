"""Error bars of exit times, moments and probabilities, and where on the mesh the error comes from.

For a start (a point, or a density p₀) the answer is J(u) = ∫ u p₀.  The same problem is solved once more with
polynomials of degree k + 1 on the same mesh, and J(u⁺) − J(u_h) is the dual-weighted residual of u_h with the
occupation density z⁺ of the start in that space, r(u_h)(z⁺) (Becker, Rannacher, Acta Numerica 10, 2001).  The
difference itself is computed, which serves any number of starts with one solve and keeps its relative accuracy in the
weighted scheme, where a residual would drown in rounding; z⁺ is computed only where the error is to be localised.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from petsc4py import PETSc

import numpy as np
from dolfinx import fem

from .._arguments import is_number
from .._petsc import Options
from ..discretisation.assembly import to_vector
from ..discretisation.generator import Generator
from ..discretisation.others import Others
from ..discretisation.solution import as_points, evaluate, locate
from ..evolution.initial import dirac, is_density, load, load_density
from ._expectation import backward_operator
from ._indicators import indicators


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

    def __post_init__(self) -> None:
        if self.start is not None and not is_density(self.start):
            self.start = as_points(self.start, self.gen.domain.dim, "start")
            locate(self.gen.domain.mesh, self.start, "start")
        self._others = Others(self.gen, self.answers, self.solve, self.bent)

    def at_start(self) -> np.ndarray:
        """Error bars at the starts, shape (n,)."""
        return self._others.bars(self._values)

    def at(self, points: Any) -> np.ndarray:
        """Error bars at points, shape (n,)."""
        return self._others.bars(lambda _, answers: evaluate(answers[-1], points))

    def of_shape(self) -> np.ndarray:
        """What cells that follow the domain's shape better change at the starts, shape (n,)."""
        return self._others.of_shape(self._values)

    def value(self) -> np.ndarray:
        """The answer at the starts, shape (n,)."""
        return self._values(self.gen, self.answers)

    def _values(self, gen: Generator, answers: list[fem.Function]) -> np.ndarray:
        if isinstance(self.start, np.ndarray):
            return evaluate(answers[-1], self.start)
        return np.array([float(self._functional(gen).dot(to_vector(gen, answers[-1])))])

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

    def indicators(self) -> np.ndarray:
        """Share of each owned cell in the error at the start, shape (cells,), not negative."""
        finer, fine = self._others.of_degree(self._others.gen.degree + 1)
        by_capacities = finer.weak.scheme.by_capacities and is_number(self.killing) and self.killing == 0
        operator = None if by_capacities else backward_operator(finer, self.killing, self.options, "error bar")
        return indicators(self._others.gen, finer, self.answers, fine, self._functional(finer), operator)
