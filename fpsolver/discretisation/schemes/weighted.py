"""The symmetric form of a reversible process whose invariant density ∝ w = e^{−U} is known.

There w L u = ∇·(wD∇u): ``galerkin`` with D replaced by wD, β by 0 and the measure dx by w dx.  The unknown of the
forward equation is then p/w.
"""

from dataclasses import replace

import ufl
from dolfinx import fem
from ufl.core.expr import Expr

from ...models.process import Coefficients
from .scheme import Scheme
from .weak import WeakForm


class Weighted(Scheme):
    """Relative accuracy at any barrier."""

    name = "weighted"
    needs_potential = True
    by_capacities = True
    unknown_is_density = False
    differentiates_diffusion = False
    may_grow = False

    def adapted(self, weak: WeakForm) -> WeakForm:
        """Diffusion wD and no drift, w = e^{max(U_min − U, floor)}."""
        offset = weak.space.constant(0.0)
        floor = fem.Function(fem.functionspace(weak.mesh, ("DG", 0)))
        return self.with_weight(replace(weak, offset=offset, floor=floor))

    @staticmethod
    def with_weight(weak: WeakForm) -> WeakForm:
        """The form with the weight that its potential, offset and floor give."""
        weight = ufl.exp(ufl.max_value(weak.offset - weak.potential, weak.floor))
        zero = ufl.as_vector([0.0] * weak.coefficients.beta.ufl_shape[0])
        return replace(weak, coefficients=Coefficients(weight * weak.coefficients.D, zero), weight=weight)

    def flux(self, weak: WeakForm, p: Expr) -> Expr:
        """J = −wD∇(p/w)."""
        return -ufl.dot(weak.coefficients.D, ufl.grad(p / weak.weight))
