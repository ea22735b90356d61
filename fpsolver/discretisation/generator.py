"""The generator: a process on a domain with absorbing parts, assembled once into the matrices M and G.

``M ṗ = G p`` is the Fokker–Planck equation, ``M u̇ = Gᵀ u`` its dual; every verb uses these two.
"""

from collections.abc import Callable, Hashable, Sequence
from copy import copy
from dataclasses import replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from mpi4py import MPI
from petsc4py import PETSc

from dolfinx import fem

from .. import _petsc
from .._arguments import part_names
from .._log import once
from ..domains.domain import Domain
from ..models.fields import Space
from ..models.process import SDE, Process
from .assembly import make_matrix
from .boundary import (
    Boundary,
    FicheraClasses,
    check_periodic,
    check_potential,
    lacking_diffusion,
    survey_cells,
    warn_of_added,
)
from .forms import Forms, settle_weight
from .jumps import around, complete, midpoints, rebuilt, rough_cells
from .schemes import HIGH_BARRIER, barrier, check_jumps, check_walls, choose_degree, choose_scheme, gibbs_potential
from .territory import Territory
from .weak import WeakForm, quadrature_degree

P = ParamSpec("P")
T = TypeVar("T")


class Generator:
    """A process on a domain, discretised and assembled exactly once: a value, which nothing changes (collective).

    Args:
        process: :class:`~fpsolver.SDE`, :class:`~fpsolver.SGD`, ...
        domain: where it lives.
        absorbing: names of the boundary parts at which it is killed; the rest of the boundary reflects.
        degree: polynomial degree, at least 1; by default 4 in one and two dimensions, 3 in three.
        scheme: ``"galerkin"``, ``"dg"``, ``"weighted"`` or ``"auto"``: weighted where a Gibbs density is known and the
            barrier before the absorbing parts, or that between wells for questions about regions, exceeds 15
            temperatures; dg where D degenerates or the cell Péclet number over the degree exceeds 5; else galerkin.
        quadrature: degree of the quadrature of every integral; by default chosen from the data.
        options: PETSc options for all solves with this generator, without prefix.

    Attributes:
        process, domain, absorbing, degree, scheme, options: as given, or what was chosen.
        V: dolfinx function space.
        M, G: ``PETSc.Mat``, mass and forward operator.
        coefficients: D and β.
        survey: extremes of the coefficients.

    Matrices and factors free themselves with the generator, or earlier with :meth:`close`.

    Raises:
        ValueError: unknown part, coefficients that are not finite, indefinite D, an absorbing part that cannot be
            reached, ``galerkin`` where the boundary is degenerate.
    """

    # what verbs also use: ``territory``, in which cells the process lives and at which facets it is killed; ``weak``,
    # the weak form with this generator's own constants; ``boundary``, Fichera's classes; ``rough``, where D or β jumps;
    # ``at_walls``, the part of −G that diffusion added at reflecting walls makes, or None

    def __init__(
        self,
        process: Process,
        domain: Domain,
        absorbing: Sequence[str] = (),
        degree: int | None = None,
        scheme: str = "auto",
        quadrature: int | None = None,
        options: _petsc.Options | None = None,
    ):
        self._auto, self._told = scheme == "auto", set[str]()  # what this and its likes have warned about
        territory = Territory(copy(domain), part_names(absorbing))  # marks may give a domain another mesh
        k = choose_degree(degree, domain.dim)
        with once(self._told):
            self._compile(process, territory, k, scheme, quadrature, dict(options or {}))

    def _like(self, build: "Callable[[Generator], Generator]") -> "Generator":
        """A generator that differs in numbers, degree or territory, and warns of nothing that this one has told."""
        gen = object.__new__(Generator)
        gen._auto, gen._told = self._auto, self._told
        with once(self._told):
            return build(gen)

    def _compile(
        self, process: Process, territory: Territory, degree: int, scheme: str, quadrature: int | None,
        options: dict[str, Any], model: Space | None = None,
    ) -> Self:  # fmt: skip
        """Choose the scheme and compile its forms, on this generator's constants."""
        space = process.space(territory.domain.mesh, degree)
        if model is not None:
            space.inherit(model)
        coefficients = complete(process, space)
        check_periodic(territory.domain, coefficients)
        self.survey = survey_cells(space.mesh, coefficients, degree)
        self.boundary = Boundary(space.mesh, coefficients, self.survey, 2 * degree)
        chosen = choose_scheme(scheme, process, territory, space, self.survey, self.boundary)
        check_walls(chosen, self.boundary, territory)
        check_jumps(chosen, process, coefficients)
        potential = rebuilt(gibbs_potential(process, space)) if chosen.by_capacities else None
        q = quadrature or quadrature_degree(coefficients, degree)
        weak = WeakForm(space, coefficients, coefficients, degree, chosen, territory.exits, q, potential=potential)
        weak = replace(weak, cells=territory.cells, interior=territory.interior)
        weak = chosen.adapted(replace(weak, middle=midpoints(space.mesh, coefficients)))
        self.rough = rough_cells(weak.mesh, coefficients, chosen.differentiates_diffusion)
        if territory.domain.comm.allreduce(bool(self.rough.cells.any()), op=MPI.LOR):
            weak = replace(weak, rough=fem.Function(fem.functionspace(weak.mesh, ("DG", 0))))
            weak = around(weak, territory, self.rough.cells)
        return self._assemble(process, Forms.of(territory, weak), weak, {}, quadrature, options)

    def _rebind(self, process: Process, forms: Forms, model: "Generator", same_matrices: bool) -> Self:
        """Take forms that another generator has compiled, with constants of one's own; check what numbers decide."""
        weak, own = forms.weak.bound(process.numbers())
        quadrature = model._quadrature_of(weak.degree)
        self.rough = rough_cells(weak.mesh, weak.process, weak.scheme.differentiates_diffusion)
        weak = around(weak, forms.territory, self.rough.cells)
        if weak.rough is None and weak.mesh.comm.allreduce(bool(self.rough.cells.any()), op=MPI.LOR):
            given = (forms.territory, weak.degree, weak.scheme.name, quadrature, model.options, forms.weak.space)
            return self._compile(process, *given)
        self.survey = survey_cells(weak.mesh, weak.process, weak.degree)
        self.boundary = Boundary(weak.mesh, weak.process, self.survey, 2 * weak.degree)
        check_walls(weak.scheme, self.boundary, forms.territory)
        return self._assemble(process, forms, weak, own, quadrature, model.options, model if same_matrices else None)

    def _assemble(
        self, process: Process, forms: Forms, weak: WeakForm, own: dict[Any, Any], quadrature: int | None,
        options: dict[str, Any], model: "Generator | None" = None,
    ) -> Self:  # fmt: skip
        """Make G; ``model`` is a generator of the same forms, whose matrix' structure is reused."""
        self.process, self.options, self.territory, self.weak, self.V = process, options, forms.territory, weak, forms.V
        self.domain, self.absorbing = self.territory.domain, self.territory.absorbing
        self.scheme, self.degree, self.coefficients = weak.scheme.name, weak.degree, weak.process
        self._forms, self._own, self._quadrature = forms, own, quadrature
        self._closed, self._mass, self._derived = False, None, dict[Hashable, Any]()
        if weak.potential is not None:
            if isinstance(process, SDE):  # given, not derived
                check_potential(weak.mesh, weak.process, weak.potential, weak.degree)
            settle_weight(self.domain, self.V, weak)
        if self.domain.comm.size > 1:  # what was left behind: ranks may let go of it in different order
            PETSc.garbage_cleanup(self.domain.comm)
        with PETSc.Log.Stage("fpsolver assemble"):
            pattern = model.G if model and not model._closed else None  # it is a third of the time
            form = forms.bind(forms.forward, weak, own)
            self._forward = make_matrix(form, pattern, self.territory.idle(self.V))
            self.at_walls = self._add_at_walls()
        return self

    def _add_at_walls(self) -> PETSc.Mat | None:
        """Add the diffusion that reflecting walls lack, whose matrix is kept: error bars measure what it changes."""
        if not self.weak.scheme.upwind:
            return None
        tensors = lacking_diffusion(self.boundary, self.coefficients, self.territory.stops, self.degree)
        if not warn_of_added(self.boundary, tensors):
            return None
        symbol, form = self._forms.added
        wall = fem.Function(symbol.function_space)
        wall.x.array[:] = tensors.ravel()
        added = make_matrix(self._forms.bind(form, self.weak, {**self._own, symbol: wall}), self._forward)
        self._forward.axpy(-1.0, added, PETSc.Mat.Structure.SAME_NONZERO_PATTERN)
        return added

    def with_half_walls(self) -> "Generator":
        """This generator with half of what was added at walls: twice the change of an answer is its effect."""
        assert self.at_walls is not None
        other = copy(self)
        other._forward, other._mass, other._derived, other.at_walls = self.G.copy(), None, {}, None
        other._forward.axpy(0.5, self.at_walls, PETSc.Mat.Structure.SUBSET_NONZERO_PATTERN)
        return other

    def replace(self, **numbers: float) -> "Generator":
        """The same with other ``process.numbers()`` (``learning_rate=0.2``); nothing is recompiled (collective)."""
        process = self.process.with_parameters(**numbers)
        return self._like(lambda other: other._rebind(process, self._forms, self, same_matrices=True))

    def with_degree(self, degree: int) -> "Generator":
        """The same process and scheme with another degree, and the same tables of samples (collective)."""
        degree = choose_degree(degree, self.domain.dim)
        known = self._forms.other_degrees
        if degree in known:
            return self._like(lambda other: other._rebind(self.process, known[degree], self, same_matrices=False))
        other = self._again(self.territory, degree)
        known[degree] = other._forms
        return other

    def with_domain(self, domain: Domain) -> "Generator":
        """The same process, degree and scheme on another domain with parts of the same names (collective)."""
        return self._again(self.territory.on(domain), self.degree)

    def for_regions(self) -> "Generator":
        """This generator, or if it was to choose, one whose scheme bears the barriers between wells (collective)."""
        weighted = self.weak.scheme.by_capacities
        if weighted or not self._auto or barrier(self.process, self.territory, self.weak.space) <= HIGH_BARRIER:
            return self
        return self._again(self.territory, self.degree, "weighted")

    def _again(self, territory: Territory, degree: int, scheme: str | None = None) -> "Generator":
        given = (scheme or self.scheme, self._quadrature_of(degree), self.options, self.weak.space)
        return self._like(lambda other: other._compile(self.process, territory, degree, *given))

    def with_territory(self, territory: Territory) -> "Generator":
        """The same process on part of the domain: nothing but the two forms is compiled (collective)."""
        where = {"absorbing": territory.exits, "cells": territory.cells, "interior": territory.interior}
        weak, rough = self._forms.weak, self._forms.weak.rough
        weak = replace(weak, rough=None if rough is None else fem.Function(rough.function_space), **where)
        forms = Forms.of(territory, around(weak, territory, self.rough.cells), self.V)
        weak, own = forms.weak.bound(self.process.numbers())
        weak = around(weak, territory, self.rough.cells)
        given = (self.process, forms, weak, own, self._quadrature, self.options, self)

        def build(other: Generator) -> Generator:
            other.survey, other.boundary, other.rough = self.survey, self.boundary, self.rough
            return other._assemble(*given)

        return self._like(build)

    def _quadrature_of(self, degree: int) -> int | None:
        return self._quadrature and self._quadrature + 2 * (degree - self.degree)

    @property
    def G(self) -> PETSc.Mat:
        """Forward operator."""
        if self._closed:
            raise ValueError("this generator is closed, and its matrices are freed. Ask a new one: gen.replace().")
        return self._forward

    @property
    def M(self) -> PETSc.Mat:
        """Mass matrix, assembled when it is first needed: exit times do without (collective)."""
        G = self.G  # not if it is closed
        if self._mass is None:
            with PETSc.Log.Stage("fpsolver assemble"):
                pattern = None if self.weak.scheme.family == "DG" else G  # discontinuous, it is block diagonal
                self._mass = make_matrix(self._forms.bind(self._forms.mass, self.weak, self._own), pattern)
        return self._mass

    def boundary_report(self) -> dict[str, FicheraClasses]:
        """Measure of each Fichera class on every named part (collective)."""
        return {name: self.boundary.classify(self.domain.facets(name)) for name in self.domain.parts}

    def opened(self) -> "Generator":
        """This generator, or one like it if it is closed (collective)."""
        return self.replace() if self._closed else self

    def close(self) -> None:
        """Free matrices and factors now (collective).  Whatever needs them afterwards says so."""
        for item in (self._forward, self._mass, self.at_walls, *self._derived.values()):
            getattr(item, "close", getattr(item, "destroy", lambda: None))()
        self._closed, self._derived = True, {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def derived(make: Callable[Concatenate[Generator, P], T]) -> Callable[Concatenate[Generator, P], T]:
    """Make ``make(gen, ...)`` once for each generator and hashable arguments; with it it is closed or destroyed."""

    @wraps(make)
    def kept(gen: Generator, *args: P.args, **kwargs: P.kwargs) -> T:
        key = (make, args, tuple(sorted(kwargs.items())))
        if key not in gen._derived:
            gen._derived[key] = make(gen, *args, **kwargs)
        return gen._derived[key]  # type: ignore[no-any-return]

    return kept
