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

import numpy as np
from dolfinx import fem

from .. import _petsc
from .._log import logger
from ..domains.domain import Domain, part_names
from ..models.fields import Space
from ..models.process import SDE, Coefficients, Process
from ._choice import (
    check_jumps,
    check_not_nan,
    check_walls,
    choose_degree,
    choose_scheme,
    gibbs_potential,
    warn_of_barrier,
)
from ._walls import lacking_diffusion, warn_of_added
from .assembly import make_matrix, make_vector, nodal_values
from .boundary import Boundary, FicheraClasses, Survey, check_potential, survey_cells
from .forms import Forms, lowest_exponents, weak_form
from .jumps import Rough, around, complete, midpoints, rough_cells
from .schemes import named
from .schemes.weak import WeakForm
from .territory import Territory

P = ParamSpec("P")
T = TypeVar("T")


class Generator:
    """A process on a domain, discretised and assembled exactly once: a value, which nothing changes (collective).

    Args:
        process: :class:`~fpsolver.SDE`, :class:`~fpsolver.SGD`, ...
        domain: where it lives.
        absorbing: names of the boundary parts at which it is killed; the rest of the boundary reflects.
        degree: polynomial degree, at least 1; by default 4 in one and two dimensions, 3 in three.
        scheme: ``"galerkin"``, ``"dg"``, ``"weighted"`` (for a known Gibbs density and high barriers) or ``"auto"``:
            weighted where a Gibbs density is known and the barrier before the absorbing parts exceeds 15 temperatures;
            dg where D degenerates or the cell Péclet number exceeds one; galerkin elsewhere.
        quadrature: degree of the quadrature of every integral; by default chosen from the data.
        options: PETSc options for all solves with this generator, without prefix.

    Attributes:
        process, domain, absorbing, degree, options: as given, or the defaults.
        scheme: name of the scheme.
        V: dolfinx function space.
        M, G: ``PETSc.Mat``, mass and forward operator.
        survey: extremes of the coefficients.
        boundary: the boundary's Fichera classes.
        at_walls: the part of −G that diffusion added at reflecting walls makes, or None.
        territory: in which cells the process lives, and at which facets it is killed.
        weak: the weak form as UFL, with this generator's own constants.
        rough: where D or β jumps inside the mesh.

    Matrices and factors free themselves with the generator, or earlier with :meth:`close`.

    Raises:
        ValueError: unknown part, coefficients that are not finite, indefinite D, an absorbing part that cannot be
            reached, ``galerkin`` where the boundary is degenerate.
    """

    process: Process
    options: dict[str, Any]
    survey: Survey
    boundary: Boundary
    weak: WeakForm
    rough: Rough

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
        territory = Territory(copy(domain), part_names(absorbing))  # marks may give a domain another mesh
        self._compile(process, territory, choose_degree(degree, domain.dim), scheme, quadrature, dict(options or {}))

    def _compile(
        self, process: Process, territory: Territory, degree: int, scheme: str, quadrature: int | None,
        options: dict[str, Any], model: Space | None = None,
    ) -> Self:  # fmt: skip
        """Choose the scheme and compile its forms, on this generator's constants."""
        domain, absorbing = territory.domain, territory.declared
        if scheme != "auto":
            named(scheme)
        space = process.space(domain.mesh, degree)
        if model is not None:
            space.inherit(model)
        coefficients = complete(process, space)
        survey, boundary = _inspect(domain, coefficients, degree)
        if scheme == "auto":
            scheme, why = choose_scheme(process, domain, absorbing, space, survey, boundary)
            logger.info("scheme %s, degree %d: %s", scheme, degree, why)
        elif not named(scheme).by_capacities:
            warn_of_barrier(process, domain, absorbing, space, scheme)
        check_walls(named(scheme), boundary, domain, absorbing)
        check_jumps(named(scheme), process, coefficients)
        potential = gibbs_potential(process, space) if named(scheme).needs_potential else None
        weak = weak_form(territory, space, coefficients, named(scheme), quadrature, potential)
        weak = replace(weak, middle=midpoints(weak.mesh, coefficients))
        rough = rough_cells(weak.mesh, coefficients, weak.scheme.differentiates_diffusion)
        if domain.comm.allreduce(bool(rough.cells.any()), op=MPI.LOR):
            weak = replace(weak, rough=fem.Function(fem.functionspace(weak.mesh, ("DG", 0))))
            weak = around(weak, territory, rough.cells)
        self.rough = rough
        self._quadrature, self._forms = quadrature, Forms.of(territory, weak)
        return self._assemble(process, weak, {}, survey, boundary, options)

    def _rebind(self, process: Process, forms: Forms, model: "Generator", same_matrices: bool) -> Self:
        """Take forms that another generator has compiled, with constants of one's own; check what numbers decide."""
        weak, own = forms.weak.bound(process.numbers())
        domain, absorbing = forms.territory.domain, forms.territory.declared
        self.rough = rough_cells(weak.mesh, weak.process, weak.scheme.differentiates_diffusion)
        if weak.rough is not None:
            weak = around(weak, forms.territory, self.rough.cells)
        elif domain.comm.allreduce(bool(self.rough.cells.any()), op=MPI.LOR):
            quadrature, known = model._quadrature_of(weak.degree), forms.weak.space
            return self._compile(
                process, forms.territory, weak.degree, weak.scheme.name, quadrature, model.options, known
            )
        survey, boundary = _inspect(domain, weak.process, weak.degree)
        check_walls(weak.scheme, boundary, domain, absorbing)
        self._quadrature, self._forms = model._quadrature_of(weak.degree), forms
        return self._assemble(process, weak, own, survey, boundary, model.options, model if same_matrices else None)

    def _assemble(
        self, process: Process, weak: WeakForm, own: dict[Any, Any], survey: Survey, boundary: Boundary,
        options: dict[str, Any], model: "Generator | None" = None,
    ) -> Self:  # fmt: skip
        """Make G; ``model`` is a generator of the same forms, whose matrix' structure is reused."""
        self.process, self.weak, self._own, self.options = process, weak, own, options
        self.survey, self.boundary = survey, boundary
        self._closed, self._mass, self._derived = False, None, dict[Hashable, Any]()
        if weak.potential is not None and isinstance(process, SDE):  # given, not derived
            check_potential(self.domain.mesh, weak.process, weak.potential, self.degree)
        self._settle()
        if self.domain.comm.size > 1:  # what was left behind: ranks may let go of it in different order
            PETSc.garbage_cleanup(self.domain.comm)
        with PETSc.Log.Stage("fpsolver assemble"):
            pattern = model.G if model and not model._closed else None  # it is a third of the time
            form = self._forms.bind(self._forms.forward, weak, own)
            self._forward = make_matrix(form, pattern, self.territory.idle(self.V))
            self._add_at_walls()
        return self

    def _add_at_walls(self) -> None:
        """Add the diffusion that reflecting walls lack, whose matrix is kept: error bars measure what it changes."""
        self._at_walls: PETSc.Mat | None = None
        if not self.weak.scheme.upwind:
            return
        tensors = lacking_diffusion(self.boundary, self.weak.process, self.territory.stops, self.degree)
        if warn_of_added(self.domain.comm, tensors) > 0:
            wall = fem.Function(self._forms.wall.function_space)
            wall.x.array[:] = tensors.ravel()
            added = self._forms.bind(self._forms.added, self.weak, {**self._own, self._forms.wall: wall})
            self._at_walls = make_matrix(added, self._forward)
            self._forward.axpy(-1.0, self._at_walls, PETSc.Mat.Structure.SAME_NONZERO_PATTERN)

    @property
    def at_walls(self) -> PETSc.Mat | None:
        """What diffusion added at reflecting walls has taken from G; None where nothing was added."""
        self._check_open()
        return self._at_walls

    def _settle(self) -> None:
        """Give the weak form what it takes from the mesh and the numbers: the weight's range."""
        weak = self.weak
        if weak.potential is not None:
            potential = nodal_values(self.V, weak.potential, weak.space).x.array
            check_not_nan(self.domain, potential)
            lowest = float(np.min(potential, initial=np.inf))
            weak.offset.value = float(self.domain.comm.allreduce(lowest, op=MPI.MIN))
            weak.floor.x.array[:] = lowest_exponents(self.V, float(weak.offset.value) - potential)

    def replace(self, **numbers: float) -> "Generator":
        """The generator of the same process with other numbers (``learning_rate=0.2``): nothing is recompiled.

        Collective.  Which numbers a process has, ``process.numbers()`` tells.
        """
        return _new()._rebind(self.process.with_parameters(**numbers), self._forms, self, same_matrices=True)

    def with_degree(self, degree: int) -> "Generator":
        """The same process and scheme with another degree (collective).

        Tabulated samples are those of this generator: answers of several degrees are about one problem.
        """
        degree = choose_degree(degree, self.domain.dim)
        known = self._forms.other_degrees
        if degree in known:
            return _new()._rebind(self.process, known[degree], self, same_matrices=False)
        quadrature, model = self._quadrature_of(degree), self.weak.space
        other = _new()._compile(self.process, self.territory, degree, self.scheme, quadrature, self.options, model)
        known[degree] = other._forms
        return other

    def with_domain(self, domain: Domain) -> "Generator":
        """The same process, degree and scheme on another domain with parts of the same names (collective)."""
        territory = self.territory.on(domain)
        quadrature, model = self._quadrature, self.weak.space
        return _new()._compile(self.process, territory, self.degree, self.scheme, quadrature, self.options, model)

    def with_territory(self, territory: Territory) -> "Generator":
        """The same process on part of the domain: nothing but the two forms is compiled (collective)."""
        forms, other = self._forms, _new()
        weak = forms.weak.restricted(territory.exits, territory.cells, territory.interior)
        if self.weak.rough is not None:
            weak = around(
                replace(weak, rough=fem.Function(self.weak.rough.function_space)), territory, self.rough.cells
            )
        other.rough = self.rough
        other._quadrature, other._forms = self._quadrature, Forms.of(territory, weak, self.V)
        weak, own = weak.bound(self.process.numbers())
        if weak.rough is not None:
            weak = around(weak, territory, self.rough.cells)
        model = None if self._closed else self
        return other._assemble(self.process, weak, own, self.survey, self.boundary, self.options, model)

    def _quadrature_of(self, degree: int) -> int | None:
        return self._quadrature and self._quadrature + 2 * (degree - self.degree)

    @property
    def territory(self) -> Territory:
        """Where the process lives."""
        return self._forms.territory

    @property
    def domain(self) -> Domain:
        """The domain."""
        return self.territory.domain

    @property
    def absorbing(self) -> tuple[str, ...]:
        """Names of the parts at which the process is killed."""
        return self.territory.absorbing

    @property
    def scheme(self) -> str:
        """Name of the scheme."""
        return self.weak.scheme.name

    @property
    def degree(self) -> int:
        """Polynomial degree."""
        return self.weak.degree

    @property
    def V(self) -> Any:
        """Function space of the answers."""
        return self._forms.V

    @property
    def coefficients(self) -> Coefficients:
        """D and β, in every scheme."""
        return self.weak.process

    @property
    def G(self) -> PETSc.Mat:
        """Forward operator."""
        self._check_open()
        return self._forward

    @property
    def M(self) -> PETSc.Mat:
        """Mass matrix, assembled when it is first needed: exit times do without (collective)."""
        self._check_open()
        if self._mass is None:
            with PETSc.Log.Stage("fpsolver assemble"):  # discontinuous, it is block diagonal, unlike G
                pattern = None if self.weak.scheme.family == "DG" else self.G
                self._mass = make_matrix(self._forms.bind(self._forms.mass, self.weak, self._own), pattern)
        return self._mass

    def integrate_basis(self) -> PETSc.Vec:
        """∫ w φ_i as a new vector (collective)."""
        return make_vector(self.V, self._forms.bind(self._forms.integral, self.weak, self._own))

    def boundary_report(self) -> dict[str, FicheraClasses]:
        """Measure of each Fichera class on every named part (collective)."""
        return {name: self.boundary.classify(self.domain.facets(name)) for name in self.domain.parts}

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(
                "this generator is closed: close() or the end of its with block has freed its matrices. Ask before, or "
                "ask a new one, gen.replace()."
            )

    def opened(self) -> "Generator":
        """This generator, or one like it if it is closed (collective)."""
        return self.replace() if self._closed else self

    def close(self) -> None:
        """Free matrices and factors now (collective).  Whatever needs them afterwards says so."""
        kept = [self._forward, self._mass, self._at_walls, *self._derived.values()]
        self._closed, self._derived = True, {}
        for item in kept:
            free = getattr(item, "close", None) or getattr(item, "destroy", None)
            if free is not None:
                free()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def derived(make: Callable[Concatenate[Generator, P], T]) -> Callable[Concatenate[Generator, P], T]:
    """Make ``make(gen, ...)`` once for each generator and arguments, which must be hashable, and keep it with it.

    What has a ``close`` or ``destroy`` is freed when the generator is closed.
    """

    @wraps(make)
    def kept(gen: Generator, *args: P.args, **kwargs: P.kwargs) -> T:
        key = (make, args, tuple(sorted(kwargs.items())))
        if key not in gen._derived:
            gen._derived[key] = make(gen, *args, **kwargs)
        return gen._derived[key]  # type: ignore[no-any-return]

    return kept


def _new() -> Generator:
    return object.__new__(Generator)


def _inspect(domain: Domain, coefficients: Coefficients, degree: int) -> tuple[Survey, Boundary]:
    survey = survey_cells(domain.mesh, coefficients, degree)
    return survey, Boundary(domain.mesh, coefficients, survey, 2 * degree)
