"""Where on the mesh the error of an answer comes from.

The sum Σ_i r_i (z⁺ − I z⁺)_i over the degrees of freedom of the space of degree k + 1, with the occupation density z⁺
and the interpolation I to degree k, is split among the cells around each of them: nothing needs compiling.
"""

from petsc4py import PETSc

import numpy as np
from dolfinx import fem, la
from dolfinx.fem.petsc import interpolation_matrix

from .._petsc import LinearSolver
from .._sample import own_cells
from ..discretisation.assembly import to_function, to_vector
from ..discretisation.generator import Generator
from ..discretisation.metastable import capacity_solver
from ..discretisation.solver import basis_integrals

_FLAT = 1e-6  # where h is within this of 0 or 1, weighted residuals are rounding; of a capacity it is that share


def indicators(
    gen: Generator, finer: Generator, coarse: list[fem.Function], fine: list[fem.Function], source: PETSc.Vec,
    operator: LinearSolver | None,
) -> np.ndarray:  # fmt: skip
    """Share of each owned cell in the error of the last of some answers, shape (cells,), not negative (collective).

    The answers are those of degree k on ``gen`` and of k + 1 on ``finer``, each computed from the one before (moments);
    ``source`` is J(φ_i) on ``finer``, ``operator`` G − S there, None where capacities solve.
    """
    shares, defects = fem.Function(finer.V), fem.Function(gen.V)
    owned, mine = slice(finer.G.getLocalSize()[0]), slice(gen.G.getLocalSize()[0])
    errors = [_difference(finer, *pair) for pair in zip(coarse, fine, strict=True)]
    for j in range(len(fine), 0, -1):
        z = _occupation(finer, source, operator)
        residual = _residual(finer, errors, j, operator)
        if finer.at_walls is not None:
            shares.x.array[owned] += z.array_r * _times(finer.at_walls, to_vector(finer, fine[j - 1])).array_r
        shares.x.array[owned] += residual.array_r * _detail(gen, finer, z, operator)
        if finer.weak.scheme.by_capacities:
            defects.x.array[mine] += _defects(gen, finer, residual, z, operator)
        source = finer.M * z
        source.scale(j)
    return _by_cell(shares) + _by_cell(defects)


def _times(A: PETSc.Mat, x: PETSc.Vec) -> PETSc.Vec:
    """Aᵀ x."""
    y = A.createVecRight()
    A.multTranspose(x, y)
    return y


def _difference(finer: Generator, coarse: fem.Function, fine: fem.Function) -> PETSc.Vec:
    """Coefficients of u⁺ − u_h."""
    raised = fem.Function(finer.V)
    raised.interpolate(coarse)
    raised.x.array[:] = fine.x.array - raised.x.array
    return to_vector(finer, raised)


def _residual(finer: Generator, errors: list[PETSc.Vec], j: int, operator: LinearSolver | None) -> PETSc.Vec:
    """K e_j − j M e_{j−1} with K = −Gᵀ (+ S), which is the residual of the j-th answer."""
    residual = _times(operator.A if operator else finer.G, errors[j - 1])
    residual.scale(-1.0)
    if j > 1:
        residual.axpy(-float(j), _times(finer.M, errors[j - 2]))
    return residual


def _occupation(finer: Generator, source: PETSc.Vec, operator: LinearSolver | None) -> PETSc.Vec:
    """z with Kᵀ z = source."""
    if operator is None:
        return capacity_solver(finer, "occupation density").solve(source)
    z = finer.G.createVecRight()
    operator.solve(source, z)
    z.scale(-1.0)
    return z


def _detail(gen: Generator, finer: Generator, z: PETSc.Vec, operator: LinearSolver | None) -> np.ndarray:
    """Coefficients of z − I z; zero where the residual is nothing but rounding."""
    detail, below, smooth = to_function(finer, z), fem.Function(gen.V), fem.Function(finer.V)
    below.interpolate(detail)
    smooth.interpolate(below)
    found = (detail.x.array - smooth.x.array)[: z.local_size]
    return np.asarray(found * ~_flat(finer) if operator is None else found)


def _defects(
    gen: Generator, finer: Generator, residual: PETSc.Vec, z: PETSc.Vec, operator: LinearSolver | None
) -> np.ndarray:
    """r(φ_i) (I z)_i on the space of degree k: what the quadrature of the weight missed, zero with exact integrals."""
    up, nodal = interpolation_matrix(gen.V, finer.V), fem.Function(gen.V)
    up.assemble()
    nodal.interpolate(to_function(finer, z))
    found, missed = _times(up, residual).array_r, _times(up, basis_integrals(finer))
    missed.axpy(-np.exp(float(finer.weak.offset.value - gen.weak.offset.value)), basis_integrals(gen))
    if operator is None:
        found = np.where(_flat(gen), missed.array_r, found)  # the defect of ∫ w φ_i instead of rounding
    return np.asarray(found * nodal.x.array[: len(found)])


def _flat(gen: Generator) -> np.ndarray:
    """Where the probabilities of hitting each well or part first are 0 or 1 up to rounding, at owned nodes."""
    h = np.array([column.array_r for column in capacity_solver(gen, "occupation density").h])
    return np.asarray((np.minimum(np.abs(h), np.abs(1.0 - h)) <= _FLAT).all(axis=0))


def _by_cell(shares: fem.Function) -> np.ndarray:
    V = shares.function_space
    dofs = V.dofmap.list[own_cells(V.mesh)]
    around = fem.Function(V)
    np.add.at(around.x.array, dofs.ravel(), 1.0)
    around.x.scatter_reverse(la.InsertMode.add)
    for f in (around, shares):
        f.x.scatter_forward()
    return np.abs((shares.x.array[dofs] / around.x.array[dofs]).sum(axis=1))
