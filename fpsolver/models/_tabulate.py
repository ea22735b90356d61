"""Mean loss and covariance of many samples as continuous piecewise polynomials, with their error measured.

What is interpolated is a factor σ of Σ = σσᵀ, so that Σ is positive semi-definite at every degree: of few samples the
rectangular one, their centred gradients, which is smooth and keeps the rank; of many the symmetric root, which is not
smooth where an eigenvalue of Σ touches zero.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mpi4py import MPI

import numpy as np
import ufl
from dolfinx import fem
from ufl.core.expr import Expr

from .._log import logger
from .fields import Space
from .samples import Samples

_HIGHEST = 8
_FEW = 8  # samples of which the rectangular factor is tabulated
_PROBES = 32  # cells per rank in which a table is compared with the function itself


@dataclass(frozen=True)
class Table:
    """The interpolants, their degree, and their largest error relative to the largest value."""

    loss: fem.Function
    factor: fem.Function
    degree: int
    error: float


def tabulate_samples(space: Space, samples: Samples) -> tuple[Expr, Expr]:
    """f and Σ for batches of one sample as UFL; made once per mesh (collective).

    Raises:
        ValueError: values that are not finite, gradients that do not belong to the losses, or an error above
            ``samples.rtol`` at the highest degree.
    """
    if samples not in space.tables:
        space.tables[samples] = _tabulate(space, samples)
    table = space.tables[samples]
    return table.loss, _covariance(table)


def _tabulate(space: Space, samples: Samples) -> Table:
    probes = _probe_cells(space)
    places = _places(space, probes)
    _compare_ranks(space, samples, places)
    exact = _moments(space, samples, places)
    for degree in range(min(space.degree + 1, _HIGHEST), _HIGHEST + 1):
        table = _interpolate(space, samples, degree)
        error = _error(space, table, probes, exact)
        logger.info("loss and covariance of %d samples tabulated at degree %d: error %.1e", samples.size, degree, error)
        if error <= samples.rtol:
            return Table(table.loss, table.factor, degree, error)
    raise ValueError(
        f"PerSample: loss and covariance of the {samples.size} samples cannot be tabulated on this mesh to rtol = "
        f"{samples.rtol:g}: the error is {error:.2g} of the largest value at degree {degree}. Refine the mesh, make "
        "the domain smaller, or accept a larger rtol; losses or gradients that jump cannot be tabulated at all."
    )


def _compare_ranks(space: Space, samples: Samples, x: np.ndarray) -> None:
    """Each rank has losses of its own, and they must be the same."""
    comm = space.mesh.comm
    place = next(p for p in comm.allgather(x[:1]) if len(p))
    f, _, _ = _evaluate(space, samples, place)
    found = comm.allgather((samples.size, float(f[0])))
    if any(n != found[0][0] or abs(v - found[0][1]) > 1e-6 * abs(found[0][1]) for n, v in found):
        raise ValueError(
            f"PerSample: the losses differ between ranks: their numbers and means at {tuple(map(float, place[0]))} are "
            f"{found}. Seed whatever is random, or send it from one rank to the others (comm.bcast)."
        )


def _covariance(table: Table) -> Expr:
    return ufl.dot(table.factor, ufl.transpose(table.factor))


def _interpolate(space: Space, samples: Samples, degree: int) -> Table:
    V = fem.functionspace(space.mesh, ("Lagrange", degree))
    owned = V.dofmap.index_map.size_local
    x = V.tabulate_dof_coordinates()[:owned, : space.dim]
    values, covariance = _moments(space, samples, x)
    factors = _factors(samples, x) if samples.size <= _FEW else _roots(covariance)
    shape = factors.shape[1:]
    loss = fem.Function(V)
    factor = fem.Function(fem.functionspace(space.mesh, ("Lagrange", degree, shape)))
    loss.x.array[:owned] = values
    factor.x.array[: factors.size] = factors.ravel()  # both spaces number their nodes alike: one element, blocked
    for function in (loss, factor):
        function.x.scatter_forward()
    return Table(loss, factor, degree, np.inf)


def _factors(samples: Samples, x: np.ndarray) -> np.ndarray:
    """σ = [g_1 − ḡ, ..., g_N − ḡ] / √N, shape (n, d, N)."""
    _, g = samples.losses_and_gradients(x)
    return (g - g.mean(axis=1, keepdims=True)).transpose(0, 2, 1) / np.sqrt(samples.size)


def _roots(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]) @ vectors.transpose(0, 2, 1)


def _moments(space: Space, samples: Samples, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f and Σ at this rank's points, where they must be finite and belong to each other (collective)."""
    f, gradient, covariance = _evaluate(space, samples, x)
    with space.together():
        with _explained(f"beside points of shape {x.shape}"):
            problem = _not_finite(x, f, covariance) or _not_differentiable(samples, x, f, gradient)
        if problem:
            raise ValueError(f"PerSample: the loss {problem}")
    if not space.mesh.comm.allreduce(bool(gradient.any() or covariance.any()), op=MPI.LOR):
        raise ValueError("PerSample: the losses do not depend on x: their gradients are zero everywhere.")
    return f, covariance


def _evaluate(space: Space, samples: Samples, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """f, ∇f and Σ at this rank's points; failures are raised on every rank (collective)."""
    with space.together(), _explained(f"on points of shape {x.shape} and samples of {samples.data}"):
        return samples.moments(x)


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Say where the user's loss failed."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"PerSample: the loss failed {where}: {type(error).__name__}: {error}") from error


def _not_finite(x: np.ndarray, *values: np.ndarray) -> str | None:
    for v in values:
        if not np.isfinite(v).all():
            bad = x[np.argwhere(~np.isfinite(v))[0, 0]]
            return f"or its gradient is not finite at {tuple(float(c) for c in bad)}."
    return None


def _not_differentiable(samples: Samples, x: np.ndarray, f: np.ndarray, gradient: np.ndarray) -> str | None:
    """Compare the gradient with central differences at a few points; kinks may spoil some, not most of them."""
    if len(x) > 1 and not gradient.any() and np.ptp(f) > 0:
        return "varies, but its gradient is zero everywhere: is it differentiable (no rounding, argmax, detach)?"
    some = np.linspace(0, len(x) - 1, min(8, len(x))).astype(int)
    if not len(some):
        return None
    step = 1e-6 * max(1.0, float(np.ptp(x)))
    differences = np.empty((len(some), x.shape[1]))
    for axis, e in enumerate(step * np.eye(x.shape[1])):
        ends = [samples.losses_and_gradients(x[some] + s * e)[0].mean(axis=1) for s in (1.0, -1.0)]
        differences[:, axis] = (ends[0] - ends[1]) / (2 * step)
    scale = np.abs(differences).max() + 1e-6 * (np.abs(f).max() + 1e-300)
    wrong = np.abs(differences - gradient[some]).max(axis=1) > 1e-3 * scale
    if 2 * np.count_nonzero(wrong) <= len(some):
        return None
    return (
        f"does not belong to its gradient: at {tuple(float(c) for c in x[some[0]])} automatic differentiation gives "
        f"{gradient[some[0]]}, differences {differences[0]}. Is it differentiable (no rounding, argmax, detach), "
        "and in double precision?"
    )


def _probe_cells(space: Space) -> np.ndarray:
    owned = space.mesh.topology.index_map(space.mesh.topology.dim).size_local
    return np.unique(np.linspace(0, owned - 1, min(_PROBES, owned)).astype(np.int32))


def _places(space: Space, cells: np.ndarray) -> np.ndarray:
    """Some points in the interior of each cell, shape (cells * points, dim)."""
    x = fem.Expression(ufl.SpatialCoordinate(space.mesh), _probe(space)).eval(space.mesh, cells)
    return x.reshape(-1, space.mesh.geometry.dim)[:, : space.dim]


def _probe(space: Space) -> np.ndarray:
    """Points of the reference cell in its middle and towards its corners, none of them a node up to degree 8."""
    d = space.mesh.topology.dim
    middle, corners = np.array([0.3819, 0.2764, 0.1459][:d]), np.vstack([np.zeros(d), np.eye(d)])
    return np.vstack([middle, corners + 0.15 * (middle - corners)])


def _error(space: Space, table: Table, cells: np.ndarray, exact: tuple[np.ndarray, np.ndarray]) -> float:
    worst = 0.0
    for expression, values in ((table.loss, exact[0]), (_covariance(table), exact[1])):
        found = fem.Expression(expression, _probe(space)).eval(space.mesh, cells).reshape(values.shape)
        largest = space.mesh.comm.allreduce(float(np.abs(values).max(initial=0.0)), op=MPI.MAX)
        difference = space.mesh.comm.allreduce(float(np.abs(found - values).max(initial=0.0)), op=MPI.MAX)
        worst = max(worst, difference / largest if largest > 0 else 0.0)
    return worst
