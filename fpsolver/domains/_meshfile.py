"""Meshes as plain arrays on rank 0: from files (gmsh, meshio) and from gmsh's own geometries.

Everything here is serial; :mod:`fpsolver.domains.domain` distributes the result.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar
from xml.etree import ElementTree

from mpi4py import MPI

import basix
import numpy as np
import numpy.typing as npt

from .. import _compat
from .._log import logger

T = TypeVar("T")
Array = npt.NDArray[Any]

SHAPES = ("point", "interval", "triangle", "tetrahedron")
"""Shape of a simplex by its dimension."""

XDMF_KEY = "fpsolver boundary parts"
"""Under this key an .xdmf file of ours keeps the names of the boundary parts, as a JSON list."""

_MESHIO_CELLS = {
    "line": (1, 1),
    "line3": (1, 2),
    "triangle": (2, 1),
    "triangle6": (2, 2),
    "tetra": (3, 1),
    "tetra10": (3, 2),
}
_OTHER_CELLS = ("quad", "hexahedron", "wedge", "pyramid", "polygon", "polyhedron", "VTK_", "triangle", "tetra", "line")

HOW_TO_NAME = (
    "Name the boundary before writing the file, in a gmsh script by 'Physical Curve(\"left\") = {4};' (in 3D 'Physical "
    'Surface\'), in Python by gmsh.model.addPhysicalGroup(dim - 1, [4], name="left"), and give the interior a physical '
    "group too: as soon as there is one group, gmsh writes nothing else"
)


@dataclass(frozen=True)
class RawMesh:
    """A mesh of simplices as arrays, all on one rank.

    Attributes:
        points: nodes, shape (nodes, dim).
        cells: nodes of each cell in DOLFINx order, shape (cells, nodes per cell).
        degree: degree of the map from the reference cell.
        facets: vertices of the facets of each named part, shape (facets, dim).
    """

    points: Array
    cells: Array
    degree: int
    facets: dict[str, Array]

    @property
    def dim(self) -> int:
        """Dimension of space and of the cells."""
        return self.points.shape[1]


def on_root(comm: MPI.Comm, work: Callable[[], T]) -> T | None:
    """Do serial work on rank 0; what it raises is raised on every rank (collective).

    Returns:
        The result on rank 0, None elsewhere.
    """
    result, failure, cause = None, None, None
    if comm.rank == 0:
        try:
            result = work()
        except Exception as e:
            known = next(
                (k for k in (ValueError, FileNotFoundError, ModuleNotFoundError) if isinstance(e, k)), RuntimeError
            )
            failure, cause = known(str(e)), e
    failure = comm.bcast(failure, root=0)
    if failure is not None:
        raise failure from cause
    return result


def inspect(path: Path) -> list[str] | None:
    """Refuse files that cannot be read; the names of the parts in an .xdmf file of ours, None for other files."""
    if not path.is_file():
        folder = path.parent
        near = sorted(p.name for p in folder.glob(f"*{path.suffix}")) if folder.is_dir() else None
        what = (
            f"no folder {folder}"
            if near is None
            else f"the {path.suffix} files in {folder} are {', '.join(near) or 'none'}"
        )
        raise FileNotFoundError(f"there is no mesh file {path}; {what}")
    known = readable_suffixes()
    if path.suffix not in known:
        raise ValueError(f"{path} has the unknown file type {path.suffix!r}; known are {', '.join(known)}")
    if path.suffix != ".xdmf":
        return None
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as e:
        raise ValueError(f"{path} is not an XDMF file: {e}") from e
    data = {
        (path.parent / (item.text or "").split(":")[0].strip())
        for item in root.iter("DataItem")
        if item.get("Format") == "HDF"
    }
    for file in sorted(data):
        if not file.is_file():
            raise FileNotFoundError(f"{path} keeps its numbers in {file.name}, which is not in the same folder")
    information = root.find(f".//Information[@Name='{XDMF_KEY}']")
    return None if information is None else json.loads(information.get("Value", ""))


def import_optional(name: str, purpose: str) -> ModuleType:
    """Import an optional package, or say what it is needed for."""
    try:
        return __import__(name)
    except (ImportError, OSError) as e:  # OSError: gmsh without its shared library
        raise ModuleNotFoundError(
            f"{purpose} needs the Python package '{name}', which could not be imported ({e}). "
            f"Install it, e.g. 'apt install python3-{name}' or 'pip install {name}'"
        ) from e


# -- gmsh


@contextmanager
def _gmsh(purpose: str) -> Iterator[ModuleType]:
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


def _from_gmsh(gmsh: ModuleType, source: str) -> RawMesh:
    """The cells of the highest dimension in gmsh's current model and the named groups of their facets."""
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

    facets: dict[str, list[Array]] = {}
    unnamed = []
    for _, group in gmsh.model.getPhysicalGroups(dim - 1):
        name = gmsh.model.getPhysicalName(dim - 1, group)
        if not name:
            unnamed.append(group)
            continue
        for entity in gmsh.model.getEntitiesForPhysicalGroup(dim - 1, group):
            for t, _, entity_nodes in zip(*gmsh.model.mesh.getElements(dim - 1, entity), strict=True):
                per_facet = gmsh.model.mesh.getElementProperties(t)[3]
                # the vertices come first in every element of gmsh
                facets.setdefault(name, []).append(number[entity_nodes].reshape(-1, per_facet)[:, :dim])
    if not facets:
        numbers = f" (only the numbers {unnamed})" if unnamed else ""
        raise ValueError(f"{source} has no physical names for parts of its boundary{numbers}. {HOW_TO_NAME}")
    return tidy(x.reshape(-1, 3), cells, degree, {k: np.vstack(v) for k, v in facets.items()}, source)


def read_gmsh(path: Path) -> RawMesh:
    """Read a .msh file."""
    with _gmsh("reading a .msh file") as gmsh:
        try:
            gmsh.merge(str(path))
        except Exception as e:
            raise ValueError(f"gmsh cannot read {path}: {e}") from e
        return _from_gmsh(gmsh, str(path))


def round_geometry(
    kind: str, dim: int, center: Sequence[float], radii: Sequence[float], h: float, order: int
) -> RawMesh:
    """Mesh a ball (one radius) or the shell between two concentric spheres (two radii) in 2 or 3 dimensions."""
    with _gmsh(f"Domain.{kind}") as gmsh:
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
        raw = _from_gmsh(gmsh, f"Domain.{kind}")
    if order == 2:
        for r in radii:
            _balance(raw, np.asarray(center, float), float(r))
    return raw


def _balance(raw: RawMesh, center: Array, radius: float) -> None:
    """Shift the nodes on a sphere that are no vertices so that quadratic facets enclose its volume.

    With all nodes on the sphere the facets lie inside by r θ⁴/15 on average, θ the half angle of an edge, which is a
    defect of order h⁴ in every answer.
    """
    dim, x = raw.dim, raw.points - center
    on = np.abs(np.linalg.norm(x, axis=1) - radius) < 1e-6 * radius
    edge = {pair: raw.cells[:, -1 - i] for i, pair in enumerate(combinations(range(dim + 1), 2))}  # basix: last first
    faces = list(combinations(range(dim + 1), dim))
    rows = [[*raw.cells[:, f].T, *(edge[e] for e in reversed(list(combinations(f, 2))))] for f in faces]
    facets = np.concatenate([np.stack(row, axis=1) for row in rows])
    facets = facets[on[facets].all(axis=1)]
    bulge = np.zeros(len(x))
    for i, (a, b) in enumerate(reversed(list(combinations(range(dim), 2)))):
        half = np.linalg.norm(x[facets[:, a]] - x[facets[:, b]], axis=1) / (2 * radius)
        bulge[facets[:, dim + i]] = (1 - np.sqrt(1 - half**2)) ** 2
    cell = (basix.CellType.interval, basix.CellType.triangle)[dim - 2]
    points, weights = basix.make_quadrature(cell, 10)
    p2 = basix.create_element(basix.ElementFamily.P, cell, 2, basix.LagrangeVariant.equispaced)
    shapes = p2.tabulate(1, points)[..., 0]

    def volume(kappa: float) -> float:
        moved = (x * (1 + kappa * bulge)[:, None])[facets]
        cones = np.stack([np.einsum("qn,fnd->fqd", shape, moved) for shape in shapes], axis=2)
        return float(np.abs(np.linalg.det(cones) @ weights).sum() / dim)

    exact = (np.pi, 4 / 3 * np.pi)[dim - 2] * radius**dim
    low, high = volume(0.0), volume(0.1)
    raw.points[:] += (0.1 * (exact - low) / (high - low) * bulge)[:, None] * x


def polygon_geometry(vertices: Array, h: float, parts: dict[str, list[int]]) -> RawMesh:
    """Mesh a polygon; edge i joins vertex i to the next one, ``parts`` names sets of edges."""
    with _gmsh("Domain.polygon") as gmsh:
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
        return _from_gmsh(gmsh, "Domain.polygon")


# -- meshio


def readable_suffixes() -> list[str]:
    """Suffixes of the files that can be read here and now."""
    try:
        import meshio
    except ImportError:
        return [".msh", ".xdmf"]
    return sorted({".msh", ".xdmf", *meshio.extension_to_filetypes})


def read_meshio(path: Path) -> RawMesh:
    """Read any file that meshio reads; named sets of facets become parts."""
    meshio = import_optional("meshio", f"reading a {path.suffix} file")
    try:
        m = meshio.read(path)
    except (Exception, SystemExit) as e:  # meshio leaves by sys.exit when no reader fits
        raise ValueError(f"meshio cannot read {path}: {e or 'the content does not fit the file type'}") from None
    others = sorted({b.type for b in m.cells if b.type not in _MESHIO_CELLS and b.type.startswith(_OTHER_CELLS)})
    blocks = [
        (*_MESHIO_CELLS[b.type], b.data, i) for i, b in enumerate(m.cells) if b.type in _MESHIO_CELLS and len(b.data)
    ]
    dim = max((d for d, *_ in blocks), default=0)
    degrees = {g for d, g, *_ in blocks if d == dim}
    if others or len(degrees) > 1:
        found = ", ".join(sorted({b.type for b in m.cells}))
        raise ValueError(
            f"{path} has cells of type {found}; expected one type: line, triangle or tetra (of degree 1 or 2)"
        )
    if dim == 0:
        raise ValueError(f"{path} has no cells (intervals, triangles or tetrahedra)")
    degree = degrees.pop()
    cells = np.vstack([data for d, _, data, _ in blocks if d == dim])
    cells = cells[:, _compat.node_order("vtk", SHAPES[dim], cells.shape[1])]

    facets: dict[str, list[Array]] = {}
    for d, _, data, i in blocks:
        if d != dim - 1:
            continue
        for name, chosen in m.cell_sets.items():
            if chosen[i] is not None and len(chosen[i]):
                facets.setdefault(name, []).append(data[np.asarray(chosen[i], dtype=np.int64), :dim])
        for name, (tag, group_dim) in m.field_data.items():
            if group_dim == d and "gmsh:physical" in m.cell_data:
                facets.setdefault(name, []).append(data[m.cell_data["gmsh:physical"][i] == tag, :dim])
    named = {k: np.vstack(v) for k, v in facets.items() if not k.startswith("gmsh:")}
    return tidy(m.points, cells, degree, named, str(path))


# -- both


def tidy(points: Array, cells: Array, degree: int, facets: dict[str, Array], source: str) -> RawMesh:
    """Drop unused nodes and coordinates that do not vary, and refuse what is no mesh of a region of R^dim."""
    dim = _dimension(cells.shape[1], degree)
    points = np.asarray(points, dtype=np.float64)
    used, cells = np.unique(cells, return_inverse=True)
    cells = cells.reshape(-1, _nodes(dim, degree))
    number = np.full(len(points), -1, dtype=np.int64)
    number[used] = np.arange(len(used))
    points = points[used]
    if not np.isfinite(points).all():
        raise ValueError(f"{source} has nodes whose coordinates are not finite")

    extent = np.ptp(points, axis=0)
    if np.any(extent[dim:] > 1e-12 * extent.max()):
        raise ValueError(
            f"{source} is a {SHAPES[dim]} mesh embedded in {int((extent > 1e-12 * extent.max()).sum())} dimensions; "
            f"expected a region of the {'plane (z constant)' if dim == 2 else 'line' if dim == 1 else 'space'}, "
            f"because a process needs as many coordinates as its domain has dimensions"
        )
    points = np.ascontiguousarray(points[:, :dim])

    corners = points[cells[:, : dim + 1]]
    edges = corners[:, 1:] - corners[:, :1]
    flat = np.abs(np.linalg.det(edges)) <= 1e-13 * np.abs(edges).max(axis=(1, 2)) ** dim
    if flat.any():
        raise ValueError(f"{source} has {flat.sum()} cells without volume; mesh the geometry again")
    if len(np.unique(np.sort(cells[:, : dim + 1], axis=1), axis=0)) < len(cells):
        raise ValueError(f"{source} lists some cells twice; write each cell once")
    if len(np.unique(points, axis=0)) < len(points):
        logger.warning(
            "%s has nodes at the same place: cells that do not share nodes are not connected. Unless this is a slit, "
            "merge them (gmsh.model.mesh.removeDuplicateNodes)", source
        )  # fmt: skip
    facets = {name: number[f].reshape(-1, dim) for name, f in facets.items()}
    return RawMesh(points, cells, degree, facets)


def _nodes(dim: int, degree: int) -> int:
    return int(np.prod([degree + i for i in range(1, dim + 1)]) // np.prod(range(1, dim + 1)))


def _dimension(nodes: int, degree: int) -> int:
    return next(d for d in (1, 2, 3) if _nodes(d, degree) == nodes)
