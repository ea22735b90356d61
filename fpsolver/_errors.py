"""Errors that every rank raises alike.

A rank that raises alone leaves the others waiting in the next collective call.  Checks of rank-local data
therefore end in :func:`agree`, which reduces the verdict first.
"""

from typing import Any

from mpi4py import MPI


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
