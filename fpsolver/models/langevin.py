"""Langevin dynamics: a potential and a temperature."""

from dataclasses import dataclass, field
from typing import Any

import ufl
from ufl.core.expr import Expr

from .._arguments import check_positive
from .fields import Space
from .process import Coefficients, Process, own_numbers


@dataclass(frozen=True)
class Langevin(Process):
    """Overdamped Langevin: b = −∇f, D = temperature · I, with invariant density ∝ e^{−f/temperature}.

    Attributes:
        loss: scalar source f.
        temperature: ε.
        parameters: numbers by name, as of :class:`SDE`.
    """

    loss: Any
    temperature: float
    parameters: Any = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        own_numbers(self)
        check_positive("Langevin: temperature", self.temperature)

    def coefficients(self, space: Space) -> Coefficients:
        """β = −∇f."""
        D = space.parameter("temperature", self.temperature) * ufl.Identity(space.dim)
        return Coefficients(D, -space.grad(self.loss_on(space)))

    def isotropic_diffusion(self) -> float:
        """The temperature."""
        return float(self.temperature)

    def potential(self, space: Space) -> Expr:
        """U = f / temperature (Gibbs)."""
        return self.loss_on(space) / space.parameter("temperature", self.temperature)
