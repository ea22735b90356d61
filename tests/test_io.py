"""Files and pictures of fields."""

from pathlib import Path
from types import SimpleNamespace

from mpi4py import MPI

import dolfinx
import numpy as np
import pytest
from dolfinx import fem

from fpsolver import Domain, io, plot
from fpsolver._draw import sample
from fpsolver._sample import lattice

pytestmark = pytest.mark.parallel
WORLD = MPI.COMM_WORLD
SQUARE = ((0, 0), (1, 1), (3, 2))


def function(domain, family, degree, formula, name="f", shape=()):
    f = fem.Function(fem.functionspace(domain.mesh, (family, degree, shape)), name=name)
    f.interpolate(formula)
    return f


def suffixes():
    return [s for s in io.SUFFIXES if s != ".bp" or dolfinx.has_adios2]


# -- Files


@pytest.mark.parametrize("family, degree", [("Lagrange", 4), ("DG", 3), ("DG", 0)])
def test_every_space_goes_into_every_file(family, degree, tmp_dir):
    for domain in (Domain.interval(0, 1, 5), Domain.rectangle(*SQUARE)):
        f = function(domain, family, degree, lambda x: x[0] ** 2)
        for suffix in suffixes():
            path = tmp_dir / "new" / f"{domain.dim}{suffix}"
            io.write(path, {"density": f, "twice": f})
            assert path.exists()


def test_npz_holds_the_nodes_and_values_of_a_series(tmp_dir):
    domain = Domain.rectangle(*SQUARE)
    fields = [{"p": function(domain, "Lagrange", 3, lambda x, t=t: t * x[0] * x[1])} for t in (1.0, 2.0)]
    io.write(tmp_dir / "p.npz", fields, times=[0.5, 1.5])
    vector = function(domain, "DG", 1, lambda x: np.vstack((x[0], x[1])), shape=(2,))
    io.write(tmp_dir / "v.npz", vector)
    with np.load(tmp_dir / "p.npz") as file:
        x = file["points"]
        assert file["times"].tolist() == [0.5, 1.5]
        assert file["cells"].shape == (24, 10) and set(file["cells"].ravel()) == set(range(len(x)))
        for i, t in enumerate((1.0, 2.0)):
            assert np.allclose(file["p"][i], t * x[:, 0] * x[:, 1])
    with np.load(tmp_dir / "v.npz") as file:
        assert file["f"].shape == (1, 24 * 3, 2) and np.allclose(file["f"][0], file["points"])


def test_xdmf_averages_where_a_field_jumps(tmp_dir):
    h5py = pytest.importorskip("h5py")
    domain = Domain.interval(0, 1, 4)
    f = function(domain, "DG", 2, lambda x: x[0])
    step = function(domain, "DG", 0, lambda x: np.where(x[0] < 0.5, 0.0, 1.0))
    for name, g in (("line", f), ("step", step)):
        io.write(tmp_dir / f"{name}.xdmf", g)
    if WORLD.rank == 0:
        found = {}
        for name in ("line", "step"):
            with h5py.File(tmp_dir / f"{name}.h5") as file:
                x = np.array(file["Mesh/mesh/geometry"])[:, 0]
                (values,) = file["Function/f"].values()
                found[name] = np.array(values).ravel()[np.argsort(x)]
        assert np.allclose(found["line"], [0, 0.25, 0.5, 0.75, 1])
        assert np.allclose(found["step"], [0, 0, 0.5, 1, 1])


def test_solutions_and_evolutions_are_accepted(tmp_dir):
    domain = Domain.interval(0, 1, 4)
    solution = SimpleNamespace(function=function(domain, "Lagrange", 2, lambda x: x[0], name="tau"))
    io.write(tmp_dir / "one.npz", solution)
    io.write(tmp_dir / "two.npz", {"a": solution, "b": solution.function})

    class Evolution(list):
        name, times = "the density", (0.0, 1.0)

    io.write(tmp_dir / "three.npz", Evolution([solution, solution]))
    later = function(domain, "Lagrange", 2, lambda x: x[0], name="tau at 1")
    io.write(tmp_dir / "four.npz", [[solution], [later], [later]], times=range(3))
    shapes = []
    for name, key in (("one", "tau"), ("two", "b"), ("three", "the_density"), ("four", "tau")):
        with np.load(tmp_dir / f"{name}.npz") as file:
            shapes.append(file[key].shape)
    assert shapes == [(1, 9), (1, 9), (2, 9), (3, 9)]


def test_what_cannot_be_written(tmp_dir):
    domain = Domain.interval(0, 1, 4)
    f = function(domain, "Lagrange", 1, lambda x: x[0])
    vector = function(domain, "Lagrange", 1, lambda x: np.vstack((x[0], x[0])), shape=(2,))
    other = function(Domain.interval(0, 1, 3), "Lagrange", 1, lambda x: x[0])
    cases = [
        ("a.vtk", f, r"unknown file type '\.vtk'; known are \.bp, \.xdmf, \.npz"),
        ("a.npz", [f, f], "same name"),
        ("a.npz", {"a": 3}, "'a' is int"),
        ("a.npz", {}, "nothing to write"),
        ("a.npz", {"a": f, "b": other}, "different meshes"),
        ("a.npz", {"times": f}, "cannot be called 'times'"),
    ]
    if dolfinx.has_adios2:
        cases.append(("a.bp", {"a": f, "b": vector}, "scalars and vectors"))
    for path, fields, message in cases:
        with pytest.raises(ValueError, match=message):
            io.write(tmp_dir / path, fields)
    with pytest.raises(ValueError, match="3 times, but 2 entries"):
        io.write(tmp_dir / "a.npz", [f, f], times=[0, 1, 2])
    with pytest.raises(ValueError, match="holds f; it cannot also take g"):
        io.write(tmp_dir / "b.npz", [{"f": f}, {"g": f}], times=[0, 1])
    with pytest.raises(ValueError, match=r"written as \.xdmf"):
        io.write_domain(tmp_dir / "a.msh", domain)


# -- Pictures


def test_lattices_fill_the_simplex():
    for dim, n in ((1, 5), (2, 4), (3, 3)):
        X, cells = lattice(dim, n)
        assert len(cells) == n**dim and len(np.unique(X.round(9), axis=0)) == len(X)
        volumes = np.abs(np.linalg.det(X[cells[:, 1:]] - X[cells[:, :1]]))
        assert np.allclose(volumes, n**-dim)
        assert (X >= 0).all() and (X.sum(axis=1) < 1 + 1e-12).all()


@pytest.mark.parametrize("family, degree", [("Lagrange", 4), ("DG", 4)])
def test_samples_are_exact(family, degree):
    for domain in (Domain.interval(0, 1, 5), Domain.rectangle(*SQUARE), Domain.box((0, 0, 0), (1, 1, 1), (1, 1, 2))):
        data = sample(function(domain, family, degree, lambda x: x[0] ** 4 - x[0] ** 3 * x[2] + x[1] ** 2))
        if WORLD.rank == 0:
            x, y, z = np.vstack((data.points.T, np.zeros((3 - domain.dim, len(data.points)))))
            assert np.allclose(data.values, x**4 - x**3 * z + y**2)
            volumes = np.abs(np.linalg.det(data.points[data.cells[:, 1:]] - data.points[data.cells[:, :1]]))
            assert np.isclose(volumes.sum(), {1: 1, 2: 2, 3: 6}[domain.dim])


def test_samples_follow_curved_cells():
    pytest.importorskip("gmsh")
    domain = Domain.disk((0, 0), 1, 0.5)
    data = sample(function(domain, "DG", 1, lambda x: x[0]))
    if WORLD.rank == 0:
        edges = data.points[data.cells[:, 1:]] - data.points[data.cells[:, :1]]
        assert np.isclose(np.abs(np.linalg.det(edges)).sum() / 2, np.pi, rtol=1e-2)


def drawn(path: Path) -> bool:
    """Whether rank 0 wrote a picture, and not an empty one."""
    matplotlib_image = pytest.importorskip("matplotlib.image")
    WORLD.Barrier()
    return float(np.ptp(matplotlib_image.imread(path))) > 0


def test_pictures(tmp_dir):
    pytest.importorskip("matplotlib")
    line, plane = Domain.interval(-1, 1, 6), Domain.rectangle((-1, -1), (1, 1), (3, 3))
    f = function(line, "DG", 3, lambda x: np.exp(-3 * x[0] ** 2), name="p")
    g = function(plane, "Lagrange", 4, lambda x: np.exp(-3 * x[0] ** 2 - x[1] ** 2), name="p")
    drawings = {
        "curve": lambda p: plot.field(f, path=p, log=True),
        "colours": lambda p: plot.field(SimpleNamespace(function=g), path=p, contours=5, title="a title"),
        "logarithm": lambda p: plot.field(g, path=p, log=True, limits=(1e-2, 1)),
        "strip": lambda p: plot.series([g, g, g], titles=["a", "b", "c"], path=p, columns=2),
        "curves": lambda p: plot.series([f, f], path=p),
    }
    for name, draw in drawings.items():
        fig = draw(tmp_dir / "new" / f"{name}.png")
        assert (fig is None) == (WORLD.rank > 0)
        assert drawn(tmp_dir / "new" / f"{name}.png"), name
    plot.save(plot.field(g), tmp_dir / "saved.pdf")
    WORLD.Barrier()
    assert (tmp_dir / "saved.pdf").read_bytes()[:4] == b"%PDF"


def test_pictures_share_one_scale():
    pytest.importorskip("matplotlib")
    plane = Domain.rectangle(*SQUARE)
    fields = [function(plane, "Lagrange", 1, lambda x, s=s: s * x[0]) for s in (1, 3)]
    fig = plot.series(fields)
    if WORLD.rank == 0:
        limits = {a.collections[0].get_clim() for a in fig.axes[:2]}
        assert len(limits) == 1 and limits.pop() == pytest.approx((0, 3))


def test_what_cannot_be_drawn():
    pytest.importorskip("matplotlib")
    plane = Domain.rectangle(*SQUARE)
    f = function(plane, "Lagrange", 1, lambda x: -x[0] - 1)
    with pytest.raises(ValueError, match="needs positive values, but the largest is -1"):
        plot.field(f, log=True)
    with pytest.raises(ValueError, match="expected a scalar function"):
        plot.field(function(plane, "Lagrange", 1, lambda x: x[:2], shape=(2,)))
    with pytest.raises(ValueError, match="got int"):
        plot.field(3)
    with pytest.raises(ValueError, match="one title for each"):
        plot.series([f], titles=[])


def test_pictures_in_space_or_a_reason_why_not(tmp_dir):
    pytest.importorskip("matplotlib")
    f = function(Domain.box((0, 0, 0), (2, 1, 1), (2, 2, 2)), "Lagrange", 2, lambda x: x[0] ** 2 - x[1] * x[2])
    try:
        plot.field(f, path=tmp_dir / "space.png")
    except (ModuleNotFoundError, RuntimeError) as e:
        assert "pyvista" in str(e)
    else:
        assert drawn(tmp_dir / "space.png")
