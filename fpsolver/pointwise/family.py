"""The same quantities of many samples at many points: their means over batches and over all, and how they scatter."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import ufl
from ufl.core.expr import Expr

from ..models.fields import Batched
from ..models.noise import PerSample
from ..models.samples import Samples
from .lambdify import PointSpace, generate
from .native import LONGEST, Native, NotCompilable

Array = np.ndarray[Any, Any]
Backend = Literal["numpy", "c"]


class Quantities(ABC):
    """Some components of N samples; points have shape (d, n)."""

    size: int
    native: Native | None = None  # compiled code for the means, where there is some

    @abstractmethod
    def everyone(self, x: Array) -> Array:
        """Of all samples: shape (components, N, n), samples in an order of their own."""

    def chosen(self, x: Array, sample: Array) -> Array:
        """Of the samples of number ``sample`` (B, n): shape (components, B, n)."""
        return np.take_along_axis(self.everyone(x), sample[None], axis=1)

    def average(self, x: Array) -> Array:
        """Mean over all samples, shape (components, n)."""
        return self.native.moments(x, root=False)[0] if self.native else self.everyone(x).mean(axis=1)

    def batch(self, x: Array, sample: Array) -> Array:
        """Mean over the samples of number ``sample`` (B, n), shape (components, n)."""
        return self.native.batch(x, sample) if self.native else self.chosen(x, sample).mean(axis=1)

    def scatter(self, x: Array, centred: bool = True) -> tuple[Array, Array]:
        """Mean over all samples and a factor (components, K, n) of their covariance, or of their second moments."""
        if self.native:
            return self.native.moments(x, centred)
        g = self.everyone(x)
        mean = g.mean(axis=1)
        return mean, (g - mean[:, None] if centred else g) / np.sqrt(self.size)


class Family(Quantities):
    """Formulas: one function for all samples whose expressions differ in numbers only.

    Args:
        samples: the expressions of each sample, equally many components each.
        space: whose coordinates they are written in.
        backend: "c" to compile the means.

    Raises:
        NotCompilable: for "c", if some formula contains ``fp.batched`` functions or all together are too long.
    """

    def __init__(self, samples: Sequence[Sequence[Expr]], space: PointSpace, backend: Backend = "numpy"):
        self.size = len(samples)
        codes = [generate(expressions, space) for expressions in samples]
        kinds: dict[Any, list[int]] = {}
        for i, code in enumerate(codes):
            # functions of the user cannot be told apart: every sample with some is a kind of its own
            kinds.setdefault((code.source, i if code.callbacks else None), []).append(i)
        self.members = [np.array(m) for m in kinds.values()]
        self.functions = [codes[m[0]].compile() for m in self.members]
        self.numbers = [np.array([codes[i].numbers for i in m]).T for m in self.members]
        self.kind, self.place = np.zeros((2, self.size), dtype=int)
        for k, m in enumerate(self.members):
            self.kind[m], self.place[m] = k, np.arange(len(m))
        if backend == "c":
            first = [codes[m[0]] for m in self.members]
            if any(code.callbacks for code in first):
                raise NotCompilable("backend='c' cannot compile functions of fp.batched; take 'numpy'.")
            if (lines := sum(code.source.count("\n") for code in first)) > LONGEST:
                raise NotCompilable(f"backend='c' takes formulas of {LONGEST} lines, not {lines}; take 'numpy'.")
            numbers = np.zeros((max(len(c.numbers) for c in first), self.size))
            for m, values in zip(self.members, self.numbers, strict=True):
                numbers[: len(values), m] = values
            shape = (ufl.SpatialCoordinate(space.mesh).ufl_shape[0], sum(int(np.prod(e.ufl_shape)) for e in samples[0]))
            self.native = Native(first, self.kind, numbers, shape)

    def everyone(self, x: Array) -> Array:
        """Samples of one kind together."""
        parts = []
        for function, members, numbers in zip(self.functions, self.members, self.numbers, strict=True):
            c = [row[0] if (row == row[0]).all() else row[:, None] for row in numbers]
            parts.append(stack(function(x, c), (len(members), x.shape[-1])))
        return np.concatenate(parts, axis=1)

    def chosen(self, x: Array, sample: Array) -> Array:
        """By every kind's function."""
        place, result = self.place[sample], np.zeros(1)
        for k, (function, numbers) in enumerate(zip(self.functions, self.numbers, strict=True)):
            c = [row[0] if (row == row[0]).all() else row[place % len(row)] for row in numbers]
            found = stack(function(x[:, None], c), sample.shape)
            result = np.where(self.kind[sample] == k, found, result) if k else found
        return result


class _Tabulated(Quantities):
    """Per-sample gradients of ``fp.batched(grads)``."""

    def __init__(self, source: Batched, dim: int):
        self.function, self.dim = source.function, dim
        self.size = self.everyone(np.zeros((dim, 1))).shape[1]

    def everyone(self, x: Array) -> Array:
        points = np.ascontiguousarray(x[: self.dim].T)
        g = np.asarray(self.function(points), dtype=float)
        if g.ndim != 3 or g.shape[0] != len(points) or g.shape[2] != self.dim:
            raise ValueError(f"PerSample(fp.batched(grads)): grads returned shape {g.shape} for {points.shape} points.")
        return g.transpose(2, 1, 0)


class _Differentiated(Quantities):
    """Losses, if ``values``, and gradients of PyTorch's and JAX's samples."""

    def __init__(self, samples: Samples, dim: int, values: bool):
        self.samples, self.size, self.dim, self.values = samples, samples.size, dim, values

    def everyone(self, x: Array) -> Array:
        return self.chosen(x, None)

    def chosen(self, x: Array, sample: Array | None) -> Array:
        index = None if sample is None else np.ascontiguousarray(sample.T)
        f, g = self.samples.losses_and_gradients(x[: self.dim].T, index)
        return np.concatenate((f.T[None], g.transpose(2, 1, 0))) if self.values else g.transpose(2, 1, 0)


def gradients_of(noise: PerSample, space: PointSpace, backend: Backend, values: bool = False) -> Quantities:
    """Gradients of samples, with ``values`` behind their losses."""
    if not isinstance(noise.samples, Batched | Samples):
        return gradients_of_formulas(noise.losses(space), space, backend, values)
    if backend == "c":
        raise NotCompilable("backend='c' compiles formulas of samples, not their functions; take 'numpy'.")
    if isinstance(noise.samples, Batched):
        return _Tabulated(noise.samples, space.dim)
    return _Differentiated(noise.samples, space.dim, values)


def gradients_of_formulas(f: Sequence[Expr], space: PointSpace, backend: Backend, values: bool = False) -> Family:
    """The same of UFL expressions."""
    return Family([[e, space.grad(e)] if values else [space.grad(e)] for e in f], space, backend)


def lambdify(expressions: Any, space: PointSpace, backend: Backend = "numpy") -> Callable[[Array], Array]:
    """A function that maps points (d, n) to the components of one UFL expression or several, shape (components, n)."""
    several = expressions if isinstance(expressions, Sequence) else [expressions]
    return Family([[ufl.as_ufl(e) for e in several]], space, backend).average


def stack(values: Sequence[Any], shape: tuple[int, ...]) -> Array:
    """Arrays and floats as one array (len(values), *shape)."""
    return np.stack([np.broadcast_to(np.asarray(v, dtype=float), shape) for v in values])
