"""What keeps exit problems from printing numbers that mean nothing."""

from typing import Any

from petsc4py import PETSc

import numpy as np

from .._errors import NotConverged
from .._log import logger
from .._petsc import LinearSolver, Options
from ..discretisation.generator import Generator
from .reach import closed_classes

NEGATIVE = "DIVERGED_NEGATIVE"  # the reason of an answer of the wrong sign


def need_exit(gen: Generator, name: str) -> None:
    """Refuse a question about leaving where nothing absorbs."""
    if not gen.absorbing:
        raise ValueError(
            f"{name}: nothing absorbs, so the process never leaves. Give the generator absorbing parts; "
            f"the domain has {', '.join(gen.domain.parts) or 'none'}."
        )


def check_reach(gen: Generator, name: str) -> None:
    """Refuse a degenerate process that may stay in the domain for ever, with the place (collective).

    Raises:
        ValueError: the control graph has closed classes.
    """
    if gen.survey.degenerate and (found := closed_classes(gen)).closed:
        raise ValueError(
            f"{name}: exit is not certain, so exit times are infinite: {found.reason()}. Add noise there, declare the "
            "place as absorbing, leave it out of the domain, or add a killing rate."
        )


def check_certain_exit(gen: Generator, name: str, options: Options | None) -> bool:
    """Refuse exit data where paths may stay for ever: the answer with data 1 must be 1, as constants solve Lu = 0."""
    one, data = gen.G.createVecRight(), gen.G.createVecLeft()
    one.set(1.0)
    gen.G.multTranspose(one, data)
    gen.solver(name, options).solve(data, one, transpose=True)
    one.shift(-1.0)
    deviation = one.norm(PETSc.NormType.INFINITY)
    for v in (one, data):
        v.destroy()
    if not deviation < 1e-6:
        raise ValueError(
            f"{name}: exit is not certain. With data 1 on the whole absorbing boundary the answer should be 1, and it "
            f"is off by {deviation:.2g}: the process stays for ever in a part of the domain, or leaves it too slowly "
            "for double precision. Add noise there, or a killing rate."
        )
    return True


def check_sign(gen: Generator, name: str, u: PETSc.Vec, solver: LinearSolver) -> None:
    """Refuse an answer to non-negative data that is mainly negative (collective).

    Undershoots of a third of the maximum were seen at grazing points on the coarsest meshes; where a mesh misses a
    barrier, or exit is not certain in a way that the control graph cannot see, the sign is a matter of chance.
    """
    lowest, highest = u.min()[1], u.max()[1]
    if lowest < -0.5 * max(highest, 0.0):
        advice = (
            f"It cannot be negative, but lies between {lowest:.3g} and {highest:.3g}: the mesh resolves nothing of it "
            "(refine it, or take scheme='weighted' if the invariant density is known), or the process may stay for "
            "ever near points without noise (D = 0), where the answer is infinite."
        )
        raise NotConverged(name, NEGATIVE, solver.iterations, solver.residual, solver.prefix, advice)


def check_roundoff(gen: Generator, name: str, stats: dict[str, Any], solver: LinearSolver) -> None:
    """Refuse an answer that rounding has made meaningless.

    The estimate exceeded the true error by 10 to 50 on double wells from τ = 1e3 to 1e22, and reached one before the
    last correct digit was gone.
    """
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
