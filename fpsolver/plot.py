"""Pictures, drawn off-screen on rank 0 from fields of any degree (all functions here are collective).

Cells are cut into small ones, so that high degrees look smooth and jumps are seen; densities are shown where their mass
is.  Each picture is a matplotlib ``Figure`` of its own.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mpi4py import MPI

from . import _draw
from ._errors import import_optional, on_root
from ._files import write_figure

__all__ = ["field", "save", "series", "styled"]


def field(
    solution: Any,
    ax: Any = None,
    path: str | Path | None = None,
    *,
    log: bool = False,
    label: str | None = None,
    title: str = "",
    axes: Sequence[str] | None = None,
    cmap: str | None = None,
    limits: tuple[float, float] | None = None,
    contours: int = 0,
) -> Any:
    """Draw a scalar field: a curve in 1D, colours in 2D, and colours on three slices in 3D (needs pyvista).

    Of a scalar DOLFINx function, or of anything that has one as its attribute ``function``, in the axes ``ax`` (rank 0)
    or a new figure, of a density where its mass is.  ``log`` shows at most twelve decades, eight of a density.
    ``label``, what the colours mean, is the name of the answer and its symbol unless given, ``limits`` of the colours
    are those of the field; ``axes`` names the coordinates; ``contours`` is a number of lines (2D).

    Returns:
        The figure on rank 0, None elsewhere.  It is written to ``path``, whose missing folders are created.

    Raises:
        ValueError: the field is not scalar.
        ModuleNotFoundError: matplotlib, or in 3D pyvista, is missing.
    """
    data, style = _shown([solution], solution, axes, log=log, label=label, cmap=cmap, contours=contours)

    def draw() -> Any:
        window = None if ax else _draw.window(data, style)
        a = ax or _draw.figure(1, 1, _draw.aspect(data[0], window))[1][0]
        low, high = limits or _draw.limits(data, style)
        artist = _draw.draw(a, data[0], style, low, high, window)
        if artist is None:
            a.set(xlabel=style.axes[0], ylabel=style.label)
        else:
            _draw.colour_bar(artist, a, style.label)
        a.set_title(title)
        return a.figure

    return _finish(data[0].comm, draw, path)


def series(
    functions: Sequence[Any],
    titles: Sequence[str] | None = None,
    path: str | Path | None = None,
    *,
    axes: Sequence[str] | None = None,
    columns: int = 4,
    **style_options: Any,
) -> Any:
    """Draw a filmstrip of several fields, or of an evolution, on the same scale, with some ``columns`` in a row.

    Titles are the times where there are any.  ``log``, ``label``, ``cmap`` and ``contours`` as in :func:`field`.
    """
    if titles is None:
        times = getattr(functions, "times", None)
        titles = [""] * len(functions) if times is None else [f"$t = {t:.4g}$" for t in times]
    if len(titles) != len(functions) or not len(functions):
        counts = f"{len(functions)} functions and {len(titles)} titles"
        raise ValueError(f"plot.series: {counts}; one title for each was expected.")
    data, style = _shown([functions[i] for i in range(len(functions))], functions, axes, **style_options)

    def draw() -> Any:
        width, window = min(columns, len(data)), _draw.window(data, style)
        fig, panels = _draw.figure(-(-len(data) // width), width, _draw.aspect(data[0], window), share=True)
        low, high = _draw.limits(data, style)
        for a, d, title in zip(panels, data, titles, strict=False):
            artist = _draw.draw(a, d, style, low, high, window)
            a.set_title(title)
            a.label_outer()
        for a in panels[len(data) :]:
            a.set_visible(False)
        if artist is None:
            fig.supxlabel(style.axes[0], fontsize="medium")
            fig.supylabel(style.label, fontsize="medium")
        elif len(data) == width:
            _draw.colour_bar(artist, panels[-1], style.label)
        else:
            fig.colorbar(artist, ax=list(panels), label=style.label, shrink=0.8)
        return fig

    return _finish(data[0].comm, draw, path)


def save(fig: Any, path: str | Path, comm: MPI.Comm = MPI.COMM_WORLD) -> None:
    """Write a figure of rank 0 (collective); missing folders are created."""
    on_root(comm, lambda: write_figure(fig, Path(path)))


def _shown(
    functions: list[Any], answer: Any, axes: Sequence[str] | None, **options: Any
) -> tuple[list[_draw.Sample], _draw.Style]:
    """Fields to draw on rank 0, and how, as the name of ``answer`` or else of the first of them says (collective)."""
    data = [_draw.sample(getattr(f, "function", f)) for f in functions]
    name: Any = getattr(answer, "name", None)
    if not isinstance(name, str):
        name = getattr(getattr(functions[0], "function", functions[0]), "name", "")
    if axes is None:
        process = getattr(getattr(answer, "generator", None), "process", None)
        axes = ("$x$", "$v$") if getattr(process, "kinetic", False) else ("$x$", "$y$", "$z$")
    return data, _draw.Style(name.replace("_", " "), axes, **options)


def styled(draw: Callable[[], Any]) -> Any:
    """Call a function that draws, in the style of all pictures (rank 0)."""
    matplotlib: Any = import_optional("matplotlib", "fpsolver.plot")
    with matplotlib.rc_context(_draw.RC):
        return draw()


def _finish(comm: MPI.Comm, draw: Callable[[], Any], path: str | Path | None) -> Any:
    def work() -> Any:
        fig = styled(draw)
        if path is not None:
            write_figure(fig, Path(path))
        return fig

    return on_root(comm, work)
