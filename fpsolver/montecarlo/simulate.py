"""Monte Carlo: paths of a process, or of the algorithm that the process approximates, for comparison with the PDE."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from mpi4py import MPI

import numpy as np

from .._arguments import part_names
from .._log import logger
from ..domains.domain import Domain
from ..evolution.schedule import followed
from ..models.optimisers import Optimiser
from ..models.process import Process
from ._arguments import check, check_memory, dimension, walls_around
from ._run import Plan
from .ensemble import Ensemble, agrees

Array = np.ndarray[Any, Any]
_LONGEST = 4e8
"""Path steps of the finest ensemble that is made without being asked for; a step of few paths counts as 2000."""


def simulate(
    process: Process,
    domain: Domain | Callable[[Array], Array] | None = None,
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
    minimum: Any = None,
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

    Paths are divided into blocks with a stream of random numbers each: the result depends on the seed, not on the
    number of ranks, among which the blocks are divided.  Paths that are no longer finite are taken out, counted in
    ``stats["diverged"]`` and warned about.

    Args:
        process: any process; an SGD process for "sgd".
        domain: a :class:`Domain`; or a function g of points (d, n), positive inside, whose boundary absorbs; or None
            for the whole space.
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
        minimum: x*, to which steps of "sgd" are compared by :meth:`Ensemble.star_convexity`; needs losses of samples.
        comm: communicator, of the domain if there is one.

    Raises:
        ValueError: what is given does not fit, a start outside, gradients or positions that are not finite,
            paths that come to rest inside, or do not leave in a million steps, while nothing ends the simulation,
            more paths than memory has room for.
        RuntimeError: no C compiler, or it refuses.
    """
    absorbing = part_names(absorbing)
    comm = domain.comm if isinstance(domain, Domain) else comm or MPI.COMM_WORLD
    record, until = check(paths, times, horizon, method, step, seed, backend, process)
    d = dimension(domain, start, paths)
    check_memory(comm, int(paths), d, len(record))
    walls, absorbing = walls_around(domain, absorbing, d)
    if until is None and not absorbing and not len(record):
        raise ValueError("simulate: nothing absorbs; give times= to record, or absorbing= parts.")
    if until == np.inf and not absorbing:
        raise ValueError("simulate: horizon is inf, but nothing absorbs, so that no path would ever end.")
    end: float = until if until is not None else np.inf if absorbing else float(record[-1])
    unit = process.time_per_step
    if method == "sgd":
        assert unit is not None
        record = np.rint(record / unit) * unit
        end = np.ceil(end / unit - 1e-9) * unit
    varying = _varying(process, method, schedule)
    plan = Plan(
        process, start, method, int(seed), int(paths), walls, absorbing, minimum, comm, d, record, end, unit, backend,
        varying,
    )  # fmt: skip
    if method == "sgd" or step is not None:
        found = plan.run(float(step or unit or np.nan))
    else:
        assert unit is not None
        found = _refined(plan, unit)
    for warning in found.warnings:
        logger.warning("simulate: %s", warning)
    return found


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
