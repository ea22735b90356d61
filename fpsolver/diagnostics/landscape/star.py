"""Star-convexity of per-sample losses along trajectories or at points."""

from dataclasses import dataclass
from typing import Any

from mpi4py import MPI

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from ..._answer import Answer
from ..._errors import together
from ...discretisation.solution import as_points
from .points import SampleLosses

_PAIRS = 2_000_000


@dataclass(frozen=True, eq=False)
class StarConvexity(Answer):
    """Shares of pairs (point x, sample i) with ⟨∇f_i(x), x − x*⟩ ≥ f_i(x) − f_i(x*).

    Along a path on which all pairs have it, E|x − x*|² of SGD decreases as for convex losses.

    Attributes:
        share: of all pairs.
        interval: at 95 %; paths are independent of each other, steps and samples on one path are not.
        per_step: share at each step, shape (steps,).
        per_step_interval: shape (steps, 2).
        per_sample: share of each sample's points, shape (N,).
        worst: largest f_i(x) − f_i(x*) − ⟨∇f_i(x), x − x*⟩ over all pairs; not positive if all have it.
        paths, steps, samples: how many.
    """

    share: float
    interval: tuple[float, float]
    per_step: np.ndarray
    per_step_interval: np.ndarray
    per_sample: np.ndarray
    worst: float
    paths: int
    steps: int
    samples: int

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f"star-convex: {self.share:.2%} [{low:.2%}, {high:.2%}] of {self.paths} path(s) x {self.steps} step(s) x "
            f"{self.samples} samples; worst defect {self.worst:.3g}"
        )


def star_convexity(process: Any, x_star: Any, points: Any, *, comm: MPI.Comm = MPI.COMM_WORLD) -> StarConvexity:
    """How far per-sample losses are star-convex about a point, along trajectories (collective).

    Args:
        process: ``SGD`` with ``PerSample`` noise, or that noise; losses in UFL, of PyTorch or JAX.
        x_star: the minimum, shape (d,).
        points: trajectories, shape (paths, steps, d), or independent points, shape (n, d); the same on all ranks.
        comm: whose ranks.

    Returns:
        The same on all ranks, which share the work.

    Raises:
        TypeError: no per-sample losses.
        ValueError: points of another shape, not finite, or losses that are not finite there.
    """
    array = np.asarray(points, dtype=float)
    centre = np.atleast_1d(np.asarray(x_star, dtype=float))
    if centre.ndim != 1 or not np.isfinite(centre).all():
        raise ValueError(f"star_convexity: x_star has shape {centre.shape}; one finite point, (d,), was expected.")
    d = len(centre)
    array = array if array.ndim == 3 else as_points(array, d, "star_convexity: points")[:, None]
    if array.shape[2] != d or not array.size:
        raise ValueError(
            f"star_convexity: points have shape {np.shape(points)}; (n, {d}) or (paths, steps, {d}) was expected."
        )
    if not np.isfinite(array).all():
        raise ValueError("star_convexity: the points are not finite; did the trajectories diverge?")
    return survey(SampleLosses(process, d, comm), centre, array, comm)


def survey(losses: SampleLosses, centre: np.ndarray, array: np.ndarray, comm: MPI.Comm) -> StarConvexity:
    """:func:`star_convexity` of losses that are already compiled, along paths (paths, steps, d) (collective)."""
    paths, steps, d = array.shape
    mine = np.array_split(np.arange(paths), comm.size)[comm.rank]
    table, samples, worst = np.zeros((len(mine), steps)), np.zeros(losses.size), -np.inf
    with together(comm):
        base = losses.at(centre[None])[0]
        chunk = max(1, _PAIRS // (steps * losses.size * (d + 1)))
        for k in range(0, len(mine), chunk):
            x = array[mine[k : k + chunk]].reshape(-1, d)
            f, g = losses.at(x)
            if not (np.isfinite(f).all() and np.isfinite(g).all() and np.isfinite(base).all()):
                raise ValueError("star_convexity: a sample's loss or its gradient is not finite at some of the points.")
            along = np.einsum("nad,nd->na", g, x - centre)
            defect = f - base - along
            # rounding must not count against affine pieces, where both sides are equal
            holds = defect <= 1e-12 * (np.abs(f) + np.abs(base) + np.abs(along))
            table[k : k + chunk] = holds.mean(axis=1).reshape(-1, steps)
            samples += holds.sum(axis=0)
            worst = max(worst, float(defect.max()))
    table = np.concatenate(comm.allgather(table))
    samples = sum(comm.allgather(samples)) / (paths * steps)
    share, interval = _share(table.mean(axis=1))
    each = [_share(column) for column in table.T]
    return StarConvexity(
        share,
        interval,
        np.array([s for s, _ in each]),
        np.array([i for _, i in each]),
        samples,
        max(comm.allgather(worst)),
        paths,
        steps,
        losses.size,
    )


def _share(clusters: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Mean of shares of independent clusters, and Wilson's interval for as many pairs as their spread stands for."""
    n, p = len(clusters), float(clusters.mean())
    variance = float(clusters.var(ddof=1)) / n if n > 1 else 0.0
    effective = max(p * (1 - p) / variance, 1.0) if variance > 0 else float(n)
    z = float(student.ppf(0.975, n - 1) if 1 < n else norm.ppf(0.975))
    middle = (p + z * z / (2 * effective)) / (1 + z * z / effective)
    reach = z / (1 + z * z / effective) * np.sqrt(p * (1 - p) / effective + (z / (2 * effective)) ** 2)
    return p, (max(0.0, float(middle - reach)), min(1.0, float(middle + reach)))
