"""Checks of what ``simulate`` is given."""

import os
from typing import Any

from mpi4py import MPI

import numpy as np

from .._errors import agree
from ..domains.domain import Domain
from ..evolution.initial import Dirac, Gaussian
from ..models.fields import is_number
from ..models.optimisers import Optimiser
from ..models.process import Process
from ..pointwise.walls import Walls, walls_of

Array = np.ndarray[Any, Any]


def check(
    paths: Any, times: Any, horizon: Any, method: str, step: Any, seed: Any, backend: str, process: Any
) -> tuple[Array, float | None]:
    """Recorded times and the horizon, checked together with the rest."""
    if not isinstance(process, Process):
        raise TypeError(f"simulate: process is a {type(process).__name__}; expected fp.SGD, fp.SDE, ...")
    if not is_number(paths) or paths != int(paths) or paths < 1:
        raise ValueError(f"simulate: paths is {paths!r}; a positive integer was expected.")
    if not is_number(seed) or seed != int(seed) or seed < 0:
        raise ValueError(f"simulate: seed is {seed!r}; a non-negative integer was expected.")
    if method not in ("sde", "sgd"):
        raise ValueError(f"simulate: method is {method!r}; expected 'sde' or 'sgd'.")
    if backend not in ("auto", "numpy", "c"):
        raise ValueError(f"simulate: backend is {backend!r}; expected 'auto', 'numpy' or 'c'.")
    for name, value in (("step", step), ("horizon", horizon)):
        if value is not None and (not is_number(value) or not value > 0):
            raise ValueError(f"simulate: {name} is {value!r}; a positive number was expected.")
    if method == "sgd" and not isinstance(process, Optimiser):
        raise ValueError(f"simulate: method 'sgd' needs fp.SGD or fp.MomentumSGD, not {type(process).__name__}.")
    if method == "sgd" and step is not None:
        raise ValueError("simulate: the algorithm's step is its learning rate; step= is for method 'sde'.")
    if method == "sde" and step is None and process.time_per_step is None:
        raise ValueError(f"simulate: give step=, the time step; {type(process).__name__} has no step of its own.")
    record = np.atleast_1d(np.asarray([] if times is None else times, dtype=float))
    if not np.isfinite(record).all() or (record < 0).any() or (np.diff(record) <= 0).any():
        raise ValueError(f"simulate: times is {times!r}; increasing numbers of at least 0 were expected.")
    if horizon is not None and len(record) and record[-1] > horizon:
        raise ValueError(f"simulate: the last of times, {record[-1]:g}, is beyond the horizon {horizon:g}.")
    return record, None if horizon is None else float(horizon)


def dimension(domain: Any, start: Any, paths: int) -> int:
    values = {Dirac: "point", Gaussian: "mean"}.get(type(start))
    if start is None:
        raise ValueError("simulate: give start=, a point, one point per path, fp.dirac or fp.gaussian.")
    shape = np.shape(getattr(start, values) if values else start)
    d = domain.dim if isinstance(domain, Domain) else (shape[-1] if shape else 1)
    if shape not in ((d,), (paths, d)) and not (d == 1 and shape in ((), (paths,))):
        raise ValueError(f"simulate: start has shape {shape}; expected ({d},) or ({paths}, {d}).")
    return d


def walls_around(domain: Any, absorbing: tuple[str, ...], d: int) -> tuple[Walls | None, tuple[str, ...]]:
    if isinstance(domain, Domain):
        for name in absorbing:
            domain.facets(name)  # refuses unknown names
        return walls_of(domain, absorbing), absorbing
    if domain is None:
        if absorbing:
            raise ValueError(f"simulate: {absorbing[0]!r} cannot absorb without a domain.")
        return None, ()
    if not callable(domain):
        raise TypeError(f"simulate: domain is a {type(domain).__name__}; expected a Domain, a function or None.")
    if absorbing not in ((), ("boundary",)):
        raise ValueError("simulate: a domain given as a function has one part, 'boundary'.")
    return walls_of(domain, (), d), ("boundary",)


def check_memory(comm: MPI.Comm, paths: int, d: int, records: int) -> None:
    """Every rank holds all exits and recorded positions, and some copies while they are gathered (collective).

    Raises:
        ValueError: more than the machine has.
    """
    each = 3 * 8 * (6 + d * (1 + records)) * comm.size
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    problem = (
        f"simulate: paths is {paths:.4g}, whose exits and {records} recorded positions need {each * paths / 2**30:.3g} "
        f"GB on {comm.size} rank(s); this machine has {memory / 2**30:.3g} GB, enough for {memory // each:.3g} paths."
    )
    agree(comm, problem if each * paths > memory else None)
