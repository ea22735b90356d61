"""The same quantities of many samples at many points: their means over batches and over all, and how they scatter."""

import ctypes
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
from .native import LONGEST, NotCompilable, library, program

Array = np.ndarray[Any, Any]
Backend = Literal["numpy", "c"]


class Quantities(ABC):
    """Some components of N samples; points have shape (d, n)."""

    size: int

    @abstractmethod
    def everyone(self, x: Array) -> Array:
        """Of all samples: shape (components, N, n)."""

    @abstractmethod
    def chosen(self, x: Array, sample: Array) -> Array:
        """Of the samples of number ``sample`` (B, n): shape (components, B, n)."""

    def average(self, x: Array) -> Array:
        """Mean over all samples, shape (components, n)."""
        return self.everyone(x).mean(axis=1)

    def batch(self, x: Array, sample: Array) -> Array:
        """Mean over the samples of number ``sample`` (B, n), shape (components, n)."""
        return self.chosen(x, sample).mean(axis=1)

    def scatter(self, x: Array, centred: bool = True) -> tuple[Array, Array]:
        """Mean over all samples and a factor (components, K, n) of their covariance, or of their second moments."""
        g = self.everyone(x)
        mean = g.mean(axis=1)
        return mean, (g - mean[:, None] if centred else g) / np.sqrt(self.size)


class Family(Quantities):
    """Formulas, of each sample equally many: one function for all samples that differ in numbers only."""

    def __init__(self, samples: Sequence[Sequence[Expr]], space: PointSpace):
        self.size, self.components = len(samples), sum(int(np.prod(e.ufl_shape)) for e in samples[0])
        codes = [generate(expressions, space) for expressions in samples]
        kinds: dict[Any, list[int]] = {}
        for i, code in enumerate(codes):
            # functions of the user cannot be told apart: every sample with some is a kind of its own
            kinds.setdefault((code.source, i if code.callbacks else None), []).append(i)
        self.members, self.codes = list(kinds.values()), [codes[m[0]] for m in kinds.values()]
        self.functions = [code.compile() for code in self.codes]
        self.kind = np.zeros(self.size, np.intc)
        self.numbers = np.zeros((max(len(code.numbers) for code in codes), self.size))
        for k, m in enumerate(self.members):
            self.kind[m] = k
            self.numbers[: len(self.codes[k].numbers), m] = np.array([codes[i].numbers for i in m]).T

    def everyone(self, x: Array) -> Array:
        """Samples of one kind together."""
        result = np.empty((self.components, self.size, x.shape[-1]))
        for function, members in zip(self.functions, self.members, strict=True):
            c = [row[0] if (row == row[0]).all() else row[:, None] for row in self.numbers[:, members]]
            for component, values in zip(result, function(x, c), strict=True):
                component[members] = values
        return result

    def chosen(self, x: Array, sample: Array) -> Array:
        """By every kind's function, whose values with the numbers of other kinds are not used."""
        result, kind = np.empty((self.components, *sample.shape)), self.kind[sample]
        for k, (function, members) in enumerate(zip(self.functions, self.members, strict=True)):
            one = self.numbers[:, members[0]]
            same = (self.numbers[:, members] == one[:, None]).all(axis=1)
            c = [number if alike else row[sample] for number, alike, row in zip(one, same, self.numbers, strict=True)]
            with np.errstate(all="ignore"):
                for component, values in zip(result, function(x[:, None], c), strict=True):
                    np.copyto(component, values, where=kind == k)
        return result


class Compiled(Family):
    """The same in C; what there is no C code for raises :class:`NotCompilable`."""

    def __init__(self, samples: Sequence[Sequence[Expr]], space: PointSpace):
        super().__init__(samples, space)
        if any(code.callbacks for code in self.codes):
            raise NotCompilable("backend='c' cannot compile functions of fp.batched; take 'numpy'.")
        if (lines := sum(code.source.count("\n") for code in self.codes)) > LONGEST:
            raise NotCompilable(f"backend='c' takes formulas of {LONGEST} lines, not {lines}; take 'numpy'.")
        self.dim = ufl.SpatialCoordinate(space.mesh).ufl_shape[0]
        self.library = library(program(self.codes, len(self.numbers), self.dim, self.components))
        self.uniform = (self.numbers == self.numbers[:, :1]).all(axis=1).astype(np.intc)

    def everyone(self, x: Array) -> Array:
        """All at once."""
        out, x = np.empty((self.components, self.size, x.shape[1])), np.ascontiguousarray(x[: self.dim])
        self._call(self.library.everyone, (x.shape[1], self.size), (self.kind, self.numbers, x, out))
        return out

    def batch(self, x: Array, sample: Array) -> Array:
        """Without an array of all of them."""
        mean, x = np.empty((self.components, x.shape[1])), np.ascontiguousarray(x[: self.dim])
        sample = np.ascontiguousarray(sample, dtype=np.longlong)
        data = (self.kind, self.uniform, self.numbers, x, sample, mean)
        self._call(self.library.batch, (x.shape[1], self.size, len(sample)), data)
        return mean

    def _call(self, function: Any, sizes: tuple[int, ...], data: tuple[Array, ...]) -> None:
        function(*map(ctypes.c_longlong, sizes), *(ctypes.c_void_p(a.ctypes.data) for a in data))


class _Given(Quantities):
    """Gradients, with ``values`` behind the losses, of samples of PyTorch and JAX, and of ``fp.batched(grads)``."""

    def __init__(self, source: Batched | Samples, dim: int, values: bool):
        self.source, self.dim, self.values = source, dim, values
        self.size = self.everyone(np.zeros((dim, 1))).shape[1] if isinstance(source, Batched) else source.size

    def everyone(self, x: Array) -> Array:
        return self.chosen(x, None)

    def chosen(self, x: Array, sample: Array | None) -> Array:
        points = np.ascontiguousarray(x[: self.dim].T)
        index = None if sample is None else np.ascontiguousarray(sample.T)
        if isinstance(self.source, Samples):
            f, g = self.source.losses_and_gradients(points, index)
            return np.concatenate((f.T[None], g.transpose(2, 1, 0))) if self.values else g.transpose(2, 1, 0)
        g = np.asarray(self.source.function(points), dtype=float)
        if g.ndim != 3 or g.shape[0] != len(points) or g.shape[2] != self.dim:
            raise ValueError(f"PerSample(fp.batched(grads)): grads returned shape {g.shape} for {points.shape} points.")
        return (g if index is None else np.take_along_axis(g, index[..., None], axis=1)).transpose(2, 1, 0)


def family(samples: Sequence[Sequence[Expr]], space: PointSpace, backend: Backend) -> Family:
    """Formulas by numpy or in C."""
    return (Compiled if backend == "c" else Family)(samples, space)


def gradients_of(noise: PerSample, space: PointSpace, backend: Backend, values: bool = False) -> Quantities:
    """Gradients of samples, with ``values`` behind their losses."""
    if not isinstance(noise.samples, Batched | Samples):
        return gradients_of_formulas(noise.losses(space), space, backend, values)
    if backend == "c":
        raise NotCompilable("backend='c' compiles formulas of samples, not their functions; take 'numpy'.")
    return _Given(noise.samples, space.dim, values)


def gradients_of_formulas(f: Sequence[Expr], space: PointSpace, backend: Backend, values: bool = False) -> Family:
    """The same of UFL expressions."""
    return family([[e, space.grad(e)] if values else [space.grad(e)] for e in f], space, backend)


def lambdify(expressions: Any, space: PointSpace, backend: Backend = "numpy") -> Callable[[Array], Array]:
    """A function that maps points (d, n) to the components of one UFL expression or several, shape (components, n)."""
    several = expressions if isinstance(expressions, Sequence) else [expressions]
    return family([[ufl.as_ufl(e) for e in several]], space, backend).average
