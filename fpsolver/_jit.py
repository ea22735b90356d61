"""Compilation of forms that survives interruptions, is safe among processes, and says what takes long.

FFCx reserves a module of its cache by an empty C file: where the process that made it was killed, every later run waits
until the time-out.  Here a reservation is a lock, and a module is built in a folder of its own and moved when whole.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import ffcx.codegeneration.jit as jit

from ._log import logger

PATIENCE = 2.0  # seconds after which the log says what is being compiled
_KINDS = {"Form": "a form", "tuple": "an expression at points"}
_compile = jit._compile_objects
_loaded: dict[str, tuple[Any, Any]] = {}
_locks: dict[Path, int] = {}


def install() -> None:
    """Let FFCx find and compile modules in this way, in this process."""
    jit.get_cached_module, jit._compile_objects, jit._load_objects = _find, _build, _load


def _file(cache_dir: Any, module_name: str) -> Path | None:
    """A compiled module, None if there is none yet."""
    paths = (Path(cache_dir) / "fpsolver" / (module_name + suffix) for suffix in EXTENSION_SUFFIXES)
    return next((path for path in paths if path.exists()), None)


def _find(module_name: str, object_names: Sequence[str], cache_dir: Any, timeout: int) -> tuple[Any, Any]:
    """Objects of a compiled module and the module; (None, None) if this process is to compile it, which is locked."""
    folder = Path(cache_dir) / "fpsolver"
    if not _file(cache_dir, module_name):
        folder.mkdir(parents=True, exist_ok=True)
        with _said(f"another process compiles {module_name}: waiting for it"):
            while not _lock(folder, module_name) and not _file(cache_dir, module_name):  # whoever has it compiles it
                time.sleep(0.05)
        if not _file(cache_dir, module_name):
            return None, None
        _lock(folder, module_name, fcntl.LOCK_UN)
    return _load(cache_dir, module_name, object_names)


def _load(cache_dir: Any, module_name: str, object_names: Sequence[str]) -> tuple[Any, Any]:
    """Import a module once."""
    path = str(_file(cache_dir, module_name))
    if path not in _loaded:
        spec = spec_from_file_location(module_name, path)
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        _loaded[path] = [getattr(module.lib, name) for name in object_names], module
    return _loaded[path]


def _build(
    decl: str, objects: Any, names: Any, module_name: str, options: Any, cache_dir: Any, *more: Any, **others: Any
) -> Any:
    """Compile in a folder of its own and move the result into the cache."""
    folder, what = Path(cache_dir) / "fpsolver", ", ".join(_KINDS.get(type(o).__name__, "a geometry") for o in objects)
    handlers = jit.root_logger.handlers.copy()
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{module_name}.building*"):
        shutil.rmtree(left, ignore_errors=True)
    building = tempfile.TemporaryDirectory(dir=folder, prefix=f"{module_name}.building")
    try:
        with building as place, _said(f"compiling {what} ...", f"compiled {what} in"):
            result = _compile(decl, objects, names, module_name, options, Path(place), *more, **others)
            (made,) = Path(place).glob("*.so")
            os.replace(made, folder / made.name)
        return result
    finally:
        jit.root_logger.handlers = handlers  # FFCx leaves its own behind where it fails
        _lock(folder, module_name, fcntl.LOCK_UN)


def _lock(folder: Path, module_name: str, operation: int = fcntl.LOCK_EX | fcntl.LOCK_NB) -> bool:
    """One for each module: a byte of one file, which the system frees when the process ends, however it does."""
    if folder not in _locks:
        _locks[folder] = os.open(folder / "fpsolver.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        byte = int(hashlib.sha256(module_name.encode()).hexdigest()[:12], 16)
        fcntl.lockf(_locks[folder], operation, 1, byte)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as e:  # a file system without locks
        logger.debug("%s: no locks (%s)", folder, e)
    return True


@contextmanager
def _said(what: str, done: str = "waited") -> Iterator[None]:
    """Log what is being done if it takes long, and how long it took."""
    begin, timer = time.monotonic(), threading.Timer(PATIENCE, logger.info, (what,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if (seconds := time.monotonic() - begin) > PATIENCE:
            logger.info("%s %.0f s", done, seconds)
