"""A loss landscape in one report: critical points, curvature, noise, exponents, and what SGD does around them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..._answer import Answer, place
from ...domains.domain import Domain
from ...evolution.evolution import Evolution
from ...models.sgd import SGD
from ...montecarlo.ensemble import Ensemble
from ...montecarlo.estimates import Estimate
from ..concentration.contraction import Collapse
from ..concentration.regime import LossDecay, last_mean, loss_decay, predicted_decay
from ..landscape.critical import CriticalPoint, find_critical_points
from ..landscape.lojasiewicz import Exponent, exponent_at, largest_ball
from ..landscape.points import Loss, SampleLosses, covariance_at
from ..landscape.star import StarConvexity, survey
from ..sampling import relative_noise
from ._ellipses import draw


@dataclass(frozen=True, eq=False)
class PointReport(Answer):
    """What the landscape is like at one critical point.

    Attributes:
        critical: the point, its Hessian H and covariance Σ.
        trace, determinant, largest: tr H, det H, and the largest eigenvalue of H.
        alignment: tr(HΣ)/(|H| |Σ|), Frobenius norms: 1 if noise and curvature are proportional; nan without noise.
        angle: between the leading eigenvectors of H and Σ, in degrees from 0 to 90; nan without noise, or where one of
            them is not unique.
        exponent: Łojasiewicz exponent with interval; None unless it is a minimum inside the domain.
        collapse: whether the law collapses to the point, as in :func:`~fpsolver.diagnostics.collapse`; None where
            Σ ≠ 0.  With samples all their gradients vanish here: at a minimum they are interpolated.
        decay: predicted and measured decay of E f, of the evolution whose mass ends here; None without one.
        star: star-convexity about this point along the paths of the ensemble that end here; None without any.
    """

    critical: CriticalPoint
    trace: float
    determinant: float
    largest: float
    alignment: float
    angle: float
    exponent: Exponent | None
    collapse: Collapse | None
    decay: LossDecay | None = None
    star: StarConvexity | None = None

    @property
    def place(self) -> str:
        """Where it is, in five digits."""
        return _text(self.critical.point)


@dataclass(frozen=True, eq=False)
class LandscapeReport(Answer):
    """All critical points of a loss on a domain, as a readable table and as a picture.

    Attributes:
        points: minima first, each index in ascending order of f.
        notes: what could not be determined, and why.
        steps: share of the algorithm's steps, with their own batches, that are star-convex about the minimum that
            ``simulate`` was given; None without.
        ensemble, loss: the paths, None without; f at points of the domain.
    """

    points: tuple[PointReport, ...]
    notes: tuple[str, ...]
    steps: Estimate | None
    ensemble: Ensemble | None = field(repr=False)
    loss: Loss = field(repr=False)

    @property
    def minima(self) -> tuple[PointReport, ...]:
        """The minima, the deepest first; also degenerate ones, for which an exponent was found."""
        return tuple(p for p in self.points if p.critical.kind == "minimum" or p.exponent is not None)

    def __repr__(self) -> str:
        head = f"{'kind':<10} {'point':<26} {'f':>11} {'tr H':>10} {'det H':>10} {'max H':>10} {'tr Sigma':>10}"
        rows = [f"{head} {'align':>6} {'angle':>6}  theta"]
        rows += [_row(p) for p in self.points]
        rows += [_decay_text(p, p.exponent) for p in self.points if p.exponent is not None]
        rows += [f"paths that end near {p.place}: {p.star}" for p in self.points if p.star is not None]
        if self.steps is not None:
            share = self.steps.scaled(100)
            rows.append(f"steps with their own batches, about simulate's minimum: {share} % star-convex")
        rows += [_collapse_text(p, p.collapse) for p in self.points if p.collapse is not None]
        return "\n".join([*rows, *self.notes])

    def plot(self, path: str | Path) -> Any:
        """Draw the loss with its critical points, in 2D with ellipses of curvature and noise (collective).

        An ellipse of curvature is a level line of the quadratic part of f, long where f is flat; one of noise has the
        square roots of Σ's eigenvalues as semi-axes.  Each kind has one scale for all points.  Further panels show what
        the report has of star-convexity along the paths, some of which are drawn, and of the decay of E f.

        Returns the matplotlib figure on rank 0, None elsewhere.

        Raises:
            ValueError: three dimensions.
        """
        return draw(self, path)


def landscape(
    process_or_loss: Any,
    domain: Domain,
    *,
    exponents: bool = True,
    seed: int = 0,
    ensemble: Ensemble | None = None,
    evolution: Evolution | Sequence[Evolution] = (),
) -> LandscapeReport:
    """Critical points with Hessian, noise, flatness, alignment, Łojasiewicz exponents and collapse (collective).

    Args:
        process_or_loss: as in :func:`~fpsolver.diagnostics.critical_points`; only ``SGD`` has a covariance.
        domain: where to look.
        exponents: whether to estimate them, at about 1e5 evaluations of the loss for each minimum.
        seed: of their search.
        ensemble: paths of ``fp.simulate`` with ``times=`` (every pair of a recorded position and a sample is tested for
            star-convexity about the minimum nearest to the path's last position), or with ``minimum=`` (every step
            of the algorithm with its own batch), or both; a process with ``PerSample`` noise.
        evolution: of :func:`~fpsolver.evolve`, one or several; the decay of E f is measured on each, for the minimum
            nearest to its last mean.

    Raises:
        TypeError: a process without a loss; with an ensemble, one without per-sample losses.
        ValueError: no critical point, or a valley of them; paths of another dimension, without records or all of which
            leave; an evolution for which no exponent is there, or whose mass does not stay near a minimum.
    """
    evolutions = list(evolution) if isinstance(evolution, list | tuple) else [evolution]
    _check(domain, ensemble, evolutions)
    if evolutions and not exponents:
        raise ValueError("landscape: the decay of E f is predicted by exponents; evolution= needs exponents=True.")
    samples = None if ensemble is None else SampleLosses(process_or_loss, domain.dim, domain.comm)
    loss = Loss(process_or_loss, domain)
    found = find_critical_points(loss, process_or_loss)
    if not found:
        raise ValueError(
            "landscape: the loss has no critical point on the domain; its lowest values lie on the boundary. Take a "
            "larger domain."
        )
    notes: list[str] = []
    reports: list[PointReport] = []
    for c in found:
        others = [np.linalg.norm(np.subtract(c.point, o.point)) for o in found if o is not c]
        reach = min([0.1 * loss.extent, *(0.5 * float(r) for r in others)])
        exponent = _exponent(loss, c, reach, seed, notes) if exponents else None
        collapse = _collapse(process_or_loss, domain, c, 2e-3 * reach)
        trace, determinant = float(np.trace(c.hessian)), float(np.linalg.det(c.hessian))
        reports.append(PointReport(c, trace, determinant, float(c.eigenvalues[-1]), *_alignment(c), exponent, collapse))
    minima = [k for k, r in enumerate(reports) if r.critical.kind == "minimum" or r.exponent]
    if not minima:
        notes.append("there is no minimum on the domain: f decreases towards its boundary")
    elif samples is not None and ensemble is not None and len(ensemble.times):
        _add_stars(reports, minima, samples, ensemble, notes)
    for one in evolutions:
        _add_decay(reports, minima, one)
    steps = None if ensemble is None or ensemble.convexity is None else ensemble.star_convexity()
    return LandscapeReport(tuple(reports), tuple(notes), steps, ensemble, loss)


def _check(domain: Domain, ensemble: Any, evolutions: list[Any]) -> None:
    given = [] if ensemble is None else [("ensemble", ensemble, Ensemble, "fp.simulate")]
    for name, one, kind, verb in given + [("evolution", e, Evolution, "fp.evolve") for e in evolutions]:
        if not isinstance(one, kind):
            raise TypeError(f"landscape: {name} is a {type(one).__name__}; one of {verb} was expected.")
        d = one.generator.domain.dim if isinstance(one, Evolution) else one.exit_points.shape[1]
        if d != domain.dim:
            raise ValueError(f"landscape: the {name} has {d} dimension(s), the domain has {domain.dim}.")
    if ensemble is not None and not len(ensemble.times) and ensemble.convexity is None:
        raise ValueError("landscape: the ensemble has no positions. Give simulate times=, or minimum=.")


def _add_stars(
    reports: list[PointReport], minima: list[int], samples: SampleLosses, ensemble: Ensemble, notes: list[str]
) -> None:
    x = ensemble.positions.transpose(1, 0, 2)
    stay = np.asarray(np.isfinite(x).all(axis=(1, 2)))
    if not stay.any():
        raise ValueError(
            "landscape: no path of the ensemble stays on the domain until its last recorded time. Record earlier times."
        )
    if not stay.all():
        notes.append(f"{(~stay).sum()} of {len(stay)} paths left before the last recorded time and are not counted")
    x, centres = x[stay], np.array([reports[k].critical.point for k in minima])
    nearest = np.argmin(np.linalg.norm(x[:, -1, None] - centres, axis=2), axis=1)
    for i, k in enumerate(minima):
        if (nearest == i).any():
            reports[k] = replace(reports[k], star=survey(samples, centres[i], x[nearest == i], samples.comm))


def _add_decay(reports: list[PointReport], minima: list[int], evolution: Evolution) -> None:
    mean = last_mean(evolution)
    k = min(minima, key=lambda k: float(np.linalg.norm(mean - reports[k].critical.point)), default=None)
    exponent = None if k is None else reports[k].exponent
    if k is None or exponent is None:
        raise ValueError(f"landscape: the evolution ends about {_text(tuple(mean))}, where no exponent is known.")
    if reports[k].decay is not None:
        raise ValueError(f"landscape: two evolutions end near the minimum {_text(reports[k].critical.point)}.")
    reports[k] = replace(reports[k], decay=loss_decay(evolution, exponent))


def _exponent(loss: Loss, c: CriticalPoint, reach: float, seed: int, notes: list[str]) -> Exponent | None:
    if c.kind not in ("minimum", "degenerate"):
        return None
    x = np.array(c.point)
    try:
        return exponent_at(loss, x, largest_ball(loss.domain, x, reach), seed)
    except ValueError as problem:  # the same on all ranks
        notes.append(f"no exponent at {_text(c.point)}: {problem}")
        return None


def _collapse(process: Any, domain: Domain, c: CriticalPoint, rho: float) -> Collapse | None:
    """What :func:`~fpsolver.diagnostics.collapse` tells, from H and Σ alone; None where Σ ≠ 0 (collective)."""
    if not isinstance(process, SGD) or c.covariance is None:
        return None

    def noise(y: np.ndarray) -> np.ndarray:
        """Of tr 2D; losses of PyTorch and JAX need no tabulation for it."""
        Sigma = covariance_at(process, y, domain.comm)
        assert Sigma is not None  # as at the point itself
        return process.learning_rate / process.batch_size * np.trace(Sigma, axis1=1, axis2=2)

    x = np.array(c.point)
    at, *near = noise(x + rho * np.array([np.zeros(domain.dim), *np.eye(domain.dim), *-np.eye(domain.dim)]))
    if at > 1e-3 * max(near) or max(near) == 0:
        return None
    pull = 0.0 if c.kind == "degenerate" and c.index == 0 else float(c.eigenvalues[0])
    return Collapse.at(x, pull, relative_noise(noise, x, rho))


def _alignment(c: CriticalPoint) -> tuple[float, float]:
    """tr(HΣ)/(|H| |Σ|) and the angle between leading eigenvectors in degrees."""
    nothing = float("nan")
    sizes = 0.0 if c.covariance is None else float(np.linalg.norm(c.hessian) * np.linalg.norm(c.covariance))
    if c.covariance is None or sizes <= 1e-280:
        return nothing, nothing
    alignment = float(np.sum(c.hessian * c.covariance)) / sizes
    (a, A), (b, B) = (np.linalg.eigh(matrix) for matrix in (c.hessian, c.covariance))
    if any(len(v) > 1 and v[-1] - v[-2] <= 1e-8 * np.abs(v).max() for v in (a, b)):
        return alignment, nothing
    return alignment, float(np.degrees(np.arccos(min(1.0, abs(A[:, -1] @ B[:, -1])))))


def _row(p: PointReport) -> str:
    c = p.critical
    noise = "-" if c.covariance is None else f"{np.trace(c.covariance):.3e}"
    numbers = f"{c.value:11.4g} {p.trace:10.4g} {p.determinant:10.4g} {p.largest:10.4g} {noise:>10}"
    theta = "-" if p.exponent is None else f"{p.exponent}".removeprefix("theta = ")
    alignment, angle = (f"{v:6.{k}f}" if np.isfinite(v) else f"{'-':>6}" for v, k in ((p.alignment, 3), (p.angle, 1)))
    return f"{c.kind:<10} {p.place:<26} {numbers} {alignment} {angle}  {theta}"


def _decay_text(p: PointReport, exponent: Exponent) -> str:
    law, value, (low, high) = predicted_decay(exponent)
    how = f"1/t^{value:.4g} [{low:.4g}, {high:.4g}]"
    if law == "exponential":
        how = f"exponential, rate {value:.4g} or more"
    line = f"decay of E f near {p.place}: {how} without noise"
    if p.decay is None:
        return line
    if np.isnan(p.decay.measured):
        return f"{line}; not measured, the drift rules at {p.decay.regime.sum()} of {len(p.decay.times)} times only"
    low, high = p.decay.measured_interval
    return f"{line}; measured by the PDE {p.decay.measured:.4g} [{low:.4g}, {high:.4g}]"


def _collapse_text(p: PointReport, c: Collapse) -> str:
    line = f"Sigma = 0 at the {p.critical.kind} {p.place}: "
    if not c.stationary:
        return line + "more slowly than the square of the distance, no rate of collapse is known"
    verdict = "the law collapses to it" if c.collapses else "no collapse in mean square"
    return f"{line}2 pull - noise = 2 x {c.pull:.4g} - {c.relative_noise:.4g} = {c.rate:.4g}: {verdict}"


def _text(point: Any) -> str:
    return place(np.round(point, 12) + 0.0, 5)
