"""Langevin dynamics, a potential and a temperature; isotropic noise added to any process."""

from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Self, TypeVar

import numpy as np
import ufl
from ufl.core.expr import Expr

from .._arguments import check_positive, expect, is_number
from .fields import Space
from .process import Coefficients, Process, on_phase_space

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

    The loss f is a scalar source and may be called ``potential``; ``parameters`` as of :class:`~fpsolver.Process`.
    """

    loss: Any
    temperature: float

    def __post_init__(self) -> None:
        super().__post_init__()
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

    The invariant density is ∝ e^{−E/T} with the energy E = U + m|v|²/2 (Gibbs), for every friction γ, a rate.  The loss
    U, of x alone, may be called ``potential``; ``parameters`` as of :class:`~fpsolver.Process`.
    """

    copies = 2
    kinetic = True

    loss: Any
    temperature: float
    friction: float
    mass: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("temperature", "friction", "mass"):
            check_positive(f"UnderdampedLangevin: {name}", getattr(self, name))

    def coefficients(self, space: Space) -> Coefficients:
        """b = (v, −γv − ∇U/m), D = diag(0, γT/m)."""
        T, gamma, m = (space.parameter(name, getattr(self, name)) for name in ("temperature", "friction", "mass"))
        D = gamma * T / m * ufl.Identity(space.dim)
        return on_phase_space(space, gamma, space.grad(self.loss_on(space)) / m, D)

    def energy(self, space: Space) -> Expr:
        """E = U + m|v|²/2."""
        U, whole = self.loss_on(space), super().energy(space)
        assert whole is not None  # there is a potential
        return U + space.parameter("mass", self.mass) * (whole - U)


def _of_process(name: str) -> Any:
    """What the process answers."""
    return property(lambda self: getattr(self.process, name))


@dataclass(frozen=True)
class Noisy(Process):
    """A process with additional isotropic noise √(2δ) dB: D + δI, in all coordinates, and the same drift.

    δ >= 0 is a parameter, so that a sequence of δ takes one symbolic assembly: ``gen.replace(delta=...)``.
    """

    process: Process
    delta: float

    def __post_init__(self) -> None:
        if not isinstance(self.process, Process) or isinstance(self.process, Noisy):
            raise TypeError(f"Noisy: a process was expected that is not noisy yet, not {type(self.process).__name__}.")
        valid = is_number(self.delta) and 0 <= self.delta < np.inf
        expect("Noisy: delta", self.delta, "a finite number of at least 0", valid)
        object.__setattr__(self, "parameters", self.process.parameters)

    scaling, copies, kinetic, timed = map(_of_process, ("scaling", "copies", "kinetic", "timed"))
    time_per_step, space, noise, loss = map(_of_process, ("time_per_step", "space", "noise", "loss"))
    loss_on, loss_source, energy = map(_of_process, ("loss_on", "loss_source", "energy"))

    temperature = property(lambda self: float(self.process.temperature + self.delta))

    def isotropic_diffusion(self) -> float | None:
        """That of the process and δ."""
        return None if (level := self.process.isotropic_diffusion()) is None else level + float(self.delta)

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
