"""Critical points without noise, Σ = 0, and whether the law collapses to them."""

from typing import Any

import numpy as np

from ...domains.domain import Domain
from ...models.sgd import SGD
from ..concentration.contraction import Collapse
from ..landscape.critical import CriticalPoint
from ..landscape.points import covariance_at

_ZERO = 1e-10
"""tr Σ at a point is nothing if it is below this share of what it is at a distance."""


def collapse_at(process: Any, domain: Domain, c: CriticalPoint, reach: float) -> Collapse | None:
    """What :func:`~fpsolver.diagnostics.collapse` tells, from H and Σ alone; None where Σ ≠ 0 (collective).

    The limit of tr Σ/|x − x*|² is extrapolated from second differences of tr Σ, which are even in the step; losses of
    PyTorch and JAX need no tabulation for it.
    """
    if not isinstance(process, SGD) or c.covariance is None:
        return None
    d, x = domain.dim, np.array(c.point)
    pairs = [(i, j) for i in range(d) for j in range(i)]
    directions = np.array([*np.eye(d), *((np.eye(d)[i] + np.eye(d)[j]) / np.sqrt(2) for i, j in pairs)])
    steps = reach * np.array([1.0, 2e-3, 1e-3])
    y = x + (steps[:, None, None, None] * np.stack([directions, -directions])).reshape(-1, d)
    Sigma = covariance_at(process, y, domain.comm)
    assert Sigma is not None
    far, coarse, fine = np.trace(Sigma, axis1=1, axis2=2).reshape(3, 2, -1).mean(axis=1)
    if not np.trace(c.covariance) <= _ZERO * far.max() or far.max() == 0:
        return None
    pull = 0.0 if c.kind == "degenerate" and c.index == 0 else float(c.eigenvalues[0])
    ratios = coarse / steps[1] ** 2, fine / steps[2] ** 2
    if ratios[1].max() > 1.1 * ratios[0].max():  # Σ vanishes like |x − x*|^p with p < 2
        return Collapse(x, False, pull, float("inf"), float("nan"), False)
    q = (4 * ratios[1] - ratios[0]) / 3
    Q = np.diag(q[:d])
    for k, (i, j) in enumerate(pairs):
        Q[i, j] = Q[j, i] = q[d + k] - 0.5 * (q[i] + q[j])
    s2 = process.learning_rate / process.batch_size * max(0.0, float(np.linalg.eigvalsh(Q)[-1]))
    return Collapse(x, True, pull, s2, 2 * pull - s2, 2 * pull - s2 > 0)
