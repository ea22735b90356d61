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

SPARE = 1 << 16
"""Bytes for each rank beside the numbers themselves: headers, indices, XML."""


def store(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file on this rank so that under its name there is, at any moment, all of the old content or of the new.

    Raises:
        OSError: it cannot be written, with the file's name.
    """
    part = path.with_name(f".{path.name}.part")
    with naming(path):
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
        _settle(path.parent)


def write_figure(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib, as .png where the path has no suffix; missing folders are created."""
    if figure is None:
        raise ValueError(f"there is no figure to write to {path}")
    path = path if path.suffix else path.with_suffix(".png")
    store(path, lambda file: figure.savefig(file, format=path.suffix[1:], dpi=150, bbox_inches="tight"))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Say which file it is that cannot be written."""
    try:
        yield
    except OSError as e:
        other = f" ({e.filename})" if e.filename and not str(e.filename).startswith(str(path)) else ""
        raise OSError(e.errno, f"{path} cannot be written: {e.strerror or e}{other}") from e


def _settle(folder: Path) -> None:
    """Force the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Staged:
    """A file of several ranks, or a folder, that is written beside its place and then moved there (all collective).

    Libraries that write in parallel end the process, or let the ranks wait for each other for ever, where the disk is
    full or read-only.  So room is claimed before they write, and given back to them at once.

    Attributes:
        path: where to write.

    Raises:
        OSError: nothing can be written there, with the file's name.
    """

    def __init__(self, comm: MPI.Comm, path: Path):
        self.comm, self.target = comm, path
        self._folder = path.parent / f".{path.name}.part"
        self.path = self._folder / path.name
        self._claimed = 0

        def make() -> None:
            with naming(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder.mkdir()

        on_root(comm, make)

    def claim(self, mine: int) -> None:
        """Make sure that there is room for as many more bytes from each rank."""
        more = self.comm.allreduce(int(1.1 * mine) + SPARE)
        self._claimed += more
        with self.unfinished():
            on_root(self.comm, lambda: self._try(more))

    def _try(self, size: int) -> None:
        """Whether there is room for some bytes more, and a file may have as many in all."""
        with naming(self.target), open(self._folder / "room", "wb") as f:
            f.truncate(self._claimed)  # takes no room
            f.truncate(0)
            try:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(f.fileno(), 0, size)
            except OSError as e:
                if e.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that cannot reserve
                    raise
        (self._folder / "room").unlink()

    @contextmanager
    def unfinished(self) -> Iterator[None]:
        """What fails inside removes what was written."""
        try:
            yield
        except BaseException:
            if self.comm.rank == 0:
                shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def publish(self) -> None:
        """Give what was written its name, in place of what had it before."""

        def move() -> None:
            with naming(self.target):
                # the file itself comes last, for it may refer to the others
                for made in sorted(self._folder.iterdir(), key=lambda p: p.name == self.target.name):
                    target, old = self.target.with_name(made.name), self._folder / f"{made.name}.old"
                    if target.is_dir():
                        os.replace(target, old)
                    os.replace(made, target)
                    if old.exists():
                        shutil.rmtree(old)
                self._folder.rmdir()
                _settle(self.target.parent)

        with self.unfinished():
            on_root(self.comm, move)


def digest(*files: Path, without: str = "") -> str:
    """SHA-256 of the contents of files, in which every occurrence of ``without`` counts as so many zeros."""
    total = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        total.update(content.replace(without.encode(), b"0" * len(without)) if without else content)
    return total.hexdigest()
