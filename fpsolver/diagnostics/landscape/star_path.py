"""Star-convexity of the path that SGD takes through all weights of a network, epoch by epoch.

Zhou, Yang, Zhang, Liang, Tarokh, *SGD converges to global minimum in deep learning via star-convex path* (ICLR 2019):
a step with batch B is star-convex about x* if

    e_k = ⟨∇f_B(x_k), x_k − x*⟩ − f_B(x_k) + f_B(x*) ≥ 0,

and an epoch is if the sum of its e_k is not negative.  SGD with a small learning rate then does not move away from x*,
|x_{k+1} − x*|² = |x_k − x*|² − 2η ⟨∇f_B(x_k), x_k − x*⟩ + η² |∇f_B(x_k)|².
"""

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from ..._answer import Answer
from ...models.fields import is_number
from ...models.network import Network


@dataclass(frozen=True, eq=False)
class StarConvexPath(Answer):
    """A path of SGD with reshuffled batches, seen from x*.

    Attributes:
        residual: Σ e_k over the steps of each epoch, shape (epochs,); an epoch is star-convex if it is not negative.
        share: of the steps of each epoch that are star-convex, shape (epochs,).
        distance: |x − x*| before the first and after each epoch, shape (epochs + 1,).
        loss: f there, shape (epochs + 1,).
        variance: tr Σ of one sample's gradient there, shape (epochs + 1,).
        x_star: x*, shape (P,).
        own_end: whether x* is the end of this very path, about which the last steps are star-convex trivially.
    """

    residual: np.ndarray
    share: np.ndarray
    distance: np.ndarray
    loss: np.ndarray
    variance: np.ndarray
    x_star: np.ndarray
    own_end: bool

    @property
    def epochs(self) -> float:
        """Share of star-convex epochs."""
        return float((self.residual >= 0).mean())

    @property
    def steps(self) -> float:
        """Share of star-convex steps."""
        return float(self.share.mean())

    def __repr__(self) -> str:
        about = "its own end" if self.own_end else "a given x*"
        return (
            f"star-convex about {about}: {self.epochs:.0%} of {len(self.residual)} epochs, {self.steps:.1%} of the "
            f"steps; |x - x*| from {self.distance[0]:.3g} to {self.distance[-1]:.3g}, loss from {self.loss[0]:.3g} to "
            f"{self.loss[-1]:.3g}"
        )


def star_convex_path(
    network: Network,
    learning_rate: float,
    epochs: int,
    *,
    batch_size: int = 32,
    start: Any = None,
    seed: int = 0,
    x_star: Any = None,
) -> StarConvexPath:
    """Train with reshuffled batches, and say how star-convex the path is (not collective: each rank trains its own).

    Args:
        network: on all its P weights.
        learning_rate: η.
        epochs: how often all samples are taken, each time in a new random order; the last batch may be smaller.
        batch_size: B.
        start: weights (P,); by default those that the network was given with.
        seed: of the orders.
        x_star: weights (P,); by default the end of the path, for which it is taken twice instead of being stored.

    Raises:
        ValueError: a learning rate that is not positive, numbers that are no positive integers, batches larger than the
            data, weights of another network, or training that diverges.
    """
    if not is_number(learning_rate) or not 0 < learning_rate < np.inf:
        raise ValueError(f"star_convex_path: learning_rate is {learning_rate!r}; a positive number was expected.")
    for name, value, most in (("epochs", epochs, np.inf), ("batch_size", batch_size, network.size)):
        if not isinstance(value, Integral) or not 1 <= value <= most:
            raise ValueError(
                f"star_convex_path: {name} is {value!r}; an integer from 1 to {most} was expected (there are "
                f"{network.size} samples)."
            )
    first = network.point(start, "star_convex_path: start")

    def path() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Weights before each step, its batch and gradient; at last those after all steps, without batch."""
        random, w, none = np.random.default_rng(seed), first.copy(), np.zeros(0, dtype=int)
        for _ in range(epochs):
            order = random.permutation(network.size)
            for i in range(0, network.size, batch_size):
                batch = order[i : i + batch_size]
                gradient = network.batch_gradient(w, batch)
                yield w, batch, gradient
                w = w - learning_rate * gradient
            if not np.isfinite(w).all():
                raise ValueError("star_convex_path: training diverges; lower the learning rate.")
        yield w, none, none

    if x_star is None:
        for w, _, _ in path():
            end = w
    else:
        end = network.point(x_star, "star_convex_path: x_star")
    return _seen_from(network, end, path(), -(-network.size // batch_size), x_star is None)


def _seen_from(network: Network, end: np.ndarray, path: Iterator[Any], per_epoch: int, own_end: bool) -> StarConvexPath:
    at_end, excess, marks = network.losses(end), [], []
    for k, (w, batch, gradient) in enumerate(path):
        if k % per_epoch == 0:
            marks.append((np.linalg.norm(w - end), network.losses(w).mean(), network.noise_trace(w)))
        if len(batch):
            excess.append(gradient @ (w - end) - network.losses(w, batch).mean() + at_end[batch].mean())
    e = np.array(excess).reshape(-1, per_epoch)
    distance, loss, variance = np.array(marks).T
    return StarConvexPath(e.sum(axis=1), (e >= 0).mean(axis=1), distance, loss, variance, end, own_end)
