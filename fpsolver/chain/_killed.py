"""One backward equation of a chain, u = f + z (P u + g at exits), which exit times and all their kin are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np

from .._errors import NotConverged
from .._log import logger
from .._petsc import Options
from ..models.fields import is_number
from ._eigen import spectral_radius
from ._solve import PREFIX, Figures, Shell, solve
from ._sources import field
from .chain import Chain

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Question:
    """E[g(X_τ) Π e^{−ηs} + Σ η f Π e^{−ηs}] as of :func:`~fpsolver.feynman_kac`.

    Attributes:
        exit: g by part.
        running: f.
        killing: s.
        name: in messages.
        options: PETSc options without the prefix ``fp_exit_``.
    """

    exit: Mapping[str, Any]
    running: Any = 0.0
    killing: Any = 0.0
    name: str = "expectation"
    options: Options | None = None

    def ask(self, chain: Chain) -> tuple[PETSc.Vec, Figures]:
        """Solve (M − zP) u = M f + z g into a new vector (collective)."""
        eta, z, found = chain.time_per_step, 1.0, chain.assembled
        fields = {
            part: None if is_number(g) else field(chain, g, f"exit data on {part!r}") for part, g in self.exit.items()
        }
        discount = None
        if is_number(self.killing):
            z = float(np.exp(-eta * self.killing))
        else:
            rate = field(chain, self.killing, "killing rate")
            discount = lambda x: np.exp(-eta * rate(x))  # noqa: E731
        if discount is not None or any(f is not None for f in fields.values()):
            found = chain.discounted(discount, tuple(fields.get(part) for part in chain.exits))
        if is_number(self.running):
            rhs = chain.integrals.copy()
            rhs.scale(eta * float(self.running))
        else:
            rhs = chain.load(field(chain, self.running, "running cost"))
            rhs.scale(eta)
        for part, vector in zip(chain.exits, found.exits, strict=True):
            g = self.exit.get(part, 0.0)
            worth = float(g) if is_number(g) else 1.0
            if worth:
                rhs.axpy(z * worth, vector)
        b = rhs.duplicate()
        chain.assembled.inverse.mult(rhs, b)
        rhs.destroy()
        with PETSc.Log.Stage("fpsolver solve"):
            u, figures = solve(Shell(chain.assembled.inverse, found.P, z), b, self.name, self.options)
        b.destroy()
        return u, figures


def check_sound(chain: Chain, name: str, figures: Figures) -> None:
    """Refuse what no chain can give: an operator that is no contraction, digits that are gone.

    Raises:
        NotConverged: with the reason.
    """
    if figures.suspect and (radius := spectral_radius(chain)) >= 1.0:
        raise _failure(
            name, "DIVERGED_NO_CONTRACTION", figures,
            f"The discrete transition operator has an eigenvalue of {radius:.12g}, and one below 1 was expected. "
            "Either no path ever leaves from some part of the domain, or the mesh resolves too little: refine it or "
            "raise the degree.",
        )  # fmt: skip
    if figures.roundoff > 1e-3:
        raise _failure(
            name, "DIVERGED_ROUNDOFF", figures,
            f"Exit takes so many steps that rounding may have changed the answer by {figures.roundoff:.1g} of itself: "
            "take a larger learning rate and extrapolate the logarithm in 1/η.",
        )  # fmt: skip


def check_times(chain: Chain, name: str, tau: PETSc.Vec, figures: Figures) -> None:
    """Refuse exit times that are negative, and those below one step (collective)."""
    m = chain.block
    moments = tau.duplicate()
    chain.M.mult(tau, moments)
    cells, volumes = moments.array_r.reshape(-1, m).sum(axis=1), chain.integrals.array_r.reshape(-1, m).sum(axis=1)
    mean = cells / volumes / chain.time_per_step
    moments.destroy()
    least = chain.domain.comm.allreduce(float(mean.min(initial=np.inf)), op=MPI.MIN)
    if least < 0:
        raise _failure(
            name, "DIVERGED_NEGATIVE", figures,
            f"The mean over a cell is {least:.3g} steps, which cannot be negative: the mesh resolves too little. "
            "Refine it or raise the degree.",
        )  # fmt: skip
    if least < 1 - 1e-6:
        logger.warning("%s: a cell has a mean of %.3g steps, less than one: the mesh is coarse there", name, least)


def _failure(name: str, reason: str, figures: Figures, advice: str) -> NotConverged:
    return NotConverged(name, reason, figures.iterations, figures.residual, PREFIX, advice)
