"""Evolution that is positive and decreases every entropy at every step, whatever the step and the mesh size.

Edge averages on linear elements (Xu, Zikatanov, Math. Comp. 68, 1999; in one dimension Scharfetter, Gummel, 1969), for
noise of the same strength D(x) in all directions: from node i to node j flows

    F_ij = ω_ij D_ij [B(−P_ij) p_i − B(P_ij) p_j],    B(z) = z/(e^z − 1),    P_ij = ∫ β/D·τ along the edge,

with ω_ij = −∫∇φ_i·∇φ_j, which is non-negative on Delaunay meshes.  With the lumped mass and backward Euler each step is
(M + Δt A) p' = M p, where A has non-positive entries off the diagonal and columns that sum to zero: a transition matrix
of a Markov chain, hence positive, exact in mass and contracting in every entropy relative to its invariant law.  Where
β = −D∇U that law is e^{−U} at the nodes.

For noise that depends on direction no linear scheme on a fixed stencil does this for all D (Motzkin, Wasow, J. Math.
Phys. 31, 1953), and order one is the best in time (Bolley, Crouzeix, RAIRO 12, 1978).
"""

from itertools import combinations
from typing import Any

from mpi4py import MPI
from petsc4py import PETSc

import basix
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem

from .. import _compat
from .._errors import agree
from .._log import logger, progress
from .._petsc import LinearSolver, Options, direct_preset
from ..discretisation.fluxes import basis_integrals
from ..discretisation.generator import Generator
from ..discretisation.solver import statistics
from ._expm import Snapshot
from .evolution import Evolution, check_times
from .initial import Dirac, Gaussian, load

Array = npt.NDArray[Any]

_POINTS = 6  # of the Gauss rule on an edge: exact for polynomials of degree 11


def evolve_monotone(
    gen: Generator, initial: Any, times: Any, *, steps: int = 100, options: Options | None = None
) -> Evolution:
    """Density p(t), positive and with decreasing entropies at every step (collective).

    First order in the step, second in the mesh size: a guarantee, where :func:`~fpsolver.evolve` is accurate.  The
    densities are linear on each cell whatever the degree of ``gen``, of which process and domain are taken.  Entropies
    ∫ φ(p/π) π decrease for every convex φ in the sense Σ m_i φ(p_i/π_i) π_i over the nodes with m_i = ∫φ_i.

    Args:
        gen: generator with nothing absorbing, whose process has D = D(x) I with D > 0.
        initial: as in :func:`~fpsolver.evolve`, non-negative.
        times: increasing, non-negative, shape (n,) or one number.
        steps: backward Euler steps until the last time, of equal length between two times.
        options: PETSc options without the prefix ``fp_evolve_``.

    Returns:
        An :class:`~fpsolver.Evolution`; ``stats["step"]`` is the longest step, ``stats["rounding"]`` the most negative
        value, relative to the largest, that rounding in the linear solver gave in any step and that was set to zero.

    Raises:
        ValueError: D is not scalar and positive; the mesh is not Delaunay; something absorbs; ``initial`` is negative.
        NotConverged: a solve failed.
    """
    if gen.absorbing:
        raise ValueError(f"evolve_monotone: {', '.join(gen.absorbing)} absorbs; reflecting walls only were expected.")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"evolve_monotone: steps is {steps!r}; an integer of at least 1 was expected.")
    times = check_times(times)
    linear = Generator(gen.process, gen.domain, (), 1, "galerkin", options=gen.options)
    flow = _Flow(linear, options)
    p = load(linear, initial, "initial density")
    negative = p.min()[1] < (-1e-12 * p.norm(PETSc.NormType.INFINITY) if isinstance(initial, Gaussian | Dirac) else 0)
    if negative:
        raise ValueError("evolve_monotone: the initial density is negative somewhere; mass cannot be.")
    p.array_w[:] = np.maximum(p.array_r, 0.0) / basis_integrals(linear).array_r
    evolution = Evolution(linear, "density")
    longest, t = max(times[-1] / steps, 1e-300), 0.0
    with PETSc.Log.Stage("fpsolver evolve"):
        for time in progress(times, "monotone evolution", len(times)):
            count = int(np.ceil((time - t) / longest - 1e-9))
            for _ in range(count):
                flow.step(p, (time - t) / count)
            t = time
            evolution.append(Snapshot(t, p.copy(), np.zeros(0), np.zeros(0)))
    stats = {**statistics(linear), "scheme": "edge averages", "steps": flow.steps, "factorisations": len(flow.solvers)}
    evolution.stats.update(stats, step=float(longest), rounding=float(flow.rounding))
    for item in (p, flow):
        item.destroy()
    logger.info("%s", evolution)
    return evolution


class _Flow:
    """The matrix A of flows between nodes, and backward Euler steps with it."""

    def __init__(self, linear: Generator, options: Options | None):
        self.linear, self.options = linear, options
        self.A = _flows(linear)
        self.solvers: dict[float, LinearSolver] = {}
        self.steps, self.rounding = 0, 0.0
        self._mass = basis_integrals(linear).copy()
        self._rhs = self._mass.duplicate()

    def step(self, p: PETSc.Vec, dt: float) -> None:
        """(M + Δt A) p ← M p."""
        key = float(f"{dt:.12g}")
        if key not in self.solvers:
            matrix = self.A.copy()
            matrix.scale(key)
            matrix.setDiagonal(self._mass, addv=PETSc.InsertMode.ADD_VALUES)
            preset = direct_preset(matrix.comm, self.linear.domain.dim)
            merged = {**self.linear.options, **(self.options or {})}
            self.solvers[key] = LinearSolver(matrix, "fp_evolve_", "monotone evolution", preset, merged)
        before = p.dot(self._mass)
        self._rhs.pointwiseMult(self._mass, p)
        self.solvers[key].solve(self._rhs, p)
        # elimination may leave -1e-20 where the density is 1e-300
        self.rounding = min(self.rounding, p.min()[1] / p.norm(PETSc.NormType.INFINITY))
        p.array_w[:] = np.maximum(p.array_r, 0.0)
        p.scale(before / p.dot(self._mass))
        self.steps += 1

    def destroy(self) -> None:
        """Free matrices and factors (collective)."""
        for solver in self.solvers.values():
            solver.A.destroy()
            solver.destroy()
        for item in (self.A, self._mass, self._rhs):
            item.destroy()


def _flows(linear: Generator) -> PETSc.Mat:
    """A with Σ_j F_ij = (A p)_i, checked to have no positive entry off the diagonal (collective)."""
    mesh = linear.domain.mesh
    tdim = mesh.topology.dim
    edges = np.array(list(combinations(range(tdim + 1), 2)))
    owned = np.arange(mesh.topology.index_map(tdim).size_local, dtype=np.int32)
    D, P = _edge_averages(linear, edges, owned)
    omega = _edge_weights(mesh, edges, owned)
    out, back = omega * D * _bernoulli(-P), omega * D * _bernoulli(P)
    dofs = linear.V.dofmap.index_map.local_to_global(linear.V.dofmap.list[owned].ravel().astype(np.int32))
    dofs = dofs.reshape(len(owned), tdim + 1)
    cell = np.zeros((len(owned), tdim + 1, tdim + 1))
    for e, (i, j) in enumerate(edges):
        cell[:, i, i] += out[:, e]
        cell[:, j, i] -= out[:, e]
        cell[:, i, j] -= back[:, e]
        cell[:, j, j] += back[:, e]
    A = linear.G.duplicate()
    A.zeroEntries()
    offsets = np.arange(0, cell.size + 1, tdim + 1, dtype=PETSc.IntType)
    columns = np.repeat(dofs, tdim + 1, axis=0).ravel()
    rows = dofs.ravel().astype(PETSc.IntType)
    A.setValuesIJV(offsets, columns.astype(PETSc.IntType), cell.ravel(), PETSc.InsertMode.ADD_VALUES, rows)
    A.assemble()
    _check_monotone(A, mesh, edges, owned)
    return A


def _edge_averages(linear: Generator, edges: Array, cells: Array) -> tuple[Array, Array]:
    """D and P along each edge of each cell, from its first to its second vertex; checks that D is scalar."""
    mesh, coefficients = linear.domain.mesh, linear.weak.coefficients
    tdim = mesh.topology.dim
    corners = np.vstack([np.zeros(tdim), np.eye(tdim)])
    rule = np.polynomial.legendre.leggauss(_POINTS)
    s, w = (rule[0][:, None] + 1) / 2, rule[1] / 2
    X = np.concatenate([(1 - s) * corners[a] + s * corners[b] for a, b in edges])
    shape = (len(cells), len(edges), _POINTS)
    row = [*ufl.SpatialCoordinate(mesh), *coefficients.beta]  # one expression that has a mesh, whatever is constant
    row += [coefficients.D[i, j] for i in range(tdim) for j in range(tdim)]
    table = fem.Expression(ufl.as_vector(row), X).eval(mesh, cells).reshape(*shape, len(row))
    beta, D = table[..., tdim : 2 * tdim], table[..., 2 * tdim :].reshape(*shape, tdim, tdim)
    level = np.trace(D, axis1=3, axis2=4) / tdim
    largest = mesh.comm.allreduce(float(level.max(initial=0.0)), op=MPI.MAX)
    anisotropy = float(abs(D - level[..., None, None] * np.eye(tdim)).max(initial=0.0))
    problem = None
    if anisotropy > 1e-10 * largest:
        problem = f"D depends on direction (it differs from a multiple of I by {anisotropy:.3g})"
    elif linear.survey.degenerate:
        problem = "D degenerates (it vanishes somewhere)"
    agree(
        mesh.comm,
        problem
        and f"evolve_monotone: {problem}. No linear scheme on a fixed stencil is positive for such noise (Motzkin, "
        "Wasow 1953). Use evolve, whose densities are reported non-negative with unchanged mass.",
    )
    x = mesh.geometry.x[_compat.geometry_dofmap(mesh)[cells]][:, : tdim + 1, :tdim]
    tangent = x[:, edges[:, 1]] - x[:, edges[:, 0]]
    P = np.einsum("cepx,cex,p->ce", beta / level[..., None], tangent, w)
    return level @ w, P


def _edge_weights(mesh: Any, edges: Array, cells: Array) -> Array:
    """ω = −∫∇φ_i·∇φ_j over each cell."""
    tdim = mesh.topology.dim
    nodes = mesh.geometry.x[_compat.geometry_dofmap(mesh)[cells]][:, : tdim + 1, :tdim]
    J = (nodes[:, 1:] - nodes[:, :1]).transpose(0, 2, 1)
    reference = np.vstack([-np.ones(tdim), np.eye(tdim)])
    gradients = reference @ np.linalg.inv(J)
    volume = abs(np.linalg.det(J)) * float(basix.cell.volume(getattr(basix.CellType, mesh.topology.cell_name())))
    products = np.einsum("cex,cex->ce", gradients[:, edges[:, 0]], gradients[:, edges[:, 1]])
    return -products * volume[:, None]


def _bernoulli(z: Array) -> Array:
    """z/(e^z − 1) without cancellation or overflow."""
    small = abs(z) < 1e-5
    safe = np.where(small, 1.0, np.clip(z, -700, 700))
    return np.where(small, 1 - z / 2 + z * z / 12, safe / np.expm1(safe))


def _check_monotone(A: PETSc.Mat, mesh: Any, edges: Array, cells: Array) -> None:
    """Refuse a mesh on which mass would flow from the emptier node to the fuller one (collective)."""
    first, last = A.getOwnershipRange()
    offsets, columns, values = A.getValuesCSR()
    rows = np.repeat(np.arange(first, last), np.diff(offsets))
    off = rows != columns
    scale = mesh.comm.allreduce(float(abs(values).max(initial=0.0)), op=MPI.MAX)
    bad = mesh.comm.allreduce(int((values[off] > 1e-12 * scale).sum()), op=MPI.SUM)
    if bad:
        obtuse = (_edge_weights(mesh, edges, cells) < 0).any(axis=1)
        count = mesh.comm.allreduce(int(obtuse.sum()), op=MPI.SUM)
        x = mesh.geometry.x[_compat.geometry_dofmap(mesh)[cells[obtuse]]][:, :, : mesh.geometry.dim].mean(axis=1)
        where = next((tuple(np.round(p[0], 4).tolist()) for p in mesh.comm.allgather(x[:1]) if len(p)), None)
        A.destroy()
        raise ValueError(
            f"evolve_monotone: {bad} entries of the matrix have the wrong sign, because the mesh is not Delaunay: "
            f"{count} cells have obtuse angles, one of them at {where}, that their neighbours do not make up for. "
            "Domain.rectangle has none; improve the mesh there."
        )
