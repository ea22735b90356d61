"""Exit problems of reversible processes at exponentially long times, through the capacity of the deepest minimum.

With the symmetric matrix K = −G of the ``weighted`` scheme, one node x₀ at the deepest minimum is split off:
u = c h + w, where K h = 0 away from x₀ with h(x₀) = 1 (the probability of hitting x₀ before exit), and w solves the
problem stopped at x₀.  Testing K u = F with h gives, exactly,

    c = (hᵀF) / cap,    cap = hᵀK h,

so that E τ = ∫ h ρ / cap: the capacity formula (Bovier, Eckhoff, Gayrard, Klein, J. Eur. Math. Soc. 6, 2004).  h and w
solve well-conditioned systems.  The capacity, far below rounding times ‖K‖, keeps its relative accuracy because it
is integrated against a step χ = χ(h) that is constant, and therefore skipped, wherever the density is not small.
"""

from typing import Any

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
from dolfinx import fem
from dolfinx import mesh as dmesh

from ._petsc import LinearSolver, Options
from .generator import Generator

_STEP = (0.1, 0.9)  # χ rises from 0 to 1 while h does between these: where h is neither 0 nor 1, at the saddles


class CapacitySolver:
    """K u = F for the ``weighted`` scheme, accurate relative to each of c and w (collective).

    Attributes:
        capacity: cap, in the units of the weight e^{U_min − U}.
        solver: the factorised pinned matrix.
    """

    def __init__(self, gen: Generator, what: str, preset: Options, options: Options | None):
        self.gen = gen
        self.K = gen.G.copy()
        self.K.scale(-1.0)
        self._pin = self._deepest_node()
        column = self._unit()
        start = column.duplicate()
        self.K.mult(column, start)
        self._scale = self.K.getDiagonal()
        self._scale.sqrtabs()
        self._scale.reciprocal()
        self.K.diagonalScale(self._scale, self._scale)
        self.K.setOption(PETSc.Mat.Option.NEW_NONZERO_ALLOCATION_ERR, False)
        self.K.zeroRowsColumns([self._pin] if self._owned(self._pin) else [], diag=1.0)
        self.solver = LinearSolver(self.K, "fp_exit_", what, preset, options)
        start.scale(-1.0)
        self.h = self._pinned(start)
        self.h.axpy(1.0, column)
        self.capacity = self._capacity()
        for v in (column, start):
            v.destroy()

    def _owned(self, row: int) -> bool:
        first, last = self.K.getOwnershipRange()
        return first <= row < last

    def _deepest_node(self) -> int:
        """Global number of the node with the largest weight, the lowest number of several."""
        weight = self.gen.nodal_weight()
        first, last = self.gen.G.getOwnershipRange()
        best, at = -1.0, 2**62
        if last > first:
            local = int(np.argmax(weight[: last - first]))
            best, at = float(weight[local]), first + local
        top = self.gen.domain.comm.allreduce(best, op=MPI.MAX)
        return int(self.gen.domain.comm.allreduce(at if best == top else 2**62, op=MPI.MIN))

    def _unit(self) -> PETSc.Vec:
        e = self.gen.G.createVecRight()
        e.set(0.0)
        if self._owned(self._pin):
            e.setValue(self._pin, 1.0)
        e.assemble()
        return e

    def _pinned(self, F: PETSc.Vec) -> PETSc.Vec:
        """The solution that vanishes at x₀, as a new vector."""
        b, x = F.duplicate(), F.duplicate()
        b.pointwiseMult(self._scale, F)
        if self._owned(self._pin):
            b.setValue(self._pin, 0.0)
        b.assemble()
        self.solver.solve(b, x)
        x.pointwiseMult(self._scale, x)
        b.destroy()
        return x

    def _capacity(self) -> float:
        """a(h, χ) over the cells in which χ varies; equal to a(h, h) because h solves the equation elsewhere."""
        gen = self.gen
        h, chi = gen.function(self.h), fem.Function(gen.V)
        low, high = _STEP
        chi.x.array[:] = np.clip((h.x.array - low) / (high - low), 0.0, 1.0)
        nodal = chi.x.array[gen.V.dofmap.list]
        varies = np.flatnonzero(np.ptp(nodal, axis=1) > 0).astype(np.int32)
        tags = dmesh.meshtags(gen.domain.mesh, gen.domain.dim, varies, np.ones_like(varies))
        gen.activate()
        form = fem.form(-gen.weak.on_cells(tags).forward(h, chi))
        return float(gen.domain.comm.allreduce(fem.assemble_scalar(form), op=MPI.SUM))

    def solve(self, F: PETSc.Vec) -> PETSc.Vec:
        """The solution of K u = F as a new vector."""
        u = self._pinned(F)
        u.axpy(self.h.dot(F) / self.capacity, self.h)
        return u

    def destroy(self) -> None:
        """Free the factors (collective)."""
        self.solver.destroy()
        for item in (self.K, self.h, self._scale):
            item.destroy()


def capacity_solver(gen: Generator, what: str, options: Options | None = None) -> CapacitySolver:
    """The generator's capacity solver, made once (collective)."""
    merged: dict[str, Any] = {**gen.options, **(options or {})}
    return gen.cached(
        f"capacity {sorted(merged.items())}", lambda: CapacitySolver(gen, what, gen.exit_preset(), merged)
    )
