"""A loss, its derivatives and the noise at arbitrary points, free of any mesh."""

from collections.abc import Callable
from typing import Any

from mpi4py import MPI

import numpy as np
import ufl
from dolfinx import fem

from ..._errors import together
from ...discretisation.solution import bounds
from ...domains.domain import Domain
from ...models.fields import Batched
from ...models.noise import Noise, PerSample, parts_of, samples_of
from ...models.optimisers import SGD, MomentumSGD
from ...models.process import Process
from ...models.samples import Samples
from ...pointwise.dynamics import Descent
from ...pointwise.family import gradients_of
from ...pointwise.lambdify import PointSpace
from ..sampling import at_points, axes_and_sums, quadratic_form

_FIRST = np.array([1.0, -8.0, 8.0, -1.0]) / 12  # weights at −2h, −h, h, 2h, of fourth order
_SECOND = np.array([-1.0, 16.0, 16.0, -1.0]) / 12


class Loss:
    """f, ∇f and ∇∇f at arrays of points; making one is collective, evaluating is not.

    Derivatives are ``symbolic``, or of samples of PyTorch and JAX the gradient is ``exact`` and the Hessian differences
    of it; all derivatives of ``fp.batched`` losses are differences of fourth order, with steps of length ``step``.
    """

    def __init__(self, source: Any, domain: Domain):
        name = type(source).__name__
        if isinstance(source, Process) and source.kinetic:
            raise TypeError(f"{name} lives on (x, v): give its loss, and a domain of the positions x.")
        if getattr(source, "timed", False):
            raise TypeError(f"{name} has a loss that moves: stop it with process.with_parameters(t=0.0).")
        process = source if isinstance(source, Process) else None
        source = source.loss_source() if isinstance(source, Process) else source
        if isinstance(source, PerSample):
            source = source.samples if isinstance(source.samples, Samples) else source.formulas()
        if source is None:
            raise TypeError(f"{name} has no loss; expected fp.Langevin, fp.SGD or a loss.")
        self._source = source
        self.low, self.high = bounds(domain.mesh)
        self.domain, self.dim, self.extent = domain, domain.dim, float((self.high - self.low).max())
        self.exact = not isinstance(source, Batched)
        self.symbolic = self.exact and not isinstance(source, Samples)
        self.step = 0.0 if self.symbolic else 5e-4 * self.extent
        if self.symbolic:
            with together(domain.comm):
                space = PointSpace(self.dim, process=process)
                f: Any = space.scalar(source, "loss") if process is None else process.loss_on(space)
                rows = last = [f]
                if ufl.domain.extract_unique_domain(rows[0]) is None:
                    raise ValueError(f"the loss does not depend on x: it is {rows[0]}.")
                self._tables: dict[int, Callable[[np.ndarray], np.ndarray]] = {}
                for order in range(1, 5 if self.dim == 1 else 3):
                    last = [g.dx(i) for g in last for i in range(self.dim)]
                    rows = rows + last
                    self._tables[order] = at_points(rows, space)

    def first(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """f (n,) and ∇f (n, d)."""
        if self.symbolic:
            table = self._tables[1](points)
            return table[:, 0], table[:, 1:]
        f, g = self._source.moments(points)[:2] if self.exact else self._differences(points)[:2]
        return f, g

    def second(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """f (n,), ∇f (n, d) and ∇∇f (n, d, d)."""
        d = self.dim
        if self.symbolic:
            table = self._tables[2](points)
            return table[:, 0], table[:, 1 : d + 1], table[:, d + 1 :].reshape(-1, d, d)
        if not self.exact:
            return self._differences(points)
        y = self._stencil(points, np.eye(d))
        f, g, _ = self._source.moments(y.reshape(-1, d))
        g = g.reshape(*y.shape[:2], d)
        H = np.einsum("nikj,k->nij", g[:, 1:].reshape(-1, d, 4, d), _FIRST) / self.step
        return f.reshape(y.shape[:2])[:, 0], g[:, 0], 0.5 * (H + H.transpose(0, 2, 1))

    def higher(self, point: Any) -> np.ndarray:
        """f''' and f'''' at a point, in one dimension."""
        return self._tables[4](np.reshape(point, (1, 1)))[0, 3:]

    def _stencil(self, points: np.ndarray, axes: np.ndarray) -> np.ndarray:
        """Each point and four beside it on each axis, shape (n, 1 + 4 axes, d)."""
        steps = self.step * np.array([-2.0, -1.0, 1.0, 2.0])[:, None] * axes[:, None]
        return points[:, None] + np.concatenate([np.zeros((1, self.dim)), steps.reshape(-1, self.dim)])

    def _differences(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        d, h = self.dim, self.step
        y = self._stencil(points, axes_and_sums(d))
        table = np.asarray(self._source.function(y.reshape(-1, d)), dtype=float)
        if table.shape != (y.shape[0] * y.shape[1],):
            raise ValueError(f"loss returned shape {table.shape} for {y[..., 0].size} points; expected one value each.")
        f, line = np.split(table.reshape(y.shape[:2]), [1], axis=1)
        line = line.reshape(len(y), -1, 4)
        curvature = (line @ _SECOND - 2.5 * f) / h**2
        return f[:, 0], line[:, :d] @ _FIRST / h, quadratic_form(curvature, d)


def sample_losses(source: Any, dim: int, comm: MPI.Comm) -> Callable[[np.ndarray], np.ndarray]:
    """Losses and gradients of N samples as a function: points (n, d) -> (1 + d, N, n); making it is collective."""
    noise = source.noise if isinstance(source, SGD | MomentumSGD) else source
    found = samples_of(noise) if isinstance(noise, Noise) else None
    if found is None:
        raise TypeError(
            f"{type(source).__name__} has no per-sample losses; expected fp.SGD with one fp.PerSample noise, or the "
            "fp.PerSample itself."
        )
    if isinstance(found.samples, Batched):
        raise ValueError("PerSample(fp.batched(grads)) knows gradients, not losses: give the samples as losses.")
    with together(comm):
        space = PointSpace(dim, process=source if isinstance(source, Process) else None)
        family = gradients_of(found, space, "numpy", values=True)
    return np.errstate(all="ignore")(lambda points: family.everyone(points.T))


def covariance_at(process: Any, points: np.ndarray, comm: MPI.Comm) -> np.ndarray | None:
    """Σ of an SGD process for batches of one sample at points, shape (n, d, d) (collective).

    None for other processes, and with dolfinx Functions in the noise.
    """
    noise = getattr(process, "noise", None) if isinstance(process, Process) and not process.kinetic else None
    if not isinstance(noise, Noise):
        return None
    if any(isinstance(value, fem.Function) for part in parts_of(noise) for value in vars(part).values()):
        return None
    with together(comm):
        one = getattr(process, "process", process).with_parameters(batch_size=1.0)  # without further noise
        root = Descent(one, points.shape[1] * one.copies).moments(points.T)[1]
    return np.einsum("ikn,jkn->nij", root, root)
