"""Slices: one to three directions through a point of a large model's weights, and what they leave out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._answer import Answer, place
from .._arguments import check_integer, expect
from .network import Network
from .noise import PerSample


@dataclass(frozen=True)
class Slice:
    """w(x) = origin + directions x.  The directions are orthonormal, so that x measures lengths in weight space.

    The projected process is that of SGD whose every step is projected on the slice: loss f(w(x)), covariance VᵀΣV.

    Of an origin (P,) and directions V (P, d), VᵀV = I; ``what`` tells where they come from.
    """

    origin: np.ndarray
    directions: np.ndarray
    what: str

    def __post_init__(self) -> None:
        shapes = np.shape(self.origin), np.shape(self.directions)
        fit = len(shapes[1]) == 2 and shapes[0] == shapes[1][:1] and shapes[1][1] in (1, 2, 3)
        expect("Slice: the shapes of origin and directions", shapes, "(P,) and (P, d) with d = 1, 2 or 3", fit)
        if not np.isfinite(self.origin).all() or not np.isfinite(self.directions).all():
            raise ValueError("Slice: origin or directions are not finite.")
        if (off := float(np.abs(self.directions.T @ self.directions - np.eye(self.dim)).max())) > 1e-8:
            raise ValueError(
                f"Slice: the directions are not orthonormal (VᵀV differs from I by {off:.1g}). Slice.through(origin, "
                "origin + a, origin + b) makes them so, if they are independent."
            )

    @property
    def dim(self) -> int:
        """d."""
        return self.directions.shape[1]

    def weights(self, x: np.ndarray) -> np.ndarray:
        """w at points x (n, d), shape (n, P)."""
        return self.origin + self._points(x) @ self.directions.T

    def _points(self, x: Any) -> np.ndarray:
        points = np.asarray(x, dtype=float)
        points = points.reshape(-1, 1) if points.ndim < 2 and self.dim == 1 else np.atleast_2d(points)
        expect("Slice: the points' shape", points.shape, f"(n, {self.dim})", points.shape[1:] == (self.dim,))
        return points

    def coordinates(self, weights: np.ndarray) -> np.ndarray:
        """x of the orthogonal projections of weights (n, P), shape (n, d)."""
        return (np.atleast_2d(weights) - self.origin) @ self.directions

    def distance(self, weights: np.ndarray) -> np.ndarray:
        """Distance of weights (n, P) from the slice, shape (n,)."""
        return np.linalg.norm(np.atleast_2d(weights) - self.weights(self.coordinates(weights)), axis=1)

    def noise(self, network: Network, rtol: float = 1e-3) -> PerSample:
        """The network's samples in the slice, for ``SGD(None, slice.noise(network), learning_rate, batch_size)``."""
        return network.restricted(self.origin, self.directions, rtol)

    def left_out(self, network: Network, points: np.ndarray) -> "LeftOut":
        """The parts of noise and drift that are orthogonal to the slice, at points (n, d) of it."""
        rows = []
        for w in self.weights(points):
            g, V = network.gradient(w), self.directions
            noise = sum(float(v @ network.noise(w, v)) for v in V.T), network.noise_trace(w)
            pairs = (noise, (float(np.sum((g @ V) ** 2)), float(g @ g)))
            rows.append([max(0.0, 1.0 - inside / total) if total > 0 else 0.0 for inside, total in pairs])
        return LeftOut(self._points(points), *np.array(rows).reshape(-1, 2).T)

    @classmethod
    def random(cls, network: Network, dim: int = 2, seed: int = 0, origin: Any = None) -> "Slice":
        """Gaussian directions, each filter scaled to the norm of the weights' own filter.

        A filter is what leads to one output (first axis in PyTorch, last in JAX); vectors of biases stay out.
        Li, Xu, Taylor, Studer, Goldstein, Visualizing the loss landscape of neural nets, NeurIPS 2018, section 4.
        """
        base, random = network.point(origin, "Slice.random"), np.random.default_rng(seed)
        columns = np.zeros((check_integer("Slice.random: dim", dim, most=3), len(base)))
        for direction in columns:
            at = 0
            for shape in network.shapes:
                piece = slice(at, at := at + int(np.prod(shape)))
                if len(shape) > 1:
                    others = tuple(i for i in range(len(shape)) if i != network.filter_axis % len(shape))
                    new, old = random.standard_normal(shape), base[piece].reshape(shape)
                    norms = (np.sqrt(np.sum(a**2, axis=others, keepdims=True)) for a in (old, new))
                    direction[piece] = (new * np.divide(*norms)).ravel()
        return cls(base, _orthonormal([*columns], "random"), "random, filter-normalised")

    @classmethod
    def principal(cls, trajectory: np.ndarray, dim: int = 2) -> "Slice":
        """The principal directions of a trajectory (T, P) about its last point."""
        path = np.asarray(trajectory, dtype=float)
        several = path.ndim == 2 and len(path) > 1
        expect("Slice.principal: the trajectory's shape", path.shape, "(T, P) with T >= 2", several)
        if not np.isfinite(path).all():
            raise ValueError("Slice.principal: the trajectory is not finite.")
        _, size, right = np.linalg.svd(path - path[-1], full_matrices=False)
        rank = int(np.count_nonzero(size > 1e-10 * max(size[0], 1e-300)))
        if rank < check_integer("Slice.principal: dim", dim, most=3):
            raise ValueError(f"Slice.principal: the trajectory spans {rank} direction(s); {dim} were asked for.")
        share = float(np.sum(size[:dim] ** 2) / np.sum(size**2))
        return cls(path[-1], right[:dim].T.copy(), f"principal, {share:.0%} of the trajectory's variance")

    @classmethod
    def through(cls, points: Sequence[np.ndarray]) -> "Slice":
        """The line, plane or space through two, three or four points, such as minima; the first is the origin."""
        given = [np.asarray(p, dtype=float) for p in points]
        expect("Slice.through: the number of points", len(given), "two, three or four", 2 <= len(given) <= 4)
        shapes, finite = [p.shape for p in given], all(np.isfinite(p).all() for p in given)
        alike = finite and set(shapes) == {(given[0].size,)}
        expect("Slice.through: the points' shapes", shapes, "one shape (P,) of finite numbers", alike)
        columns = [p - given[0] for p in given[1:]]
        return cls(given[0], _orthonormal(columns, "through"), f"through {len(given)} points")

    @classmethod
    def curvature(cls, network: Network, dim: int = 2, origin: Any = None) -> "Slice":
        """The eigenvectors of the largest (in modulus) eigenvalues of the mean loss' Hessian at a point."""
        w = network.point(origin, "Slice.curvature")
        return cls(w, *_leading(lambda v: network.hvp(w, v), len(w), dim, "curvature", "Hessian"))

    @classmethod
    def noisiest(cls, network: Network, dim: int = 2, origin: Any = None) -> "Slice":
        """The eigenvectors of the largest eigenvalues of the gradient noise' covariance at a point."""
        w = network.point(origin, "Slice.noisiest")
        return cls(w, *_leading(lambda v: network.noise(w, v), len(w), dim, "noisiest", "covariance"))


@dataclass(frozen=True)
class LeftOut(Answer):
    """What a slice does not see: the shares of tr Σ and |∇f|² orthogonal to it, shape (n,), at points (n, d) of it."""

    points: np.ndarray
    noise: np.ndarray
    drift: np.ndarray

    def __repr__(self) -> str:
        rows = zip(self.points, self.noise, self.drift, strict=True)
        head = f"{'point':>28} {'noise outside':>14} {'drift outside':>14}"
        return "\n".join([head, *(f"{place(x, 3):>28} {noise:14.1%} {drift:14.1%}" for x, noise, drift in rows)])


def _orthonormal(columns: list[np.ndarray], what: str) -> np.ndarray:
    V = np.column_stack(columns)
    _, size, _ = np.linalg.svd(V / np.maximum(np.linalg.norm(V, axis=0), 1e-300), full_matrices=False)
    if not np.isfinite(V).all() or size[-1] < 1e-8:
        raise ValueError(
            f"Slice.{what}: the {V.shape[1]} direction(s) are not independent (smallest singular value {size[-1]:.1g} "
            "of unit vectors); a slice needs as many as it has dimensions."
        )
    Q, R = np.linalg.qr(V)
    return Q * np.sign(np.diag(R))  # the first direction keeps its sense


def _leading(
    apply: Callable[[np.ndarray], np.ndarray], size: int, dim: int, what: str, matrix: str
) -> tuple[np.ndarray, str]:
    """Eigenvectors of a symmetric operator to the eigenvalues of largest modulus, and what these are."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    k = check_integer(f"Slice.{what}: dim", dim, most=3)
    start = np.random.default_rng(0).standard_normal(size)
    image = apply(start)
    if not np.isfinite(image).all():
        raise ValueError(f"Slice.{what}: the {matrix} is not finite at this point.")
    values: Any = np.zeros(0)
    vectors: Any = np.zeros((size, 0))
    if size <= 16:  # too few for Lanczos
        values, vectors = np.linalg.eigh(np.column_stack([apply(e) for e in np.eye(size)]))
    elif image.any():
        operator = LinearOperator((size, size), matvec=lambda v: apply(np.ascontiguousarray(v).ravel()), dtype=float)
        values, vectors = eigsh(operator, k=k, which="LM", tol=1e-6, v0=start)
    order = np.argsort(-np.abs(values))[:k]
    values, vectors = values[order], vectors[:, order]
    rank = np.count_nonzero(np.abs(values) > 1e-10 * np.abs(values).max(initial=0.0))
    if rank < k:
        raise ValueError(f"Slice.{what}: the {matrix} has rank {rank} at this point; {k} direction(s) were asked for.")
    return np.linalg.qr(vectors)[0], f"eigenvalues of the {matrix} {', '.join(f'{v:.4g}' for v in values)}"
