"""Rates that are known to hold: the Bakry–Émery condition pointwise, and the Arnold–Erb matrix of linear drift."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import ufl
from ufl.algorithms import extract_coefficients

from ..._answer import Answer, place
from ..._sample import largest
from ...discretisation.generator import Generator
from ...longtime.spectrum import spectrum
from ...models.fields import Space
from ..sampling import Array, Samples, ito_drift

_EQUAL = 1e-9  # relative
_CLOSE = 1e-4  # a triple eigenvalue is known to the cube root of rounding
_DEPENDENT = 1e-3  # smallest singular value of unit eigenvectors: below it they are taken for one


@dataclass(frozen=True)
class ArnoldErb(Answer):
    """Decay of a linear process dX = −CX dt + √(2D) dW in the modified functional S_P = ∫ p ∇ln h·P∇ln h.

    Attributes:
        P: symmetric positive definite, shape (d, d), trace d; C* P + P C*ᵀ ≥ rate·P with C* = K Cᵀ K⁻¹.
        mu: smallest real part of the eigenvalues of C.
        rate, defective: S_P(t) ≤ e^{−rate·t} S_P(0): 2μ, or 1.98μ where an eigenvalue on that line is defective.
        covariance: K of the invariant normal law, C K + K Cᵀ = 2D.
        constant: c of H ≤ c S_P, from the logarithmic Sobolev inequality of N(0, K).
    """

    P: np.ndarray
    mu: float
    rate: float
    defective: bool
    covariance: np.ndarray
    constant: float

    def __repr__(self) -> str:
        P = np.array2string(self.P, precision=4, separator=", ").replace("\n", "")
        why = " (a defective eigenvalue)" if self.defective else ""
        return f"S_P(t) <= e^(-{self.rate:.6g} t) S_P(0){why}, H <= {self.constant:.4g} S_P, P = {P}"

    def entropy_bound(self, t: Any, modified: float) -> np.ndarray:
        """H(t) ≤ c e^{−rate·t} S_P(0), though D may be degenerate; ``modified`` is S_P(0)."""
        return self.constant * modified * np.exp(-self.rate * np.asarray(t, dtype=float))


def arnold_erb_matrix(C: Any, D: Any) -> ArnoldErb:
    """P for the process dX = −CX dt + √(2D) dW with constant, possibly degenerate D (Arnold, Erb, arXiv:1409.5425).

    The gradient of p/p∞ contracts in P when C* P + P C*ᵀ ≥ 2μP.  P = Σ w w̄ᵀ over eigenvectors w of C* for eigenvalues
    that are not defective; on the rest of the space P solves a Lyapunov equation.

    Raises:
        ValueError: not of one shape (d, d); D not symmetric semi-definite; C without positive real parts (there is no
            invariant law); an eigenvector of Cᵀ in the kernel of D (no noise reaches it: the law has no density).
    """
    C, D = (np.atleast_2d(np.asarray(A, dtype=float)) for A in (C, D))
    d = len(C)
    if not C.shape == D.shape == (d, d) or not np.isfinite([C, D]).all():
        raise ValueError(
            f"arnold_erb_matrix: C has shape {C.shape}, D {D.shape}; finite square matrices of one shape were expected."
        )
    _check_linear(C, D)
    mu = float(np.linalg.eigvals(C).real.min())
    K = scipy.linalg.solve_continuous_lyapunov(C, 2 * D)
    reverse = K @ C.T @ np.linalg.inv(K)
    # eigenvectors with real part μ, and a basis of the invariant subspace of the other eigenvalues
    limit = mu + _CLOSE * np.linalg.norm(reverse)
    values, vectors = np.linalg.eig(reverse)
    slow = vectors[:, values.real <= limit].astype(complex)
    defective = bool(np.linalg.svd(slow, compute_uv=False)[-1] < _DEPENDENT)
    half = 0.99 * mu if defective else mu
    if defective:
        P = scipy.linalg.solve_continuous_lyapunov(reverse - half * np.eye(d), np.eye(d))
    else:
        _, Z, count = scipy.linalg.schur(reverse.astype(complex), output="complex", sort=lambda z: z.real > limit)
        fast = Z[:, :count]
        T = np.linalg.lstsq(fast, reverse @ fast, rcond=None)[0] - half * np.eye(count)
        inner = scipy.linalg.solve_continuous_lyapunov(T, np.eye(count)) if count else T
        P = (slow @ slow.conj().T + fast @ inner @ fast.conj().T).real
    P = 0.5 * (P + P.T) * d / np.trace(P)
    constant = 0.5 * float(scipy.linalg.eigh(K, P, eigvals_only=True)[-1])
    return ArnoldErb(P, mu, 2 * half, defective, K, constant)


def _check_linear(C: Array, D: Array) -> None:
    scale = np.abs(D).max() or 1.0
    if np.abs(D - D.T).max() > 1e-12 * scale or np.linalg.eigvalsh(D)[0] < -1e-12 * scale:
        raise ValueError("arnold_erb_matrix: D is not symmetric positive semi-definite.")
    values, vectors = np.linalg.eig(C.T)
    if values.real.min() <= 0:
        raise ValueError(
            f"arnold_erb_matrix: C has an eigenvalue {values[np.argmin(values.real)]:.6g}; positive real parts are "
            "needed for an invariant law of dX = -CX dt + noise."
        )
    for value in values:  # at most d: no vector of the eigenspace may lie in the kernel of D
        stacked = np.vstack([C.T - value * np.eye(len(C)), D / scale * np.linalg.norm(C)])
        if np.linalg.svd(stacked, compute_uv=False)[-1] < 1e-9 * np.linalg.norm(C):
            w = vectors[:, np.argmin(np.abs(values - value))]
            raise ValueError(
                f"arnold_erb_matrix: an eigenvector of C^T, {np.round(w, 6)} (eigenvalue {value:.6g}), lies in the "
                "kernel of D: no noise reaches that direction, and the law has no density there."
            )


@dataclass(frozen=True)
class BakryEmery(Answer):
    """A pointwise lower bound of curvature, and with it rates of convergence.

    Attributes:
        kind: ``"constant D"`` or ``"scalar D(x)"`` (which in one dimension is every D).
        bound, point: λ, the smallest eigenvalue found, and where; with λ > 0, H(t) ≤ e^{−2λt} H(0).
        reversible: whether the drift is D(−∇V) + ∇·D; then also I_D(t) ≤ e^{−2λt} I_D(0).  With a further drift F,
            ∇·(e^{−V}F) = 0, the rate of H remains, by the logarithmic Sobolev inequality, that of I_D need not.
    """

    kind: str
    bound: float
    point: np.ndarray
    reversible: bool

    def __repr__(self) -> str:
        verdict = "rate" if self.holds else "no rate:"
        return f"{verdict} {self.bound:.6g} by Bakry-Émery for {self.kind}, attained at {self.point}"

    @property
    def holds(self) -> bool:
        """Whether λ > 0, so that there is a rate."""
        return self.bound > 0


def bakry_emery(gen: Generator, *, potential: Any = None) -> BakryEmery:
    """The Bakry–Émery condition at quadrature points and vertices of the mesh (collective).

    Constant D > 0: ∇∇V ≥ λ D⁻¹.  Scalar D(x) (Arnold, Markowich, Toscani, Unterreiter, Comm. PDE 26, 2001), with
    n the dimension: (½ − n/4) ∇D⊗∇D/D + ½ (ΔD − ∇D·∇V) I + D∇∇V + ½ (∇V⊗∇D + ∇D⊗∇V) − ∇∇D ≥ λI; for n = 1 this is
    U'' ≥ λ for U = V − ½ ln D in the coordinate ∫ dx/√D.  The infimum is over points, not certified between
    them; on a reflecting domain the domain must be convex.

    ``potential`` is V with invariant density ∝ e^{−V}, a callable of all coordinates giving UFL; by default that of the
    process where it is known.

    Raises:
        ValueError: no potential; e^{−V} is not invariant; D degenerate, or neither constant nor scalar; V tabulated.
    """
    mesh, d = gen.domain.mesh, gen.domain.dim
    space = gen.weak.space if potential is None else Space(mesh, gen.degree, d)
    V = gen.process.potential(space) if potential is None else space.scalar(potential, "bakry_emery: potential")
    if V is None:
        raise ValueError(
            f"bakry_emery: the invariant density of {type(gen.process).__name__} is not known; give -ln of it by "
            "potential=."
        )
    c = gen.coefficients
    if any(extract_coefficients(e) for e in (V, c.D, c.beta)):
        raise ValueError(
            "bakry_emery needs second derivatives: potential, drift and diffusion must be UFL, not tabulated."
        )
    points = Samples.quadrature(mesh, max(4, gen.degree), vertices=True)
    size = lambda values: largest(mesh.comm, np.abs(values))  # noqa: E731
    ito, gradient, gradient_s = ito_drift(c), _gradient(V, d), _gradient(c.D[0, 0], d)
    F = ito + ufl.dot(c.D, gradient) - ufl.div(c.D)
    fields = [c.D, gradient, _gradient(gradient, d), gradient_s, _gradient(gradient_s, d), F, ito]
    rows = [e[i] for e in fields for i in np.ndindex(*e.ufl_shape)]
    table = points.values([*rows, ufl.div(F) - ufl.dot(F, gradient), ufl.div(ito)])
    parts = np.split(table, np.cumsum([d * d, d, d * d, d, d * d, d, d, 1]), axis=-1)
    D, ddV, dds = (parts[i].reshape(*table.shape[:2], d, d) for i in (0, 2, 4))
    dV, ds, extra, b, defect, div_b = parts[1], parts[3], *parts[5:]
    if size(defect) > _EQUAL * max(size(b * dV), size(div_b)):
        raise ValueError(
            "bakry_emery: e^(-V) is not invariant for this process: the drift that is left beside -D grad V + div D "
            f"does not preserve it (defect {size(defect):.3g}). Note that with Ito noise D(x) the potential is not the "
            "loss."
        )
    lowest, where = points.minimum(np.linalg.eigvalsh(D)[..., 0])
    if lowest <= 1e-12 * size(D):
        raise ValueError(f"bakry_emery: D degenerates at {place(where)}; for linear drift see arnold_erb_matrix.")
    model = next(a[0] for a in mesh.comm.allgather(D.reshape(-1, d, d)[:1]) if len(a))
    s, eye = D[..., 0, 0][..., None, None], np.eye(d)
    if size(D - model) <= _EQUAL * size(D):
        kind, root = "constant D", scipy.linalg.sqrtm(model).real
        curvature = root @ ddV @ root
    elif size(D - s * eye) <= _EQUAL * size(D):
        kind, outer = "scalar D(x)", lambda a, b: a[..., :, None] * b[..., None, :]
        trace = np.trace(dds, axis1=-2, axis2=-1) - (ds * dV).sum(axis=-1)
        mixed = 0.5 * (outer(dV, ds) + outer(ds, dV))
        curvature = (0.5 - d / 4) * outer(ds, ds) / s + 0.5 * trace[..., None, None] * eye + s * ddV + mixed - dds
    else:
        raise ValueError("bakry_emery: D is neither constant nor a scalar times the identity: no formula here.")
    bound, where = points.minimum(np.linalg.eigvalsh(curvature)[..., 0])
    return BakryEmery(kind, bound, where, size(extra) <= _EQUAL * size(b))


def _gradient(f: Any, d: int) -> Any:
    """∇f, of shape (..., d); UFL cannot differentiate zeros, which belong to no mesh."""
    zero = isinstance(f, ufl.classes.Zero)
    return ufl.classes.Zero((*f.ufl_shape, d)) if zero else ufl.grad(f)


def spectral_gap(gen: Generator, *, k: int = 10) -> float:
    """Smallest −Re λ of the generator's eigenvalues other than zero: the slowest rate of p(t) − p∞ (collective).

    Entropies, quadratic near p∞, decay with twice this rate in the end.  It is looked for among the k eigenvalues of
    smallest modulus; a process that rotates fast, with slow modes of large imaginary part, takes more of them.

    Raises:
        ValueError: something absorbs; everything else as :func:`fpsolver.spectrum`.
    """
    if gen.absorbing:
        raise ValueError("spectral_gap: mass leaves; the slowest rate is quasi_stationary(gen).rate.")
    slow = spectrum(gen, k).eigenvalues
    return float((-slow[np.argsort(np.abs(slow))][1:].real).min())
