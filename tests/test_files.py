"""Files that cannot be written or have been damaged: an error with the file's name, and the old file stays."""

import resource
import shutil
from contextlib import contextmanager

from mpi4py import MPI

import dolfinx
import numpy as np
import pytest

import fpsolver as fp
from fpsolver import io, plot
from fpsolver._files import store

WORLD = MPI.COMM_WORLD
SUFFIXES = [s for s in io.SUFFIXES if s != ".bp" or dolfinx.has_adios2]


@contextmanager
def full_disk(room: int = 4000):
    """No file of this process may become larger."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    WORLD.Barrier()
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        WORLD.Barrier()


def content(folder):
    """All files below a folder with their contents."""
    WORLD.Barrier()
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def tau():
    domain = fp.Domain.rectangle((-2, -2), (2, 2), (6, 6))
    gen = fp.Generator(fp.SDE(lambda x: (-x[0], -x[1]), 0.2), domain, absorbing=["right"], degree=3)
    return fp.mean_exit_time(gen)


def writers(tau):
    """Everything that writes, by the name of its file."""
    flow = [tau] * 9
    found = {f"field{s}": lambda path: io.write(path, tau) for s in SUFFIXES}
    found |= {f"series{s}": lambda path: io.write(path, flow, np.arange(9.0)) for s in SUFFIXES}
    found["domain.xdmf"] = lambda path: io.write_domain(path, fp.Domain.rectangle((0, 0), (1, 1), (9, 9)))
    found["field.png"] = lambda path: plot.field(tau, path=path)
    return found


@pytest.mark.parallel
def test_a_full_disk_is_an_error_and_the_old_file_stays(tau, tmp_dir):
    for name, write in writers(tau).items():
        path = tmp_dir / "results" / name
        with full_disk(), pytest.raises(OSError, match=rf"{name} cannot be written: File too large"):
            write(path)
        assert content(tmp_dir) == {}, name
        write(path)
        old = content(tmp_dir)
        with full_disk(), pytest.raises(OSError, match=rf"{name} cannot be written"):
            write(path)
        assert content(tmp_dir) == old and path.exists(), name
        write(path)  # and again where there is room
        if WORLD.rank == 0:
            assert [p.name for p in path.parent.iterdir() if "part" in p.name] == []
            shutil.rmtree(path.parent)
        WORLD.Barrier()


@pytest.mark.parallel
def test_disks_on_which_a_series_has_no_room(tau, tmp_dir):
    for suffix in (s for s in SUFFIXES if s != ".npz"):
        path = tmp_dir / f"series{suffix}"
        io.write(path, tau)
        old = content(tmp_dir)
        with full_disk(400_000), pytest.raises(OSError, match=rf"series{suffix} cannot be written"):
            io.write(path, [tau] * 10_000, np.arange(1e4))
        assert content(tmp_dir) == old


@pytest.mark.parallel
def test_paths_at_which_nothing_can_be_written(tau, tmp_dir):
    if WORLD.rank == 0:
        (tmp_dir / "file").write_text("no folder")
    WORLD.Barrier()
    for name, write in writers(tau).items():
        with pytest.raises(OSError, match=rf"file/{name} cannot be written"):
            write(tmp_dir / "file" / name)


def test_a_failing_function_leaves_the_old_file(tmp_path):
    store(tmp_path / "a", lambda f: f.write(b"old"))

    def fail(file):
        file.write(b"half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store(tmp_path / "a", fail)
    assert content(tmp_path) == {"a": b"old"}


def damage(data: bytes, how: str) -> bytes:
    middle = len(data) // 2
    return {
        "word": data[:middle] + b"\xff" * 8 + data[middle + 8 :],
        "first": b"\x00" + data[1:],
        "last": data[:-1] + bytes([data[-1] ^ 1]),
        "cut": data[:middle],
        "empty": b"",
        "longer": data + b"\x00" * 10,
    }[how]


@pytest.mark.parallel
@pytest.mark.parametrize("how", ["word", "cut", "first", "last", "empty", "longer"])
@pytest.mark.parametrize("suffix", ["h5", "xdmf"])
def test_damaged_domains_are_refused(tmp_dir, how, suffix):
    domain = fp.Domain.rectangle((0, 0), (1, 1), (3, 3))
    io.write_domain(tmp_dir / "d.xdmf", domain)
    assert fp.Domain.read(tmp_dir / "d.xdmf").parts == domain.parts
    WORLD.Barrier()
    if WORLD.rank == 0:
        file = tmp_dir / f"d.{suffix}"
        file.write_bytes(damage(file.read_bytes(), how))
    WORLD.Barrier()
    with pytest.raises(ValueError, match=rf"d\.{suffix}"):
        fp.Domain.read(tmp_dir / "d.xdmf")
