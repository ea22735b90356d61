"""Logging on rank 0 only: what another rank finds is reduced or raised before it is told.

``FPSOLVER_LOG_LEVEL`` (DEBUG, INFO, WARNING, SILENT) or :func:`set_log_level` decide what is shown.
"""

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from mpi4py import MPI

T = TypeVar("T")

logger = logging.getLogger("fpsolver")
_told: list[set[str]] = []


def _is_news(record: logging.LogRecord) -> bool:
    told = _told[-1] if _told and record.levelno >= logging.WARNING else set()
    news = MPI.COMM_WORLD.rank == 0 and record.msg not in told
    told.add(record.msg)
    return news


logger.addFilter(_is_news)


@contextmanager
def once(told: set[str]) -> Iterator[None]:
    """Within it no warning is given whose text, but for the numbers in it, is in ``told``; new ones are added."""
    _told.append(told)
    try:
        yield
    finally:
        _told.pop()


def set_log_level(level: int | str) -> None:
    """Print the package's log on rank 0 from this level on (``"SILENT"`` for nothing)."""
    logger.setLevel(logging.CRITICAL + 1 if level == "SILENT" else level)
    if not any(type(h) is logging.StreamHandler for h in logger.handlers):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("fpsolver %(levelname)s: %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False


if level := os.environ.get("FPSOLVER_LOG_LEVEL"):
    set_log_level(level.upper())


def progress(steps: Iterable[T], what: str, total: int, every: float = 2.0) -> Iterator[T]:
    """Yield ``steps`` and say on rank 0 at level INFO how far they are, on a terminal in a live line."""
    start = last = time.perf_counter()
    live = sys.stderr.isatty() and MPI.COMM_WORLD.rank == 0 and logger.isEnabledFor(logging.INFO)
    for done, step in enumerate(steps):
        if (now := time.perf_counter()) - last > every:
            last, message = now, f"{what}: {done} of {total}, {now - start:.0f} s"
            if live:
                print(f"\r{message}", end="", file=sys.stderr, flush=True)
            else:
                logger.info(message)
        yield step
    if live and last > start:
        print(file=sys.stderr)
