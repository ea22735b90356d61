"""A loss, its derivatives and the noise at arbitrary points, free of any mesh."""

from functools import partial
from typing import Any

from mpi4py import MPI

import numpy as np
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh
from ufl.core.expr import Expr

from ..._sample import compiled
from ...discretisation.solution import bounds
from ...domains.domain import Domain
from ...models.fields import Batched, Space
from ...models.noise import Noise, PerSample, Sum, samples_of
from ...models.process import Process, space_of
from ...models.samples import Samples
from ...models.sgd import SGD, MomentumSGD
from ..sampling import Pointwise, axes_and_sums, private_simplices, quadratic_form

_FIRST = np.array([1.0, -8.0, 8.0, -1.0]) / 12  # weights at −2h, −h, h, 2h, of fourth order
_SECOND = np.array([-1.0, 16.0, 16.0, -1.0]) / 12


class Loss:
    """f, ∇f and ∇∇f at arrays of points; making one is collective, evaluating is not.

    Attributes:
        exact: whether the gradient is: symbolic, or by automatic differentiation for samples of PyTorch and JAX, whose
            Hessian is differences of it.  All derivatives of ``fp.batched`` losses are differences of fourth order.
        symbolic: whether all derivatives are.
        step: length of the steps of the differences, 0 if there are none.
        domain, dim: where it is looked at.
        low, high, extent: corners of its bounding box, and the largest side.
    """

    def __init__(self, source: Any, domain: Domain):
        name = type(source).__name__
        if isinstance(source, Process) and source.kinetic:
            raise TypeError(f"{name} lives on (x, v): give its loss, and a domain of the positions x.")
        if getattr(source, "timed", False):
            raise TypeError(f"{name} has a loss that moves: stop it with process.with_parameters(t=0.0).")
        source = source.loss_source() if isinstance(source, Process) else source
        if source is None:
            raise TypeError(f"{name} has no loss; expected fp.Langevin, fp.SGD or a loss.")
        if isinstance(source, fem.Function):
            raise TypeError(
                "the loss is a dolfinx Function, a piecewise polynomial whose second derivatives jump: give it as a "
                "callable of x that returns UFL, or as fp.batched(f)."
            )
        self._source = source
        self.low, self.high = bounds(domain.mesh)
        self.domain, self.dim, self.extent = domain, domain.dim, float((self.high - self.low).max())
        self.exact = not isinstance(source, Batched)
        self.symbolic = self.exact and not isinstance(source, Samples)
        self.step = 0.0 if self.symbolic else 5e-4 * self.extent
        if self.symbolic:
            orders = (1, 2, 4) if self.dim == 1 else (1, 2)
            self._tables = {k: Pointwise(self.dim, partial(_derivatives, source, k), domain.comm) for k in orders}

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

    def higher(self, point: Any) -> tuple[float, float]:
        """f''' and f'''' at a point, in one dimension."""
        row = self._tables[4](np.array(point, dtype=float).reshape(1, 1))[0]
        return float(row[3]), float(row[4])

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


def _derivatives(source: Any, order: int, mesh: dmesh.Mesh) -> Expr:
    """f and its derivatives up to an order, those of one order behind those of the order below."""
    dim = mesh.geometry.dim
    f = Space(mesh, 1, dim).scalar(source, "loss")
    if ufl.domain.extract_unique_domain(f) is None:
        raise ValueError(f"the loss does not depend on x: it is {f}.")
    rows = last = [f]
    for _ in range(order):
        last = [g.dx(i) for g in last for i in range(dim)]
        rows = rows + last
    return ufl.as_vector(rows)


class SampleLosses:
    """Per-sample losses and gradients at arrays of points; making one is collective, evaluating is not."""

    def __init__(self, source: Any, dim: int, comm: MPI.Comm):
        noise = source.noise if isinstance(source, SGD | MomentumSGD) else source
        found = samples_of(noise) if isinstance(noise, Noise) else None
        if found is None:
            raise TypeError(
                f"{type(source).__name__} has no per-sample losses; expected fp.SGD with one fp.PerSample noise, or "
                "the fp.PerSample itself."
            )
        if isinstance(found.samples, Batched):
            raise ValueError("PerSample(fp.batched(grads)) knows gradients, not losses: give the samples as losses.")
        self.dim, self.comm, self._samples = dim, comm, found.samples
        if isinstance(found.samples, Samples):
            self.size = found.samples.size
            return
        self.size = len(found.samples)

        def where(mesh: dmesh.Mesh) -> Space:
            return space_of(source, mesh, 1, dim) if isinstance(source, Process) else Space(mesh, 1, dim)

        def rows(mesh: dmesh.Mesh) -> Expr:
            return ufl.as_tensor([[f, *(f.dx(i) for i in range(dim))] for f in found.losses(where(mesh))])

        self._table = Pointwise(dim, rows, comm)

    def at(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Losses (n, N) and gradients (n, N, d) at points (n, d)."""
        if isinstance(self._samples, Samples):
            return self._samples.losses_and_gradients(points)
        table = self._table(points)
        return table[..., 0], table[..., 1:]


def covariance_at(process: Any, points: np.ndarray, comm: MPI.Comm) -> np.ndarray | None:
    """Σ of an SGD process at points, shape (n, d, d); None for other processes and for tabulated Functions.

    Collective; the points must be the same on all ranks.
    """
    noise = process.gradient_noise() if isinstance(process, Process) and not process.kinetic else None
    if noise is None or not len(points) or _has_function(noise):
        return None
    d = points.shape[1]
    total, symbolic = np.zeros((len(points), d, d)), []
    for part in getattr(noise, "parts", (noise,)):
        if isinstance(part, PerSample) and isinstance(part.samples, Samples):
            total += part.samples.moments(points)[2]
        else:
            symbolic.append(part)
    if not symbolic:
        return total
    # small cells at the points, in whose corners batched sources are tabulated
    small = 1e-6 * (1 + float(np.abs(points).max())) * np.concatenate([np.zeros((1, d)), np.eye(d)])
    mesh = private_simplices(d, points[:, None] + small)
    Sigma = Sum(tuple(symbolic)).covariance(space_of(process, mesh, 1, d))
    return total + compiled(mesh, Sigma, np.zeros((1, d)), comm)(np.arange(len(points), dtype=np.int32))[:, 0]


def _has_function(noise: Any) -> bool:
    parts = getattr(noise, "parts", (noise,))
    return any(isinstance(getattr(p, name, None), fem.Function) for p in parts for name in ("s", "S"))
