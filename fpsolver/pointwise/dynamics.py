"""Drift and noise of a process at many points, and one step of an algorithm as a map Φ_b of its state, b its batch.

Everything works on states of shape (d, n).
"""

from collections.abc import Callable, Sequence
from itertools import combinations, combinations_with_replacement
from math import comb, factorial, prod
from typing import Any

import numpy as np
import ufl

from ..models.noise import LabelNoise, PerSample, Sum, parts_of, samples_of
from ..models.optimisers import SGD, MomentumSGD, Optimiser
from ..models.process import Process
from .family import Backend, family, gradients_of, gradients_of_formulas, lambdify
from .lambdify import PointSpace, generate
from .native import NotCompilable

Array = np.ndarray[Any, Any]
Coefficients = Callable[[Array], tuple[Array, Array]]
CHUNK = 1 << 16  # numbers per temporary array, for which caches are large enough


def triangular_root(columns: Array) -> Array:
    """L (d, d, n) with L Lᵀ = σ σᵀ for rectangular factors σ (d, K, n), by Gram and Schmidt on the rows of σ.

    The product σ σᵀ is never formed, so that nothing can make it indefinite, and d normal numbers do instead of K.
    """
    d, rows = len(columns), list[Any]()
    L = np.zeros((d, d, columns.shape[2]))
    for i, row in enumerate(columns):
        for j, q in enumerate(rows):
            size = np.where(L[j, j] > 0, L[j, j], 1.0)
            L[i, j] = (q * row).sum(axis=0) / size
            row = row - L[i, j] / size * q
        L[i, i] = np.sqrt((row * row).sum(axis=0))
        rows.append(row)
    return L


def semidefinite_root(matrix: Array) -> Array:
    """A factor R (d, d, n) with R Rᵀ = A for positive semi-definite A (d, d, n), by Cholesky with pivoting."""
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
    if not isinstance(process, SGD | MomentumSGD):
        space = PointSpace(dim, process.weights(dim), process, varying)
        c = process.coefficients(space)
        drift = c.beta + space.div(c.D) if c.drift is None else c.drift
        b, root = lambdify([drift], space, backend), _root(2 * c.D, space, backend)
        return chunked(lambda x: (b(x), root(x).reshape(dim, dim, -1)), dim * dim)
    algorithm, step = Descent(process, dim, backend, varying), process.time_per_step
    d, scale = algorithm.space.dim, np.sqrt(step / process.batch_size)
    friction = None if isinstance(process, SGD) else (1 - process.momentum) / step

    def descent(x: Array) -> tuple[Array, Array]:
        mean, columns = algorithm.moments(x)
        S = scale * (triangular_root(columns) if columns.shape[1] > d else columns)
        if friction is None:
            return -mean, S
        v = x[d : 2 * d]
        return np.concatenate((v, -friction * v - mean)), np.concatenate((np.zeros_like(S), S))

    return chunked(descent, max(d * d, d * algorithm.samples))


def _root(matrix: Any, space: PointSpace, backend: Backend) -> Callable[[Array], Array]:
    """A factor of a semi-definite UFL matrix; a constant one is factorised once."""
    d, code = matrix.ufl_shape[0], generate([matrix], space)
    if "x[" not in code.source and not code.callbacks:
        constant = semidefinite_root(lambdify([matrix], space)(np.zeros((d, 1))).reshape(d, d, 1))
        return lambda x: constant
    values = lambdify([matrix], space, backend)
    return lambda x: semidefinite_root(values(x).reshape(d, d, -1))


class Descent:
    """X' = Φ_b(X) in ``dim`` coordinates, b drawn afresh in each step, which takes one stochastic gradient.

    g_b is the mean gradient of the B samples in the batch, plus ∇f − mean gradient where the loss is given beside the
    samples, plus −std/B Σ_{i∈b} ξ_i ∇m_i for labels that are drawn anew, plus Σ^{1/2} ξ/√B for noise of which only the
    covariance is known, where ξ are standard normal.  Φ_b(x) is then a normal variable, if the step is linear:
    ``gaussian``.  States move by ``step``, (d, n) and what :meth:`draw` gave -> (d, n).
    """

    def __init__(self, process: Optimiser, dim: int, backend: Backend = "numpy", varying: Sequence[str] = ()):
        self.process, self.dim, self.backend = process, dim, backend
        self.space = space = PointSpace(dim, process.weights(dim), process, varying)
        parts, per_sample = parts_of(process.noise), samples_of(process.noise)
        labels = [p for p in parts if isinstance(p, LabelNoise)]
        rest = tuple(p for p in parts if not isinstance(p, PerSample | LabelNoise))
        if len(parts) > len(rest) + (per_sample is not None) + bool(labels):
            raise ValueError("paths take one PerSample and one LabelNoise at most; join their samples in one.")
        self.family = gradients_of(per_sample, space, backend) if per_sample else None
        self.models = gradients_of_formulas(labels[0].outputs(space), space, backend) if labels else None
        self.std = labels[0].std if labels else 0.0
        self.root = _root(Sum(rest).covariance(space), space, backend) if rest else None
        sizes = {f.size for f in (self.family, self.models) if f is not None}
        if len(sizes) > 1:
            raise ValueError(f"PerSample and LabelNoise have different numbers of samples: {sorted(sizes)}.")
        self.samples, self.replacement = max(sizes, default=1), per_sample is None or per_sample.replacement
        f = None if process.loss is None else space.scalar(process.loss, f"{type(process).__name__}: loss")
        self.loss = None if f is None else lambdify([space.grad(f)], space, backend)
        self.modified = self._modified(f, per_sample) if getattr(process, "order", 1) == 2 else None
        self.gaussian = bool(self.models or self.root)
        everyone = self.family is not None and f is not None
        self.step = chunked(self._one, space.dim * (self.samples if everyone else int(process.batch_size)))

    @classmethod
    def of(cls, process: Optimiser, dim: int) -> "Descent":
        """Compiled where that is possible."""
        try:
            return cls(process, dim, "c")
        except NotCompilable:
            return cls(process, dim)

    @property
    def batch_size(self) -> int:
        """B, of which a drift and a covariance need not be an integer, but a step."""
        if (B := self.process.batch_size) != int(B):
            raise ValueError(f"batch_size is {B}; the algorithm needs an integer.")
        return int(B)

    def draw(self, numbers: Any) -> tuple[Any, ...]:
        """(samples (B, n) or None, noise of their labels (B, n) or None, normal numbers (dim of x, n) or None).

        ``numbers`` gives n of each: normal(rows) standard normal ones, samples(N, B, replacement) indices of batches.
        """
        B = self.batch_size
        sample = numbers.samples(self.samples, B, self.replacement) if self.family or self.models else None
        label = numbers.normal(B) if self.models else None
        return sample, label, numbers.normal(self.space.dim) if self.root else None

    def _one(self, x: Array, sample: Any, label: Any, normal: Any) -> Array:
        return self.process.move(x, self.batch(self.process.look(x), sample, label, normal))

    def mean(self, x: Array, sample: Any) -> Array:
        """E[Φ_b(x) | samples (B, n)], shape (d, n): the step without label noise and without given covariances."""
        return self._one(x, sample, None, None)

    def _modified(self, f: Any, noise: PerSample | None) -> Callable[[Array], Array]:
        """∇(f + (η/4)|∇f|²) = ∇f + (η/2) ∇∇f ∇f."""
        space, d, half = self.space, self.space.dim, self.process.learning_rate / 2

        def both(f: Any) -> list[Any]:
            g = space.grad(f)
            return [g, ufl.as_matrix([[g[i].dx(j) for j in range(d)] for i in range(d)])]

        losses = [f] if noise is None or f is not None else noise.losses(space)
        known = family([both(f) for f in losses], space, self.backend).average

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
        """A factor (d, K, n) of the covariance of Φ_b(x) given its samples (B, n); K = 0 unless ``gaussian``.

        Of steps that are affine in the gradient, as those of SGD and momentum.
        """
        d, n, columns = self.space.dim, x.shape[1], list[Array]()
        if self.models is not None:
            columns.append(-self.std / len(sample) * self.models.chosen(x, sample))
        if self.root is not None:
            columns.append(np.broadcast_to(self.root(x), (d, d, n)) / np.sqrt(self.process.batch_size))
        factor = np.concatenate(columns, axis=1) if columns else np.zeros((d, 0, n))
        return self.process.move(np.zeros((self.dim, *factor.shape[1:])), factor)

    @property
    def batches(self) -> int:
        """How many different batches there are; order does not count."""
        N, B = self.samples, self.batch_size
        return comb(N + B - 1, B) if self.replacement else comb(N, B)

    def all_batches(self, most: int) -> tuple[Array, Array]:
        """Every batch once, at most so many: indices of samples (B, K) and probabilities (K,), which sum to one."""
        if self.batches > most:
            raise ValueError(f"there are {self.batches} different batches, more than {most}.")
        some = combinations_with_replacement if self.replacement else combinations
        found = np.array(list(some(range(self.samples), B := self.batch_size)))
        times = (np.unique(batch, return_counts=True)[1].tolist() for batch in found)
        orders = [factorial(B) // prod(map(factorial, counts)) for counts in times]
        return found.T, np.array(orders) / sum(orders)


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
