"""Gaussian noise in one dimension by its transition density, with Gauss points in x and in y.

Noise makes everything smooth, but draws of it would not see that: an exit time jumps where a step ends at the exit.
With the density the jump is where the integral ends, and errors fall exponentially with the degree.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.special import ndtr

from ._assemble import Piece, Recipe
from ._points import Points
from ._steps import Blurred

Array = np.ndarray[Any, Any]
REACH = 8.7
"""Standard deviations, beyond which less than rounding lies."""
CHUNK = 2_000_000
"""Densities at a time."""


@dataclass(frozen=True)
class DensityRecipe(Recipe):
    """Matrices of an algorithm whose steps have a Gaussian density."""

    steps: Blurred

    def samples(self) -> Iterator[Points]:
        """Gauss points of the cells."""
        yield self._gauss(np.arange(self.cells.begin, self.cells.end))

    def _gauss(self, chosen: Array, n: int | None = None) -> Points:
        nodes, weights = np.polynomial.legendre.leggauss(n or self._order())
        X, w = (1 + nodes) / 2, weights / 2
        begin, edge = self.cells.vertices[chosen, 0, 0], np.diff(self.cells.vertices[chosen, :, 0], axis=1)
        x, weight = begin[:, None] + edge * X, np.abs(edge) * w
        cell, reference = np.repeat(chosen, len(X)), np.tile(X, len(chosen))
        return Points(cell, x.reshape(-1, 1), reference[:, None], weight.ravel(), np.zeros(len(cell), np.uint64))

    def _order(self) -> int:
        return self.basis(np.zeros((1, 1))).shape[1] + 4

    def pieces(self) -> Iterator[Piece]:
        """The matrices of some cells at a time."""
        every = np.arange(self.cells.size)
        width = float(self.cells.volumes.max())
        nodes = self._gauss(every, 2 * self._order())  # only where they lie, for the smallest deviation
        least = float(self.steps.deviations(np.ascontiguousarray(nodes.x.T)).min())
        targets = self._gauss(every, int(np.ceil(self._order() + 4 + 4 * width / least)))
        each = len(targets.cell) * len(self.steps.weights) * self._order()
        some = max(1, CHUNK // each)
        for begin in range(self.cells.begin, self.cells.end, some):
            yield self._rows(np.arange(begin, min(begin + some, self.cells.end)), targets)

    def _rows(self, chosen: Array, targets: Points) -> Piece:
        points = self._gauss(chosen)
        x = np.ascontiguousarray(points.x.T)
        means = self.steps.images(x, points.key)[0]  # (nb, n)
        if not np.isfinite(means).all():
            bad = float(points.x[~np.isfinite(means).all(axis=0)][0, 0])
            raise ValueError(f"Chain: the step from {bad:.6g} is not finite: the gradients are not finite there.")
        kernel, outside = self._kernel(means, self.steps.deviations(x), targets)
        phi, psi = self.basis(points.reference), targets.weight[:, None] * self.basis(targets.reference)
        m, q = phi.shape[1], self._order()
        inside = kernel @ targets.weight
        kernel *= ((1.0 - outside.sum(axis=0)) / np.maximum(inside, 1e-300))[:, None]
        weighted: Array = (points.weight[:, None] * phi).reshape(len(chosen), q, m)
        mass = np.einsum("cqi,cqj->cij", weighted, phi.reshape(weighted.shape))
        if self.discount is not None:
            weighted = weighted * self.discount(points.x).reshape(len(chosen), q, 1)
        ends = (self.cells.vertices.min(), self.cells.vertices.max())
        exits = np.zeros((self.parts, len(chosen), m))
        for side, label in enumerate(self._labels()):
            if label >= 0:
                payoff = self.payoffs[label] if self.payoffs else None
                worth = 1.0 if payoff is None else float(payoff(np.array([[ends[side]]]))[0])
                share = worth * outside[side].reshape(len(chosen), q)
                exits[label] += np.einsum("cqi,cq->ci", weighted, share)
        projected = np.einsum(
            "nty,tyj->ntj", kernel.reshape(len(x[0]), self.cells.size, -1), psi.reshape(self.cells.size, -1, m)
        )
        blocks = np.einsum(
            "cqi,cqtj->ctij", weighted, projected.reshape(len(chosen), q, self.cells.size, m), optimize=True
        )
        keep = np.abs(blocks).max(axis=(2, 3)) > 0
        offsets = np.concatenate(([0], np.cumsum(keep.sum(axis=1))))
        shape = (len(chosen) * m, self.cells.size * m)
        rows = sparse.bsr_array((blocks[keep], np.nonzero(keep)[1], offsets), shape=shape, blocksize=(m, m))
        return Piece(chosen, mass, exits, rows, np.full(len(chosen), q), means.size * len(targets.cell), 0.0)

    def _labels(self) -> tuple[int, int]:
        """Labels of the left and of the right end."""
        ends = np.array([[self.cells.vertices.min()], [self.cells.vertices.max()]]).T
        return int(self.walls.label(0, ends[:, :1])[0]), int(self.walls.label(1, ends[:, 1:])[0])

    def _kernel(self, means: Array, deviations: Array, targets: Points) -> tuple[Array, Array]:
        """Transition densities (n, targets), mirrored at reflecting ends, and probabilities to leave (2, n)."""
        a, b = float(self.cells.vertices.min()), float(self.cells.vertices.max())
        left, right = (label >= 0 for label in self._labels())
        y, density = targets.x[:, 0], 0.0
        spread = means.min() - REACH * deviations.max(), means.max() + REACH * deviations.max()
        copies = [z for k in range(-3, 4) for z in (y + 2 * k * (b - a), 2 * a - y + 2 * k * (b - a))]
        outside = np.zeros((2, means.shape[1]))
        for mean, deviation, w in zip(means, deviations, self.steps.weights, strict=True):
            s = deviation[:, None]
            for z in copies:
                if (left and z.min() < a) or (right and z.max() > b) or z.max() < spread[0] or z.min() > spread[1]:
                    continue
                density = density + w * np.exp(-0.5 * ((z - mean[:, None]) / s) ** 2) / (s * np.sqrt(2 * np.pi))
            outside[0] += w * left * ndtr((a - mean) / deviation)
            outside[1] += w * right * ndtr((mean - b) / deviation)
        return np.broadcast_to(density, (means.shape[1], len(y))).copy(), outside
