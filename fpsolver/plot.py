"""Pictures, drawn off-screen on rank 0 from fields of any degree (all functions here are collective).

Every cell is cut into small ones on which the field is evaluated, so that high degrees look smooth and jumps between
cells are seen.  Densities are shown where their mass is.  Pictures have no state: each is a matplotlib ``Figure`` of
its own, in one style, returned on rank 0.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpi4py import MPI

import numpy as np

from . import _draw
from ._errors import import_optional, on_root
from ._files import write_figure
from ._sample import own_cells
from .domains.domain import Domain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["field", "lines", "mesh", "save", "series", "styled"]


def field(
    solution: Any,
    ax: "Axes | None" = None,
    path: str | Path | None = None,
    *,
    log: bool = False,
    label: str | None = None,
    title: str = "",
    axes: Sequence[str] | None = None,
    cmap: str | None = None,
    limits: tuple[float, float] | None = None,
    contours: int = 0,
) -> "Figure | None":
    """Draw a scalar field: a curve in 1D, colours in 2D, and colours on three slices in 3D (needs pyvista).

    Args:
        solution: a scalar DOLFINx function, or anything that has one as its attribute ``function``.
        ax: axes to draw in (rank 0); by default a new figure, of a density where its mass is.
        path: file to write, e.g. "tau.png"; missing folders are created.
        log: logarithmic colours (or ordinate); at most twelve decades, eight of a density, below which the lowest is
            drawn.
        label: what the colours mean; by default the name of the answer and its symbol.
        title: title of the picture.
        axes: names of the coordinates.
        cmap: matplotlib colour map; by default one that is readable in grey.
        limits: smallest and largest value of the colours; by default those of the field.
        contours: number of contour lines (2D).

    Returns:
        The figure on rank 0, None elsewhere.

    Raises:
        ValueError: if the field is not scalar.
        ModuleNotFoundError: if matplotlib, or in 3D pyvista, is missing.
    """
    f = getattr(solution, "function", solution)
    name = _draw.name_of(solution, f)
    data, style = _draw.sample(f), _draw.Style(name, log, axes or _axes(solution), cmap, contours)

    def draw() -> Any:
        window = _draw.window([data], style) if ax is None else None
        a = _draw.figure(1, 1, _draw.aspect(data, window))[1][0] if ax is None else ax
        low, high = limits or _draw.limits([data], style)
        artist = _draw.draw(a, data, style, low, high, window)
        text = style.label if label is None else label
        if artist is None:
            a.set(xlabel=style.axes[0], ylabel=text)
        else:
            _draw.colour_bar(artist, a, text, _draw.extend([data], low, high) if limits else "neither")
        a.set_title(title)
        return a.figure

    return _finish(data.comm, draw, path)


def lines(
    functions: Any,
    ax: "Axes | None" = None,
    path: str | Path | None = None,
    *,
    log: bool = False,
    label: str | None = None,
    title: str = "",
    axes: Sequence[str] | None = None,
) -> "Figure | None":
    """Draw one or several functions of one variable into the same axes: one, a list, or {label of the curve: function}.

    Everything else as in :func:`field`.
    """
    named = functions if isinstance(functions, Mapping) else dict(enumerate(_many(functions)))
    shown = [getattr(f, "function", f) for f in named.values()]
    data = [_draw.sample(f) for f in shown]
    if any(d.dim != 1 for d in data):
        raise ValueError("plot.lines draws functions of one variable; use plot.field or plot.series")
    first = next(iter(named.values()))
    style = _draw.Style(_draw.name_of(first, shown[0]), log, axes or _axes(first))

    def draw() -> Any:
        window = _draw.window(data, style) if ax is None else None
        a = _draw.figure(1, 1)[1][0] if ax is None else ax
        low, high = _draw.limits(data, style)
        labelled = isinstance(functions, Mapping)
        for i, (name, d) in enumerate(zip(named, data, strict=True)):
            _draw.draw(a, d, style, low, high, window, color=f"C{i}", label=str(name) if labelled else None)
        if labelled:
            a.legend()
        a.set(xlabel=style.axes[0], ylabel=style.label if label is None else label, title=title)
        return a.figure

    return _finish(data[0].comm, draw, path)


def series(
    functions: Sequence[Any],
    titles: Sequence[str] | None = None,
    path: str | Path | None = None,
    *,
    log: bool = False,
    label: str | None = None,
    axes: Sequence[str] | None = None,
    cmap: str | None = None,
    columns: int = 4,
) -> "Figure | None":
    """Draw a filmstrip of several fields, or of an evolution, on the same scale, with some ``columns`` in a row.

    Titles are the times where there are any.  Everything else as in :func:`field`.
    """
    if titles is None:
        times = getattr(functions, "times", None)
        titles = [""] * len(functions) if times is None else [f"$t = {t:.4g}$" for t in times]
    if len(titles) != len(functions) or not len(functions):
        raise ValueError(
            f"plot.series: {len(functions)} functions and {len(titles)} titles; expected one title for each"
        )
    shown = [getattr(functions[i], "function", functions[i]) for i in range(len(functions))]
    data = [_draw.sample(f) for f in shown]
    style = _draw.Style(_draw.name_of(functions, shown[0]), log, axes or _axes(functions), cmap)

    def draw() -> Any:
        width, window = min(columns, len(data)), _draw.window(data, style)
        fig, panels = _draw.figure(-(-len(data) // width), width, _draw.aspect(data[0], window), share=True)
        low, high = _draw.limits(data, style)
        for a, d, title in zip(panels, data, titles, strict=False):
            artist = _draw.draw(a, d, style, low, high, window)
            a.set_title(title)
        for a in panels[len(data) :]:
            a.set_visible(False)
        text = style.label if label is None else label
        for a in panels[: len(data)]:
            a.label_outer()
        if artist is None:
            fig.supxlabel(style.axes[0], fontsize="medium")
            fig.supylabel(text, fontsize="medium")
        elif len(data) == width:
            _draw.colour_bar(artist, panels[-1], text)
        else:
            fig.colorbar(artist, ax=list(panels), label=text, shrink=0.8)
        return fig

    return _finish(data[0].comm, draw, path)


def mesh(
    domain: Domain, ax: "Axes | None" = None, path: str | Path | None = None, *, title: str = ""
) -> "Figure | None":
    """Draw the mesh of a domain in the plane, with its boundary parts in colours, see :func:`field`."""
    if domain.dim != 2:
        raise ValueError(f"plot.mesh draws domains in 2D, got {domain!r}")
    msh, comm = domain.mesh, domain.comm
    inside = _draw.facet_curves(msh, np.indices((len(own_cells(msh)), 3)).reshape(2, -1).T)
    parts = {name: _draw.facet_curves(msh, domain.integration_facets(name).reshape(-1, 2)) for name in domain.parts}
    edges = comm.gather((inside, parts), root=0) or []

    def draw() -> Any:
        from matplotlib.collections import LineCollection

        a = _draw.figure(1, 1)[1][0] if ax is None else ax
        a.add_collection(LineCollection(np.concatenate([e for e, _ in edges]), colors="0.7", linewidths=0.4))
        for i, name in enumerate(parts):
            part = np.concatenate([p[name] for _, p in edges])
            a.add_collection(LineCollection(part, colors=f"C{i}", linewidths=2, label=name))
        a.autoscale()
        a.set(aspect="equal", xlabel="$x$", ylabel="$y$", title=title)
        a.legend(loc="upper left", bbox_to_anchor=(1, 1))
        return a.figure

    return _finish(comm, draw, path)


def save(fig: "Figure | None", path: str | Path, comm: MPI.Comm = MPI.COMM_WORLD) -> None:
    """Write a figure of rank 0 (collective); missing folders are created."""
    on_root(comm, lambda: write_figure(fig, Path(path)))


def _many(functions: Any) -> Sequence[Any]:
    return functions if isinstance(functions, Sequence) or hasattr(functions, "times") else [functions]


def _axes(solution: Any) -> tuple[str, ...]:
    """Symbols of the coordinates: position and velocity of kinetic processes."""
    process = getattr(getattr(solution, "generator", None), "process", None)
    return ("$x$", "$v$") if getattr(process, "kinetic", False) else ("$x$", "$y$", "$z$")


def styled(draw: Callable[[], Any]) -> Any:
    """Call a function that draws, in the style of all pictures (rank 0)."""
    matplotlib: Any = import_optional("matplotlib", "fpsolver.plot")
    with matplotlib.rc_context(_draw.RC):
        return draw()


def _finish(comm: MPI.Comm, draw: Callable[[], Any], path: str | Path | None) -> "Figure | None":
    def work() -> Any:
        fig = styled(draw)
        if path is not None:
            write_figure(fig, Path(path))
        return fig

    return on_root(comm, work)
