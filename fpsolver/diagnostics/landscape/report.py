"""A loss landscape in one report: critical points, curvature, noise and exponents."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from dolfinx import fem

from ... import plot
from ..._answer import Answer, place
from ..._errors import on_root
from ...domains.domain import Domain
from .critical import CriticalPoint, find_critical_points
from .lojasiewicz import exponent_at, largest_ball
from .points import Loss

_MARKS = {"minimum": ("o", "white"), "saddle": ("X", "tab:orange"), "maximum": ("^", "tab:red")}


@dataclass(frozen=True, eq=False)
class LandscapeReport(Answer):
    """All critical points of a loss on a domain, as a readable table and as a picture.

    Attributes:
        points: minima first, each index in ascending order of f.
        notes: what could not be determined, and why.
        loss: f at points of the domain.
    """

    points: tuple[CriticalPoint, ...]
    notes: tuple[str, ...]
    loss: Loss = field(repr=False)

    @property
    def minima(self) -> tuple[CriticalPoint, ...]:
        """The minima, the deepest first; also degenerate ones, for which an exponent was found."""
        return tuple(c for c in self.points if c.kind == "minimum" or c.exponent is not None)

    def __repr__(self) -> str:
        head = f"{'kind':<10} {'point':<26} {'f':>11} {'tr H':>10} {'det H':>10} {'max H':>10} {'tr Sigma':>10}"
        rows = [f"{head} {'align':>6}  theta"]
        for c in self.points:
            size = np.trace(c.hessian), np.linalg.det(c.hessian), c.eigenvalues[-1]
            cells = f"{c.value:11.4g} " + " ".join(f"{v:10.4g}" for v in size)
            noise = "-" if c.covariance is None else f"{np.trace(c.covariance):.3e}"
            align = f"{c.alignment:6.3f}" if np.isfinite(c.alignment) else f"{'-':>6}"
            theta = "-" if c.exponent is None else f"{c.exponent}".removeprefix("theta = ")
            rows.append(f"{c.kind:<10} {_text(c.point):<26} {cells} {noise:>10} {align}  {theta}")
        return "\n".join([*rows, *self.notes])

    def plot(self, path: str | Path) -> Any:
        """Draw the loss with its critical points, in 2D with ellipses of curvature and noise (collective).

        An ellipse of curvature is a level line of the quadratic part of f, long where f is flat; one of noise has the
        square roots of Σ's eigenvalues as semi-axes.  Returns the matplotlib figure on rank 0, None elsewhere.
        """
        loss, domain, points = self.loss, self.loss.domain, self.points
        if domain.dim > 2:
            raise ValueError("a landscape is drawn in one and two dimensions; in three, plot slices of the loss.")
        f = fem.Function(fem.functionspace(domain.mesh, ("Lagrange", 4)), name="loss")
        f.x.array[:] = loss.first(f.function_space.tabulate_dof_coordinates()[:, : domain.dim])[0]
        low, high = min(c.value for c in points), max(c.value for c in points)
        everywhere = np.concatenate(domain.comm.allgather(f.x.array))
        top = min(high + 1.5 * (high - low), float(everywhere.max()))
        if high - low <= 1e-3 * np.ptp(everywhere):  # one point, or points of one height, fix no scale
            top = float(np.quantile(everywhere, 0.7))
        options: dict[str, Any] = {"contours": 25} if domain.dim == 2 else {}
        figure = plot.field(f, None, limits=(low, top), cmap="Blues_r", label="loss $f$", **options)

        def add() -> None:
            axes = figure.axes[0]
            if domain.dim == 1:
                axes.set_ylim(low - 0.05 * (top - low), top)
            else:
                _ellipses(axes, points, 0.08 * loss.extent)
            for kind in dict.fromkeys(c.kind for c in points):
                marker, colour = _MARKS.get(kind, ("s", "gray"))
                where = np.array([(*c.point, c.value)[:2] for c in points if c.kind == kind])
                axes.plot(*where.T, marker, color=colour, markeredgecolor="black", markersize=6, label=kind, zorder=5)
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)

        on_root(domain.comm, lambda: plot.styled(add))
        plot.save(figure, path, domain.comm)
        return figure


def _ellipses(axes: Any, points: Sequence[CriticalPoint], size: float) -> None:
    """{H⁻¹ᐟ² v} at minima and {Σ¹ᐟ² v} everywhere, |v| = 1, each kind scaled so that its longest axis is ``size``."""
    angle = np.linspace(0, 2 * np.pi, 121)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    curvature = [(c, np.linalg.inv(c.hessian)) for c in points if c.kind == "minimum"]
    noise = [(c, c.covariance) for c in points if c.covariance is not None]
    for matrices, colour, name in ((curvature, "black", "curvature"), (noise, "crimson", "noise")):
        largest = max((float(np.linalg.eigvalsh(m)[-1]) for _, m in matrices), default=0.0)
        for k, (c, m) in enumerate(matrices if largest > 0 else []):
            values, Q = np.linalg.eigh(m)
            x = np.array(c.point)[:, None] + size * (Q * np.sqrt(np.maximum(values, 0) / largest)) @ circle
            axes.plot(*x, color=colour, linewidth=1.5, label=None if k else name)


def landscape(process_or_loss: Any, domain: Domain, *, exponents: bool = True, seed: int = 0) -> LandscapeReport:
    """Critical points with Hessian, noise, flatness, alignment and Łojasiewicz exponents (collective).

    Of what :func:`~fpsolver.diagnostics.critical_points` takes; only ``SGD`` has a covariance.  ``exponents`` tells
    whether to estimate them, at some 1e4 evaluations of the loss for each minimum; ``seed`` is that of their search.

    Raises:
        TypeError: a process without a loss.
        ValueError: no critical point, or a valley of them.
    """
    loss = Loss(process_or_loss, domain)
    found = find_critical_points(loss, process_or_loss)
    if not found:
        raise ValueError("landscape: the loss has no critical point on the domain. Take a larger domain.")
    notes: list[str] = []
    points: list[CriticalPoint] = []
    for c in found:
        x, exponent = np.array(c.point), None
        others = [np.linalg.norm(x - o.point) for o in found if o is not c]
        reach = min([0.1 * loss.extent, *(0.5 * float(r) for r in others)])
        if exponents and c.kind in ("minimum", "degenerate"):
            try:
                exponent = exponent_at(loss, x, largest_ball(domain, x, reach), seed)
            except ValueError as problem:  # the same on all ranks
                notes.append(f"no exponent at {_text(c.point)}: {problem}")
        points.append(replace(c, exponent=exponent))
    if all(c.kind != "minimum" and c.exponent is None for c in points):
        notes.append("there is no minimum on the domain: f decreases towards its boundary")
    return LandscapeReport(tuple(points), tuple(notes), loss)


def _text(point: Any) -> str:
    return place(np.round(point, 12) + 0.0, 5)
