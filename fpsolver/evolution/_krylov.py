"""Rational Krylov space of one vector's increment under exp(t M⁻¹G).

With A = M⁻¹G and S = (I − γA)⁻¹ = (M − γG)⁻¹M the *increment*, not the vector, is projected:

    v(t) = v + f_t(A) u₁,    u₁ = S A v,    f_t(z) = (e^{tz} − 1)(1 − γz)/z ,

and f_t is bounded as z → −∞.  The Krylov space of S and u₁ then consists of vectors in the range of A: they have zero
mass where mass is conserved and vanish where v is invariant, to rounding and independent of any tolerance.
In an M-orthonormal basis V_m with S V_m ≈ V_m H_m,

    v(t) ≈ v + β V_m f_t(A_m) e₁,    A_m = (I − H_m⁻¹)/γ,    β = ‖u₁‖_M

(shift-and-invert: I. Moret, P. Novati, BIT 44 (2004) 595; J. van den Eshof, M. Hochbruck, SIAM J. Sci. Comput. 27
(2006) 1438).  The same small matrix gives every earlier time and, by φ₂, time integrals of linear functionals.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from petsc4py import PETSc

import numpy as np
import scipy.linalg

from .._log import progress
from .._petsc import LinearSolver

FLOOR = 1e-10  # times the largest norm so far: errors are relative to v(t) until it is smaller
ROUNDING = 1e-12  # times ‖v‖: largest error of a step that more dimensions did not cure
INVARIANT = 1e-13  # relative size of a new direction that is nothing but rounding


class Snapshot(NamedTuple):
    """The solution at one time; nobody changes the vector."""

    time: float
    vector: PETSc.Vec
    integrals: np.ndarray  #: ∫₀ᵗ ℓᵀv ds for each functional ℓ


class IncrementSpace:
    """M-orthonormal basis, grown by one solve at a time; all small numbers are the same on all ranks.

    It begins with the vector v, direction and functionals ℓ of a ``run``, of which it knows ∫₀ᵗ ℓᵀv(s) ds, and has at
    most ``largest`` dimensions; ``allowed`` is the relative error that may be left, ``solver`` has M − γG.  Once it is
    ``exhausted`` the space is invariant, and its answers are exact.

    ``constant`` has the M-normalised constant where 1ᵀG = 0.  Forward, increments are M-orthogonal to it and kept so
    explicitly: normalising a small direction would amplify the rounding in it.  Backward, it does not change; from v
    that is mostly constant it is taken out before Gᵀ is applied.
    """

    def __init__(
        self, M: PETSc.Mat, G: PETSc.Mat, solver: LinearSolver, gamma: float, run: Any, allowed: float, largest: int,
        constant: Sequence[PETSc.Vec] = (),
    ):  # fmt: skip
        self.run, self.allowed = run, allowed
        self._checks = [0, 0, 0]  # the last dimensions at which errors were looked at
        self.M, self.solver, self.gamma, self.transpose = M, solver, gamma, run.transpose
        self._kernel = [] if run.transpose else list(constant)
        self.v, self.functionals, self.comm = run.v, run.functionals, M.comm.tompi4py()
        self.m = 0  # dimension in which S is known
        self.H = np.zeros((largest + 1, largest))
        self._basis: list[PETSc.Vec] = []
        self._along: list[float] = []  # VᵀMv
        self._values: list[np.ndarray] = []  # ℓᵀV
        self._small: dict[tuple[int, float], tuple[np.ndarray, np.ndarray]] = {}
        self._work, self._image = M.createVecLeft(), M.createVecLeft()  # the latter: M times the newest basis vector
        M.mult(run.v, self._work)
        self.norm0 = float(np.sqrt(run.v.dot(self._work)))
        changing = run.v.copy()
        mean = self._work.dot(constant[0]) if run.transpose and constant else 0.0
        if abs(mean) > 0.5 * self.norm0:  # else v is not much of a constant, and the subtraction would cost digits
            changing.axpy(-mean, constant[0])
        (G.multTranspose if run.transpose else G.mult)(changing, self._work)
        u = self._solve(self._work)
        self._orthogonalise(u)
        self.beta = self._append(u)
        self.exhausted = self.beta <= 1e-15 * self.norm0  # v is stationary

    def extend(self) -> None:
        """One solve, orthogonalised twice by classical Gram-Schmidt: four reductions whatever m (collective)."""
        j = self.m
        w = self._solve(self._image)
        self.H[: j + 1, j] = self._orthogonalise(w) + self._orthogonalise(w)
        norm = self._append(w)
        self.H[j + 1, j] = norm
        self.m += 1
        self.exhausted = norm <= INVARIANT * float(np.linalg.norm(self.H[: j + 1, j]))

    def _orthogonalise(self, w: PETSc.Vec) -> np.ndarray:
        """Subtract from ``w`` its components in kernel and basis; return the latter."""
        space = self._kernel + self._basis
        if not space:
            return np.zeros(0)
        self.M.mult(w, self._work)
        h = np.asarray(self._work.mDot(space))
        w.maxpy(-h, space)
        return h[len(self._kernel) :]

    def _solve(self, b: PETSc.Vec) -> PETSc.Vec:
        x = b.duplicate()
        self.solver.solve(b, x, transpose=self.transpose)
        return x

    def _append(self, w: PETSc.Vec) -> float:
        """Normalise ``w`` and make it the next basis vector; return its norm."""
        self.M.mult(w, self._image)
        squared, along = self._image.mDot([w, self.v])
        norm = float(np.sqrt(squared))
        factor = 1.0 / norm if norm > 0 else 0.0
        w.scale(factor)
        self._image.scale(factor)
        self._basis.append(w)
        self._along.append(float(along) * factor)
        self._values.append(dots(w, self.functionals))
        return norm

    def small(self, s: float, m: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients of v(s) − v in the first m basis vectors, and those of its integral over (0, s).

        f_s(z) = sφ₁(sz) − γ(e^{sz} − 1) and ∫₀ˢf = s²φ₂(sz) − γs(φ₁(sz) − 1): no term grows with |z|, and the three
        functions come from one bordered exponential (A. Al-Mohy, N. Higham, SIAM J. Sci. Comput. 33 (2011) 488).
        """
        m = self.m if m is None else m
        if (m, s) not in self._small:  # rank 0 computes, so that no rank decides by other digits than the rest
            self._small[m, s] = self.comm.bcast(self._exponential(s, m) if self.comm.rank == 0 else None)
        return self._small[m, s]

    def _exponential(self, s: float, m: int) -> tuple[np.ndarray, np.ndarray]:
        e1 = np.eye(m, 1)[:, 0]
        B = np.zeros((m + 2, m + 2))
        try:
            with np.errstate(all="ignore"):
                B[:m, :m] = s / self.gamma * (np.eye(m) - np.linalg.inv(self.H[:m, :m]))
                B[:1, m] = B[m, m + 1] = 1.0
                E = scipy.linalg.expm(B)
        except (np.linalg.LinAlgError, ValueError):  # singular or not finite: the next dimension will do
            E = np.full((m + 2, m + 2), np.nan)
        f = s * E[:m, m] - self.gamma * (E[:m, 0] - e1)
        integral = s * s * E[:m, m + 1] - self.gamma * s * (E[:m, m] - e1)
        return self.beta * f, self.beta * integral

    def norm(self, s: float) -> float:
        """M-norm of v(s) from the small space; 0 where cancellation hides it, below 1e-7 of that of v."""
        y = self.small(s)[0]
        squared = self.norm0**2 + 2 * y @ np.array(self._along[: self.m]) + y @ y
        return float(np.sqrt(squared)) if squared > 1e-14 * self.norm0**2 else 0.0

    def slowest(self, zero: float) -> float:
        """Smallest |eigenvalue| of A found above ``zero`` / γ, that of a conserved mode, or ∞; same on all ranks."""
        H = self.H[: self.m, : self.m]
        w = np.linalg.eigvals(H) if np.isfinite(H).all() else np.zeros(0)
        z = np.abs(1 - 1 / w[w != 0])
        return float(self.comm.bcast(z[z > zero].min(initial=np.inf))) / self.gamma

    def integrals(self, s: float) -> np.ndarray:
        """∫₀ˢ ℓᵀv for each functional (collective)."""
        base = s * dots(self.v, self.functionals)
        return base + self.small(s)[1] @ np.reshape(self._values[: self.m], (self.m, len(self.functionals)))

    def at(self, s: float) -> PETSc.Vec:
        """v(s) as a new vector (collective)."""
        v = self.v.copy()
        if self.m:
            v.maxpy(self.small(s)[0], self._basis[: self.m])
        return v

    # -- When it is large enough

    def build(self, outputs: list[float], stop: float) -> float:
        """Extend until errors are small, rounding, or the space full; the time up to which it can be used."""
        watched = sorted({*outputs[:1], *outputs[len(outputs) // 2 :][:1], stop})
        total = self.H.shape[1]
        for m in progress(range(1, total + 1), f"evolution to t = {stop:.4g}, solve", total):
            if self.exhausted:
                break
            self.extend()
            if m >= 4 and m - self._checks[-1] >= max(2, m // 8):
                self._checks = [*self._checks[1:], m]
                if self._checks[0] and all(self.truncation(t) <= self.allowed / 2 for t in watched):
                    break
        return stop if all(self.error(t) <= self.allowed for t in watched) else self._reached(outputs, stop)

    def _reached(self, outputs: list[float], stop: float) -> float:
        """The latest time before ``stop`` with a small error that leaves no bad output behind; else the beginning."""
        candidates = {*outputs, *(self.run.t + (stop - self.run.t) / 2.0**k for k in range(1, 12))}
        for t in sorted(candidates, reverse=True):
            if all(self.error(s) <= self.allowed for s in (t, *(s for s in outputs[:1] if s < t))):
                return t
        return self.run.t

    def error(self, t: float) -> float:
        """Estimated error of v(t), rounding included; the same on all ranks (collective)."""
        scale = self.norm(t - self.run.t)
        rounding = ROUNDING * self.norm0 / max(scale, FLOOR * self.run.largest)
        return self.truncation(t) + self.comm.bcast(rounding)

    def truncation(self, t: float) -> float:
        """Estimated error of v(t) and of the integrals without rounding; the same on all ranks (collective).

        From the last three checks: the difference between two dimensions bounds the larger one's error while
        convergence is at least geometric with ratio 1/2; where it is slower (smooth data under transport) the geometric
        tail is added.
        """
        if self.exhausted:
            return 0.0
        new, old = self._difference(t, *self._checks[:0:-1]), self._difference(t, *self._checks[1::-1])
        ratio = new / old if 0 < old < np.inf else 0.0
        estimate = new * min(max(1.0, ratio / max(1 - ratio, 1e-3)), 10.0) if np.isfinite(new) else np.inf
        return float(self.comm.bcast(estimate))  # sums may round differently where memory is aligned differently

    def _difference(self, t: float, m: int, k: int) -> float:
        """Relative difference of v(t), or of an integral, as the spaces of dimension m > k give it."""
        s = t - self.run.t
        dy, dY = (a.copy() for a in self.small(s, m))
        for d, smaller in zip((dy, dY), self.small(s, k), strict=True):
            d[:k] -= smaller
        lost = ROUNDING / self.allowed * self.norm0  # more dimensions would not make v(t) relatively exact
        error = np.linalg.norm(dy) / max(self.norm(s), FLOOR * self.run.largest, lost)
        if self.functionals:
            total = abs(self.run.integrals + self.integrals(s))
            error = max(error, *(abs(dY @ self._values[:m]) / np.maximum(total, self.run.scales)))
        return float(error)


def dots(v: PETSc.Vec, functionals: Sequence[PETSc.Vec]) -> np.ndarray:
    """ℓᵀv for each functional (collective)."""
    return np.asarray(v.mDot(functionals)) if functionals else np.zeros(0)


def conserved_constant(M: PETSc.Mat, G: PETSc.Mat) -> list[PETSc.Vec]:
    """The M-normalised constant if mass is conserved (1ᵀG = 0 to rounding): increments are orthogonal to it."""
    ones, flux = G.createVecLeft(), G.createVecRight()
    ones.set(1.0)
    G.multTranspose(ones, flux)
    lost = flux.norm(PETSc.NormType.INFINITY)
    M.mult(ones, flux)
    ones.scale(1.0 / float(np.sqrt(ones.dot(flux))))
    return [ones] if lost <= 1e-11 * G.norm(PETSc.NormType.INFINITY) else []
