"""Files that are whole: what is written gets its name at the end, so that a failure leaves what was there before."""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from mpi4py import MPI

from ._errors import on_root

SPARE = 1 << 16  # bytes for each rank beside the numbers themselves: headers, indices, XML


def store(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file on this rank so that under its name there is always all of the old content or all of the new."""
    part = path.with_name(f".{path.name}.part")
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def write_figure(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib, as .png where the path has no suffix; missing folders are created."""
    if figure is None:
        raise ValueError(f"there is no figure to write to {path}")
    path = path if path.suffix else path.with_suffix(".png")
    store(path, lambda file: figure.savefig(file, format=path.suffix[1:], dpi=150, bbox_inches="tight"))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say which file it is that cannot be written."""
    try:
        yield
    except OSError as e:
        other = f" ({e.filename})" if e.filename and not str(e.filename).startswith(str(path)) else ""
        raise OSError(e.errno, f"{path} cannot be written: {e.strerror or e}{other}") from e


@contextmanager
def staged(comm: MPI.Comm, path: Path, mine: int) -> Iterator[Path]:
    """Where ranks write a file, or a folder, beside its place, to which it is moved at the end (collective).

    Libraries that write in parallel end the process, or hang, where the disk is full or read-only.  So room for
    ``mine`` bytes of each rank is claimed before they write, and given back to them.
    """
    folder, size = path.parent / f".{path.name}.part", comm.allreduce(int(1.1 * mine) + SPARE)

    def claim() -> None:
        with _naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            with open(folder / "room", "wb") as f:
                f.truncate(size)  # takes no room, but may be more than a file may have
                try:
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(f.fileno(), 0, size)
                except OSError as e:
                    if e.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that cannot reserve
                        raise
            (folder / "room").unlink()

    def publish() -> None:
        with _naming(path):
            # the file itself comes last, for it may refer to the others
            for made in sorted(folder.iterdir(), key=lambda p: p.name == path.name):
                target, old = path.with_name(made.name), folder / f"{made.name}.old"
                if target.is_dir():
                    os.replace(target, old)
                os.replace(made, target)
            shutil.rmtree(folder)

    try:
        on_root(comm, claim)
        yield folder / path.name
        on_root(comm, publish)
    except BaseException as e:
        if comm.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(e, RuntimeError):  # what libraries raise
            raise OSError(f"{path} cannot be written: {e}") from e
        raise


def digest(*files: Path, without: str = "") -> str:
    """SHA-256 of the contents of files, in which every occurrence of ``without`` counts as so many zeros."""
    total = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        total.update(content.replace(without.encode(), b"0" * len(without)) if without else content)
    return total.hexdigest()
