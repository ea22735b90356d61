"""Monte Carlo: paths of a process, or of the algorithm that the process approximates, for comparison with the PDE."""

import time as clock
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from mpi4py import MPI

import numpy as np

from .._errors import together
from ..domains.domain import Domain, part_names
from ..evolution.initial import Dirac, Gaussian
from ..models.fields import is_number
from ..models.process import SGD, MomentumSGD, Process
from ._dynamics import Diffusion, Gradient, chunked
from ._family import Backend
from ._lambdify import PointSpace
from ._native import NotCompilable
from ._paths import BLOCK, Draws, Swarm, descend, diffuse, time_steps
from ._walls import LevelSet, Walls, walls_of
from .ensemble import Ensemble

Array = np.ndarray[Any, Any]
POOL = 64
"""Blocks of paths that are moved together."""


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
    seed: int = 0,
    backend: Literal["auto", "numpy", "c"] = "auto",
    minimum: Any = None,
    comm: MPI.Comm | None = None,
) -> Ensemble:
    """Follow many paths of the diffusion, or of the algorithm itself (collective).

    ``"sde"``: Euler and Maruyama for dX = b dt + √(2D) dW; between the ends of a step exits are drawn from the law of
    a Brownian bridge, so that mean exit times converge with order one in the step.  ``"sgd"``: the algorithm with
    the very same samples, batches drawn as ``PerSample`` says, fresh noise for ``LabelNoise``, and Gaussian noise for
    covariances that come without samples; exits are seen at the ends of steps only.

    Paths are divided into blocks with a stream of random numbers each: the result depends on the seed, not on the
    number of ranks, among which the blocks are divided.

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
        step: longest time step of the SDE; by default a quarter of the algorithm's.
        seed: a non-negative integer.
        backend: "c" compiles formulas with DOLFINx' C compiler, "numpy" takes numpy, "auto" compiles where it can
            (not functions of ``fp.batched``; JAX compiles those of ``from_jax`` itself).  Random numbers are the same.
        minimum: x*, to which steps of "sgd" are compared by :meth:`Ensemble.star_convexity`; needs losses of samples.
        comm: communicator, of the domain if there is one.

    Raises:
        ValueError: what is given does not fit, a start outside, gradients or positions that are not finite,
            paths that come to rest inside while nothing ends the simulation.
        RuntimeError: no C compiler, or it refuses.
    """
    absorbing = part_names(absorbing)
    comm = domain.comm if isinstance(domain, Domain) else comm or MPI.COMM_WORLD
    record, until = _check(paths, times, horizon, method, step, seed, backend, process)
    d = _dimension(domain, start, paths)
    walls, absorbing = _walls(domain, absorbing, d)
    if until is None and not absorbing and not len(record):
        raise ValueError("simulate: nothing absorbs; give times= to record, or absorbing= parts.")
    end: float = until if until is not None else np.inf if absorbing else float(record[-1])
    unit: Any = getattr(process, "time_per_step", None)
    length = float(unit if method == "sgd" else step or unit / 4)
    if method == "sgd":
        record = np.rint(record / unit) * unit
        end = np.ceil(end / unit - 1e-9) * unit
    begin = clock.perf_counter()
    blocks = [(b, min(BLOCK, paths - b * BLOCK)) for b in range(comm.rank, -(-paths // BLOCK), comm.size)]
    swarms: list[Swarm] = []
    with together(comm), _naming_simulate():
        mover = _mover(process, d, method, backend, minimum)
        for i in range(0, len(blocks), POOL):
            swarm = _begin(blocks[i : i + POOL], start, d, seed, walls, len(record), paths)
            at_rest = 0
            for t, dt, index in time_steps([float(t) for t in record], end, length):
                before = swarm.x
                if dt > 0:
                    with np.errstate(all="ignore"):  # what is not finite is found by the swarm
                        mover.advance(swarm, walls, t, dt)
                if index >= 0:
                    swarm.records[index][:, swarm.ids] = swarm.x
                if not swarm.ids.size:
                    break
                at_rest = at_rest + 1 if end == np.inf and np.array_equal(before, swarm.x) else 0
                if at_rest >= _AT_REST:
                    raise ValueError(
                        f"{len(swarm.ids)} paths that have not left did not move in the last {at_rest} steps, one "
                        f"of them at {tuple(float(c) for c in swarm.x[:, 0])}: drift and noise vanish there, and "
                        "they would stay for ever. Give horizon=."
                    )
            swarms.append(swarm)
    gathered = [_joined(comm, [getattr(s, name) for s in swarms], blocks, paths) for name in _GATHERED]
    exits, parts, points, records, kept, asked = gathered
    names = np.array([*absorbing, ""])
    steps = comm.allreduce(sum(s.steps for s in swarms))
    stats = {"paths": paths, "path_steps": steps, "seconds": clock.perf_counter() - begin, "step": length}
    stats |= {"backend": mover.backend, "seed": seed, "blocks": -(-paths // BLOCK)}
    convexity = np.stack((kept, asked)) if minimum is not None else None
    where = (exits, names[parts.astype(int)], points.T, record, records.transpose(0, 2, 1))
    return Ensemble(method, *where, end, absorbing, unit, stats, convexity)


@contextmanager
def _naming_simulate() -> Iterator[None]:
    """Say that what fails is a simulation."""
    try:
        yield
    except (ValueError, TypeError, FloatingPointError) as e:
        raise ValueError(f"simulate: {e}") from e
    except RuntimeError as e:
        raise RuntimeError(f"simulate: {e}") from e


_AT_REST = 1000  # steps
_GATHERED = ("time", "part", "point", "records", "kept", "asked")


def _mover(process: Any, d: int, method: str, backend: str, minimum: Any) -> "_Sde | _Algorithm":
    def make(backend: Backend) -> "_Sde | _Algorithm":
        return _Algorithm(process, d, backend, minimum) if method == "sgd" else _Sde(process, d, backend)

    try:
        return make("numpy" if backend == "numpy" else "c")
    except NotCompilable:
        if backend == "c":
            raise
        return make("numpy")


class _Sde:
    """Moves paths of the diffusion."""

    def __init__(self, process: Process, d: int, backend: Backend):
        self.backend = backend
        diffusion = Diffusion(process, d, backend)
        self.coefficients = chunked(diffusion, diffusion.temporaries)

    def advance(self, swarm: Swarm, walls: Walls | None, t: float, dt: float) -> None:
        diffuse(swarm, self.coefficients, walls, t, dt)


class _Algorithm:
    """Moves paths of SGD."""

    def __init__(self, process: Any, d: int, backend: Backend, minimum: Any):
        self.backend = backend
        self.space = PointSpace(d, d // 2 if isinstance(process, MomentumSGD) else d)
        self.gradient, self.batch = Gradient(process, self.space, backend), int(process.batch_size)
        family = self.gradient.family
        everyone = family is not None and family.native is None and process.loss is not None
        self.step = chunked(self.gradient.step, self.space.dim * (self.gradient.samples if everyone else self.batch))
        self.reference = None
        if minimum is not None:
            if process.loss is not None or self.gradient.family is None or not hasattr(self.gradient.family, "kind"):
                raise ValueError("minimum= needs an SGD process with loss=None and PerSample losses.")
            point = np.asarray(minimum, dtype=float).reshape(-1, 1)
            if len(point) != self.space.dim:
                raise ValueError(f"minimum has {len(point)} coordinates; {self.space.dim} were expected.")
            values = Gradient(process, self.space, values=True)
            N = np.arange(values.samples)[None]
            assert values.family is not None
            at = values.family.chosen(np.broadcast_to(point, (len(point), values.samples)), N)[0, 0]
            self.reference = (values, point, at)

    def advance(self, swarm: Swarm, walls: Walls | None, t: float, dt: float) -> None:
        g, draws, n = self.gradient, swarm.draws, swarm.x.shape[1]
        sample: Any = draws.samples(g.samples, self.batch, g.replacement) if g.uses_samples else None
        label = draws.normal(self.batch).reshape(self.batch, n) if g.uses_labels else None
        noise = draws.normal(self.space.dim) if g.uses_normals else None
        if self.reference is not None:
            values, point, at = self.reference
            x = swarm.x[: self.space.dim]
            f, slope = values.batch_values(x, sample)
            gap = f - at[sample].mean(axis=0)
            swarm.asked[swarm.ids] += 1
            swarm.kept[swarm.ids] += (slope * (x - point)).sum(axis=0) >= gap - 1e-12 * np.abs(f)
        descend(swarm, self.step, walls, t + dt, (sample, label, noise))


def _check(
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
    descent = isinstance(process, SGD | MomentumSGD)
    if method == "sgd" and not descent:
        raise ValueError(f"simulate: method 'sgd' needs fp.SGD or fp.MomentumSGD, not {type(process).__name__}.")
    if method == "sgd" and step is not None:
        raise ValueError("simulate: the algorithm's step is its learning rate; step= is for method 'sde'.")
    if isinstance(process, SGD | MomentumSGD) and method == "sgd" and process.batch_size != int(process.batch_size):
        raise ValueError(f"simulate: batch_size is {process.batch_size}; the algorithm needs an integer.")
    if method == "sde" and step is None and not descent:
        raise ValueError(f"simulate: give step=, the time step; {type(process).__name__} has no step of its own.")
    record = np.atleast_1d(np.asarray([] if times is None else times, dtype=float))
    if not np.isfinite(record).all() or (record < 0).any() or (np.diff(record) <= 0).any():
        raise ValueError(f"simulate: times is {times!r}; increasing numbers of at least 0 were expected.")
    if horizon is not None and len(record) and record[-1] > horizon:
        raise ValueError(f"simulate: the last of times, {record[-1]:g}, is beyond the horizon {horizon:g}.")
    return record, None if horizon is None else float(horizon)


def _dimension(domain: Any, start: Any, paths: int) -> int:
    values = {Dirac: "point", Gaussian: "mean"}.get(type(start))
    if start is None:
        raise ValueError("simulate: give start=, a point, one point per path, fp.dirac or fp.gaussian.")
    shape = np.shape(getattr(start, values) if values else start)
    d = domain.dim if isinstance(domain, Domain) else (shape[-1] if shape else 1)
    if shape not in ((d,), (paths, d)) and not (d == 1 and shape in ((), (paths,))):
        raise ValueError(f"simulate: start has shape {shape}; expected ({d},) or ({paths}, {d}).")
    return d


def _walls(domain: Any, absorbing: tuple[str, ...], d: int) -> tuple[Walls | None, tuple[str, ...]]:
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
    return LevelSet(domain, d), ("boundary",)


def _begin(
    blocks: Sequence[tuple[int, int]], start: Any, d: int, seed: int, walls: Walls | None, records: int, paths: int
) -> Swarm:
    """A swarm of some blocks at the start."""
    block = np.repeat(np.arange(len(blocks)), [n for _, n in blocks])
    draws = Draws(seed, [b for b, _ in blocks], block)
    ids = np.concatenate([b * BLOCK + np.arange(n) for b, n in blocks])
    if isinstance(start, Gaussian):
        mean, std = np.array(start.mean)[:, None], np.array(start.std)[:, None]
        x = mean + std * draws.normal(d)
        for _ in range(100):
            outside = np.zeros(len(ids), bool) if walls is None else (walls.distance(x) <= 0).any(axis=0)
            if not outside.any():
                break
            x = np.where(outside, mean + std * draws.normal(d), x)
    else:
        given = np.asarray(start.point if isinstance(start, Dirac) else start, dtype=float)
        each = given.ndim == 2 or (d == 1 and given.shape == (paths,) and paths > 1)
        x = given.reshape(paths, d)[ids].T.copy() if each else np.tile(given.reshape(d, 1), len(ids))
    if not np.isfinite(x).all():
        raise ValueError("start is not finite.")
    if walls is not None and (outside := (walls.distance(x) < 0).any(axis=0)).any():
        raise ValueError(f"the start {tuple(float(c) for c in x[:, outside.argmax()])} lies outside the domain.")
    return Swarm(x, draws, np.full((records, d, len(ids)), np.nan))


def _joined(comm: MPI.Comm, mine: list[Array], blocks: Sequence[tuple[int, int]], paths: int) -> Array:
    """Arrays (..., paths) of all ranks' blocks in the order of the paths (collective)."""
    local = np.concatenate(mine, axis=-1) if mine else None
    ids = np.concatenate([b * BLOCK + np.arange(n) for b, n in blocks]) if blocks else np.zeros(0, int)
    pieces = [p for p in comm.allgather((ids, local)) if p[1] is not None]
    result = np.empty((*pieces[0][1].shape[:-1], paths), dtype=pieces[0][1].dtype)
    for where, values in pieces:
        result[..., where] = values
    return result
