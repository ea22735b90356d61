"""A loss landscape in one report: critical points, curvature, noise, exponents, and what SGD does around them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..._answer import Answer
from ...domains.domain import Domain
from ...evolution.evolution import Evolution
from ...montecarlo.ensemble import Ensemble
from ...montecarlo.estimates import Estimate
from ..concentration.contraction import Collapse
from ..concentration.decay import LossDecay, last_mean, loss_decay, predicted_decay
from ..landscape.critical import CriticalPoint, find_critical_points
from ..landscape.lojasiewicz import Exponent, exponent_at, largest_ball
from ..landscape.points import Loss, SampleLosses
from ..landscape.star import StarConvexity, survey
from ._ellipses import draw
from ._interpolating import collapse_at


@dataclass(frozen=True, eq=False)
class PointReport(Answer):
    """What the landscape is like at one critical point.

    Attributes:
        critical: the point, its Hessian H and covariance Σ.
        trace: tr H.
        determinant: det H.
        largest: largest eigenvalue of H.
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


@dataclass(frozen=True, eq=False)
class LandscapeReport(Answer):
    """All critical points of a loss on a domain, as a readable table and as a picture.

    Attributes:
        points: minima first, each index in ascending order of f.
        notes: what could not be determined, and why.
        steps: share of the algorithm's steps, with their own batches, that are star-convex about the minimum that
            ``simulate`` was given; None without.
        ensemble: the paths; None without.
    """

    points: tuple[PointReport, ...]
    notes: tuple[str, ...]
    steps: Estimate | None
    ensemble: Ensemble | None = field(repr=False)
    _loss: Loss = field(repr=False)
    _domain: Domain = field(repr=False)

    @property
    def minima(self) -> tuple[PointReport, ...]:
        """The minima, the deepest first; also degenerate ones, for which an exponent was found."""
        return tuple(p for p in self.points if p.critical.kind == "minimum" or p.exponent is not None)

    def __repr__(self) -> str:
        head = f"{'kind':<10} {'point':<26} {'f':>11} {'tr H':>10} {'det H':>10} {'max H':>10} {'tr Sigma':>10}"
        rows = [f"{head} {'align':>6} {'angle':>6}  theta"]
        rows += [_row(p) for p in self.points]
        rows += [_decay_text(p) for p in self.points if p.exponent is not None]
        rows += [f"paths that end near {_text(p.critical.point)}: {p.star}" for p in self.points if p.star is not None]
        if self.steps is not None:
            rows.append(
                f"steps with their own batches, about simulate's minimum: {self.steps.scaled(100)} % star-convex"
            )
        rows += [_collapse_text(p) for p in self.points if p.collapse is not None]
        return "\n".join([*rows, *self.notes])

    def plot(self, path: str | Path) -> Any:
        """Draw the loss with its critical points, in 2D with ellipses of curvature and noise (collective).

        An ellipse of curvature is a level line of the quadratic part of f, long where f is flat; one of noise has the
        square roots of Σ's eigenvalues as semi-axes.  Each kind has one scale for all points.  Further panels show what
        the report has of star-convexity along the paths, some of which are drawn, and of the decay of E f.

        Returns:
            The matplotlib figure on rank 0, None elsewhere.

        Raises:
            ValueError: three dimensions.
            ModuleNotFoundError: matplotlib is missing.
        """
        names = {_text(p.critical.point): p for p in self.points}
        stars = {name: p.star for name, p in names.items() if p.star is not None}
        decays = {name: p.decay for name, p in names.items() if p.decay is not None}
        return draw(self._loss, self._domain, [p.critical for p in self.points], self.ensemble, stars, decays, path)


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
    samples = _checked(process_or_loss, domain, exponents, ensemble, evolutions)
    loss = Loss(process_or_loss, domain)
    found = find_critical_points(loss, process_or_loss, domain)
    if not found:
        raise ValueError(
            "landscape: the loss has no critical point on the domain; its lowest values lie on the boundary. Take a "
            "larger domain."
        )
    notes: list[str] = []
    reports = []
    for c in found:
        others = [np.linalg.norm(np.subtract(c.point, o.point)) for o in found if o is not c]
        reach = min([0.1 * loss.extent, *(0.5 * float(r) for r in others)])
        exponent = _exponent(loss, domain, c, reach, seed, notes) if exponents else None
        collapse = collapse_at(process_or_loss, domain, c, reach)
        trace, determinant = float(np.trace(c.hessian)), float(np.linalg.det(c.hessian))
        reports.append(PointReport(c, trace, determinant, float(c.eigenvalues[-1]), *_alignment(c), exponent, collapse))
    minima = [k for k, r in enumerate(reports) if r.critical.kind == "minimum" or r.exponent]
    if not minima:
        notes.append("there is no minimum on the domain: f decreases towards its boundary")
    elif samples is not None and ensemble is not None and len(ensemble.times):
        _add_stars(reports, minima, samples, ensemble, domain, notes)
    for one in evolutions:
        _add_decay(reports, minima, one)
    steps = None if ensemble is None or ensemble.convexity is None else ensemble.star_convexity()
    return LandscapeReport(tuple(reports), tuple(notes), steps, ensemble, loss, domain)


def _checked(
    process: Any, domain: Domain, exponents: bool, ensemble: Any, evolutions: list[Any]
) -> SampleLosses | None:
    """The samples' losses if there is an ensemble (collective)."""
    if ensemble is not None:
        if not isinstance(ensemble, Ensemble):
            raise TypeError(f"landscape: ensemble is a {type(ensemble).__name__}; one of fp.simulate was expected.")
        if not len(ensemble.times) and ensemble.convexity is None:
            raise ValueError("landscape: the ensemble has no positions. Give simulate times=, or minimum=.")
        d = ensemble.exit_points.shape[1]
        if d != domain.dim:
            raise ValueError(f"landscape: the ensemble's paths have {d} coordinates, the domain has {domain.dim}.")
    for one in evolutions:
        if not isinstance(one, Evolution):
            raise TypeError(f"landscape: evolution is a {type(one).__name__}; one of fp.evolve was expected.")
        if one.generator.domain.dim != domain.dim:
            raise ValueError(
                f"landscape: the evolution has {one.generator.domain.dim} dimension(s), the domain {domain.dim}."
            )
    if evolutions and not exponents:
        raise ValueError("landscape: the decay of E f is predicted by exponents; evolution= needs exponents=True.")
    return None if ensemble is None else SampleLosses(process, domain.dim, domain.comm)


def _add_stars(
    reports: list[PointReport],
    minima: list[int],
    samples: SampleLosses,
    ensemble: Ensemble,
    domain: Domain,
    notes: list[str],
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
            reports[k] = replace(reports[k], star=survey(samples, centres[i], x[nearest == i], domain.comm))


def _add_decay(reports: list[PointReport], minima: list[int], evolution: Evolution) -> None:
    mean = last_mean(evolution)
    k = min(minima, key=lambda k: float(np.linalg.norm(mean - reports[k].critical.point)), default=None)
    exponent = None if k is None else reports[k].exponent
    if k is None or exponent is None:
        raise ValueError(f"landscape: the evolution ends about {_text(tuple(mean))}, where no exponent is known.")
    if reports[k].decay is not None:
        raise ValueError(f"landscape: two evolutions end near the minimum {_text(reports[k].critical.point)}.")
    reports[k] = replace(reports[k], decay=loss_decay(evolution, exponent))


def _exponent(
    loss: Loss, domain: Domain, c: CriticalPoint, reach: float, seed: int, notes: list[str]
) -> Exponent | None:
    if c.kind not in ("minimum", "degenerate"):
        return None
    x = np.array(c.point)
    try:
        return exponent_at(loss, domain, x, largest_ball(domain, x, reach), seed)
    except ValueError as problem:  # the same on all ranks
        notes.append(f"no exponent at {_text(c.point)}: {problem}")
        return None


def _alignment(c: CriticalPoint) -> tuple[float, float]:
    """tr(HΣ)/(|H| |Σ|) and the angle between leading eigenvectors in degrees."""
    nothing = float("nan")
    if c.covariance is None:
        return nothing, nothing
    sizes = float(np.linalg.norm(c.hessian) * np.linalg.norm(c.covariance))
    if sizes <= 1e-280:
        return nothing, nothing
    alignment = float(np.sum(c.hessian * c.covariance)) / sizes
    leading = []
    for matrix in (c.hessian, c.covariance):
        values, vectors = np.linalg.eigh(matrix)
        if len(values) > 1 and values[-1] - values[-2] <= 1e-8 * np.abs(values).max():
            return alignment, nothing
        leading.append(vectors[:, -1])
    return alignment, float(np.degrees(np.arccos(min(1.0, abs(leading[0] @ leading[1])))))


def _row(p: PointReport) -> str:
    c = p.critical
    noise = "-" if c.covariance is None else f"{np.trace(c.covariance):.3e}"
    numbers = f"{c.value:11.4g} {p.trace:10.4g} {p.determinant:10.4g} {p.largest:10.4g} {noise:>10}"
    theta = "-" if p.exponent is None else f"{p.exponent}".removeprefix("theta = ")
    return f"{c.kind:<10} {_text(c.point):<26} {numbers} {_or_dash(p.alignment, 3)} {_or_dash(p.angle, 1)}  {theta}"


def _decay_text(p: PointReport) -> str:
    assert p.exponent is not None
    law, value, (low, high) = predicted_decay(p.exponent)
    how = f"1/t^{value:.4g} [{low:.4g}, {high:.4g}]"
    if law == "exponential":
        how = f"exponential, rate {value:.4g} or more"
    line = f"decay of E f near {_text(p.critical.point)}: {how} without noise"
    if p.decay is None:
        return line
    if np.isnan(p.decay.measured):
        return f"{line}; not measured, the drift rules at {p.decay.regime.sum()} of {len(p.decay.times)} times only"
    low, high = p.decay.measured_interval
    return f"{line}; measured by the PDE {p.decay.measured:.4g} [{low:.4g}, {high:.4g}]"


def _collapse_text(p: PointReport) -> str:
    c = p.collapse
    assert c is not None
    line = f"Sigma = 0 at the {p.critical.kind} {_text(p.critical.point)}: "
    if not c.stationary:
        return line + "more slowly than the square of the distance, no rate of collapse is known"
    verdict = "the law collapses to it" if c.collapses else "no collapse in mean square"
    return f"{line}2 pull - noise = 2 x {c.pull:.4g} - {c.relative_noise:.4g} = {c.rate:.4g}: {verdict}"


def _or_dash(value: float, digits: int) -> str:
    return f"{'-':>6}" if np.isnan(value) else f"{value:6.{digits}f}"


def _text(point: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{c + 0.0:.5g}" for c in np.round(point, 12)) + ")"
