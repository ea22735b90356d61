"""Steps of M v' = G(t) v by a stiffly accurate Rosenbrock method with embedded error.

RODASP: order four with an embedded third, L-stable, without loss of order for parabolic problems (G. Steinebach,
Order-reduction of ROW-methods for DAEs and method of lines applications, TH Darmstadt preprint 1741, 1995; the form
without matrix products of Hairer, Wanner, Solving ODEs II, section IV.7, (7.25)).  A step takes one factorisation and
six solves.
Integrals q' = ℓ(t)ᵀv are carried along as further unknowns, so that mass and outflux balance to rounding.

Chosen over commutator-free exponentials, of which a step took six factorisations: 390 of them and 3584 solves at a
tolerance of 1e-4 where this takes 69 and some 400, and 475 at 1e-6 (the problem of an absorbing domain in
tests/test_schedule.py); PETSc's own
Rosenbrock methods are for autonomous equations only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from petsc4py import PETSc

import numpy as np

from .. import _petsc
from ._krylov import dots

GAMMA = 0.25
NODES = (0.0, 0.75, 0.21, 0.63, 1.0, 1.0)
DERIVATIVE = (0.25, -0.5, -0.023504, -0.0362, 0.0, 0.0)
A = (
    (),
    (3.0,),
    (1.831036793486759, 0.4955183967433795),
    (2.304376582692669, -0.05249275245743001, -1.176798761832782),
    (-7.170454962423024, -4.741636671481785, -16.31002631330971, -1.062004044111401),
    (-7.170454962423024, -4.741636671481785, -16.31002631330971, -1.062004044111401, 1.0),
)
C = (
    (),
    (-12.0,),
    (-8.791795173947035, -2.207865586973518),
    (10.81793056857153, 6.780270611428266, 19.53485944642410),
    (34.19095006749676, 15.49671153725963, 54.74760875964130, 14.16005392148534),
    (34.62605830930532, 15.30084976114473, 56.99955578662667, 18.40807009793095, -5.714285714285717),
)
# y(t + sh) = (1 − s) y₀ + s (y₁ + (1 − s)(Σ Dᵢuᵢ + s Σ Eᵢuᵢ)), of order three like the estimate of the error
D = (25.09876703708589, 11.62013104361867, 28.49148307714626, -5.664021568594133)
E = (1.638054557396973, -0.7373619806678748, 8.477918219238990, 15.99253148779520, -1.882352941176471)


class Frozen(NamedTuple):
    """G and the functionals ℓ with fixed numbers."""

    G: PETSc.Mat
    flux: Sequence[PETSc.Vec]


Moment = Sequence[tuple[float, Frozen]]
"""G(t), or its derivative, as a linear combination of matrices at hand."""


class Point(NamedTuple):
    """A vector on the way, and the integrals of the functionals until then."""

    t: float
    v: PETSc.Vec
    integrals: np.ndarray


class Step(NamedTuple):
    """A step: where it begins and ends, and its stages; the vectors of end and stages belong to it."""

    begin: Point
    end: Point
    u: list[PETSc.Vec]
    q: list[np.ndarray]

    @property
    def defect(self) -> Point:
        """How far the end may be off."""
        return Point(self.end.t, self.u[-1], self.q[-1])

    def at(self, t: float) -> Point:
        """The solution inside the step, a new vector (collective)."""
        s = (t - self.begin.t) / (self.end.t - self.begin.t)
        inner = [s * (1 - s) * (d + s * e) for d, e in zip((*D, 0.0), E, strict=True)]
        v = self.begin.v.copy()
        v.scale(1 - s)
        v.maxpy([s, *inner], [self.end.v, *self.u[:5]])
        integrals = (1 - s) * self.begin.integrals + s * self.end.integrals
        return Point(t, v, integrals + sum(w * each for w, each in zip(inner, self.q[:5], strict=True)))

    def destroy_stages(self) -> None:
        """Free what :meth:`at` and :attr:`defect` need (collective)."""
        for vector in self.u:
            vector.destroy()


@dataclass
class Rosenbrock:
    """One step at a time (collective)."""

    M: PETSc.Mat
    moment: Callable[[float], Moment]  #: G at a time
    derivative: Callable[[float, float], Moment]  #: t, h -> dG/dt at t, for a step of length h
    transpose: bool  #: whether Gᵀ takes the place of G
    preset: _petsc.Options  #: of the factorisation
    options: _petsc.Options | None  #: without the prefix ``fp_evolve_``

    def step(self, begin: Point, h: float) -> Step:
        """The step from ``begin`` to ``begin.t + h``."""
        now, change = self.moment(begin.t), self.derivative(begin.t, h)
        work = begin.v.duplicate()
        drift, drift_q = self._apply(change, begin.v)
        solver = self._factorised(now, h)
        u: list[PETSc.Vec] = []
        q: list[np.ndarray] = []
        for stage in range(6):
            here = begin.v.copy()
            if u:
                here.maxpy(A[stage], u)
            moment = now if NODES[stage] == 0 else self.moment(begin.t + NODES[stage] * h)
            rhs, rhs_q = self._apply(moment, here)
            rhs.axpy(h * DERIVATIVE[stage], drift)
            if u:
                here.set(0.0)
                here.maxpy([c / h for c in C[stage]], u)
                self.M.multAdd(here, rhs, rhs)
            solver.solve(rhs, work, transpose=self.transpose)
            u.append(work.copy())
            # the last row of the same system, whose matrix is triangular
            seen = self._values(now, u[-1])
            past = sum((c / h * before for c, before in zip(C[stage], q, strict=True)), np.zeros_like(rhs_q))
            q.append(h * GAMMA * (rhs_q + h * DERIVATIVE[stage] * drift_q + seen + past))
            here.destroy()
            rhs.destroy()
        weights = [*A[5], 1.0]
        v = begin.v.copy()
        v.maxpy(weights, u)
        integrals = begin.integrals + sum(w * each for w, each in zip(weights, q, strict=True))
        for item in (drift, work, solver.A, solver):
            item.destroy()
        return Step(begin, Point(begin.t + h, v, integrals), u, q)

    def _factorised(self, now: Moment, h: float) -> _petsc.LinearSolver:
        matrix = now[0][1].G.copy()
        matrix.scale(-now[0][0])
        for coefficient, frozen in now[1:]:
            matrix.axpy(-coefficient, frozen.G, PETSc.Mat.Structure.SAME_NONZERO_PATTERN)
        matrix.axpy(1.0 / (h * GAMMA), self.M, PETSc.Mat.Structure.SUBSET_NONZERO_PATTERN)
        return _petsc.LinearSolver(matrix, "fp_evolve_", "evolution", self.preset, self.options)

    def _apply(self, moment: Moment, v: PETSc.Vec) -> tuple[PETSc.Vec, np.ndarray]:
        """G v and ℓᵀv."""
        image, part = v.duplicate(), v.duplicate()
        image.set(0.0)
        for coefficient, frozen in moment:
            (frozen.G.multTranspose if self.transpose else frozen.G.mult)(v, part)
            image.axpy(coefficient, part)
        part.destroy()
        return image, self._values(moment, v)

    def _values(self, moment: Moment, v: PETSc.Vec) -> np.ndarray:
        return sum((c * dots(v, frozen.flux) for c, frozen in moment), np.zeros(len(moment[0][1].flux)))
