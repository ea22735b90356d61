"""Algorithms as maps of their state, for chains and paths; SGD and momentum (sgd.py) are diffusions as well."""

from abc import abstractmethod
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from ufl.core.expr import Expr

from .._arguments import check_positive, expect, is_number
from .fields import Space
from .noise import Noise, PerSample, samples_of
from .process import Coefficients, Process
from .samples import Samples

Array = np.ndarray[Any, Any]
ELSEWHERE = {
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
"""What PyTorch calls otherwise."""


@dataclass(frozen=True)
class Optimiser(Process):
    """An algorithm whose step is a function of its state and of one stochastic gradient.

    Coordinates of the domain are the weights, then other numbers of the state in blocks.

    Attributes:
        loss: scalar source f of the weights; None with a :class:`~fpsolver.PerSample` noise means the mean loss.
        noise: Σ for batches of one sample.
        learning_rate: η.
        batch_size: B (sampled with replacement, unless ``PerSample`` says otherwise).
        parameters: numbers by name, as of :class:`~fpsolver.SDE`.
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

    def _samples(self) -> PerSample | None:
        """Those whose mean is the loss."""
        return samples_of(self.noise) if self.loss is None else None

    def loss_on(self, space: Space) -> Expr | None:
        """The loss, by default the mean of the samples'."""
        samples = self._samples()
        return samples.mean_loss(space) if samples else super().loss_on(space)

    def loss_source(self) -> Any:
        """The loss, or the samples whose mean it is."""
        samples = self._samples()
        if samples is None:
            return self.loss
        return samples.samples if isinstance(samples.samples, Samples) else samples.formulas()

    def gradient(self, space: Space) -> Expr:
        """∇f as UFL."""
        samples = self._samples()
        return samples.mean_gradient(space) if samples else space.grad(self.loss_on(space))


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
