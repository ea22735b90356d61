"""The kernel of G and of Gᵀ, and the slowest modes beside it, by block inverse iteration."""

from typing import Any

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt
from scipy import linalg

from .._petsc import LinearSolver, Options, direct_preset
from .._sample import total
from ..discretisation.generator import Generator

Array = npt.NDArray[Any]

_SHIFT = 1e11  # γ‖M⁻¹G‖: modes of rate λ shrink by 1/(1 + γλ), and the shifted matrix keeps five digits
_ITERATIONS = 60
_ROUNDING = 1e-2  # times 1/γ: rates that rounding gives to zero
_SMALLEST_BLOCK, _LARGEST_BLOCK = 6, 48


class Kernel:
    """The slowest modes by block inverse iteration; blocks of vectors have shape (owned unknowns, n) (collective)."""

    def __init__(self, gen: Generator, options: Options | None):
        self.gen, self.options = gen, options
        self.gamma = _SHIFT * gen.M.norm(PETSc.NormType.INFINITY) / gen.G.norm(PETSc.NormType.INFINITY)
        A = gen.G.copy()
        A.scale(-self.gamma)
        A.axpy(1.0, gen.M, PETSc.Mat.Structure.SUBSET_NONZERO_PATTERN)
        preset = direct_preset(A.comm, gen.domain.dim)
        self.solver = LinearSolver(A, "fp_stationary_", "ergodic laws", preset, {**gen.options, **(options or {})})
        self._x, self._y = gen.G.createVecRight(), gen.G.createVecRight()
        self.rates: Array = np.zeros(0)  # |λ| of the modes that count() looked at, the slowest first
        self._blocks: dict[bool, tuple[Array, Array]] = {}

    def mass(self, X: Array) -> Array:
        """M X."""
        return self._apply(lambda: self.gen.M.mult(self._x, self._y), X)

    def _step(self, MX: Array, transpose: bool) -> Array:
        return self._apply(lambda: self.solver.solve(self._x, self._y, transpose), MX)

    def _apply(self, action: Any, X: Array) -> Array:
        columns = []
        for column in X.T:  # a handful
            self._x.array_w[:] = column
            action()
            columns.append(self._y.array_r.copy())
        return np.array(columns).T

    def dot(self, X: Array, Y: Array) -> Array:
        """XᵀY over all ranks (collective)."""
        return total(self.gen.domain.comm, X.T @ Y)

    def _orthonormal(self, X: Array) -> tuple[Array, Array]:
        """X with XᵀMX = I, and MX."""
        for _ in range(2):  # once more for what the first time lost
            X = X / np.sqrt(self.dot(X, self.mass(X)).diagonal())
            values, vectors = np.linalg.eigh(self.dot(X, self.mass(X)))
            X = X @ (vectors / np.sqrt(np.maximum(values, 1e-14 * values[-1])))
        return X, self.mass(X)

    def modes(self, size: int, transpose: bool) -> Array:
        """Complex rates of the slowest modes, sorted by size; their vectors are kept for :meth:`basis`."""
        n = self._x.local_size
        rng = np.random.default_rng(self.gen.domain.comm.rank)
        X, MX = self._orthonormal(rng.standard_normal((n, size)))
        before = np.full(size, np.inf)
        for _ in range(_ITERATIONS):
            Y = self._step(MX, transpose)
            T = self.dot(MX, Y)
            rates = (1 - 1 / np.linalg.eigvals(T)) / self.gamma
            rates = rates[np.argsort(abs(rates))]
            X, MX = self._orthonormal(Y)
            change = abs(abs(rates) - before)[: size // 2 + 1]
            before = abs(rates)
            if (change <= np.maximum(1e-4 * before[: size // 2 + 1], _ROUNDING / self.gamma)).all():
                break
        self._blocks[transpose] = X, MX
        return rates

    def count(self, tolerance: float | None) -> int:
        """How many rates are zero."""
        n = self.gen.G.getSize()[0]
        size = min(_SMALLEST_BLOCK, n)
        while True:
            self.rates = abs(self.modes(size, transpose=False))
            zero = self.rates <= max(_ROUNDING / self.gamma, tolerance or 0.0)
            if tolerance is None and size < n:
                zero |= self._unknown(size)
            count = int(np.argmin(zero)) if not zero.all() else size
            if count <= size // 2:
                break
            if size in (n, _LARGEST_BLOCK):
                raise ValueError(
                    f"ergodic_laws: {count} or more invariant laws. Where drift and noise both vanish on a set, each "
                    "of its points is one; otherwise a smaller tolerance tells slow from invariant."
                )
            size = min(2 * size, n, _LARGEST_BLOCK)
        if tolerance is None and not 10 * self.rates[count - 1] < self.rates[count]:
            raise ValueError(
                f"ergodic_laws: rates {self.rates[: count + 1]} have no gap between zero and the others. Refine the "
                "mesh, or say with tolerance= up to which rate a mode counts as invariant."
            )
        return max(count, 1)

    def _unknown(self, size: int) -> Array:
        """Which rates change by a factor of two or more with the degree, lowered and raised by one."""
        gen = self.gen
        low, high = self.rates.copy(), self.rates.copy()
        # one neighbour would not do: where a mesh leaks, rates of two degrees in a row may agree by chance
        for degree in (gen.degree - 1, gen.degree + 1) if gen.degree > 1 else (2, 3):
            with gen.with_degree(degree) as other:
                found = abs(Kernel(other, self.options).modes(min(size, other.G.getSize()[0]), transpose=False))
            m = min(len(found), size)
            low[:m], high[:m] = np.minimum(low[:m], found[:m]), np.maximum(high[:m], found[:m])
        return high >= 2 * low

    def basis(self, count: int, transpose: bool) -> Array:
        """Real basis of the ``count`` slowest modes of G or Gᵀ."""
        if transpose:
            self.modes(self._blocks[False][0].shape[1], True)
        X, MX = self._blocks[transpose]
        T = self.dot(MX, self._step(MX, transpose))
        sizes = np.sort(abs(np.linalg.eigvals(T)))[::-1]
        least = np.sqrt(sizes[count - 1] * sizes[count])
        _, vectors, found = linalg.schur(T, output="real", sort=lambda a, b=0.0: np.hypot(a, b) > least)
        assert found == count
        return X @ vectors[:, :count]
