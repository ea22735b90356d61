"""Gradient noise: the covariance Σ(x) of one sample's gradient.

Noises add: ``PerSample(losses) + Isotropic(0.01)``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ufl
from ufl.core.expr import Expr

from .._arguments import expect, is_number
from ._batched import real_array
from ._tabulate import tabulate_samples
from .fields import Batched, Space
from .samples import Samples, jax_library, torch_library


class Noise(ABC):
    """What every noise provides."""

    @abstractmethod
    def covariance(self, space: Space) -> Expr:
        """Σ(x), shape (dim, dim), for batches of one sample."""

    def __add__(self, other: "Noise") -> "Noise":
        parts = (*parts_of(self), *parts_of(other))
        levels = [p.s for p in parts if is_level(p)]
        if len(levels) > 1:  # one number, so that the level "s" stays one parameter of the process
            parts = (*(p for p in parts if not is_level(p)), Isotropic(sum(levels)))
        return Sum(parts)


@dataclass(frozen=True)
class Sum(Noise):
    """Independent noises together: their covariances add."""

    parts: tuple[Noise, ...]

    def covariance(self, space: Space) -> Expr:
        """Σ of the parts."""
        return total([p.covariance(space) for p in self.parts])


def parts_of(noise: Any) -> tuple[Any, ...]:
    """The summands of a noise."""
    return noise.parts if isinstance(noise, Sum) else (noise,)


def samples_of(noise: Noise) -> "PerSample | None":
    """The ``PerSample`` in ``noise``, which knows the mean loss; None if there is none or more than one."""
    found = [p for p in parts_of(noise) if isinstance(p, PerSample)]
    return found[0] if len(found) == 1 else None


def is_level(noise: Any) -> bool:
    """Whether it is isotropic noise of constant level, the number "s" of a process."""
    return isinstance(noise, Isotropic) and is_number(noise.s)


@dataclass(frozen=True)
class Isotropic(Noise):
    """Σ = s I.  ``s``: a number or a scalar source of x."""

    s: Any

    def covariance(self, space: Space) -> Expr:
        """S = s I."""
        s = space.parameter("s", self.s) if is_number(self.s) else space.scalar(self.s, "Isotropic(s)")
        return s * ufl.Identity(space.dim)


@dataclass(frozen=True)
class Covariance(Noise):
    """Σ = S(x), any symmetric positive semi-definite matrix source of shape (d, d)."""

    S: Any

    def covariance(self, space: Space) -> Expr:
        """S as UFL."""
        return space.matrix(self.S, "Covariance(S)")


@dataclass(frozen=True)
class PerSample(Noise):
    """The covariance of N per-sample gradients, from the samples themselves.

    Σ = σ σᵀ with the rectangular factor σ = [g_1 - ḡ, ..., g_N - ḡ] / √N of shape (d, N).

    Attributes:
        samples: a sequence of N losses f_i (callables of x giving UFL); ``fp.batched(grads)`` with ``grads`` mapping
            points (n, d) to the N per-sample gradients (n, N, d); or what :meth:`from_torch` and :meth:`from_jax` make.
        replacement: whether a sample may occur twice in a batch.  Without replacement the covariance is smaller by
            (N − B)/(N − 1) and vanishes for full batches; B is the batch size of the process.
    """

    samples: Sequence[Callable[[Any], Any]] | Batched | Samples
    replacement: bool = True

    @classmethod
    def from_torch(cls, f: Callable[..., Any], data: Any, *, rtol: float = 1e-3) -> "PerSample":
        """Losses written with PyTorch and differentiated by it; thousands of samples are cheap.

        f(x, *sample) -> scalar tensor is the loss of one sample at a point x, a float64 tensor (d,), traceable by
        ``torch.func.vmap``: no ``.item()``, no branches on values.  ``data`` is a tuple of arrays or tensors whose
        first axis counts the samples.  ``rtol`` is the largest error, relative to the largest value, with which loss
        and Σ are tabulated on a mesh: their degree is raised until it is met.
        """
        return cls(Samples(torch_library("from_torch"), f, data, rtol))

    @classmethod
    def from_jax(cls, f: Callable[..., Any], data: Any, *, rtol: float = 1e-3) -> "PerSample":
        """Losses written with JAX; see :meth:`from_torch`.  f is compiled, and evaluated in double precision."""
        return cls(Samples(jax_library("from_jax"), f, data, rtol))

    def __post_init__(self) -> None:
        if isinstance(self.samples, Batched | Samples):
            return
        if not isinstance(self.samples, Sequence) or not all(callable(f) for f in self.samples):
            raise TypeError("PerSample expects a sequence of losses f_i(x), or fp.batched(grads).")
        expect("PerSample: the number of samples", len(self.samples), "at least two", len(self.samples) > 1)

    @property
    def size(self) -> int | None:
        """N; None for ``fp.batched(grads)``, which tells only when it is called."""
        if isinstance(self.samples, Batched):
            return None
        return self.samples.size if isinstance(self.samples, Samples) else len(self.samples)

    def formulas(self) -> Sequence[Callable[[Any], Any]]:
        """The N per-sample losses, where they were given as formulas."""
        if isinstance(self.samples, Samples):
            raise TypeError("the losses are functions of PyTorch or JAX, which have no UFL form.")
        if isinstance(self.samples, Batched):
            raise ValueError("PerSample(fp.batched(grads)) knows gradients, not losses: give the process its loss=.")
        return self.samples

    def losses(self, space: Space) -> list[Expr]:
        """The same as UFL."""
        return [space.scalar(f, f"PerSample: loss of sample {i}") for i, f in enumerate(self.formulas())]

    def mean_loss(self, space: Space) -> Expr:
        """f = (1/N) Σ f_i."""
        if isinstance(self.samples, Samples):
            return tabulate_samples(space, self.samples)[0]
        losses = self.losses(space)
        return total(losses) / len(losses)

    def mean_gradient(self, space: Space) -> Expr:
        """∇f."""
        if isinstance(self.samples, Samples):
            return tabulate_samples(space, self.samples)[1]
        return space.grad(self.mean_loss(space))

    def covariance(self, space: Space) -> Expr:
        """σ σᵀ from symbolic gradients or from tabulated ones."""
        if isinstance(self.samples, Batched):
            N, Sigma = self._tabulated(space, self.samples.function)
        elif isinstance(self.samples, Samples):
            N, Sigma = self.samples.size, tabulate_samples(space, self.samples)[2]
        else:
            gradients = [space.grad(f) for f in self.losses(space)]
            N, mean = len(gradients), total(gradients) / len(gradients)
            Sigma = _mean_outer([g - mean for g in gradients])
        return Sigma if self.replacement else (N - space.parameters.get("batch_size", 1)) / (N - 1) * Sigma

    def _tabulated(self, space: Space, gradients: Callable[[Any], Any]) -> tuple[int, Expr]:
        """N and Σ of gradients at points, as a batched matrix source (collective)."""
        what, sizes = "PerSample(fp.batched(grads))", set[int]()

        def moment(x: Any) -> Any:
            g = real_array(gradients(x), what)
            if g.ndim != 3 or g.shape[0] != len(x) or g.shape[1] < 2 or g.shape[2] != space.dim:
                raise ValueError(f"grads returned shape {g.shape}; expected (points, N, {space.dim}), N at least 2.")
            sizes.add(g.shape[1])
            g = g - g.mean(axis=1, keepdims=True)
            return g.transpose(0, 2, 1) @ g / g.shape[1]

        Sigma = space.matrix(Batched(moment), what)
        found = sorted(set().union(*space.mesh.comm.allgather(sizes)))
        if len(found) > 1:
            raise ValueError(f"{what}: the number of samples differs between ranks: {found}.")
        batch = space.parameters.get("batch_size")
        if batch is not None and float(batch.value) > found[0]:
            raise ValueError(f"batch_size is {float(batch.value):g}, but grads returned only {found[0]} samples.")
        return found[0], Sigma


@dataclass(frozen=True)
class LabelNoise(Noise):
    """Fresh Gaussian noise on the labels in every step: Σ = std² (1/N) Σ_i ∇m_i ∇m_iᵀ.

    For squared losses f_i = ½ (m_i(x) − y_i)² with outputs m_i, callables of x giving UFL: a label y_i + std·ξ changes
    the gradient by −std·ξ ∇m_i.  It comes on top of the noise of drawing samples:
    ``PerSample(losses) + LabelNoise(outputs, 0.1)``.
    """

    models: Sequence[Callable[[Any], Any]]
    std: float

    def __post_init__(self) -> None:
        if not isinstance(self.models, Sequence) or not self.models or not all(callable(m) for m in self.models):
            raise TypeError("LabelNoise expects a sequence of outputs m_i(x), callables of x giving UFL.")
        expect("LabelNoise: std", self.std, "a number of at least 0", is_number(self.std) and self.std >= 0)

    def outputs(self, space: Space) -> list[Expr]:
        """The outputs m_i as UFL."""
        return [space.scalar(m, f"LabelNoise: output of sample {i}") for i, m in enumerate(self.models)]

    def covariance(self, space: Space) -> Expr:
        """Σ of the labels' noise alone."""
        return self.std**2 * _mean_outer([space.grad(m) for m in self.outputs(space)])


def _mean_outer(columns: Sequence[Expr]) -> Expr:
    return total([ufl.outer(c, c) for c in columns]) / len(columns)


def total(terms: Sequence[Any]) -> Any:
    """The sum of expressions of any shape, to which 0 cannot be added."""
    return sum(terms[1:], terms[0])
