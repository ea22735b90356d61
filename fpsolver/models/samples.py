"""Per-sample losses of PyTorch and JAX functions: values and gradients of N samples at many points, in chunks.

Losses are differentiated forward with respect to x: in the few dimensions of a parameter domain this costs d + 1
evaluations, however many weights x stands for.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from .._arguments import check_share, expect
from .._errors import import_optional
from .._log import logger

_NUMBERS = 2**21  # in the largest array of an evaluation: 16 MB, of which about six live at a time; more is not faster


class Samples:
    """N differentiable losses f_i(x) of a PyTorch or JAX function; see :meth:`fpsolver.PerSample.from_torch`.

    With ``batched``, f(x, *batch) gives the losses of all samples of a batch at once.  A generator accepts an error of
    tabulation of ``rtol``, relative to the largest value; ``dim`` is d where it is known.
    """

    def __init__(
        self, library: "Library", f: Callable[..., Any], data: Any, rtol: float, dim: int | None = None,
        batched: bool = False,
    ):  # fmt: skip
        what, vmap, self._library, self._arrays = library.what, library.func.vmap, library, library.data(data)
        if not callable(f):
            raise TypeError(f"{what}: the loss is a {type(f).__name__}; a function f(x, *sample) was expected.")
        self.size, self.data, self.dim = len(self._arrays[0]), described(self._arrays), dim
        self.rtol = check_share(f"{what}: rtol", rtol)
        one = lambda x, *sample: check_losses(f(x, *sample), (), what, "one sample", "a scalar was expected")  # noqa: E731
        losses = f if batched else lambda x, *batch: vmap(one, (None, *[0] * len(batch)))(x, *batch)

        def value_and_gradients(x: Any, *batch: Any) -> tuple[Any, Any]:
            along = [(library.array(e),) for e in np.eye(len(x))]
            pairs = [library.func.jvp(lambda y: losses(y, *batch), (x,), e) for e in along]
            return pairs[0][0], library.stack([derivative for _, derivative in pairs], -1)

        # at each point, of all samples and of those of its own
        self._functions = vmap(value_and_gradients, (0, *[None] * len(self._arrays))), vmap(value_and_gradients)
        self._compiled = [library.numpy(function) for function in self._functions]
        self._known: dict[tuple[int, int], int] = {}

    def losses_and_gradients(self, x: np.ndarray, index: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Losses (n, B) and gradients (n, B, d) of the samples ``index`` (n, B) at points (n, d); None: of all N."""
        x = np.ascontiguousarray(x, dtype=float)
        if self.dim is not None and x.shape[1] != self.dim:
            raise ValueError(f"the samples are functions of {self.dim} coordinate(s), the points have {x.shape[1]}.")
        width = self.size if index is None else index.shape[1]
        f, g = np.empty((len(x), width)), np.empty((len(x), width, x.shape[1]))
        for rows, columns in self._pieces(x, index, width):
            part = None if index is None else index[rows, columns]
            if index is None and columns.stop - columns.start < width:
                part = np.arange(columns.start, columns.stop)[None]  # one point, see _pieces
            f[rows, columns], g[rows, columns] = self._evaluate(x[rows], part)
        return f, g

    def moments(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean loss (n,), its gradient (n, d) and Σ (n, d, d) for batches of one sample, at points (n, d)."""
        mean, gradient, covariance = np.zeros(len(x)), np.zeros(x.shape), np.zeros((*x.shape, x.shape[1]))
        step = _power_of_two(_NUMBERS // (self.size * x.shape[1]))
        for rows in (slice(i, i + step) for i in range(0, len(x), step)):
            f, g = self.losses_and_gradients(x[rows])
            mean[rows], gradient[rows] = f.mean(axis=1), g.mean(axis=1)
            centred = g - gradient[rows][:, None]
            covariance[rows] = centred.transpose(0, 2, 1) @ centred / self.size
        return mean, gradient, covariance

    def _data(self, index: np.ndarray | None) -> list[Any]:
        return self._arrays if index is None else [a[index] for a in self._arrays]

    def _evaluate(self, x: np.ndarray, index: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        n = len(x)
        if self._library.pads:  # the last row repeated up to a power of two
            rows = np.minimum(np.arange(1 << (n - 1).bit_length() if n else 0), n - 1)
            x, index = x[rows], None if index is None else index[rows]
        f, g = self._compiled[index is not None](x, *self._data(index))
        return f[:n], g[:n]

    def _pieces(self, x: np.ndarray, index: np.ndarray | None, width: int) -> Iterator[tuple[slice, slice]]:
        """Some points with all their samples, or one point with some of them."""
        if not len(x):
            return
        each = self._largest(x, index, width)
        points = _power_of_two(_NUMBERS // each)  # which JAX need not pad
        samples = width if _NUMBERS >= each else max(1, width * _NUMBERS // each)
        for i in range(0, len(x), points):
            for j in range(0, width, samples):
                yield slice(i, i + points), slice(j, min(j + samples, width))

    def _largest(self, x: np.ndarray, index: np.ndarray | None, width: int) -> int:
        """Numbers in the largest array that is made for one point, measured once per kind of call."""
        kind, index = (x.shape[1], 0 if index is None else width), None if index is None else index[:1]
        if kind not in self._known:
            function = self._functions[index is not None]
            self._known[kind] = max(1, self._library.largest(function, x[:1], *self._data(index)))
        return self._known[kind]


def _power_of_two(n: int) -> int:
    return 1 << max(0, n.bit_length() - 1)


@dataclass(frozen=True)
class Library:
    """PyTorch or JAX."""

    what: str  # who asks for it, for messages
    func: Any  # where jvp, vjp, grad and vmap are
    stack: Callable[..., Any]  # arrays, along an axis
    array: Callable[[Any], Any]  # its own array of a numpy one, floating point numbers in double precision
    numpy: Callable[[Callable[..., Any]], Callable[..., Any]]  # its functions on numpy arrays, compiled if possible
    largest: Callable[..., int]  # function, arguments -> numbers in the largest array that calling it makes
    pads: bool  # whether it compiles anew for every number of points
    filter_axis: int  # of a weight array that counts outputs

    def data(self, given: Any) -> list[Any]:
        """Arrays with one number, at least two, of samples."""
        arrays = []
        for each in given if isinstance(given, list | tuple) else [given]:
            a = np.asarray(each.detach().cpu() if hasattr(each, "detach") else each)
            if not a.ndim or a.dtype.kind not in "biuf":
                raise TypeError(
                    f"{self.what}: data has a {type(each).__name__} of shape {a.shape} and type {a.dtype}; a tuple of "
                    "arrays of real numbers was expected, whose first axes count the samples."
                )
            arrays.append(self.array(a))
        sizes = sorted({len(a) for a in arrays})
        alike = len(sizes) == 1 and sizes[0] > 1
        expect(f"{self.what}: the number of samples in data", sizes, "one number of at least two", alike)
        return arrays


def torch_library(what: str) -> Library:
    """PyTorch, or what to install."""
    torch: Any = import_optional("torch", what)
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def array(a: Any) -> Any:
        a = torch.as_tensor(a)
        return a.double() if a.is_floating_point() else a if a.dtype == torch.bool else a.long()

    def numpy(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            before = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)  # attention that can be differentiated in both modes
            try:
                with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                    found = function(*map(array, arguments))
            finally:
                torch.backends.mha.set_fastpath_enabled(before)
            return tuple(f.numpy() for f in found) if isinstance(found, tuple) else found.detach().numpy()

        return call

    func = SimpleNamespace(vjp=torch.func.vjp, grad=torch.func.grad, vmap=_vmap, jvp=_jvp)
    largest = lambda function, *arguments: _largest_tensor(numpy(function), *arguments)  # noqa: E731
    return Library(what, func, torch.stack, array, numpy, largest, False, 0)


def _jvp(f: Callable[[Any], Any], at: tuple[Any], along: tuple[Any]) -> tuple[Any, Any]:
    """Forward, or where PyTorch has no forward derivative (embedding bags) by the vjp of the vjp, which is linear."""
    from torch.func import jvp, vjp

    try:
        return jvp(f, at, along)
    except NotImplementedError:
        value, back = vjp(f, *at)
        return value, vjp(lambda c: back(c)[0], value)[1](*along)[0]


def _vmap(f: Callable[..., Any], axes: Any = 0) -> Callable[..., Any]:
    """Vectorised, or one by one where PyTorch cannot (recurrent layers, writing into arrays, branches)."""
    import torch

    def call(*arguments: Any) -> Any:
        try:
            return torch.func.vmap(f, axes)(*arguments)
        except RuntimeError as error:
            kinds = axes if isinstance(axes, tuple) else (axes,) * len(arguments)
            n = next(len(a) for a, kind in zip(arguments, kinds, strict=True) if kind == 0)
            try:
                rows = [f(*(a if k is None else a[i] for a, k in zip(arguments, kinds, strict=True))) for i in range(n)]
            except Exception:
                raise error from None
            logger.info("PyTorch cannot vectorise a model, which is evaluated one by one: %s", error)
            if isinstance(rows[0], tuple):
                return tuple(map(torch.stack, zip(*rows, strict=True)))
            return torch.stack(rows)

    return call


def _largest_tensor(function: Callable[..., Any], *arguments: Any) -> int:
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    sizes = [1]

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in tree_leaves(result) if hasattr(t, "numel"))
            return result

    with Sizes():
        function(*arguments)
    return max(sizes)


def jax_library(what: str) -> Library:
    """JAX, or what to install."""
    jax: Any = import_optional("jax", what)

    def array(a: Any) -> np.ndarray:
        a = np.asarray(a)
        return np.ascontiguousarray(a, dtype=float) if a.dtype.kind == "f" else a

    def numpy(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled = jax.jit(function)

        def call(*arguments: Any) -> Any:
            with jax.enable_x64(True):
                found = compiled(*map(array, arguments))
            return tuple(map(np.array, found)) if isinstance(found, tuple) else np.array(found)

        return call

    def largest(function: Callable[..., Any], *arguments: Any) -> int:
        with jax.enable_x64(True):
            steps = jax.make_jaxpr(function)(*arguments).jaxpr.eqns
        return max(math.prod(v.aval.shape) for step in steps for v in step.outvars)

    return Library(what, jax, jax.numpy.stack, array, numpy, largest, True, -1)


def described(arrays: list[Any]) -> str:
    """Types and shapes of one sample's data."""
    return ", ".join(f"{str(a.dtype).removeprefix('torch.')} {tuple(a.shape[1:])}" for a in arrays)


def check_losses(value: Any, shape: tuple[int, ...], what: str, of: str, expected: str) -> Any:
    """Losses as they must be: arrays of a shape, in double precision."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise TypeError(f"{what}: the loss of {of} is a {type(value).__name__}; {expected}.")
    if tuple(value.shape) != shape:
        raise ValueError(f"{what}: the loss of {of} has shape {tuple(value.shape)}; {expected}.")
    if not str(value.dtype).endswith("float64"):
        raise TypeError(
            f"{what}: the loss of {of} has type {value.dtype}; float64 was expected, as of x and of the data. "
            "Something converts it (.float(), argmax, counting)."
        )
    return value
