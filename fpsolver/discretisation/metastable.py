"""Exit problems of reversible processes at exponentially long times, through capacities.

With the symmetric matrix K = −G of the ``weighted`` scheme, one node x_i in every metastable well is split off:
u = Σ c_i h_i + Σ g_p h_p + w.  Here K h = 0 away from these nodes; h_i is one at x_i (the probability of hitting it
before the others and before exit) and h_p takes data one on the absorbing part p; w solves the problem stopped at
the x_i.  Testing K u = F with the h_i gives, exactly,

    Σ_j C_ij (c_i − c_j) + Σ_p C_ip (c_i − g_p) = h_iᵀF

with the capacities C_st = a(h_s, h_t) ≥ 0: for one well E τ = ∫ h ρ / C (Bovier, Eckhoff, Gayrard, Klein, J. Eur. Math.
Soc. 6, 2004).  The h and w solve well-conditioned systems.  A capacity, far below rounding times ‖K‖, keeps its
relative accuracy because h_s is integrated against a step χ(h_t) that is constant, and therefore skipped, wherever the
density is not small; and the small system is solved without a subtraction.
"""

from collections.abc import Mapping
from dataclasses import replace

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh

from .._errors import NotConverged
from .._log import logger
from .._petsc import LinearSolver, Options
from ._wells import Floats, eliminate, find_wells
from .assembly import assemble_vector, nodal_potential, to_function, to_vector
from .generator import Generator, derived
from .solver import Key, exit_flux, exit_preset, merged

UNRESOLVED = "DIVERGED_UNRESOLVED"  # the reason of a mesh on which no exit is resolved
_STEP = (0.1, 0.9)  # χ rises from 0 to 1 while h does between these: where h is neither 0 nor 1, at the saddles
_DEPTH = 5.0  # in units of U: a well of this depth that is not split off costs two digits
_ROUNDING = 1e-11  # what is left of h in wells that it does not reach; the capacity is then known from the other side
_STEEP = 12.0  # variation of U over a cell beyond which polynomials resolve no current, and error bars no error
_UNRESOLVED = 0.45  # share of a capacity that may come from such cells: they lie beside most passes, unlike in them
_ITERATIONS, _CONVERGED = 200, 1e-10  # of inverse iteration; the mode's change, in its norm


class CapacitySolver:
    """K u = F for the ``weighted`` scheme, accurate relative to each part of u (collective)."""

    between: Floats  #: capacities between wells, shape (wells, wells), in the units of the weight e^{U_min − U}
    leaving: Floats  #: between wells and absorbing parts, shape (wells, parts)
    across: Floats  #: between absorbing parts, through no well, shape (parts, parts)

    def __init__(self, gen: Generator, what: str, preset: Options, options: Options | None):
        self.absorbing = gen.absorbing
        cells = None if gen.weak.cells is None else gen.weak.cells.find(1)
        # global degrees of freedom at which wells are split off, the deepest first
        deepest, *others = find_wells(gen.V, nodal_potential(gen), gen.territory.stops, cells)
        self.wells = [deepest[1], *(node for _, node, climb in others if climb >= _DEPTH)]
        logger.info("%d metastable well(s) split off", len(self.wells))
        self.K = gen.G.copy()
        self.K.scale(-1.0)
        first, last = self.K.getOwnershipRange()
        self._mine = [i for i in self.wells if first <= i < last]
        units = [gen.G.createVecRight() for _ in self.wells]
        for e, row in zip(units, self.wells, strict=True):
            e.set(0.0)
            e.array_w[[row - first] if row in self._mine else []] = 1.0
        sources = [*(gen.G * e for e in units), *(exit_flux(gen, part) for part in gen.absorbing)]
        self._scale = self.K.getDiagonal()
        self._scale.sqrtabs()
        self._scale.reciprocal()
        self.K.diagonalScale(self._scale, self._scale)
        self.K.setOption(PETSc.Mat.Option.NEW_NONZERO_ALLOCATION_ERR, False)
        self.K.zeroRowsColumns(self._mine, diag=1.0)
        self.solver = LinearSolver(self.K, "fp_exit_", what, preset, options)
        # the largest share of a capacity that comes from steep cells, and which of these the current flows in
        self.unresolved, self.steep = 0.0, np.zeros(gen.V.dofmap.list.shape[0], dtype=bool)
        self.h = [self._stopped(F) for F in sources]
        for h, e in zip(self.h, units, strict=False):
            h.axpy(1.0, e)
        self._measure(gen)

    @property
    def capacity(self) -> float:
        """Capacity between the deepest well and the rest."""
        return float(self.between[0].sum() + self.leaving[0].sum())

    def _stopped(self, F: PETSc.Vec) -> PETSc.Vec:
        """The solution that vanishes at the wells, as a new vector."""
        b, x = self._scale * F, F.duplicate()
        b.array_w[np.array(self._mine, int) - self.K.getOwnershipRange()[0]] = 0.0
        self.solver.solve(b, x)
        x.pointwiseMult(self._scale, x)
        return x

    def _measure(self, gen: Generator) -> None:
        """All capacities: C_st from a(h_s, χ_t) or a(h_t, χ_s), whichever does not sink into rounding."""
        n = len(self.wells)
        steep = np.ptp(nodal_potential(gen)[gen.V.dofmap.list], axis=1) > _STEEP
        clean = [h.copy() for h in self.h]
        for h in clean:
            h.array_w[np.abs(h.array_r) < _ROUNDING] = 0.0
        C = np.zeros((len(clean), len(clean)))
        for t in range(len(clean)):
            chi, current = self._current_into(gen, t)
            self._check_resolution(gen, t, chi, steep)
            C[:, t] = [h.dot(current) for h in clean]
            C[n:, t] += [exit_flux(gen, part).dot(chi) for part in self.absorbing]
        C = np.maximum(np.maximum(C, C.T), 0.0)
        np.fill_diagonal(C, 0.0)
        self.between, self.leaving, self.across = C[:n, :n], C[:n, n:], C[n:, n:]

    def _check_resolution(self, gen: Generator, t: int, chi: PETSc.Vec, steep: npt.NDArray[np.bool_]) -> None:
        """Note the share of a(h_t, χ) that comes from steep cells (collective)."""
        comm = gen.domain.comm
        if not comm.allreduce(bool(steep.any()), op=MPI.LOR):
            return
        cellwise = fem.Function(fem.functionspace(gen.domain.mesh, ("DG", 0)))
        v, h = ufl.TestFunction(cellwise.function_space), to_function(gen, self.h[t])
        flow = ufl.dot(gen.weak.coefficients.D, ufl.grad(h))
        energy = fem.form(ufl.dot(flow, ufl.grad(to_function(gen, chi))) * v * gen.weak.dx)
        fem.assemble_vector(cellwise.x.array, energy)
        owned = cellwise.function_space.dofmap.index_map.size_local
        found = np.abs(cellwise.x.array[:owned])
        part, total = (float(comm.allreduce(e)) for e in (found[steep[:owned]].sum(), found.sum()))
        share = part / total if total > 0 else 1.0
        if share > _UNRESOLVED:
            self.steep[:owned] |= steep[:owned] & (found > 0)
        self.unresolved = max(self.unresolved, share)

    def _current_into(self, gen: Generator, t: int) -> tuple[PETSc.Vec, PETSc.Vec]:
        """χ = χ(h_t), and r with hᵀr = −a(h, χ) over the cells in which χ varies; constants carry no current."""
        part = t - len(self.wells)
        chi = to_function(gen, self.h[t])
        chi.x.array[:] = np.clip((chi.x.array - _STEP[0]) / (_STEP[1] - _STEP[0]), 0.0, 1.0)
        varies = np.ptp(chi.x.array[gen.V.dofmap.list], axis=1) > 0
        if gen.weak.cells is not None:
            varies &= np.isin(np.arange(len(varies)), gen.weak.cells.find(1))
        cells = np.flatnonzero(varies).astype(np.int32)
        tags = dmesh.meshtags(gen.domain.mesh, gen.domain.dim, cells, np.ones_like(cells))
        others = [name for i, name in enumerate(gen.absorbing) if i != part]
        weak, v = replace(gen.weak, cells=tags, absorbing=gen.territory.facets(others)), ufl.TestFunction(gen.V)
        current = assemble_vector(gen, weak.forward(chi, v))
        if part >= 0:  # χ − 1 takes the place of χ there, as the form demands data zero
            at = gen.territory.facets((gen.absorbing[part],))
            current.axpy(1.0, assemble_vector(gen, -weak.exit(v, chi - 1.0, at)))
        return to_vector(gen, chi), current

    def solve(self, F: PETSc.Vec, data: Mapping[str, float] | None = None) -> PETSc.Vec:
        """The solution of K u = F with constant data on absorbing parts, as a new vector."""
        n, given = len(self.wells), np.array([(data or {}).get(part, 0.0) for part in self.absorbing])
        rhs = np.array([h.dot(F) for h in self.h[:n]]) + self.leaving @ given
        c = eliminate(self.between, self.leaving.sum(axis=1), rhs)
        u = self._stopped(F)
        for factor, h in zip([*c, *given], self.h, strict=True):
            u.axpy(float(factor), h)
        return u

    def absorbed(self, F: PETSc.Vec) -> Floats:
        """Share of the paths started with density F that each absorbing part takes."""
        rhs = np.array([h.dot(F) for h in self.h])
        n = len(self.wells)
        return eliminate(self.between, self.leaving.sum(axis=1), rhs[:n]) @ self.leaving + rhs[n:]

    def effective(self, a: str, b: str) -> float:
        """Capacity between two absorbing parts when the wells float: a sum of positive terms."""
        i, j = (self.absorbing.index(part) for part in (a, b))
        c = eliminate(self.between, self.leaving.sum(axis=1), self.leaving[:, j])
        return float(self.across[i, j] + self.leaving[:, i] @ c)


def capacity_solver(gen: Generator, what: str, options: Options | None = None) -> CapacitySolver:
    """The generator's capacity solver, made once; a mesh that resolves no exit is refused, with its steep cells."""
    capacity = _capacities(gen, merged(gen, options))
    if capacity.unresolved > _UNRESOLVED:
        advice = (
            f"The density varies by more than e^{_STEEP:.0f} over single cells where paths leave their wells, and "
            f"{100 * capacity.unresolved:.1f} % of the current flows there: the mesh resolves no exit. Refine it (the "
            "drift times the length of a cell should stay below 10 D there), or let rtol= do so."
        )
        failure = NotConverged(what, UNRESOLVED, 0, capacity.unresolved, capacity.solver.prefix, advice)
        failure.partial = capacity.steep
        raise failure
    return capacity


@derived
def _capacities(gen: Generator, options: Key) -> CapacitySolver:
    return CapacitySolver(gen, "exit", exit_preset(gen), dict(options))


def slowest_mode(gen: Generator, options: Options | None = None) -> tuple[float, PETSc.Vec, float]:
    """Rate of the slowest decay, its backward mode u as a new vector with uᵀMu = 1, and its last change.

    Inverse iteration; rates keep their relative accuracy, as K u = F is solved to it and λ = uᵀKu / uᵀMu has no
    subtraction (collective).
    """
    what, u = "slowest mode", _constant(gen)
    capacity = capacity_solver(gen, what, options)
    for _ in range(_ITERATIONS):
        rate, w = _invert(gen, capacity, u)
        u.axpy(-1.0, w)
        change, u = float(np.sqrt(abs(u.dot(gen.M * u)))), w
        if change < _CONVERGED:
            return rate, u, change
    advice = "A second mode decays almost as slowly, so that no single law is left at long times."
    raise NotConverged(what, "DIVERGED_ITS", _ITERATIONS, change, capacity.solver.prefix, advice)


def _constant(gen: Generator) -> PETSc.Vec:
    u = gen.M.createVecRight()
    u.set(1.0)
    return u


def _invert(gen: Generator, capacity: CapacitySolver, u: PETSc.Vec) -> tuple[float, PETSc.Vec]:
    """w = K⁻¹Mu with wᵀMw = 1, and its rate wᵀKw."""
    F = gen.M * u
    w = capacity.solve(F)
    energy, squared = w.dot(F), w.dot(gen.M * w)
    w.scale(1.0 / np.sqrt(squared))
    return float(energy / squared), w


def estimated_rate(gen: Generator) -> float:
    """Rate of the slowest decay by one inverse iteration: from above, close at high barriers (collective)."""
    return _invert(gen, capacity_solver(gen, "slowest mode"), _constant(gen))[0]
