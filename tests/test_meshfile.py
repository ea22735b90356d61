"""Mesh files of others: names and numbers that are kept, and what is refused before it becomes a mesh."""

from pathlib import Path

import numpy as np
import pytest

import fpsolver as fp
from fpsolver.domains import _gmsh, meshfile

gmsh = pytest.importorskip("gmsh")
meshio = pytest.importorskip("meshio")

SQUARE = [(0, 0), (1, 0), (1, 1), (0, 1)]


def write_cube(folder: Path) -> dict[str, Path]:
    """A cube whose top is hot and whose other sides are cold, in the formats that gmsh writes."""
    with _gmsh.session("a test"):
        o, m = gmsh.model.occ, gmsh.model
        o.addBox(0, 0, 0, 1, 1, 1)
        o.synchronize()
        top = [s for _, s in m.getEntities(2) if o.getCenterOfMass(2, s)[2] > 0.99]
        m.addPhysicalGroup(2, top, 5, name="hot")
        m.addPhysicalGroup(2, [s for _, s in m.getEntities(2) if s not in top], 6, name="cold")
        m.addPhysicalGroup(3, [1], 7, name="bulk")
        gmsh.option.setNumber("Mesh.MeshSizeMax", 0.5)
        m.mesh.generate(3)
        gmsh.option.setNumber("Mesh.SaveGroupsOfElements", 1)
        files = {}
        for suffix in ("msh", "su2", "mesh", "inp", "vtk"):
            files[suffix] = folder / f"cube.{suffix}"
            gmsh.write(str(files[suffix]))
    return files


@pytest.fixture(scope="module")
def cubes(tmp_path_factory):
    """The same cube in many formats."""
    folder = tmp_path_factory.mktemp("cubes")
    files = write_cube(folder)
    m = meshio.read(files["msh"])
    ids = m.cell_data["gmsh:physical"]
    sets = {name: [np.flatnonzero(x == k) for x in ids] for name, k in (("hot", 5), ("cold", 6))}

    def write(name, **more):
        files[name] = folder / f"meshio_{name}"
        meshio.write(files[name], meshio.Mesh(m.points, m.cells, **more))

    write("numbers.vtu", cell_data={"ids": ids})
    write("sets.vtu", cell_sets=sets)
    write("one_set.vtu", cell_sets={"hot": sets["hot"]})
    write("two_fields.vtu", cell_data={"ids": ids, "material": [x - 4 for x in ids]})
    tri, tet = m.get_cells_type("triangle"), m.get_cells_type("tetra")
    tags = m.get_cell_data("gmsh:physical", "triangle")
    none = np.zeros(0, int)
    files["sets.inp"] = folder / "sets.inp"  # meshio loses sets that reach over several blocks of this format
    whole = {name: [np.flatnonzero(tags == k), none] for name, k in (("hot", 5), ("cold", 6))}
    meshio.write(files["sets.inp"], meshio.Mesh(m.points, {"triangle": tri, "tetra": tet}, cell_sets=whole))
    med = meshio.Mesh(m.points, {"triangle": tri, "tetra": tet}, cell_data={"cell_tags": [-tags, 0 * tet[:, 0]]})
    med.cell_tags = {-5: ["hot", "top"], -6: ["cold"]}
    files["med"] = folder / "cube.med"
    meshio.write(files["med"], med)
    return files


@pytest.mark.parametrize(
    ("name", "hot", "cold"),
    [
        ("msh", "hot", "cold"),
        ("su2", "hot", "cold"),
        ("inp", "hot", "cold"),
        ("med", "top", "cold"),
        ("vtk", "5", "6"),
        ("numbers.vtu", "5", "6"),
        ("sets.vtu", "hot", "cold"),
        ("one_set.vtu", "hot", "unnamed"),
        ("two_fields.vtu", "material 1", "ids 6"),
        ("sets.inp", "hot", "cold"),
    ],
)
def test_names_and_numbers_are_kept(cubes, name, hot, cold):
    domain = fp.Domain.read(cubes[name])
    assert {hot, cold} <= set(domain.parts) and "boundary" not in domain.parts
    z = domain.boundary.corners[..., 2].mean(axis=1)
    top = np.isin(domain.boundary.facets, domain.facets(hot))
    assert np.array_equal(top, z > 1 - 1e-12)
    assert len(domain.facets(hot)) + len(domain.facets(cold)) == len(z)


def test_numbers_of_the_pieces_of_a_geometry(cubes):
    domain = fp.Domain.read(cubes["mesh"])
    assert sorted(domain.parts) == ["1", "2", "3", "4", "5", "6"]
    for part in domain.parts:
        corners = domain.boundary.corners[np.isin(domain.boundary.facets, domain.facets(part))].reshape(-1, 3)
        assert np.ptp(corners, axis=0).min() < 1e-12


def two_halves(path: Path, version: float, names: bool, twice: bool) -> Path:
    """A square in two halves, with an interface and, on request, entities in several groups."""
    with _gmsh.session("a test"):
        o, m = gmsh.model.occ, gmsh.model
        bodies = [(2, o.addRectangle(x, 0, 0, 1, 1)) for x in (0, 1)]
        o.fragment(bodies[:1], bodies[1:])
        o.synchronize()
        curves = {c: o.getCenterOfMass(1, c) for _, c in m.getEntities(1)}
        surfaces = {s: o.getCenterOfMass(2, s)[0] for _, s in m.getEntities(2)}
        at = lambda i, v: [c for c, x in curves.items() if abs(x[i] - v) < 1e-9]  # noqa: E731
        groups = {
            "left": (1, at(0, 0)),
            "interface": (1, at(0, 1)),
            "well": (2, [s for s, x in surfaces.items() if x < 1]),
            "rest": (2, [s for s, x in surfaces.items() if x > 1]),
        }
        if twice:
            groups["walls"] = (1, [c for c in curves if c not in at(0, 1)])
            groups["everything"] = (2, list(surfaces))
        for tag, (name, (dim, entities)) in enumerate(groups.items(), 11):
            m.addPhysicalGroup(dim, entities, tag, name=name if names else "")
        gmsh.option.setNumber("Mesh.MeshSizeMax", 0.3)
        m.mesh.generate(2)
        before = gmsh.option.getNumber("Mesh.MshFileVersion")
        gmsh.option.setNumber("Mesh.MshFileVersion", version)
        gmsh.write(str(path))
        gmsh.option.setNumber("Mesh.MshFileVersion", before)
    return path


@pytest.mark.parametrize("version", [2.2, 4.1])
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("names", [False, True])
def test_groups_inside_and_entities_in_several_groups(tmp_path, version, twice, names, caplog):
    raw = _gmsh.read_gmsh(two_halves(tmp_path / "halves.msh", version, names, twice))
    called = dict(zip(("left", "interface", "well", "rest", "walls", "everything"), range(11, 17), strict=True))
    name = (lambda key: key) if names else (lambda key: str(called[key]))
    middle = raw.points[raw.cells].mean(axis=1)
    assert np.array_equal(raw.groups[name("well")], np.flatnonzero(middle[:, 0] < 1))
    assert np.array_equal(raw.groups[name("rest")], np.flatnonzero(middle[:, 0] > 1))
    assert np.allclose(raw.points[raw.facets[name("interface")]][..., 0], 1)
    assert np.allclose(raw.points[raw.facets[name("left")]][..., 0], 0)
    if twice:
        assert len(raw.groups[name("everything")]) == len(raw.cells)
        assert len(raw.facets[name("walls")]) > len(raw.facets[name("left")])
    for facets in raw.facets.values():
        assert len(np.unique(np.sort(facets, axis=1), axis=0)) == len(facets)
    assert not caplog.messages


def test_groups_of_cells_are_regions(tmp_path):
    """Brownian motion from the left wall to the right half, also after refinement."""
    domain = fp.Domain.read(two_halves(tmp_path / "halves.msh", 4.1, True, False))
    assert domain.regions == ("well", "rest") and "interface" not in domain.parts
    for halves in (domain, domain.refine(domain.cells("well")[:5])):
        q = fp.committor(fp.Generator(fp.SDE((0.0, 0.0), 1.0), halves, degree=2), "left", "rest")
        assert q.at([(0.25, 0.5), (0.8, 0.1), (1.5, 0.5)]) == pytest.approx([0.25, 0.8, 1.0], abs=1e-10)


def test_cell_groups_of_other_formats(tmp_path):
    points = np.array([(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)], float)
    cells = np.array([(0, 1, 4), (0, 4, 3), (1, 2, 5), (1, 5, 4)])
    mesh = meshio.Mesh(np.c_[points, np.zeros(6)], [("triangle", cells)], cell_data={"zone": [np.array([3, 3, 8, 8])]})
    meshio.write(tmp_path / "zones.vtu", mesh)
    raw = meshfile.read_meshio(tmp_path / "zones.vtu")
    assert {k: v.tolist() for k, v in raw.groups.items()} == {"3": [0, 1], "8": [2, 3]} and raw.facets == {}


SCRIPTS = [  # {} is a file that shows whether a command was run
    'SystemCall "touch {}";\nPoint(1) = {{0,0,0,1}};\n',
    '\n$MeshFormat\n4.1 0 8\n$EndMeshFormat\nSystemCall "touch {}";\n',
    '// $MeshFormat\nSystemCall "touch {}";\n',
    '$Comments\n$EndComments\nSystemCall "touch {}";\n',
    '$MeshFormats\n4.1 0 8\nSystemCall "touch {}";\n',
    '$MeshFormat\n4.1 0 8\n$EndMeshFormat\nSystemCall "touch {}";\n',
    "",
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_not_run(tmp_path, script):
    file, trace = tmp_path / "evil.msh", tmp_path / "trace"
    file.write_text(script.format(trace))
    (tmp_path / "evil.msh.opt").write_text(f'SystemCall "touch {trace}";\n')
    with pytest.raises(ValueError, match=r"evil\.msh"):
        fp.Domain.read(file)
    assert not trace.exists()


def read(folder: Path, points, cells, kind: str = "triangle") -> fp.Domain:
    points = np.array(points, float)
    points = np.c_[points, np.zeros((len(points), 3 - points.shape[1]))]
    meshio.write(folder / "m.vtu", meshio.Mesh(points, [(kind, np.array(cells))]))
    return fp.Domain.read(folder / "m.vtu")


HANGING = (
    [(0, 0), (1, 0), (1, 1), (0, 1), (1, 0.5), (2, 0), (2, 1)],
    [(0, 1, 2), (0, 2, 3), (1, 5, 4), (5, 6, 4), (4, 6, 2)],
)
TETRAHEDRON = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
BAD = {
    "hanging nodes.*\\(1, 0.5\\) in the one at \\(1, 0\\) – \\(1, 1\\)": ("triangle", *HANGING),
    "hanging nodes.*\\(0.5, 0, 0\\)": (
        "tetra",
        [*TETRAHEDRON, (0.5, 0, 0), (0, 0, -1), (0.3, 0.5, -1)],
        [(0, 1, 2, 3), (0, 4, 2, 5), (4, 1, 2, 6)],
    ),
    "overlap: 1 pairs lie on the same side": ("triangle", [(0, 0), (1, 0), (1, 1), (0.2, 0.9)], [(0, 1, 2), (0, 1, 3)]),
    "overlap.*belongs to the boundary": (
        "triangle",
        [(0, 0), (1, 0), (0, 1), (0.2, 0.2), (2, 0.2), (0.2, 2)],
        [(0, 1, 2), (3, 4, 5)],
    ),
    "overlap.*lies inside the cell": (
        "tetra",
        [*TETRAHEDRON, (0.1, 0.1, 0.1), (2, 0.1, 0.1), (0.1, 2, 0.1), (0.1, 0.1, 2)],
        [(0, 1, 2, 3), (4, 5, 6, 7)],
    ),
    "overlap: \\(1\\) belongs": ("line", [(0,), (2,), (1,), (3,)], [(0, 1), (2, 3)]),
    "facets of more than two cells: 3 cells share the one at \\(0, 0\\) – \\(1, 0\\)": (
        "triangle",
        [(0, 0), (1, 0), (0.5, 1), (0.5, -1), (0.6, -2)],
        [(0, 1, 2), (0, 1, 3), (0, 1, 4)],
    ),
    "facets of more than two cells: 3 cells share the one at \\(1\\)": (
        "line",
        [(0,), (1,), (2,), (3,)],
        [(0, 1), (1, 2), (1, 3)],
    ),
    "nodes that do not exist: cell 0 has the nodes \\[0, 1, -1\\]": ("triangle", SQUARE, [(0, 1, -1)]),
    "nodes that do not exist: cell 1 has the nodes \\[0, 2, 7\\]": ("triangle", SQUARE, [(0, 1, 2), (0, 2, 7)]),
    "degenerate cells: cell 1 has the nodes \\[0, 2, 2\\]": ("triangle", SQUARE, [(0, 1, 2), (0, 2, 2)]),
    "cells twice, one of them at": ("triangle", SQUARE, [(0, 1, 2), (0, 2, 3), (2, 0, 1)]),
    "without volume": ("triangle", [*SQUARE, (0.5, 0.5)], [(0, 1, 2), (0, 4, 2)]),
    "lie on a line: its cells are without volume": ("triangle", [(0, 0), (1, 0), (2, 0)], [(0, 1, 2)]),
    "embedded in 3 dimensions": ("triangle", [(0, 0, 0), (1, 0, 0), (1, 1, 1), (0, 1, 0)], [(0, 1, 2), (0, 2, 3)]),
    "no cells": ("vertex", SQUARE, [(0,), (1,)]),
    "not finite": ("triangle", [(0, 0), (1, np.nan), (1, 1)], [(0, 1, 2)]),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_what_is_no_mesh_is_refused(tmp_path, message):
    kind, points, cells = BAD[message]
    with pytest.raises(ValueError, match=rf"m\.vtu.*{message}"):
        read(tmp_path, points, cells, kind)


def test_slits_and_bodies_that_touch_are_meshes(tmp_path):
    touching = [(0, 0), (1, 0), (0, 1), (-1, 0), (0, -1)], [(0, 1, 2), (0, 3, 4)]  # in one vertex
    slit = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0), (1, 0), (0.5, -1)], [(0, 1, 2), (0, 2, 3), (4, 6, 5)]
    for points, cells in (touching, slit):
        assert read(tmp_path, points, cells).mesh.topology.index_map(2).size_global == len(cells)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_meshes_in_planes_along_two_axes(tmp_path, missing):
    points = np.insert(np.array(SQUARE) * (2, 3), missing, 7.0, axis=1)
    domain = read(tmp_path, points, [(0, 1, 2), (0, 2, 3)])
    assert np.allclose(domain.mesh.geometry.x[:, :2].max(axis=0), (2, 3)) and domain.dim == 2


HEADERS = "$MeshFormat\n{} 0 8\n$EndMeshFormat\n{}"
NOTHING = "$Nodes\n0\n$EndNodes\n$Elements\n0\n$EndElements\n"


@pytest.mark.parametrize("content", ["", HEADERS.format(4.1, ""), HEADERS.format(2.2, NOTHING)])
def test_empty_files_of_gmsh(tmp_path, content):
    (tmp_path / "empty.msh").write_text(content)
    with pytest.raises(ValueError, match=r"empty\.msh"):
        fp.Domain.read(tmp_path / "empty.msh")


@pytest.mark.parametrize("suffix", ["vtu", "vtk", "xdmf", "su2", "mesh", "med", "inp"])
def test_empty_files(tmp_path, suffix):
    (tmp_path / f"empty.{suffix}").write_text("")
    with pytest.raises(ValueError, match=rf"empty\.{suffix}"):
        fp.Domain.read(tmp_path / f"empty.{suffix}")
