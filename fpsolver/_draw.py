"""What pictures are made of: fields on small cells, and figures on rank 0: their limits and the part that is shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial
from typing import Any

from mpi4py import MPI

import numpy as np
from dolfinx import fem

from . import _compat
from ._sample import Array, degree, lagrange, lattice, own_cells, push_forward

Window = Array | None  # lowest and highest coordinates, shape (2, d)

RC = {"font.size": 9.0, "axes.titlesize": "medium", "legend.fontsize": "small", "lines.linewidth": 1.4}
_SYMBOLS = {"mean exit time": r"$\tau$", "density": "$p$", "invariant density": r"$p_\infty$", "committor": "$q$"}
_OUTSIDE = {False: 1e-3, True: 1e-6}  # share of the mass that a picture may leave out, linear and logarithmic
_DECADES = {False: 1e-12, True: 1e-8}  # of a logarithmic picture; densities have noise below
_MARGIN = 0.15
_MOST = 0.7  # of the domain: a window that is larger is not worth it


@dataclass(frozen=True)
class Sample:
    """A scalar field on small cells that share no points, so that it may jump; the arrays are on rank 0 only."""

    comm: MPI.Comm
    dim: int
    points: Array  # shape (n, dim)
    values: Array  # at the points, shape (n,)
    cells: Array  # points of each small cell, shape (m, dim + 1)


def sample(f: Any, budget: int = 200_000) -> Sample:
    """Evaluate a scalar function on a lattice in each cell (collective)."""
    if not isinstance(f, fem.Function):
        raise ValueError(f"expected a DOLFINx function or a solution to draw, got {type(f).__name__}")
    V = f.function_space
    if tuple(V.value_shape):
        raise ValueError(f"expected a scalar function, {f.name!r} has shape {V.value_shape}; draw f.sub(i).collapse()")
    mesh, k = V.mesh, degree(V)
    if not lagrange(V):
        V = fem.functionspace(mesh, ("DG", k))
        f, g = fem.Function(V), f
        f.interpolate(g)
    dim, cells = mesh.topology.dim, own_cells(mesh)
    smooth = max(k, _compat.coordinate_map(mesh).degree)
    wanted = 1 if smooth <= 1 else 4 * smooth if dim == 1 else 2 * smooth
    affordable = int((budget / max(mesh.topology.index_map(dim).size_global, 1)) ** (1 / dim))
    X, small = lattice(dim, max(1, min(wanted, max(affordable, min(smooth, 2)))))
    values = f.x.array[V.dofmap.list[cells]] @ V.element.basix_element.tabulate(0, X)[0, :, :, 0].T
    pieces = mesh.comm.gather((push_forward(mesh, X, cells), values), root=0)
    if pieces is None:
        return Sample(mesh.comm, dim, *[np.empty(0)] * 3)
    points, values = np.concatenate([p.reshape(-1, dim) for p, _ in pieces]), [v.ravel() for _, v in pieces]
    first = np.arange(0, len(points), len(X))[:, None, None]
    return Sample(mesh.comm, dim, points, np.concatenate(values), (first + small).reshape(-1, dim + 1))


@dataclass
class Style:
    """How a field of some name is drawn; of a density only the part with the mass is looked at."""

    name: str
    axes: Sequence[str]
    log: bool = False
    label: str | None = None
    cmap: Any = None
    contours: int = 0

    def __post_init__(self) -> None:
        self.density = "density" in self.name or self.name.startswith("ergodic law")
        self.cmap = self.cmap or ("magma_r" if self.density else "viridis")  # paper stays white where no mass is
        if self.label is None:
            what, _, time = self.name.partition(" at t = ")
            self.label = f"{what} {_SYMBOLS.get(what, '')}".rstrip() + (f" at $t = {time}$" if time else "")


def window(data: Sequence[Sample], style: Style) -> Window:
    """The box that holds nearly all mass of some densities, with a margin; None where most of the domain is needed."""
    if not style.density:
        return None
    boxes = []
    for d in data:
        corners, values = d.points[d.cells], np.maximum(d.values[d.cells].mean(axis=1), 0.0)
        mass = values * np.abs(np.linalg.det(corners[:, 1:] - corners[:, :1])) / factorial(d.dim)
        order = np.argsort(-values)
        total = np.cumsum(mass[order])
        inside = corners[order[: 1 + int(np.searchsorted(total, (1 - _OUTSIDE[style.log]) * total[-1]))]]
        boxes.append((inside.min(axis=(0, 1)), inside.max(axis=(0, 1))))
    low, high = zip(*boxes, strict=True)
    box = np.array([np.min(low, axis=0), np.max(high, axis=0)])
    whole = np.array([data[0].points.min(axis=0), data[0].points.max(axis=0)])
    room = _MARGIN * (box[1] - box[0])
    box = np.clip(box + [-room, room], *whole)
    return box if ((box[1] - box[0]) < _MOST * (whole[1] - whole[0])).any() and data[0].dim < 3 else None


def aspect(data: Sample, window: Window = None) -> float:
    """Height over width of a picture; of a field in the plane as it is, unless it is very thin."""
    if data.dim != 2:
        return 0.75
    width, height = np.ptp(data.points if window is None else window, axis=0)
    return height / width if 0.2 < height / width < 5 else 0.75


def figure(rows: int, columns: int, aspect: float = 0.75, share: bool = False) -> tuple[Any, Array]:
    """A figure without state, and its panels row by row."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    width = (4.4 if rows == columns == 1 else 2.2) / max(1.0, aspect)
    fig = Figure(figsize=(1.6 + width * columns, 0.6 + (0.3 + width * aspect) * rows), layout="constrained")
    panels = fig.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).ravel()
    if share:  # numbers at the ends would meet those of the next panel
        panels[0].xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10], prune="both"))
    return fig, panels


def limits(data: Sequence[Sample], style: Style) -> tuple[float, float]:
    """Common limits of several fields; a constant field gets some room, densities start at zero."""
    low, high = min(float(d.values.min()) for d in data), max(float(d.values.max()) for d in data)
    if style.log:
        if high <= 0:
            raise ValueError(f"a logarithmic picture needs positive values, but the largest is {high:.3g}")
        positive = min(float(d.values[d.values > 0].min(initial=np.inf)) for d in data)
        low = max(positive, high * _DECADES[style.density])
        return (low, high) if low < high else (low / 2, high * 2)
    if style.density and high > 0:
        return 0.0, high
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        return low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    return low, high


def draw(a: Any, data: Sample, style: Style, low: float, high: float, window: Window, **line: Any) -> Any:
    """A curve in 1D, for which there is no artist of colours; colours else."""
    if data.dim == 1:
        _curve(a, data, style.log, low, **({"color": "C0"} | line))
        room = 0.05 * (high - low)
        a.set_ylim(*((low / 1.5, high * 1.5) if style.log else (low - room * (low != 0), high + room)))
    artist = None if data.dim == 1 else _colours(a, data, style, low, high)
    if window is not None:
        a.set_xlim(*window[:, 0])
        if data.dim == 2:
            a.set_ylim(*window[:, 1])
    return artist


def colour_bar(artist: Any, a: Any, label: str | None) -> None:
    """As high as the panel beside it."""
    if a.get_aspect() in ("auto", 1.0) and a.axison:
        a.figure.colorbar(artist, cax=a.inset_axes((1.05, 0.0, 0.04, 1.0)), label=label)
    else:
        a.figure.colorbar(artist, ax=a, label=label, shrink=0.8)


def _curve(a: Any, data: Sample, log: bool, low: float, **style: Any) -> None:
    """Cells from left to right, with a gap between them, so that jumps are not joined."""
    x, y = data.points[:, 0][data.cells], data.values[data.cells]
    turned = x[:, 0] > x[:, 1]
    x[turned], y[turned] = x[turned, ::-1], y[turned, ::-1]
    order = np.argsort(x[:, 0])
    # no gap where the function is continuous to the eye: drawn apart, dashes and joints look broken
    x, y = x[order], y[order]
    jump, size = np.abs(y[1:, 0] - y[:-1, 1]), np.abs(y[1:, 0]) if log else np.abs(y).max()
    after = 1 + np.flatnonzero(jump > (0.05 if log else 1e-4) * size)
    x, y = (np.insert(v.ravel(), 2 * after, np.nan) for v in (x, y))
    a.plot(x, np.maximum(y, low) if log else y, **style)
    a.margins(x=0)
    if log:
        a.set_yscale("log")


def _colours(a: Any, data: Sample, style: Style, low: float, high: float) -> Any:
    from matplotlib import colors
    from matplotlib.cm import ScalarMappable

    norm = (colors.LogNorm if style.log else colors.Normalize)(low, high)
    if data.dim == 3:
        from ._slices import slices

        a.imshow(slices(data, norm, style.cmap))
        a.set_axis_off()
        return ScalarMappable(norm, style.cmap)
    from matplotlib.tri import Triangulation

    t = Triangulation(data.points[:, 0], data.points[:, 1], data.cells)
    values = np.maximum(data.values, low) if style.log else data.values
    artist = a.tripcolor(t, values, shading="gouraud", norm=norm, cmap=style.cmap, rasterized=True)
    if style.contours:
        levels = (np.geomspace if style.log else np.linspace)(low, high, style.contours + 2)[1:-1]
        a.tricontour(t, values, levels=levels, colors="k", linewidths=0.5, linestyles="solid", alpha=0.6)
    a.set(xlabel=style.axes[0], ylabel=style.axes[1])
    a.margins(0)
    a.set_aspect("equal" if aspect(data) == np.divide(*np.ptp(data.points, axis=0)[::-1]) else "auto")
    return artist
