"""Errors that every rank raises alike, for a rank that raises alone leaves the others waiting.

Functions of the user's run inside :func:`together`, checks of rank-local data end in :func:`agree`, and serial work is
done by :func:`on_root`.
"""

import pickle
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType, TracebackType
from typing import Any, TypeVar

from mpi4py import MPI

T = TypeVar("T")


class NotConverged(RuntimeError):
    """A solver stopped without an answer.

    Attributes:
        reason: name of PETSc's or SLEPc's reason, e.g. ``"DIVERGED_MAX_IT"``.
        iterations, residual: those done, and the last relative residual.
        prefix: options prefix of the solver, e.g. ``"fp_exit_"``.
        partial: what was obtained until then, where the function says so; otherwise None.
    """

    partial: Any = None

    def __init__(self, what: str, reason: str, iterations: int, residual: float, prefix: str, advice: str):
        done = f"{reason} after {iterations} iterations, relative residual {residual:.2e}"
        super().__init__(f"{what} did not converge: {done} (options prefix -{prefix}). {advice}")
        self.reason, self.iterations, self.residual, self.prefix = reason, iterations, residual, prefix


def agree(comm: MPI.Comm, problem: str | None, error: type[Exception] = ValueError) -> None:
    """Raise ``error`` on every rank if any found a problem, with the message of the lowest that did (collective)."""
    with together(comm):
        if problem is not None:
            raise error(problem)


@contextmanager
def together(comm: MPI.Comm) -> Iterator[None]:
    """Do rank-local work, such as calling the user's functions; what one rank raises, all ranks raise (collective).

    All raise that of the lowest rank, or if it cannot be pickled a RuntimeError.  The block must not communicate.
    """
    mine: BaseException | None = None
    try:
        yield
    except BaseException as e:
        mine = e
    first = comm.allreduce(comm.size if mine is None else comm.rank, op=MPI.MIN)
    if first == comm.size:
        return
    theirs = comm.bcast(_portable(mine), root=first)
    if mine is not None and comm.rank == first:
        raise mine
    raise theirs from mine


def _portable(error: BaseException | None) -> BaseException:
    """The exception itself if other ranks can rebuild it from its pickle, else a RuntimeError that tells of it."""
    with suppress(Exception):
        copy = pickle.loads(pickle.dumps(error))
        if type(copy) is type(error) and str(copy) == str(error):
            return copy
    return RuntimeError(f"{type(error).__name__}: {error}")


def on_root(comm: MPI.Comm, work: Callable[[], T]) -> T | None:
    """Do serial work on rank 0, where its result is; what it raises is raised on every rank (collective)."""
    with together(comm):
        return work() if comm.rank == 0 else None


def end_all_ranks() -> None:
    """Let an exception that nobody catches end all ranks, as ``python -m mpi4py`` does, unless in a session."""
    if MPI.COMM_WORLD.size == 1 or hasattr(sys, "ps1") or sys.flags.interactive:
        return
    report = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        report(kind, error, trace)
        sys.stdout.flush()
        sys.stderr.flush()
        if MPI.COMM_WORLD.rank > 0:
            time.sleep(0.5)  # where all ranks raise the same, the first one can finish what it says
        MPI.COMM_WORLD.Abort(1)

    sys.excepthook = hook


def import_optional(name: str, purpose: str) -> ModuleType:
    """Import an optional package, or say what it is needed for."""
    try:
        return __import__(name)
    except (ImportError, OSError) as e:  # OSError: gmsh without its shared library
        raise ModuleNotFoundError(
            f"{purpose} needs the Python package '{name}', which could not be imported ({e}). "
            f"Install it, e.g. 'apt install python3-{name}' or 'pip install {name}'"
        ) from e
