"""Forms that generators with different numbers share, and their assembly into PETSc objects."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from petsc4py import PETSc

import numpy as np
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh
from dolfinx.fem import petsc as fem_petsc

from .._compat import interpolation_points
from ..domains.domain import Domain
from ..models.fields import Space
from ..models.process import Coefficients
from .schemes import WeakForm, weighted


@dataclass
class Compiled:
    """Symbols, function space and compiled forms of a process on a domain.

    In the weighted scheme ``potential`` is U, ``offset`` its minimum, and ``floor`` the lowest exponent of the weight
    in each cell, see :func:`lowest_exponents`; otherwise None, 0 and idle.  ``wall`` is the diffusion added at walls,
    zero in the other schemes.  ``degrees`` holds generators of other
    degrees, compiled once for all the generators that ``replace`` makes of these forms.
    """

    space: Space
    coefficients: Coefficients
    weak: WeakForm
    V: fem.FunctionSpace
    mass: fem.Form
    forward: fem.Form
    integral: fem.Form
    potential: Any
    offset: fem.Constant
    floor: fem.Function
    wall: fem.Function
    degrees: dict[int, Any] = field(default_factory=dict)


def compile_forms(space: Space, coefficients: Coefficients, weak: WeakForm, potential: Any) -> Compiled:
    """Compile M and G, and choose the function space of the scheme (collective)."""
    cells = fem.functionspace(weak.mesh, ("DG", 0))
    offset, floor, wall = space.constant(0.0), fem.Function(cells), fem.Function(cells)
    if potential is not None:
        weight = ufl.exp(ufl.max_value(offset - potential, floor))
        weak = replace(weak, coefficients=weighted(coefficients, weight), weight=weight)
    if weak.scheme == "dg":
        weak = replace(weak, wall=wall)
    family = "DG" if weak.scheme == "dg" else "Lagrange"
    V = fem.functionspace(weak.mesh, (family, weak.degree))
    return Compiled(space, coefficients, weak, V, *basic_forms(weak, V), potential, offset, floor, wall)


def lowest_exponents(V: fem.FunctionSpace, exponent: np.ndarray) -> np.ndarray:
    """Lowest exponent of the weight in each local cell, from its values at the nodes.

    Below e^-600 the density no longer matters to any answer that fits into a float.  In a cell where the weight
    varies by more than e^15 nothing is resolved, and polynomials would grow from its heavy to its light side by half
    that factor, cell after cell, to values like 1e26 τ.  Where it is also below rounding (e^-36 of the largest), it is
    kept within e^-2 of its largest value in the cell: constants then stay constants.
    """
    nodal = exponent[V.dofmap.list]
    top, bottom = nodal.max(axis=1, initial=-np.inf), nodal.min(axis=1, initial=np.inf)
    unresolved = (top - bottom > 15.0) & (top < -36.0)
    return np.maximum(np.where(unresolved, top - 2.0, -600.0), -600.0)


def basic_forms(weak: WeakForm, V: fem.FunctionSpace) -> tuple[fem.Form, fem.Form, fem.Form]:
    """Compiled forms of M, of G and of the integral of a function (collective)."""
    p, v = ufl.TrialFunction(V), ufl.TestFunction(V)
    return fem.form(weak.mass(p, v)), fem.form(weak.forward(p, v)), fem.form(weak.weight * v * weak.dx)


def assemble_matrix(form: fem.Form) -> PETSc.Mat:
    """A new matrix (collective)."""
    matrix = fem_petsc.create_matrix(form)
    fem_petsc.assemble_matrix(matrix, form, [], 0.0)
    matrix.assemble()
    return matrix


def assemble_like(form: fem.Form, pattern: PETSc.Mat) -> PETSc.Mat:
    """A new matrix with the sparsity pattern of another (collective)."""
    matrix = pattern.duplicate()
    fem_petsc.assemble_matrix(matrix, form, [], 0.0)
    matrix.assemble()
    return matrix


def union_tags(domain: Domain, names: Sequence[str]) -> dmesh.MeshTags:
    """The facets of all these parts, with value 1."""
    parts = [domain.facets(name) for name in names]
    facets = np.unique(np.concatenate([np.zeros(0, np.int32), *parts])).astype(np.int32)
    return dmesh.meshtags(domain.mesh, domain.dim - 1, facets, np.ones_like(facets))


def nodal_values(V: fem.FunctionSpace, potential: Any, space: Space) -> fem.Function:
    """A scalar expression at the nodes."""
    nodal = fem.Function(V)
    potential = potential + space.constant(0.0)  # a constant loss has no mesh of its own
    nodal.interpolate(fem.Expression(potential, interpolation_points(V.element)))
    nodal.x.scatter_forward()  # where cells disagree, as about the weight, the owner's value counts
    return nodal
