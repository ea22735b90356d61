"""The generator: a process on a domain with absorbing parts, assembled once into the matrices M and G.

``M ṗ = G p`` is the Fokker–Planck equation, ``M u̇ = Gᵀ u`` its dual; every verb uses these two.
"""

from collections.abc import Sequence
from typing import Any, Self

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import ufl
from dolfinx import fem, la

from .. import _compat, _petsc
from .._log import logger
from ..domains.domain import Domain, part_names
from ..models.fields import Space
from ..models.process import SDE, Coefficients, Process
from ._choice import (
    check_jumps,
    check_not_nan,
    check_scheme,
    check_walls,
    choose_degree,
    choose_scheme,
    gibbs_potential,
    warn_of_barrier,
)
from ._walls import lacking_diffusion, largest
from .assembly import assemble_like, assemble_matrix, compile_forms, lowest_exponents, nodal_values, union_tags
from .boundary import Boundary, FicheraClasses, check_potential, survey_cells
from .schemes import WeakForm, quadrature_degree


class Generator:
    """A process on a domain, discretised and assembled exactly once (collective).

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
        tables: tabulated samples to use as they are, those of another generator on this mesh (``gen.space.tables``).

    Attributes:
        M, G: ``PETSc.Mat``, mass and forward operator.
        V: dolfinx function space.
        survey: extremes of the coefficients.
        compiled: forms, shared with what :meth:`replace` makes.
        wall_diffusion: with ``dg``, the largest diffusion added inside cells at reflecting walls on which the drift
            presses with less diffusion than resolves the layer there; zero where no wall is like that.
        space, weak, boundary: sources as UFL, the weak forms, and the boundary's Fichera classes.
        scheme, degree, absorbing, process, domain: as used.

    Raises:
        ValueError: unknown part, coefficients that are not finite, indefinite D, an absorbing part that cannot be
            reached, ``galerkin`` where the boundary is degenerate.
    """

    G: PETSc.Mat
    space: Space

    def __init__(
        self,
        process: Process,
        domain: Domain,
        absorbing: Sequence[str] = (),
        degree: int | None = None,
        scheme: str = "auto",
        quadrature: int | None = None,
        options: _petsc.Options | None = None,
        tables: dict[Any, Any] | None = None,
    ):
        self.process, self.domain = process, domain
        self.absorbing = part_names(absorbing)
        self.degree = choose_degree(degree, domain.dim)
        self.options, self.quadrature = dict(options or {}), quadrature
        check_scheme(scheme)
        tags = union_tags(domain, self.absorbing)
        space = process.space(domain.mesh, self.degree)
        space.tables.update(tables or {})
        coefficients = process.coefficients(space)
        self._inspect(coefficients)
        if scheme == "auto":
            scheme, why = choose_scheme(process, domain, self.absorbing, space, self.survey, self.boundary)
            logger.info("scheme %s, degree %d: %s", scheme, self.degree, why)
        elif scheme != "weighted":
            warn_of_barrier(process, domain, self.absorbing, space, scheme)
        self.scheme = scheme
        check_walls(scheme, self.boundary, domain, self.absorbing)
        check_jumps(scheme, process, coefficients)
        q = quadrature or quadrature_degree(coefficients, self.degree)
        weak = WeakForm(domain.mesh, coefficients, self.degree, scheme, tags, q)
        potential = gibbs_potential(process, space) if scheme == "weighted" else None
        self.compiled = compile_forms(space, coefficients, weak, potential)
        self._check_potential()
        self._assemble()

    def _check_potential(self) -> None:
        if self.compiled.potential is not None and isinstance(self.process, SDE):  # given, not derived
            check_potential(self.domain.mesh, self.compiled.coefficients, self.compiled.potential, self.degree)

    def replace(self, **parameters: float) -> "Generator":
        """The generator of the same process with other numbers (``learning_rate=0.2``): nothing is recompiled.

        Collective.  Which numbers a process has, ``process.parameters()`` tells.
        """
        other = object.__new__(Generator)
        other.__dict__.update({k: v for k, v in self.__dict__.items() if k not in ("cache", "_M", "G", "integrals")})
        other.process = self.process.with_parameters(**parameters)
        other.activate()
        other._inspect(self.compiled.coefficients)
        check_walls(other.scheme, other.boundary, other.domain, other.absorbing)
        other._check_potential()
        other._assemble(self)
        return other

    def rebuilt(self, degree: int | None = None, domain: Domain | None = None) -> "Generator":
        """The same process and scheme with another degree or on another domain (collective).

        On the same domain tabulated samples are those of this one: answers of several degrees are about one problem.
        """
        new = self.degree if degree is None else degree
        quadrature = self.quadrature and self.quadrature + 2 * (new - self.degree)
        tables, domain = (self.space.tables, self.domain) if domain is None else (None, domain)
        return Generator(self.process, domain, self.absorbing, new, self.scheme, quadrature, self.options, tables)

    def _inspect(self, coefficients: Coefficients) -> None:
        self.survey = survey_cells(self.domain.mesh, coefficients, self.degree)
        self.boundary = Boundary(self.domain.mesh, coefficients, self.survey, 2 * self.degree)

    def _assemble(self, model: "Generator | None" = None) -> None:
        """Make M and G; ``model`` is a generator of the same forms, whose matrices' structure is reused."""
        self.cache: dict[str, Any] = {}
        self.offset, self._floor = 0.0, np.zeros(len(self.compiled.floor.x.array))
        self.V, self.space, self.weak = self.compiled.V, self.compiled.space, self.compiled.weak
        self._wall = np.zeros(len(self.compiled.wall.x.array))
        self.activate()
        if self.scheme == "dg":
            self._wall = lacking_diffusion(self.boundary, self.coefficients, self.absorbing_facets(), self.degree)
            self.activate()
        self.wall_diffusion = largest(self.domain.comm, self._wall)
        if self.compiled.potential is not None:
            potential = self.nodal_potential()
            check_not_nan(self.domain, potential)
            lowest = float(np.min(potential, initial=np.inf))
            self.offset = float(self.domain.comm.allreduce(lowest, op=MPI.MIN))
            self._floor = lowest_exponents(self.V, self.offset - potential)
            self.activate()
        with PETSc.Log.Stage("fpsolver assemble"):
            forward = self.compiled.forward
            known = model is not None and model.G.handle  # sparsity patterns are a third of the time
            self.G = assemble_like(forward, model.G) if model and known else assemble_matrix(forward)
            self.integrals = self._assemble_vector(self.compiled.integral)
        self._M: PETSc.Mat | None = None

    @property
    def M(self) -> PETSc.Mat:
        """Mass matrix, assembled when it is first needed: exit times do without (collective)."""
        if self._M is None:
            self.activate()
            with PETSc.Log.Stage("fpsolver assemble"):
                # with dg it is block diagonal, unlike G
                mass = self.compiled.mass
                self._M = assemble_matrix(mass) if self.scheme == "dg" else assemble_like(mass, self.G)
        return self._M

    def nodal_potential(self) -> np.ndarray:
        """U at this rank's nodes, in the weighted scheme."""
        self.activate()
        return nodal_values(self.V, self.compiled.potential, self.space).x.array

    def nodal_weight(self) -> np.ndarray:
        """The scheme's weight e^{U_min − U} at this rank's nodes, as in :meth:`density`; one at the deepest minimum."""
        self.activate()
        return nodal_values(self.V, self.weak.weight, self.space).x.array

    def absorbing_facets(self) -> np.ndarray:
        """Local indices of the facets at which the process is killed."""
        return union_tags(self.domain, self.absorbing).indices

    def facets(self, parts: Sequence[str]) -> Any:
        """The facets of some absorbing parts, in the form that a measure takes (see ``WeakForm.ds``)."""
        return union_tags(self.domain, parts)

    def activate(self) -> None:
        """Give the shared constants this generator's values; needed before anything is assembled or evaluated."""
        self.compiled.offset.value = self.offset
        self.compiled.floor.x.array[:] = self._floor
        self.compiled.wall.x.array[:] = self._wall
        for name, value in self.process.parameters().items():
            if name in self.space.parameters:
                self.space.parameters[name].value = value

    @property
    def coefficients(self) -> Coefficients:
        """D and β, in every scheme."""
        return self.compiled.coefficients

    def boundary_report(self) -> dict[str, FicheraClasses]:
        """Measure of each Fichera class on every named part (collective)."""
        return {name: self.boundary.classify(self.domain.facets(name)) for name in self.domain.parts}

    def assemble_vector(self, form: ufl.Form) -> PETSc.Vec:
        """Assemble a linear form into a new vector with this generator's numbers (collective)."""
        self.activate()
        return self._assemble_vector(fem.form(form))

    def _assemble_vector(self, form: fem.Form) -> PETSc.Vec:
        function = fem.Function(self.V)
        fem.assemble_vector(function.x.array, form)
        function.x.scatter_reverse(la.InsertMode.add)
        return self.vector(function)

    def assemble_matrix(self, form: ufl.Form) -> PETSc.Mat:
        """Assemble a bilinear form into a new matrix with this generator's numbers (collective)."""
        self.activate()
        return assemble_matrix(fem.form(form))

    def exit_vector(self, g: Any, part: str) -> PETSc.Vec:
        """ℓ_i = backward data ``g`` tested with φ_i on one part; ℓᵀp is its outflux for g = 1 (collective)."""
        v = ufl.TestFunction(self.V)
        return self.assemble_vector(self.weak.exit_data(g, v, self.facets((part,))))

    def exit_flux(self, part: str) -> PETSc.Vec:
        """Vector ℓ with ℓᵀp = mass per time that the density p loses through ``part`` (collective, cached)."""
        return self.cached(f"exit_flux_{part}", lambda: self.exit_vector(self.space.constant(1.0), part))

    def total_flux(self) -> PETSc.Vec:
        """−Gᵀ1: all that leaves, also where named parts overlap (collective, cached)."""

        def make() -> PETSc.Vec:
            ones, flux = self.G.createVecLeft(), self.G.createVecRight()
            ones.set(1.0)
            self.G.multTranspose(ones, flux)
            flux.scale(-1.0)
            ones.destroy()
            return flux

        return self.cached("total flux", make)

    def cached(self, key: str, make: Any) -> Any:
        """Make once, keep until :meth:`destroy`."""
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]

    def solver(self, what: str, options: _petsc.Options | None = None) -> _petsc.LinearSolver:
        """G factorised (or preconditioned) once, for exit problems (collective)."""
        merged = {**self.options, **(options or {})}
        key = f"exit {sorted(merged.items())}"

        def make() -> _petsc.LinearSolver:
            with PETSc.Log.Stage("fpsolver factorise"):
                return _petsc.LinearSolver(self.G, "fp_exit_", what, self.exit_preset(), merged)

        solver = self.cached(key, make)
        solver.what = what
        return solver

    def exit_preset(self) -> dict[str, Any]:
        """Direct below 50 000 unknowns or in 2D; multigrid for continuous elements on tetrahedra above.

        In 3D MUMPS takes 2.3 s at 60 k and 40 s at 269 k unknowns of degree two, BoomerAMG 33 µs per unknown.
        """
        size = self.G.getSize()[0]
        if self.domain.dim == 3 and self.scheme == "galerkin" and size > 50_000:
            return _petsc.multigrid_preset()
        return _petsc.direct_preset(self.G.comm, self.domain.dim)

    def stats(self) -> dict[str, Any]:
        """Size and scheme, for answers."""
        tables = [t.error for t in self.space.tables.values()]
        tabulated = {"tabulation_error": max(tables)} if tables else {}
        return {"unknowns": self.G.getSize()[0], "scheme": self.scheme, "degree": self.degree, **tabulated}

    def function(self, vector: PETSc.Vec, name: str = "u") -> fem.Function:
        """The function with these coefficients (collective)."""
        function = fem.Function(self.V, name=name)
        function.x.array[: vector.local_size] = vector.array_r
        function.x.scatter_forward()
        return function

    def density(self, vector: PETSc.Vec, name: str = "density") -> fem.Function:
        """The density of a forward solution: in the weighted scheme, the weight times its unknown (collective)."""
        function = self.function(vector, name)
        if self.scheme != "weighted":
            return function
        self.activate()
        density = fem.Function(self.V, name=name)
        points = _compat.interpolation_points(self.V.element)
        density.interpolate(fem.Expression(self.weak.weight * function, points))
        density.x.scatter_forward()
        return density

    def vector(self, function: fem.Function) -> PETSc.Vec:
        """The owned coefficients of a function on :attr:`V` as a new vector.

        Raises:
            ValueError: the function has another element.
        """
        if function.function_space.ufl_element() != self.V.ufl_element():
            raise ValueError(
                f"{function.name!r} is a function of {function.function_space.ufl_element()}, the generator's space is "
                f"{self.V.ufl_element()}. Of a density that was made non-negative, take .raw instead of .function."
            )
        vector = self.G.createVecRight()
        vector.array_w[:] = function.x.array[: vector.local_size]
        return vector

    def destroy(self) -> None:
        """Free matrices and factors (collective)."""
        for item in (*self.cache.values(), self._M, self.G, self.integrals):
            if hasattr(item, "destroy"):
                item.destroy()
        self.cache = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()
