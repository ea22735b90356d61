"""Forms into PETSc objects, and vectors into functions and back."""

from typing import TYPE_CHECKING, Any

from petsc4py import PETSc

import numpy as np
import ufl
from dolfinx import fem, la
from dolfinx.cpp.la import petsc as la_petsc
from dolfinx.fem import petsc as fem_petsc

from .._compat import interpolation_points
from ..models.fields import Space

if TYPE_CHECKING:
    from .generator import Generator


def make_matrix(form: fem.Form, pattern: PETSc.Mat | None = None, idle: np.ndarray | None = None) -> PETSc.Mat:
    """A new matrix (collective)."""
    rows = np.flatnonzero([] if idle is None else idle[: form.function_spaces[0].dofmap.index_map.size_local])
    if pattern is None:
        sparsity = fem.create_sparsity_pattern(form)
        sparsity.insert_diagonal(rows.astype(np.int32))
        sparsity.finalize()
        matrix = la_petsc.create_matrix(form.mesh.comm, sparsity)
    else:
        matrix = pattern.duplicate()
    fem_petsc.assemble_matrix(matrix, form, [], 0.0)
    if idle is not None:  # before the end of assembly, which drops what is not set
        diagonal = matrix.createVecRight()
        diagonal.set(0.0)
        diagonal.array_w[rows] = -1.0
        matrix.setDiagonal(diagonal, PETSc.InsertMode.ADD_VALUES)
    matrix.assemble()
    return matrix


def make_vector(V: fem.FunctionSpace, form: fem.Form) -> PETSc.Vec:
    """A new vector of owned entries (collective)."""
    function = fem.Function(V)
    fem.assemble_vector(function.x.array, form)
    function.x.scatter_reverse(la.InsertMode.add)
    return owned_entries(function)


def owned_entries(function: fem.Function) -> PETSc.Vec:
    """The owned coefficients of a function as a new vector."""
    V = function.function_space
    vector = PETSc.Vec().create(V.mesh.comm)
    vector.setSizes((V.dofmap.index_map.size_local, V.dofmap.index_map.size_global))
    vector.setType(PETSc.Vec.Type.STANDARD)
    vector.array_w[:] = function.x.array[: vector.local_size]
    return vector


def nodal_values(V: fem.FunctionSpace, expression: Any, space: Space) -> fem.Function:
    """A scalar expression at the nodes."""
    nodal = fem.Function(V)
    expression = expression + space.constant(0.0)  # a constant loss has no mesh of its own
    nodal.interpolate(fem.Expression(expression, interpolation_points(V.element)))
    nodal.x.scatter_forward()  # where cells disagree, as about the weight, the owner's value counts
    return nodal


def assemble_vector(gen: "Generator", form: ufl.Form) -> PETSc.Vec:
    """Assemble a linear form on ``gen.V`` into a new vector (collective)."""
    return make_vector(gen.V, fem.form(form))


def assemble_matrix(form: ufl.Form) -> PETSc.Mat:
    """Assemble a bilinear form into a new matrix (collective)."""
    return make_matrix(fem.form(form))


def nodal_potential(gen: "Generator") -> np.ndarray:
    """U at this rank's nodes, in the weighted scheme."""
    return nodal_values(gen.V, gen.weak.potential, gen.weak.space).x.array


def nodal_weight(gen: "Generator") -> np.ndarray:
    """The scheme's weight at this rank's nodes: e^{U_min − U} with ``weighted``, else one."""
    return nodal_values(gen.V, gen.weak.weight, gen.weak.space).x.array


def to_function(gen: "Generator", vector: PETSc.Vec, name: str = "u") -> fem.Function:
    """The function with these coefficients (collective)."""
    answer = fem.Function(gen.V, name=name)
    answer.x.array[: vector.local_size] = vector.array_r
    answer.x.scatter_forward()
    return answer


def to_density(gen: "Generator", vector: PETSc.Vec, name: str = "density") -> fem.Function:
    """The density of a forward solution: in the weighted scheme, the weight times its unknown (collective)."""
    unknown = to_function(gen, vector, name)
    if gen.weak.scheme.unknown_is_density:
        return unknown
    answer = nodal_values(gen.V, gen.weak.weight * unknown, gen.weak.space)
    answer.name = name
    return answer


def to_vector(gen: "Generator", function: fem.Function) -> PETSc.Vec:
    """The owned coefficients of a function on ``gen.V`` as a new vector; one of another element is refused."""
    found, expected = function.function_space.ufl_element(), gen.V.ufl_element()
    if found != expected:
        raise ValueError(
            f"{function.name!r} is a function of {found}, the generator's space is {expected}. Of a density that was "
            "made non-negative, take .raw instead of .function."
        )
    return owned_entries(function)
