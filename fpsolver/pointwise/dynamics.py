"""Drift and noise of a process at many points, and the stochastic gradient of the algorithm behind it.

Everything works on states of shape (d, n).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ufl

from ..models.noise import LabelNoise, Noise, PerSample, Sum, parts_of, samples_of
from ..models.process import Process
from ..models.sgd import SGD, MomentumSGD
from .family import Backend, Family, gradients_of, gradients_of_formulas, lambdify, stack
from .lambdify import PointSpace, generate

Array = np.ndarray[Any, Any]
Coefficients = Callable[[Array], tuple[Array, Array]]
CHUNK = 1 << 16
"""Numbers per temporary array, for which caches are large enough."""


def triangular_root(columns: Array) -> Array:
    """L (d, d, n) with L Lᵀ = σ σᵀ for rectangular factors σ (d, K, n), by Gram and Schmidt on the rows of σ.

    The product σ σᵀ is never formed, so that nothing can make it indefinite, and d normal numbers do instead of K.
    """
    d, directions, entries = len(columns), list[Any](), dict[tuple[int, int], Any]()
    for i in range(d):
        row = columns[i]
        for j, q in enumerate(directions):
            entries[i, j] = (q * row).sum(axis=0)
            row = row - entries[i, j] * q
        entries[i, i] = np.sqrt((row * row).sum(axis=0))
        directions.append(row / np.where(entries[i, i] > 0, entries[i, i], 1.0))
    zero = np.zeros_like(entries[0, 0])
    return np.stack([np.stack([entries.get((i, j), zero) for j in range(d)]) for i in range(d)])


def semidefinite_root(matrix: Array) -> Array:
    """A factor R (d, d, n) with R Rᵀ = A for positive semi-definite A (d, d, n), by Cholesky with pivoting.

    Raises:
        ValueError: A is indefinite beyond rounding.
    """
    d, rest, columns = len(matrix), matrix, []
    size = sum(abs(matrix[i, i]) for i in range(d))
    for _ in range(d):
        diagonal = np.stack([rest[i, i] for i in range(d)])
        pivot = diagonal.argmax(axis=0)
        largest = diagonal.max(axis=0)
        column = np.take_along_axis(rest, pivot[None, None], axis=1)[:, 0]
        positive = largest > 1e-15 * size
        column = np.where(positive, column / np.sqrt(np.where(positive, largest, 1.0)), 0.0)
        rest = rest - column[:, None] * column[None]
        columns.append(column)
    left = np.abs(rest).max(axis=(0, 1))
    left = np.isfinite(left) & (left > 1e-7 * size)  # a path that diverges is found when it has moved
    if left.any():
        A = np.broadcast_to(matrix, (d, d, len(left)))[:, :, left.argmax()]
        raise ValueError(f"a diffusion matrix is not positive semi-definite: {A.tolist()} on a path.")
    return np.stack(columns, axis=1)


def diffusion(process: Process, dim: int, backend: Backend = "numpy", varying: Sequence[str] = ()) -> Coefficients:
    """Drift b (d, n) and a factor S (d, K, n) with S Sᵀ = 2D at points (d, n), numbers ``varying`` below them.

    The last axis of S has length one where S is constant.
    """
    space = PointSpace(dim, process.weights(dim), process, varying)
    if not isinstance(process, SGD | MomentumSGD):
        c = process.coefficients(space)
        drift = c.beta + space.div(c.D) if c.drift is None else c.drift
        b, root = lambdify([drift], space, backend), _root(2 * c.D, space, backend)
        return chunked(lambda x: (b(x), root(x).reshape(dim, dim, -1)), dim * dim)
    d, step, gradient = space.dim, process.time_per_step, Gradient(process, space, backend)
    scale = np.sqrt(step / process.batch_size)
    friction = None if isinstance(process, SGD) else (1 - process.momentum) / step

    def descent(x: Array) -> tuple[Array, Array]:
        mean, columns = gradient.moments(x)
        S = scale * (triangular_root(columns) if columns.shape[1] > d else columns)
        if friction is None:
            return -mean, S
        v = x[d : 2 * d]
        return np.concatenate((v, -friction * v - mean)), np.concatenate((np.zeros_like(S), S))

    compiled = gradient.family is not None and gradient.family.native is not None
    return chunked(descent, d * d if compiled else max(d * d, d * gradient.samples))


def _root(matrix: Any, space: PointSpace, backend: Backend) -> Callable[[Array], Array]:
    """A factor of a semi-definite UFL matrix; a constant one is factorised once."""
    d, code = matrix.ufl_shape[0], generate([matrix], space)
    if "x[" not in code.source and not code.callbacks:
        evaluate = code.compile()
        constant = semidefinite_root(stack(evaluate(np.zeros((d, 1)), code.numbers), (1,)).reshape(d, d, 1))
        return lambda x: constant
    values = lambdify([matrix], space, backend)
    return lambda x: semidefinite_root(values(x).reshape(d, d, -1))


class Gradient:
    """The stochastic gradient of an SGD process.

    A step draws indices of samples, (B, n), if there are some: of a ``family`` of losses or of ``models``; noise of the
    labels of these, (B, n); and d normal numbers per path if noise has a given covariance, with the factor ``root``.
    """

    def __init__(self, process: Any, space: PointSpace, backend: Backend = "numpy", values: bool = False):
        self.backend, self.space, self.process = backend, space, process
        noise: Noise = process.noise
        per_sample = samples_of(noise)
        labels = [p for p in parts_of(noise) if isinstance(p, LabelNoise)]
        rest = [p for p in parts_of(noise) if not isinstance(p, PerSample | LabelNoise)]
        if len(labels) > 1 or (per_sample is None and any(isinstance(p, PerSample) for p in parts_of(noise))):
            raise ValueError("paths take one PerSample and one LabelNoise at most; join their samples in one.")
        self.family = gradients_of(per_sample, space, backend, values) if per_sample else None
        self.models = gradients_of_formulas(labels[0].outputs(space), space, backend) if labels else None
        self.std = labels[0].std if labels else 0.0
        sizes = {f.size for f in (self.family, self.models) if f is not None}
        if len(sizes) > 1:
            raise ValueError(f"PerSample and LabelNoise have different numbers of samples: {sorted(sizes)}.")
        self.samples = max(sizes, default=1)
        self.replacement = per_sample is None or per_sample.replacement
        self.loss = None
        if process.loss is not None:
            f = space.scalar(process.loss, f"{type(process).__name__}: loss")
            self.loss = lambdify([space.grad(f)], space, backend)
        self.modified = self._modified(per_sample) if getattr(process, "order", 1) == 2 else None
        self.root = _root(Sum(tuple(rest)).covariance(space), space, backend) if rest else None

    def _modified(self, noise: PerSample | None) -> Callable[[Array], Array]:
        """∇(f + (η/4)|∇f|²) = ∇f + (η/2) ∇∇f ∇f."""
        space, d, half = self.space, self.space.dim, self.process.learning_rate / 2

        def both(f: Any) -> list[Any]:
            g = space.grad(f)
            return [g, ufl.as_matrix([[g[i].dx(j) for j in range(d)] for i in range(d)])]

        given = self.process.loss
        losses = [space.scalar(given, "SGD: loss")] if noise is None or given is not None else noise.losses(space)
        known = Family([both(f) for f in losses], space, self.backend).average

        def gradient(x: Array) -> Array:
            found = known(x)
            g, H = found[:d], found[d:].reshape(d, d, -1)
            return g + half * (H * g).sum(axis=1)

        return gradient

    def moments(self, x: Array) -> tuple[Array, Array]:
        """Mean (d, n), modified to second order, and a factor (d, K, n) of the covariance for batches of one sample."""
        columns, d, n, mean = [], self.space.dim, x.shape[1], np.zeros(0)
        if self.family is not None:
            mean, factor = self.family.scatter(x)
            if not self.replacement:  # what drawing without it leaves of the covariance
                factor = factor * np.sqrt((self.samples - self.process.batch_size) / (self.samples - 1))
            columns.append(factor)
        if self.models is not None:
            columns.append(self.models.scatter(x, centred=False)[1] * self.std)
        if self.root is not None:
            columns.append(np.broadcast_to(self.root(x), (d, d, n)))
        if given := self.modified or self.loss:
            mean = given(x)
        return mean, columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)

    def batch(self, x: Array, sample: Any, label: Any, normal: Any) -> Array:
        """The stochastic gradient (d, n) of a batch, without those noises for which None is given."""
        g: Any = 0.0
        if self.family is not None:
            g = self.family.batch(x, sample)
            if self.loss is not None:
                g = g - self.family.average(x)
        if self.loss is not None:
            g = g + self.loss(x)
        if self.models is not None and label is not None:
            g = g - self.std * (self.models.chosen(x, sample) * label).mean(axis=1)
        if self.root is not None and normal is not None:
            g = g + (self.root(x) * normal).sum(axis=1) / np.sqrt(self.process.batch_size)
        return np.zeros_like(x[: self.space.dim]) + g

    def spread(self, x: Array, sample: Any) -> Array:
        """A factor (d, K, n) of the covariance of :meth:`batch` given its samples."""
        d, n, columns = self.space.dim, x.shape[1], list[Array]()
        if self.models is not None:
            columns.append(-self.std / len(sample) * self.models.chosen(x, sample))
        if self.root is not None:
            columns.append(np.broadcast_to(self.root(x), (d, d, n)) / np.sqrt(self.process.batch_size))
        return np.concatenate(columns, axis=1) if columns else np.zeros((d, 0, n))


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
