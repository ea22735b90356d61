"""Whether the losses of a network are what they are taken for: reproducible, one for each sample, differentiable."""

from collections.abc import Callable

import numpy as np

Vector = np.ndarray


def unsuitable(w: Vector, losses: Callable[..., Vector], jvp: Callable[[Vector, Vector], Vector]) -> str | None:
    """What is wrong with the losses of a network at weights w, None if nothing is."""
    f = losses(w)
    if not np.isfinite(f).all():
        bad = np.flatnonzero(~np.isfinite(f))
        return f"of {len(bad)} of the {len(f)} samples are not finite, that of sample {bad[0]} is {f[bad[0]]}."
    small = 1e-9 * float(np.abs(f).max())
    if not np.allclose(f, losses(w), rtol=1e-6, atol=small):
        return "are random: they differ from call to call (drop-out that evaluation mode does not switch off?)."
    if not np.allclose(f[:2], losses(w, np.arange(2)), rtol=1e-6, atol=small):
        return "of samples depend on the others of their batch (batch normalisation without running statistics?)."
    return _not_differentiable(w, f, losses, jvp)


def _not_differentiable(
    w: Vector, f: Vector, losses: Callable[..., Vector], jvp: Callable[[Vector, Vector], Vector]
) -> str | None:
    """Compare derivatives in a random direction with differences, over all samples: few of them are near kinks."""
    v = np.random.default_rng(0).standard_normal(len(w))
    v *= max(1.0, float(np.linalg.norm(w))) / np.linalg.norm(v)
    slopes = jvp(w, v)
    if not slopes.any() and not jvp(w + v, v).any():
        return (
            "do not change with the weights, as far as automatic differentiation sees: is the model differentiable "
            "(no rounding, argmax, detach)?"
        )
    h = 1e-7  # so small that single precision shows
    ahead, behind = losses(w + h * v), losses(w - h * v)
    differences = (ahead - behind) / (2 * h)
    scale = sum(float(np.linalg.norm(a)) for a in (differences, (ahead - f) / h, (behind - f) / h))
    if np.linalg.norm(slopes - differences) <= 1e-2 * scale + 1e-7 * float(np.linalg.norm(f)):
        return None
    worst = int(np.argmax(np.abs(slopes - differences)))
    return (
        f"do not belong to their derivatives: in a random direction that of sample {worst} is {slopes[worst]:.6g}, by "
        f"differences {differences[worst]:.6g}. Is the model differentiable (no rounding, argmax, detach), and in "
        "double precision?"
    )
