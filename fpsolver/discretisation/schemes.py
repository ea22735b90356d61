"""How the equation is discretised: one object for each scheme answers what differs, here and nowhere else."""

from dataclasses import replace
from typing import ClassVar

import ufl
from dolfinx import fem
from ufl.core.expr import Expr

from .._arguments import check_choice
from ..models.process import Coefficients
from .weak import WeakForm


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

    Walls that lack diffusion get some (:mod:`._walls`).
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
