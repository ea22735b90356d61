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

from ._compat import interpolation_points
from .domain import Domain
from .fields import Space
from .process import Coefficients
from .schemes import WeakForm, weighted


@dataclass
class Compiled:
    """Symbols, function space and compiled forms of a process on a domain.

    ``potential`` is U and ``offset`` its minimum in the weighted scheme; otherwise None and 0.  ``degrees`` holds
    generators of other degrees, compiled once for all the generators that ``replace`` makes of these forms.
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
    degrees: dict[int, Any] = field(default_factory=dict)


def compile_forms(space: Space, coefficients: Coefficients, weak: WeakForm, potential: Any) -> Compiled:
    """Compile M and G, and choose the function space of the scheme (collective)."""
    offset = space.constant(0.0)
    if potential is not None:
        # below e^-600 of its maximum the density no longer matters to any answer that fits into a float
        weight = ufl.exp(ufl.max_value(offset - potential, -600.0))
        weak = replace(weak, coefficients=weighted(coefficients, weight), weight=weight)
    family = "DG" if weak.scheme == "dg" else "Lagrange"
    V = fem.functionspace(weak.mesh, (family, weak.degree))
    return Compiled(space, coefficients, weak, V, *basic_forms(weak, V), potential, offset)


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
    return nodal
