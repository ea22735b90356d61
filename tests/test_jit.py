"""Compilation: interrupted ones, several processes at once, reservations of other programs, and what the log says.

Each compilation is that of a child process with a cache of its own.
"""

import logging
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import basix.ufl
import pytest
import ufl
from ffcx.codegeneration import jit

import fpsolver as fp
from fpsolver import _jit

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
FORK = multiprocessing.get_context("fork")


def compiles(folder: Path, compiler: str, answers) -> None:
    """Compile a small form in a process of its own, and send for how long, from where, and what was logged."""
    os.setsid()
    os.environ["CC"] = compiler
    _jit._loaded.clear()
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("fpsolver").addHandler(handler)
    fp.set_log_level("INFO")
    mesh = ufl.Mesh(basix.ufl.element("Lagrange", "interval", 1, shape=(1,)))
    form = ufl.exp(ufl.SpatialCoordinate(mesh)[0]) * ufl.dx(domain=mesh, metadata={"quadrature_degree": 2})
    begin = time.monotonic()
    _, module, _ = jit.compile_forms([form], cache_dir=folder, timeout=60)
    answers.put((time.monotonic() - begin, module.__file__, lines))


class Run:
    """A process that compiles."""

    def __init__(self, folder: Path, compiler: str = "cc"):
        self.answers = FORK.Queue()
        self.process = FORK.Process(target=compiles, args=(folder, compiler, self.answers))
        self.process.start()

    def result(self):
        answer = self.answers.get(timeout=60)
        self.process.join(60)
        return answer


def slow(folder: Path, seconds: float) -> str:
    """A compiler that takes its time, as it does for large forms."""
    file = folder.parent / "slowcc"
    file.write_text(f'#!/bin/sh\nsleep {seconds}\nexec cc "$@"\n')
    file.chmod(0o755)
    return str(file)


@pytest.fixture
def cache(tmp_path) -> Path:
    folder = tmp_path / "fenics"
    folder.mkdir()
    return folder


def unfinished(cache: Path) -> list[Path]:
    return [p for p in cache.rglob("*") if p.suffix == ".c" or ".building" in p.name]


def wait_for(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_an_interrupted_compilation_blocks_nobody(cache, how):
    victim = Run(cache, slow(cache, 30))
    wait_for(lambda: list(cache.glob("fpsolver/*.building*/*.c")))
    os.killpg(victim.process.pid, how)
    victim.process.join(20)
    assert victim.process.exitcode != 0
    assert Run(cache).result()[0] < 20
    assert unfinished(cache) == []


def test_several_processes_at_once(cache):
    results = [run.result() for run in [Run(cache, slow(cache, 1)) for _ in range(4)]]
    assert len({file for _, file, _ in results}) == 1 and unfinished(cache) == []
    assert sorted(p.suffix for p in cache.rglob("*.*")) == [".lock", ".so"]


def test_whoever_waits_takes_over_from_one_that_is_killed(cache):
    victim = Run(cache, slow(cache, 30))
    wait_for(lambda: list(cache.glob("fpsolver/*.building*/*.c")))
    heir = Run(cache)
    time.sleep(0.2)
    os.killpg(victim.process.pid, signal.SIGKILL)
    assert heir.result()[0] < 20 and unfinished(cache) == []


def test_reservations_of_other_programs(cache):
    """They neither block ours nor are they touched."""
    (module,) = (p for p in cache.rglob("*.so")) if Run(cache).result() else ()
    module.unlink()
    source = cache / f"{module.name.partition('.')[0]}.c"
    source.write_text("")
    assert Run(cache).result()[0] < 20
    assert source.read_text() == "" and module.exists()


def test_what_takes_long_is_said(cache):
    lines = Run(cache, slow(cache, 1.5)).result()[2]  # once to compile, once to link
    assert lines[0] == "compiling a form ..."
    assert re.fullmatch(r"compiled a form in \d+ s", lines[1])
    assert Run(cache).result()[2] == []


def test_what_the_compiler_refuses_can_be_repaired(cache):
    run = Run(cache, "false")
    run.process.join(60)
    assert run.process.exitcode == 1
    assert Run(cache).result()[0] < 20 and unfinished(cache) == []
