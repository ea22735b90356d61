"""Per-sample losses of PyTorch and JAX functions: values and gradients of N samples at many points, in chunks.

Losses are differentiated forward with respect to x: in the few dimensions of a parameter domain this costs d + 1
evaluations, however many weights x stands for.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .._arguments import check_integer, check_share

# (points (n, d), indices (n, B) or None for all samples) -> losses (n, B), gradients (n, B, d)
Evaluate = Callable[[np.ndarray, np.ndarray | None], tuple[np.ndarray, np.ndarray]]

_NUMBERS = 2**21  # in the largest array of an evaluation: 16 MB, of which about six live at a time; more is not faster


@dataclass(frozen=True)
class Samples:
    """N differentiable losses f_i(x).

    Attributes:
        size: N.
        data: types and shapes of one sample's data, for messages.
        dim: d, where it is known.
        chunk: how many point-sample pairs are evaluated at a time; None: as many as keep arrays in tens of megabytes.
        rtol: largest error of tabulation, relative to the largest value, that a generator accepts.
    """

    size: int
    data: str
    dim: int | None
    chunk: int | None
    rtol: float
    _evaluate: Evaluate
    _largest: Callable[[np.ndarray, np.ndarray | None], int]  # numbers in the largest array of an evaluation
    _known: dict[tuple[int, int], int] = field(default_factory=dict, compare=False, repr=False)

    def losses_and_gradients(self, x: np.ndarray, index: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Losses (n, B) and gradients (n, B, d) of the samples ``index`` (n, B) at points (n, d); None: of all N.

        Raises:
            ValueError: the points have another dimension than the samples.
        """
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

    def _pieces(self, x: np.ndarray, index: np.ndarray | None, width: int) -> Iterator[tuple[slice, slice]]:
        """Some points with all their samples, or one point with some of them."""
        if not len(x):
            return
        budget, each = (_NUMBERS, self._numbers(x, index, width)) if self.chunk is None else (self.chunk, width)
        points = _power_of_two(budget // each)  # which JAX need not pad
        samples = width if budget >= each else max(1, width * budget // each)
        for i in range(0, len(x), points):
            for j in range(0, width, samples):
                yield slice(i, i + points), slice(j, min(j + samples, width))

    def _numbers(self, x: np.ndarray, index: np.ndarray | None, width: int) -> int:
        """In the largest array that is made for one point, measured once per kind of call."""
        kind = x.shape[1], 0 if index is None else width
        if kind not in self._known:
            self._known[kind] = max(1, self._largest(x[:1], None if index is None else index[:1]))
        return self._known[kind]


def _power_of_two(n: int) -> int:
    return 1 << max(0, n.bit_length() - 1)


def torch_samples(
    f: Callable[..., Any], data: Any, chunk: int | None, rtol: float, dim: int | None = None, batched: bool = False
) -> Samples:
    """Samples of a PyTorch function; see :meth:`fpsolver.PerSample.from_torch`.

    ``dim``: number of coordinates.  ``batched``: f(x, *batch) gives the losses of all samples of a batch at once.
    """
    try:
        import torch
        from torch.func import jvp, vmap
    except ImportError as error:
        raise ImportError("from_torch needs PyTorch: install python3-torch (apt) or torch (pip, conda).") from error
    arrays = torch_data(data, "from_torch")
    one = lambda x, *sample: _scalar(f(x, *sample), "from_torch")  # noqa: E731
    losses = f if batched else lambda x, *batch: vmap(one, (None, *[0] * len(batch)))(x, *batch)

    def value_and_gradients(x: Any, *batch: Any) -> tuple[Any, Any]:
        value, columns = None, []
        for direction in torch.eye(len(x), dtype=x.dtype):
            value, derivative = jvp(lambda y: losses(y, *batch), (x,), (direction,))
            columns.append(derivative)
        return value, torch.stack(columns, dim=-1)

    every = vmap(value_and_gradients, (0, *[None] * len(arrays)))
    some = vmap(value_and_gradients)

    def evaluate(x: np.ndarray, index: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        points = torch.as_tensor(x)
        with torch.no_grad():
            if index is None:
                values, gradients = every(points, *arrays)
            else:
                values, gradients = some(points, *(a[torch.as_tensor(index)] for a in arrays))
        return values.numpy(), gradients.numpy()

    def largest(x: np.ndarray, index: np.ndarray | None) -> int:
        return _largest_tensor(lambda: evaluate(x, index))

    return _checked("from_torch", f, arrays, dim, chunk, rtol, evaluate, largest)


def _largest_tensor(call: Callable[[], Any]) -> int:
    """Numbers in the largest tensor that a call makes."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    sizes = [1]

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in tree_leaves(result) if hasattr(t, "numel"))
            return result

    with Sizes():
        call()
    return max(sizes)


def jax_samples(
    f: Callable[..., Any], data: Any, chunk: int | None, rtol: float, dim: int | None = None, batched: bool = False
) -> Samples:
    """Samples of a JAX function; see :meth:`fpsolver.PerSample.from_jax` and :func:`torch_samples`."""
    try:
        import jax
    except ImportError as error:
        raise ImportError("from_jax needs JAX: install jax (pip, conda).") from error
    arrays = numpy_data(data, "from_jax")
    one = lambda x, *sample: _scalar(f(x, *sample), "from_jax")  # noqa: E731
    losses = f if batched else lambda x, *batch: jax.vmap(one, (None, *[0] * len(batch)))(x, *batch)
    both = lambda x, *batch: (losses(x, *batch), jax.jacfwd(losses)(x, *batch))  # noqa: E731
    all_samples, given_ones = jax.vmap(both, (0, *[None] * len(arrays))), jax.vmap(both)
    every, some = jax.jit(all_samples), jax.jit(given_ones)

    def evaluate(x: np.ndarray, index: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        n, x = len(x), _padded(x)
        with jax.enable_x64(True):
            if index is None:
                values, gradients = every(x, *arrays)
            else:
                index = _padded(index)
                values, gradients = some(x, *(a[index] for a in arrays))
            return np.asarray(values, dtype=float)[:n], np.asarray(gradients, dtype=float)[:n]

    def largest(x: np.ndarray, index: np.ndarray | None) -> int:
        with jax.enable_x64(True):
            if index is None:
                steps = jax.make_jaxpr(all_samples)(x, *arrays).jaxpr.eqns
            else:
                steps = jax.make_jaxpr(given_ones)(x, *(a[index] for a in arrays)).jaxpr.eqns
        return max(math.prod(v.aval.shape) for step in steps for v in step.outvars)

    return _checked("from_jax", f, arrays, dim, chunk, rtol, evaluate, largest)


def _padded(x: np.ndarray) -> np.ndarray:
    """The last row repeated up to a power of two: JAX compiles anew for every number of points."""
    missing = (1 << (len(x) - 1).bit_length()) - len(x) if len(x) else 0
    return np.concatenate([x, np.repeat(x[-1:], missing, axis=0)])


def numpy_data(data: Any, what: str) -> list[np.ndarray]:
    """Arrays, those of floating point numbers in double precision, with one number, at least two, of samples."""
    return [a.astype(float) if a.dtype.kind == "f" else a for a in map(np.asarray, _check_data(data, what))]


def torch_data(data: Any, what: str) -> list[Any]:
    """As :func:`numpy_data`, as tensors; integers in the type of PyTorch's labels."""
    import torch

    arrays = [torch.as_tensor(a).detach() for a in _check_data(data, what)]
    return [a.double() if a.is_floating_point() else a if a.dtype == torch.bool else a.long() for a in arrays]


def _check_data(data: Any, what: str) -> list[Any]:
    arrays = []
    for given in data if isinstance(data, list | tuple) else [data]:
        a = given if hasattr(given, "is_floating_point") else _array(given)  # a tensor, or made an array
        if a is None or not len(a.shape) or (isinstance(a, np.ndarray) and a.dtype.kind not in "biuf"):
            found = f"of shape {tuple(a.shape)} and type {a.dtype}" if hasattr(given, "shape") and a is not None else ""
            raise TypeError(
                f"{what}: data has a {type(given).__name__} {found}; a tuple of arrays of real numbers was expected, "
                "whose first axes count the samples."
            )
        arrays.append(a)
    sizes = {len(a) for a in arrays}
    if len(sizes) != 1 or min(sizes, default=0) < 2:
        raise ValueError(
            f"{what}: data has {sorted(sizes)} samples; a tuple of arrays, all of one length of at least "
            "two, was expected."
        )
    return arrays


def described(arrays: list[Any]) -> str:
    """Types and shapes of one sample's data."""
    return ", ".join(f"{str(a.dtype).removeprefix('torch.')} {tuple(a.shape[1:])}" for a in arrays)


def _array(given: Any) -> np.ndarray | None:
    try:
        return np.asarray(given)
    except Exception:  # whatever it is, it is no array
        return None


def _scalar(value: Any, what: str) -> Any:
    return check_losses(value, (), what, "one sample", "a scalar was expected")


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


def _checked(
    what: str,
    f: Any,
    arrays: list[Any],
    dim: int | None,
    chunk: int | None,
    rtol: float,
    evaluate: Evaluate,
    largest: Callable[[np.ndarray, np.ndarray | None], int],
) -> Samples:
    if not callable(f):
        raise TypeError(f"{what}: the loss is a {type(f).__name__}; a function f(x, *sample) was expected.")
    chunk = None if chunk is None else check_integer(f"{what}: chunk", chunk)
    rtol = check_share(f"{what}: rtol", rtol)
    return Samples(len(arrays[0]), described(arrays), dim, chunk, rtol, evaluate, largest)
