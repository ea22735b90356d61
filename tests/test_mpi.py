"""Tests marked ``parallel`` on two and on three ranks (how many cases: conftest.py), so that ``pytest`` covers them."""

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("ranks", [2, 3])
def test_parallel_suite(ranks, mpirun, capsys):
    done = mpirun(
        ranks,
        "-m pytest",
        "-m",
        "parallel",
        "-q",
        "--no-header",
        "--color=no",
        "-p",
        "no:cacheprovider",
        str(HERE),
        timeout=30 * 60,
    )
    summary = re.findall(r"^.*\d+ passed.*$", done.stdout, re.MULTILINE)
    with capsys.disabled():
        print(f"\non {ranks} ranks: {summary[-1] if summary else done.stdout}")
    assert summary, done.stdout


def test_a_failure_on_one_rank_is_reported_and_does_not_hang(mpirun, tmp_dir):
    (tmp_dir / "conftest.py").write_text(
        (HERE / "conftest.py").read_text().replace("PATIENCE = 60.0", "PATIENCE = 3.0")
    )
    tests = tmp_dir / "test_ranks.py"
    tests.write_text(
        "from mpi4py import MPI\nimport pytest\npytestmark = pytest.mark.parallel\nrank = MPI.COMM_WORLD.rank\n"
        "def test_one(): assert rank == 0, 'only rank zero is right'\n"
        "def test_two(): MPI.COMM_WORLD.Barrier()\n"
        "def test_three():\n    assert rank == 0, 'left alone'\n    MPI.COMM_WORLD.Barrier()\n"
    )
    arguments = ("-q", "--color=no", "-p", "no:cacheprovider", "-W", "ignore", str(tests))
    done = mpirun(2, "-m pytest", *arguments, "-k", "one or two", check=False, timeout=60)
    assert done.returncode and "1 failed, 1 passed" in done.stdout and "only rank zero is right" in done.stdout
    done = mpirun(2, "-m pytest", *arguments, "-k", "three", check=False, timeout=60)
    assert done.returncode and "left alone" in done.stdout
