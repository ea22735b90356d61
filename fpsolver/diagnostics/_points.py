"""A loss, its derivatives and the noise at arbitrary points, free of any mesh."""

from typing import Any

from mpi4py import MPI

import basix.ufl
import numpy as np
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh
from ufl.core.expr import Expr

from .._compat import geometry_dofmap
from ..discretisation.solution import bounds
from ..domains.domain import Domain
from ..models.fields import Batched, Space
from ..models.noise import Noise, PerSample, Sum, samples_of
from ..models.process import SGD, Langevin, MomentumSGD, Process
from ..models.samples import Samples

_CHUNK = 512
_CELLS = {1: "interval", 2: "triangle", 3: "tetrahedron"}


class Probe:
    """Disjoint simplices, private to this rank, whose first corners are put where an expression is wanted.

    DOLFINx compiles expressions for fixed points of the reference cell; here the cells move instead.
    """

    def __init__(self, dim: int, n: int, size: float):
        corners = np.concatenate([np.zeros((1, dim)), np.eye(dim)])
        x = (corners[None] + 2.0 * np.arange(n)[:, None, None]).reshape(-1, dim)
        element = basix.ufl.element("Lagrange", _CELLS[dim], 1, shape=(dim,))
        cells = np.arange(len(x), dtype=np.int64).reshape(n, dim + 1)
        self.mesh = dmesh.create_mesh(MPI.COMM_SELF, cells=cells, x=x, e=ufl.Mesh(element))
        self.dim, self.corner, self._shape = dim, np.zeros((1, dim)), size * corners
        self._nodes = geometry_dofmap(self.mesh)

    def move(self, points: np.ndarray) -> np.ndarray:
        """Put one cell at each point (n, dim); returns the cells."""
        moved = points[:, None, :] + self._shape
        self.mesh.geometry.x[self._nodes[: len(points)], : self.dim] = moved
        return np.arange(len(points), dtype=np.int32)

    def compile(self, rows: list[Expr], comm: MPI.Comm) -> fem.Expression:
        """Scalars to be evaluated in the first corner (collective on ``comm``)."""
        return fem.Expression(ufl.as_vector(rows), self.corner, comm=comm)


def loss_of(source: Any) -> Any:
    """The scalar source f of a process, or ``source`` itself if it is a loss.

    Raises:
        TypeError: a process without a loss, or one whose coordinates are not those of its loss.
    """
    if isinstance(source, MomentumSGD):
        raise TypeError("MomentumSGD lives on (x, v): give its loss, and a domain of the positions x.")
    if isinstance(source, Process):
        if not isinstance(source, Langevin | SGD):
            raise TypeError(f"{type(source).__name__} has no loss; expected fp.Langevin, fp.SGD or a loss.")
        if source.loss is not None:
            return source.loss
        samples = samples_of(source.noise)  # type: ignore[union-attr]
        assert samples is not None
        if isinstance(samples.samples, Batched):
            raise ValueError("PerSample(fp.batched(grads)) knows gradients, not losses: give the process its loss=.")
        if isinstance(samples.samples, Samples):
            return samples.samples
        losses = samples.samples
        return lambda x: sum(f(x) for f in losses[1:]) / len(losses) + losses[0](x) / len(losses)
    return source


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
        self._probe = Probe(self.dim, _CHUNK, 1e-3 * self.extent)
        space = Space(self._probe.mesh, 1, self.dim)
        f = space.scalar(source, "loss")
        if ufl.domain.extract_unique_domain(f) is None:
            raise ValueError(f"the loss does not depend on x: it is {f}.")
        g = [f.dx(i) for i in range(self.dim)]
        self._first = self._probe.compile([f, *g], domain.comm)
        hessian = [gi.dx(j) for gi in g for j in range(self.dim)]
        self._second = self._probe.compile([f, *g, *hessian], domain.comm)
        if self.dim == 1:
            third = hessian[0].dx(0)
            self._higher = self._probe.compile([third, third.dx(0)], domain.comm)

    def first(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """f (n,) and ∇f (n, d)."""
        if not self.exact:
            return self._differences(points)[:2]
        if not self.symbolic:
            return self._samples.moments(points)[:2]
        table = self._table(self._first, points)
        return table[:, 0], table[:, 1:]

    def second(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """f (n,), ∇f (n, d) and ∇∇f (n, d, d)."""
        if not self.exact:
            return self._differences(points)
        if not self.symbolic:
            return self._differenced_gradient(points)
        d = self.dim
        table = self._table(self._second, points)
        return table[:, 0], table[:, 1 : d + 1], table[:, d + 1 :].reshape(-1, d, d)

    def higher(self, point: Any) -> tuple[float, float]:
        """f''' and f'''' at a point, in one dimension."""
        row = self._table(self._higher, np.array(point, dtype=float).reshape(1, 1))[0]
        return float(row[0]), float(row[1])

    def _table(self, expression: fem.Expression, points: np.ndarray) -> np.ndarray:
        pieces = []
        for k in range(0, max(len(points), 1), _CHUNK):
            chunk = points[k : k + _CHUNK]
            cells = self._probe.move(chunk)
            pieces.append(expression.eval(self._probe.mesh, cells).reshape(len(chunk), expression.value_size))
        return np.concatenate(pieces)

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
        self._probe = Probe(dim, _CHUNK, 1e-3)
        losses = found.losses(Space(self._probe.mesh, 1, dim))
        self.size = len(losses)
        self._rows = self._probe.compile([r for f in losses for r in (f, *(f.dx(i) for i in range(dim)))], comm)

    def at(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Losses (n, N) and gradients (n, N, d) at points (n, d)."""
        if isinstance(self._samples, Samples):
            return self._samples.losses_and_gradients(points)
        pieces = [np.zeros((0, self.size, self.dim + 1))]
        for k in range(0, len(points), _CHUNK):
            chunk = points[k : k + _CHUNK]
            cells = self._probe.move(chunk)
            pieces.append(self._rows.eval(self._probe.mesh, cells).reshape(len(chunk), self.size, self.dim + 1))
        table = np.concatenate(pieces)
        return table[..., 0], table[..., 1:]


def covariance_at(process: Any, points: np.ndarray, comm: MPI.Comm) -> np.ndarray | None:
    """Σ of an SGD process at points, shape (n, d, d); None for other processes and for tabulated Functions.

    Collective; the points must be the same on all ranks.
    """
    if not isinstance(process, SGD) or not len(points) or _has_function(process.noise):
        return None
    d = points.shape[1]
    total, symbolic = np.zeros((len(points), d, d)), []
    for part in getattr(process.noise, "parts", (process.noise,)):
        if isinstance(part, PerSample) and isinstance(part.samples, Samples):
            total += part.samples.moments(points)[2]
        else:
            symbolic.append(part)
    if not symbolic:
        return total
    probe = Probe(d, len(points), 1e-6 * (1 + float(np.abs(points).max())))
    cells = probe.move(points)  # before the noise is made: batched sources are tabulated in the corners
    Sigma = Sum(tuple(symbolic)).covariance(Space(probe.mesh, 1, d))
    expression = probe.compile([Sigma[i, j] for i in range(d) for j in range(d)], comm)
    return total + expression.eval(probe.mesh, cells).reshape(-1, d, d)


def _has_function(noise: Any) -> bool:
    parts = getattr(noise, "parts", (noise,))
    return any(isinstance(getattr(p, name, None), fem.Function) for p in parts for name in ("s", "S"))
