"""Algorithms as maps of their state, for chains and paths; SGD and momentum are diffusions as well."""

from abc import abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

import numpy as np
import ufl
from ufl.core.expr import Expr

from .._arguments import check_positive, expect, is_number
from .fields import Space
from .noise import Noise, is_level, samples_of
from .process import Coefficients, Process, on_phase_space

Array = np.ndarray[Any, Any]
ELSEWHERE = {  # what PyTorch calls otherwise
    "lr": "the learning rate is learning_rate=",
    "eta": "the learning rate is learning_rate=",
    "momentum": "take fp.MomentumSGD(loss, noise, learning_rate, momentum) or fp.Nesterov",
    "nesterov": "take fp.Nesterov",
    "weight_decay": "add weight_decay / 2 * |x|² to the loss, or to each sample's; fp.Adam has it decoupled",
    "betas": "they are beta1= and beta2=",
    "eps": "it is epsilon=",
    "alpha": "the decay of the mean square is decay=",
    "params": "the weights are the coordinates of the domain",
}


@dataclass(frozen=True)
class Optimiser(Process):
    """An algorithm whose step is a function of its state and of one stochastic gradient.

    Coordinates of the domain are the weights, then other numbers of the state in blocks.

    Attributes:
        loss: scalar source f of the weights; None with a :class:`~fpsolver.PerSample` noise means the mean loss.
        noise: Σ for batches of one sample.
        learning_rate: η.
        batch_size: B (sampled with replacement, unless ``PerSample`` says otherwise).
        parameters: numbers by name, as of :class:`~fpsolver.Process`.
    """

    loss: Any
    noise: Noise
    learning_rate: float

    def __new__(cls, *given: Any, **named: Any) -> Self:
        """Say where arguments are that have these names elsewhere."""
        for name in named:
            if name in ELSEWHERE and name not in (f.name for f in fields(cls)):
                raise TypeError(f"{cls.__name__} has no argument {name!r}: {ELSEWHERE[name]}.")
        return super().__new__(cls)

    @property
    @abstractmethod
    def batch_size(self) -> float:
        """B: a field of every algorithm, in the order of its own arguments."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        super().__post_init__()
        for positive in ("learning_rate", "batch_size", "threshold", "epsilon"):
            check_positive(f"{name}: {positive}", getattr(self, positive, 1.0))
        for share in ("momentum", "decay", "beta1", "beta2"):
            value = getattr(self, share, 0.0)
            expect(f"{name}: {share}", value, "a number in [0, 1)", is_number(value) and 0 <= value < 1)
        if not isinstance(self.noise, Noise):
            kinds = "fp.Isotropic, fp.Covariance, fp.PerSample or a sum of them"
            raise TypeError(f"{name}: noise is a {type(self.noise).__name__}; {kinds} was expected.")
        samples = samples_of(self.noise)
        if samples is not None and samples.size is not None and self.batch_size > samples.size:
            raise ValueError(f"{name}: batch_size is {self.batch_size:g}, but there are only {samples.size} samples.")
        if self.loss is None and samples is None:
            raise ValueError(f"{name}: loss=None needs a fp.PerSample noise, whose mean loss is then taken.")

    @property
    def time_per_step(self) -> float:
        """η."""
        return self.learning_rate

    def look(self, state: Array) -> Array:
        """States (d, ...) whose weights are where the gradient is taken."""
        return state

    @abstractmethod
    def move(self, state: Array, g: Array) -> Array:
        """States (d, ...) after a step with gradients g (weights, ...)."""

    def coefficients(self, space: Space) -> Coefficients:
        """There are none, which is an error."""
        raise TypeError(f"{type(self).__name__} is an algorithm, not a diffusion: ask fp.Chain, or fp.SGD's generator.")

    def loss_source(self) -> Any:
        """The loss, by default the noise whose samples' mean it is."""
        return samples_of(self.noise) if self.loss is None else self.loss

    def gradient(self, space: Space) -> Expr:
        """∇f as UFL."""
        source = self.loss_source()
        return space.grad(self.loss_on(space)) if source is self.loss else source.mean_gradient(space)


@dataclass(frozen=True)
class ClippedSGD(Optimiser):
    """x' = x − η g min(1, c/|g|), c the ``threshold`` (gradient clipping by norm)."""

    batch_size: float = 1
    threshold: float = 1.0

    def move(self, state: Array, g: Array) -> Array:
        """One step."""
        size = np.sqrt((g * g).sum(axis=0))
        return state - self.learning_rate * g * np.minimum(1.0, self.threshold / np.maximum(size, 1e-300))


@dataclass(frozen=True)
class SignSGD(Optimiser):
    """x' = x − η sign(g)."""

    batch_size: float = 1

    def move(self, state: Array, g: Array) -> Array:
        """One step."""
        return state - self.learning_rate * np.sign(g)


class HeavyBall(Optimiser):
    """On (x, V), V = v/√η: what momentum and Nesterov's variant of it share."""

    scaling = ("learning_rate",)
    copies = 2
    momentum: float

    @property
    def time_per_step(self) -> float:
        """√η."""
        return float(np.sqrt(self.learning_rate))

    def move(self, state: Array, g: Array) -> Array:
        """v' = μ v − η g, x' = x + v'."""
        m, root = len(state) // 2, self.time_per_step
        v = self.momentum * state[m:] - root * g
        return np.concatenate((state[:m] + root * v, v))


@dataclass(frozen=True)
class Nesterov(HeavyBall):
    """v' = μ v − η g(x + μ v), x' = x + v' on (x, V), V = v/√η, as :class:`~fpsolver.MomentumSGD`; time √η per step."""

    batch_size: float = 1
    momentum: float = 0.9

    def look(self, state: Array) -> Array:
        """Ahead, at x + μ v."""
        m = len(state) // 2
        return np.concatenate((state[:m] + self.momentum * self.time_per_step * state[m:], state[m:]))


@dataclass(frozen=True)
class RMSprop(Optimiser):
    """s' = β s + (1 − β) g², x' = x − η g/(√s' + ε) on (x, s)."""

    copies = 2

    batch_size: float = 1
    decay: float = 0.99
    epsilon: float = 1e-8

    def move(self, state: Array, g: Array) -> Array:
        """One step."""
        m = len(state) // 2
        s = self.decay * state[m:] + (1 - self.decay) * g * g
        return np.concatenate((state[:m] - self.learning_rate * g / (np.sqrt(np.maximum(s, 0.0)) + self.epsilon), s))


@dataclass(frozen=True)
class Adam(Optimiser):
    """m' = β₁ m + (1 − β₁) g, s' = β₂ s + (1 − β₂) g², x' = (1 − ηλ) x − η m'/(√s' + ε) on (x, m, s).

    Without the correction of the bias at the start, which depends on the number of the step; with ``weight_decay`` λ it
    is AdamW.
    """

    copies = 3

    batch_size: float = 1
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    def move(self, state: Array, g: Array) -> Array:
        """One step."""
        x, first, second = np.split(state, 3)
        first = self.beta1 * first + (1 - self.beta1) * g
        second = self.beta2 * second + (1 - self.beta2) * g * g
        change = first / (np.sqrt(np.maximum(second, 0.0)) + self.epsilon) + self.weight_decay * x
        return np.concatenate((x - self.learning_rate * change, first, second))


@dataclass(frozen=True)
class SGD(Optimiser):
    """Stochastic gradient descent x' = x − η g, as a diffusion b = −∇f, D = η/(2B) Σ; one step is time η (t = η k).

    Li, Tai, E (2017), stochastic modified equations of order one and two, Itô sense: expectations at a fixed time
    differ from the algorithm's by O(η) or O(η²).  Order two has the drift −∇(f + (η/4)|∇f|²) and the same D.

    Order two is about means on finite times; variances, O(η) themselves, are right to leading order in both.

    f may be None with ``PerSample``; ``order`` is the weak order of the approximation.
    """

    batch_size: float = 1
    order: Literal[1, 2] = field(default=1, metadata={"fixed": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        expect("SGD: order", self.order, "the weak order 1 or 2", self.order in (1, 2))

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

    The loss f and the noise Σ are of x alone; ``momentum`` is μ in [0, 1).
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
