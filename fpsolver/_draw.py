"""What pictures are made of, drawn on rank 0: figures, curves, colours and their limits."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._sample import Sample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def aspect(data: Sample) -> float:
    """Height over width of a picture; of a field in the plane as it is, unless it is very thin."""
    if data.dim != 2:
        return 0.75
    width, height = np.ptp(data.points, axis=0)
    return height / width if 0.2 < height / width < 5 else 0.75


def figure(rows: int, columns: int, aspect: float = 0.75, share: bool = False) -> tuple["Figure", npt.NDArray[Any]]:
    """A figure without state, and its panels row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = (5.2 if rows == columns == 1 else 2.4) / max(1.0, aspect)
    fig = Figure(figsize=(2.2 + width * columns, 0.5 + (0.3 + width * aspect) * rows), layout="constrained")
    FigureCanvasAgg(fig)
    return fig, fig.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).ravel()


def limits(data: Sequence[Sample], log: bool) -> tuple[float, float]:
    """Common limits of several fields; a constant field gets some room."""
    low, high = min(float(d.values.min()) for d in data), max(float(d.values.max()) for d in data)
    if log:
        if high <= 0:
            raise ValueError(f"a logarithmic picture needs positive values, but the largest is {high:.3g}")
        positive = min(float(d.values[d.values > 0].min(initial=np.inf)) for d in data)
        low = max(positive, high * 1e-12)
        return (low, high) if low < high else (low / 2, high * 2)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        return low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    return low, high


def extend(data: Sequence[Sample], low: float, high: float) -> str:
    """At which ends of a colour bar there are values beyond it."""
    below = any(d.values.min() < low for d in data)
    above = any(d.values.max() > high for d in data)
    return {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[(int(below), int(above))]


def curve(a: "Axes", data: Sample, log: bool, low: float, high: float, **style: Any) -> None:
    """Cells from left to right, with a gap between them, so that jumps are not joined."""
    x, y = data.points[:, 0][data.cells], data.values[data.cells]
    turned = x[:, 0] > x[:, 1]
    x[turned], y[turned] = x[turned, ::-1], y[turned, ::-1]
    order = np.argsort(x[:, 0])
    x, y = (np.insert(v[order], 2, np.nan, axis=1).ravel() for v in (x, y))
    joined = _joined(x, y)
    a.plot(x[joined], np.maximum(y, low)[joined] if log else y[joined], **style)
    if log:
        a.set_yscale("log")


def _joined(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Drop the gaps between cells over which the function is continuous: drawn apart, dashes and joints look broken."""
    keep = np.ones(len(x), dtype=bool)
    scale = np.nanmax(np.abs(y)) or 1.0
    same = np.abs(y[3::3] - y[1:-2:3]) <= 1e-9 * scale
    keep[2:-1:3] = ~same
    return keep


def colours(
    a: "Axes", data: Sample, axes: Sequence[str], log: bool, low: float, high: float, cmap: str, contours: int
) -> Any:
    from matplotlib import colors
    from matplotlib.cm import ScalarMappable

    norm = (colors.LogNorm if log else colors.Normalize)(low, high)
    if data.dim == 3:
        from ._slices import slices

        a.imshow(slices(data, norm, cmap))
        a.set_axis_off()
        return ScalarMappable(norm, cmap)
    from matplotlib.tri import Triangulation

    t = Triangulation(data.points[:, 0], data.points[:, 1], data.cells)
    values = np.maximum(data.values, low) if log else data.values
    artist = a.tripcolor(t, values, shading="gouraud", norm=norm, cmap=cmap, rasterized=True)
    if contours:
        levels = (np.geomspace if log else np.linspace)(low, high, contours + 2)[1:-1]
        a.tricontour(t, values, levels=levels, colors="k", linewidths=0.5)
    a.set(xlabel=axes[0], ylabel=axes[1])
    a.margins(0)
    a.set_aspect("equal" if aspect(data) == np.divide(*np.ptp(data.points, axis=0)[::-1]) else "auto")
    return artist
