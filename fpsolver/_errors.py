"""Errors that every rank raises alike.

A rank that raises alone leaves the others waiting in the next collective call.  Checks of rank-local data
therefore end in :func:`agree`, which reduces the verdict first, and serial work is done by :func:`on_root`.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

from mpi4py import MPI

T = TypeVar("T")


class NotConverged(RuntimeError):
    """A solver stopped without an answer.

    Attributes:
        reason: name of PETSc's or SLEPc's reason, e.g. ``"DIVERGED_MAX_IT"``.
        iterations: iterations done.
        residual: last relative residual.
        prefix: options prefix of the solver, e.g. ``"fp_exit_"``.
        partial: what was obtained until then, where the function says so; otherwise None.
    """

    partial: Any = None

    def __init__(self, what: str, reason: str, iterations: int, residual: float, prefix: str, advice: str):
        super().__init__(
            f"{what} did not converge: {reason} after {iterations} iterations, relative residual {residual:.2e} "
            f"(options prefix -{prefix}). {advice}"
        )
        self.reason, self.iterations, self.residual, self.prefix = reason, iterations, residual, prefix


def agree(comm: MPI.Comm, problem: str | None, error: type[Exception] = ValueError) -> None:
    """Raise ``error`` on every rank if any rank found a problem (collective).

    Args:
        comm: communicator of all ranks that make the check.
        problem: what this rank found, or None.  The message of the lowest rank with a problem is raised everywhere.
        error: class of the exception.
    """
    size = comm.size
    first = comm.allreduce(comm.rank if problem is not None else size, op=MPI.MIN)
    if first < size:
        raise error(comm.bcast(problem, root=first))


def on_root(comm: MPI.Comm, work: Callable[[], T]) -> T | None:
    """Do serial work on rank 0; what it raises is raised on every rank (collective).

    Returns:
        The result on rank 0, None elsewhere.
    """
    result, failure, cause = None, None, None
    if comm.rank == 0:
        try:
            result = work()
        except Exception as e:
            known = next(
                (k for k in (ValueError, FileNotFoundError, ModuleNotFoundError) if isinstance(e, k)), RuntimeError
            )
            failure, cause = known(str(e)), e
    failure = comm.bcast(failure, root=0)
    if failure is not None:
        raise failure from cause
    return result


def import_optional(name: str, purpose: str) -> ModuleType:
    """Import an optional package, or say what it is needed for."""
    try:
        return __import__(name)
    except (ImportError, OSError) as e:  # OSError: gmsh without its shared library
        raise ModuleNotFoundError(
            f"{purpose} needs the Python package '{name}', which could not be imported ({e}). "
            f"Install it, e.g. 'apt install python3-{name}' or 'pip install {name}'"
        ) from e
