"""Three orthogonal slices through a field in space, drawn by pyvista in a process of its own, whose script this is.

VTK ends the whole process when it finds no display, which must not happen to a parallel computation.
"""

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np


def slices(data: Any, norm: Any, cmap: str) -> Any:
    """An image, shape (height, width, channels), of a :class:`fpsolver._sample.Sample` in 3D (rank 0)."""
    from matplotlib.image import imread

    from ._errors import import_optional

    import_optional("pyvista", "a picture in 3D")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "field.npz"), Path(folder, "field.png")
        # the vertices of tetrahedra in VTK's order, from which it knows the outer side of the surface
        x, cells = data.points[data.cells], data.cells.copy()
        turned = np.linalg.det(x[:, 1:] - x[:, :1]) < 0
        cells[turned, 2:] = cells[turned, :1:-1]
        drawn: Any = {"cmap": cmap, "log": type(norm).__name__ == "LogNorm", "limits": (norm.vmin, norm.vmax)}
        np.savez(source, points=data.points, cells=cells, values=data.values, **drawn)
        command = [sys.executable, str(Path(__file__).resolve()), str(source), str(target)]
        if not os.environ.get("DISPLAY") and shutil.which("xvfb-run"):
            command = ["xvfb-run", "-a", *command]
        # the child is no rank of this computation
        env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "PRTE_", "PMI_", "MPI"))}
        log = Path(folder, "messages.txt")
        with log.open("w") as out, suppress(subprocess.TimeoutExpired):
            streams: Any = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out}
            subprocess.run(command, env=env, timeout=120, check=False, **streams)
        if not target.exists():
            message = (log.read_text(errors="replace").strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(
                f"pyvista could not draw off-screen: {message}. Install xvfb (for a display), or "
                "write the field with fpsolver.io.write to .bp or .xdmf and open it in ParaView"
            )
        return imread(target)


def _render(source: str, target: str) -> None:
    pyvista: Any = importlib.import_module("pyvista")
    f = np.load(source)
    grid = pyvista.UnstructuredGrid({pyvista.CellType.TETRA: f["cells"]}, f["points"])
    grid.point_data["values"] = f["values"]
    plotter = pyvista.Plotter(off_screen=True, window_size=(900, 750))
    plotter.set_background("white")
    surface = grid.clean(tolerance=1e-9).extract_surface()  # merged: the small cells share no points
    surface = surface.clean(tolerance=1e-6)
    plotter.add_mesh(surface, color="black", opacity=0.06)
    edges = surface.extract_feature_edges(30, boundary_edges=False, non_manifold_edges=False, manifold_edges=False)
    if edges.n_points:
        plotter.add_mesh(edges, color="black", line_width=1)
    plotter.add_mesh(
        grid.slice_orthogonal(), scalars="values", cmap=str(f["cmap"]), clim=tuple(f["limits"]),
        log_scale=bool(f["log"]), show_scalar_bar=False, lighting=False,
    )  # fmt: skip
    plotter.show_axes()
    plotter.screenshot(target)


if __name__ == "__main__":
    _render(*sys.argv[1:])
