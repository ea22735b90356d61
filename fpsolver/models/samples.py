"""Per-sample losses of PyTorch and JAX functions: values and gradients of N samples at many points, in chunks.

Losses are differentiated forward with respect to x: in the few dimensions of a parameter domain this costs d + 1
evaluations, however many weights x stands for.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .._arguments import check_share
from ._autodiff import Library, check_losses, described

_NUMBERS = 2**21  # in the largest array of an evaluation: 16 MB, of which about six live at a time; more is not faster


class Samples:
    """N differentiable losses f_i(x) of a PyTorch or JAX function; see :meth:`fpsolver.PerSample.from_torch`.

    With ``batched``, f(x, *batch) gives the losses of all samples of a batch at once.

    Attributes:
        size: N.
        data: types and shapes of one sample's data, for messages.
        dim: d, where it is known.
        rtol: largest error of tabulation, relative to the largest value, that a generator accepts.
    """

    def __init__(
        self,
        library: Library,
        f: Callable[..., Any],
        data: Any,
        rtol: float,
        dim: int | None = None,
        batched: bool = False,
    ):
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
