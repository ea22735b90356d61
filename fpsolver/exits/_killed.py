"""The operator of exit problems, with or without killing, factorised once."""

from typing import Any

from petsc4py import PETSc

import numpy as np
import ufl

from .._petsc import LinearSolver, Options
from ..discretisation.assembly import assemble_matrix
from ..discretisation.generator import Generator, derived
from ..discretisation.solver import Key, exit_preset, exit_solver, merged
from ..models.fields import is_number


def is_killed(killing: Any) -> bool:
    """Whether a killing rate is anything but the number zero."""
    return not (is_number(killing) and killing == 0)


class _Last:
    """The killed operator that was asked for last, which a generator keeps."""

    rate: Any = None
    solver: LinearSolver | None = None

    def of(self, gen: Generator, killing: Any, options: Key, name: str) -> LinearSolver:
        """The operator of this killing rate."""
        if self.solver is None or not _same(self.rate, killing):
            self.destroy()
            self.rate, self.solver = killing, _killed(gen, killing, options, name)
        return self.solver

    def destroy(self) -> None:
        """Free it."""
        if self.solver is not None:
            self.solver.A.destroy()
            self.solver.destroy()
        self.solver = None


def _same(a: Any, b: Any) -> bool:
    return a is b or (is_number(a) and is_number(b) and a == b)


@derived
def _last(gen: Generator, options: Key) -> _Last:
    return _Last()


def backward_operator(gen: Generator, killing: Any, options: Options | None, name: str) -> LinearSolver:
    """G, or G − S with S_ij = ∫ s φ_i φ_j, factorised: transposed and negated, L − s (collective).

    Of the killed operators a generator keeps the last one.
    """
    if not is_killed(killing):
        return exit_solver(gen, name, options)
    key = merged(gen, options)
    return _last(gen, key).of(gen, killing, key, name)


def _killed(gen: Generator, killing: Any, options: Key, name: str) -> LinearSolver:
    A = gen.G.copy()
    if is_number(killing):
        A.axpy(-float(killing), gen.M, PETSc.Mat.Structure.SUBSET_NONZERO_PATTERN)
    else:
        p, v = ufl.TrialFunction(gen.V), ufl.TestFunction(gen.V)
        S = assemble_matrix(gen.weak.mass(gen.weak.space.scalar(killing, "killing") * p, v))
        A.axpy(-1.0, S, PETSc.Mat.Structure.SUBSET_NONZERO_PATTERN)
        S.destroy()
    if not np.isfinite(A.norm(PETSc.NormType.FROBENIUS)):
        A.destroy()
        raise ValueError(f"{name}: the killing rate is not finite (NaN or inf) somewhere on the domain.")
    return LinearSolver(A, "fp_exit_", name, exit_preset(gen), dict(options))
