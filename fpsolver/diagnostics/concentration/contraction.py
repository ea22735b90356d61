"""How strongly a point attracts, how large the noise around it is, and whether the law collapses onto it.

With Y = |X − x*|²:  L Y = 2 (x − x*)·b + tr 2D.  For SGD with learning rate η, b = −∇f and tr 2D = η tr Σ/B.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ufl
from dolfinx import fem
from ufl.algorithms import extract_coefficients

from ..._answer import Answer, place
from ..._arguments import check_positive
from ..._errors import together
from ..._log import logger
from ..._sample import largest, smallest
from ...discretisation.generator import Generator, derived
from ...discretisation.solution import as_points, bounds, locate
from ...models.fields import integrate
from ...pointwise.lambdify import PointSpace
from ..sampling import Array, Samples, at_points, axes_and_sums, directions, ito_drift, quadratic_form


@dataclass(frozen=True)
class Contraction(Answer):
    """Constants of the inequality m₂' ≤ −2λ m₂ + S in a ball around x*, measured.

    Attributes:
        point, radius: x*, shape (d,), and R of the ball, infinite for the whole domain.
        pull: λ = inf −(x − x*)·b/|x − x*|² over the ball.
        noise: S = sup tr 2D over the ball (η sup tr Σ for SGD).
        relative_noise: s₂ = sup tr 2D/|x − x*|²; infinite unless the noise vanishes at x*.
        whole: whether the ball contains the domain, and reflection at its walls cannot raise |x − x*|: then the bounds
            hold for the process itself, otherwise for the process killed on leaving the ball.
    """

    point: np.ndarray
    radius: float
    pull: float
    noise: float
    relative_noise: float
    whole: bool

    def __repr__(self) -> str:
        verdict = "attracts" if self.pull > 0 else "does not attract"
        return f"{self.point} {verdict}: pull {self.pull:.6g}, noise {self.noise:.6g} within radius {self.radius:.4g}"

    def bound(self, t: Any, m2: float) -> np.ndarray:
        """Upper bound of the second moment after time t: e^{−2λt} m₂ + S (1 − e^{−2λt})/2λ; NaN unless λ > 0.

        Where the noise vanishes at x* also e^{−(2λ − s₂)t} m₂, if that is less.
        """
        t = np.asarray(t, dtype=float)
        if self.pull <= 0:
            return np.full(t.shape, np.nan)
        decay = np.exp(-2 * self.pull * t)
        bound = decay * m2 + self.noise * (1 - decay) / (2 * self.pull)
        if np.isfinite(self.relative_noise):
            bound = np.minimum(bound, np.exp(-(2 * self.pull - self.relative_noise) * t) * m2)
        return bound


def contraction(gen: Generator, point: Any, *, radius: float | None = None) -> Contraction:
    """Measure λ, S and s₂ in a ball of a radius R, by default the whole domain, around a point (d,) (collective).

    Infimum and supremum are over quadrature points and vertices of the mesh and, unless coefficients are tabulated,
    over 65 points on each of many rays from x* to the sphere; they are not certified between these.

    Raises:
        ValueError: unsuitable point or radius, or no point of the mesh in the ball.
    """
    mesh, comm, d = gen.domain.mesh, gen.domain.comm, gen.domain.dim
    x_star = as_points(point, d, "contraction: point")[0]
    R = float(np.inf if radius is None else check_positive("contraction: radius", radius))
    lower, upper = bounds(mesh)
    reach = min(R, float(np.linalg.norm(upper - lower)))
    x, table = _on_mesh(gen)
    values = drift_and_noise_at(gen)
    if values is not None:
        steps = reach * np.linspace(1e-4, 1, 65)[:, None, None]
        rays = x_star + (steps * directions(d)[:: 1 if d < 3 else 8]).reshape(-1, d)
        rays = rays[((rays >= lower) & (rays <= upper)).all(axis=1)]
        x, table = np.concatenate([x, rays]), np.concatenate([table, values(rays)])
    y, noise = x - x_star, table[:, d]
    squares = (y**2).sum(axis=1)
    mine = squares <= R**2
    away = mine & (squares > (1e-5 * reach) ** 2)  # nearer the position of x* is not known well enough
    pull = smallest(comm, -(y[away] * table[away, :d]).sum(axis=1) / squares[away])
    if pull == np.inf:
        raise ValueError(f"contraction: no point of the mesh lies within {R:.6g} of {place(x_star)}.")
    S = max(largest(comm, noise[mine]), 0.0)
    s2 = max(largest(comm, noise[away] / squares[away]), 0.0)
    vanishes = values is not None and float(values(x_star[None])[0, d]) <= 1e-9 * S
    # whether the ball is large enough, and reflection along −Dn does not raise |x − x*|: (x − x*)·Dn ≥ 0 on the walls
    whole = largest(comm, np.linalg.norm(mesh.geometry.x[:, :d] - x_star, axis=1)) <= R
    z = ufl.SpatialCoordinate(mesh) - fem.Constant(mesh, x_star)
    outwards = ufl.dot(ufl.dot(gen.coefficients.D, ufl.FacetNormal(mesh)), z)
    wrong, size = (integrate(mesh, f, 4, ufl.ds) for f in (ufl.max_value(-outwards, 0.0), abs(outwards)))
    return Contraction(x_star, R, pull, S, s2 if vanishes else float(np.inf), whole and wrong <= 1e-12 * size)


def widest_contraction(gen: Generator, points: np.ndarray, i: int) -> Contraction:
    """Constants of the largest ball around a point that holds no other and attracts (collective)."""
    others = np.linalg.norm(np.delete(points, i, axis=0) - points[i], axis=1)
    lower, upper = bounds(gen.domain.mesh)
    corner = float(np.linalg.norm(np.maximum(upper - points[i], points[i] - lower)))
    R = 0.5 * float(others.min()) if len(others) else 1.000001 * corner
    for halvings in range(6):
        found = contraction(gen, points[i], radius=R / 2**halvings)
        if found.pull > 0:
            break
    return found


@derived
def _on_mesh(gen: Generator) -> tuple[Array, Array]:
    """Quadrature points and vertices of all own cells, and b and tr 2D there."""
    samples, d = Samples.quadrature(gen.domain.mesh, max(4, gen.degree), vertices=True), gen.domain.dim
    rows = [*ito_drift(gen.coefficients), 2 * ufl.tr(gen.coefficients.D)]
    return samples.x.reshape(-1, d), samples.values(rows).reshape(-1, d + 1)


@derived
def drift_and_noise_at(gen: Generator) -> Callable[[Array], Array] | None:
    """b and tr 2D at any points; None where they are tabulated (collective)."""
    c, process, d = gen.coefficients, gen.process, gen.domain.dim
    if extract_coefficients(c.D) or extract_coefficients(c.beta):
        return None
    space = PointSpace(d, process.weights(d), process)
    with together(gen.domain.comm):
        c = process.coefficients(space)
        drift = c.beta + space.div(c.D) if c.drift is None else c.drift
        return at_points([drift, 2 * ufl.tr(c.D)], space)


@dataclass(frozen=True)
class Collapse(Answer):
    """Whether the law contracts to a point mass at x*, in mean square.

    Attributes:
        point: x*, shape (d,).
        stationary: whether drift and noise both vanish at x*, so that a point mass there is invariant.
        pull: λ, the smallest rate −(x − x*)·b/|x − x*|² as x → x*.
        relative_noise: s₂, the largest tr 2D/|x − x*|² as x → x* (for SGD: η s₂ of tr Σ ≤ s₂|x − x*|²).
        rate: 2λ − s₂: E|X − x*|² ≤ e^{−rate·t} E|X₀ − x*|² as long as the process stays near x*.
        collapses: stationary and rate > 0.  If it is False the law may still contract in probability.
    """

    point: np.ndarray
    stationary: bool
    pull: float
    relative_noise: float
    rate: float
    collapses: bool

    def __repr__(self) -> str:
        verdict = "collapses" if self.collapses else "does not collapse in mean square"
        return (
            f"the law {verdict} to {self.point}: rate {self.rate:.6g} = 2 · {self.pull:.6g} − {self.relative_noise:.6g}"
        )


def collapse(gen: Generator, point: Any) -> Collapse:
    """Look for the collapse of the law onto an interpolating minimum (d,) (collective).

    With tr 2D ≤ s₂ |x − x*|² and (x − x*)·b ≤ −λ|x − x*|² the second moment decays to zero if s₂ < 2λ, and no mesh
    resolves the density for long.  Quotients are taken at 1e-4 of the domain's extent from x*.

    Raises:
        ValueError: unsuitable point; coefficients that are tabulated instead of written with UFL.
    """
    d, values = gen.domain.dim, drift_and_noise_at(gen)
    x = as_points(point, d, "collapse: point")[0]
    locate(gen.domain.mesh, x[None], "collapse: point")  # an error outside the mesh
    if values is None:
        raise ValueError("collapse: tabulated coefficients are not known close to the point; write them with UFL.")
    rho = 1e-4 * float(np.linalg.norm(np.subtract(*bounds(gen.domain.mesh))))
    axes, steps = np.stack([axes_and_sums(d), -axes_and_sums(d)]), np.array([1.0, 0.5])[:, None, None] * rho
    at, near = values(x[None])[0], values((x + steps[..., None] * axes).reshape(-1, d)).reshape(2, *axes.shape[:2], -1)
    # both quadratic forms, extrapolated from steps ρ and ρ/2, in which they are even
    pulls, noises = -(axes * near[..., :d]).sum(axis=3) / steps, near[..., d] / steps**2
    pull, noise = (quadratic_form((4 * fine - coarse) / 3, d) for coarse, fine in (pulls.mean(1), noises.mean(1)))
    lowest, s2 = float(np.linalg.eigvalsh(pull)[0]), max(0.0, float(np.linalg.eigvalsh(noise)[-1]))
    # at an interpolating point the noise is of second order in the distance, the drift of first
    still = np.abs(at[:d]).max() <= 1e-3 * np.abs(near[0, ..., :d]).max() and at[d] <= 1e-3 * near[0, ..., d].max()
    stationary = bool(still and noises[1].mean(0).max() <= 1.1 * noises[0].mean(0).max())
    rate = 2 * lowest - s2 if stationary else float("nan")
    report = Collapse(x, stationary, lowest, s2 if stationary else float("inf"), rate, rate > 0)
    logger.info("%s", report)
    return report
