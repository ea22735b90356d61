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
    p, v = ufl.TrialFunction(V), ufl.TestFunction(V)
    mass, forward = fem.form(weak.mass(p, v)), fem.form(weak.forward(p, v))
    integral = fem.form(weak.weight * v * weak.dx)
    return Compiled(space, coefficients, weak, V, mass, forward, integral, potential, offset)


def assemble_matrix(form: fem.Form) -> PETSc.Mat:
    """A new matrix (collective)."""
    matrix = fem_petsc.create_matrix(form)
    fem_petsc.assemble_matrix(matrix, form, [], 0.0)
    matrix.assemble()
    return matrix


def union_tags(domain: Domain, names: Sequence[str]) -> dmesh.MeshTags:
    """The facets of all these parts, with value 1."""
    parts = [domain.facets(name) for name in names]
    facets = np.unique(np.concatenate([np.zeros(0, np.int32), *parts])).astype(np.int32)
    return dmesh.meshtags(domain.mesh, domain.dim - 1, facets, np.ones_like(facets))
