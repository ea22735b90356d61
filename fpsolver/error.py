"""Error bars of exit times, moments and probabilities, and where on the mesh the error comes from.

For a start (a point, or a density p₀) the answer is J(u) = ∫ u p₀.  The same problem is solved once more with
polynomials of degree k + 1 on the same mesh, and J(u⁺) − J(u_h) is the dual-weighted residual of u_h with the
occupation density z⁺ of the start in that space, r(u_h)(z⁺) (Becker, Rannacher, Acta Numerica 10, 2001).  The
difference itself is computed, which serves any number of starts with one solve and keeps its relative accuracy in the
weighted scheme, where a residual would drown in rounding; z⁺ is computed only where the error is to be localised.

At singularities the next degree removes only part of the error: J converges like k⁻² where absorbing and reflecting
boundaries meet (solution and occupation density behave like r^½), of which k = 4 → 5 removes 36 %.  The answer of
degree k − 1 shows how fast J converges, and the power law through the three answers gives what remains.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from petsc4py import PETSc

import numpy as np
from dolfinx import fem, la
from dolfinx.fem.petsc import interpolation_matrix

from ._petsc import LinearSolver
from .domain import Domain
from .generator import Generator
from .initial import Dirac, Gaussian, dirac, load
from .metastable import capacity_solver
from .solution import as_points, evaluate, locate

_POWERS = np.linspace(40.0, 2.0, 400)  # of k in the error of J; the slowest is that of r^½ singularities
_SUSPECT = 0.02  # a next correction smaller than this times the last one is not believed
_FLAT = 1e-6  # where h is within this of 0 or 1, weighted residuals are rounding; of a capacity it is that share

Chain = list[fem.Function]


def is_density(start: Any) -> bool:
    """Whether a start is an initial density rather than points."""
    return isinstance(start, Gaussian | Dirac | fem.Function) or callable(start)


def rebuilt(gen: Generator, degree: int | None = None, domain: Domain | None = None) -> Generator:
    """The same process and scheme with another degree or on another domain (collective)."""
    new = gen.degree if degree is None else degree
    quadrature = gen.quadrature and gen.quadrature + 2 * (new - gen.degree)
    return Generator(gen.process, domain or gen.domain, gen.absorbing, new, gen.scheme, quadrature, gen.options)


def _remainder(k: int, before: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Error at degree k over ``step`` = J_{k+1} − J_k, as of a power of k that fits ``before`` = J_k − J_{k−1}.

    Nearly one where J converges fast, or not monotonically, which tells nothing.
    """
    lower, here, upper = (float(k + i) ** -_POWERS for i in (-1, 0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.nan_to_num(step / before, nan=0.0, posinf=np.inf, neginf=0.0)
    return np.interp(ratio, (here - upper) / (lower - here), here / (here - upper))


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

    def __post_init__(self) -> None:
        if self.start is not None and not is_density(self.start):
            self.start = as_points(self.start, self.gen.domain.dim, "start")
            locate(self.gen.domain.mesh, self.start, "start")

    def at_start(self) -> np.ndarray:
        """Error bars at the starts, shape (n,)."""
        return self._bars(lambda gen, u: self._values(gen, u))

    def at(self, points: Any) -> np.ndarray:
        """Error bars at points, shape (n,)."""
        return self._bars(lambda gen, u: evaluate(u, points))

    def value(self) -> np.ndarray:
        """The answer at the starts, shape (n,)."""
        return self._values(self.gen, self.chain[-1])

    def _of_degree(self, degree: int) -> Generator:
        return self.gen.cached(f"degree {degree}", lambda: rebuilt(self.gen, degree))

    def _answers(self, degree: int) -> tuple[Generator, Chain]:
        gen = self._of_degree(degree)
        if degree not in self._others:
            self._others[degree] = self.solve(gen)
        return gen, self._others[degree]

    def _values(self, gen: Generator, u: fem.Function) -> np.ndarray:
        if isinstance(self.start, np.ndarray):
            return evaluate(u, self.start)
        functional, coefficients = self._functional(gen), gen.vector(u)
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
        vector = load(gen, 1.0 if self.start is None else self.start, "start")
        if self.start is None:
            vector.scale(1.0 / vector.sum())
        return vector

    def _bars(self, measure: Callable[[Generator, fem.Function], np.ndarray]) -> np.ndarray:
        k = self.gen.degree
        here = measure(self.gen, self.chain[-1])
        finer, above = self._answers(k + 1)
        step = measure(finer, above[-1]) - here
        if k == 1:
            return np.abs(step)
        coarser, below = self._answers(k - 1)
        before = here - measure(coarser, below[-1])
        bars = np.abs(step) * _remainder(k, before, step)
        if (np.abs(step) < _SUSPECT * np.abs(before)).any():  # as where degree k + 1 adds nothing by symmetry
            finest, top = self._answers(k + 2)
            bars = np.maximum(bars, np.abs(measure(finest, top[-1]) - here))
        return bars

    def indicators(self) -> np.ndarray:
        """Share of each owned cell in the error at the start, shape (cells,), not negative.

        The sum Σ_i r_i (z⁺ − I z⁺)_i over the degrees of freedom of the space of degree k + 1, with I the
        interpolation to degree k, is split among the cells around each of them: nothing needs compiling.
        """
        gen, fine = self._answers(self.gen.degree + 1)
        shares, defects = fem.Function(gen.V), np.zeros(self.gen.G.getLocalSize()[0])
        source = self._functional(gen)
        errors = [self._raised(gen, coarse, u) for coarse, u in zip(self.chain, fine, strict=True)]
        for j in range(len(fine), 0, -1):
            z = self._occupation(gen, source)
            residual = self._residual(gen, errors, j)
            weight = self._detail(gen, z)
            shares.x.array[: residual.local_size] += residual.array_r * weight.array_r
            if gen.scheme == "weighted":
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
        return gen.vector(raised)

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
        detail, below, smooth = gen.function(z), fem.Function(self.gen.V), fem.Function(gen.V)
        below.interpolate(detail)
        smooth.interpolate(below)
        detail.x.array[:] -= smooth.x.array
        vector = gen.vector(detail)
        if self.operator is None:
            vector.array_w[:] *= ~_flat(gen)
        return vector

    def _defects(self, gen: Generator, residual: PETSc.Vec, z: PETSc.Vec) -> np.ndarray:
        """r(φ_i) (I z)_i on the space of degree k: what the quadrature of the weight missed, zero with exact integrals.

        Where r is nothing but rounding, the defect of ∫ w φ_i stands for it.
        """
        raise_, nodal = interpolation_matrix(self.gen.V, gen.V), fem.Function(self.gen.V)
        raise_.assemble()
        nodal.interpolate(gen.function(z))
        defect, missed = self.gen.G.createVecRight(), self.gen.G.createVecRight()
        raise_.multTranspose(residual, defect)
        raise_.multTranspose(gen.integrals, missed)
        missed.axpy(-np.exp(gen.offset - self.gen.offset), self.gen.integrals)
        flat = _flat(self.gen) if self.operator is None else np.zeros(defect.local_size, dtype=bool)
        found = np.where(flat, missed.array_r, defect.array_r) * nodal.x.array[: defect.local_size]
        for item in (raise_, defect, missed):
            item.destroy()
        return found


def _flat(gen: Generator) -> np.ndarray:
    """Where the probability h of hitting the deepest minimum before exit is 0 or 1 up to rounding, at owned nodes."""
    h = capacity_solver(gen, "occupation density").h.array_r
    return np.minimum(np.abs(h), np.abs(1.0 - h)) <= _FLAT


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
