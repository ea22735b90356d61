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

from ..pointwise.walls import REFLECTING
from ._assemble import Piece, Recipe
from ._points import Points
from ._steps import Blurred

Array = np.ndarray[Any, Any]
REACH = 8.7  # standard deviations, beyond which less than rounding lies
CHUNK = 2_000_000  # densities at a time


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
        kernel, outside = self._kernel(means, self.steps.deviations(x), targets), self._outside(points)
        phi, psi = self.basis(points.reference), targets.weight[:, None] * self.basis(targets.reference)
        m, q = phi.shape[1], self._order()
        inside = kernel @ targets.weight
        kernel *= ((1.0 - outside.sum(axis=0)) / np.maximum(inside, 1e-300))[:, None]
        weighted: Array = (points.weight[:, None] * phi).reshape(len(chosen), q, m)
        mass = np.einsum("cqi,cqj->cij", weighted, phi.reshape(weighted.shape))
        if self.discount is not None:
            weighted = weighted * self.discount(points.x).reshape(len(chosen), q, 1)
        exits = np.zeros((self.parts + len(self.regions), len(chosen), m))

        def leave(label: int, share: Array) -> None:
            exits[label] += np.einsum("cqi,cq->ci", weighted, share.reshape(len(chosen), q))

        payoffs = [f or (lambda x: np.ones(len(x))) for f in self.payoffs or [None] * len(exits)]
        for end, share, label in zip(self.ends, outside, self._labels(), strict=True):
            if label >= 0:
                leave(label, payoffs[label](np.array([[end]])) * share)
        for label, region in enumerate(self.regions, self.parts):
            there = np.flatnonzero(region(targets.x))
            leave(label, kernel[:, there] @ (targets.weight[there] * payoffs[label](targets.x[there])))
            kernel[:, there] = 0.0
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
        """Labels of the left and of the right end; that of a wall that reflects where the two are one."""
        if self.walls.periods is not None:
            return REFLECTING, REFLECTING
        left, right = (int(self.walls.label(side, np.array([[end]]))[0]) for side, end in enumerate(self.ends))
        return left, right

    @property
    def ends(self) -> tuple[float, float]:
        """Of the interval."""
        return float(self.cells.vertices.min()), float(self.cells.vertices.max())

    def _outside(self, points: Points) -> Array:
        """Probabilities to leave through each end in the next step, shape (2, n)."""
        x, (a, b) = np.ascontiguousarray(points.x.T), self.ends
        means, deviations, w = self.steps.images(x, points.key)[0], self.steps.deviations(x), self.steps.weights
        tails = np.stack([w @ ndtr((a - means) / deviations), w @ ndtr((means - b) / deviations)])
        return tails * (np.array(self._labels()) >= 0)[:, None]

    def crossings(self, part: int, visits: Array) -> tuple[Array, Array]:
        """As of any recipe: at the ends."""
        points = self._gauss(np.arange(self.cells.begin, self.cells.end))
        sides = [side for side, label in enumerate(self._labels()) if label == part]
        share = self._outside(points)[sides] @ self.visits(points, visits)
        return np.array([self.ends[side] for side in sides]).reshape(-1, 1), share

    def _kernel(self, means: Array, deviations: Array, targets: Points) -> Array:
        """Transition densities (n, targets), mirrored at reflecting ends, with all turns where the two ends are one."""
        a, b = self.ends
        left, right = (label >= 0 for label in self._labels())
        y, density = targets.x[:, 0], np.zeros((means.shape[1], len(targets.x)))
        spread = means.min() - REACH * deviations.max(), means.max() + REACH * deviations.max()
        copies = [z for k in range(-3, 4) for z in (y + 2 * k * (b - a), 2 * a - y + 2 * k * (b - a))]
        if self.walls.periods is not None:
            turns = np.floor((np.array(spread) - a) / (b - a))
            copies = [y + k * (b - a) for k in np.arange(turns[0], turns[1] + 1)]
        for mean, deviation, w in zip(means, deviations, self.steps.weights, strict=True):
            s = deviation[:, None]
            for z in copies:
                if (left and z.min() < a) or (right and z.max() > b) or z.max() < spread[0] or z.min() > spread[1]:
                    continue
                density += w * np.exp(-0.5 * ((z - mean[:, None]) / s) ** 2) / (s * np.sqrt(2 * np.pi))
        return density
