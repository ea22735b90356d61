"""Langevin dynamics: a potential and a temperature."""

from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeVar

import ufl
from ufl.core.expr import Expr

from .._arguments import check_positive
from .fields import Space
from .process import Coefficients, Process, on_phase_space, own_numbers

C = TypeVar("C", bound=type[Process])


def _with_potential(cls: C) -> C:
    """Let the loss be called potential as well."""
    made = cls.__init__

    @wraps(made)
    def init(self: Any, *given: Any, **named: Any) -> None:
        made(self, *given, **{"loss" if name == "potential" else name: value for name, value in named.items()})

    cls.__init__ = init  # type: ignore[method-assign, assignment]
    return cls


@_with_potential
@dataclass(frozen=True)
class Langevin(Process):
    """Overdamped Langevin: b = −∇f, D = temperature · I, with invariant density ∝ e^{−f/temperature}.

    Attributes:
        loss: scalar source f; as an argument it may be called ``potential``.
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


@_with_potential
@dataclass(frozen=True)
class UnderdampedLangevin(Process):
    """dX = V dt, dV = −(γ V + ∇U/m) dt + √(2γT/m) dW on (x, v): noise in v only.

    The invariant density is ∝ e^{−E/T} with the energy E = U + m|v|²/2 (Gibbs), for every friction.

    Attributes:
        loss: U, a scalar source of x, half of the coordinates; as an argument it may be called ``potential``.
        temperature: T.
        friction: γ, a rate.
        mass: m.
        parameters: numbers by name, as of :class:`~fpsolver.SDE`.
    """

    copies = 2
    kinetic = True

    loss: Any
    temperature: float
    friction: float
    mass: float = 1.0
    parameters: Any = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        own_numbers(self)
        for name in ("temperature", "friction", "mass"):
            check_positive(f"UnderdampedLangevin: {name}", getattr(self, name))

    def coefficients(self, space: Space) -> Coefficients:
        """b = (v, −γv − ∇U/m), D = diag(0, γT/m)."""
        T, gamma, m = (space.parameter(name, getattr(self, name)) for name in ("temperature", "friction", "mass"))
        D = gamma * T / m * ufl.Identity(space.dim)
        return on_phase_space(space, gamma, space.grad(self.loss_on(space)) / m, D)

    def energy(self, space: Space) -> Expr:
        """E = U + m|v|²/2."""
        U = self.loss_on(space)
        return U + space.parameter("mass", self.mass) * (super().energy(space) - U)
