"""Write the meshes of this folder again: ``python3 make_meshes.py [names ...]`` (needs gmsh; serial)."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gmsh
import numpy as np

from fpsolver import Domain, io

HERE = Path(__file__).parent
SADDLE = 0.101031257881011
"""Saddle of the tilted double well f = (x^2 - 1)^2/4 + x/10 + y^2/2, a root of x^3 - x + 1/10."""


def two_wells_basin() -> int:
    """Where x is beyond the saddle and f <= 1: the basin of the worse minimum (0.945649, 0)."""
    occ = gmsh.model.occ

    def potential(x: Any) -> Any:
        return (x * x - 1) ** 2 / 4 + x / 10

    top = np.sqrt(2 * (1 - potential(SADDLE)))
    # the level line as seen from (SADDLE, 0), from the upper end of the saddle line to the lower one
    angles = np.linspace(np.pi / 2, -np.pi / 2, 81)[1:-1]
    low, high = np.zeros(len(angles)), np.full(len(angles), 3.0)
    for _ in range(60):
        r = (low + high) / 2
        below = potential(SADDLE + r * np.cos(angles)) + (r * np.sin(angles)) ** 2 / 2 < 1
        low, high = np.where(below, r, low), np.where(below, high, r)
    level = [occ.addPoint(SADDLE + s * np.cos(a), s * np.sin(a), 0) for s, a in zip(low, angles, strict=True)]
    ends = [occ.addPoint(SADDLE, y, 0) for y in (top, -top)]
    wall = occ.addSpline([ends[0], *level, ends[1]])
    saddle = occ.addLine(ends[1], ends[0])
    surface = occ.addPlaneSurface([occ.addCurveLoop([wall, saddle])])
    occ.synchronize()
    _name(2, {"basin": [surface]})
    _name(1, {"saddle": [saddle], "wall": [wall]})
    _size(0.12)
    return 2


def l_shape() -> int:
    """(-1, 1)^2 without its lower right quarter; finer towards the corner at the origin."""
    geo = gmsh.model.geo
    corners = [(0, 0), (0, -1), (-1, -1), (-1, 1), (1, 1), (1, 0)]
    points = [geo.addPoint(x, y, 0, 0.02 if (x, y) == (0, 0) else 0.15) for x, y in corners]
    lines = [geo.addLine(a, b) for a, b in zip(points, points[1:] + points[:1], strict=True)]
    surface = geo.addPlaneSurface([geo.addCurveLoop(lines)])
    geo.synchronize()
    _name(2, {"inside": [surface]})
    _name(1, {"bottom": [lines[1]], "right": [lines[4]], "wall": [lines[i] for i in (0, 2, 3, 5)]})
    return 1


def annulus() -> int:
    """What lies between the circles of radius 0.5 and 1 around the origin."""
    occ = gmsh.model.occ
    ring, _ = occ.cut([(2, occ.addDisk(0, 0, 0, 1, 1))], [(2, occ.addDisk(0, 0, 0, 0.5, 0.5))])
    occ.synchronize()
    _name(2, {"ring": [ring[0][1]]})
    curves = [c for _, c in gmsh.model.getBoundary(ring, oriented=False)]
    outer = max(curves, key=lambda c: gmsh.model.occ.getMass(1, c))
    _name(1, {"inner": [c for c in curves if c != outer], "outer": [outer]})
    _size(0.12)
    return 2


def ball() -> int:
    """The unit ball, coarse."""
    sphere = gmsh.model.occ.addSphere(0, 0, 0, 1)
    gmsh.model.occ.synchronize()
    _name(3, {"inside": [sphere]})
    _name(2, {"boundary": [s for _, s in gmsh.model.getBoundary([(3, sphere)], oriented=False)]})
    _size(0.45)
    return 2


def _name(dim: int, groups: dict[str, list[int]]) -> None:
    for name, entities in groups.items():
        gmsh.model.addPhysicalGroup(dim, entities, name=name)


def _size(h: float) -> None:
    for end in ("Min", "Max"):
        gmsh.option.setNumber(f"Mesh.MeshSize{end}", h)


def make(build: Callable[[], int]) -> None:
    """Mesh one geometry and write it as .msh and as .xdmf."""
    gmsh.initialize(readConfigFiles=False)
    gmsh.option.setNumber("General.Terminal", 0)
    gmsh.option.setNumber("General.NumThreads", 1)
    gmsh.model.add(build.__name__)
    order = build()
    gmsh.model.mesh.generate(gmsh.model.getDimension())
    gmsh.model.mesh.setOrder(order)
    path = HERE / f"{build.__name__}.msh"
    gmsh.write(str(path))
    gmsh.finalize()
    domain = Domain.read(path)
    io.write_domain(path.with_suffix(".xdmf"), domain)
    sizes = [round(path.with_suffix(s).stat().st_size / 1000) for s in (".msh", ".xdmf", ".h5")]
    print(f"{path.stem}: {domain}, degree {order}, {sizes} kB")


if __name__ == "__main__":
    MESHES = {build.__name__: build for build in (two_wells_basin, l_shape, annulus, ball)}
    for name in sys.argv[1:] or MESHES:
        make(MESHES[name])
