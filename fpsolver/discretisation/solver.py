"""The linear solver of exit problems, what leaves and what a density has in all, and what answers report."""

from collections.abc import Hashable
from typing import Any

from petsc4py import PETSc

import ufl

from .. import _petsc
from .assembly import assemble_vector, make_vector
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
    """Direct; multigrid for continuous elements on tetrahedra above 50 000 unknowns, where it takes 33 µs for each."""
    if gen.domain.dim == 3 and gen.weak.scheme.multigrid and gen.G.getSize()[0] > 50_000:
        return _petsc.multigrid_preset()
    return _petsc.direct_preset(gen.G.comm, gen.domain.dim)


def statistics(gen: Generator) -> dict[str, Any]:
    """Size and scheme, for answers."""
    tables = [t.error for t in gen.weak.space.tables.values()]
    tabulated = {"tabulation_error": max(tables)} if tables else {}
    size = gen.V.dofmap.index_map.size_global
    return {"unknowns": size, "scheme": gen.scheme, "degree": gen.degree, **tabulated}


def exit_vector(gen: Generator, g: Any, part: str) -> PETSc.Vec:
    """ℓ_i = backward data ``g`` tested with φ_i on one part; ℓᵀp is its outflux for g = 1 (collective)."""
    v = ufl.TestFunction(gen.V)
    return assemble_vector(gen, gen.weak.exit_data(g, v, gen.territory.facets((part,))))


@derived
def exit_flux(gen: Generator, part: str) -> PETSc.Vec:
    """Vector ℓ with ℓᵀp = mass per time that the density p loses through ``part`` (collective)."""
    return exit_vector(gen, gen.weak.space.constant(1.0), part)


@derived
def total_flux(gen: Generator) -> PETSc.Vec:
    """−Gᵀ1: all that leaves, also where named parts overlap (collective)."""
    ones, flux = gen.G.createVecLeft(), gen.G.createVecRight()
    ones.set(1.0)
    gen.G.multTranspose(ones, flux)
    flux.scale(-1.0)
    return flux


@derived
def basis_integrals(gen: Generator) -> PETSc.Vec:
    """m_i = ∫ w φ_i, so that mᵀp is the mass of a density (collective)."""
    return make_vector(gen.V, gen._forms.bind(gen._forms.integral, gen.weak, gen._own))
