"""What keeps exit problems from printing numbers that mean nothing."""

from typing import Any

from petsc4py import PETSc

import basix
import numpy as np

from .._errors import NotConverged
from .._log import logger
from .._petsc import LinearSolver, Options
from .._sample import cell_type, smallest, values
from ..chain import Chain
from ..chain.refinement import NEGATIVE
from ..discretisation.generator import Generator, derived
from ..discretisation.metastable import estimated_rate, slowest_mode
from ..discretisation.solver import Key, basis_integrals, exit_preset, exit_solver, merged
from ..models.fields import is_number
from .reach import closed_classes

_POWERS, _SETTLED = 500, 1e-8  # iterations for the principal eigenvalue, and its last relative change


def need_exit(gen: Generator | Chain, name: str) -> None:
    """Refuse a question about leaving where nothing absorbs."""
    if not gen.absorbing:
        raise ValueError(
            f"{name}: nothing absorbs, so the process never leaves. Give the {type(gen).__name__.lower()} absorbing "
            f"parts; the domain has {', '.join(gen.domain.parts) or 'none'}."
        )


def check_reach(gen: Generator, name: str, killing: Any = 0.0) -> None:
    """Refuse a degenerate process that may stay in the domain for ever, where nothing kills it (collective)."""
    if not gen.survey.degenerate or (is_number(killing) and killing > 0):
        return
    where = None if is_number(killing) else sampled_killing(gen, killing).max(axis=1) > 0
    if (found := closed_classes(gen, where)).closed:
        raise ValueError(
            f"{name}: exit is not certain, so exit times are infinite: {found.reason()}. Add noise there, declare the "
            "place as absorbing, leave it out of the domain, or add a killing rate."
        )


def check_certain_exit(gen: Generator, name: str, options: Options | None) -> None:
    """Refuse exit data where paths may stay for ever: the answer with data 1 must be 1, as constants solve Lu = 0."""
    deviation = _deviation_from_one(gen, merged(gen, options))
    if not deviation < 1e-6:
        raise ValueError(
            f"{name}: exit is not certain. With data 1 on the whole absorbing boundary the answer should be 1, and it "
            f"is off by {deviation:.2g}: the process stays for ever in a part of the domain, or leaves it too slowly "
            "for double precision. Add noise there, or a killing rate."
        )


@derived
def _deviation_from_one(gen: Generator, options: Key) -> float:
    one, data = gen.G.createVecRight(), gen.G.createVecLeft()
    one.set(1.0)
    gen.G.multTranspose(one, data)
    exit_solver(gen, "exit probability", dict(options)).solve(data, one, transpose=True)
    one.shift(-1.0)
    return float(one.norm(PETSc.NormType.INFINITY))


def sampled_killing(gen: Generator, killing: Any) -> np.ndarray:
    """The killing rate at points of this rank's own cells, shape (cells, points)."""
    mesh = gen.domain.mesh
    inside = basix.make_quadrature(cell_type(mesh), max(4, 2 * gen.degree))[0]
    rate = gen.weak.space.scalar(killing, "killing")
    return values(mesh, [rate], np.concatenate([inside, basix.geometry(cell_type(mesh))]))[..., 0]


def check_growth(gen: Generator, killing: Any, solver: LinearSolver, name: str, options: Options | None) -> None:
    """Refuse a negative killing rate that outgrows the process' leaving: expectations are infinite (collective).

    They are finite just when the principal eigenvalue of s − L is positive.  With σ ≤ min s the operator s − σ − L has
    a positive inverse, whose largest eigenvalue 1/(λ − σ) belongs to a positive function: iterated from 1, it is found
    whatever the data of the question, and however far below zero λ is.  ``solver`` has G − S.
    """
    lowest = smallest(gen.domain.comm, killing if is_number(killing) else sampled_killing(gen, killing))
    if not lowest < 0:
        return
    if not is_number(killing):
        shifted = solver.A.copy()
        shifted.axpy(lowest, gen.M, PETSc.Mat.Structure.SUBSET_NONZERO_PATTERN)
        key = dict(merged(gen, options))
        rate = lowest + _principal_rate(gen, LinearSolver(shifted, "fp_exit_", name, exit_preset(gen), key))
    else:
        rate = lowest + (_leaving_rate(gen, name, options) if gen.absorbing else 0.0)
    if not rate > 0:
        raise ValueError(
            f"{name}: infinite. The killing rate is {lowest:.6g} at its lowest, and the process leaves too slowly: the "
            f"principal eigenvalue of s − L is {rate:.6g}, where a positive one was expected. "
            + (f"Take a killing rate above {lowest - rate:.6g}." if is_number(killing) else "Raise the killing rate.")
        )


def _leaving_rate(gen: Generator, name: str, options: Options | None) -> float:
    """Rate of the slowest decay without killing; zero where it is lost in rounding (collective)."""
    if gen.survey.degenerate and closed_classes(gen).closed:
        return 0.0
    if not gen.weak.scheme.by_capacities:
        return _principal_rate(gen, exit_solver(gen, name, options))
    try:
        return slowest_mode(gen, options)[0]
    except NotConverged:  # several modes are as slow
        return estimated_rate(gen)


def _principal_rate(gen: Generator, solver: LinearSolver) -> float:
    """The eigenvalue of −A of smallest real part, of which the inverse is positive; zero if lost in rounding."""
    v, image = gen.G.createVecRight(), gen.G.createVecLeft()
    v.set(1.0)
    size, rate = float(basis_integrals(gen).dot(v)), np.inf
    for _ in range(_POWERS):
        gen.M.mult(v, image)
        image.scale(-1.0 / size)
        solver.solve(image, v, transpose=True)
        size = float(basis_integrals(gen).dot(v))
        if not 0 < size < np.inf:
            return 0.0
        before, rate = rate, 1.0 / size
        if abs(rate - before) < _SETTLED * rate:
            break
    return rate


def check_sign(name: str, u: PETSc.Vec, solver: LinearSolver) -> None:
    """Refuse an answer to non-negative data that is mainly negative (collective)."""
    # undershoots of a third of the maximum were seen at grazing points; where a barrier is missed the sign is chance
    lowest, highest = u.min()[1], u.max()[1]
    if lowest < -0.5 * max(highest, 0.0):
        advice = (
            f"It cannot be negative, but lies between {lowest:.3g} and {highest:.3g}: the mesh resolves nothing of it "
            "(refine it, or take scheme='weighted' if the invariant density is known), or the process may stay for "
            "ever near points without noise (D = 0), where the answer is infinite."
        )
        raise NotConverged(name, NEGATIVE, solver.iterations, solver.residual, solver.prefix, advice)


def check_roundoff(gen: Generator, name: str, stats: dict[str, Any], solver: LinearSolver) -> None:
    """Refuse an answer that rounding made meaningless: on double wells the estimate was 10 to 50 times the error."""
    stats["digits"] = int(np.clip(-np.log10(max(stats["roundoff"], 1e-16)), 0, 15))
    if not stats["roundoff"] <= 1:
        if (found := closed_classes(gen)).closed:
            raise ValueError(f"{name} is infinite: {found.reason()}.")
        advice = (
            "Exit takes longer than double precision resolves: rounding alone may have changed every digit (estimate "
            f"{stats['roundoff']:.2g}). Take scheme='weighted' if the invariant density is known (Langevin); otherwise "
            "raise the noise, and extrapolate the logarithm of the answer."
        )
        raise NotConverged(name, "DIVERGED_ROUNDOFF", solver.iterations, solver.residual, solver.prefix, advice)
    if stats["roundoff"] > 1e-3:
        logger.warning("%s: rounding may have caused a relative error of %.1e", name, stats["roundoff"])
