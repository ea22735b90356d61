"""What every scheme answers."""

from typing import ClassVar

import ufl
from ufl.core.expr import Expr

from .weak import WeakForm


class Scheme:
    """One way to discretise; what differs between schemes is asked here and nowhere else.

    Attributes:
        name: as in ``Generator(scheme=...)``.
        family: of the elements.
        upwind: whether drift may cross walls without diffusion, and D may degenerate there.
        needs_potential: whether the invariant density e^{−U} must be known.
        by_capacities: whether exits and the slowest mode are found through the capacities of the wells, with relative
            accuracy; forward and backward modes are then one vector.
        unknown_is_density: whether the forward unknown is the density itself, and does not depend on the numbers.
        differentiates_diffusion: whether ∇·D enters the forms.
        may_grow: whether discrete solutions can grow where those of the equation do not.
        multigrid: whether multigrid serves large problems in three dimensions.
    """

    name: ClassVar[str]
    family: ClassVar[str] = "Lagrange"
    upwind: ClassVar[bool] = False
    needs_potential: ClassVar[bool] = False
    by_capacities: ClassVar[bool] = False
    unknown_is_density: ClassVar[bool] = True
    differentiates_diffusion: ClassVar[bool] = True
    may_grow: ClassVar[bool] = True
    multigrid: ClassVar[bool] = False

    def adapted(self, weak: WeakForm) -> WeakForm:
        """The weak form with this scheme's coefficients."""
        return weak

    def further_terms(self, weak: WeakForm, u: Expr, v: Expr) -> ufl.Form | None:
        """Terms of B beyond those of the cells and of the absorbing parts; None if there are none."""
        return None

    def flux(self, weak: WeakForm, p: Expr) -> Expr:
        """J = βp − D∇p of a density p, shape (d,)."""
        c = weak.coefficients
        return c.beta * p - ufl.dot(c.D, ufl.grad(p))
