"""PyTorch and JAX behind one face: both differentiate and vectorise by functions that are called alike."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from .._errors import import_optional
from .._log import logger


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
            a = _as_array(each)
            if a is None or not a.ndim or a.dtype.kind not in "biuf":
                found = "" if a is None or not hasattr(each, "shape") else f"of shape {a.shape} and type {a.dtype}"
                raise TypeError(
                    f"{self.what}: data has a {type(each).__name__} {found}; a tuple of arrays of real numbers was "
                    "expected, whose first axes count the samples."
                )
            arrays.append(self.array(a))
        sizes = {len(a) for a in arrays}
        if len(sizes) != 1 or min(sizes, default=0) < 2:
            raise ValueError(
                f"{self.what}: data has {sorted(sizes)} samples; a tuple of arrays, all of one length of at least "
                "two, was expected."
            )
        return arrays


def torch_library(what: str) -> Library:
    """PyTorch, or what to install."""
    torch: Any = import_optional("torch", what)

    def array(a: Any) -> Any:
        a = torch.as_tensor(a)
        return a.double() if a.is_floating_point() else a if a.dtype == torch.bool else a.long()

    def numpy(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with torch.no_grad(), _plain_attention():
                found = function(*map(array, arguments))
            return tuple(f.numpy() for f in found) if isinstance(found, tuple) else found.detach().numpy()

        return call

    func = SimpleNamespace(vjp=torch.func.vjp, grad=torch.func.grad, vmap=_vmap, jvp=_jvp)
    largest = lambda function, *arguments: _largest_tensor(numpy(function), *arguments)  # noqa: E731
    return Library(what, func, torch.stack, array, numpy, largest, False, 0)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention by kernels that can be differentiated in both modes."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


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


def _as_array(given: Any) -> np.ndarray | None:
    try:
        return np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
    except Exception:  # whatever it is, it is no array
        return None


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
