"""How paths move: drift and noise of a process at many points, and the steps of the algorithm behind it.

Everything works on states of shape (d, n), in numpy or, compiled, in JAX.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ufl

from ..models.fields import Batched
from ..models.noise import LabelNoise, Noise, PerSample, parts_of, samples_of
from ..models.process import SDE, SGD, MomentumSGD, Process
from ..models.samples import Samples
from ._lambdify import Family, PointSpace, generate, lambdify, stack

Array = np.ndarray[Any, Any]
CHUNK = 1 << 16
"""Numbers per temporary array, for which caches are large enough."""


def triangular_root(columns: Any, xp: Any = np) -> Any:
    """L (d, d, n) with L Lᵀ = σ σᵀ for rectangular factors σ (d, K, n), by Gram and Schmidt on the rows of σ.

    The product σ σᵀ is never formed, so that nothing can make it indefinite, and d normal numbers do instead of K.
    """
    d, directions, entries = len(columns), list[Any](), dict[tuple[int, int], Any]()
    for i in range(d):
        row = columns[i]
        for j, q in enumerate(directions):
            entries[i, j] = (q * row).sum(axis=0)
            row = row - entries[i, j] * q
        entries[i, i] = xp.sqrt((row * row).sum(axis=0))
        directions.append(row / xp.where(entries[i, i] > 0, entries[i, i], 1.0))
    zero = xp.zeros_like(entries[0, 0])
    return xp.stack([xp.stack([entries.get((i, j), zero) for j in range(d)]) for i in range(d)])


def semidefinite_root(matrix: Any, xp: Any = np) -> Any:
    """A factor R (d, d, n) with R Rᵀ = A for positive semi-definite A (d, d, n), by Cholesky with pivoting.

    Raises:
        ValueError: A is indefinite beyond rounding (numpy only).
    """
    d, rest, columns = len(matrix), matrix, []
    size = sum(abs(matrix[i, i]) for i in range(d))
    for _ in range(d):
        diagonal = xp.stack([rest[i, i] for i in range(d)])
        pivot = diagonal.argmax(axis=0)
        largest = diagonal.max(axis=0)
        column = xp.take_along_axis(rest, pivot[None, None], axis=1)[:, 0]
        positive = largest > 1e-15 * size
        column = xp.where(positive, column / xp.sqrt(xp.where(positive, largest, 1.0)), 0.0)
        rest = rest - column[:, None] * column[None]
        columns.append(column)
    if xp is np:
        left = np.abs(rest).max(axis=(0, 1)) > 1e-7 * size
        if left.any():
            A = np.broadcast_to(matrix, (d, d, len(left)))[:, :, left.argmax()]
            raise ValueError(f"a diffusion matrix is not positive semi-definite: {A.tolist()} on a path.")
    return xp.stack(columns, axis=1)


class _Tabulated:
    """Per-sample gradients of ``fp.batched(grads)``, as :class:`~fpsolver.montecarlo._lambdify.Family` gives them."""

    def __init__(self, source: Batched, dim: int):
        self.function, self.dim = source.function, dim
        self.size = self.everyone(np.zeros((dim, 1))).shape[1]

    def everyone(self, x: Array) -> Array:
        points = np.ascontiguousarray(x[: self.dim].T)
        g = np.asarray(self.function(points), dtype=float)
        if g.ndim != 3 or g.shape[0] != len(points) or g.shape[2] != self.dim:
            raise ValueError(f"PerSample(fp.batched(grads)): grads returned shape {g.shape} for {points.shape} points.")
        return g.transpose(2, 1, 0)

    def chosen(self, x: Array, sample: Array) -> Array:
        return np.take_along_axis(self.everyone(x), sample[None], axis=1)


class _Differentiated:
    """Losses, if ``values``, and gradients of PyTorch's and JAX's samples, as ``Family`` gives them."""

    def __init__(self, samples: Samples, dim: int, values: bool, xp: Any):
        if xp is not np:
            raise ValueError("samples of from_torch and from_jax need backend='numpy', being compiled already.")
        self.samples, self.size, self.dim, self.values = samples, samples.size, dim, values

    def everyone(self, x: Array) -> Array:
        return self._arranged(*self.samples.losses_and_gradients(x[: self.dim].T))

    def chosen(self, x: Array, sample: Array) -> Array:
        return self._arranged(*self.samples.losses_and_gradients(x[: self.dim].T, np.ascontiguousarray(sample.T)))

    def _arranged(self, f: Array, g: Array) -> Array:
        gradients = g.transpose(2, 1, 0)
        return np.concatenate((f.T[None], gradients)) if self.values else gradients


class Diffusion:
    """Drift b and a factor S with S Sᵀ = 2D of any process.

    Args:
        process: which one.
        dim: number of its coordinates.
        xp: numpy or jax.numpy.
    """

    def __init__(self, process: Process, dim: int, xp: Any = np):
        self.xp, self.dim = xp, dim
        self.temporaries = dim * dim
        if isinstance(process, SGD | MomentumSGD):
            self._coefficients = self._gradient_descent(process)
        else:
            self._coefficients = self._general(process)

    def __call__(self, x: Any) -> tuple[Any, Any]:
        """(b (d, n), S (d, K, n)); the last axis of S has length one where S is constant."""
        return self._coefficients(x)

    def _general(self, process: Process) -> Callable[[Any], tuple[Any, Any]]:
        space, d, xp = PointSpace(self.dim), self.dim, self.xp
        ito = isinstance(process, SDE) and process.convention == "ito"
        c = (replace(process, convention="divergence") if ito else process).coefficients(space)  # type: ignore[type-var]
        b = lambdify([c.beta if ito else c.beta + ufl.div(c.D)], space, xp)
        root = _root(2 * c.D, space, xp)
        return lambda x: (b(x), root(x).reshape(d, d, -1))

    def _gradient_descent(self, process: Any) -> Callable[[Any], tuple[Any, Any]]:
        kinetic, eta, xp = isinstance(process, MomentumSGD), process.learning_rate, self.xp
        space = PointSpace(self.dim, self.dim // 2 if kinetic else self.dim)
        d = space.dim
        gradient = Gradient(process, space, xp)
        self.temporaries = max(d * d, d * gradient.samples)
        scale = np.sqrt((np.sqrt(eta) if kinetic else eta) / process.batch_size)
        second = getattr(process, "order", 1) == 2

        def coefficients(x: Any) -> tuple[Any, Any]:
            mean, columns = gradient.moments(x, second)
            S = scale * (triangular_root(columns, xp) if columns.shape[1] > d else columns)
            if not kinetic:
                return -mean, S
            gamma = (1 - process.momentum) / np.sqrt(eta)
            v = x[d:]
            return xp.concatenate((v, -gamma * v - mean)), xp.concatenate((xp.zeros_like(S), S))

        return coefficients


def _root(matrix: Any, space: PointSpace, xp: Any) -> Callable[[Any], Any]:
    """A factor of a semi-definite UFL matrix; a constant one is factorised once."""
    d, code = space.dim, generate([matrix], space)
    evaluate = code.compile(xp)
    if "x[" not in code.source and not code.callbacks:
        constant = semidefinite_root(stack(code.compile(np)(np.zeros((d, 1)), code.numbers), (1,)).reshape(d, d, 1))
        return lambda x: xp.asarray(constant)
    return lambda x: semidefinite_root(stack(evaluate(x, code.numbers), x.shape[1:], xp).reshape(d, d, -1), xp)


class Gradient:
    """The stochastic gradient of an SGD process.

    Attributes:
        samples: N, or 1 without per-sample losses.
        uses_samples, uses_labels, uses_normals: which random numbers a step needs: indices of samples and noise of
            their labels, (B, n) each, and d normal numbers per path for noise of given covariance.
    """

    def __init__(self, process: Any, space: PointSpace, xp: Any = np, values: bool = False):
        self.xp, self.space, self.process = xp, space, process
        noise: Noise = process.noise
        per_sample = samples_of(noise)
        labels = [p for p in parts_of(noise) if isinstance(p, LabelNoise)]
        rest = [p for p in parts_of(noise) if not isinstance(p, PerSample | LabelNoise)]
        if len(labels) > 1 or len([p for p in parts_of(noise) if isinstance(p, PerSample)]) > 1:
            raise ValueError("paths take one PerSample and one LabelNoise at most; join their samples in one.")
        self.family = self._family(per_sample, values)
        self.models = _gradients(labels[0].outputs(space), space, xp) if labels else None
        self.std = labels[0].std if labels else 0.0
        sizes = {f.size for f in (self.family, self.models) if f is not None}
        if len(sizes) > 1:
            raise ValueError(f"PerSample and LabelNoise have different numbers of samples: {sorted(sizes)}.")
        self.samples = max(sizes, default=1)
        self.replacement = per_sample is None or per_sample.replacement
        self.loss = None
        if process.loss is not None:
            f = space.scalar(process.loss, f"{type(process).__name__}: loss")
            self.loss = lambdify([space.grad(f)], space, xp)
        self.modified = self._modified(per_sample) if getattr(process, "order", 1) == 2 else None
        self.root = None
        if rest:
            covariance = sum((p.covariance(space) for p in rest[1:]), rest[0].covariance(space))
            self.root = _root(covariance, space, xp)
        self.uses_samples = self.family is not None or self.models is not None
        self.uses_labels, self.uses_normals = self.models is not None, self.root is not None

    def _family(self, noise: PerSample | None, values: bool) -> Any:
        if noise is None:
            return None
        if isinstance(noise.samples, Batched):
            return _Tabulated(noise.samples, self.space.dim)
        if isinstance(noise.samples, Samples):
            return _Differentiated(noise.samples, self.space.dim, values, self.xp)
        return _gradients(noise.losses(self.space), self.space, self.xp, values)

    def _modified(self, noise: PerSample | None) -> Callable[[Any], Any]:
        """∇(f + (η/4)|∇f|²) = ∇f + (η/2) ∇∇f ∇f."""
        space, xp, d, half = self.space, self.xp, self.space.dim, self.process.learning_rate / 2

        def both(f: Any) -> list[Any]:
            g = space.grad(f)
            return [g, ufl.as_matrix([[g[i].dx(j) for j in range(d)] for i in range(d)])]

        if self.process.loss is not None:
            known = lambdify(both(space.scalar(self.process.loss, "SGD: loss")), space, xp)
        else:
            assert noise is not None
            family = Family([both(f) for f in noise.losses(space)], space, xp)

            def known(x: Any) -> Any:
                return family.everyone(x).mean(axis=1)

        def gradient(x: Any) -> Any:
            found = known(x)
            g, H = found[:d], found[d:].reshape(d, d, -1)
            return g + half * (H * g).sum(axis=1)

        return gradient

    def moments(self, x: Any, second_order: bool = False) -> tuple[Any, Any]:
        """Mean (d, n) and a factor (d, K, n) of the covariance for batches of one sample."""
        xp, columns = self.xp, []
        d, n = self.space.dim, x.shape[1]
        mean = self.loss(x) if self.loss is not None else None
        if self.family is not None:
            g = self.family.everyone(x)[-d:]
            average = g.mean(axis=1)
            mean = average if mean is None else mean
            columns.append((g - average[:, None]) * np.sqrt(self.share() / self.samples))
        if self.models is not None:
            columns.append(self.models.everyone(x) * (self.std / np.sqrt(self.samples)))
        if self.root is not None:
            columns.append(xp.broadcast_to(self.root(x), (d, d, n)))
        if second_order:
            assert self.modified is not None
            mean = self.modified(x)
        return mean, columns[0] if len(columns) == 1 else xp.concatenate(columns, axis=1)

    def share(self) -> float:
        """What drawing without replacement leaves of the covariance: (N − B)/(N − 1)."""
        N, B = self.samples, self.process.batch_size
        return 1.0 if self.replacement else (N - B) / (N - 1)

    def batch(self, x: Any, sample: Any, label: Any, normal: Any) -> Any:
        """The stochastic gradient (d, n) of a batch."""
        g, d = 0.0, self.space.dim
        if self.family is not None:
            g = self.family.chosen(x, sample)[-d:].mean(axis=1)
            if self.loss is not None:
                g = g - self.family.everyone(x)[-d:].mean(axis=1)
        if self.loss is not None:
            g = g + self.loss(x)
        if self.models is not None:
            g = g - self.std * (self.models.chosen(x, sample) * label).mean(axis=1)
        if self.root is not None:
            g = g + (self.root(x) * normal).sum(axis=1) / np.sqrt(self.process.batch_size)
        return g

    def step(self, x: Any, sample: Any, label: Any, normal: Any) -> Any:
        """State (d, n) after one step of the algorithm; (x, v/√η) for momentum."""
        g, eta, d = self.batch(x, sample, label, normal), self.process.learning_rate, self.space.dim
        if not isinstance(self.process, MomentumSGD):
            return x - eta * g
        v = self.process.momentum * x[d:] - np.sqrt(eta) * g
        return self.xp.concatenate((x[:d] + np.sqrt(eta) * v, v))

    def batch_values(self, x: Any, sample: Any) -> tuple[Any, Any]:
        """Losses (n,) and gradients (d, n) of a batch; only of a gradient made with ``values``."""
        found = self.family.chosen(x, sample).mean(axis=1)
        return found[0], found[1:]


def _gradients(functions: Sequence[Any], space: PointSpace, xp: Any, values: bool = False) -> Family:
    return Family([[f, space.grad(f)] if values else [space.grad(f)] for f in functions], space, xp)


def _padded(a: Array, size: int) -> Array:
    return np.concatenate((a, np.repeat(a[..., -1:], size - a.shape[-1], axis=-1)), axis=-1)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A JAX function of arrays (..., n) compiled for n rounded up to powers of two, to and from numpy arrays."""
    import jax

    fast = jax.jit(function)

    def call(*arrays: Any) -> Any:
        n = arrays[0].shape[-1]
        room = max(64, 1 << (n - 1).bit_length())
        found = fast(*(a if a is None else _padded(a, room) for a in arrays))
        results = [np.asarray(a) for a in (found if isinstance(found, tuple) else (found,))]
        results = [a[..., :n] if a.shape[-1] == room else a for a in results]
        return tuple(results) if isinstance(found, tuple) else results[0]

    return call


def chunked(function: Callable[..., Any], per_path: int) -> Callable[..., Any]:
    """A numpy function of arrays (..., n) that is applied to so few paths at a time that temporaries stay in cache."""
    size = max(256, CHUNK // max(per_path, 1))

    def call(*arrays: Any) -> Any:
        n = arrays[0].shape[-1]
        if n <= 2 * size:
            return function(*arrays)
        parts = [function(*(a if a is None else a[..., i : i + size] for a in arrays)) for i in range(0, n, size)]
        if not isinstance(parts[0], tuple):
            return np.concatenate(parts, axis=-1)
        columns = zip(*parts, strict=True)
        # what is constant has a last axis of length one
        return tuple(p[0] if p[0].shape[-1] == 1 else np.concatenate(p, axis=-1) for p in columns)

    return call
