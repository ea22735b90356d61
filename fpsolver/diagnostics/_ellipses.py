"""The picture of a landscape report: the loss, its critical points, and ellipses of curvature and noise."""

from pathlib import Path
from typing import Any

import numpy as np
from dolfinx import fem

from .. import plot
from ..domains.domain import Domain
from ._points import Loss
from .critical import CriticalPoint

_MARKS = {"minimum": ("o", "white"), "saddle": ("X", "tab:orange"), "maximum": ("^", "tab:red")}


def draw(loss: Loss, domain: Domain, points: list[CriticalPoint], path: str | Path) -> Any:
    """Draw on rank 0 and write to ``path`` (collective)."""
    if domain.dim > 2:
        raise ValueError("a landscape is drawn in one and two dimensions; in three, plot slices of the loss.")
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
    options: dict[str, Any] = {"contours": 25} if domain.dim == 2 else {}
    figure = plot.field(f, limits=limits, cmap="Blues_r", label="loss", **options)
    if figure is not None:
        axes = figure.axes[0]
        if domain.dim == 1:
            axes.set_ylim(low - 0.05 * (limits[1] - low), limits[1])
        else:
            _ellipses(axes, points, 0.08 * loss.extent)
        for kind in dict.fromkeys(c.kind for c in points):
            marker, colour = _MARKS.get(kind, ("s", "gray"))
            where = np.array([(*c.point, c.value)[:2] for c in points if c.kind == kind])
            axes.plot(*where.T, marker, color=colour, markeredgecolor="black", markersize=7, label=kind)
        axes.legend(loc="upper right", fontsize="small")
    plot.save(figure, path, domain.comm)
    return figure


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
