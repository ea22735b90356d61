"""Sources of the user (numbers, formulas, functions) and regions as functions of points, and loads of densities."""

from collections.abc import Callable
from typing import Any

from petsc4py import PETSc

import basix
import numpy as np
from dolfinx import fem

from .._arguments import is_number
from .._errors import agree, together
from ..discretisation.generator import Generator
from ..discretisation.solution import Solution
from ..domains.domain import Domain
from ..models.fields import Batched
from ..models.process import Process
from ..pointwise.family import lambdify
from ..pointwise.lambdify import PointSpace
from ._cells import cells_of
from .chain import Chain

Array = np.ndarray[Any, Any]
Field = Callable[[Array], Array]


def field(chain: Chain | Generator, source: Any, what: str) -> Field:
    """A scalar source as a function of points (n, d); only for chains a function on their space is one."""
    if isinstance(source, Solution):
        source = source.raw
    if is_number(source):
        return lambda x: np.full(len(x), float(source))
    if isinstance(source, fem.Function) and isinstance(chain, Chain):
        return _of_function(chain, source, what)
    if isinstance(source, Batched):
        return lambda x: np.asarray(source.function(x), dtype=float).reshape(len(x))
    process = chain.process if isinstance(chain.process, Process) else None
    space = PointSpace(chain.domain.dim, process=process)
    values = lambdify([space.scalar(source, what)], space)
    return lambda x: np.broadcast_to(values(np.ascontiguousarray(x.T))[0], len(x))


def _of_function(chain: Chain, function: fem.Function, what: str) -> Field:
    """A function on the chain's own space; other chains of the same algorithm see its values."""
    V, base = function.function_space, chain.base
    if V.ufl_element() != chain.V.ufl_element() or V.mesh != chain.domain.mesh:
        raise ValueError(
            f"{what}: {function.name!r} is a function of another space; expected the chain's own, chain.V."
        )
    values = chain.domain.comm.allgather(function.x.array[: base.M.getLocalSize()[0]])
    blocks = np.concatenate(values).reshape(base.cells.size, -1)

    def at(x: Array) -> Array:
        cell, reference = base.cells.locate(x, 1e-6)
        return (blocks[cell] * base.basis(reference)).sum(axis=1)

    return at


def inside_cells(domain: Domain, mine: Array) -> Callable[[Array], Array]:
    """Whether points (n, d) lie in some cells of a domain, given by a mask of this rank's own ones (collective)."""
    cells, chosen = cells_of(domain), np.concatenate([*domain.comm.allgather(mine), [False]])
    return lambda x: chosen[cells.locate(x, 1e-6)[0]]  # outside: number −1


def load(chain: Chain, density: Field, chosen: Array | None = None) -> PETSc.Vec:
    """∫ density φ_i by Gauss points of high degree in this rank's cells, or in ``chosen`` ones of them (collective)."""
    cells, vector = chain.cells, chain.M.createVecLeft()
    mine = np.arange(cells.begin, cells.end)
    mine = mine if chosen is None else mine[chosen[mine]]
    kind = [basix.CellType.interval, basix.CellType.triangle, basix.CellType.tetrahedron][cells.dim - 1]
    X, w = basix.make_quadrature(kind, 2 * chain.degree + 18)
    phi, size = chain.basis(X), max(1, 200_000 // len(w))
    blocks = vector.array_w.reshape(-1, phi.shape[1])
    with together(chain.domain.comm):
        for some in (mine[i : i + size] for i in range(0, len(mine), size)):
            edges = cells.vertices[some, 1:] - cells.vertices[some, :1]
            x = cells.vertices[some, 0][:, None] + np.einsum("qk,mki->mqi", X, edges)
            values = np.asarray(density(x.reshape(-1, cells.dim))).reshape(len(some), len(w))
            blocks[some - cells.begin] = (values * (w / w.sum()) * cells.volumes[some, None]) @ phi
    finite = np.isfinite(vector.array_r).all()
    agree(chain.domain.comm, None if finite else "a density is not finite on the domain.")
    return vector
