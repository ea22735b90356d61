"""Basins of attraction: to which minimum the flow of the drift, dx/dt = b(x), takes each point."""

from petsc4py import PETSc

import numpy as np
import scipy.linalg
from scipy.integrate import RK45

from ..._answer import place
from ..._errors import agree
from ..._sample import largest
from ...discretisation.generator import Generator
from ...discretisation.solution import bounds
from ..sampling import Array, directions
from ._regions import loads
from .contraction import drift_and_noise_at

_STEPS = 2000
_RTOL = 1e-7  # of a step's error, relative to the extent of the domain
_LEVELS = {1: 30, 2: 7, 3: 3}
_SHRINK = 0.02  # corners are moved inwards: meshes like to have vertices on the boundaries between basins
_STILL = 1e-9  # of the largest speed: the flow has arrived, at a saddle if it was not caught


class Flow:
    """Follows the drift from many points at once to one of the minima, shape (k, d), on each rank by itself."""

    def __init__(self, gen: Generator, minima: Array):
        values, d, comm = drift_and_noise_at(gen), gen.domain.dim, gen.domain.comm
        if values is None:
            raise ValueError(
                "basins of attraction: a drift or diffusion that is tabulated (fp.batched, a Function) is not known "
                "between the points of the mesh; write it with UFL, or pass basins=False."
            )
        self.drift = lambda x: values(x)[:, :d]
        lower, upper = bounds(gen.domain.mesh)
        self.extent = float(np.linalg.norm(upper - lower))
        self.box = (lower - self.extent, upper + self.extent)
        self.still = _STILL * largest(comm, np.linalg.norm(self.drift(gen.domain.mesh.geometry.x[:, :d]), axis=1))
        self.traps = [self._trap(minima, i) for i in range(len(minima))]
        wrong = [f"minima: {place(x)} does not attract the flow of the drift" for x, _, rho in self.traps if rho == 0]
        agree(comm, f"{wrong[0]}; check that it is a minimum." if wrong else None)

    def _trap(self, minima: Array, i: int) -> tuple[Array, Array, float]:
        """A point, P and ρ: {y·Py < ρ²}, y = x − point, is a neighbourhood from which the flow goes to the point.

        The largest of some in whose sample points the drift points inwards; ρ = 0 if none is.
        """
        point, dim = minima[i], len(minima[i])
        others = np.linalg.norm(np.delete(minima, i, axis=0) - point, axis=1)
        P, h = np.eye(dim), 1e-5 * self.extent * np.eye(dim)
        J = (self.drift(point + h) - self.drift(point - h)).T / (2 * h[0, 0])
        if np.linalg.eigvals(J).real.max() < -1e-8 * (np.linalg.norm(J) or 1.0):
            P = scipy.linalg.solve_continuous_lyapunov(J.T, -np.eye(dim))
            P /= np.linalg.eigvalsh(P)[0]  # within distance ρ of the point
        rays = directions(dim)[:: 1 if dim < 3 else 8] @ np.linalg.inv(np.linalg.cholesky(P))
        for rho in 0.5 * float(others.min(initial=self.extent)) * 0.7 ** np.arange(30):
            y = (rho * np.linspace(1 / 16, 1, 16)[:, None, None] * rays).reshape(-1, dim)
            if (np.einsum("ni,ij,nj->n", y, P, self.drift(point + y)) < 0).all():
                return point, P, rho
        return point, P, 0.0

    def labels(self, x: Array) -> Array:
        """Number of the minimum that each point, shape (n, d), is taken to; −1 for none."""
        label, active, x = np.full(len(x), -1), np.arange(len(x)), np.array(x)
        b = self.drift(x)
        h = 0.01 * self.extent / np.maximum(np.linalg.norm(b, axis=1), self.still)
        for _ in range(_STEPS):
            if not len(active):
                break
            h = self._step(x, b, h)
            ended = np.linalg.norm(b, axis=1) <= self.still
            ended |= ((x < self.box[0]) | (x > self.box[1])).any(axis=1)
            for number, (point, P, rho) in enumerate(self.traps):
                caught = np.einsum("ni,ij,nj->n", x - point, P, x - point) < rho**2
                label[active[caught]] = number
                ended |= caught
            active, x, b, h = active[~ended], x[~ended], b[~ended], h[~ended]
        return label

    def _step(self, x: Array, b: Array, h: Array) -> Array:
        """Advance those points whose step is accurate enough, in place; returns the next steps, one per point."""
        stages = [b]
        with np.errstate(all="ignore"):  # a step that leads to infinity is repeated with a shorter one
            for weights in [*RK45.A[1:], RK45.B]:  # Dormand and Prince's pair of orders 5 and 4
                new = x + h[:, None] * np.einsum("s,snd->nd", weights[: len(stages)], stages)
                stages.append(self.drift(new))
            error = h * np.linalg.norm(np.einsum("s,snd->nd", RK45.E, stages), axis=1)
            error = np.where(np.isfinite(error), error, np.inf)
            tolerance = _RTOL * self.extent
            good = error <= tolerance
            x[good], b[good] = new[good], stages[-1][good]
            return h * np.clip(0.9 * (tolerance / error) ** 0.2, 0.1, 5.0)


def basin_loads(gen: Generator, flow: Flow) -> tuple[list[PETSc.Vec], list[PETSc.Vec]]:
    """Loads of the basins, the last for what belongs to none, and what the last cutting changed (collective).

    Of the last pieces each corner stands for a share, so that the error is of first order in their size where a
    boundary is parallel to the mesh.
    """

    def classify(x: Array) -> tuple[Array, Array]:
        x = x + _SHRINK * (x.mean(axis=1, keepdims=True) - x)
        found = flow.labels(x.reshape(-1, x.shape[2])).reshape(x.shape[:2])
        counts = (found[:, :, None] == np.arange(len(flow.traps))).sum(axis=1)
        some = counts.sum(axis=1)
        # what is taken to a saddle lies between basins: the other corners decide
        share = np.column_stack([counts / np.maximum(some, 1)[:, None], some == 0])
        return share, (counts > 0).sum(axis=1) > 1

    levels = _LEVELS[gen.domain.dim]
    coarse, fine = (loads(gen, classify, n) for n in (levels - 1, levels))
    for a, b in zip(coarse, fine, strict=True):
        a.aypx(-1.0, b)
    return fine, coarse
