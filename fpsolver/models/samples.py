"""Per-sample losses of PyTorch and JAX functions: values and gradients of N samples at many points, in chunks.

Losses are differentiated forward with respect to x: in the few dimensions of a parameter domain this costs d + 1
evaluations, however many weights x stands for.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# (points (n, d), indices (n, B) or None for all samples) -> losses (n, B), gradients (n, B, d)
Evaluate = Callable[[np.ndarray, np.ndarray | None], tuple[np.ndarray, np.ndarray]]

_CHUNK = 2**17  # point-sample pairs at a time: a few hundred MB of activations for networks of 1e3 units


@dataclass(frozen=True)
class Samples:
    """N differentiable losses f_i(x).

    Attributes:
        size: N.
        chunk: how many point-sample pairs are evaluated at a time.
        tol: largest error of tabulation, relative to the largest value, that a generator accepts.
    """

    size: int
    chunk: int
    tol: float
    _evaluate: Evaluate

    def losses_and_gradients(self, x: np.ndarray, index: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Losses (n, B) and gradients (n, B, d) of the samples ``index`` (n, B) at points (n, d); None: of all N."""
        x = np.ascontiguousarray(x, dtype=float)
        width = self.size if index is None else index.shape[1]
        f, g = np.empty((len(x), width)), np.empty((len(x), width, x.shape[1]))
        for rows in self._chunks(len(x), width):
            f[rows], g[rows] = self._evaluate(x[rows], None if index is None else index[rows])
        return f, g

    def moments(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean loss (n,), its gradient (n, d) and Σ (n, d, d) for batches of one sample, at points (n, d)."""
        mean, gradient, covariance = np.zeros(len(x)), np.zeros(x.shape), np.zeros((*x.shape, x.shape[1]))
        for rows in self._chunks(len(x), self.size):
            f, g = self.losses_and_gradients(x[rows])
            mean[rows], gradient[rows] = f.mean(axis=1), g.mean(axis=1)
            centred = g - gradient[rows][:, None]
            covariance[rows] = centred.transpose(0, 2, 1) @ centred / self.size
        return mean, gradient, covariance

    def _chunks(self, n: int, width: int) -> Iterator[slice]:
        step = 1 << max(0, (self.chunk // width).bit_length() - 1)  # a power of two, which JAX need not pad
        return (slice(i, i + step) for i in range(0, n, step))


def torch_samples(f: Callable[..., Any], data: Any, chunk: int | None, tol: float, batched: bool = False) -> Samples:
    """Samples of a PyTorch function; see :meth:`fpsolver.PerSample.from_torch`.

    ``batched``: f(x, *batch) gives the losses of all samples of a batch at once.
    """
    try:
        import torch
        from torch.func import jvp, vmap
    except ImportError as error:
        raise ImportError("from_torch needs PyTorch: install python3-torch (apt) or torch (pip, conda).") from error
    arrays = [torch.as_tensor(a) for a in check_data(data, "from_torch")]
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
        return values.double().numpy(), gradients.double().numpy()

    return _checked("from_torch", len(arrays[0]), chunk, tol, evaluate)


def jax_samples(f: Callable[..., Any], data: Any, chunk: int | None, tol: float, batched: bool = False) -> Samples:
    """Samples of a JAX function; see :meth:`fpsolver.PerSample.from_jax` and :func:`torch_samples`."""
    try:
        import jax
    except ImportError as error:
        raise ImportError("from_jax needs JAX: install jax (pip, conda).") from error
    arrays = [np.asarray(a) for a in check_data(data, "from_jax")]
    one = lambda x, *sample: _scalar(f(x, *sample), "from_jax")  # noqa: E731
    losses = f if batched else lambda x, *batch: jax.vmap(one, (None, *[0] * len(batch)))(x, *batch)
    both = lambda x, *batch: (losses(x, *batch), jax.jacfwd(losses)(x, *batch))  # noqa: E731
    every = jax.jit(jax.vmap(both, (0, *[None] * len(arrays))))
    some = jax.jit(jax.vmap(both))

    def evaluate(x: np.ndarray, index: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        n, x = len(x), _padded(x)
        with jax.enable_x64(True):
            if index is None:
                values, gradients = every(x, *arrays)
            else:
                index = _padded(index)
                values, gradients = some(x, *(a[index] for a in arrays))
            return np.asarray(values, dtype=float)[:n], np.asarray(gradients, dtype=float)[:n]

    return _checked("from_jax", len(arrays[0]), chunk, tol, evaluate)


def _padded(x: np.ndarray) -> np.ndarray:
    """The last row repeated up to a power of two: JAX compiles anew for every number of points."""
    missing = (1 << (len(x) - 1).bit_length()) - len(x) if len(x) else 0
    return np.concatenate([x, np.repeat(x[-1:], missing, axis=0)])


def check_data(data: Any, what: str) -> list[Any]:
    """A list of arrays with the same number, at least two, of samples."""
    arrays = list(data) if isinstance(data, Sequence) and not hasattr(data, "shape") else [data]
    sizes = {len(a) for a in arrays}
    if len(sizes) != 1 or min(sizes, default=0) < 2:
        raise ValueError(
            f"{what}: data has {sorted(sizes)} samples; a tuple of arrays, all of one length of at least "
            "two, was expected."
        )
    return arrays


def _scalar(value: Any, what: str) -> Any:
    if value.shape != ():
        raise ValueError(f"{what}: the loss of one sample has shape {tuple(value.shape)}; a scalar was expected.")
    return value


def _checked(what: str, size: int, chunk: int | None, tol: float, evaluate: Evaluate) -> Samples:
    if chunk is not None and (int(chunk) != chunk or chunk < 1):
        raise ValueError(f"{what}: chunk is {chunk!r}; a positive integer was expected.")
    if not 0 < tol < 1:
        raise ValueError(f"{what}: tol is {tol!r}; a number between 0 and 1 was expected.")
    return Samples(size, int(chunk or _CHUNK), float(tol), evaluate)
