"""Discontinuous elements with upwind drift and an interior penalty, for diffusion that may degenerate anywhere."""

from dataclasses import replace

import ufl
from dolfinx import fem
from ufl.core.expr import Expr

from .scheme import Scheme
from .weak import WeakForm


class DG(Scheme):
    """Adds the facets between cells, and diffusion inside cells at reflecting walls that lack it."""

    name = "dg"
    family = "DG"
    upwind = True

    def adapted(self, weak: WeakForm) -> WeakForm:
        """With the diffusion that is added at walls, zero until it is measured."""
        return replace(weak, wall=fem.Function(fem.functionspace(weak.mesh, ("DG", 0))))

    def further_terms(self, weak: WeakForm, u: Expr, v: Expr) -> ufl.Form:
        """Interior facets; at walls gradients only, so that mass and constants are kept."""
        return weak.interior_facets(u, v) + weak.wall * ufl.inner(ufl.grad(u), ufl.grad(v)) * weak.dx
