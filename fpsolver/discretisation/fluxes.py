"""Linear functionals of a density: its mass, and what leaves through absorbing parts."""

from typing import Any

from petsc4py import PETSc

import ufl

from .assembly import assemble_vector
from .generator import Generator, derived


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
    return gen.integrate_basis()
