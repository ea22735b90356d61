"""What pictures are made of: fields as piecewise linear ones on small cells, and figures drawn from them on rank 0."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpi4py import MPI

import numpy as np
from dolfinx import fem
from dolfinx import mesh as dmesh

from . import _compat
from ._sample import Array, degree, lagrange, lattice, own_cells, push_forward

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Sample:
    """A scalar field on small cells that share no points, so that it may jump; the arrays are on rank 0 only.

    Attributes:
        comm: communicator of the mesh.
        dim: its dimension.
        points: shape (n, dim).
        values: values at the points, shape (n,).
        cells: points of each small cell, shape (m, dim + 1).
    """

    comm: MPI.Comm
    dim: int
    points: Array
    values: Array
    cells: Array


def sample(f: Any, budget: int = 200_000) -> Sample:
    """Evaluate a scalar function on a lattice in each cell (collective).

    Raises:
        ValueError: if it is not a scalar function.
    """
    if not isinstance(f, fem.Function):
        raise ValueError(f"expected a DOLFINx function or a solution to draw, got {type(f).__name__}")
    V = f.function_space
    if tuple(V.value_shape):
        raise ValueError(f"expected a scalar function, {f.name!r} has shape {V.value_shape}; draw f.sub(i).collapse()")
    mesh, k = V.mesh, degree(V)
    if not lagrange(V):
        f, g = fem.Function(fem.functionspace(mesh, ("DG", k))), f
        f.interpolate(g)
        V = f.function_space
    dim, cells = mesh.topology.dim, own_cells(mesh)
    smooth = max(k, _compat.coordinate_map(mesh).degree)
    wanted = 1 if smooth <= 1 else 4 * smooth if dim == 1 else 2 * smooth
    affordable = int((budget / max(mesh.topology.index_map(dim).size_global, 1)) ** (1 / dim))
    X, small = lattice(dim, max(1, min(wanted, max(affordable, min(smooth, 2)))))
    values = f.x.array[V.dofmap.list[cells]] @ V.element.basix_element.tabulate(0, X)[0, :, :, 0].T
    pieces = mesh.comm.gather((push_forward(mesh, X, cells), values), root=0)
    if pieces is None:
        return Sample(mesh.comm, dim, *[np.empty(0)] * 3)
    points = np.concatenate([p.reshape(-1, dim) for p, _ in pieces])
    values = np.concatenate([v.ravel() for _, v in pieces])
    return Sample(
        mesh.comm, dim, points, values, (np.arange(0, len(points), len(X))[:, None, None] + small).reshape(-1, dim + 1)
    )


def facet_curves(mesh: dmesh.Mesh, facets: Array, n: int = 6) -> Array:
    """Polygons along edges of triangles, shape (edges, points, 2); ``facets`` are pairs (cell, local facet)."""
    corners = np.array([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
    n = n if _compat.coordinate_map(mesh).degree > 1 else 1
    s = np.linspace(0, 1, n + 1)[:, None]
    curves = np.empty((len(facets), n + 1, 2))
    for i, (a, b) in enumerate(((1, 2), (0, 2), (0, 1))):  # edge i is opposite to vertex i
        mine = facets[:, 1] == i
        curves[mine] = push_forward(mesh, corners[a] * (1 - s) + corners[b] * s, facets[mine, 0])
    return curves


def aspect(data: Sample) -> float:
    """Height over width of a picture; of a field in the plane as it is, unless it is very thin."""
    if data.dim != 2:
        return 0.75
    width, height = np.ptp(data.points, axis=0)
    return height / width if 0.2 < height / width < 5 else 0.75


def figure(rows: int, columns: int, aspect: float = 0.75, share: bool = False) -> tuple["Figure", Array]:
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
    keep = np.ones(len(x), dtype=bool)  # no gaps where it is continuous: drawn apart, dashes and joints look broken
    keep[2:-1:3] = np.abs(y[3::3] - y[1:-2:3]) > 1e-9 * (np.nanmax(np.abs(y)) or 1.0)
    a.plot(x[keep], np.maximum(y, low)[keep] if log else y[keep], **style)
    if log:
        a.set_yscale("log")


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
