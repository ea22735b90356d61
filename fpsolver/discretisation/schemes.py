"""How the equation is discretised, which of these schemes a generator gets, and what it must not be used for."""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import ufl
from dolfinx import fem
from ufl.core.expr import Expr

from .. import _petsc
from .._arguments import check_choice, check_integer
from .._errors import agree
from .._log import logger
from ..domains.domain import Domain
from ..models.fields import Space
from ..models.process import SDE, Coefficients, Process
from ._wells import find_wells
from .assembly import nodal_values
from .boundary import Boundary, Survey, is_periodic
from .territory import Territory, union_tags
from .weak import WeakForm, is_continuous


class Scheme:
    """``galerkin``, continuous elements: best value for smooth, non-degenerate, well resolved problems."""

    name: ClassVar[str] = "galerkin"  #: as in ``Generator(scheme=...)``
    family: ClassVar[str] = "Lagrange"  #: of the elements
    upwind: ClassVar[bool] = False  #: whether drift may cross walls without diffusion, and D may degenerate there
    # whether exits and the slowest mode are found through the capacities of the wells, with relative accuracy; forward
    # and backward modes are then one vector.  The invariant density e^{−U} must be known
    by_capacities: ClassVar[bool] = False
    unknown_is_density: ClassVar[bool] = True  #: whether the forward unknown is the density, whatever the numbers
    differentiates_diffusion: ClassVar[bool] = True  #: whether ∇·D enters the forms
    may_grow: ClassVar[bool] = True  #: whether discrete solutions can grow where those of the equation do not
    multigrid: ClassVar[bool] = True  #: whether multigrid serves large problems in three dimensions

    def adapted(self, weak: WeakForm) -> WeakForm:
        """The weak form with this scheme's coefficients."""
        return weak

    def further_terms(self, weak: WeakForm, u: Expr, v: Expr) -> ufl.Form | None:
        """Terms of B beyond those of cells and absorbing parts; here, where D jumps, facets of the cells around."""
        return None if weak.rough is None else weak.kinks(u, v) * weak.dS

    def flux(self, weak: WeakForm, p: Expr) -> Expr:
        """J = βp − D∇p of a density p, shape (d,)."""
        return weak.coefficients.beta * p - ufl.dot(weak.coefficients.D, ufl.grad(p))


class DG(Scheme):
    """Discontinuous elements, for diffusion that may degenerate anywhere: upwind drift and an interior penalty.

    Walls that lack diffusion get some (:func:`.boundary.lacking_diffusion`).
    """

    name, family, upwind, multigrid = "dg", "DG", True, False

    def further_terms(self, weak: WeakForm, u: Expr, v: Expr) -> ufl.Form:
        """Interior facets."""
        return weak.interior_facets(u, v)


class Weighted(Scheme):
    """The symmetric form of a reversible process whose invariant density ∝ w = e^{−U} is known, at any barrier.

    There w L u = ∇·(wD∇u): ``galerkin`` with D replaced by wD, β by 0 and the measure dx by w dx.  The unknown of the
    forward equation is then p/w.
    """

    name, by_capacities, multigrid = "weighted", True, False
    unknown_is_density = differentiates_diffusion = may_grow = False

    def adapted(self, weak: WeakForm) -> WeakForm:
        """Diffusion wD and no drift, w = e^{max(U_min − U, floor)}."""
        offset, floor = weak.space.constant(0.0), fem.Function(fem.functionspace(weak.mesh, ("DG", 0)))
        weight = ufl.exp(ufl.max_value(offset - weak.potential, floor))
        zero = ufl.as_vector([0.0] * weak.coefficients.beta.ufl_shape[0])
        coefficients = Coefficients(weight * weak.coefficients.D, zero)
        return replace(weak, offset=offset, floor=floor, coefficients=coefficients, weight=weight)

    def further_terms(self, weak: WeakForm, u: Expr, v: Expr) -> None:
        """None."""

    def flux(self, weak: WeakForm, p: Expr) -> Expr:
        """J = −wD∇(p/w)."""
        return -ufl.dot(weak.coefficients.D, ufl.grad(p / weak.weight))


SCHEMES = {scheme.name: scheme for scheme in (Scheme(), DG(), Weighted())}


def named(name: str) -> Scheme:
    """The scheme of this name."""
    check_choice("scheme", name, ("auto", *SCHEMES))
    return SCHEMES[name]


# beyond it galerkin and dg need finer meshes than weighted for the same error, and fail without a sign on coarse ones;
# below it they are as good and cost half (benchmarks/schemes.py), and modes beyond the slowest are cleaner
HIGH_BARRIER = 15.0
# of the cell over the degree: up to it galerkin is as exact as dg at a third to a half of its cost (double well: 3.4e-7
# and 3.3e-7 at 4.3, 2.5e-4 and 2.1e-4 at 8.5; layers at absorbing walls, at equal cost, tie there)
HIGH_PECLET = 5.0
DEFAULT_DEGREE = {1: 4, 2: 4, 3: 3}


def choose_degree(degree: int | None, dim: int) -> int:
    """The degree, checked, or the default of the dimension."""
    return DEFAULT_DEGREE[dim] if degree is None else check_integer("degree", degree)


def choose_scheme(
    name: str, process: Process, territory: Territory, space: Space, survey: Survey, boundary: Boundary
) -> Scheme:
    """The scheme of this name; of ``"auto"`` what suits, with the reason in the log (collective)."""
    scheme = None if name == "auto" else named(name)
    if scheme is not None and scheme.by_capacities:
        return scheme
    climb = barrier(process, territory, space) if territory.declared else 0.0
    if scheme is not None:
        if climb > HIGH_BARRIER:
            _petsc.warn_once(
                f"{name} at {climb:.3g}",
                f"scheme {name} at a barrier of {climb:.3g} temperatures: exit times are wrong by orders of "
                "magnitude on meshes that do not resolve it; see their .error, or take scheme='weighted'",
            )
        return scheme
    why = "D degenerates" if survey.degenerate else f"largest cell Péclet number over the degree {survey.peclet:.2g}"
    upwind = survey.degenerate or survey.peclet > HIGH_PECLET or _degenerate_walls(boundary, territory)
    name = "dg" if upwind else "galerkin"
    if climb > HIGH_BARRIER:
        name, why = "weighted", f"a barrier of {climb:.3g} times the temperature"
    logger.info("scheme %s, degree %d: %s", name, space.degree, why)
    return named(name)


def barrier(process: Process, territory: Territory, space: Space) -> float:
    """How far one must climb from the worst well to get lower or out, in units of U; zero without a Gibbs density."""
    potential = process.potential(space)
    if potential is None or not is_periodic(territory.domain, potential):
        return 0.0
    V = fem.functionspace(space.mesh, ("Lagrange", 1))
    U = nodal_values(V, potential, space).x.array
    check_not_nan(territory.domain, U)
    wells = find_wells(V, U, union_tags(territory.domain, territory.declared).indices)
    return max(climb for _, _, climb in wells)


def check_not_nan(domain: Domain, U: np.ndarray) -> None:
    """Refuse a potential without values at some nodes (collective)."""
    problem = "the loss or potential is NaN at some nodes of the mesh: give it values on the whole domain."
    agree(domain.comm, problem if np.isnan(U).any() else None)


def gibbs_potential(process: Process, space: Space) -> Any:
    """U of the known invariant density e^{−U}, which the weighted scheme needs."""
    potential = process.potential(space)
    if potential is None:
        raise ValueError(
            f"scheme 'weighted' needs a known invariant density e^{{-U}}; {type(process).__name__} has none. "
            "Langevin has, SGD with Isotropic noise of constant level, and an SDE whose U is given (gibbs=); "
            "otherwise use 'galerkin' or 'dg'."
        )
    return potential


def _degenerate_walls(boundary: Boundary, territory: Territory) -> bool:
    """Whether anything crosses, or should be absorbed at, a wall without diffusion."""
    whole = boundary.classify(boundary.facets)
    parts = [boundary.classify(territory.domain.facets(name)) for name in territory.declared]
    floor = 1e-12 * whole.measure
    return whole.outflow + whole.inflow > floor or any(c.measure - c.diffusive > floor for c in parts)


def check_walls(scheme: Scheme, boundary: Boundary, territory: Territory) -> None:
    """Refuse absorbing parts that cannot be reached, and a scheme that cannot treat these walls (collective)."""
    domain, absorbing = territory.domain, territory.declared
    if not scheme.upwind and _degenerate_walls(boundary, territory):
        crossed = [name for name in domain.parts if sum(boundary.classify(domain.facets(name))[1:3]) > 0]
        raise ValueError(
            f"scheme {scheme.name!r} cannot be used here: there are walls where the drift crosses without diffusion "
            f"(n·Dn = 0, on {', '.join(crossed) or 'no part'}), or degenerate absorbing parts. Use scheme='dg', whose "
            "upwind terms impose data exactly where they belong, and see its boundary_report()."
        )
    for name in absorbing:
        found = boundary.classify(domain.facets(name))
        if found.diffusive + found.outflow <= 1e-12 * found.measure:  # nowhere can data be imposed
            raise ValueError(
                f"the absorbing part {name!r} cannot be reached: everywhere on it n·Dn = 0 and the drift points "
                f"inwards or along it (inflow {found.inflow:.3g}, characteristic {found.characteristic:.3g} of "
                f"{found.measure:.3g}). Declare another part as absorbing, or add noise across it."
            )
    walls = boundary.classify(np.setdiff1d(boundary.facets, union_tags(domain, absorbing).indices))
    if walls.outflow > 1e-12 * walls.measure:
        logger.warning(
            "the drift leaves through a reflecting wall without diffusion (measure %.3g): legitimate only as a "
            "truncation of a larger space with negligible mass there",
            walls.outflow,
        )


def check_jumps(scheme: Scheme, process: Process, coefficients: Coefficients) -> None:
    """Refuse a D that jumps where the convention differentiates it."""
    if not isinstance(process, SDE) or process.convention != "stratonovich" or not scheme.differentiates_diffusion:
        return
    if not is_continuous(coefficients.D):
        raise ValueError(
            "SDE: in the 'stratonovich' convention the drift ½∇·D of a D that jumps between cells is no function. Give "
            "a continuous D, or convention='ito' or 'divergence', or the potential of the invariant density (gibbs=) "
            "with scheme='weighted'."
        )
