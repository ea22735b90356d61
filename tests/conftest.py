"""One test body, run serially and, where it is marked ``parallel``, also on two and three ranks (see test_mpi.py).

Of each parametrised test one case is run on two ranks, the second, and one on three, the first.
"""

import fcntl
import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mpi4py import MPI

import pytest

WORLD = MPI.COMM_WORLD
OUTCOMES = WORLD.Dup()  # its messages cannot be mistaken for those of a test
CASE = {2: 2}
"""Which case of a parametrised test is run on that many ranks, if it has as many; the first one on more."""
QUICK = {"test_duality", "test_benchmarks_gradient", "test_benchmarks_kinetic", "test_errors"}
"""Files of which ``-m quick`` consists: whether an installation works."""
PATIENCE = 60.0
"""Seconds that a rank whose test failed waits for the others, which may be stuck waiting for it."""

if WORLD.size > 1:
    gc.disable()  # destructors are collective, so garbage is collected where all ranks meet: after each test


@pytest.hookimpl(trylast=True)  # the reporter is made by another hook of this name
def pytest_configure(config: pytest.Config) -> None:
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if WORLD.rank > 0 and reporter is not None:
        reporter._tw._file = open(os.devnull, "w")


def pytest_unconfigure() -> None:
    if WORLD.size > 1:
        WORLD.Barrier()  # the first rank to leave after a failure ends the others, and rank 0 must print its summary


@pytest.hookimpl(tryfirst=True)  # before what -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in QUICK:
            item.add_marker("quick")
    # where tests are spread over cores: the longest first, and what runs one at a time on one of them
    items.sort(key=lambda item: (item.path.stem != "test_mpi", "mpirun" not in getattr(item, "fixturenames", ())))
    if WORLD.size == 1:
        return
    total, begun = Counter(item.nodeid.split("[")[0] for item in items), Counter[str]()
    for item in items:
        function = item.nodeid.split("[")[0]
        begun[function] += 1
        if item.get_closest_marker("parallel") is None:
            item.add_marker(pytest.mark.skip(reason="a serial test"))
        elif begun[function] != min(CASE.get(WORLD.size, 1), total[function]):
            item.add_marker(pytest.mark.skip(reason="all cases of a test are run on one rank, one of them on several"))


def _outcome() -> Generator[None, Any, Any]:
    """Run a phase of a test and let it fail on every rank if it fails on any."""
    mine, error = None, None
    try:
        result = yield
    except pytest.skip.Exception:
        raise
    except (Exception, pytest.fail.Exception) as e:
        error = e
        mine = str(pytest.ExceptionInfo.from_exception(e).getrepr(style="short"))
    if WORLD.size > 1:
        failed = _gather(mine)
        if error is None and failed:
            pytest.fail("\n".join(f"on rank {rank}:\n{text}" for rank, text in failed.items()), pytrace=False)
    if error is not None:
        raise error
    return result


def _gather(mine: str | None) -> dict[int, str]:
    """What failed on which rank; gives up and ends all ranks if this one failed and the others do not come."""
    request, begin = OUTCOMES.Ibarrier(), time.monotonic()
    while not request.Test():
        time.sleep(0.0005)
        if mine is not None and time.monotonic() - begin > PATIENCE:
            print(f"rank {WORLD.rank} failed, and the others wait for it:\n{mine}", file=sys.__stderr__, flush=True)
            WORLD.Abort(1)
    return {rank: text for rank, text in enumerate(OUTCOMES.allgather(mine)) if text is not None}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, Any, Any]:
    return (yield from _outcome())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, Any, Any]:
    return (yield from _outcome())


@pytest.fixture(autouse=True)
def _tidy() -> Iterator[None]:
    """Destroy on all ranks together what a test leaves behind."""
    yield
    gc.collect()
    gc.freeze()  # what is left will stay; looking through it takes 0.3 s a test once PyTorch and JAX are loaded
    if WORLD.size > 1:
        from petsc4py import PETSc

        PETSc.garbage_cleanup()
        WORLD.Barrier()


@pytest.fixture
def tmp_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new folder that all ranks share."""
    return WORLD.bcast(tmp_path_factory.mktemp("fpsolver") if WORLD.rank == 0 else None, root=0)


@pytest.fixture(scope="session")
def mpirun() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``mpirun(n, code_or_file, *args, timeout=300)`` runs Python on n ranks, from a serial test."""
    if WORLD.size > 1:
        pytest.skip("starts MPI itself")
    return _mpirun


def _mpirun(
    n: int, program: str | Path, *args: str, timeout: float = 300, check: bool = True, plain: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a file, a module ("-m name") or code on n ranks, where an exception on any rank ends all of them.

    ``plain``: by Python alone, as users do, instead of mpi4py's runner.
    """
    start = (
        [str(program)] if isinstance(program, Path) else program.split() if program[:3] == "-m " else ["-c", program]
    )
    runner = [] if plain else ["-m", "mpi4py"]
    command = ["mpirun", "-n", str(n), sys.executable, *runner, *start, *args]
    defaults = {
        "OMPI_MCA_btl": "self,sm",  # one host: no network
        "OMPI_MCA_mpi_yield_when_idle": "1",  # other tests may run beside it
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMP_NUM_THREADS": "1",
    }
    env = {k: v for k, v in {**defaults, **os.environ}.items() if not k.startswith("PYTEST_")}
    with _alone():
        return _run(command, env, timeout, check)


@contextmanager
def _alone() -> Iterator[None]:
    """One run at a time, where tests are spread over cores: ranks that wait for each other are slow in a crowd."""
    with open(Path(tempfile.gettempdir()) / f"fpsolver-mpirun-{os.getuid()}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: list[str], env: dict[str, str], timeout: float, check: bool) -> subprocess.CompletedProcess[str]:
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, text=True, env=env, start_new_session=True, **pipes)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            output, _ = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
        pytest.fail(f"{' '.join(command)} did not end within {timeout:.0f} s:\n{_end(output)}", pytrace=False)
    if check and process.returncode:
        pytest.fail(f"{' '.join(command)} ended with status {process.returncode}:\n{_end(output)}", pytrace=False)
    return subprocess.CompletedProcess(command, process.returncode, output, "")


def _end(output: str, lines: int = 200) -> str:
    return "\n".join(output.splitlines()[-lines:])
