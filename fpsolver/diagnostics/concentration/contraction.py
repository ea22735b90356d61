"""How strongly a point attracts, how large the noise around it is, and whether the law collapses onto it.

With Y = |X − x*|²:  L Y = 2 (x − x*)·b + tr 2D.  For SGD with learning rate η, b = −∇f and tr 2D = η tr Σ/B.
"""

from dataclasses import dataclass
from typing import Any

from mpi4py import MPI

import numpy as np
import ufl
from dolfinx import fem
from ufl.algorithms import extract_coefficients

from ..._answer import Answer
from ..._log import logger
from ...discretisation.generator import Generator, derived
from ...discretisation.solution import as_points, bounds, locate
from ...models.fields import is_number
from ...models.process import Coefficients
from ..pointwise import Pointwise, ito_drift
from ..quadrature import Quadrature, directions


@dataclass(frozen=True)
class Contraction(Answer):
    """Constants of the inequality m₂' ≤ −2λ m₂ + S in a ball around x*, measured.

    Attributes:
        point: x*, shape (d,).
        radius: R of the ball; infinite for the whole domain.
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
        verdict = "attracts" if self.attracts else "does not attract"
        return f"{self.point} {verdict}: pull {self.pull:.6g}, noise {self.noise:.6g} within radius {self.radius:.4g}"

    @property
    def attracts(self) -> bool:
        """Whether λ > 0, the hypothesis of :meth:`bound`."""
        return self.pull > 0

    def bound(self, t: Any, m2: float) -> np.ndarray:
        """Upper bound of the second moment after time t: e^{−2λt} m₂ + S (1 − e^{−2λt})/2λ; NaN unless λ > 0.

        Where the noise vanishes at x* also e^{−(2λ − s₂)t} m₂, if that is less.
        """
        t = np.asarray(t, dtype=float)
        if not self.attracts:
            return np.full(t.shape, np.nan)
        decay = np.exp(-2 * self.pull * t)
        bound = decay * m2 + self.noise * (1 - decay) / (2 * self.pull)
        if np.isfinite(self.relative_noise):
            bound = np.minimum(bound, np.exp(-(2 * self.pull - self.relative_noise) * t) * m2)
        return bound


def contraction(gen: Generator, point: Any, *, radius: float | None = None) -> Contraction:
    """Measure λ, S and s₂ in a ball around a point (collective).

    Infimum and supremum are over quadrature points and vertices of the mesh and, unless coefficients are tabulated,
    over 65 points on each of many rays from x* to the sphere; they are not certified between these.

    Args:
        gen: generator.
        point: x*, shape (d,).
        radius: R; None for the whole domain.

    Raises:
        ValueError: unsuitable point or radius, or no point of the mesh in the ball.
    """
    x_star = as_points(point, gen.domain.dim, "contraction: point")[0]
    if radius is not None and not (is_number(radius) and radius > 0):
        raise ValueError(f"contraction: radius is {radius!r}; a positive number was expected.")
    R = float(np.inf if radius is None else radius)
    x, b, noise = _samples(gen, x_star, R)
    y = x - x_star
    squares = (y**2).sum(axis=1)
    mine = squares <= R**2
    # nearer than this the position of x* is not known well enough for a quotient
    away = mine & (squares > (1e-5 * min(R, _extent(gen))) ** 2)
    comm = gen.domain.comm
    if not comm.allreduce(int(away.sum())):
        raise ValueError(f"contraction: no point of the mesh lies within {R:.6g} of {tuple(map(float, x_star))}.")
    pull = -(y[away] * b[away]).sum(axis=1) / squares[away]
    lam = comm.allreduce(float(pull.min(initial=np.inf)), op=MPI.MIN)
    S = comm.allreduce(float(noise[mine].max(initial=0.0)), op=MPI.MAX)
    s2 = comm.allreduce(float((noise[away] / squares[away]).max(initial=0.0)), op=MPI.MAX)
    values = _pointwise(gen)
    vanishes = values is not None and float(values(x_star[None])[0, -1]) <= 1e-9 * S
    nodes = gen.domain.mesh.geometry.x[:, : gen.domain.dim]
    inside = comm.allreduce(bool((np.linalg.norm(nodes - x_star, axis=1) <= R).all()), op=MPI.LAND)
    whole = bool(inside) and _walls_push_inwards(gen, x_star)
    return Contraction(x_star, R, lam, S, s2 if vanishes else float(np.inf), whole)


def widest_contraction(gen: Generator, points: np.ndarray, i: int) -> Contraction:
    """Constants of the largest ball around a point that holds no other and attracts (collective).

    Its radius is half the distance to the next point, or with one point that to the farthest corner of the domain;
    halved until λ > 0, at most six times.
    """
    others = np.linalg.norm(np.delete(points, i, axis=0) - points[i], axis=1)
    lower, upper = bounds(gen.domain.mesh)
    corner = float(np.linalg.norm(np.maximum(upper - points[i], points[i] - lower)))
    R = 0.5 * float(others.min()) if len(others) else 1.000001 * corner
    for _ in range(6):
        found = contraction(gen, points[i], radius=R)
        if found.attracts:
            break
        R /= 2
    return found


def _samples(gen: Generator, x_star: np.ndarray, R: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points, b and tr 2D there: quadrature points and vertices, and rays from x* as far as the mesh's box reaches."""
    d = gen.domain.dim
    x, table = _mesh_samples(gen)
    values = _pointwise(gen)
    if values is not None:
        lower, upper = bounds(gen.domain.mesh)
        steps = min(R, _extent(gen)) * np.linspace(1e-4, 1, 65)
        rays = x_star + (steps[:, None, None] * directions(d)[:: 1 if d < 3 else 8]).reshape(-1, d)
        rays = rays[((rays >= lower) & (rays <= upper)).all(axis=1)]
        x, table = np.concatenate([x, rays]), np.concatenate([table, values(rays)])
    return x, table[:, :d], table[:, d]


@derived
def _mesh_samples(gen: Generator) -> tuple[np.ndarray, np.ndarray]:
    quadrature = Quadrature.with_vertices(gen.domain.mesh, max(4, gen.degree))
    table = quadrature.expression(_drift_and_noise(gen.coefficients))
    return quadrature.x.reshape(-1, gen.domain.dim), table.reshape(-1, gen.domain.dim + 1)


def _drift_and_noise(c: Coefficients) -> Any:
    """b and tr 2D."""
    return ufl.as_vector([*ito_drift(c), 2 * ufl.tr(c.D)])


@derived
def _pointwise(gen: Generator) -> Pointwise | None:
    """b and tr 2D at any points; None where they are tabulated (collective)."""
    c, process = gen.coefficients, gen.process
    if extract_coefficients(c.D) or extract_coefficients(c.beta):
        return None
    build = lambda mesh: _drift_and_noise(process.coefficients(process.space(mesh, 1)))  # noqa: E731
    return Pointwise(gen.domain.dim, build, gen.domain.comm)


def _extent(gen: Generator) -> float:
    lower, upper = bounds(gen.domain.mesh)
    return float(np.linalg.norm(upper - lower))


def _walls_push_inwards(gen: Generator, x_star: np.ndarray) -> bool:
    """Whether (x − x*)·Dn ≥ 0 on the boundary, so that reflection along −Dn does not raise |x − x*| (collective)."""
    mesh = gen.domain.mesh
    point = fem.Constant(mesh, x_star)
    D, n = gen.coefficients.D, ufl.FacetNormal(mesh)
    outwards = ufl.dot(ufl.dot(D, n), ufl.SpatialCoordinate(mesh) - point)
    ds = ufl.ds(domain=mesh, metadata={"quadrature_degree": 4})
    wrong = fem.assemble_scalar(fem.form(ufl.max_value(-outwards, 0.0) * ds))
    size = fem.assemble_scalar(fem.form(abs(outwards) * ds))
    wrong, size = mesh.comm.allreduce(float(wrong)), mesh.comm.allreduce(float(size))
    return bool(wrong <= 1e-12 * size)


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


def collapse(gen: Generator, point: Any, *, distance: float | None = None) -> Collapse:
    """Look for the collapse of the law onto an interpolating minimum (collective).

    Where all samples' gradients vanish, so does their covariance: tr 2D ≤ s₂ |x − x*|².  With (x − x*)·b ≤ −λ|x − x*|²
    this gives L|x − x*|² ≤ −(2λ − s₂)|x − x*|²: the second moment decays to zero if s₂ < 2λ, and no mesh resolves
    the density for long.

    Args:
        gen: generator, its drift and diffusion written with UFL.
        point: x*, shape (d,).
        distance: radius of the small sphere on which the quotients are taken; 1e-4 of the domain's extent without.

    Raises:
        ValueError: unsuitable point; tabulated coefficients.
    """
    d = gen.domain.dim
    x = as_points(point, d, "collapse: point")[0]
    locate(gen.domain.mesh, x[None], "collapse: point")  # an error outside the mesh
    rho = 1e-4 * _extent(gen) if distance is None else float(distance)
    values = _pointwise(gen)
    if values is None:
        raise ValueError("collapse: tabulated coefficients are not known close to the point; write them with UFL.")
    rays = directions(d)
    near = values(x + rho * rays)
    at = values(x[None])[0]
    pull = float((-(rays * near[:, :d]).sum(axis=1)).min()) / rho
    s2 = float(near[:, d].max()) / rho**2
    speed, noise = np.abs(near[:, :d]).max(), near[:, d].max()
    # at an interpolating point the noise is of second order in the distance, the drift of first
    stationary = bool(np.abs(at[:d]).max() <= 1e-3 * speed and at[d] <= 1e-3 * noise) and _second_order(
        values, x, rho, rays, d
    )
    rate = 2 * pull - s2 if stationary else np.nan
    report = Collapse(x, stationary, pull, s2 if stationary else np.inf, rate, bool(stationary and rate > 0))
    logger.info("%s", report)
    return report


def _second_order(values: Pointwise, x: np.ndarray, rho: float, rays: np.ndarray, d: int) -> bool:
    """Whether tr 2D falls at least like the square of the distance: on half the sphere to a quarter."""
    full, half = (values(x + r * rays)[:, d].max() for r in (rho, rho / 2))
    return bool(half <= 0.3 * full)
