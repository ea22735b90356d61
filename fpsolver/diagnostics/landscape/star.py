"""Star-convexity of per-sample losses about a point x*: ⟨∇f_i(x), x − x*⟩ ≥ f_i(x) − f_i(x*).

Zhou, Yang, Zhang, Liang, Tarokh, *SGD converges to global minimum in deep learning via star-convex path* (ICLR 2019):
SGD with a small learning rate does not move away from x* in steps whose batch has it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mpi4py import MPI

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from ..._answer import Answer
from ..._arguments import check_integer, check_positive
from ..._errors import together
from ...discretisation.solution import as_points
from ...models.network import Network
from .points import sample_losses

_PAIRS = 2_000_000


@dataclass(frozen=True, eq=False)
class StarConvexity(Answer):
    """Shares of pairs (point x, sample i) with ⟨∇f_i(x), x − x*⟩ ≥ f_i(x) − f_i(x*).

    Along a path on which all pairs have it, E|x − x*|² of SGD decreases as for convex losses.

    Attributes:
        share, interval: of all pairs, at 95 %; paths are independent of each other, steps and samples on one are not.
        per_step: at each step, shape (steps,).
        per_sample: share of each sample's points, shape (N,).
        worst: largest f_i(x) − f_i(x*) − ⟨∇f_i(x), x − x*⟩ over all pairs; not positive if all have it.
        paths: how many.
    """

    share: float
    interval: tuple[float, float]
    per_step: np.ndarray
    per_sample: np.ndarray
    worst: float
    paths: int

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f"star-convex: {self.share:.2%} [{low:.2%}, {high:.2%}] of {self.paths} path(s) x {len(self.per_step)} "
            f"step(s) x {len(self.per_sample)} samples; worst defect {self.worst:.3g}"
        )


def star_convexity(process: Any, x_star: Any, points: Any, *, comm: MPI.Comm = MPI.COMM_WORLD) -> StarConvexity:
    """How far per-sample losses are star-convex about a point, along trajectories (collective).

    The process is ``SGD`` with ``PerSample`` noise, or that noise; ``x_star`` the minimum, shape (d,); ``points`` are
    trajectories, shape (paths, steps, d), or independent points, shape (n, d), the same on all ranks of ``comm``.

    Raises:
        TypeError: no per-sample losses.
        ValueError: points of another shape, not finite, or losses that are not finite there.
    """
    array, center = np.asarray(points, dtype=float), np.atleast_1d(np.asarray(x_star, dtype=float))
    if center.ndim != 1 or not np.isfinite(center).all():
        raise ValueError(f"star_convexity: x_star has shape {center.shape}; one finite point, (d,), was expected.")
    d = len(center)
    array = array if array.ndim == 3 else as_points(array, d, "star_convexity: points")[:, None]
    if array.shape[2] != d or not array.size or not np.isfinite(array).all():
        raise ValueError(
            f"star_convexity: points have shape {np.shape(points)}; finite ones, (n, {d}) or (paths, steps, {d}), were "
            "expected. Did the trajectories diverge?"
        )
    losses = sample_losses(process, d, comm)
    paths, steps, _ = array.shape
    mine = np.array_split(array, comm.size)[comm.rank]
    with together(comm):
        base = losses(center[None])[0]
        N, worst = len(base), -np.inf
        table, samples = np.zeros((len(mine), steps)), np.zeros(N)
        chunk = max(1, _PAIRS // (steps * N * (d + 1)))
        for k in range(0, len(mine), chunk):
            x = mine[k : k + chunk].reshape(-1, d)
            f, *g = losses(x)
            if not (np.isfinite(f).all() and np.isfinite(g).all() and np.isfinite(base).all()):
                raise ValueError("star_convexity: a sample's loss or its gradient is not finite at some of the points.")
            along = np.einsum("dan,nd->an", g, x - center)
            defect = f - base - along
            # rounding must not count against affine pieces, where both sides are equal
            holds = defect <= 1e-12 * (np.abs(f) + np.abs(base) + np.abs(along))
            table[k : k + chunk] = holds.mean(axis=0).reshape(-1, steps)
            samples += holds.sum(axis=1)
            worst = max(worst, float(defect.max()))
    table = np.concatenate(comm.allgather(table))
    per_sample, worst = sum(comm.allgather(samples)) / (paths * steps), max(comm.allgather(worst))
    share = _share(table.mean(axis=1))
    return StarConvexity(*share, table.mean(axis=0), per_sample, worst, paths)


def _share(clusters: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Mean of shares of independent clusters, and Wilson's interval for as many pairs as their spread stands for."""
    n, p = len(clusters), float(clusters.mean())
    variance = float(clusters.var(ddof=1)) / n if n > 1 else 0.0
    effective = max(p * (1 - p) / variance, 1.0) if variance > 0 else float(n)
    z = float(student.ppf(0.975, n - 1) if 1 < n else norm.ppf(0.975))
    middle = (p + z * z / (2 * effective)) / (1 + z * z / effective)
    reach = z / (1 + z * z / effective) * np.sqrt(p * (1 - p) / effective + (z / (2 * effective)) ** 2)
    return p, (max(0.0, float(middle - reach)), min(1.0, float(middle + reach)))


@dataclass(frozen=True, eq=False)
class StarConvexPath(Answer):
    """A path of SGD with reshuffled batches, seen from x*: e_k = ⟨∇f_B(x_k), x_k − x*⟩ − f_B(x_k) + f_B(x*).

    Attributes:
        residual: Σ e_k over the steps of each epoch, shape (epochs,); an epoch is star-convex if it is not negative.
        share: of the steps of each epoch that are star-convex, shape (epochs,).
        distance: |x − x*| before the first and after each epoch, shape (epochs + 1,).
        loss: f there, shape (epochs + 1,).
        variance: tr Σ of one sample's gradient there, shape (epochs + 1,).
        x_star: x*, shape (P,).
        own_end: whether x* is the end of this very path, about which the last steps are star-convex trivially.
    """

    residual: np.ndarray
    share: np.ndarray
    distance: np.ndarray
    loss: np.ndarray
    variance: np.ndarray
    x_star: np.ndarray
    own_end: bool

    @property
    def epochs(self) -> float:
        """Share of star-convex epochs."""
        return float((self.residual >= 0).mean())

    @property
    def steps(self) -> float:
        """Share of star-convex steps."""
        return float(self.share.mean())

    def __repr__(self) -> str:
        about = "its own end" if self.own_end else "a given x*"
        return (
            f"star-convex about {about}: {self.epochs:.0%} of {len(self.residual)} epochs, {self.steps:.1%} of the "
            f"steps; |x - x*| from {self.distance[0]:.3g} to {self.distance[-1]:.3g}, loss from {self.loss[0]:.3g} to "
            f"{self.loss[-1]:.3g}"
        )


def star_convex_path(
    network: Network,
    learning_rate: float,
    epochs: int,
    *,
    batch_size: int = 32,
    start: Any = None,
    seed: int = 0,
    x_star: Any = None,
) -> StarConvexPath:
    """Train with reshuffled batches, and say how star-convex the path is (not collective: each rank trains its own).

    In each epoch all samples are taken in a new random order; the last batch may be smaller.  ``start`` are weights
    (P,), by default those of the network; ``x_star`` others, by default the end of the path, for which it is
    taken twice instead of being stored.

    Raises:
        ValueError: a learning rate that is not positive, numbers that are no positive integers, batches larger than the
            data, weights of another network, or training that diverges.
    """
    check_positive("star_convex_path: learning_rate", learning_rate)
    check_integer("star_convex_path: epochs", epochs)
    check_integer("star_convex_path: batch_size", batch_size, 1, network.size)
    first = network.point(start, "star_convex_path: start")

    def path() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Weights before each step, its batch and gradient; at last those after all steps, without batch."""
        random, w, none = np.random.default_rng(seed), first.copy(), np.zeros(0, dtype=int)
        for _ in range(epochs):
            order = random.permutation(network.size)
            for i in range(0, network.size, batch_size):
                batch = order[i : i + batch_size]
                gradient = network.batch_gradient(w, batch)
                yield w, batch, gradient
                w = w - learning_rate * gradient
            if not np.isfinite(w).all():
                raise ValueError("star_convex_path: training diverges; lower the learning rate.")
        yield w, none, none

    if x_star is None:
        for w, _, _ in path():
            end = w
    else:
        end = network.point(x_star, "star_convex_path: x_star")
    per_epoch = -(-network.size // batch_size)
    at_end, excess, marks = network.losses(end), [], []
    for k, (w, batch, gradient) in enumerate(path()):
        if k % per_epoch == 0:
            marks.append((np.linalg.norm(w - end), network.losses(w).mean(), network.noise_trace(w)))
        if len(batch):
            excess.append(gradient @ (w - end) - network.losses(w, batch).mean() + at_end[batch].mean())
    e = np.array(excess).reshape(-1, per_epoch)
    distance, loss, variance = np.array(marks).T
    return StarConvexPath(e.sum(axis=1), (e >= 0).mean(axis=1), distance, loss, variance, end, x_star is None)
