"""Mean loss and covariance of many samples as continuous piecewise polynomials, with their error measured.

What is interpolated is a factor σ of Σ = σσᵀ, so that Σ stays semi-definite: of few samples their centred gradients,
smooth and of the right rank; of many the symmetric root, not smooth where an eigenvalue of Σ touches zero.
"""

from dataclasses import dataclass, field, replace

from mpi4py import MPI

import numpy as np
import ufl
from dolfinx import fem
from ufl.core.expr import Expr

from .._log import logger
from ._batched import at_points, missed, physical
from .fields import Space
from .samples import Samples

_HIGHEST = 8
_KINK = 0.02  # of the largest loss: what polynomials of degree 8 may miss of it where its gradient jumps
_FEW = 8  # samples of which the rectangular factor is tabulated


@dataclass(frozen=True)
class Table:
    """The interpolants of f and Σ (or of σ), their degree, and their largest error relative to the largest value."""

    loss: fem.Function
    factor: fem.Function | None
    covariance: Expr
    degree: int
    error: float
    exact: dict[int, tuple[Expr, Expr]] = field(default_factory=dict)  # ∇f and Σ at the points of quadrature degrees


def tabulate_samples(space: Space, samples: Samples) -> tuple[Expr, Expr, Expr]:
    """f, ∇f and Σ for batches of one sample as UFL; made once per mesh (collective)."""
    if samples not in space.tables:
        space.tables[samples] = _tabulate(space, samples)
    table, d, degree = space.tables[samples], space.dim, space.quadrature

    def both(x: np.ndarray) -> np.ndarray:
        _, gradient, covariance = samples.moments(x)
        return np.concatenate([gradient[:, None], covariance], axis=1)

    if table.error > samples.rtol:  # gradients jump, as those of ReLU networks: exact at quadrature points then
        space.inexact["PerSample"] = table.error
        if degree is not None:
            if degree not in table.exact:
                exact = at_points(space, (1 + d, d), both)
                gradient, *covariance = [[exact[i, j] for j in range(d)] for i in range(1 + d)]
                table.exact[degree] = ufl.as_vector(gradient), ufl.as_matrix(covariance)
            return table.loss, *table.exact[degree]
    return table.loss, space.grad(table.loss), table.covariance


def _tabulate(space: Space, samples: Samples) -> Table:
    # in the middle of the cells and towards their corners, none of the points a node up to degree 8
    d = space.mesh.topology.dim
    middle = np.array([0.3819, 0.2764, 0.1459][:d])
    probe = np.vstack([middle, 0.85 * np.vstack([np.zeros(d), np.eye(d)]) + 0.15 * middle])
    places = physical(space, probe)  # in all cells: a jump is in few
    _compare_ranks(space, samples, places)
    f, gradient, covariance = _evaluate(space, samples, places)
    with space.together():
        if problem := _not_differentiable(samples, places, f, gradient):
            raise ValueError(f"PerSample: the loss {problem}")
    if not space.mesh.comm.allreduce(bool(gradient.any() or covariance.any()), op=MPI.LOR):
        raise ValueError("PerSample: the losses do not depend on x: their gradients are zero everywhere.")
    for degree in range(min(space.degree + 1, _HIGHEST), _HIGHEST + 1):
        table = _interpolate(space, samples, degree)
        pairs = ((table.loss, f), (table.covariance, covariance))
        errors = [missed(space, expression, probe, values) for expression, values in pairs]
        error = max(errors)
        logger.info("loss and covariance of %d samples tabulated at degree %d: error %.1e", samples.size, degree, error)
        if error <= samples.rtol:
            return replace(table, error=error)
    if errors[0] > max(samples.rtol, _KINK) or _loss_jumps(space, samples, places):
        raise ValueError(
            f"PerSample: loss and covariance of the {samples.size} samples cannot be tabulated on this mesh to rtol = "
            f"{samples.rtol:g}: the loss's error is {errors[0]:.2g} of the largest value at degree {degree}. Refine "
            "the mesh, or make the domain smaller; gradients may jump, losses that jump themselves cannot be tabulated."
        )
    logger.info("polynomials miss Σ by %.1e (do gradients jump?): it is evaluated at quadrature points instead", error)
    # continuous and linear in each cell, hence semi-definite
    linear = _function(space, 1, _evaluate(space, samples, _nodes(space, 1))[2])
    return Table(_interpolate(space, samples, space.degree + 1).loss, None, linear, 1, error)


def _loss_jumps(space: Space, samples: Samples, places: np.ndarray) -> bool:
    """Whether f itself jumps inside a cell, on any rank: bisection of the lines that gradients explain worst."""
    x = places.reshape(-1, space.mesh.topology.dim + 2, space.dim)
    jumps = False

    def unexplained(left: list[np.ndarray], right: list[np.ndarray]) -> np.ndarray:
        """|f(b) − f(a) − ½(∇f(a) + ∇f(b))·(b − a)|: a jump of f whole, of a kink what shrinks with the distance."""
        slopes = 0.5 * np.einsum("ni,ni->n", left[2] + right[2], right[0] - left[0])
        return np.asarray(np.abs(right[1] - left[1] - slopes))

    with space.together():
        if len(x):
            ends = [x[:, :1].repeat(x.shape[1] - 1, axis=1), x[:, 1:]]
            left, right = ([a, *samples.moments(a)[:2]] for a in (end.reshape(-1, space.dim) for end in ends))
            size, before = np.abs(left[1]).max(), unexplained(left, right)
            worst = np.argsort(before)[-64:]
            left, right, before = [v[worst] for v in left], [v[worst] for v in right], before[worst]
            for _ in range(20):
                m = 0.5 * (left[0] + right[0])
                middle = [m, *samples.moments(m)[:2]]
                first = unexplained(left, middle) > unexplained(middle, right)
                for k, v in enumerate(middle):
                    here = first[:, None] if v.ndim == 2 else first
                    left[k], right[k] = np.where(here, left[k], v), np.where(here, v, right[k])
            jumps = bool((np.abs(right[1] - left[1]) > np.maximum(0.05 * before, 1e-6 * size)).any())
    return bool(space.mesh.comm.allreduce(jumps, op=MPI.LOR))


def _nodes(space: Space, degree: int) -> np.ndarray:
    """This rank's, shape (n, dim)."""
    V = fem.functionspace(space.mesh, ("Lagrange", degree))
    return V.tabulate_dof_coordinates()[: V.dofmap.index_map.size_local, : space.dim]


def _function(space: Space, degree: int, values: np.ndarray) -> fem.Function:
    """Of values at this rank's nodes; spaces of all shapes number them alike: one element, blocked (collective)."""
    function = fem.Function(fem.functionspace(space.mesh, ("Lagrange", degree, values.shape[1:])))
    function.x.array[: values.size] = values.ravel()
    function.x.scatter_forward()
    return function


def _compare_ranks(space: Space, samples: Samples, x: np.ndarray) -> None:
    """Each rank has losses of its own, and they must be the same."""
    comm = space.mesh.comm
    place = next(p for p in comm.allgather(x[:1]) if len(p))
    found = comm.allgather((samples.size, float(_evaluate(space, samples, place)[0][0])))
    if any(n != found[0][0] or abs(v - found[0][1]) > 1e-6 * abs(found[0][1]) for n, v in found):
        raise ValueError(
            f"PerSample: the losses differ between ranks: their numbers and means at {tuple(map(float, place[0]))} are "
            f"{found}. Seed whatever is random, or send it from one rank to the others (comm.bcast)."
        )


def _interpolate(space: Space, samples: Samples, degree: int) -> Table:
    x = _nodes(space, degree)
    values, _, covariance = _evaluate(space, samples, x)
    if samples.size <= _FEW:  # [g_1 − ḡ, ..., g_N − ḡ] / √N, shape (n, d, N)
        g = samples.losses_and_gradients(x)[1]
        root = (g - g.mean(axis=1, keepdims=True)).transpose(0, 2, 1) / np.sqrt(samples.size)
    else:
        eigenvalues, vectors = np.linalg.eigh(covariance)
        root = (vectors * np.sqrt(np.maximum(eigenvalues, 0.0))[:, None, :]) @ vectors.transpose(0, 2, 1)
    factor = _function(space, degree, root)
    return Table(_function(space, degree, values), factor, ufl.dot(factor, ufl.transpose(factor)), degree, np.inf)


def _evaluate(space: Space, samples: Samples, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """f, ∇f and Σ at this rank's points, which must be finite (collective)."""
    with space.together():
        try:
            found = samples.moments(x)
        except Exception as error:
            where = f"on points of shape {x.shape} and samples of {samples.data}"
            raise ValueError(f"PerSample: the loss failed {where}: {type(error).__name__}: {error}") from error
        for v in found:
            if not np.isfinite(v).all():
                bad = x[np.argwhere(~np.isfinite(v))[0, 0]]
                raise ValueError(f"PerSample: the loss or its gradient is not finite at {tuple(map(float, bad))}.")
    return found


def _not_differentiable(samples: Samples, x: np.ndarray, f: np.ndarray, gradient: np.ndarray) -> str | None:
    """Compare the gradient with central differences at a few points; kinks may spoil some, not most of them."""
    if len(x) > 1 and not gradient.any() and np.ptp(f) > 0:
        return "varies, but its gradient is zero everywhere: is it differentiable (no rounding, argmax, detach)?"
    if not len(x):
        return None
    some = np.linspace(0, len(x) - 1, min(8, len(x))).astype(int)
    steps = 1e-6 * max(1.0, float(np.ptp(x))) * np.eye(x.shape[1])
    ends = [[samples.losses_and_gradients(x[some] + s * e)[0].mean(axis=1) for e in steps] for s in (1.0, -1.0)]
    differences = (np.array(ends[0]) - np.array(ends[1])).T / (2 * steps[0, 0])
    scale = np.abs(differences).max() + 1e-6 * (np.abs(f).max() + 1e-300)
    wrong = np.abs(differences - gradient[some]).max(axis=1) > 1e-3 * scale
    if 2 * np.count_nonzero(wrong) <= len(some):
        return None
    return (
        f"does not belong to its gradient: at {tuple(float(c) for c in x[some[0]])} automatic differentiation gives "
        f"{gradient[some[0]]}, differences {differences[0]}. Is it differentiable (no rounding, argmax, detach), "
        "and in double precision?"
    )
