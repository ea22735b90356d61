"""SGD and momentum, the algorithms that have diffusions."""

from dataclasses import dataclass
from typing import Any, Literal

import ufl
from ufl.core.expr import Expr

from .._arguments import expect
from .fields import Space
from .noise import is_level
from .optimisers import Array, HeavyBall, Optimiser
from .process import Coefficients, on_phase_space


@dataclass(frozen=True)
class SGD(Optimiser):
    """Stochastic gradient descent x' = x − η g, as a diffusion b = −∇f, D = η/(2B) Σ; one step is time η (t = η k).

    Li, Tai, E (2017), stochastic modified equations of order one and two, Itô sense: expectations at a fixed time
    differ from the algorithm's by O(η) or O(η²).  Order two has the drift −∇(f + (η/4)|∇f|²) and the same D.

    Order two is about means on finite times.  Variances are O(η) themselves and right to leading order in both: on
    f = h x²/2 with noise s² the stationary one is η s²/(h(2 − ηh)) for the algorithm, η s²/(2h) for order one and
    η s²/(h(2 + ηh)), no better, for order two.

    Attributes:
        loss, noise, learning_rate, batch_size: f, Σ, η and B, as of every algorithm: f may be None with ``PerSample``.
        order: weak order of the approximation, 1 or 2.
        parameters: numbers by name, as of :class:`~fpsolver.SDE`.
    """

    batch_size: float = 1
    order: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        expect("SGD: order", self.order, "the weak order 1 or 2", self.order in (1, 2))

    def numbers(self) -> dict[str, float]:
        """All that can change without recompiling; the order is none of them."""
        return {name: value for name, value in super().numbers().items() if name != "order"}

    def move(self, state: Array, g: Array) -> Array:
        """One step."""
        return state - self.learning_rate * g

    def _level(self, space: Space) -> Any:
        """η/2B."""
        eta, B = space.parameter("learning_rate", self.learning_rate), space.parameter("batch_size", self.batch_size)
        return eta / (2 * B)

    def coefficients(self, space: Space) -> Coefficients:
        """D = η/(2B) Σ, β = −∇f − ∇·D with the modified f for order two."""
        D = self._level(space) * self.noise.covariance(space)
        drift = -self.gradient(space) if self.order == 1 else -space.grad(self._modified_loss(space))
        return Coefficients(D, drift - ufl.div(D), 1.0, drift if self.order == 1 else None)

    def isotropic_diffusion(self) -> float | None:
        """ηs/2B for isotropic noise of constant level s."""
        s = self.numbers()["s"] if is_level(self.noise) else None
        return None if s is None else self.learning_rate * s / (2 * self.batch_size)

    def _modified_loss(self, space: Space) -> Expr:
        f, g = self.loss_on(space), self.gradient(space)
        eta = space.parameter("learning_rate", self.learning_rate)
        return f if self.order == 1 else f + eta / 4 * ufl.dot(g, g)

    def potential(self, space: Space) -> Expr | None:
        """U = 2Bf/(ηs) for isotropic noise of constant level s; Itô SGD with any other Σ(x) is not Gibbs."""
        if not self.isotropic_diffusion():
            return None
        return self._modified_loss(space) / (self._level(space) * space.parameter("s", self.noise.s))  # type: ignore


@dataclass(frozen=True)
class MomentumSGD(HeavyBall):
    """Heavy-ball SGD as a kinetic process on (x, v), with noise in v only: D is degenerate for every Σ.

    The algorithm v ← μ v − η g, x ← x + v with stochastic gradient g becomes, with V = v/√η and time √η per step,
    dX = V dt, dV = −(γ V + ∇f) dt + (√η Σ/B)^{1/2} dW, γ = (1 − μ)/√η, hence D_v = √η/(2B) Σ.

    Attributes:
        loss, noise, learning_rate: f, Σ and η, of x alone, as of :class:`SGD`.
        momentum: μ in [0, 1).
        batch_size: B.
        parameters: numbers by name, as of :class:`~fpsolver.SDE`.
    """

    kinetic = True

    momentum: float
    batch_size: float = 1

    def coefficients(self, space: Space) -> Coefficients:
        """b = (v, −γv − ∇f), D = diag(0, √η/(2B) Σ(x)); ∇·D = 0 because Σ does not depend on v."""
        root = ufl.sqrt(space.parameter("learning_rate", self.learning_rate))
        B = space.parameter("batch_size", self.batch_size)
        gamma = (1 - space.parameter("momentum", self.momentum)) / root
        return on_phase_space(space, gamma, self.gradient(space), root / (2 * B) * self.noise.covariance(space))
