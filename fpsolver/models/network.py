"""A model with its data on the space of all its weights: losses, gradients, curvature and noise, without forming them.

J is the matrix of per-sample gradients, (N, P); Jv is one forward, Jᵀc one reverse differentiation of the N losses, so
that Σv = Jᵀ(c − mean c)/N with c = Jv costs two, and networks of 1e5 weights are no difficulty.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .._arguments import check_integer, check_positive, expect
from .noise import PerSample
from .samples import Library, Samples, check_losses, described, jax_library, torch_library

Vector = np.ndarray

_NUMBERS = 2**22  # in the gradients of several samples that are held at a time: 32 MB


class Network:
    """A model, its N data, and the loss of each datum, as functions of the P weights.

    Made by :meth:`from_torch` and :meth:`from_jax`.

    Attributes:
        weights, size: the weights it was given with, shape (P,), in double precision; N.
        shapes: of the weight arrays, in the order in which ``weights`` strings them together.
        losses: weights (P,), sample indices (B,) -> their losses (B,); of all samples (N,) without indices.
        jvp: weights, v (P,) -> J v (N,).
        vjp: weights, c (N,) -> Jᵀ c (P,).
        hvp: weights, v (P,) -> ∇²f v (P,), with f the mean loss.
        batch_gradient: weights, sample indices (B,) -> their mean gradient (P,): one step of SGD.
        sample_gradients: weights, sample indices (B,) -> the gradient of each (B, P).
        filter_axis: axis of a weight array that counts outputs: 0 in PyTorch, -1 in JAX.
    """

    def __init__(self, library: Library, weights: Vector, shapes: Sequence[Any], outputs: Any, loss: Any, data: Any):
        self.weights, self.shapes, self.filter_axis = weights, tuple(shapes), library.filter_axis
        self._library, self._data, arrays = library, data, library.data(data)
        self.size, func, numpy = len(arrays[0]), library.func, library.numpy

        def losses(w: Any, *batch: Any) -> Any:
            fit = tuple(w.shape) == weights.shape
            expect("Network: the weights' shape", tuple(w.shape), f"{weights.shape}", fit)
            n = len(batch[0])
            expected = f"expected ({n},), one for each sample (reduction='none')"
            return check_losses(loss(outputs(w, batch[0]), *batch[1:]), (n,), "Network", f"{n} samples", expected)

        self._losses, everything = losses, lambda w: losses(w, *arrays)
        mean_gradient = func.grad(lambda w, *batch: losses(w, *batch).mean())
        one_gradient = func.grad(lambda w, *sample: losses(w, *(a[None] for a in sample))[0])
        some, one_step = numpy(losses), numpy(mean_gradient)
        gradients = numpy(func.vmap(one_gradient, (None, *[0] * len(arrays))))
        self.losses = lambda w, i=None: some(w, *(arrays if i is None else (a[i] for a in arrays)))
        self.jvp = numpy(lambda w, v: func.jvp(everything, (w,), (v,))[1])
        self.vjp = numpy(lambda w, c: func.vjp(everything, w)[1](c)[0])
        self.hvp = numpy(lambda w, v: func.jvp(lambda u: mean_gradient(u, *arrays), (w,), (v,))[1])
        self.batch_gradient = lambda w, i: one_step(w, *(a[i] for a in arrays))
        self.sample_gradients = lambda w, i: gradients(w, *(a[i] for a in arrays))
        try:
            problem = self._unsuitable()
        except Exception as error:
            advice = "Take layers of elementary operations: torch.nn.Embedding and a mean instead of EmbeddingBag."
            raise ValueError(
                f"{library.what}: model and loss fail on {self.size} samples of {described(arrays)}: "
                f"{type(error).__name__}: {error} {advice if isinstance(error, NotImplementedError) else ''}"
            ) from error
        if problem:
            raise ValueError(f"{library.what}: the losses {problem}")

    @classmethod
    def from_torch(cls, model: Any, loss: Callable[..., Any], data: Any) -> "Network":
        """A ``torch.nn.Module``.

        A copy of it is called with batches of inputs, in evaluation mode (no drop-out, fixed batch normalisation) and
        double precision; weights are the parameters that require gradients.  loss(outputs, *targets) gives the losses
        of the samples, (B,): ``reduction="none"``; ``data`` is (inputs, *targets), whose first axis counts samples.

        Raises:
            ValueError: losses of the wrong shape or type, that are not finite at the model's own weights, are random,
                depend on the other samples of the batch, or do not belong to their derivatives.
        """
        library = torch_library("Network.from_torch")
        import torch
        from torch.func import functional_call

        if not isinstance(model, torch.nn.Module):
            kind = type(model).__name__
            raise TypeError(f"Network.from_torch: the model is a {kind}; a torch.nn.Module was expected.")
        model = copy.deepcopy(model).double().eval()
        named = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        if not named:
            frozen = sum(1 for _ in model.parameters())
            what = f"none of its {frozen} parameter arrays requires a gradient"
            raise TypeError(f"Network.from_torch: the model has no weights: {what}.")

        def outputs(w: Any, inputs: Any) -> Any:
            pieces = torch.split(w, [p.numel() for p in named.values()])
            params = {name: piece.reshape(p.shape) for (name, p), piece in zip(named.items(), pieces, strict=True)}
            return functional_call(model, params, (inputs,))

        weights = torch.cat([p.reshape(-1) for p in named.values()]).numpy().copy()
        return cls(library, weights, [tuple(p.shape) for p in named.values()], outputs, loss, data)

    @classmethod
    def from_jax(cls, apply: Callable[..., Any], params: Any, loss: Callable[..., Any], data: Any) -> "Network":
        """A JAX function apply(params, inputs) -> outputs with a tree of weights; see :meth:`from_torch`."""
        library = jax_library("Network.from_jax")
        import jax
        from jax.flatten_util import ravel_pytree

        with jax.enable_x64(True):
            weights, unravel = ravel_pytree(jax.tree.map(lambda p: np.asarray(p, dtype=float), params))
        if not len(weights):
            raise TypeError("Network.from_jax: the model has no weights: params is an empty tree.")
        shapes = [tuple(np.shape(p)) for p in jax.tree.leaves(params)]
        return cls(library, np.array(weights), shapes, lambda w, inputs: apply(unravel(w), inputs), loss, data)

    def point(self, weights: Any, what: str) -> Vector:
        """Weights as an array (P,), checked to be finite; by default those that the network was given with."""
        w = np.asarray(self.weights if weights is None else weights, dtype=float)
        expect(f"{what}: the weights' shape", w.shape, f"{self.weights.shape}", w.shape == self.weights.shape)
        if not np.isfinite(w).all():
            raise ValueError(f"{what}: the weights are not finite.")
        return w

    def gradient(self, weights: Vector) -> Vector:
        """∇f, shape (P,)."""
        return self.vjp(weights, np.full(self.size, 1.0 / self.size))

    def noise(self, weights: Vector, v: Vector) -> Vector:
        """Σv for batches of one sample, shape (P,)."""
        c = self.jvp(weights, v)
        return self.vjp(weights, (c - c.mean()) / self.size)

    def noise_trace(self, weights: Vector) -> float:
        """tr Σ for batches of one sample, from all N gradients, some at a time."""
        mean, square = self.gradient(weights), 0.0
        for i in range(0, self.size, rows := max(1, _NUMBERS // len(weights))):
            centred = self.sample_gradients(weights, np.arange(i, min(i + rows, self.size))) - mean
            square += float(np.vdot(centred, centred))
        return square / self.size

    def restricted(self, origin: Vector, directions: np.ndarray, rtol: float = 1e-3) -> PerSample:
        """The samples as functions of x in origin + directions x, for :class:`~fpsolver.SGD`; see :class:`Slice`."""
        o, V = map(self._library.array, (self.point(origin, "a slice's origin"), directions))
        part = lambda x, *batch: self._losses(o + V @ x, *batch)  # noqa: E731
        return PerSample(Samples(self._library, part, self._data, rtol, directions.shape[1], batched=True))

    def sgd(
        self, learning_rate: float, steps: int, batch_size: int = 1, start: Vector | None = None, seed: int = 0,
        every: int = 1,
    ) -> np.ndarray:  # fmt: skip
        """Train: weights after every ``every`` steps of SGD (batches with replacement), shape (1 + steps/every, P)."""
        check_positive("sgd: learning_rate", learning_rate)
        batch_size = check_integer("sgd: batch_size", batch_size, most=self.size)
        steps, every = check_integer("sgd: steps", steps, 0), check_integer("sgd: every", every)
        random, w = np.random.default_rng(seed), self.point(start, "sgd").copy()
        path = [w.copy()]
        for step in range(1, steps + 1):
            w -= learning_rate * self.batch_gradient(w, random.integers(0, self.size, batch_size))
            if not np.isfinite(w).all():
                raise ValueError(f"sgd diverges: weights are not finite after {step} steps; lower the learning rate.")
            if step % every == 0:
                path.append(w.copy())
        return np.array(path)

    def _unsuitable(self) -> str | None:
        """What is wrong with the losses at the network's own weights: they are not what they are taken for."""
        w, losses, jvp = self.weights, self.losses, self.jvp
        f = losses(w)
        if not np.isfinite(f).all():
            bad = np.flatnonzero(~np.isfinite(f))
            return f"of {len(bad)} of the {len(f)} samples are not finite, that of sample {bad[0]} is {f[bad[0]]}."
        small = 1e-9 * float(np.abs(f).max())
        if not np.allclose(f, losses(w), rtol=1e-6, atol=small):
            return "are random: they differ from call to call (drop-out that evaluation mode does not switch off?)."
        if not np.allclose(f[:2], losses(w, np.arange(2)), rtol=1e-6, atol=small):
            return "of samples depend on the others of their batch (batch normalisation without running statistics?)."
        # derivatives in a random direction against differences, over all samples: few of them are near kinks
        v = np.random.default_rng(0).standard_normal(len(w))
        v *= max(1.0, float(np.linalg.norm(w))) / np.linalg.norm(v)
        slopes, advice = jvp(w, v), "is the model differentiable (no rounding, argmax, detach)"
        if not slopes.any() and not jvp(w + v, v).any():
            return f"do not change with the weights, as far as automatic differentiation sees: {advice}?"
        h = 1e-7  # so small that single precision shows
        ahead, behind = losses(w + h * v), losses(w - h * v)
        differences = (ahead - behind) / (2 * h)
        scale = sum(float(np.linalg.norm(a)) for a in (differences, (ahead - f) / h, (behind - f) / h))
        if np.linalg.norm(slopes - differences) <= 1e-2 * scale + 1e-7 * float(np.linalg.norm(f)):
            return None
        worst = int(np.argmax(np.abs(slopes - differences)))
        return (
            f"do not belong to their derivatives: in a random direction that of sample {worst} is {slopes[worst]:.6g}, "
            f"by differences {differences[worst]:.6g}: {advice}, and in double precision?"
        )
