"""The first phase: how the law concentrates near the minima, from one initial law, or backward for all at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..._answer import Answer, place
from ..._arguments import check_positive, expect
from ..._log import logger
from ..._petsc import Options
from ...discretisation.assembly import to_function, to_vector
from ...discretisation.generator import Generator
from ...discretisation.solution import as_points, locate
from ...evolution.evolution import Evolution
from ...evolution.evolve import backward
from ...evolution.initial import project
from ..sampling import Array
from ._regions import Flow, ball_load, basin_loads
from .contraction import Collapse, Contraction, collapse, contraction, widest_contraction
from .regime import loss_expression, loss_moments


@dataclass(frozen=True)
class Concentration(Answer):
    """What :func:`concentration` finds at n times, around k minima, in r balls each.

    Attributes:
        times, minima, radii: shapes (n,), (k, d) and (r,).
        ball_mass: P(|X_t − x*| < radius), shape (n, k, r).
        ball_error: estimated error by which the balls' boundaries are missed inside cells, largest over all.
        basin_mass, basin_error: the same for basins of attraction, shape (n, k + 1), the last column being what belongs
            to none; None unless asked for.
        second_moment: ∫ |x − x*|² p over the domain, shape (n, k).
        local_moment: the same over the ball of radius R in which λ and S are measured, shape (n, k).
        contraction: λ, S and R for each minimum.
        moment_bound: e^{−2λt} m₂ + S (1 − e^{−2λt})/2λ from the local moment at the first time, shape (n, k);
            NaN unless λ > 0.  It bounds the local moment of the process killed on leaving the ball of radius R, and
            that of the process itself where ``contraction[i].whole``.
        mass_bound: a lower bound of ``ball_mass``, for the process itself, shape (n, k, r).
        collapse: for each minimum at which the noise vanishes what becomes of the law there, None at the others.
        mean_loss, variance_loss: of f(X_t), shape (n,); None without a loss.
        drift_rate, diffusion_rate: E b·∇f and E D:∇∇f, whose sum is d/dt E f, shape (n,); None without a loss.
    """

    times: np.ndarray
    minima: np.ndarray
    radii: np.ndarray
    ball_mass: np.ndarray
    ball_error: float
    basin_mass: np.ndarray | None
    basin_error: float | None
    second_moment: np.ndarray
    local_moment: np.ndarray
    contraction: tuple[Contraction, ...]
    moment_bound: np.ndarray
    mass_bound: np.ndarray
    collapse: tuple[Collapse | None, ...]
    mean_loss: np.ndarray | None
    variance_loss: np.ndarray | None
    drift_rate: np.ndarray | None
    diffusion_rate: np.ndarray | None

    def __repr__(self) -> str:
        lines = []
        for k, minimum in enumerate(self.minima):
            lines += [f"within {', '.join(f'{r:g}' for r in self.radii)} of {tuple(map(float, minimum))}:"]
            for i, t in enumerate(self.times):
                masses = ", ".join(f"{m:.4f}" for m in self.ball_mass[i, k])
                moments = f"m2 {self.local_moment[i, k]:.3e} (bound {self.moment_bound[i, k]:.3e})"
                lines.append(f"  t = {t:<10.4g} mass {masses}   {moments}")
            if self.collapse[k] is not None:
                lines.append(f"  {self.collapse[k]}")
        return "\n".join(lines)

    def time_to(self, mass: float, minimum: int = 0, radius: int = 0) -> float:
        """First time at which a ball holds ``mass``, interpolated between the times; NaN if it never does."""
        return _first_zero(self.times, self.ball_mass[:, minimum, radius] - mass)

    @property
    def drift_regime_end(self) -> float:
        """First time at which diffusion undoes half of what the drift gains: |E D:∇∇f| ≥ ½ |E b·∇f|; NaN if never."""
        if self.drift_rate is None or self.diffusion_rate is None:
            raise ValueError("drift_regime_end: there was no loss; give one by concentration(..., loss=).")
        return _first_zero(self.times, np.abs(self.diffusion_rate) - 0.5 * np.abs(self.drift_rate))


def _first_zero(times: Array, excess: Array) -> float:
    """First zero of a function given at times, by linear interpolation; NaN if it stays negative."""
    if not (excess >= 0).any():
        return float(np.nan)
    i = int(np.argmax(excess >= 0))
    ends = slice(max(i - 1, 0), i + 1)
    return float(np.interp(0.0, excess[ends], times[ends]))


def concentration(
    evolution: Evolution,
    minima: Any,
    radius: float | Sequence[float],
    *,
    loss: Any = None,
    attraction: float | None = None,
    basins: bool = True,
) -> Concentration:
    """Follow how an evolving law concentrates (collective).

    The bounds follow from L|x − x*|² = 2 (x − x*)·b + tr 2D ≤ −2λ|x − x*|² + S by Gronwall and Chebyshev; they need no
    ellipticity.

    Around the ``minima`` x*, shape (k, d), in balls of one radius or several; of the ``loss`` f, a scalar source of all
    coordinates, by default that of the process.  ``attraction`` is R, the radius of the balls in which λ and S are
    measured: by default half the distance to the next minimum (with one: that to the farthest corner of the domain),
    halved until λ > 0, at most six times.  Finding ``basins`` needs a drift written with UFL.

    Raises:
        ValueError: not densities; unsuitable minima or radii; a point that does not attract; a tabulated drift.
    """
    gen, times = evolution.generator, evolution.times
    if evolution.name != "density":
        raise ValueError("concentration: an evolution of densities was expected, from fp.evolve; see its dual below.")
    points = as_points(minima, gen.domain.dim, "concentration: minima")
    radii = _radii(radius)
    locate(gen.domain.mesh, points, "concentration: minima")
    vectors = [to_vector(gen, solution.raw) for solution in evolution]
    of = lambda load: np.array([v.dot(load) for v in vectors])  # noqa: E731
    found = tuple(
        widest_contraction(gen, points, i) if attraction is None else contraction(gen, x, radius=attraction)
        for i, x in enumerate(points)
    )
    balls = [[ball_load(gen, x, r) for r in radii] for x in points]
    mass = np.array([[of(fine) for fine, _ in row] for row in balls]).transpose(2, 0, 1)
    error = max(float(np.abs(of(change)).max()) for row in balls for _, change in row)
    basin_mass: Array | None = None
    basin_error: float | None = None
    if basins:
        fine, change = basin_loads(gen, Flow(gen, points))
        basin_mass, basin_error = np.array([*map(of, fine)]).T, float(np.abs([*map(of, change)]).max())
    columns = []  # of each minimum: second moments over the domain and the ball of attraction, the latter's mass
    for x, c in zip(points, found, strict=True):
        square = lambda y, x=x: ((y - x) ** 2).sum(axis=2)  # noqa: E731
        balls_of = ((np.inf, square), *((np.inf if c.whole else c.radius, g) for g in (square, None)))
        columns.append([of(ball_load(gen, x, r, g)[0]) for r, g in balls_of])
    moments, local, inside = np.array(columns).transpose(1, 2, 0)
    bounds = _bounds(times, local[0], inside[0], found, radii)
    collapses = tuple(collapse(gen, c.point) if np.isfinite(c.relative_noise) else None for c in found)
    for x, report in zip(points, collapses, strict=True):
        if report is not None and report.collapses:
            logger.warning(
                "concentration: the noise vanishes at %s and the law collapses onto it, E|X - x*|^2 like e^(-%.4g t); "
                "masses and moments remain meaningful, the density as a function does not", place(x), report.rate
            )  # fmt: skip
    f = loss_expression(gen, loss, "concentration: loss")
    statistics = (None,) * 4 if f is None else tuple(loss_moments(evolution, f, "concentration"))
    return Concentration(
        times, points, radii, mass, error, basin_mass, basin_error, moments, local, found, *bounds, collapses,
        *statistics,
    )  # fmt: skip


def concentration_backward(
    gen: Generator, point: Any, radius: float, times: Any, *, time_rtol: float = 1e-6, options: Options | None = None
) -> Evolution:
    """u(t, x) = P(|X_t − x*| < r; not absorbed until t | X₀ = x): concentration for all initial laws (collective).

    One backward evolution from the indicator function of the ball, whose projection overshoots at the sphere at t = 0;
    for any initial density ∫ u(t) p₀ is what :func:`concentration` finds.  The rest as in :func:`fpsolver.backward`.

    Raises:
        ValueError: unsuitable point, radius or times; scheme ``weighted``.
    """
    x = as_points(point, gen.domain.dim, "concentration_backward: point")[0]
    (r,) = _radii(radius)
    if not gen.weak.scheme.unknown_is_density:
        raise ValueError("concentration_backward: the scheme is 'weighted'; 'galerkin' or 'dg' was expected.")
    indicator = to_function(gen, project(gen, ball_load(gen, x, r)[0]))
    return backward(gen, indicator, times, time_rtol=time_rtol, options=options)


def _radii(radius: Any) -> Array:
    values = np.atleast_1d(radius).tolist()
    expect("radius", radius, "a positive number, or several,", values)
    return np.array([check_positive("radius", r) for r in values])


def _bounds(
    times: Array, local: Array, inside: Array, found: Sequence[Contraction], radii: Array
) -> tuple[Array, Array]:
    """Upper bounds of the killed process' second moments and lower bounds of the masses in balls."""
    t = times - times[0]
    moment = np.stack([c.bound(t, m2) for c, m2 in zip(found, local, strict=True)], axis=1)
    noise, reach = (np.array([getattr(c, name) for c in found]) for name in ("noise", "radius"))
    # E|X − x*|² grows at most by S per time until the exit, at which it is R²
    leaves = np.where([c.whole for c in found], 0.0, (local + noise * t[:, None]) / reach**2)
    mass = (inside - leaves)[:, :, None] - moment[:, :, None] / radii**2
    return moment, np.maximum(np.where(radii <= reach[:, None], mass, np.nan), 0.0)
