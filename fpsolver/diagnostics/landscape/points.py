"""A loss, its derivatives and the noise at arbitrary points, free of any mesh."""

from functools import partial
from typing import Any

from mpi4py import MPI

import numpy as np
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh
from ufl.core.expr import Expr

from ...discretisation.solution import bounds
from ...domains.domain import Domain
from ...models.fields import Batched, Space
from ...models.noise import Noise, PerSample, Sum, samples_of
from ...models.process import Process, space_of
from ...models.samples import Samples
from ...models.sgd import SGD, MomentumSGD
from ..pointwise import Pointwise, compiled, private_simplices


def loss_of(source: Any) -> Any:
    """The scalar source f of a process, or ``source`` itself if it is a loss.

    Raises:
        TypeError: a process without a loss, or one whose coordinates are not those of its loss.
    """
    if not isinstance(source, Process):
        return source
    if source.kinetic:
        raise TypeError(f"{type(source).__name__} lives on (x, v): give its loss, and a domain of the positions x.")
    loss = source.loss_source()
    if loss is None:
        raise TypeError(f"{type(source).__name__} has no loss; expected fp.Langevin, fp.SGD or a loss.")
    return loss


class Loss:
    """f, ∇f and ∇∇f at arrays of points; making one is collective, evaluating is not.

    Attributes:
        exact: whether the gradient is: symbolic, or by automatic differentiation for samples of PyTorch and JAX, whose
            Hessian is differences of it.  All derivatives of ``fp.batched`` losses are differences of fourth order.
        symbolic: whether all derivatives are.
        step: length of the steps of the differences, 0 if there are none.
        extent: largest side of the domain's bounding box.
    """

    def __init__(self, source: Any, domain: Domain):
        source = loss_of(source)
        if isinstance(source, fem.Function):
            raise TypeError(
                "the loss is a dolfinx Function, a piecewise polynomial whose second derivatives jump: give it as a "
                "callable of x that returns UFL, or as fp.batched(f)."
            )
        low, high = bounds(domain.mesh)
        self.low, self.high, self.extent = low, high, float((high - low).max())
        self.dim, self.exact = domain.dim, not isinstance(source, Batched)
        self.symbolic = self.exact and not isinstance(source, Samples)
        self.step = 0.0 if self.symbolic else 5e-4 * self.extent
        if isinstance(source, Batched):
            self._function = source.function
            return
        if isinstance(source, Samples):
            self._samples = source
            return
        orders = (1, 2, 4) if self.dim == 1 else (1, 2)
        self._tables = {k: Pointwise(self.dim, partial(_derivatives, source, k), domain.comm) for k in orders}

    def first(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """f (n,) and ∇f (n, d)."""
        if not self.exact:
            return self._differences(points)[:2]
        if not self.symbolic:
            return self._samples.moments(points)[:2]
        table = self._tables[1](points)
        return table[:, 0], table[:, 1:]

    def second(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """f (n,), ∇f (n, d) and ∇∇f (n, d, d)."""
        if not self.exact:
            return self._differences(points)
        if not self.symbolic:
            return self._differenced_gradient(points)
        d = self.dim
        table = self._tables[2](points)
        return table[:, 0], table[:, 1 : d + 1], table[:, d + 1 :].reshape(-1, d, d)

    def higher(self, point: Any) -> tuple[float, float]:
        """f''' and f'''' at a point, in one dimension."""
        row = self._tables[4](np.array(point, dtype=float).reshape(1, 1))[0]
        return float(row[3]), float(row[4])

    def _differences(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        n, d, h = len(points), self.dim, self.step
        e = h * np.eye(d)
        steps = [np.zeros(d), *(k * e[i] for i in range(d) for k in (-2, -1, 1, 2))]
        pairs = [(i, j) for i in range(d) for j in range(i)]
        signs = ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))
        steps += [k * (a * e[i] + b * e[j]) for i, j in pairs for k in (1, 2) for a, b, _ in signs]
        table = np.asarray(self._function((points[:, None] + np.array(steps)).reshape(-1, d)), dtype=float)
        if table.shape != (n * len(steps),):
            raise ValueError(f"loss returned shape {table.shape} for {n * len(steps)} points; expected one value each.")
        table = table.reshape(n, len(steps))
        f, line = table[:, 0], table[:, 1 : 4 * d + 1].reshape(n, d, 4)
        g = line @ np.array([1.0, -8.0, 8.0, -1.0]) / (12 * h)
        H = np.zeros((n, d, d))
        H[:, range(d), range(d)] = (line @ np.array([-1.0, 16.0, 16.0, -1.0]) - 30 * f[:, None]) / (12 * h * h)
        cross = table[:, 4 * d + 1 :].reshape(n, len(pairs), 2, 4) @ np.array([s for *_, s in signs], dtype=float)
        for m, (i, j) in enumerate(pairs):
            # extrapolated from steps h and 2h
            H[:, i, j] = H[:, j, i] = (4 * cross[:, m, 0] - cross[:, m, 1] / 4) / (12 * h * h)
        return f, g, H

    def _differenced_gradient(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        n, d, h = len(points), self.dim, self.step
        shifts = [np.zeros(d), *(k * h * e for e in np.eye(d) for k in (-2, -1, 1, 2))]
        f, g, _ = self._samples.moments((points[:, None] + np.array(shifts)).reshape(-1, d))
        g = g.reshape(n, 1 + 4 * d, d)
        line = g[:, 1:].reshape(n, d, 4, d)
        H = np.einsum("nikj,k->nij", line, np.array([1.0, -8.0, 8.0, -1.0])) / (12 * h)
        return f.reshape(n, -1)[:, 0], g[:, 0], 0.5 * (H + H.transpose(0, 2, 1))


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
        self.dim, self._samples = dim, found.samples
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
