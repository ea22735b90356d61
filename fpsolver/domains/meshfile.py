"""Mesh files, read on rank 0: what is in them, and those that meshio reads."""

import io
import json
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from .. import _compat
from .._errors import import_optional
from .._files import digest
from ._arrays import SHAPES, Array, RawMesh, tidy

XDMF_KEY = "fpsolver boundary parts"
"""Under this key an .xdmf file of ours keeps {"parts": names of the boundary parts, "sha256": digest}, as JSON."""
UNSIGNED = "0" * 64
"""The digest of a file that has none yet."""

_MESHIO_CELLS = {"line": (1, 1), "triangle": (2, 1), "tetra": (3, 1)}  # dimension, degree
_MESHIO_CELLS |= {"line3": (1, 2), "triangle6": (2, 2), "tetra10": (3, 2)}
_OTHER_CELLS = ("quad", "hexahedron", "wedge", "pyramid", "polygon", "polyhedron", "VTK_", "triangle", "tetra", "line")
_BOOKKEEPING = ("vtkGhostType", "vtkOriginalCellIds", "partition")
"""Integer cell data that mark nothing."""
_ZERO_IS_NONE = ("cell_tags", "medit:ref", "gmsh:physical", "su2:tag", "nastran:ref")
"""Integer cell data in which zero means that a cell belongs to no set."""


def inspect(path: Path) -> list[str] | None:
    """Refuse files that cannot be read; the names of the parts in an .xdmf file of ours, None for other files."""
    known = [".msh", ".xdmf"]
    if not path.is_file():
        found = ", ".join(sorted(p.name for p in path.parent.glob(f"*{path.suffix}")))
        raise FileNotFoundError(
            f"there is no mesh file {path}; the {path.suffix} files beside it are {found or 'none'}"
        )
    with suppress(ImportError):
        import meshio

        known = sorted({*known, *meshio.extension_to_filetypes})
    if path.suffix not in known:
        raise ValueError(f"{path} has the unknown file type {path.suffix!r}; known are {', '.join(known)}")
    if path.suffix != ".xdmf":
        return None
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as e:
        raise ValueError(f"{path} is not an XDMF file: {e}") from e
    items = [item.text or "" for item in root.iter("DataItem") if item.get("Format") == "HDF"]
    data = sorted({path.parent / text.split(":")[0].strip() for text in items})
    for file in data:
        if not file.is_file():
            raise FileNotFoundError(f"{path} keeps its numbers in {file.name}, which is not in the same folder")
    information = root.find(f".//Information[@Name='{XDMF_KEY}']")
    if information is None:
        return None
    try:
        about = json.loads(information.get("Value", ""))
        parts, kept = [str(name) for name in about["parts"]], str(about["sha256"])
    except (ValueError, TypeError, KeyError) as e:
        raise ValueError(f"{path} does not tell its parts ({e}); write it again by fpsolver.io.write_domain") from e
    if digest(path, *data, without=kept) != kept:
        files = " or ".join(str(p) for p in (path, *data))
        raise ValueError(f"{files} has been damaged or changed since it was written; write the domain again")
    return parts


def sign(path: Path) -> None:
    """Put the digest of an .xdmf file of ours, and of the .h5 file beside it, where it has :data:`UNSIGNED`."""
    total = digest(path, path.with_suffix(".h5"), without=UNSIGNED)
    path.write_text(path.read_text().replace(UNSIGNED, total))


def read_meshio(path: Path) -> RawMesh:
    """Read any file that meshio reads; named or numbered sets of facets become parts, those of cells regions."""
    meshio = import_optional("meshio", f"reading a {path.suffix} file")
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):  # meshio warns of names that it drops and we keep
            m = meshio.read(path)
    except (Exception, SystemExit) as e:  # meshio leaves by sys.exit when no reader fits
        why = str(e) if isinstance(e, Exception) else ""
        raise ValueError(f"meshio cannot read {path}: {why or 'the content does not fit the file type'}") from None
    others = sorted({b.type for b in m.cells if b.type not in _MESHIO_CELLS and b.type.startswith(_OTHER_CELLS)})
    blocks = {i: b for i, b in enumerate(m.cells) if b.type in _MESHIO_CELLS and len(b.data)}
    kinds = {i: _MESHIO_CELLS[b.type] for i, b in blocks.items()}
    dim = max((d for d, _ in kinds.values()), default=0)
    degrees = {g for d, g in kinds.values() if d == dim}
    if others or len(degrees) > 1:
        found = ", ".join(sorted({b.type for b in m.cells}))
        raise ValueError(f"{path} has cells of type {found}; one of line, triangle, tetra (degree 1 or 2) was expected")
    if dim == 0:
        raise ValueError(f"{path} has no cells (intervals, triangles or tetrahedra)")
    names = _su2_markers(path) if path.suffix == ".su2" else {}
    own, outer = ({i: b.data for i, b in blocks.items() if kinds[i][0] == d} for d in (dim, dim - 1))
    cells = np.vstack(list(own.values()))
    begin = dict(zip(own, np.cumsum([0, *map(len, own.values())]), strict=False))
    cells = cells[:, _compat.node_order("vtk", SHAPES[dim], cells.shape[1])]
    walls, regions = _sets(m, list(outer), dim - 1, names), _sets(m, list(own), dim, {})
    facets = {name: np.vstack([outer[i][rows, :dim] for i, rows in chosen]) for name, chosen in walls.items()}
    groups = {name: np.concatenate([begin[i] + rows for i, rows in chosen]) for name, chosen in regions.items()}
    return tidy(m.points, cells, degrees.pop(), facets, str(path), groups)


def _sets(m: Any, blocks: list[int], dim: int, names: dict[int, str]) -> dict[str, list[tuple[int, Array]]]:
    """Sets of cells: for each name pairs (block, rows); numbers, for which ``names`` may know better, if none has."""
    for candidates in (_named(m, blocks, dim), _numbered(m, blocks, dim, names)):
        sets: dict[str, list[tuple[int, Array]]] = {}
        for name, block, found in candidates:
            if len(rows := np.asarray(found, dtype=np.int64).ravel()):
                sets.setdefault(name, []).append((block, rows))
        if sets:
            break
    return sets


def _named(m: Any, blocks: list[int], dim: int) -> Iterator[tuple[str, int, Any]]:
    for i in blocks:
        for name, chosen in m.cell_sets.items():
            if i < len(chosen) and chosen[i] is not None and not name.startswith("gmsh:"):
                yield name, i, chosen[i]
        for name, group in m.field_data.items():  # of gmsh: number and dimension
            if "gmsh:physical" in m.cell_data and np.size(group) == 2 and np.ravel(group)[1] == dim:
                yield name, i, np.flatnonzero(m.cell_data["gmsh:physical"][i] == np.ravel(group)[0])
        for tag, families in getattr(m, "cell_tags", {}).items():  # of Salome
            for name in families if "cell_tags" in m.cell_data else ():
                yield name, i, np.flatnonzero(m.cell_data["cell_tags"][i] == tag)


def _numbered(m: Any, blocks: list[int], dim: int, names: dict[int, str]) -> Iterator[tuple[str, int, Any]]:
    numbers = _numbers(m, blocks)
    highest = max(_MESHIO_CELLS[b.type][0] for b in m.cells if b.type in _MESHIO_CELLS and len(b.data))
    for key, values in numbers.items():
        found = np.unique(np.concatenate(list(values.values())))
        known = names or _joined_names(key, np.concatenate([np.ravel(v) for v in m.cell_data[key]]))
        found = found[found >= 0] if known else found[found != 0] if key in _ZERO_IS_NONE or len(found) == 1 else found
        for value in found if len(found) > 1 or dim < highest or known else ():
            name = known.get(int(value), str(value))
            for i in blocks:
                yield name if known or len(numbers) == 1 else f"{key} {name}", i, np.flatnonzero(values[i] == value)


def _numbers(m: Any, blocks: list[int]) -> dict[str, dict[int, Array]]:
    """Integer cell data of some blocks: what users have marked or, where there is none, pieces of the geometry."""
    found = {
        key: {i: np.ravel(values[i]) for i in blocks}
        for key, values in m.cell_data.items()
        if key not in _BOOKKEEPING
        and blocks
        and all(np.asarray(values[i]).dtype.kind in "iu" and np.size(values[i]) == len(values[i]) for i in blocks)
    }
    for physical, pieces in (("gmsh:physical", "gmsh:geometrical"), ("medit:ref", "CellEntityIds")):
        if physical in found:
            return {physical: found[physical]}
        if len(found) > 1:
            found.pop(pieces, None)
    return found


def _joined_names(key: str, values: Array) -> dict[int, str]:
    """Names of 0, 1, ... where meshio has joined them to that of a field in which -1 is none of them."""
    for character in "-_#+/" if key not in _ZERO_IS_NONE else "":
        pieces = key.split(character)
        lowest = -1 if character != "-" or len(pieces) == 1 else min(values.min(), 0)
        if values.min() == lowest and values.max() == len(pieces) - 1:
            return dict(enumerate(pieces))
    return {}


def _su2_markers(path: Path) -> dict[int, str]:
    """Names of the markers by the numbers that meshio gives them."""
    names: dict[int, str] = {}
    number = 0
    for line in path.read_text(errors="replace").splitlines():
        key, _, value = (part.strip() for part in line.partition("="))
        if key == "MARKER_TAG":
            number = int(value) if value.lstrip("+-").isdigit() else number + 1
            names[number] = value
    return names
