"""Continuous elements: best value for smooth, non-degenerate, well resolved problems."""

import ufl
from ufl.core.expr import Expr

from .scheme import Scheme
from .weak import WeakForm


class Galerkin(Scheme):
    """The forms as they are."""

    name = "galerkin"
    multigrid = True

    def further_terms(self, weak: WeakForm, u: Expr, v: Expr) -> ufl.Form | None:
        """Where D jumps, facets of the cells around."""
        return None if weak.rough is None else weak.kinks(u, v) * weak.dS
