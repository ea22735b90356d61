"""One step of an algorithm as a map Φ_b of its state, b being the batch drawn: what paths and the chain share."""

from itertools import combinations, combinations_with_replacement
from math import comb, factorial, prod
from typing import Any

import numpy as np

from ..models.optimisers import Optimiser
from .dynamics import Gradient, chunked
from .family import Backend
from .lambdify import PointSpace
from .native import NotCompilable

Array = np.ndarray[Any, Any]


class Descent:
    """X' = Φ_b(X) in ``dim`` coordinates, b drawn afresh in each step, which takes one stochastic gradient.

    g_b is the mean gradient of the B samples in the batch, plus ∇f − mean gradient where the loss is given beside the
    samples, plus −std/B Σ_{i∈b} ξ_i ∇m_i for labels that are drawn anew, plus Σ^{1/2} ξ/√B for noise of which only the
    covariance is known, where ξ are standard normal.  Φ_b(x) is then a normal variable, if the step is linear:
    ``gaussian``.

    Raises:
        NotCompilable: for "c", if the samples are no formulas.
        ValueError: B is no integer.
    """

    def __init__(self, process: Optimiser, dim: int, backend: Backend = "numpy"):
        if process.batch_size != int(process.batch_size):
            raise ValueError(f"batch_size is {process.batch_size}; the algorithm needs an integer.")
        self.process, self.dim = process, dim
        self.space = PointSpace(dim, process.weights(dim), process)
        self.gradient, self.batch_size = Gradient(process, self.space, backend), int(process.batch_size)
        self.gaussian = bool(self.gradient.models or self.gradient.root)
        family = self.gradient.family
        everyone = family is not None and family.native is None and process.loss is not None
        # states (d, n) after one step with what draw() gave
        self.step = chunked(self._one, self.space.dim * (self.gradient.samples if everyone else self.batch_size))
        self.samples = self.gradient.samples

    @classmethod
    def of(cls, process: Optimiser, dim: int) -> "Descent":
        """Compiled where that is possible."""
        try:
            return cls(process, dim, "c")
        except NotCompilable:
            return cls(process, dim)

    def draw(self, numbers: Any) -> tuple[Any, ...]:
        """(samples (B, n) or None, noise of their labels (B, n) or None, normal numbers (dim of x, n) or None).

        ``numbers`` gives n of each: normal(rows) standard normal ones, samples(N, B, replacement) indices of batches.
        """
        g, B = self.gradient, self.batch_size
        sample = numbers.samples(g.samples, B, g.replacement) if g.family or g.models else None
        label = numbers.normal(B) if g.models else None
        return sample, label, numbers.normal(self.space.dim) if g.root else None

    def _one(self, x: Array, sample: Any, label: Any, normal: Any) -> Array:
        return self.process.move(x, self.gradient.batch(self.process.look(x), sample, label, normal))

    def mean(self, x: Array, sample: Any) -> Array:
        """E[Φ_b(x) | samples (B, n)], shape (d, n): the step without label noise and without given covariances."""
        return self._one(x, sample, None, None)

    def spread(self, x: Array, sample: Any) -> Array:
        """A factor (d, K, n) of the covariance of Φ_b(x) given its samples (B, n); K = 0 unless :attr:`gaussian`.

        Of steps that are affine in the gradient, as those of SGD and momentum.
        """
        columns = self.gradient.spread(x, sample)
        return self.process.move(np.zeros((self.dim, *columns.shape[1:])), columns)

    @property
    def batches(self) -> int:
        """How many different batches there are; order does not count."""
        N, B = self.samples, self.batch_size
        return 1 if N == 1 else comb(N + B - 1, B) if self.gradient.replacement else comb(N, B)

    def all_batches(self, most: int) -> tuple[Array, Array]:
        """Every batch once: indices of samples (B, K) and probabilities (K,), which sum to one.

        Raises:
            ValueError: there are more than ``most``.
        """
        if self.batches > most:
            raise ValueError(f"there are {self.batches} different batches, more than {most}.")
        N, B = self.samples, self.batch_size
        if N == 1:
            return np.zeros((B, 1), dtype=int), np.ones(1)
        if not self.gradient.replacement:
            found = np.array(list(combinations(range(N), B)))
            return found.T, np.full(len(found), 1 / len(found))
        found = np.array(list(combinations_with_replacement(range(N), B)))
        times = (np.unique(batch, return_counts=True)[1] for batch in found)
        weights = np.array([factorial(B) / prod(factorial(int(k)) for k in counts) for counts in times])
        return found.T, weights / float(N) ** B
