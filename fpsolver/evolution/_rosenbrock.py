"""Steps of M v' = G(t) v by a stiffly accurate Rosenbrock method with embedded error.

RODASP: order four with an embedded third, L-stable, without loss of order for parabolic problems (G. Steinebach,
Order-reduction of ROW-methods for DAEs and method of lines applications, TH Darmstadt preprint 1741, 1995; the form
without matrix products of Hairer, Wanner, Solving ODEs II, section IV.7, (7.25)).  A step takes one factorisation and
six solves; dG/dt is that of the polynomial through G at the nodes.
Integrals q' = ℓ(t)ᵀv are carried along as further unknowns, so that mass and outflux balance to rounding.

Commutator-free exponentials took six times as many factorisations; PETSc's own Rosenbrock methods are for autonomous
equations only.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from petsc4py import PETSc

import numpy as np

from .. import _petsc
from ._krylov import Snapshot, dots

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
D = (25.09876703708589, 11.62013104361867, 28.49148307714626, -5.664021568594133, 0.0)
E = (1.638054557396973, -0.7373619806678748, 8.477918219238990, 15.99253148779520, -1.882352941176471)
SLOPE = np.linalg.inv(np.vander(NODES[:5], increasing=True))[1]  # derivative at 0 from values at the nodes


class Frozen(NamedTuple):
    """G and the functionals ℓ with fixed numbers."""

    G: PETSc.Mat
    flux: Sequence[PETSc.Vec]


Moment = list[tuple[float, Frozen]]
"""G(t), or its derivative, as a linear combination of matrices at hand."""


class Step(NamedTuple):
    """A step: where it begins and ends, how far the end may be off, and the stages."""

    begin: Snapshot
    end: Snapshot
    defect: Snapshot
    u: list[PETSc.Vec]
    q: list[np.ndarray]

    def at(self, t: float) -> Snapshot:
        """The solution inside the step (collective)."""
        s = (t - self.begin.time) / (self.end.time - self.begin.time)
        inner = [s * (1 - s) * (d + s * e) for d, e in zip(D, E, strict=True)]
        v = self.begin.vector.copy()
        v.scale(1 - s)
        v.maxpy([s, *inner], [self.end.vector, *self.u[:5]])
        integrals = (1 - s) * self.begin.integrals + s * self.end.integrals
        return Snapshot(t, v, integrals + sum(w * each for w, each in zip(inner, self.q[:5], strict=True)))


def step(
    M: PETSc.Mat, moment: Callable[[float], Moment], begin: Snapshot, h: float, transpose: bool,
    factorised: Callable[[PETSc.Mat], _petsc.LinearSolver],
) -> Step:  # fmt: skip
    """The step from ``begin`` to ``begin.time + h`` of M v' = G(t) v, or of M v' = G(t)ᵀ v (collective)."""
    moments = [moment(begin.time + node * h) for node in NODES]
    change = [(c * w / h, frozen) for w, m in zip(SLOPE, moments, strict=False) for c, frozen in m]
    matrix = moments[0][0][1].G.copy()
    matrix.scale(-moments[0][0][0])
    for coefficient, frozen in moments[0][1:]:
        matrix.axpy(-coefficient, frozen.G, PETSc.Mat.Structure.SAME_NONZERO_PATTERN)
    matrix.axpy(1.0 / (h * GAMMA), M, PETSc.Mat.Structure.SUBSET_NONZERO_PATTERN)
    solver = factorised(matrix)
    drift, drift_q = _apply(change, begin.vector, transpose)
    u: list[PETSc.Vec] = []
    q: list[np.ndarray] = []
    for stage, now in enumerate(moments):
        here = begin.vector.copy()
        here.maxpy(A[stage], u)
        rhs, rhs_q = _apply(now, here, transpose)
        rhs.axpy(h * DERIVATIVE[stage], drift)
        here.set(0.0)
        here.maxpy([c / h for c in C[stage]], u)
        M.multAdd(here, rhs, rhs)
        u.append(rhs.duplicate())
        solver.solve(rhs, u[-1], transpose=transpose)
        # the last row of the same system, whose matrix is triangular
        past = sum((c / h * before for c, before in zip(C[stage], q, strict=True)), _values(moments[0], u[-1]))
        q.append(h * GAMMA * (rhs_q + h * DERIVATIVE[stage] * drift_q + past))
    v = begin.vector.copy()
    v.maxpy([*A[5], 1.0], u)
    integrals = begin.integrals + sum(w * each for w, each in zip([*A[5], 1.0], q, strict=True))
    end = Snapshot(begin.time + h, v, integrals)
    return Step(begin, end, Snapshot(end.time, u[-1], q[-1]), u, q)


def _apply(moment: Moment, v: PETSc.Vec, transpose: bool) -> tuple[PETSc.Vec, np.ndarray]:
    """G v and ℓᵀv."""
    image, part = v.duplicate(), v.duplicate()
    image.set(0.0)
    for coefficient, frozen in moment:
        (frozen.G.multTranspose if transpose else frozen.G.mult)(v, part)
        image.axpy(coefficient, part)
    return image, _values(moment, v)


def _values(moment: Moment, v: PETSc.Vec) -> np.ndarray:
    return sum((c * dots(v, frozen.flux) for c, frozen in moment), np.zeros(len(moment[0][1].flux)))
