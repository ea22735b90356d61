"""A loss landscape in one report: critical points with curvature, noise, flatness, alignment and exponents."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..domains.domain import Domain
from ..models.process import SGD
from ._ellipses import draw
from ._points import Loss, covariance_at
from .critical import CriticalPoint, find_critical_points
from .lojasiewicz import Exponent, exponent_at, largest_ball

_ZERO = 1e-10
"""tr Σ at a minimum is nothing if it is below this share of what it is at a distance."""


@dataclass(frozen=True)
class Interpolation:
    """A minimum without noise, Σ = 0: whether the law collapses to it.

    If tr Σ(x) ≤ s2 |x − x*|² and (x − x*)·∇f ≥ λ |x − x*|² then E|X − x*|² ≤ e^{−(2λ − ηs2/B)t} |x₀ − x*|², by Itô's
    formula: the density concentrates in the point.

    Attributes:
        s2: limsup of tr Σ(x)/|x − x*|² as x → x*; inf where Σ vanishes more slowly.
        curvature: λ, the smallest eigenvalue of the Hessian.
        rate: 2λ − η s2/B, at which E|X − x*|² decays near the point.
        collapses: η s2/B < 2λ.
    """

    s2: float
    curvature: float
    rate: float
    collapses: bool


@dataclass(frozen=True, eq=False)
class PointReport:
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
        interpolation: None unless it is a minimum with Σ = 0.
    """

    critical: CriticalPoint
    trace: float
    determinant: float
    largest: float
    alignment: float
    angle: float
    exponent: Exponent | None
    interpolation: Interpolation | None


@dataclass(frozen=True, eq=False)
class LandscapeReport:
    """All critical points of a loss on a domain, as a readable table and as a picture.

    Attributes:
        points: minima first, each index in ascending order of f.
        notes: what could not be determined, and why.
    """

    points: tuple[PointReport, ...]
    notes: tuple[str, ...]
    _loss: Loss = field(repr=False)
    _domain: Domain = field(repr=False)

    @property
    def minima(self) -> tuple[PointReport, ...]:
        """The minima, the deepest first; also degenerate ones, for which an exponent was found."""
        return tuple(p for p in self.points if p.critical.kind == "minimum" or p.exponent is not None)

    def __str__(self) -> str:
        head = f"{'kind':<10} {'point':<26} {'f':>11} {'tr H':>10} {'det H':>10} {'max H':>10} {'tr Sigma':>10}"
        rows = [f"{head} {'align':>6} {'angle':>6}  theta"]
        rows += [_row(p) for p in self.points]
        for p in self.points:
            if p.interpolation is not None:
                i = p.interpolation
                verdict = "the law collapses to it" if i.collapses else "the noise keeps the law from collapsing"
                rows.append(
                    f"interpolation at {_text(p.critical.point)}: s2 = {i.s2:.4g}, lambda = {i.curvature:.4g}, "
                    f"2 lambda - eta s2/B = {i.rate:.4g}: {verdict}"
                )
        return "\n".join([*rows, *self.notes])

    def plot(self, path: str | Path) -> Any:
        """Draw the loss with its critical points, in 2D with ellipses of curvature and noise (collective).

        An ellipse of curvature is a level line of the quadratic part of f, long where f is flat; one of noise has the
        square roots of Σ's eigenvalues as semi-axes.  Each kind has one scale for all points.

        Returns:
            The matplotlib figure on rank 0, None elsewhere.

        Raises:
            ValueError: three dimensions.
            ModuleNotFoundError: matplotlib is missing.
        """
        return draw(self._loss, self._domain, [p.critical for p in self.points], path)


def landscape(process_or_loss: Any, domain: Domain, exponents: bool = True, seed: int = 0) -> LandscapeReport:
    """Critical points with Hessian, noise, flatness, alignment, Łojasiewicz exponents and collapse (collective).

    Args:
        process_or_loss: as in :func:`~fpsolver.diagnostics.critical_points`; only ``SGD`` has a covariance.
        domain: where to look.
        exponents: whether to estimate them, at about 1e5 evaluations of the loss for each minimum.
        seed: of their search.

    Raises:
        TypeError: a process without a loss.
        ValueError: no critical point, or a valley of them.
    """
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
        minimum = c.kind == "minimum" or exponent is not None
        interpolation = _interpolation(process_or_loss, domain, c, reach) if minimum else None
        trace, determinant = float(np.trace(c.hessian)), float(np.linalg.det(c.hessian))
        reports.append(
            PointReport(c, trace, determinant, float(c.eigenvalues[-1]), *_alignment(c), exponent, interpolation)
        )
    if not any(r.critical.kind == "minimum" or r.exponent for r in reports):
        notes.append("there is no minimum on the domain: f decreases towards its boundary")
    return LandscapeReport(tuple(reports), tuple(notes), loss, domain)


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


def _interpolation(process: Any, domain: Domain, c: CriticalPoint, reach: float) -> Interpolation | None:
    """Collective.  The limit is extrapolated from second differences of tr Σ, which are even in the step."""
    if not isinstance(process, SGD) or c.covariance is None:
        return None
    d, x = domain.dim, np.array(c.point)
    pairs = [(i, j) for i in range(d) for j in range(i)]
    directions = np.array([*np.eye(d), *((np.eye(d)[i] + np.eye(d)[j]) / np.sqrt(2) for i, j in pairs)])
    steps = reach * np.array([1.0, 2e-3, 1e-3])
    y = x + (steps[:, None, None, None] * np.stack([directions, -directions])).reshape(-1, d)
    Sigma = covariance_at(process, y, domain.comm)
    assert Sigma is not None
    far, coarse, fine = np.trace(Sigma, axis1=1, axis2=2).reshape(3, 2, -1).mean(axis=1)
    if not np.trace(c.covariance) <= _ZERO * far.max() or far.max() == 0:
        return None
    ratios = coarse / steps[1] ** 2, fine / steps[2] ** 2
    if ratios[1].max() > 1.1 * ratios[0].max():  # Σ vanishes like |x − x*|^p with p < 2
        s2 = float("inf")
    else:
        q = (4 * ratios[1] - ratios[0]) / 3
        Q = np.diag(q[:d])
        for k, (i, j) in enumerate(pairs):
            Q[i, j] = Q[j, i] = q[d + k] - 0.5 * (q[i] + q[j])
        s2 = max(0.0, float(np.linalg.eigvalsh(Q)[-1]))
    smallest = float(c.eigenvalues[0]) if c.kind == "minimum" else 0.0
    rate = 2 * smallest - process.learning_rate * s2 / process.batch_size
    return Interpolation(s2, smallest, rate, rate > 0)


def _row(p: PointReport) -> str:
    c = p.critical
    noise = "-" if c.covariance is None else f"{np.trace(c.covariance):.3e}"
    numbers = f"{c.value:11.4g} {p.trace:10.4g} {p.determinant:10.4g} {p.largest:10.4g} {noise:>10}"
    theta = "-" if p.exponent is None else f"{p.exponent}".removeprefix("theta = ")
    return f"{c.kind:<10} {_text(c.point):<26} {numbers} {_or_dash(p.alignment, 3)} {_or_dash(p.angle, 1)}  {theta}"


def _or_dash(value: float, digits: int) -> str:
    return f"{'-':>6}" if np.isnan(value) else f"{value:6.{digits}f}"


def _text(point: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{c + 0.0:.5g}" for c in np.round(point, 12)) + ")"
