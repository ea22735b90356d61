"""The operator of exit problems, with or without killing, factorised once."""

from dataclasses import dataclass
from typing import Any

from petsc4py import PETSc

import numpy as np
import ufl

from .._petsc import LinearSolver, Options
from ..discretisation.generator import Generator
from ..models.fields import is_number


def is_killed(killing: Any) -> bool:
    """Whether a killing rate is anything but the number zero."""
    return not (is_number(killing) and killing == 0)


def _same(a: Any, b: Any) -> bool:
    return a is b or (is_number(a) and is_number(b) and a == b)


@dataclass(frozen=True)
class _Killed:
    """A killed operator that its generator keeps."""

    rate: Any
    options: Options
    solver: LinearSolver

    def destroy(self) -> None:
        self.solver.A.destroy()
        self.solver.destroy()


def backward_operator(gen: Generator, killing: Any, options: Options | None, name: str) -> LinearSolver:
    """G, or G − S with S_ij = ∫ s φ_i φ_j, factorised: transposed and negated, L − s (collective).

    Of the killed operators a generator keeps the last one.
    """
    if not is_killed(killing):
        return gen.solver(name, options)
    merged = {**gen.options, **(options or {})}
    known = gen.cache.get("killed")
    if known and known.options == merged and _same(known.rate, killing):
        return known.solver
    if known:
        gen.cache.pop("killed").destroy()
    A = gen.G.copy()
    if is_number(killing):
        A.axpy(-float(killing), gen.M, PETSc.Mat.Structure.SUBSET_NONZERO_PATTERN)
    else:
        p, v = ufl.TrialFunction(gen.V), ufl.TestFunction(gen.V)
        S = gen.assemble_matrix(gen.weak.mass(gen.space.scalar(killing, "killing") * p, v))
        A.axpy(-1.0, S, PETSc.Mat.Structure.SUBSET_NONZERO_PATTERN)
        S.destroy()
    if not np.isfinite(A.norm(PETSc.NormType.FROBENIUS)):
        A.destroy()
        raise ValueError(f"{name}: the killing rate is not finite (NaN or inf) somewhere on the domain.")
    solver = LinearSolver(A, "fp_exit_", name, gen.exit_preset(), merged)
    gen.cache["killed"] = _Killed(killing, merged, solver)
    return solver
