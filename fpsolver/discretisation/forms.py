"""Compiled forms, which generators with different numbers share, and what binds them to one generator's constants."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import ufl
from dolfinx import fem
from dolfinx.fem.forms import CompiledForm

from .. import _compat
from .._sample import smallest
from ..domains.domain import Domain
from .assembly import nodal_values
from .schemes import check_not_nan
from .territory import Territory
from .weak import WeakForm


@dataclass(frozen=True, eq=False)
class Forms:
    """What is compiled for a process on a territory; its symbols have no values of their own."""

    territory: Territory
    weak: WeakForm
    V: fem.FunctionSpace
    mass: CompiledForm  #: M
    forward: CompiledForm  #: G
    integral: CompiledForm  #: of a function over the territory
    other_degrees: dict[int, "Forms"] = field(default_factory=dict)  #: as far as somebody has asked for them

    @classmethod
    def of(cls, territory: Territory, weak: WeakForm, V: fem.FunctionSpace | None = None) -> "Forms":
        """Compile a weak form, on a new space of the scheme unless one is given (collective)."""
        V = V or fem.functionspace(weak.mesh, (weak.scheme.family, weak.degree))
        p, v = ufl.TrialFunction(V), ufl.TestFunction(V)
        forms = (weak.mass(p, v), weak.forward(p, v), weak.weight * v * weak.dx)
        return cls(territory, weak, V, *(fem.compile_form(weak.mesh.comm, form) for form in forms))

    @cached_property
    def added(self) -> tuple[fem.Function, CompiledForm]:
        """The symbol of the diffusion tensor at walls, and what that adds to −G, compiled if needed (collective)."""
        mesh, d = self.weak.mesh, self.weak.mesh.geometry.dim
        wall = fem.Function(fem.functionspace(mesh, ("DG", 0, (d, d))))
        form = self.weak.added(wall, ufl.TestFunction(self.V), ufl.TrialFunction(self.V))
        return wall, fem.compile_form(mesh.comm, form)

    def bind(self, form: CompiledForm, weak: WeakForm, own: Mapping[Any, Any]) -> fem.Form:
        """A compiled form with a generator's own constants, functions and cells."""
        domains = {"cell": weak.cells, "exterior_facet": weak.absorbing, "interior_facet": weak.interior}
        return _compat.create_form(form, self.V, domains, own)


def settle_weight(domain: Domain, V: fem.FunctionSpace, weak: WeakForm) -> None:
    """Give the weight e^{U_min − U} its range: the smallest potential, and the lowest exponent in each local cell.

    Below e^-600 the density no longer matters to any answer that fits into a float.  In a cell where the weight
    varies by more than e^15 nothing is resolved, and polynomials would grow from its heavy to its light side by half
    that factor, cell after cell, to values like 1e26 τ.  Where it is also below rounding (e^-36 of the largest), it is
    kept within e^-2 of its largest value in the cell: constants then stay constants.
    """
    potential = nodal_values(V, weak.potential, weak.space).x.array
    check_not_nan(domain, potential)
    weak.offset.value = smallest(domain.comm, potential)
    nodal = float(weak.offset.value) - potential[V.dofmap.list]
    top, bottom = nodal.max(axis=1, initial=-np.inf), nodal.min(axis=1, initial=np.inf)
    unresolved = (top - bottom > 15.0) & (top < -36.0)
    weak.floor.x.array[:] = np.maximum(np.where(unresolved, top - 2.0, -600.0), -600.0)
