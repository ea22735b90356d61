"""Discontinuous elements with upwind drift and an interior penalty, for diffusion that may degenerate anywhere."""

import ufl
from ufl.core.expr import Expr

from .scheme import Scheme
from .weak import WeakForm


class DG(Scheme):
    """Adds the facets between cells, and diffusion at reflecting walls that lack it (:mod:`.._walls`)."""

    name = "dg"
    family = "DG"
    upwind = True

    def further_terms(self, weak: WeakForm, u: Expr, v: Expr) -> ufl.Form:
        """Interior facets."""
        return weak.interior_facets(u, v)
