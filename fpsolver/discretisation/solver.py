"""The linear solver of exit problems, and what answers report about a generator."""

from collections.abc import Hashable
from typing import Any

from petsc4py import PETSc

from .. import _petsc
from .generator import Generator, derived

Key = tuple[tuple[str, Hashable], ...]


def merged(gen: Generator, options: _petsc.Options | None) -> Key:
    """The generator's options and those of one question, which go first, in order."""
    return tuple(sorted({**gen.options, **(options or {})}.items()))


def exit_solver(gen: Generator, what: str, options: _petsc.Options | None = None) -> _petsc.LinearSolver:
    """G factorised (or preconditioned) once, for exit problems (collective)."""
    solver = _factorised(gen, merged(gen, options))
    solver.what = what
    return solver


@derived
def _factorised(gen: Generator, options: Key) -> _petsc.LinearSolver:
    with PETSc.Log.Stage("fpsolver factorise"):
        return _petsc.LinearSolver(gen.G, "fp_exit_", "exit", exit_preset(gen), dict(options))


def exit_preset(gen: Generator) -> dict[str, Any]:
    """Direct below 50 000 unknowns or in 2D; multigrid for continuous elements on tetrahedra above.

    In 3D MUMPS takes 2.3 s at 60 k and 40 s at 269 k unknowns of degree two, BoomerAMG 33 µs per unknown.
    """
    if gen.domain.dim == 3 and gen.weak.scheme.multigrid and gen.G.getSize()[0] > 50_000:
        return _petsc.multigrid_preset()
    return _petsc.direct_preset(gen.G.comm, gen.domain.dim)


def statistics(gen: Generator) -> dict[str, Any]:
    """Size and scheme, for answers."""
    tables = [t.error for t in gen.weak.space.tables.values()]
    tabulated = {"tabulation_error": max(tables)} if tables else {}
    size = gen.V.dofmap.index_map.size_global
    return {"unknowns": size, "scheme": gen.scheme, "degree": gen.degree, **tabulated}
