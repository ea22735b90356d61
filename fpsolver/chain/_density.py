"""Gaussian noise by its transition density, with Gauss points in x and in y, in intervals and rectangles.

Noise makes everything smooth, but draws of it would not see that: an exit time jumps where a step ends at the exit.
With the density the jump is where the integral ends, and errors fall exponentially with the degree.  Walls that reflect
are mirrors, and sides that are one lead on into the next period: the density is a sum over copies of the box.
"""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import product
from typing import Any, NamedTuple

import basix
import numpy as np
from scipy import sparse
from scipy.special import ndtr

from ..pointwise.native import library
from ..pointwise.walls import REFLECTING, Walls
from ._assemble import Piece, Recipe
from ._points import Points
from ._steps import Blurred

Array = np.ndarray[Any, Any]
REACH = 8.7  # standard deviations, beyond which less than rounding lies
CHUNK = 2_000_000  # densities at a time
SIMPLICES = basix.CellType.interval, basix.CellType.triangle


def sides_of(walls: Walls) -> Array | None:
    """Labels of the lower and upper sides of a box, shape (d, 2); None where densities do not know where paths leave.

    They do if all that leave do so alike, or along one coordinate.
    """
    labels = getattr(walls, "labels", None)
    if labels is None or None in labels:
        return None
    found = np.full((len(walls.extent), 2), REFLECTING)  # type: ignore[arg-type]
    found[walls.bounded] = np.reshape(labels, (-1, 2))  # type: ignore[attr-defined]
    absorb = found[found != REFLECTING]
    alone = (found != REFLECTING).any(axis=1).sum() <= 1
    return found if alone or (absorb == absorb[:1]).all() else None


class Normal(NamedTuple):
    """The law of the next step from some points, a normal one for each batch."""

    means: Array  #: shape (d, nb, n)
    covariance: Array  #: shape (nb, n, d, d)
    low: Array  #: corners of a box within which these steps end, shape (d,)
    high: Array


@dataclass(frozen=True)
class DensityRecipe(Recipe):
    """Matrices of an algorithm whose steps have a Gaussian density."""

    steps: Blurred

    @property
    def _degree(self) -> int:
        """Of the quadrature in the cells from which steps go."""
        m = self.basis(np.zeros((1, self.cells.dim))).shape[1]  # k + 1, or (k + 1)(k + 2)/2
        return 2 * (m - 1) + 9 if self.cells.dim == 1 else 2 * round((np.sqrt(8 * m + 1) - 3) / 2) + 5

    @property
    def _sides(self) -> Array:
        found = sides_of(self.walls)
        assert found is not None
        return found

    def samples(self) -> Iterator[Points]:
        """Gauss points of the cells."""
        yield self._gauss(np.arange(self.cells.begin, self.cells.end), self._degree)

    def _gauss(self, chosen: Array, degree: int) -> Points:
        d, corners = self.cells.dim, self.cells.vertices[chosen]
        X, w = basix.make_quadrature(SIMPLICES[d - 1], degree)
        x = corners[:, :1] + np.einsum("qk,mki->mqi", X, corners[:, 1:] - corners[:, :1])
        weight = (self.cells.volumes[chosen, None] * (w / w.sum())).ravel()
        cell = np.repeat(chosen, len(w))
        return Points(cell, x.reshape(-1, d), np.tile(X, (len(chosen), 1)), weight, np.zeros(len(cell), np.uint64))

    def pieces(self) -> Iterator[Piece]:
        """The matrices of some cells at a time."""
        every, d = np.arange(self.cells.size), self.cells.dim
        nodes = self._gauss(every, 2 * self._degree)  # only where they lie, for the smallest deviation
        least = float(np.sqrt(np.linalg.eigvalsh(self.steps.covariance(nodes.x.T)).min()))
        width = np.ptp(self.cells.vertices, axis=1).max() / least
        targets = self._gauss(every, self._degree + int(np.ceil(8 + 8 * width if d == 1 else 4 + 6 * width)))
        each = len(targets.cell) * len(self.steps.weights) * len(self._gauss(every[:1], self._degree).cell)
        some = max(1, CHUNK // each)
        for begin in range(self.cells.begin, self.cells.end, some):
            yield self._rows(np.arange(begin, min(begin + some, self.cells.end)), targets)

    def _rows(self, chosen: Array, targets: Points) -> Piece:
        points = self._gauss(chosen, self._degree)
        normal = self._normal(points)
        targets, there = self._within_reach(normal, targets)
        phi, psi = self.basis(points.reference), targets.weight[:, None] * self.basis(targets.reference)
        m, q = phi.shape[1], len(points.cell) // len(chosen)
        kernel, outside = self._densities(normal, targets)
        weighted: Array = (points.weight[:, None] * phi).reshape(len(chosen), q, m)
        mass = np.einsum("cqi,cqj->cij", weighted, phi.reshape(weighted.shape))
        if self.discount is not None:
            weighted = weighted * self.discount(points.x).reshape(len(chosen), q, 1)
        exits = np.zeros((self.parts + len(self.regions), len(chosen), m))

        def leave(label: int, share: Array) -> None:
            exits[label] += np.einsum("cqi,cq->ci", weighted, share.reshape(len(chosen), q))

        for label, share, end in outside:
            leave(label, share if self._payoff(label) is None else share * self._at_end(label, end))
        for label, region in enumerate(self.regions, self.parts):
            inside, payoff = np.flatnonzero(region(targets.x)), self._payoff(label)
            worth = 1.0 if payoff is None else payoff(targets.x[inside])
            leave(label, kernel[:, inside] @ (targets.weight[inside] * worth))
            kernel[:, inside] = 0.0
        size = len(there)
        # (cells there, points, unknowns there), then (cells, unknowns, cells there, unknowns there), by BLAS
        each = kernel.shape[1] // max(size, 1)
        projected = np.matmul(kernel.reshape(-1, size, each).transpose(1, 0, 2), psi.reshape(size, each, m))
        projected = np.ascontiguousarray(projected.transpose(1, 0, 2)).reshape(len(chosen), q, size * m)
        blocks = np.matmul(weighted.transpose(0, 2, 1), projected).reshape(len(chosen), m, size, m).swapaxes(1, 2)
        keep = np.abs(blocks).max(axis=(2, 3)) > 1e-16 * np.abs(blocks).max(initial=0.0)
        offsets = np.concatenate(([0], np.cumsum(keep.sum(axis=1))))
        found = np.ascontiguousarray(blocks[keep]), there[np.nonzero(keep)[1]], offsets
        rows = sparse.bsr_array(found, shape=(len(chosen) * m, self.cells.size * m), blocksize=(m, m))
        return Piece(chosen, mass, exits, rows, np.full(len(chosen), q), kernel.size * len(self.steps.weights), 0.0)

    def _payoff(self, label: int) -> Any:
        return self.payoffs[label] if self.payoffs else None

    def _at_end(self, label: int, end: float) -> Array:
        """What leaving an interval at an end is worth."""
        self._need_interval("exit data that vary along a part")
        return np.asarray(self._payoff(label)(np.array([[end]])))

    def _need_interval(self, what: str) -> None:
        if self.cells.dim > 1:
            raise ValueError(f"Chain: {what}: densities do not tell where steps leave. Give batches=64, to draw them.")

    def crossings(self, part: int, visits: Array) -> tuple[Array, Array]:
        """As of any recipe: at the ends of an interval."""
        self._need_interval("places of exit")
        points = self._gauss(np.arange(self.cells.begin, self.cells.end), self._degree)
        worth = self.visits(points, visits)
        ends = [(end, share @ worth) for label, share, end in self._outside(self._normal(points)) if label == part]
        return np.array([end for end, _ in ends]).reshape(-1, 1), np.array([share for _, share in ends])

    def _normal(self, points: Points) -> Normal:
        means = self.steps.images(np.ascontiguousarray(points.x.T), points.key)
        if not np.isfinite(means).all():
            x = points.x[~np.isfinite(means).all(axis=(0, 1))][0]
            bad = ", ".join(f"{c:.6g}" for c in x)
            raise ValueError(f"Chain: the step from ({bad}) is not finite: the gradients are not finite there.")
        covariance = self.steps.covariance(points.x.T)
        reach = REACH * float(np.sqrt(np.linalg.eigvalsh(covariance).max()))
        return Normal(means, covariance, means.min(axis=(1, 2)) - reach, means.max(axis=(1, 2)) + reach)

    def _outside(self, normal: Normal) -> list[tuple[int, Array, float]]:
        """Label, probabilities to leave in the next step, shape (n,), and end, of the sides of one coordinate."""
        sides, (low, high) = self._sides, self._ends()
        axes = np.flatnonzero((sides != REFLECTING).any(axis=1))
        if len(axes) != 1:
            return []
        (i,) = axes
        means, deviation = normal.means[i], np.sqrt(normal.covariance[..., i, i])
        tails = (low[i] - means) / deviation, (means - high[i]) / deviation
        ends = zip(sides[i], tails, (low[i], high[i]), strict=True)
        return [(int(k), self.steps.weights @ ndtr(t), float(end)) for k, t, end in ends if k != REFLECTING]

    def _ends(self) -> tuple[Array, Array]:
        return self.cells.vertices.min(axis=(0, 1)), self.cells.vertices.max(axis=(0, 1))

    def _within_reach(self, normal: Normal, targets: Points) -> tuple[Points, Array]:
        """Those of the targets that lie in cells to which steps lead, and the numbers of these cells."""
        corners, reached = self.cells.vertices, np.zeros(self.cells.size, dtype=bool)
        for copy in self._copies(normal):
            sign, shift = np.array(copy).T
            images = sign * corners + shift
            reached |= ((images.max(axis=1) > normal.low) & (images.min(axis=1) < normal.high)).all(axis=1)
        there, each = np.flatnonzero(reached), len(targets.cell) // self.cells.size
        index = (there[:, None] * each + np.arange(each)).ravel()
        return Points(*(getattr(targets, f.name)[index] for f in fields(targets))), there

    def _densities(self, normal: Normal, targets: Points) -> tuple[Array, list[tuple[int, Array, float]]]:
        """Transition densities (n, targets), and what leaves; both together have mass one."""
        means, copies = np.moveaxis(normal.means, 0, 2), list(self._copies(normal))
        density = np.zeros((means.shape[1], len(targets.cell)))
        for mean, C, w in zip(means, normal.covariance, self.steps.weights, strict=True):
            root = np.linalg.inv(np.linalg.cholesky(C))
            scale = w * np.linalg.det(root) / (2 * np.pi) ** (self.cells.dim / 2)
            center = (root @ mean[..., None])[..., 0]
            for copy in copies:
                sign, shift = np.array(copy).T
                z = np.ascontiguousarray(sign * targets.x + shift)
                if ((z > normal.low) & (z < normal.high)).all(axis=1).any():
                    _add(density, center, root, scale, z)
        inside, outside = density @ targets.weight, self._outside(normal)
        if not outside and (self._sides != REFLECTING).any():  # through several sides, all alike
            return density, [(int(self._sides.max()), 1.0 - inside, np.nan)]
        stays = 1.0 - sum(share for _, share, _ in outside)
        density *= (stays / np.maximum(inside, 1e-300))[:, None]
        return density, outside

    def _copies(self, normal: Normal) -> Iterator[tuple[tuple[float, float], ...]]:
        """Maps y -> ±y + shift, in each coordinate, to copies of the box that steps may end in."""
        periods, maps = self.walls.periods, []
        for i, (a, b, (left, right)) in enumerate(zip(*self._ends(), self._sides, strict=True)):
            if periods is not None and np.isfinite(periods[i, 0]):
                turns = np.floor((np.array([normal.low[i], normal.high[i]]) - a) / (b - a))
                maps.append([(1.0, k * (b - a)) for k in np.arange(turns[0], turns[1] + 1)])
            elif left == right == REFLECTING:
                both = [((1.0, 2 * k * (b - a)), (-1.0, 2 * a + 2 * k * (b - a))) for k in range(-3, 4)]
                maps.append([m for pair in both for m in pair])
            else:
                mirrors = [(-1.0, 2 * end) for end, label in ((a, left), (b, right)) if label == REFLECTING]
                maps.append([(1.0, 0.0), *mirrors])
        return product(*maps)


_SOURCE = """
#include <math.h>

/* density[i][j] += scale[i] exp(-|root[i] z[j] - center[i]|^2 / 2), where that is above rounding */
void add(long long n, long long m, int d, const double *center, const double *root, const double *scale,
         const double *z, double most, double *density)
{
    for (long long i = 0; i < n; i++)
        for (long long j = 0; j < m; j++) {
            double square = 0.0;
            for (int k = 0; k < d; k++) {
                double r = -center[i * d + k];
                for (int l = 0; l < d; l++) r += root[(i * d + k) * d + l] * z[j * d + l];
                square += r * r;
            }
            if (square < most) density[i * m + j] += scale[i] * exp(-0.5 * square);
        }
}
"""


def _add(density: Array, center: Array, root: Array, scale: Array, z: Array) -> None:
    arrays = [np.ascontiguousarray(a) for a in (center, root, scale, z)]
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*arrays, density)]
    n, m, d = ctypes.c_longlong(len(density)), ctypes.c_longlong(len(z)), ctypes.c_int(z.shape[1])
    library(_SOURCE).add(n, m, d, *pointers[:4], ctypes.c_double(REACH**2), pointers[4])
