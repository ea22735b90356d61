"""The picture of a landscape report: the loss, its critical points, ellipses of curvature and noise, paths, decay."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from dolfinx import fem

from ... import plot
from ..._errors import import_optional, on_root
from ...montecarlo.ensemble import Ensemble
from ..concentration.regime import LossDecay
from ..landscape.critical import CriticalPoint
from ..landscape.star import StarConvexity

if TYPE_CHECKING:
    from .landscape import LandscapeReport

_MARKS = {"minimum": ("o", "white"), "saddle": ("X", "tab:orange"), "maximum": ("^", "tab:red")}
_PATHS = 8
_TIME = r"time $t$ (one step = learning rate $\eta$)"


def draw(report: "LandscapeReport", path: str | Path) -> Any:
    """Draw on rank 0 and write to ``path`` (collective)."""
    loss, domain, ensemble = report.loss, report.loss.domain, report.ensemble
    if domain.dim > 2:
        raise ValueError("a landscape is drawn in one and two dimensions; in three, plot slices of the loss.")
    points = [p.critical for p in report.points]
    stars = {p.place: p.star for p in report.points if p.star is not None}
    decays = {p.place: p.decay for p in report.points if p.decay is not None}
    f = fem.Function(fem.functionspace(domain.mesh, ("Lagrange", 4)), name="loss")
    x = f.function_space.tabulate_dof_coordinates()[:, : domain.dim]
    f.x.array[:] = loss.first(x)[0]
    values = np.array([c.value for c in points])
    low, high = float(values.min()), float(values.max())
    everywhere = np.concatenate(domain.comm.allgather(f.x.array))
    if high - low <= 1e-3 * np.ptp(everywhere):  # one point, or points of one height, fix no scale
        limits = (low, float(np.quantile(everywhere, 0.7)))
    else:
        limits = (low, min(high + 1.5 * (high - low), float(everywhere.max())))
    count = 1 + bool(stars) + bool(decays)
    panels = on_root(domain.comm, lambda: _panels(count)) or [None] * count
    options: dict[str, Any] = {"contours": 25} if domain.dim == 2 else {}
    figure = plot.field(f, panels[0], limits=limits, cmap="Blues_r", label="loss $f$", **options)

    def add() -> None:
        axes = panels[0]
        if domain.dim == 1:
            axes.set_ylim(low - 0.05 * (limits[1] - low), limits[1])
        else:
            if ensemble is not None:
                _paths(axes, ensemble)
            _ellipses(axes, points, 0.08 * loss.extent)
        for kind in dict.fromkeys(c.kind for c in points):
            marker, colour = _MARKS.get(kind, ("s", "gray"))
            where = np.array([(*c.point, c.value)[:2] for c in points if c.kind == kind])
            axes.plot(*where.T, marker, color=colour, markeredgecolor="black", markersize=6, label=kind, zorder=5)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
        if stars and ensemble is not None:
            _stars(panels[1], stars, ensemble.times)
        if decays:
            _decays(panels[-1], decays)

    on_root(domain.comm, lambda: plot.styled(add))
    plot.save(figure, path, domain.comm)
    return figure


def _panels(count: int) -> list[Any]:
    import_optional("matplotlib", "LandscapeReport.plot")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6 + 3.8 * (count - 1), 4.0), layout="constrained")
    return list(figure.subplots(1, count, squeeze=False, width_ratios=[1.5] + [1.0] * (count - 1))[0])


def _paths(axes: Any, ensemble: Ensemble) -> None:
    window = axes.axis()
    for k, one in enumerate(ensemble.positions.transpose(1, 0, 2)[:_PATHS]):
        axes.plot(*one.T, color="gold", linewidth=1.1, alpha=0.9, label=None if k else "some paths")
    axes.axis(window)


def _stars(axes: Any, stars: dict[str, StarConvexity], times: np.ndarray) -> None:
    for k, (name, star) in enumerate(stars.items()):
        bars = np.abs(star.per_step_interval.T - star.per_step)
        label = f"{star.paths} paths to {name}"
        axes.errorbar(times, star.per_step, bars, fmt="o-", color=f"C{k}", markersize=3, capsize=2, label=label)
    axes.set(xlabel=_TIME, ylabel="share of star-convex pairs", ylim=(None, 1.02))
    axes.set_title("star-convexity along the paths")
    axes.legend()


def _decays(axes: Any, decays: dict[str, LossDecay]) -> None:
    """E f − f*, and the predicted law through the first time at which the drift rules."""
    for k, (name, decay) in enumerate(decays.items()):
        axes.plot(decay.times, decay.excess, "o-", color=f"C{k}", markersize=3, label=f"PDE, at {name}")
        if not decay.regime.any():
            continue
        first = int(np.argmax(decay.regime))
        t, start = decay.times[decay.regime] - decay.times[first], decay.excess[first]
        if decay.law == "exponential":
            law, label = start * np.exp(-decay.predicted * t), f"rate {decay.predicted:.3g}, the bound without noise"
        else:
            p, slope = decay.predicted, (decay.drift - decay.noise)[first]
            law, label = start * (1 + slope / start * t / p) ** -p, f"1/t^{p:.3g}, predicted"
        axes.plot(decay.times[decay.regime], law, "--", color=f"C{k}", label=label)
    algebraic = any(d.law == "algebraic" for d in decays.values())
    axes.set(xlabel=_TIME, ylabel=r"$\mathbb{E} f - f^*$", yscale="log")
    axes.set_xscale("log" if algebraic and min(d.times[0] for d in decays.values()) > 0 else "linear")
    axes.set_title("decay of the expected loss")
    axes.legend()


def _ellipses(axes: Any, points: list[CriticalPoint], size: float) -> None:
    """{H⁻¹ᐟ² v} at minima and {Σ¹ᐟ² v} everywhere, |v| = 1, each kind scaled so that its longest axis is ``size``."""
    angle = np.linspace(0, 2 * np.pi, 121)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    curvature = [(c, np.linalg.inv(c.hessian)) for c in points if c.kind == "minimum"]
    noise = [(c, c.covariance) for c in points if c.covariance is not None]
    for matrices, colour, name in ((curvature, "black", "curvature"), (noise, "crimson", "noise")):
        largest = max((float(np.linalg.eigvalsh(m)[-1]) for _, m in matrices), default=0.0)
        if largest <= 0:
            continue
        label: str | None = name
        for c, m in matrices:
            values, Q = np.linalg.eigh(m)
            x = np.array(c.point)[:, None] + size * (Q * np.sqrt(np.maximum(values, 0) / largest)) @ circle
            axes.plot(*x, color=colour, linewidth=1.5, label=label)
            label = None
