"""Critical points of a loss on a mesh, found from its gradient and polished to machine precision."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..._answer import Answer, place
from ..._errors import together
from ..._sample import lattice, push_forward
from ...discretisation.solution import contains
from ...domains.domain import Domain
from .lojasiewicz import Exponent
from .points import Loss, covariance_at

_SAMPLES = 40_000
_STEPS = 120
_MANY = 20


@dataclass(frozen=True, eq=False)
class CriticalPoint(Answer):
    """A zero of ∇f.

    Attributes:
        point, value, gradient_norm: coordinates, f there, and the |∇f| that is left.
        hessian, eigenvalues: ∇∇f, shape (d, d), and its eigenvalues, ascending, shape (d,).
        index: number of negative eigenvalues.  The pass between two wells has index one, in one dimension too.
        kind: "minimum", "saddle", "maximum", or "degenerate" where the Hessian is singular.
        covariance: Σ there for batches of one sample, shape (d, d); None unless the process is ``SGD`` with a noise
            that can be evaluated away from a mesh.
        exact: whether the gradient is; for ``fp.batched`` losses all derivatives are differences: the point is good to
            about 1e-9 of the domain, eigenvalues to about 1e-6.
        exponent: of Łojasiewicz; None unless :func:`~fpsolver.diagnostics.landscape` has found it.
    """

    point: tuple[float, ...]
    value: float
    gradient_norm: float
    hessian: np.ndarray
    eigenvalues: np.ndarray
    index: int
    kind: str
    covariance: np.ndarray | None = None
    exact: bool = True
    exponent: Exponent | None = None

    def __repr__(self) -> str:
        return f"{self.kind} at {place(self.point)}: f = {self.value:.8g}, Hessian's eigenvalues {self.eigenvalues}"

    @property
    def alignment(self) -> float:
        """tr(HΣ)/(|H| |Σ|), Frobenius norms: 1 if noise and curvature are proportional; nan without noise."""
        H, Sigma = self.hessian, np.zeros_like(self.hessian) if self.covariance is None else self.covariance
        size = float(np.linalg.norm(H) * np.linalg.norm(Sigma))
        return float(np.sum(H * Sigma)) / size if size > 1e-280 else float("nan")


def critical_points(process_or_loss: Any, domain: Domain) -> list[CriticalPoint]:
    """All critical points of a loss on a mesh, minima first, each index in ascending order of f (collective).

    The gradient is sampled on a lattice in every cell; where its linear interpolant vanishes in or near a small
    simplex, Newton's method starts.  A pair of critical points closer than the lattice's spacing may be missed: refine
    the mesh to make sure.

    Of ``Langevin``, ``SGD`` (also with per-sample losses), a loss in UFL, or ``fp.batched(f)``.  Points outside the
    mesh are dropped, those on its boundary kept.

    Raises:
        TypeError: a process without a loss.
        ValueError: critical points are not isolated (a valley of minima, say), the loss is finite nowhere, or a dolfinx
            Function, whose second derivatives jump.
    """
    return find_critical_points(Loss(process_or_loss, domain), process_or_loss)


def find_critical_points(loss: Loss, process: Any) -> list[CriticalPoint]:
    """:func:`critical_points` of a loss that is already compiled (collective)."""
    domain = loss.domain
    starts, steepness = _candidates(loss)
    x = domain.comm.bcast(polish(loss, starts, steepness), root=0)
    x = x[contains(domain.mesh, x)]
    Sigma = covariance_at(process, x, domain.comm)
    found = []
    for k, (f, g, H) in enumerate(zip(*loss.second(x), strict=True)):
        hessian = 0.5 * (H + H.T)
        values = np.linalg.eigvalsh(hessian)
        index, size = int((values < 0).sum()), np.abs(values)
        kind = "minimum" if index == 0 else "maximum" if index == loss.dim else "saddle"
        if size.min() <= (1e-7 if loss.exact else 1e-5) * max(size.max(), steepness / loss.extent):
            kind = "degenerate"
        at = tuple(map(float, x[k])), float(f), float(np.linalg.norm(g))
        covariance = None if Sigma is None else Sigma[k]
        found.append(CriticalPoint(*at, hessian, values, index, kind, covariance, loss.exact))
    flat = [c for c in found if c.kind == "degenerate"]
    if len(flat) > _MANY:
        raise ValueError(
            f"critical points are not isolated: the Hessian is singular at {len(flat)} of them, for instance at "
            f"{flat[0].point} and {flat[-1].point}. Add a regularisation, or restrict the domain."
        )
    return sorted(found, key=lambda c: (c.index, c.value, c.point))


def _candidates(loss: Loss) -> tuple[np.ndarray, float]:
    """Starting points for Newton's method, gathered on all ranks, and the median of |∇f| (collective)."""
    domain, d = loss.domain, loss.dim
    owned = domain.mesh.topology.index_map(d)
    X, small = lattice(d, int(np.clip((_SAMPLES / max(owned.size_global, 1)) ** (1 / d), 2, 24)))
    points = push_forward(domain.mesh, X, np.arange(owned.size_local))
    with together(domain.comm):
        g = loss.first(points.reshape(-1, d))[1].reshape(points.shape)
    starts = _linear_roots(points[:, small].reshape(-1, d + 1, d), g[:, small].reshape(-1, d + 1, d))
    norms = np.linalg.norm(g, axis=2).ravel()
    pieces = domain.comm.allgather((starts, norms[np.isfinite(norms)]))
    everywhere, typical = (np.concatenate(p) for p in zip(*pieces, strict=True))
    if not len(typical):
        raise ValueError("the gradient of the loss is finite nowhere on the mesh: the loss is not defined there.")
    return everywhere[np.lexsort(everywhere.T)], float(np.median(typical))


def _linear_roots(x: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Zeros of the linear interpolants of g on simplices, where they lie within about one simplex of it."""
    low, high = g.min(axis=1), g.max(axis=1)
    reach = high - low
    near = ((low - reach <= 0) & (high + reach >= 0)).all(axis=1) & np.isfinite(g).all(axis=(1, 2))
    x, g = x[near], g[near]
    if not len(x):
        return x[:, 0]
    J = (g[:, 1:] - g[:, :1]).transpose(0, 2, 1)
    inner = np.einsum("nij,nj->ni", np.linalg.pinv(J, rcond=1e-10), -g[:, 0])
    weights = np.concatenate([1 - inner.sum(axis=1, keepdims=True), inner], axis=1)
    close = weights.min(axis=1) >= -1
    return np.einsum("ni,nij->nj", weights[close], x[close])


def polish(loss: Loss, x: np.ndarray, steepness: float) -> np.ndarray:
    """Newton's method from many points; those that arrive, without repetition, shape (n, d)."""
    size = loss.extent
    finest, accepted = (4e-16, 1e-9) if loss.exact else (1e-11, 1e-7)
    active, arrived = np.arange(len(x)), np.zeros(len(x), dtype=bool)
    x = x.copy()
    for _ in range(_STEPS):
        if not len(active):
            break
        _, g, H = loss.second(x[active])
        good = np.isfinite(g).all(axis=1) & np.isfinite(H).all(axis=(1, 2))
        good &= ((x[active] > loss.low - 0.2 * size) & (x[active] < loss.high + 0.2 * size)).all(axis=1)
        arrived[active[~good]] = False
        active, g, H = active[good], g[good], H[good]
        # without the directions in which H vanishes
        step = -(np.linalg.pinv(0.5 * (H + H.transpose(0, 2, 1)), rcond=1e-14, hermitian=True) @ g[:, :, None])[..., 0]
        length = np.linalg.norm(step, axis=1)
        x[active] += step * np.minimum(1.0, 0.05 * size / np.maximum(length, 1e-300))[:, None]
        stiff = np.abs(H).max(axis=(1, 2), initial=0.0) * size + steepness
        arrived[active] = (length <= accepted * size) & (np.linalg.norm(g, axis=1) <= 10 * accepted * stiff)
        active = active[length > finest * size]
    left, distinct = x[arrived], list[np.ndarray]()
    while len(left):
        distinct.append(left[0])
        left = left[np.linalg.norm(left - left[0], axis=1) > 1e-6 * size]
    return np.array(distinct).reshape(-1, loss.dim)
