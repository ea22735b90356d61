"""Domains: parts, measures, files, and errors that are the same on every rank."""

import logging
import sys
from pathlib import Path

from mpi4py import MPI

import basix.ufl
import numpy as np
import pytest
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh

import fpsolver as fp
from fpsolver import Domain
from fpsolver._compat import cell_partitioner
from fpsolver.domains._arrays import tidy
from fpsolver.io import write_domain

pytestmark = pytest.mark.parallel
WORLD = MPI.COMM_WORLD
MESHES = Path(__file__).parent.parent / "meshes"


def measures(domain):
    """Measure of the domain and of each of its parts."""
    dx = ufl.dx(domain=domain.mesh, metadata={"quadrature_degree": 8})
    sets = [(i, domain.integration_facets(name)) for i, name in enumerate(domain.parts)]
    ds = ufl.ds(domain=domain.mesh, subdomain_data=sets, metadata={"quadrature_degree": 8})
    one = fem.Constant(domain.mesh, 1.0)
    whole, *parts = [WORLD.allreduce(fem.assemble_scalar(fem.form(one * m))) for m in (dx, *(ds(i) for i, _ in sets))]
    return whole, dict(zip(domain.parts, parts, strict=True))


def same_error(kind, match, make):
    """The error is raised on every rank with the same words."""
    with pytest.raises(kind, match=match) as info:
        make()
    assert len(set(WORLD.allgather(str(info.value)))) == 1
    return str(info.value)


# -- Constructors


def test_boxes():
    whole, parts = measures(Domain.interval(-1, 2, 7))
    assert np.isclose(whole, 3) and parts == {"left": 1.0, "right": 1.0}
    for diagonal in ("crossed", "right"):
        domain = Domain.rectangle((0, 1), (3, 3), (4, 3), diagonal=diagonal)
        whole, parts = measures(domain)
        assert np.isclose(whole, 6) and parts == pytest.approx({"left": 2, "right": 2, "bottom": 3, "top": 3})
    whole, parts = measures(Domain.box((0, 0, 0), (3, 2, 1), (2, 2, 2)))
    exact = {"left": 2, "right": 2, "front": 3, "back": 3, "bottom": 6, "top": 6}
    assert np.isclose(whole, 6) and parts == pytest.approx(exact)


def test_the_sides_are_where_their_names_say():
    domain = Domain.box((0, 0, 0), (3, 2, 1), (2, 2, 2))
    for name, axis, value in [
        ("left", 0, 0),
        ("right", 0, 3),
        ("front", 1, 0),
        ("back", 1, 2),
        ("bottom", 2, 0),
        ("top", 2, 1),
    ]:
        middle = dmesh.compute_midpoints(domain.mesh, 2, domain.facets(name))
        assert np.allclose(middle[:, axis], value)


def test_crossed_diagonals_are_symmetric():
    domain = Domain.rectangle((-1, -1), (1, 1), (3, 2))
    owned = np.arange(domain.mesh.topology.index_map(2).size_local, dtype=np.int32)
    middle = np.vstack(WORLD.allgather(dmesh.compute_midpoints(domain.mesh, 2, owned)[:, :2]))
    for flip in ((-1, 1), (1, -1)):
        assert np.allclose(
            np.array(sorted(map(tuple, middle.round(9)))), sorted(map(tuple, (middle * flip).round(9) + 0.0))
        )


def test_round_domains():
    pytest.importorskip("gmsh")
    whole, parts = measures(Domain.disk((1, 2), 2, 0.4))
    assert np.isclose(whole, 4 * np.pi, rtol=1e-5) and np.isclose(parts["boundary"], 4 * np.pi, rtol=1e-5)
    whole, parts = measures(Domain.annulus((0, 0), 0.5, 1, 0.2))
    assert np.isclose(whole, 0.75 * np.pi, rtol=3e-5)
    assert parts == pytest.approx({"inner": np.pi, "outer": 2 * np.pi}, rel=1e-4)
    whole, parts = measures(Domain.ball((0, 0, 0), 1, 0.5))
    assert np.isclose(whole, 4 / 3 * np.pi, rtol=1e-6) and np.isclose(parts["boundary"], 4 * np.pi, rtol=1e-5)


def test_curved_cells_have_the_exact_area():
    pytest.importorskip("gmsh")
    whole, _ = measures(Domain.disk((0, 0), 1, 0.3))
    assert abs(whole / np.pi - 1) < 1e-12


def test_round_domains_do_not_limit_exit_times():
    """(1 - r^2)/d; with all nodes on the sphere the errors were 2e-5 and 4e-4."""
    pytest.importorskip("gmsh")
    for domain, rtol in ((Domain.disk((3, 4), 1, 0.3), 2e-8), (Domain.ball((0, 0, 5), 1, 0.5), 1e-5)):
        d = domain.dim
        center = np.array([(3, 4), (0, 0, 5)][d - 2], float)
        gen = fp.Generator(fp.SDE((0,) * d, 0.5), domain, ["boundary"])
        tau = fp.mean_exit_time(gen).at([center, center + 0.5 * np.eye(d)[0]])
        assert tau == pytest.approx([1 / d, 0.75 / d], rel=rtol)


def test_gmsh_sessions_of_the_caller_survive():
    gmsh = pytest.importorskip("gmsh")
    if WORLD.rank == 0:
        gmsh.initialize(readConfigFiles=False)
        gmsh.model.add("mine")
        gmsh.option.setNumber("Mesh.MeshSizeMax", 0.7)
    Domain.disk((0, 0), 1, 0.5)
    if WORLD.rank == 0:
        kept = gmsh.model.getCurrent(), gmsh.option.getNumber("Mesh.MeshSizeMax")
        gmsh.finalize()
        assert kept == ("mine", 0.7)


def test_repr_and_attributes():
    domain = Domain.rectangle((0, 0), (1, 1), (3, 2))
    assert repr(domain) == "Domain(2D, 24 triangles, parts: left, right, bottom, top)"
    assert domain.dim == 2 and domain.comm.size == WORLD.size


def test_ghosts_allow_interior_facet_integrals():
    pytest.importorskip("gmsh")
    for domain in (Domain.rectangle((0, 0), (1, 1), (3, 2)), Domain.read(MESHES / "l_shape.msh")):
        V = fem.functionspace(domain.mesh, ("DG", 0))
        f = fem.Function(V)
        f.interpolate(lambda x: x[0])
        jumps = fem.assemble_scalar(fem.form(ufl.jump(f) ** 2 * ufl.dS(domain=domain.mesh)))
        total = WORLD.allreduce(jumps)
        assert total > 0 and np.allclose(WORLD.allgather(total), total)


# -- Parts


def test_facets_are_sorted_owned_and_protected():
    domain = Domain.rectangle((0, 0), (1, 1), (5, 4))
    facets = domain.facets("left")
    assert facets.dtype == np.int32 and (np.diff(facets) > 0).all()
    assert (facets < domain.mesh.topology.index_map(1).size_local).all()
    assert WORLD.allreduce(len(facets)) == 4
    assert not facets.flags.writeable


def test_unknown_parts():
    domain = Domain.rectangle((0, 0), (1, 1), (5, 4))
    message = same_error(ValueError, "no boundary part is called 'nowhere'", lambda: domain.facets("nowhere"))
    assert "left, right, bottom, top" in message


def test_mark():
    domain = Domain.rectangle((0, 0), (1, 1), (4, 4))
    domain.mark("upper", lambda x: x[1] > 0.5)
    domain.mark("lower", lambda x: x[1] <= 0.5)
    domain.mark("corner", lambda x: np.isclose(x[0], 0) & (x[1] > 0.75))
    _whole, parts = measures(domain)
    # a facet that ends on the line y = 1/2 belongs to one side, by its midpoint
    assert parts["upper"] == pytest.approx(2) and parts["lower"] == pytest.approx(2)
    assert parts["corner"] == pytest.approx(0.25)
    assert domain.parts[-3:] == ("upper", "lower", "corner")


def test_mark_on_a_curved_boundary():
    pytest.importorskip("gmsh")
    domain = Domain.annulus((0, 0), 0.5, 1, 0.3)
    domain.mark("circle", lambda x: np.isclose(np.hypot(x[0], x[1]), 1))
    assert np.array_equal(domain.facets("circle"), domain.facets("outer"))


@pytest.mark.parametrize(
    "marker, message",
    [
        (lambda x: x[0] > 5, r"is empty.*\[0, 1\] x \[0, 2\]"),
        (lambda x: x[0], "returned float64"),
        (lambda x: True, "returned bool of shape"),
        (lambda x: np.full(x.shape, True), "expected booleans of shape"),
        (lambda x: x[0] * np.nan, "returned float64"),
        (lambda x: x[2] > 0, "raised IndexError"),
    ],
)
def test_bad_markers(marker, message):
    domain = Domain.rectangle((0, 0), (1, 2), (4, 4))
    before = domain.parts
    # the number of points in some messages is that of the lowest rank with a problem, so the words still agree
    same_error(ValueError, message, lambda: domain.mark("bad", marker))
    assert domain.parts == before


def test_a_marker_that_fails_on_one_rank_fails_on_all():
    domain = Domain.interval(0, 1, 9)
    same_error(
        ValueError, "raised ZeroDivisionError", lambda: domain.mark("bad", lambda x: 1 / (WORLD.rank > 0) > x[0])
    )


def test_names():
    domain = Domain.interval(0, 1, 4)
    same_error(ValueError, "already", lambda: domain.mark("left", lambda x: x[0] < 0.5))
    same_error(ValueError, "non-empty string", lambda: domain.mark("", lambda x: x[0] < 0.5))


def test_from_an_existing_mesh():
    mesh = dmesh.create_unit_square(WORLD, 4, 4)
    left = dmesh.locate_entities_boundary(mesh, 1, lambda x: np.isclose(x[0], 0))
    domain = Domain(mesh, {"left": left, "right": lambda x: np.isclose(x[0], 1)})
    assert domain.mesh is mesh
    _whole, parts = measures(domain)
    assert parts == pytest.approx({"left": 1, "right": 1, "unnamed": 2})
    assert Domain(mesh).parts == ("boundary",)
    ends = np.concatenate([domain.facets("left"), domain.facets("right")])
    values = np.repeat([1, 2], [len(domain.facets(name)) for name in ("left", "right")])
    order = np.argsort(ends)
    tags = dmesh.meshtags(mesh, 1, ends[order], values[order].astype(np.int32))
    again = Domain(mesh, {"a": tags.find(1), "b": tags.find(2)})
    assert np.array_equal(again.facets("a"), domain.facets("left")) and again.parts == ("a", "b", "unnamed")
    inside = np.arange(mesh.topology.index_map(1).size_local, dtype=np.int32)
    same_error(ValueError, "are not on the boundary", lambda: Domain(mesh, {"all": inside}))
    same_error(ValueError, "but this rank knows", lambda: Domain(mesh, {"far": [10**6]}))
    same_error(ValueError, "is empty", lambda: Domain(mesh, {"none": []}))


def test_meshes_that_are_refused():
    same_error(
        ValueError, "quadrilateral", lambda: Domain(dmesh.create_unit_square(WORLD, 2, 2, dmesh.CellType.quadrilateral))
    )
    if WORLD.size > 1:
        mesh = dmesh.create_unit_square(WORLD, 6, 6, ghost_mode=dmesh.GhostMode.none)
        same_error(ValueError, "GhostMode.shared_facet", lambda: Domain(mesh))
    x, cells = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 1.0]]), np.array([[0, 1, 2], [1, 2, 3]])
    mine = slice(None) if WORLD.rank == 0 else slice(0)
    element = basix.ufl.element("Lagrange", "triangle", 1, shape=(3,))
    surface = dmesh.create_mesh(WORLD, cells=cells[mine], x=x[mine], e=element, partitioner=cell_partitioner())
    same_error(ValueError, "in 3 dimensions; expected 2", lambda: Domain(surface))


# -- Arguments


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Domain.interval(0, 1, 0), "n is 0; an integer"),
        (lambda: Domain.interval(0, 1, 2.5), "n is 2.5; an integer"),
        (lambda: Domain.interval(1, 1, 3), "one beyond the lower"),
        (lambda: Domain.interval(0, np.inf, 3), "finite"),
        (lambda: Domain.interval(0, "b", 3), "finite"),
        (lambda: Domain.rectangle((0, 0), (1, -1), (2, 2)), "one beyond the lower"),
        (lambda: Domain.rectangle((0, 0), (1, np.nan), (2, 2)), "finite"),
        (lambda: Domain.rectangle((0, 0), (1, 1), (2, -2)), "n is -2; an integer"),
        (lambda: Domain.rectangle((0, 0), (1, 1), 4), "n is 4; a sequence of 2 finite numbers"),
        (lambda: Domain.rectangle((0, 0), (1, 1), (2, 2), diagonal="both"), "'crossed', 'right'"),
        (lambda: Domain.box((0, 0), (1, 1), (2, 2)), "a sequence of 3 finite numbers"),
        (lambda: Domain.disk((0, 0), 1, 0), "a pair of positive numbers was expected"),
        (lambda: Domain.disk((0, 0), -1, 0.1), "a pair of positive numbers was expected"),
        (lambda: Domain.disk((0, 0, 0), 1, 0.1), "center is .* a sequence of 2 finite numbers"),
        (lambda: Domain.ball((0, 0, 0), np.nan, 0.1), "finite"),
        (lambda: Domain.annulus((0, 0), 1, 1, 0.1), "a smaller one than r_outer = 1"),
    ],
)  # fmt: skip
def test_bad_arguments(make, message):
    same_error(ValueError, message, make)


# -- Files


def test_meshes_of_this_repository():
    pytest.importorskip("gmsh")
    exact = {
        "annulus": (0.75 * np.pi, {"inner": np.pi, "outer": 2 * np.pi}, 1e-5),
        "ball": (4 / 3 * np.pi, {"boundary": 4 * np.pi}, 2e-3),
        "l_shape": (3.0, {"bottom": 1.0, "right": 1.0, "wall": 6.0}, 1e-12),
        "two_wells_basin": (None, {"saddle": 2.441269317, "wall": 5.111911}, 1e-5),
    }
    assert sorted(exact) == sorted(p.stem for p in MESHES.glob("*.msh"))
    for name, (whole, parts, rtol) in exact.items():
        a, b = (Domain.read(MESHES / f"{name}{suffix}") for suffix in (".msh", ".xdmf"))
        assert repr(a) == repr(b)
        (wa, pa), (wb, pb) = measures(a), measures(b)
        assert pa == pytest.approx(pb, rel=1e-12) and wa == pytest.approx(wb, rel=1e-12)
        assert pa == pytest.approx(parts, rel=rtol) and (whole is None or wa == pytest.approx(whole, rel=rtol))


def test_the_basin_ends_at_the_saddle():
    domain = Domain.read(MESHES / "two_wells_basin.xdmf")
    x = domain.mesh.geometry.x
    assert np.allclose(dmesh.compute_midpoints(domain.mesh, 1, domain.facets("saddle"))[:, 0], 0.101031257881011)
    loss = (x[:, 0] ** 2 - 1) ** 2 / 4 + x[:, 0] / 10 + x[:, 1] ** 2 / 2
    assert loss.max(initial=0) < 1 + 1e-5


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_xdmf_keeps_overlapping_parts(dim, tmp_dir):
    make = {1: lambda: Domain.interval(0, 1, 6), 2: lambda: Domain.rectangle((0, 0), (1, 1), (3, 3))}
    domain = make.get(dim, lambda: Domain.box((0, 0, 0), (1, 1, 1), (2, 2, 2)))()
    domain.mark("half", lambda x: x[0] < 0.5)
    write_domain(tmp_dir / "new" / "mesh.xdmf", domain)
    again = Domain.read(tmp_dir / "new" / "mesh.xdmf")
    assert repr(again) == repr(domain)
    assert measures(again)[1] == pytest.approx(measures(domain)[1])


def test_number_of_ranks_does_not_matter_to_files(tmp_dir):
    path = tmp_dir / "mesh.xdmf"
    if WORLD.rank == 0:
        write_domain(path, Domain.rectangle((0, 0), (2, 1), (4, 4), comm=MPI.COMM_SELF))
    WORLD.Barrier()
    assert measures(Domain.read(path))[1] == pytest.approx({"left": 1, "right": 1, "bottom": 2, "top": 2})


def written(path, make):
    """Write a file on rank 0 and wait for it."""
    if WORLD.rank == 0:
        make(path)
    WORLD.Barrier()
    return path


SQUARE = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]


def test_meshio_files(tmp_dir, caplog):
    meshio = pytest.importorskip("meshio")
    cells = [("triangle", [[0, 1, 2], [0, 2, 3]]), ("line", [[0, 1], [1, 2], [2, 0]])]
    plain = written(tmp_dir / "a.vtu", lambda p: meshio.Mesh(np.array(SQUARE), cells).write(p))
    domain = Domain.read(plain)
    assert domain.parts == ("boundary",) and measures(domain)[0] == pytest.approx(1)
    domain.mark("right", lambda x: np.isclose(x[0], 1))
    assert measures(domain)[1] == pytest.approx({"boundary": 4, "right": 1})

    sets = {"bottom": [np.array([], int), np.array([0])], "cut": [np.array([], int), np.array([1, 2])]}
    named = written(tmp_dir / "b.inp", lambda p: meshio.Mesh(np.array(SQUARE, float), cells, cell_sets=sets).write(p))
    with caplog.at_level(logging.WARNING, logger="fpsolver"):
        logging.getLogger("fpsolver").propagate = True
        domain = Domain.read(named)
    if {"bottom", "cut"} <= set(domain.parts):
        assert measures(domain)[1] == pytest.approx({"bottom": 1, "cut": 1, "unnamed": 2})
        assert WORLD.rank or "1 of 2 facets of the part 'cut' are not on the boundary" in caplog.text


def test_quadratic_meshio_file(tmp_dir):
    meshio = pytest.importorskip("meshio")
    x = np.array([*SQUARE[:3], [0.5, 0, 0], [1.2, 0.5, 0], [0.5, 0.5, 0]], float)
    path = written(tmp_dir / "a.vtu", lambda p: meshio.Mesh(x, [("triangle6", [[0, 1, 2, 3, 4, 5]])]).write(p))
    assert measures(Domain.read(path))[0] == pytest.approx(0.5 + 2 / 3 * 0.2)


def gmsh_file(path, named=True, numbered=True):
    import gmsh

    gmsh.initialize(readConfigFiles=False)
    gmsh.option.setNumber("General.Terminal", 0)
    gmsh.model.occ.addRectangle(0, 0, 0, 1, 1)
    gmsh.model.occ.synchronize()
    if numbered:
        gmsh.model.addPhysicalGroup(2, [1])
        gmsh.model.addPhysicalGroup(1, [1, 2], name="two sides" if named else "")
    gmsh.model.mesh.generate(2)
    gmsh.write(str(path))
    gmsh.finalize()


def test_msh_files(tmp_dir):
    pytest.importorskip("gmsh")
    domain = Domain.read(written(tmp_dir / "a.msh", gmsh_file))
    assert measures(domain)[1] == pytest.approx({"two sides": 2, "unnamed": 2})
    numbers = Domain.read(written(tmp_dir / "b.msh", lambda p: gmsh_file(p, named=False)))
    assert sorted(measures(numbers)[1].values()) == pytest.approx([2, 2]) and "two sides" not in numbers.parts
    path = written(tmp_dir / "c.msh", lambda p: gmsh_file(p, numbered=False))
    message = same_error(ValueError, "no physical groups", lambda: Domain.read(path))
    assert "addPhysicalGroup" in message and "interior" in message


def test_files_that_cannot_be_read(tmp_dir, monkeypatch):
    message = same_error(FileNotFoundError, "there is no mesh file", lambda: Domain.read(MESHES / "no.msh"))
    assert "l_shape.msh" in message
    same_error(FileNotFoundError, "beside it are none", lambda: Domain.read("/nowhere/at/all.msh"))
    text = written(tmp_dir / "mesh.txt1", lambda p: p.write_text("nothing"))
    assert ".msh" in same_error(ValueError, "unknown file type '.txt1'", lambda: Domain.read(text))
    bad = written(tmp_dir / "bad.xdmf", lambda p: p.write_text("nothing"))
    same_error(ValueError, "not an XDMF file", lambda: Domain.read(bad))
    alone = written(tmp_dir / "l_shape.xdmf", lambda p: p.write_text((MESHES / "l_shape.xdmf").read_text()))
    same_error(FileNotFoundError, "l_shape.h5", lambda: Domain.read(alone))
    if "gmsh" in sys.modules:
        broken = written(tmp_dir / "bad.msh", lambda p: p.write_text("$MeshFormat\nnothing"))
        same_error(ValueError, "gmsh cannot read|no cells", lambda: Domain.read(broken))
    monkeypatch.setitem(sys.modules, "gmsh", None)
    same_error(ModuleNotFoundError, "install python3-gmsh", lambda: Domain.disk((0, 0), 1, 0.5))


def test_files_that_hold_no_region(tmp_dir):
    meshio = pytest.importorskip("meshio")
    path = tmp_dir / "a.vtu"

    def read(x, cells):
        return Domain.read(written(path, lambda p: meshio.Mesh(np.array(x, float), cells).write(p)))

    bent = [[0, 0, 0], [1, 0, 0], [1, 1, 1], [0, 1, 0]]
    triangles = [[0, 1, 2], [0, 2, 3]]
    same_error(ValueError, "embedded in 3 dimensions", lambda: read(bent, [("triangle", triangles)]))
    same_error(ValueError, "cells of type quad", lambda: read(SQUARE, [("quad", [[0, 1, 2, 3]])]))
    same_error(ValueError, "lists 1 cells twice", lambda: read(SQUARE, [("triangle", [*triangles, [2, 1, 0]])]))
    same_error(ValueError, "without volume", lambda: read([*SQUARE, [2, 0, 0]], [("triangle", [[0, 1, 4]])]))
    same_error(ValueError, "no cells", lambda: read(SQUARE, [("vertex", [[0]])]))
    same_error(ValueError, "not finite", lambda: read([[np.nan, 0, 0], *SQUARE[1:]], [("triangle", triangles)]))


def test_lifted_and_unused_nodes_are_dropped():
    x = np.array([[9, 9, 9], *SQUARE], float) + [0, 0, 3]
    raw = tidy(x, np.array([[1, 2, 3], [1, 3, 4]]), 1, {"a": np.array([[2, 1]])}, "a mesh", {})
    assert raw.points.tolist() == [p[:2] for p in SQUARE] and raw.facets["a"].tolist() == [[0, 1]]


# -- polygons


def test_polygon():
    """A trapezium with one named edge; what is not named is the wall."""
    domain = Domain.polygon([(0, 0), (3, 0), (2, 1), (0, 1)], 0.3, {"slope": [1]})
    whole, parts = measures(domain)
    assert domain.parts == ("slope", "wall")
    assert whole == pytest.approx(2.5, rel=1e-12)
    assert parts["slope"] == pytest.approx(2**0.5, rel=1e-12)
    assert parts["wall"] == pytest.approx(6, rel=1e-12)


@pytest.mark.parametrize(
    ("vertices", "h", "edges", "message"),
    [
        ([(0, 0), (1, 0)], 0.1, None, "vertices has shape"),
        ([(0, 0), (1, 0), (0, np.nan)], 0.1, None, "finite"),
        ([(0, 0), (1, 0), (0, 1)], 0.0, None, "h is 0.0; a positive number"),
        ([(0, 0), (1, 0), (0, 1)], 0.1, {"a": [3]}, r"the named edges are \[3\]; each of 0 to 2"),
        ([(0, 0), (1, 0), (0, 1)], 0.1, {"a": [0], "b": [0]}, "once at most was expected"),
    ],
)
def test_bad_polygons(vertices, h, edges, message):
    same_error(ValueError, message, lambda: Domain.polygon(vertices, h, edges))


# -- Moved nodes


def test_parts_follow_moved_nodes_and_marks_see_where_they_are():
    square = Domain.rectangle((0, 0), (1, 1), (4, 4))
    wide = square.mapped(lambda x: (3 * x[0], x[1]))
    wide.mark("far", lambda x: x[0] > 2.9)
    whole, parts = measures(wide)
    assert whole == pytest.approx(3) and parts["bottom"] == pytest.approx(3)
    assert parts["right"] == pytest.approx(1) and parts["far"] > 0.99
    assert measures(square)[0] == pytest.approx(1)  # the given domain stays
    mirrored, _ = measures(Domain.box((0, 0, 0), (1, 1, 1), (2, 2, 2)).mapped(lambda x: (-2 * x[0], x[1], x[2])))
    assert mirrored == pytest.approx(2)
    pytest.importorskip("gmsh")
    ellipse, _ = measures(Domain.disk((0, 0), 1, 0.4).mapped(lambda x: (x[0], x[1] / 2)))
    assert ellipse == pytest.approx(np.pi / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("move", "message"),
    [
        (lambda x: (x[0],), r"gave an array of shape \(1, .*finite numbers, 2 x"),
        (lambda x: x / 0.0, "finite numbers"),
        (lambda x: x[2], "out of bounds"),
        (lambda x: (x[0] ** 2 - x[0], x[1]), "folds cells"),
        (lambda x: (0 * x[0], x[1]), "makes them flat"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_maps_that_are_refused(move, message):
    domain = Domain.rectangle((0, 0), (1, 1), (4, 4))
    with pytest.raises((ValueError, IndexError), match=message):
        domain.mapped(move)


@pytest.mark.parametrize(
    "corners",
    [
        [(0, 0), (1, 1), (1, 0), (0, 1)],
        [(0, 0), (1, 0), (1, 1), (0.5, 0), (0, 1)],  # touches itself
        [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)],
        [(0, 0), (1, 0), (2, 0), (1, 0), (0, 1)],  # turns back
        [(np.cos(a), np.sin(a)) for a in 4 * np.pi / 5 * np.arange(5)],
        [(0, 0), (3, 0), (3, 3), (1, -1), (0, 3)],
    ],
)
def test_polygons_that_meet_themselves(corners):
    same_error(ValueError, "cross or touch|each corner was expected once", lambda: Domain.polygon(corners, 0.5))


def test_a_polygon_with_flat_and_reentrant_corners():
    pytest.importorskip("gmsh")
    whole, _ = measures(Domain.polygon([(0, 0), (1, 0), (2, 0), (2, 1), (1, 0.1), (0, 1)], 0.5))
    assert whole == pytest.approx(1.1)


def test_more_ranks_than_cells():
    domain = Domain.interval(0, 1, 1).refine(np.arange(WORLD.rank == 0, dtype=np.int32)[: WORLD.size == 1])
    assert measures(domain)[0] == pytest.approx(1)
    few = Domain.rectangle((0, 0), (1, 1), (1, 1), diagonal="right")
    owned = few.mesh.topology.index_map(2).size_local
    finer = few.refine(np.arange(owned))
    assert measures(finer)[1] == pytest.approx({"left": 1, "right": 1, "bottom": 1, "top": 1})
