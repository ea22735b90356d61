"""Algorithms other than plain SGD, as maps of their state: Nesterov, RMSprop, Adam, clipping, sign descent.

They are chains, not diffusions: :class:`~fpsolver.Chain` and ``simulate(method="sgd")`` take them.
"""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Never

import numpy as np

from .fields import Space, is_number
from .noise import Noise
from .process import Process, check_sgd

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Optimiser(Process):
    """An algorithm whose step is a function of its state and of one stochastic gradient.

    Attributes:
        loss: scalar source f; None with ``PerSample``: the mean loss.
        noise: of the gradient.
        learning_rate: η.
        batch_size: B.
        parameters: numbers by name, as of :class:`~fpsolver.SGD`.
    """

    copies: ClassVar[int] = 1
    """Numbers of state per weight: coordinates of the domain are the weights, then the others in blocks."""

    loss: Any
    noise: Noise
    learning_rate: float
    batch_size: float = 1
    parameters: Any = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_sgd(self)

    @property
    def time_per_step(self) -> float:
        """Time of one step: η."""
        return self.learning_rate

    def weights(self, dim: int) -> int:
        """Number of weights of a state of ``dim`` coordinates.

        Raises:
            ValueError: ``dim`` is no multiple of the numbers per weight.
        """
        if dim % self.copies:
            raise ValueError(
                f"{type(self).__name__} has {self.copies} coordinates per weight: the domain's dimension must be a "
                f"multiple of that, it is {dim}."
            )
        return dim // self.copies

    def look(self, state: Array) -> Array:
        """States (d, ...) whose weights are where the gradient is taken."""
        return state

    @abstractmethod
    def move(self, state: Array, g: Array) -> Array:
        """States (d, ...) after a step with gradients g (weights, ...)."""

    def coefficients(self, space: Space) -> Never:
        """There are none.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"{type(self).__name__} is an algorithm, not a diffusion: ask fp.Chain, or fp.SGD's generator.")

    def _fraction(self, name: str) -> None:
        value = getattr(self, name)
        if not is_number(value) or not 0 <= value < 1:
            raise ValueError(f"{type(self).__name__}: {name} is {value!r}; a number in [0, 1) was expected.")

    def _positive(self, name: str) -> None:
        value = getattr(self, name)
        if not is_number(value) or not value > 0:
            raise ValueError(f"{type(self).__name__}: {name} is {value!r}; a positive number was expected.")


@dataclass(frozen=True)
class ClippedSGD(Optimiser):
    """x' = x − η g min(1, c/|g|), c the ``threshold`` (gradient clipping by norm)."""

    threshold: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("threshold")

    def move(self, state: Array, g: Array) -> Array:
        """One step."""
        size = np.sqrt((g * g).sum(axis=0))
        return state - self.learning_rate * g * np.minimum(1.0, self.threshold / np.maximum(size, 1e-300))


@dataclass(frozen=True)
class SignSGD(Optimiser):
    """x' = x − η sign(g)."""

    def move(self, state: Array, g: Array) -> Array:
        """One step."""
        return state - self.learning_rate * np.sign(g)


@dataclass(frozen=True)
class Nesterov(Optimiser):
    """v' = μ v − η g(x + μ v), x' = x + v' on (x, V), V = v/√η, as :class:`~fpsolver.MomentumSGD`; time √η per step."""

    copies: ClassVar[int] = 2
    scaling: ClassVar[tuple[str, ...]] = ("learning_rate",)

    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        self._fraction("momentum")

    @property
    def time_per_step(self) -> float:
        """Time of one step: √η."""
        return float(np.sqrt(self.learning_rate))

    def look(self, state: Array) -> Array:
        """Ahead, at x + μ v."""
        m = len(state) // 2
        return np.concatenate((state[:m] + self.momentum * self.time_per_step * state[m:], state[m:]))

    def move(self, state: Array, g: Array) -> Array:
        """One step."""
        m, root = len(state) // 2, self.time_per_step
        v = self.momentum * state[m:] - root * g
        return np.concatenate((state[:m] + root * v, v))


@dataclass(frozen=True)
class RMSprop(Optimiser):
    """s' = β s + (1 − β) g², x' = x − η g/(√s' + ε) on (x, s)."""

    copies: ClassVar[int] = 2

    decay: float = 0.99
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        self._fraction("decay")
        self._positive("epsilon")

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

    copies: ClassVar[int] = 3

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._fraction("beta1")
        self._fraction("beta2")
        self._positive("epsilon")

    def move(self, state: Array, g: Array) -> Array:
        """One step."""
        m = len(state) // 3
        x, first, second = state[:m], state[m : 2 * m], state[2 * m :]
        first = self.beta1 * first + (1 - self.beta1) * g
        second = self.beta2 * second + (1 - self.beta2) * g * g
        change = first / (np.sqrt(np.maximum(second, 0.0)) + self.epsilon) + self.weight_decay * x
        return np.concatenate((x - self.learning_rate * change, first, second))
