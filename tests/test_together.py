"""What one rank raises, all ranks raise: functions of the user's, and work of rank 0."""

from mpi4py import MPI

import numpy as np
import pytest

import fpsolver as fp
from fpsolver._errors import on_root, together

WORLD = MPI.COMM_WORLD
LAST = WORLD.size - 1
ERRORS = [
    IndexError("list index out of range"),
    ZeroDivisionError("division by zero"),
    KeyboardInterrupt(),
    KeyError("w"),
]


class Homemade(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


def failing(error, value):
    """A function that fails on the last rank only."""

    def f(x):
        if WORLD.rank == LAST:
            raise error
        return value(x)

    return f


@pytest.mark.parallel
@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_what_one_rank_raises_all_raise(error):
    with pytest.raises(type(error)) as caught, together(WORLD):
        if WORLD.rank == LAST:
            raise error
    assert str(caught.value) == str(error)
    assert WORLD.allreduce(1) == WORLD.size


@pytest.mark.parallel
def test_the_exception_of_the_lowest_rank_counts():
    with pytest.raises(ValueError, match=r"^rank 0$"), together(WORLD):
        raise ValueError(f"rank {WORLD.rank}")


@pytest.mark.parallel
def test_exceptions_that_cannot_be_sent_are_told():
    with pytest.raises(Homemade if WORLD.rank == LAST else RuntimeError, match="1 and 2"), together(WORLD):
        if WORLD.rank == LAST:
            raise Homemade(1, 2)


@pytest.mark.parallel
def test_work_of_rank_0():
    assert on_root(WORLD, lambda: 3) == (3 if WORLD.rank == 0 else None)
    with pytest.raises(PermissionError, match="no"):
        on_root(WORLD, lambda: (_ for _ in ()).throw(PermissionError("no")))


@pytest.mark.parallel
@pytest.mark.parametrize("error", ERRORS[:3], ids=lambda e: type(e).__name__)
def test_functions_of_the_user(error):
    domain = fp.Domain.interval(-1.0, 1.0, 8)
    brown = fp.SDE(0.0, 0.5)
    gen, grads = fp.Generator(brown, domain), fp.batched(failing(error, lambda x: np.ones((len(x), 2, 1))))
    calls = {
        "marker": lambda: domain.mark("mine", failing(error, lambda x: x[0] > 0)),
        "drift": lambda: fp.Generator(fp.SDE(failing(error, lambda x: -x[0]), 0.5), domain),
        "table": lambda: fp.Generator(fp.SDE(fp.batched(failing(error, np.negative)), 0.5), domain),
        "samples": lambda: fp.Generator(fp.SGD(lambda x: x[0] ** 2, fp.PerSample(grads), 0.1), domain),
        "region": lambda: fp.committor(gen, failing(error, lambda x: x[0] < -0.5), "right"),
        "initial": lambda: fp.evolve(gen, failing(error, lambda x: 1 + x[0]), [0.1]),
        "payoff": lambda: fp.backward(gen, fp.batched(failing(error, lambda x: x[:, 0])), [0.1]),
        "simulate": lambda: fp.simulate(
            fp.SDE(fp.batched(failing(error, np.negative)), 0.5), domain, (0.0,), paths=10_000, horizon=0.1, step=0.05
        ),
    }
    kind = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else Exception
    for where, call in calls.items():
        with pytest.raises(kind) as caught:
            call()
        told = WORLD.allgather(f"{type(caught.value).__name__}: {caught.value}")
        assert len(set(told)) == 1 and (kind is KeyboardInterrupt or str(error) in told[0]), where


def test_what_nobody_catches_ends_all_ranks(mpirun):
    code = "import fpsolver\nfrom mpi4py import MPI\nif MPI.COMM_WORLD.rank == 1: {}\nMPI.COMM_WORLD.Barrier()"
    for line in ("[][3]", "raise KeyboardInterrupt"):
        run = mpirun(2, code.format(line), timeout=60, check=False, plain=True)
        assert run.returncode != 0 and ("IndexError" in run.stdout or "KeyboardInterrupt" in run.stdout)
