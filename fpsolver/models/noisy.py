"""Isotropic noise added to a process."""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import ufl
from ufl.core.expr import Expr

from .fields import Space, is_number
from .process import Coefficients, Process


def _of_process(name: str) -> Any:
    """What the process answers."""
    return property(lambda self: getattr(self.process, name))


@dataclass(frozen=True)
class Noisy(Process):
    """A process with additional isotropic noise √(2δ) dB: D + δI, in all coordinates.

    The drift stays.  δ is a parameter, so that a sequence of δ takes one symbolic assembly: ``gen.replace(delta=...)``.

    Attributes:
        process: any process but a noisy one.
        delta: δ, not negative; 0 is the process itself.
    """

    process: Process
    delta: float

    def __post_init__(self) -> None:
        if not isinstance(self.process, Process) or isinstance(self.process, Noisy):
            raise TypeError(f"Noisy: a process was expected that is not noisy yet, not {type(self.process).__name__}.")
        if not is_number(self.delta) or not np.isfinite(self.delta) or self.delta < 0:
            raise ValueError(f"Noisy: delta is {self.delta!r}; a finite number of at least 0 was expected.")

    loss = property(lambda self: self.process.loss_source())
    scaling, copies, kinetic, parameters = map(_of_process, ("scaling", "copies", "kinetic", "parameters"))
    time_per_step, space, noise = map(_of_process, ("time_per_step", "space", "noise"))
    loss_on, loss_source, timed, energy = map(_of_process, ("loss_on", "loss_source", "timed", "energy"))

    @property
    def temperature(self) -> float:
        """That of the process, where it has one, and δ."""
        return float(self.process.temperature + self.delta)  # type: ignore[attr-defined]

    def isotropic_diffusion(self) -> float | None:
        """That of the process and δ."""
        level = self.process.isotropic_diffusion()
        return None if level is None else level + float(self.delta)

    def coefficients(self, space: Space) -> Coefficients:
        """D + δI and the same drifts, as ∇·(δI) = 0."""
        c = self.process.coefficients(space)
        return replace(c, D=c.D + space.parameter("delta", self.delta) * ufl.Identity(c.D.ufl_shape[0]))

    def potential(self, space: Space) -> Expr | None:
        """U D/(D + δ) where the process has a potential U, and hence isotropic noise of constant level D."""
        if (U := self.process.potential(space)) is None:
            return None
        D = self.process.coefficients(space).D[0, 0]
        return U * D / (D + space.parameter("delta", self.delta))

    def numbers(self) -> dict[str, float]:
        """Those of the process and ``"delta"``."""
        return {**self.process.numbers(), "delta": float(self.delta)}

    def with_parameters(self, **changes: float) -> Self:
        """The same process with other numbers."""
        delta = changes.pop("delta", self.delta)
        return replace(self, process=self.process.with_parameters(**changes), delta=delta)
