"""Pictures, drawn off-screen on rank 0 from fields of any degree (all functions here are collective).

Every cell is cut into small ones on which the field is evaluated, so that high degrees look smooth and jumps between
cells are seen.  Pictures have no state: each is a matplotlib ``Figure`` of its own, returned on rank 0.
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


def field(
    solution: Any,
    ax: "Axes | None" = None,
    path: str | Path | None = None,
    *,
    log: bool = False,
    label: str | None = None,
    title: str = "",
    axes: Sequence[str] = ("x", "y", "z"),
    cmap: str = "viridis",
    limits: tuple[float, float] | None = None,
    contours: int = 0,
) -> "Figure | None":
    """Draw a scalar field: a curve in 1D, colours in 2D, and colours on three slices in 3D (needs pyvista).

    Args:
        solution: a scalar DOLFINx function, or anything that has one as its attribute ``function``.
        ax: axes to draw in (rank 0); a new figure without.
        path: file to write, e.g. "tau.png"; missing folders are created.
        log: logarithmic colours (or ordinate); at most twelve decades, and what lies below is drawn as the lowest.
        label: what the colours mean; the name of the function without.
        title: title of the picture.
        axes: names of the coordinates.
        cmap: matplotlib colour map.
        limits: smallest and largest value of the colours; those of the field without.
        contours: number of contour lines (2D).

    Returns:
        The figure on rank 0, None elsewhere.

    Raises:
        ValueError: if the field is not scalar.
        ModuleNotFoundError: if matplotlib, or in 3D pyvista, is missing.
    """
    f = getattr(solution, "function", solution)
    data = _draw.sample(f)

    def draw() -> Any:
        a = _draw.figure(1, 1, _draw.aspect(data))[1][0] if ax is None else ax
        low, high = limits or _draw.limits([data], log)
        name = label if label is not None else f.name
        if data.dim == 1:
            _draw.curve(a, data, log, low, high, color="C0")
            a.set_xlabel(axes[0])
            a.set_ylabel(name)
        else:
            artist = _draw.colours(a, data, axes, log, low, high, cmap, contours)
            a.figure.colorbar(artist, ax=a, label=name, extend=_draw.extend([data], low, high))
        a.set_title(title)
        return a.figure

    return _finish(data.comm, draw, path)


def lines(
    functions: Any,
    ax: "Axes | None" = None,
    path: str | Path | None = None,
    *,
    log: bool = False,
    label: str = "",
    title: str = "",
    axes: Sequence[str] = ("x",),
) -> "Figure | None":
    """Draw one or several functions of one variable into the same axes.

    ``functions`` is one, a list of them, or a dictionary {label of the curve: function}; the rest as in :func:`field`.
    """
    many = isinstance(functions, Sequence) or hasattr(functions, "times")
    named = functions if isinstance(functions, Mapping) else dict(enumerate(functions if many else [functions]))
    data = [_draw.sample(getattr(f, "function", f)) for f in named.values()]
    if any(d.dim != 1 for d in data):
        raise ValueError("plot.lines draws functions of one variable; use plot.field or plot.series")

    def draw() -> Any:
        a = _draw.figure(1, 1)[1][0] if ax is None else ax
        low, high = _draw.limits(data, log)
        labelled = isinstance(functions, Mapping)
        for i, (name, d) in enumerate(zip(named, data, strict=True)):
            _draw.curve(a, d, log, low, high, color=f"C{i}", label=str(name) if labelled else None)
        if labelled:
            a.legend()
        a.set(xlabel=axes[0], ylabel=label, title=title)
        return a.figure

    return _finish(data[0].comm, draw, path)


def series(
    functions: Sequence[Any],
    titles: Sequence[str] | None = None,
    path: str | Path | None = None,
    *,
    log: bool = False,
    label: str | None = None,
    axes: Sequence[str] = ("x", "y", "z"),
    cmap: str = "viridis",
    columns: int = 4,
) -> "Figure | None":
    """Draw a filmstrip of several fields on the same scale.

    ``functions`` are functions or solutions, or an evolution, whose ``titles`` are its times by default; ``columns``
    pictures stand in a row; the rest as in :func:`field`.
    """
    if titles is None:
        times = getattr(functions, "times", None)
        titles = [""] * len(functions) if times is None else [f"t = {t:.4g}" for t in times]
    if len(titles) != len(functions) or not len(functions):
        raise ValueError(
            f"plot.series: {len(functions)} functions and {len(titles)} titles; expected one title for each"
        )
    shown = [getattr(functions[i], "function", functions[i]) for i in range(len(functions))]
    data = [_draw.sample(f) for f in shown]

    def draw() -> Any:
        width = min(columns, len(data))
        fig, panels = _draw.figure(-(-len(data) // width), width, _draw.aspect(data[0]), share=True)
        low, high = _draw.limits(data, log)
        for a, d, title in zip(panels, data, titles, strict=False):
            if d.dim == 1:
                _draw.curve(a, d, log, low, high, color="C0")
                a.set_ylim(low, high * 1.05)
            else:
                artist = _draw.colours(a, d, axes, log, low, high, cmap, 0)
            a.set_title(title)
        for a in panels[len(data) :]:
            a.set_visible(False)
        name = label if label is not None else shown[0].name
        for a in panels[: len(data)]:
            a.label_outer()
        if data[0].dim == 1:
            fig.supxlabel(axes[0])
            fig.supylabel(name)
        else:
            fig.colorbar(artist, ax=list(panels), label=name, extend=_draw.extend(data, low, high))
        return fig

    return _finish(data[0].comm, draw, path)


def mesh(
    domain: Domain, ax: "Axes | None" = None, path: str | Path | None = None, *, title: str = ""
) -> "Figure | None":
    """Draw the mesh of a domain in the plane, with its boundary parts in colours.

    The arguments are as in :func:`field`.
    """
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
        a.set(aspect="equal", xlabel="x", ylabel="y", title=title)
        a.legend(loc="upper left", bbox_to_anchor=(1, 1))
        return a.figure

    return _finish(comm, draw, path)


def save(fig: "Figure | None", path: str | Path, comm: MPI.Comm = MPI.COMM_WORLD) -> None:
    """Write a figure of rank 0 (collective); missing folders are created."""
    on_root(comm, lambda: write_figure(fig, Path(path)))


def _finish(comm: MPI.Comm, draw: Callable[[], Any], path: str | Path | None) -> "Figure | None":
    def work() -> Any:
        import_optional("matplotlib", "fpsolver.plot")
        fig = draw()
        if path is not None:
            write_figure(fig, Path(path))
        return fig

    return on_root(comm, work)
