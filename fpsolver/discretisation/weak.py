"""The weak forms, in (D, β) form: the one place where the equation is discretised.

Backward form B(u, v) = ∫ D∇u·∇v − (β·∇u) v + facet terms, so that ∂ₜu = Lu reads M u̇ = −B u; the forward operator
is its transpose, G_ij = −B(φ_i, φ_j).  Interior facets carry upwind drift and the symmetric weighted interior penalty
of Ern, Stephansen, Zunino (IMA J. Numer. Anal. 29, 2009) for semi-definite D (Di Pietro, Ern, Guermond, SIAM J. Numer.
Anal. 46, 2008).  Absorbing facets carry Nitsche terms for ``n·Dn`` and upwinding for the drift that leaves,
so that data act exactly where the Fichera function and the diffusion let them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import dolfinx
import ufl
from dolfinx import fem
from ufl import jump
from ufl.algorithms import estimate_total_polynomial_degree, extract_coefficients
from ufl.algorithms.analysis import extract_constants
from ufl.algorithms.apply_algebra_lowering import apply_algebra_lowering
from ufl.algorithms.apply_derivatives import apply_derivatives
from ufl.core.expr import Expr
from ufl.corealg.traversal import unique_pre_traversal

from ..models.fields import Space
from ..models.process import Coefficients

if TYPE_CHECKING:
    from .schemes import Scheme


ROUGH_QUADRATURE = {1: 20, 2: 14, 3: 4}  # degrees added where D jumps inside cells


def quadrature_degree(coefficients: Coefficients, degree: int) -> int:
    """Degree that integrates D∇u·∇v and (β·∇u)v exactly for polynomial data, up to 2k + 6: the rest costs in vain."""
    drift, diffusion = (estimate_total_polynomial_degree(c) for c in (coefficients.beta, coefficients.D))
    return max(2 * degree, min(2 * degree - 1 + drift, 2 * degree + 6), min(2 * degree - 2 + diffusion, 2 * degree + 6))


@dataclass(frozen=True)
class WeakForm:
    """Bilinear and boundary forms of one process on one mesh."""

    space: Space  #: mesh, and the process' numbers as constants
    process: Coefficients  #: D and β
    coefficients: Coefficients  #: those of the forms; the same except for ``weighted``
    degree: int  #: polynomial degree of the space
    scheme: "Scheme"
    absorbing: Any  #: MeshTags of the absorbing facets, all with value 1, or [(1, cells and local facets)]
    quadrature: int  #: degree of every integral
    weight: Expr | float = 1.0  #: w, one except for ``weighted``
    cells: Any = None  #: MeshTags; integrate only over the cells with value 1
    interior: Any = None  #: [(1, interior facets as pairs of cell and local facet)]; by default all of them
    potential: Any = None  #: U with ``weighted``
    offset: Any = None  #: its minimum, a constant
    floor: Any = None  #: lowest exponent of the weight in each cell, see :func:`.forms.settle_weight`
    rough: Any = None  #: one in cells in which D is not differentiated, see :mod:`.jumps`; None: there are none
    middle: Any = None  #: the cells' midpoints where coefficients may jump on facets, else None

    @property
    def mesh(self) -> dolfinx.mesh.Mesh:
        """The dolfinx mesh."""
        return self.space.mesh

    def bound(self, numbers: Mapping[str, float]) -> tuple["WeakForm", dict[Any, Any]]:
        """The same forms with constants and cell functions of their own, and what these stand for."""
        given = {c: name for name, c in self.space.parameters.items()}
        fields = ("process", "coefficients", "weight", "potential", "offset", "floor", "rough")

        def each(change: Any, x: Any) -> Any:
            if isinstance(x, Coefficients):
                return replace(x, D=each(change, x.D), beta=each(change, x.beta), drift=each(change, x.drift))
            return change(x) if isinstance(x, Expr) else x

        constants = set(given)
        for name in fields:
            each(lambda e: constants.update(extract_constants(e)), getattr(self, name))
        # all of them, in the order in which they were made: what is compiled goes by that order
        own: dict[Any, Any] = {
            c: self.space.constant(numbers.get(given.get(c, ""), c.value))
            for c in sorted(constants, key=lambda c: c.count())
        }
        parameters = {name: own[c] for c, name in given.items()}
        space = replace(self.space, parameters=parameters, numbers={**self.space.numbers, **numbers})
        own |= {f: fem.Function(f.function_space) for f in (self.floor, self.rough) if f is not None}
        changed = {name: each(lambda e: ufl.replace(e, own), getattr(self, name)) for name in fields}
        return replace(self, space=space, **changed), own

    @property
    def dx(self) -> ufl.Measure:
        """Cell measure with explicit quadrature degree."""
        return self._cells((1, 2))

    def _cells(self, ids: int | tuple[int, ...], more: int = 0) -> ufl.Measure:
        """Measure on smooth cells (1) or rough ones (2), with ``more`` than the quadrature degree."""
        ids = 1 if self.rough is None else ids
        return self._measure("dx", self.cells, "everywhere" if self.cells is None else ids, more)

    def ds(self, tags: Any, value: int = 1) -> ufl.Measure:
        """Measure on the facets of ``tags`` with this value, seen from one side."""
        return self._measure("ds", tags, value)

    @property
    def dS(self) -> ufl.Measure:
        """Measure on the facets between cells that exchange more than the unknowns they share."""
        return self._measure("dS", self.interior, "everywhere" if self.interior is None else 1)

    def _measure(self, kind: str, tags: Any, ids: Any, more: int = 0) -> ufl.Measure:
        return ufl.Measure(kind, self.mesh, ids, {"quadrature_degree": self.quadrature + more}, tags)

    @property
    def alpha(self) -> float:
        """Penalty 4 (k + s)(k + s + 1), s = 1 unless D is constant: the trace inequality acts on σᵀ∇v, not on ∇v."""
        k = self.degree + (1 if estimate_total_polynomial_degree(self.coefficients.D) else 0)
        return 4.0 * k * (k + 1)

    def mass(self, p: Expr, v: Expr) -> ufl.Form:
        """∫ w p v."""
        return self.weight * p * v * self.dx

    def forward(self, p: Expr, v: Expr) -> ufl.Form:
        """a(p, v) = −B(v, p), whose matrix is G."""
        form = self._volume(v, p) + self.exit(v, p, self.absorbing)
        further = self.scheme.further_terms(self, v, p)
        return -(form if further is None else form + further)

    def _volume(self, u: Expr, v: Expr) -> ufl.Form:
        D, beta = self.coefficients.D, self.coefficients.beta
        smooth = ufl.inner(ufl.dot(D, ufl.grad(u)), ufl.grad(v)) - ufl.dot(beta, ufl.grad(u)) * v
        if self.rough is None:
            return smooth * self.dx
        wall = ufl.dot(ufl.dot(D, ufl.grad(u)), ufl.FacetNormal(self.mesh)) * v * self.ds(self.absorbing, 2)
        further = ROUGH_QUADRATURE[self.mesh.topology.dim]
        return (
            smooth * self._cells(1)
            - self.process.generator(u, self.quadrature + further) * v * self._cells(2, further)
            + wall
        )

    def exit(self, u: Expr, v: Expr, tags: Any) -> ufl.Form:
        """Facet terms of B on an absorbing part, with homogeneous data."""
        D, n = self.coefficients.D, ufl.FacetNormal(self.mesh)
        smooth = 1.0 if self.rough is None else 1.0 - self.rough
        return -smooth * ufl.dot(ufl.dot(D, ufl.grad(u)), n) * v * self.ds(tags) + self.exit_data(u, v, tags)

    def exit_data(self, g: Expr, v: Expr, tags: Any, forward: bool = False) -> ufl.Form:
        """ℓ_g(v): backward data g on an absorbing part, and the consistent outflux of v for g = 1.

        ∫ g (−D∇v·n + (α δ/h + (β·n)⁺) v) with δ = n·Dn; (β·n)⁻ for ``forward`` data, a density g.
        """
        D, n = self.coefficients.D, ufl.FacetNormal(self.mesh)
        outwards = positive((-1 if forward else 1) * ufl.dot(self.coefficients.beta, n))
        weight = self.alpha * ufl.dot(ufl.dot(D, n), n) / facet_height(self.mesh) + outwards
        return g * (weight * v - ufl.dot(ufl.dot(D, ufl.grad(v)), n)) * self.ds(tags)

    def interior_facets(self, u: Expr, v: Expr) -> ufl.Form:
        """Upwind drift and the symmetric weighted interior penalty on the facets between cells."""
        drift = ufl.dot(ufl.avg(self.sided(self.coefficients.beta)), ufl.FacetNormal(self.mesh)("+"))
        upwind = drift * jump(u) * ufl.avg(v) + 0.5 * abs(drift) * jump(u) * jump(v)
        return (upwind + self._penalised(self.sided(self.coefficients.D), u, v, self.rough is not None)) * self.dS

    def added(self, K: Expr, u: Expr, v: Expr) -> ufl.Form:
        """What diffusion K adds to B inside the domain."""
        return ufl.inner(ufl.dot(K, ufl.grad(u)), ufl.grad(v)) * self.dx + self._penalised(K, u, v) * self.dS

    def _penalised(self, D: Expr, u: Expr, v: Expr, ito: bool = False) -> Expr:
        """Fluxes of a diffusion through a facet, and the penalty of jumps."""
        n = ufl.FacetNormal(self.mesh)("+")
        delta = [ufl.dot(ufl.dot(D(s), n), n) for s in "+-"]
        if ito or (is_continuous(D) and self.middle is None):
            weights, gamma = [0.5, 0.5], 0.5 * (delta[0] + delta[1])
        else:  # w_i = δ_j / (δ_0 + δ_1): the flux is taken from the side that diffuses less
            total = delta[0] + delta[1]
            some = ufl.gt(total, 0)
            weights = [ufl.conditional(some, delta[1 - i] / total, 0.5) for i in range(2)]
            gamma = ufl.conditional(some, 2 * delta[0] * delta[1] / total, 0)

        def flux(w: Expr) -> Expr:
            return sum(weights[i] * ufl.dot(ufl.dot(D(s), ufl.grad(w)(s)), n) for i, s in enumerate("+-"))

        h = facet_height(self.mesh)
        h = ufl.min_value(h("+"), h("-"))
        gradients = -flux(u) * jump(v) if not ito else self.kinks(u, v)
        return self.alpha * gamma / h * jump(u) * jump(v) + gradients - flux(v) * jump(u)

    def sided(self, expression: Expr) -> Expr:
        """What a coefficient is on facets seen from either cell: conditions on x decide a little inside of them."""
        if self.middle is None:
            return expression
        x, lowered = ufl.SpatialCoordinate(self.mesh), apply_derivatives(apply_algebra_lowering(expression))
        inside = {x: x + 1e-8 * (self.middle - x)}
        conditions = (c for c in unique_pre_traversal(lowered) if isinstance(c, ufl.classes.Condition))
        decided = {c: ufl.replace(c, inside) for c in conditions}
        return ufl.replace(lowered, decided) if decided else lowered

    def kinks(self, u: Expr, v: Expr) -> Expr:
        """What ∇u contributes on facets of rough cells: [χ v Dn·∇u] − [v Dn]·{∇u}, χ one in rough cells.

        Between two of them it is {v Dn}·[∇u]: solutions are C¹, whatever D is there.  Between smooth cells it is
        −{Dn·∇u}[v].
        """
        D, n, total = self.sided(self.coefficients.D), ufl.FacetNormal(self.mesh)("+"), 0
        for side, sign in (("+", 1.0), ("-", -1.0)):
            flux = v(side) * ufl.dot(D(side), n)
            gradient = self.rough(side) * ufl.grad(u)(side) - ufl.avg(ufl.grad(u))
            total += sign * ufl.dot(flux, gradient)
        return total


def facet_height(mesh: dolfinx.mesh.Mesh) -> Expr:
    """Height of the cell normal to the facet, d|K|/|F|; with diameters, kinetic rates are wrong on graded meshes."""
    cell = abs(ufl.JacobianDeterminant(mesh))
    return cell if mesh.topology.dim == 1 else cell / abs(ufl.classes.FacetJacobianDeterminant(mesh))


def positive(a: Expr) -> Expr:
    """a⁺."""
    return 0.5 * (a + abs(a))


def is_continuous(expression: Expr) -> bool:
    """Whether an expression takes the same value on both sides of a facet."""
    coefficients = extract_coefficients(expression)
    if not coefficients:
        return True
    derivatives = any(isinstance(o, ufl.classes.Derivative) for o in unique_pre_traversal(expression))
    return not derivatives and all(c.ufl_element() in ufl.H1 for c in coefficients)
