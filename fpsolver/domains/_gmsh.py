"""Meshes by gmsh, on rank 0: its files, and geometries of ours."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import basix
import numpy as np

from .. import _compat
from .._arguments import check_numbers, expect
from .._errors import import_optional
from ._arrays import SHAPES, Array, RawMesh, equal_rows, tidy
from ._refine import element
from .regions import check_polygon

HOW_TO_NAME = (
    "Name the boundary before writing the file, in a gmsh script by 'Physical Curve(\"left\") = {4};' (in 3D 'Physical "
    'Surface\'), in Python by gmsh.model.addPhysicalGroup(dim - 1, [4], name="left"), and give the interior a physical '
    "group too: as soon as there is one group, gmsh writes nothing else"
)

HIGHEST = 6  # degree of round cells beyond which their shape is rounding


@contextmanager
def session(purpose: str) -> Iterator[ModuleType]:
    """A silent gmsh with an empty model of its own; a session that the caller has open is left as it was."""
    gmsh = import_optional("gmsh", purpose)
    ours = not gmsh.isInitialized()
    if ours:
        gmsh.initialize(readConfigFiles=False, interruptible=False)
    current = gmsh.model.getCurrent()
    changed = ("General.Terminal", "General.NumThreads", "Mesh.MeshSizeMin", "Mesh.MeshSizeMax")
    before = {k: gmsh.option.getNumber(k) for k in changed}
    gmsh.model.add("fpsolver")
    try:
        gmsh.option.setNumber("General.Terminal", 0)
        gmsh.option.setNumber("General.NumThreads", 1)
        yield gmsh
    finally:
        gmsh.model.setCurrent("fpsolver")
        gmsh.model.remove()
        for k, v in before.items():
            gmsh.option.setNumber(k, v)
        gmsh.finalize() if ours else gmsh.model.setCurrent(current)


def current_model(gmsh: ModuleType, source: str) -> RawMesh:
    """The cells of the highest dimension in gmsh's current model, their groups and those of their facets."""
    model = gmsh.model
    tags, x, _ = model.mesh.getNodes()
    number = np.zeros(int(tags.max(initial=0)) + 1, dtype=np.int64)
    number[tags] = np.arange(len(tags))
    dim = max((d for d in (1, 2, 3) if len(model.mesh.getElementTypes(d))), default=0)
    if dim == 0:
        raise ValueError(f"{source} has no cells")
    kinds = [model.mesh.getElementProperties(t) for t in model.mesh.getElementTypes(dim)]
    if len(kinds) > 1 or kinds[0][5] != dim + 1:
        names = ", ".join(k[0] for k in kinds)
        raise ValueError(f"{source} has cells of type {names}; expected one type: intervals, triangles or tetrahedra")
    degree, nodes = kinds[0][2:4]

    def elements(d: int, entity: int) -> Array:
        """Nodes of an entity's elements, of which the vertices come first."""
        found = [n.reshape(len(t), -1) for _, t, n in zip(*model.mesh.getElements(d, entity), strict=True)]
        return number[np.vstack(found)] if found else np.zeros((0, nodes if d == dim else dim), np.int64)

    pieces = {entity: elements(dim, entity) for _, entity in model.getEntities(dim)}
    begin = dict(zip(pieces, np.cumsum([0, *map(len, pieces.values())]), strict=False))
    rows = {entity: begin[entity] + np.arange(len(piece)) for entity, piece in pieces.items()}
    # MSH 2 lists an element once for each group of its entity
    cells = np.vstack(list(pieces.values()))
    shared = [rows[e] for e in rows if len(model.getPhysicalGroupsForEntity(dim, e)) > 1]
    again, order, start, _ = equal_rows(np.sort(cells, axis=1))
    first, keep = order[start][again], np.ones(len(cells), dtype=bool)
    for some in shared:
        keep[some] = first[some] == some
    now = (np.cumsum(keep) - 1)[np.where(keep, np.arange(len(cells)), first)]
    facets: dict[str, list[Array]] = {}
    groups: dict[str, list[Array]] = {}
    for d in (dim - 1, dim):
        for _, group in model.getPhysicalGroups(d):
            name = model.getPhysicalName(d, group) or str(group)
            for entity in model.getEntitiesForPhysicalGroup(d, group):
                if d == dim:
                    groups.setdefault(name, []).append(now[rows[entity]])
                else:
                    facets.setdefault(name, []).append(elements(d, entity)[:, :dim])
    if not facets:
        raise ValueError(f"{source} has no physical groups for parts of its boundary. {HOW_TO_NAME}")
    cells = cells[keep][:, _compat.node_order("gmsh", SHAPES[dim], nodes)]
    named = {k: np.vstack(v) for k, v in facets.items()}
    inside = {k: np.concatenate(v) for k, v in groups.items()}
    return tidy(x.reshape(-1, 3), cells, degree, named, source, inside)


def read_gmsh(path: Path) -> RawMesh:
    """Read a .msh file: gmsh would run everything else as a script, which may call any program."""
    with path.open("rb") as file:
        header = file.read(64)
    words = header.split()
    if words[:1] != [b"$MeshFormat"] or not header.startswith(b"$MeshFormat"):
        raise ValueError(
            f"{path} is no mesh of gmsh: it begins with {header[:20]!r}; $MeshFormat was expected. A script (.geo) is "
            "meshed by 'gmsh -3 FILE.geo' first"
        )
    with session("reading a .msh file") as gmsh, TemporaryDirectory() as folder:
        # gmsh also obeys FILE.msh.opt beside a file, which may call programs as well; nothing lies beside a link
        link = Path(folder) / "mesh.msh"
        link.symlink_to(path.absolute())
        try:
            gmsh.merge(str(link))
        except Exception as e:
            raise ValueError(f"gmsh cannot read {path}: {e}") from e
        return current_model(gmsh, str(path))


def round_geometry(what: str, dim: int, center: Any, radii: Sequence[float], h: float) -> RawMesh:
    """Mesh a ball (one radius) or the shell between two concentric spheres (two radii) in 2 or 3 dimensions."""
    middle = check_numbers(f"{what}: center", center, dim)
    check_numbers(f"{what}: radius", radii, len(radii))
    check_numbers(f"{what}: h", [h], 1)
    expect(f"{what}: (radius, h)", (min(radii), h), "a pair of positive numbers", min(*radii, h) > 0)
    with session(what) as gmsh:
        occ, z = gmsh.model.occ, (*middle, 0.0)[:3]
        bodies = [(dim, occ.addDisk(*z, r, r) if dim == 2 else occ.addSphere(*z, r)) for r in reversed(radii)]
        if len(bodies) == 2:
            occ.cut(bodies[:1], bodies[1:])
        occ.synchronize()
        for k in ("Min", "Max"):
            gmsh.option.setNumber(f"Mesh.MeshSize{k}", h)
        parts: dict[str, list[int]] = {}
        for _, wall in gmsh.model.getBoundary(gmsh.model.getEntities(dim), oriented=False):
            size = np.ptp(np.reshape(gmsh.model.getBoundingBox(dim - 1, wall), (2, 3))[:, 0])
            name = "boundary" if len(radii) == 1 else "inner" if size < sum(radii) else "outer"
            parts.setdefault(name, []).append(wall)
        for name, walls in parts.items():
            gmsh.model.addPhysicalGroup(dim - 1, walls, name=name)
        gmsh.model.mesh.generate(dim)
        gmsh.model.mesh.setOrder(2)
        raw = current_model(gmsh, what)
    for r in radii:
        balance(raw, np.array(middle), float(r))
    return raw


def polygon_geometry(vertices: Any, h: float, edges: Mapping[str, Sequence[int]] | None) -> RawMesh:
    """Mesh a polygon; edge i joins vertex i to the next one, ``edges`` names sets of them."""
    corners, parts = check_polygon(vertices, h, edges)
    with session("Domain.polygon") as gmsh:
        geo = gmsh.model.geo
        points = [geo.addPoint(float(x), float(y), 0.0, float(h)) for x, y in corners]
        lines = [geo.addLine(a, b) for a, b in zip(points, points[1:] + points[:1], strict=True)]
        geo.addPlaneSurface([geo.addCurveLoop(lines)])
        geo.synchronize()
        for name, chosen in parts.items():
            gmsh.model.addPhysicalGroup(1, [lines[i] for i in chosen], name=name)
        gmsh.model.mesh.generate(2)
        return current_model(gmsh, "Domain.polygon")


@dataclass(frozen=True)
class RoundShape:
    """Concentric circles or spheres: one or two radii; ``h`` is the length of edges of the first mesh."""

    center: Array
    radii: tuple[float, ...]
    h: float

    def snapped(self, x: Array) -> Array:
        """Points (dim, n), those that belong to a curve moved onto it.

        Quadratic cells stay within r θ⁴/12 of it, θ half the angle of an edge, which is less than ¾ h/r; no node
        inside is as near in the meshes of practice.
        """
        away = x - self.center[:, None]
        distance, moved = np.linalg.norm(away, axis=0), x.copy()
        for r in self.radii:
            near = np.abs(distance - r) < max(0.06 * r * min(self.h / r, 1.0) ** 4, 1e-9 * r)
            moved[:, near] = self.center[:, None] + r * away[:, near] / distance[near]
        return moved


def balance(raw: RawMesh, center: Array, radius: float) -> None:
    """Shift the nodes on a sphere that are no vertices so that quadratic facets enclose its volume.

    With all nodes on the sphere the facets lie inside by r θ⁴/15 on average, θ the half angle of an edge, which is a
    defect of order h⁴ in every answer.
    """
    dim, x = raw.dim, raw.points - center
    on = np.abs(np.linalg.norm(x, axis=1) - radius) < 1e-6 * radius
    closure = np.array(element(dim, 2).entity_closure_dofs[dim - 1])  # vertices, then edges, the last one first
    facets = raw.cells[:, closure].reshape(-1, closure.shape[1])
    facets = facets[on[facets].all(axis=1)]
    bulge = np.zeros(len(x))
    for i, (a, b) in enumerate(reversed(list(combinations(range(dim), 2)))):
        half = np.linalg.norm(x[facets[:, a]] - x[facets[:, b]], axis=1) / (2 * radius)
        bulge[facets[:, dim + i]] = (1 - np.sqrt(1 - half**2)) ** 2
    p2 = element(dim - 1, 2)
    points, weights = basix.make_quadrature(p2.cell_type, 10)
    shapes = p2.tabulate(1, points)[..., 0]

    def volume(kappa: float) -> float:
        moved = (x * (1 + kappa * bulge)[:, None])[facets]
        cones = np.stack([np.einsum("qn,fnd->fqd", shape, moved) for shape in shapes], axis=2)
        return float(np.abs(np.linalg.det(cones) @ weights).sum() / dim)

    exact = (np.pi, 4 / 3 * np.pi)[dim - 2] * radius**dim
    low, high = volume(0.0), volume(0.1)
    raw.points[:] += (0.1 * (exact - low) / (high - low) * bulge)[:, None] * x
