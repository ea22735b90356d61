"""Monte Carlo: paths of a process, or of the algorithm that the process approximates, for comparison with the PDE."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from mpi4py import MPI

import numpy as np

from .._arguments import check_choice, check_integer, check_positive, expect, part_names
from .._errors import agree
from .._log import logger
from ..domains.domain import Domain
from ..evolution.initial import Dirac, Gaussian
from ..evolution.schedule import followed
from ..models.fields import is_number
from ..models.optimisers import Optimiser
from ..models.process import Process
from ..pointwise.walls import walls_of
from ._run import Plan
from .ensemble import Ensemble, agrees

Array = np.ndarray[Any, Any]
_LONGEST = 4e8
"""Path steps of the finest ensemble that is made without being asked for; a step of few paths counts as 2000."""


def simulate(
    process: Process,
    domain: Domain | None = None,
    start: Any = None,
    *,
    absorbing: Sequence[str] | str = (),
    paths: int = 10_000,
    times: Any = None,
    horizon: float | None = None,
    method: Literal["sde", "sgd"] = "sde",
    step: float | None = None,
    schedule: Mapping[str, Any] | None = None,
    seed: int = 0,
    backend: Literal["auto", "numpy", "c"] = "auto",
    comm: MPI.Comm | None = None,
) -> Ensemble:
    """Follow many paths of the diffusion, or of the algorithm itself (collective).

    ``"sde"``: Euler and Maruyama for dX = b dt + √(2D) dW; between the ends of a step exits are drawn from the law of
    a Brownian bridge, so that mean exit times converge with order one in the step.  Without ``step=`` it is divided by
    four, beginning with the algorithm's, until exits and moments change by no more than sampling explains; what they
    change in the end is part of every interval.  Where this would take too long, a warning says so, and intervals are
    unbounded on the side to which the estimates move.

    ``"sgd"``: the algorithm with the very same samples, batches drawn as ``PerSample`` says, fresh noise for
    ``LabelNoise``, and Gaussian noise for covariances that come without samples.  Paths are seen at the ends of steps
    only: one that is beyond an absorbing part then has left, one that is beyond a reflecting wall is mirrored at it
    (:func:`~fpsolver.pointwise.meeting.land` is the rule).  A wall that SGD itself does not have can hide that it
    diverges, so a warning says when steps of half the domain's width were mirrored.

    The result depends on the seed, not on the number of ranks.  Paths that are no longer finite are taken out, counted
    in ``stats["diverged"]`` and warned about.

    Args:
        process: any process; an SGD process for "sgd".
        domain: where; None is the whole space.
        start: a point (d,), one point per path (paths, d), ``fp.dirac`` or ``fp.gaussian`` (restricted to the domain).
        absorbing: parts of the domain's boundary where paths end; the rest reflects.
        paths: how many.
        times: when to record positions.
        horizon: when to stop paths that have not left; by default never if something absorbs, else at the last of
            ``times``.
        method: "sde" or "sgd".
        step: longest time step of the SDE, taken as it is.
        schedule: numbers of the process that change on the way, as of :func:`~fpsolver.evolve`; for "sde", and of SGD
            those that its formulas ask for by name.  The time of formulas that ask for it is on it by itself.
        seed: a non-negative integer.
        backend: "c" compiles formulas with DOLFINx' C compiler, "numpy" takes numpy, "auto" compiles where it can
            (not functions of ``fp.batched``; JAX compiles those of ``from_jax`` itself).  Random numbers are the same.
        comm: communicator, of the domain if there is one.

    Raises:
        ValueError: what is given does not fit, a start outside, gradients that are not finite, paths that come to rest
            inside or do not leave in a million steps without a horizon, more paths than memory has room for.
        RuntimeError: no C compiler, or it refuses.
    """
    what, absorbing = type(process).__name__, part_names(absorbing)
    if domain is not None and not isinstance(domain, Domain):
        raise TypeError(f"simulate: domain is a {type(domain).__name__}; expected a Domain or None.")
    comm = comm or MPI.COMM_WORLD if domain is None else domain.comm
    if not isinstance(process, Process):
        raise TypeError(f"simulate: process is a {what}; expected fp.SGD, fp.SDE, ...")
    paths, seed = check_integer("simulate: paths", paths), check_integer("simulate: seed", seed, 0)
    check_choice("simulate: method", method, ("sde", "sgd"))
    check_choice("simulate: backend", backend, ("auto", "numpy", "c"))
    unit, sgd = process.time_per_step, method == "sgd"
    if sgd and not isinstance(process, Optimiser):
        raise ValueError(f"simulate: method 'sgd' needs fp.SGD or fp.MomentumSGD, not {what}.")
    if sgd and step is not None:
        raise ValueError("simulate: the algorithm's step is its learning rate; step= is for method 'sde'.")
    if step is None and unit is None:
        raise ValueError(f"simulate: give step=, the time step; {what} has no step of its own.")
    length = check_positive("simulate: step", unit if step is None else step)
    d = _dimension(domain, start, paths)
    if domain is None and absorbing:
        raise ValueError(f"simulate: {absorbing[0]!r} cannot absorb without a domain.")
    for name in absorbing:
        domain.facets(name)  # type: ignore[union-attr]  # refuses unknown names
    walls = None if domain is None else walls_of(domain, absorbing)
    record, end = _times(times, horizon, bool(absorbing))
    _check_memory(comm, paths, d, len(record))
    if sgd:
        record, end = np.rint(record / length) * length, np.ceil(end / length - 1e-9) * length
    varying = _varying(process, method, schedule)
    plan = Plan(
        process, start, method, seed, paths, walls, absorbing, comm, d, record, end, unit, backend, varying
    )  # fmt: skip
    found = plan.run(length) if sgd or step is not None else _refined(plan, length)
    for warning in found.warnings:
        logger.warning("simulate: %s", warning)
    return found


def _dimension(domain: Any, start: Any, paths: int) -> int:
    if start is None:
        raise ValueError("simulate: give start=, a point, one point per path, fp.dirac or fp.gaussian.")
    values = {Dirac: "point", Gaussian: "mean"}.get(type(start))
    shape = np.shape(getattr(start, values) if values else start)
    d = (shape[-1] if shape else 1) if domain is None else domain.dim
    if shape not in ((d,), (paths, d)) and not (d == 1 and shape in ((), (paths,))):
        raise ValueError(f"simulate: start has shape {shape}; expected ({d},) or ({paths}, {d}).")
    return d


def _times(times: Any, horizon: Any, absorbs: bool) -> tuple[Array, float]:
    """Recorded times, and when paths that have not left are stopped."""
    record = np.atleast_1d(np.asarray([] if times is None else times, dtype=float))
    rising = np.isfinite(record).all() and (record >= 0).all() and (np.diff(record) > 0).all()
    expect("simulate: times", times, "increasing numbers of at least 0", rising)
    end = (np.inf if absorbs or not len(record) else record[-1]) if horizon is None else horizon
    expect("simulate: horizon", horizon, "a positive number", is_number(end) and end >= 0 and horizon != 0)
    if end == np.inf and not absorbs:
        raise ValueError("simulate: nothing absorbs, and no path would ever end; give times=, horizon= or absorbing=.")
    if len(record) and record[-1] > end:
        raise ValueError(f"simulate: the last of times, {record[-1]:g}, is beyond the horizon {end:g}.")
    return record, float(end)


def _check_memory(comm: MPI.Comm, paths: int, d: int, records: int) -> None:
    """Every rank holds all exits and recorded positions, and some copies while they are gathered (collective)."""
    each = 3 * 8 * (6 + d * (1 + records)) * comm.size
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    problem = (
        f"simulate: paths is {paths:.4g}, whose exits and {records} recorded positions need {each * paths / 2**30:.3g} "
        f"GB on {comm.size} rank(s); this machine has {memory / 2**30:.3g} GB, enough for {memory // each:.3g} paths."
    )
    agree(comm, problem if each * paths > memory else None)


def _varying(process: Process, method: str, schedule: Any) -> dict[str, Callable[[float], float]]:
    """Numbers that change, as functions of time."""
    if schedule is None and not process.timed:
        return {}
    if method == "sgd":
        raise ValueError("simulate: method 'sgd' takes no schedule and no formulas of the time t; method 'sde' does.")
    if not isinstance(schedule or {}, Mapping):
        raise ValueError(f"simulate: schedule is {schedule!r}; a dictionary name -> number or function was expected.")
    varying = followed({"t": lambda t: t, **(schedule or {})} if process.timed else schedule)
    process.with_parameters(**{name: value(0.0) for name, value in varying.items()})  # refuses unknown names
    fixed = [name for name in varying if name not in process.parameters and name != "t"]
    if fixed and isinstance(process, Optimiser):
        raise ValueError(f"simulate: {fixed[0]} of {type(process).__name__} cannot change on the way of paths.")
    return varying


def _refined(plan: Plan, length: float) -> Ensemble:
    """With steps so short that a quarter of them changes nothing that can be told from chance (collective)."""
    coarse = plan.run(length, level=1)
    for level in range(2, 12):
        length /= 4
        fine = plan.run(length, level)
        settled = agrees(coarse, fine)
        if settled or 4 * fine.stats["path_steps"] + 8000 * fine.stats["steps"] > _LONGEST:
            break
        coarse = fine
    return replace(fine, coarse=coarse, settled=settled)
