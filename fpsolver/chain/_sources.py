"""Sources of the user (numbers, formulas, functions, densities) as functions of points, and what they load."""

from collections.abc import Callable
from typing import Any

from petsc4py import PETSc

import basix
import numpy as np
from dolfinx import fem

from .._errors import agree
from ..discretisation.solution import Solution, as_points
from ..evolution.initial import Dirac, Gaussian
from ..models.fields import Batched, is_number
from ..models.process import Process
from ..pointwise.family import lambdify
from ..pointwise.lambdify import PointSpace
from ._cells import Cells
from .chain import Chain

Array = np.ndarray[Any, Any]
Field = Callable[[Array], Array]
_REACH = 9.0  # standard deviations of a Gaussian


def field(chain: Chain, source: Any, what: str) -> Field:
    """A scalar source as a function of points (n, d)."""
    if isinstance(source, Solution):
        source = source.raw
    if is_number(source):
        return lambda x: np.full(len(x), float(source))
    if isinstance(source, fem.Function):
        return _of_function(chain, source, what)
    if isinstance(source, Batched):
        return lambda x: np.asarray(source.function(x), dtype=float).reshape(len(x))
    process = chain.process if isinstance(chain.process, Process) else None
    space = PointSpace(chain.domain.dim, process=process)
    values = lambdify([space.scalar(source, what)], space)
    return lambda x: np.broadcast_to(values(np.ascontiguousarray(x.T))[0], len(x))


def _of_function(chain: Chain, function: fem.Function, what: str) -> Field:
    """A function on the chain's own space; other chains of the same algorithm see its values."""
    if (
        function.function_space.ufl_element() != chain.V.ufl_element()
        or function.function_space.mesh != chain.domain.mesh
    ):
        raise ValueError(
            f"{what}: {function.name!r} is a function of another space; expected the chain's own, chain.V."
        )
    base = chain.base
    values = chain.domain.comm.allgather(function.x.array[: base.M.getLocalSize()[0]])
    blocks = np.concatenate(values).reshape(base.cells.size, -1)

    def at(x: Array) -> Array:
        cell, reference = base.cells.nearest(x, 1e-6)
        return (blocks[cell] * base.basis(reference)).sum(axis=1)

    return at


def is_density(start: Any) -> bool:
    """Whether a start is an initial law rather than points."""
    return isinstance(start, Gaussian | Dirac | fem.Function | Solution) or callable(start)


def load_density(chain: Chain, start: Any, what: str = "start") -> PETSc.Vec:
    """∫ p φ_i of an initial law p, whose sum is one (collective).

    Raises:
        ValueError: a point outside, or a mass that is not one.
    """
    if isinstance(start, Dirac):
        return chain.dirac(as_points([start.point], chain.domain.dim, what)[0])
    if not is_density(start):
        points = as_points(start, chain.domain.dim, what)
        if len(points) != 1:
            raise ValueError(f"{what}: {len(points)} points; one was expected, or a density.")
        return chain.dirac(points[0])
    if isinstance(start, Solution):
        start = start.raw
    near = None
    if isinstance(start, Gaussian):
        near, density = _gaussian(chain, start)
    else:
        density = field(chain, start, what)
    own = isinstance(start, fem.Function) and chain is chain.base
    vector = chain.masked(lambda x: np.ones(len(x)), chain.vector(start)) if own else _load(chain, density, near)
    mass = float(vector.sum())
    least = 0.5 if isinstance(start, Gaussian) else 0.999
    if not least <= mass <= 1.001:
        raise ValueError(f"{what}: the density has mass {mass:.6g} in the domain where 1 was expected; normalise it.")
    vector.scale(1.0 / mass)
    return vector


def _gaussian(chain: Chain, source: Gaussian) -> tuple[Array | None, Field]:
    mean, std = np.array(source.mean), np.array(source.std)
    if len(mean) != chain.domain.dim:
        raise ValueError(f"gaussian: mean has {len(mean)} coordinate(s); the domain has {chain.domain.dim}.")
    low, high = chain.cells.vertices.min(axis=1), chain.cells.vertices.max(axis=1)
    gap = np.maximum(np.maximum(low - mean, mean - high), 0.0) / std
    scale = np.prod(np.sqrt(2 * np.pi) * std)
    return (gap <= _REACH).all(axis=1), lambda x: np.exp(-0.5 * (((x - mean) / std) ** 2).sum(axis=1)) / scale


def _load(chain: Chain, density: Field, near: Array | None) -> PETSc.Vec:
    """∫ density φ_i by Gauss points of high degree in the cells of this rank."""
    cells, vector = chain.cells, chain.M.createVecLeft()
    chosen = np.arange(cells.begin, cells.end)
    chosen = chosen if near is None else chosen[near[chosen]]
    X, w = gauss(cells, 2 * chain.degree + 18)
    phi, problem = chain.basis(X), None
    blocks = vector.array_w.reshape(-1, phi.shape[1])
    size = max(1, 200_000 // len(w))
    try:
        for some in (chosen[i : i + size] for i in range(0, len(chosen), size)):
            x = push_forward(cells, some, X)
            values = np.asarray(density(x.reshape(-1, cells.dim))).reshape(len(some), len(w))
            blocks[some - cells.begin] = (values * w * cells.volumes[some, None]) @ phi
    except (ValueError, TypeError) as e:
        problem = str(e)
    finite = np.isfinite(vector.array_r).all()
    agree(chain.domain.comm, problem or (None if finite else "start is not finite on the domain."))
    return vector


def gauss(cells: Cells, degree: int) -> tuple[Array, Array]:
    """Points of the reference cell and weights that sum to one."""
    kind = [basix.CellType.interval, basix.CellType.triangle, basix.CellType.tetrahedron][cells.dim - 1]
    X, w = basix.make_quadrature(kind, degree)
    return X, w / w.sum()


def push_forward(cells: Cells, chosen: Array, X: Array) -> Array:
    """Points (m, q, d) of some cells at reference points (q, d)."""
    edges = cells.vertices[chosen, 1:] - cells.vertices[chosen, :1]
    return cells.vertices[chosen, 0][:, None] + np.einsum("qk,mki->mqi", X, edges)
