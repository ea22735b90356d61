"""Evolutions that are killed and go on, on other numbers of ranks, and checkpoints that do not fit."""

import json
import shutil

from mpi4py import MPI

import numpy as np
import pytest

import fpsolver as fp
from fpsolver.discretisation.assembly import to_vector
from fpsolver.discretisation.solution import evaluate

WORLD = MPI.COMM_WORLD
TIMES = [0.0, 0.05, 0.2, 0.5, 1.0]
TOL = 1e-8

# what the killed run, the resumed one and the uninterrupted one have in common
PROBLEM = """
import os, signal, sys
import numpy as np
from mpi4py import MPI
import fpsolver as fp
from fpsolver.evolution import checkpoint
from fpsolver.discretisation.assembly import to_vector
from fpsolver.discretisation.solution import evaluate

def problem(scheme, comm=MPI.COMM_WORLD):
    process = fp.SDE(lambda x: (x[1], x[0] - x[0] ** 3 - x[1]), ((0.3, 0), (0, 0.5)))
    if scheme == "dg":
        process = fp.SDE(lambda x: (x[1], x[0] - x[0] ** 3 - x[1]), ((0, 0), (0, 0.5)))
    if scheme == "galerkin":
        process = fp.SDE(lambda x: (x[0] - x[0] ** 3, -x[1]), 0.3)
    domain = fp.Domain.rectangle((-2, -2), (2, 2), (6, 6), comm=comm)
    return fp.Generator(process, domain, ["right"], degree=3, scheme=scheme)
"""
exec(PROBLEM)

KILLED = (
    PROBLEM
    + """
folder, scheme, moment = sys.argv[1:]
store, count = checkpoint.store, [0]

def die():
    if MPI.COMM_WORLD.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def store_or_die(path, write):
    count[0] += path.name[:5].isdigit()
    if count[0] == 4 and moment == "while writing":
        with open(path.with_name(f".{path.name}.part"), "wb") as file:
            file.write(b"half a file")
        die()
    if count[0] == 4 and moment == "before renaming":
        os.replace = lambda a, b: die()
    store(path, write)
    if count[0] == 4:
        die()

checkpoint.store = store_or_die
fp.evolve(problem(scheme), fp.gaussian((-0.8, 0.3), 0.3), [0.0, 0.05, 0.2, 0.5, 1.0], time_rtol=1e-8,
          checkpoint=folder)
"""
)

RESUMED = (
    PROBLEM
    + """
folder, scheme, points = sys.argv[1:4]
found = fp.resume(problem(scheme), folder)
values = [evaluate(p.raw, np.load(points)) for p in found]
if MPI.COMM_WORLD.rank == 0:
    np.savez(folder + ".npz", values=values, mass=found.mass, outflux=found.outflux, times=found.times,
             right=found.outflux_by_part["right"], solves=found.stats["solves"])
"""
)


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    file = tmp_path_factory.mktemp("points") / "points.npy"
    np.save(file, np.random.default_rng(1).uniform(-1.9, 1.9, (200, 2)))
    return file


@pytest.mark.parametrize(
    ("scheme", "moment", "ranks"),
    [("dg", "while writing", 3), ("galerkin", "before renaming", 1), ("galerkin", "after", 3)],
)
def test_a_killed_run_goes_on(scheme, moment, ranks, mpirun, tmp_path, points):
    """Killed by SIGKILL at the fourth output on two ranks: the first three, or four, are there."""
    folder = tmp_path / "long"
    dead = mpirun(2, KILLED, str(folder), scheme, moment, check=False, timeout=120)
    assert dead.returncode != 0
    kept = sorted(p.name for p in folder.glob("0*.npz"))
    assert len(kept) == (4 if moment == "after" else 3), dead.stdout
    assert list(folder.glob(".*.part")) or moment == "after"
    mpirun(ranks, RESUMED, str(folder), scheme, str(points), timeout=120)
    found = np.load(f"{folder}.npz")
    whole = fp.evolve(problem(scheme, MPI.COMM_SELF), fp.gaussian((-0.8, 0.3), 0.3), TIMES, time_rtol=TOL)  # noqa: F821
    assert list(found["times"]) == TIMES
    # as computed: what makes densities non-negative chooses its way cell by cell, and a change of 1e-8 may change that
    exact = np.array([evaluate(p.raw, np.load(points)) for p in whole])
    # the start has no error in time; both runs may be wrong by tol, in the L2 norm
    assert abs(found["values"][0] - exact[0]).max() < 1e-11
    assert abs(found["values"] - exact).max() < 10 * TOL * abs(exact).max()
    assert abs(found["mass"] - whole.mass).max() < 2 * TOL
    assert abs(found["outflux"] - whole.outflux).max() < 2 * TOL
    assert abs(found["right"] - whole.outflux_by_part["right"]).max() < 2 * TOL
    assert abs(found["mass"] + found["outflux"] - 1).max() < 1e-9
    assert not list(folder.glob(".0*.part")), "what the dead run left is written over"


def line(**changes):
    arguments = {"absorbing": ["right"], "degree": 2, "scheme": "galerkin", **changes}
    rate = arguments.pop("drift", 1.0)
    cells = arguments.pop("cells", 20)
    process = fp.SDE(lambda x: -rate * x[0], 0.3)
    return fp.Generator(process, fp.Domain.interval(-2, arguments.pop("right", 2), cells), **arguments)


START = fp.gaussian(0.2, 0.4)


@pytest.mark.parallel
def test_what_was_kept_is_bitwise_the_same(tmp_dir):
    first = fp.evolve(line(), START, TIMES, checkpoint=tmp_dir / "a")
    again = fp.evolve(line(), START, TIMES, checkpoint=tmp_dir / "a")
    assert again.stats["solves"] == 0
    for a, b in zip(first, again, strict=True):
        assert (a.raw.x.array == b.raw.x.array).all()
    for name in ("mass", "minimum", "outflux", "times"):
        assert (getattr(first, name) == getattr(again, name)).all()
    assert (first.outflux_by_part["right"] == again.outflux_by_part["right"]).all()
    plain = fp.evolve(line(), START, TIMES)
    for a, b in zip(first, plain, strict=True):  # computed twice: equal up to the order of additions
        assert np.allclose(a.raw.x.array, b.raw.x.array, rtol=0, atol=1e-11 * np.abs(b.raw.x.array).max(initial=1e-300))


@pytest.mark.parallel
@pytest.mark.parametrize("scheme", ["galerkin", "dg"])
def test_later_times_are_added(scheme, tmp_dir):
    gen = line(scheme=scheme)
    fp.evolve(gen, START, TIMES[:3], time_rtol=TOL, checkpoint=tmp_dir / "a")
    longer = fp.resume(gen, tmp_dir / "a", times=TIMES)
    plain = fp.evolve(gen, START, TIMES, time_rtol=TOL)
    size = abs(plain[-1].raw.x.array).max(initial=1e-300)
    assert abs(longer[-1].raw.x.array - plain[-1].raw.x.array).max(initial=0) < 10 * TOL * max(size, 0.1)
    assert list(fp.resume(gen, tmp_dir / "a").times) == TIMES, "the longer list is what it is about now"


@pytest.mark.parallel
def test_errors_of_interrupted_runs_add_up_to_tol(tmp_dir, monkeypatch):
    """Interrupted after every output: the estimated errors are those of one run."""
    gen, tol = line(), 1e-6
    for n in range(1, len(TIMES) + 1):
        found = fp.evolve(gen, START, TIMES[:n], time_rtol=tol, checkpoint=tmp_dir / "a")
    exact = fp.evolve(gen, START, TIMES, time_rtol=1e-11)
    spent = [np.load(tmp_dir / "a" / f"{i:05d}.npz")["spent"] for i in range(len(TIMES))]
    assert (np.diff(spent) >= 0).all() and 0 < spent[-1] <= tol
    d = to_vector(gen, found[-1].raw)
    e = to_vector(gen, exact[-1].raw)
    e.axpy(-1.0, d)
    assert e.norm() < tol * d.norm()


@pytest.mark.parallel
def test_expectations_and_schedules_are_kept_too(tmp_dir):
    gen = fp.Generator(
        fp.SGD(lambda x: x[0] ** 2 / 2, fp.Covariance(2.0), 0.3), fp.Domain.interval(-4, 4, 20), scheme="galerkin"
    )
    schedule = {"learning_rate": [(0, 0.4), (0.3, 0.1)]}
    for verb, what in ((fp.evolve, START), (fp.backward, lambda x: x[0] ** 2)):
        name = tmp_dir / verb.__name__
        verb(gen, what, TIMES[:3], time_rtol=TOL, schedule=schedule, checkpoint=name)
        found = fp.resume(gen, name, times=TIMES, schedule=schedule)
        plain = verb(gen, what, TIMES, time_rtol=TOL, schedule=schedule)
        for a, b in zip(found, plain, strict=True):
            size = abs(b.raw.x.array).max(initial=1e-300)
            assert abs(a.raw.x.array - b.raw.x.array).max(initial=0) < 20 * TOL * size
        with pytest.raises(ValueError, match="written with schedule"):
            fp.resume(gen, name, schedule={"learning_rate": [(0, 0.4), (0.3, 0.2)]})
        with pytest.raises(ValueError, match=r"written with schedule .* this evolution has None"):
            fp.resume(gen, name)


@pytest.mark.parallel
def test_the_weighted_scheme(tmp_dir):
    gen = fp.Generator(
        fp.Langevin(lambda x: (x[0] ** 2 - 1) ** 2 / 4, 0.1), fp.Domain.interval(-2, 2, 20), scheme="weighted"
    )
    fp.evolve(gen, fp.gaussian(-1.0, 0.3), [0.1, 1.0], time_rtol=TOL, checkpoint=tmp_dir / "a")
    found = fp.resume(gen, tmp_dir / "a", times=[0.1, 1.0, 3.0])
    plain = fp.evolve(gen, fp.gaussian(-1.0, 0.3), [0.1, 1.0, 3.0], time_rtol=TOL)
    assert abs(found[-1].raw.x.array - plain[-1].raw.x.array).max(initial=0) < 1e-6


@pytest.mark.parallel
def test_partial_results_are_kept_when_tol_cannot_be_met(tmp_dir, monkeypatch):
    from fpsolver.evolution import _expm

    monkeypatch.setattr(_expm, "MAX_BASIS", 8)
    gen = fp.Generator(fp.SDE(lambda x: 1.0, 0.0), fp.Domain.interval(-1, 1, 400), ["right"], degree=2, scheme="dg")
    arguments = gen, fp.dirac(-0.5), [0.0, 1e-6, 1.0]
    for _ in range(2):
        with pytest.raises(fp.NotConverged) as info:
            fp.evolve(*arguments, time_rtol=1e-10, checkpoint=tmp_dir / "a")
        assert list(info.value.partial.times) == [0.0, 1e-6]


@pytest.mark.parallel
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drift": 1.01}, "the drift differ from then"),
        ({"degree": 3}, "written with degree 2, this evolution has 3"),
        ({"scheme": "dg"}, "written with (number of unknowns|scheme)"),
        ({"absorbing": ["left"]}, r"written with absorbing parts \['right'\], this evolution has \['left'\]"),
        ({"cells": 21}, "written with number of unknowns"),
    ],
)
def test_checkpoints_of_something_else(changes, message, tmp_dir):
    fp.evolve(line(), START, [0.1], checkpoint=tmp_dir / "a")
    with pytest.raises(ValueError, match=message):
        fp.resume(line(**changes), tmp_dir / "a")


@pytest.mark.parallel
def test_another_mesh_with_as_many_cells(tmp_dir):
    fp.evolve(line(), START, [0.1], checkpoint=tmp_dir / "a")
    with pytest.raises(ValueError, match="another mesh"):
        fp.resume(line(right=2.001), tmp_dir / "a")


@pytest.mark.parallel
def test_unsuitable_calls(tmp_dir):
    gen, folder = line(), tmp_dir / "a"
    fp.evolve(gen, START, [0.1, 0.2], checkpoint=folder)
    with pytest.raises(ValueError, match="times must begin with these"):
        fp.resume(gen, folder, times=[0.1, 0.3])
    with pytest.raises(ValueError, match="the function at t = 0 differ from then"):
        fp.evolve(gen, fp.gaussian(0.2, 0.41), [0.1, 0.2], checkpoint=folder)
    with pytest.raises(ValueError, match=r"written with time_rtol 1e-06, this evolution has 1e-07"):
        fp.evolve(gen, START, [0.1, 0.2], time_rtol=1e-7, checkpoint=folder)
    with pytest.raises(ValueError, match="written with evolution density, this evolution has expectation"):
        fp.backward(gen, 1.0, [0.1, 0.2], checkpoint=folder)
    with pytest.raises(FileNotFoundError, match="not the folder of a checkpoint"):
        fp.resume(gen, tmp_dir / "b")
    if WORLD.rank == 0:
        (tmp_dir / "c").mkdir()
        (tmp_dir / "c" / "thesis.tex").write_text("x")
        (tmp_dir / "d").write_text("x")
        (folder / "00001.npz").write_bytes(b"half a file")
    WORLD.Barrier()
    with pytest.raises(ValueError, match=r"not a checkpoint and not empty: there is 'thesis.tex'"):
        fp.evolve(gen, START, [0.1], checkpoint=tmp_dir / "c")
    with pytest.raises(ValueError, match="is a file; a checkpoint is a folder"):
        fp.evolve(gen, START, [0.1], checkpoint=tmp_dir / "d")
    with pytest.raises(ValueError, match=r"00001\.npz is damaged"):
        fp.resume(gen, folder)


def test_a_run_killed_before_it_began_begins_again(tmp_path):
    folder = tmp_path / "a"
    fp.evolve(line(), START, [0.1], checkpoint=folder)
    about = json.loads((folder / "evolution.json").read_text())
    assert about["times"] == [0.1]
    (folder / "evolution.json").unlink()
    (folder / "00000.npz").unlink()
    assert len(fp.evolve(line(), START, [0.1, 0.2], checkpoint=folder)) == 2
    shutil.rmtree(folder)


@pytest.mark.parallel
def test_checkpoints_of_other_processes_are_refused(tmp_dir):
    """Mirrored, rotated, slightly changed: the norm of G and the numbers in it are the same or nearly so."""
    domain = fp.Domain.interval(-2, 2, 16)
    start, both = fp.gaussian((0.0,), 0.2), ["left", "right"]
    processes = {
        "drift": (fp.SDE((1.0,), 0.2), fp.SDE((-1.0,), 0.2)),
        "drift of x": (fp.SDE(lambda x: (x[0],), 0.2), fp.SDE(lambda x: (x[0] + 1e-6 * x[0] ** 2,), 0.2)),
        "diffusion": (fp.SDE((0.0,), lambda x: 0.2 + 0.01 * x[0]), fp.SDE((0.0,), lambda x: 0.2 - 0.01 * x[0])),
    }
    for name, (old, new) in processes.items():
        for scheme in ("galerkin", "dg"):
            folder = tmp_dir / f"{name} {scheme}"
            gens = [fp.Generator(p, domain, absorbing=both, degree=2, scheme=scheme) for p in (old, new)]
            kept = fp.evolve(gens[0], start, [0.1], checkpoint=folder)
            for again in (
                lambda g=gens, f=folder: fp.evolve(g[1], start, [0.1], checkpoint=f),
                lambda g=gens, f=folder: fp.resume(g[1], f),
            ):
                with pytest.raises(ValueError, match=name.split()[0] + ".* differ from then"):
                    again()
            assert abs(fp.resume(gens[0], folder).mass[-1] - kept.mass[-1]) < 1e-14


@pytest.mark.parallel
def test_checkpoints_of_parts_elsewhere_are_refused(tmp_dir):
    """The same operator, but the names of the two ends are exchanged."""
    mesh = fp.Domain.interval(-1, 1, 8).mesh
    ends = [{a: lambda x: x[0] < 0, b: lambda x: x[0] > 0} for a, b in (("a", "b"), ("b", "a"))]
    gens = [fp.Generator(fp.SDE((0.3,), 0.2), fp.Domain(mesh, parts), absorbing=["a", "b"], degree=2) for parts in ends]
    fp.evolve(gens[0], fp.gaussian((0.1,), 0.2), [0.1], checkpoint=tmp_dir / "ends")
    with pytest.raises(ValueError, match="place of part 'a' and the place of part 'b' differ"):
        fp.resume(gens[1], tmp_dir / "ends")
