"""Meshes by gmsh, on rank 0: its files, and geometries of ours."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import numpy as np

from .. import _compat
from .._errors import import_optional
from ._arrays import SHAPES, Array, RawMesh, tidy
from ._conform import equal_rows
from ._round import balance

HOW_TO_NAME = (
    "Name the boundary before writing the file, in a gmsh script by 'Physical Curve(\"left\") = {4};' (in 3D 'Physical "
    'Surface\'), in Python by gmsh.model.addPhysicalGroup(dim - 1, [4], name="left"), and give the interior a physical '
    "group too: as soon as there is one group, gmsh writes nothing else"
)


@contextmanager
def session(purpose: str) -> Iterator[ModuleType]:
    """A silent gmsh with an empty model of its own; a session that the caller has open is left as it was."""
    gmsh = import_optional("gmsh", purpose)
    options = {"General.Terminal": 0, "General.NumThreads": 1}
    ours = not gmsh.isInitialized()
    if ours:
        gmsh.initialize(readConfigFiles=False, interruptible=False)
    current = gmsh.model.getCurrent()
    options |= {f"Mesh.MeshSize{k}": gmsh.option.getNumber(f"Mesh.MeshSize{k}") for k in ("Min", "Max")}
    before = {k: gmsh.option.getNumber(k) for k in options}
    name = "fpsolver"
    gmsh.model.add(name)
    try:
        for k, v in options.items():
            gmsh.option.setNumber(k, v)
        yield gmsh
    finally:
        if ours:
            gmsh.finalize()
        else:
            gmsh.model.setCurrent(name)
            gmsh.model.remove()
            for k, v in before.items():
                gmsh.option.setNumber(k, v)
            gmsh.model.setCurrent(current)


def current_model(gmsh: ModuleType, source: str) -> RawMesh:
    """The cells of the highest dimension in gmsh's current model, their groups and those of their facets."""
    tags, x, _ = gmsh.model.mesh.getNodes()
    number = np.zeros(int(tags.max()) + 1 if len(tags) else 1, dtype=np.int64)
    number[tags] = np.arange(len(tags))

    types = {d: gmsh.model.mesh.getElementTypes(d) for d in range(1, 4)}
    dim = max((d for d in types if len(types[d])), default=0)
    if dim == 0:
        raise ValueError(f"{source} has no cells")
    kinds = [gmsh.model.mesh.getElementProperties(t) for t in types[dim]]
    if len(kinds) > 1 or kinds[0][5] != dim + 1:
        names = ", ".join(k[0] for k in kinds)
        raise ValueError(f"{source} has cells of type {names}; expected one type: intervals, triangles or tetrahedra")
    _, _, degree, nodes, _, _ = kinds[0]
    _, connectivity = gmsh.model.mesh.getElementsByType(types[dim][0])
    cells = number[connectivity].reshape(-1, nodes)[:, _compat.node_order("gmsh", SHAPES[dim], nodes)]

    numbers: dict[int, Array] = {}  # of the cells of each entity
    place = 0
    for _, entity in gmsh.model.getEntities(dim):
        numbers[entity] = place + np.arange(len(gmsh.model.mesh.getElementsByType(types[dim][0], entity)[0]))
        place += len(numbers[entity])
    # MSH 2 lists an element once for each group of its entity
    cells, again = _without_repetitions(gmsh, dim, cells, numbers)
    facets: dict[str, list[Array]] = {}
    groups: dict[str, list[Array]] = {}
    for d in (dim - 1, dim):
        for _, group in gmsh.model.getPhysicalGroups(d):
            name = gmsh.model.getPhysicalName(d, group) or str(group)
            for entity in gmsh.model.getEntitiesForPhysicalGroup(d, group):
                if d == dim:
                    groups.setdefault(name, []).append(again[numbers[entity]])
                    continue
                for t, _, entity_nodes in zip(*gmsh.model.mesh.getElements(d, entity), strict=True):
                    per_facet = gmsh.model.mesh.getElementProperties(t)[3]
                    # the vertices come first in every element of gmsh
                    facets.setdefault(name, []).append(number[entity_nodes].reshape(-1, per_facet)[:, :dim])
    if not facets:
        raise ValueError(f"{source} has no physical groups for parts of its boundary. {HOW_TO_NAME}")
    named = {k: np.vstack(v) for k, v in facets.items()}
    inside = {k: np.concatenate(v) for k, v in groups.items()}
    return tidy(x.reshape(-1, 3), cells, degree, named, source, inside)


def _without_repetitions(gmsh: ModuleType, dim: int, cells: Array, numbers: dict[int, Array]) -> tuple[Array, Array]:
    """Cells of entities in several groups once, and for each cell of before the row where it is now."""
    keep = np.ones(len(cells), dtype=bool)
    number, order, start, _ = equal_rows(np.sort(cells, axis=1))
    first = order[start][number]
    for entity, rows in numbers.items():
        if len(gmsh.model.getPhysicalGroupsForEntity(dim, entity)) > 1:
            keep[rows] = first[rows] == rows
    now = np.cumsum(keep) - 1
    return cells[keep], now[np.where(keep, np.arange(len(cells)), first)]


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


def round_geometry(
    kind: str, dim: int, center: Sequence[float], radii: Sequence[float], h: float, order: int
) -> RawMesh:
    """Mesh a ball (one radius) or the shell between two concentric spheres (two radii) in 2 or 3 dimensions."""
    with session(f"Domain.{kind}") as gmsh:
        occ = gmsh.model.occ
        z = (*center, 0.0)[:3]
        bodies = [
            (dim, occ.addDisk(*z, r, r) if dim == 2 else occ.addSphere(*z, r)) for r in sorted(radii, reverse=True)
        ]
        if len(bodies) == 2:
            occ.cut(bodies[:1], bodies[1:])
        occ.synchronize()
        for k in ("Min", "Max"):
            gmsh.option.setNumber(f"Mesh.MeshSize{k}", h)
        walls = [s for d, s in gmsh.model.getBoundary(gmsh.model.getEntities(dim), oriented=False) if d == dim - 1]
        if len(radii) == 1:
            parts = {"boundary": walls}
        else:
            size = {s: np.ptp(np.reshape(gmsh.model.getBoundingBox(dim - 1, s), (2, 3))[:, 0]) for s in walls}
            middle = sum(radii)
            parts = {"inner": [s for s in walls if size[s] < middle], "outer": [s for s in walls if size[s] > middle]}
        for name, entities in parts.items():
            gmsh.model.addPhysicalGroup(dim - 1, entities, name=name)
        gmsh.model.mesh.generate(dim)
        gmsh.model.mesh.setOrder(order)
        raw = current_model(gmsh, f"Domain.{kind}")
    if order == 2:
        for r in radii:
            balance(raw, np.asarray(center, float), float(r))
    return raw


def polygon_geometry(vertices: Array, h: float, parts: dict[str, list[int]]) -> RawMesh:
    """Mesh a polygon; edge i joins vertex i to the next one, ``parts`` names sets of edges."""
    with session("Domain.polygon") as gmsh:
        geo = gmsh.model.geo
        points = [geo.addPoint(float(x), float(y), 0.0, h) for x, y in vertices]
        edges = [geo.addLine(a, b) for a, b in zip(points, points[1:] + points[:1], strict=True)]
        geo.addPlaneSurface([geo.addCurveLoop(edges)])
        geo.synchronize()
        for name, chosen in parts.items():
            gmsh.model.addPhysicalGroup(1, [edges[i] for i in chosen], name=name)
        try:
            gmsh.model.mesh.generate(2)
        except Exception as e:
            raise ValueError(f"Domain.polygon: gmsh cannot mesh it ({e}); do its edges cross?") from e
        return current_model(gmsh, "Domain.polygon")
