"""Polynomials on one cell made non-negative with as little change as possible, for many cells at once.

p = p̄ (1 + Σ_j z_j (ψ_j − m_j)) with orthonormal modes ψ_j of the reference cell and their means m_j over the cell, so
that every z has the same mass.  The z closest to the given one in a norm in which a mode counts the more the lower
its degree, with Bernstein coefficients Σ_j C_ij z_j ≥ −1, solves a convex quadratic program; an interior point method
(Mehrotra, SIAM J. Optim. 2, 1992) solves it in all cells together.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# weight of the squares of modes of degree 1, 2 and more: where there is a choice, moments are kept and the shape is not
WEIGHTS = np.array([1e6, 1e3, 1.0])
_ITERATIONS = 40
_GAP = 1e-11  # mean complementarity: what constraints are missed by
_AT_ONCE = 4_000_000  # numbers in the largest array


def nearest(target: Array, bernstein: Array, means: Array, weight: Array, margin: float) -> Array:
    """The modes nearest to ``target`` (cells, modes), over the cells' means, with coefficients above ``margin``."""
    size = max(1, _AT_ONCE // (len(bernstein) + bernstein.shape[1] ** 2))
    parts = [slice(i, i + size) for i in range(0, len(target), size)]
    return np.concatenate([target[:0], *(_solve(target[i], bernstein, means[i], weight, margin) for i in parts)])


def _solve(target: Array, B: Array, means: Array, weight: Array, margin: float) -> Array:
    """Interior points; cells that have converged drop out."""
    n = len(weight)
    squares = (B[:, :, None] * B[:, None, :]).reshape(len(B), n * n)
    lowest = _values(target, B, means).min(axis=1, keepdims=True)
    start = target * np.minimum(1.0, 0.9 / np.maximum(-lowest, 1e-300))  # the least coefficient is a tenth of the mean
    answer, left = start.copy(), np.arange(len(target))
    z, s = start, 1.0 - margin + _values(start, B, means)
    pull = np.maximum(np.abs(weight * (target - z)).max(axis=1, keepdims=True), 1.0)
    y = pull / len(B) / s
    for _ in range(_ITERATIONS):
        t, m, scale = target[left], means[left], pull[left]
        D = y / s
        H, lean = (D @ squares).reshape(-1, n, n), D @ B
        H += D.sum(axis=1)[:, None, None] * m[:, :, None] * m[:, None, :]
        H -= lean[:, :, None] * m[:, None, :] + m[:, :, None] * lean[:, None, :]
        H[:, np.arange(n), np.arange(n)] += weight
        inverse, slope = np.linalg.inv(H), weight * (t - z)
        gap = (s * y).mean(axis=1, keepdims=True)
        ds, dy = _step(inverse, slope, np.zeros_like(s), s, y, B, m)[1:]
        affine = ((s + _longest(s, ds) * ds) * (y + _longest(y, dy) * dy)).mean(axis=1, keepdims=True)
        dz, ds, dy = _step(inverse, slope, (affine / gap) ** 3 * gap - ds * dy, s, y, B, m)
        forward = _longest(s, ds)
        z, s, y = z + forward * dz, s + forward * ds, y + _longest(y, dy) * dy
        answer[left] = z
        going = ((s * y).mean(axis=1, keepdims=True) > _GAP * scale)[:, 0]
        left, z, s, y = left[going], z[going], s[going], y[going]
        if not len(left):
            break
    return answer


def _values(z: Array, B: Array, means: Array) -> Array:
    """Bernstein coefficients of Σ z_j (ψ_j − m_j)."""
    return np.asarray(z @ B.T - (z * means).sum(axis=1, keepdims=True))


def _step(inverse: Array, slope: Array, aim: Array, s: Array, y: Array, B: Array, m: Array) -> tuple[Array, ...]:
    """Newton's step towards s y = aim."""
    pressure = aim / s
    rhs = slope + pressure @ B - pressure.sum(axis=1, keepdims=True) * m
    dz = np.einsum("cij,cj->ci", inverse, rhs)
    ds = _values(dz, B, m)
    return dz, ds, pressure - y - y / s * ds


def _longest(v: Array, dv: Array) -> Array:
    """Largest step up to one that keeps v positive."""
    ratio = np.divide(-v, dv, out=np.full_like(v, np.inf), where=dv < 0)
    return np.asarray(np.minimum(1.0, 0.99 * ratio.min(axis=1, keepdims=True)))
