"""One step of an algorithm from many points: images under all its batches, or under batches drawn for each point."""

from collections.abc import Callable, Sequence
from typing import Any

from mpi4py import MPI

import numpy as np
from scipy.special import ndtri

from .. import _compat
from .._arguments import check_integer
from .._errors import together
from ..domains.domain import Domain
from ..models.optimisers import SGD, Optimiser
from ..pointwise.dynamics import Descent
from ._cells import mixed, uniform
from ._points import lattice

Array = np.ndarray[Any, Any]
MOST = 512  # batches that are all taken; of more, some are drawn for each point
DRAWS = 64  # batches drawn for each point, where there are too many of them or noise is Gaussian
WIDEST = {1: 8.0, 2: 3.0}  # cells in standard deviations of Gaussian noise, up to which its density is integrated
LATTICE = 12  # random numbers per draw, up to which those of a point form a lattice


class Steps:
    """Images of points under the batches of an algorithm."""

    weights: Array  #: of the batches, shape (nb,); they sum to one
    numbers = 1  #: temporary numbers per point and batch, for the size of chunks

    def images(self, x: Array, key: Array) -> Array:
        """Images (d, nb, n) of points (d, n), whose random numbers come from ``key`` (n,)."""
        raise NotImplementedError


class Given(Steps):
    """Any algorithm: step(points (n, d), batch) -> points (n, d)."""

    def __init__(self, step: Callable[[Array, Any], Any], batches: Sequence[Any], weights: Any = None):
        self.step, self.batches = step, list(batches)
        if not self.batches:
            raise ValueError("Chain.of_step: there is no batch; at least one was expected.")
        nb = len(self.batches)
        given = np.full(nb, 1.0 / nb) if weights is None else np.asarray(weights, dtype=float)
        if given.shape != (nb,):
            raise ValueError(f"Chain.of_step: weights have shape {given.shape}; expected ({nb},), one per batch.")
        if not (given >= 0).all() or abs(given.sum() - 1.0) > 1e-9:
            raise ValueError(
                f"Chain.of_step: the weights of the batches sum to {given.sum():.12g}; non-negative weights that sum "
                "to one were expected. Divide them by their sum."
            )
        self.weights = given / given.sum()

    def images(self, x: Array, key: Array) -> Array:
        """The user's function, once for each batch."""
        points, found = np.ascontiguousarray(x.T), np.empty((len(x), len(self.batches), x.shape[1]))
        for b, batch in enumerate(self.batches):
            y = np.asarray(self.step(points.copy(), batch), dtype=float)
            if y.shape != points.shape:
                raise ValueError(f"Chain.of_step: step returned shape {y.shape} for points of shape {points.shape}.")
            found[:, b] = y.T
        return found


class Enumerated(Steps):
    """All batches of an SGD process whose only noise is the choice of samples."""

    def __init__(self, algorithm: Descent):
        self.algorithm = algorithm
        self.sample, self.weights = algorithm.all_batches(MOST if algorithm.batch_size > 1 else algorithm.batches)

    def images(self, x: Array, key: Array) -> Array:
        """The step with each batch."""
        (d, n), K = x.shape, len(self.weights)
        return self.algorithm.mean(np.tile(x, K), np.repeat(self.sample, n, axis=1)).reshape(d, K, n)


class Blurred(Enumerated):
    """All batches and Gaussian noise on top, by its transition density."""

    def covariance(self, x: Array) -> Array:
        """Of a step's noise with each batch at points (d, n), shape (nb, n, d, d)."""
        (d, n), K = x.shape, len(self.weights)
        root = self.algorithm.spread(np.tile(x, K), np.repeat(self.sample, n, axis=1))
        found = np.einsum("irn,jrn->nij", root, root)
        return np.broadcast_to(found, (K * n, d, d)).reshape(K, n, d, d)


class Drawn(Steps):
    """Batches and noise drawn for each point: a lattice of random numbers, shifted at random from point to point."""

    def __init__(self, algorithm: Descent, draws: int):
        self.algorithm, self.weights = algorithm, np.full(draws, 1.0 / draws)
        count = _Count()
        algorithm.draw(count)
        self.rows = count.rows
        self.numbers = 1 + self.rows

    def images(self, x: Array, key: Array) -> Array:
        """One image for each draw."""
        (d, n), R = x.shape, len(self.weights)
        numbers = _Lattice(key, R, self.rows)
        return self.algorithm.step(np.tile(x, R), *self.algorithm.draw(numbers)).reshape(d, R, n)


class _Count:
    """Counts the random numbers that a step draws."""

    rows = 0

    def normal(self, rows: int) -> Array:
        self.rows += rows
        return np.zeros((rows, 1))

    def samples(self, N: int, B: int, replacement: bool) -> Array:
        self.rows += B
        return np.zeros((B, 1), dtype=int)


class _Lattice:
    """Random numbers for R draws at each of n points, in the order in which a step asks for them."""

    def __init__(self, key: Array, R: int, rows: int):
        n, self.done = len(key), 0
        with np.errstate(over="ignore"):
            if 0 < rows <= LATTICE:
                shift = np.stack([uniform(mixed(key + np.uint64(i))) for i in range(rows)])
                u = (lattice(R, rows).T[:, :, None] + shift[:, None]) % 1.0
            else:
                counter = (np.arange(rows * R, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)).reshape(rows, R, 1)
                u = uniform(mixed(key ^ mixed(counter)))
        self.u = np.clip(u, 2.0**-54, 1 - 2.0**-53).reshape(rows, R * n)

    def _next(self, rows: int) -> Array:
        self.done += rows
        return self.u[self.done - rows : self.done]

    def normal(self, rows: int) -> Array:
        return ndtri(self._next(rows))

    def samples(self, N: int, B: int, replacement: bool) -> Array:
        u = self._next(B)
        if replacement or B == 1:
            return np.minimum((u * N).astype(np.int64), N - 1)
        chosen = np.empty(u.shape, dtype=np.int64)
        for i, last in enumerate(range(N - B, N)):  # Floyd's algorithm
            pick = np.minimum((u[i] * (last + 1)).astype(np.int64), last)
            chosen[i] = np.where((chosen[:i] == pick).any(axis=0), last, pick)
        return chosen


def steps_of(process: Any, domain: Domain, batches: int | None) -> Steps:
    """The steps of an algorithm; ``batches`` limits how many batches are drawn for each point."""
    if not isinstance(process, Optimiser):
        raise TypeError(
            f"Chain: process is a {type(process).__name__}; an algorithm was expected: fp.SGD, fp.MomentumSGD or, for "
            "any step of your own, fp.Chain.of_step(step, batches, domain)."
        )
    if process.timed:
        raise ValueError("Chain: a formula asks for the time t; the chain's step must be the same at all times.")
    batches = None if batches is None else check_integer("Chain: batches", batches)
    algorithm = Descent.of(process, domain.dim)
    most = MOST if algorithm.batch_size > 1 else algorithm.batches
    exact = algorithm.batches <= most and (batches is None or batches >= algorithm.batches)
    if exact and not algorithm.gaussian:
        return Enumerated(algorithm)
    normal = isinstance(process, SGD) and domain.dim in WIDEST
    if exact and normal and batches is None and not _is_narrow(steps := Blurred(algorithm), domain):
        return steps
    return Drawn(algorithm, batches or DRAWS)


def _is_narrow(steps: Blurred, domain: Domain) -> bool:
    """Whether noise is too small for the cells somewhere, so that its density cannot be integrated (collective)."""
    d = domain.dim
    x = domain.mesh.geometry.x[_compat.geometry_dofmap(domain.mesh)][:, : d + 1, :d]
    width, narrow = np.ptp(x, axis=1).max(axis=1, initial=0.0), False
    with together(domain.comm), np.errstate(all="ignore"):
        for i in range(d + 1) if len(x) else ():
            C = steps.covariance(np.ascontiguousarray(x[:, i].T))
            narrow |= not bool((width**2 < WIDEST[d] ** 2 * np.linalg.eigvalsh(np.nan_to_num(C))[..., 0]).all())
    return bool(domain.comm.allreduce(int(narrow), op=MPI.MAX))
