"""Mesh files, read on rank 0: what is in them, and those that meshio reads."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from .. import _compat
from .._errors import import_optional
from ._arrays import SHAPES, Array, RawMesh, tidy

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
