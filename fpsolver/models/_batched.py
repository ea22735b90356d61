"""Functions of many points at once, tabulated on a mesh or exact at quadrature points."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import basix.ufl
import dolfinx
import numpy as np
from dolfinx import fem
from ufl.core.expr import Expr

from .._arguments import expect
from .._compat import interpolation_points
from .._log import logger
from .._sample import compiled, largest, own_cells, push_forward

if TYPE_CHECKING:
    from .fields import Batched, Space

TABULATED = 1e-3  # of the largest value: what a table of D may miss before D itself is taken at quadrature points


def tabulate(space: "Space", source: "Batched", what: str, shape: tuple[int, ...]) -> Expr:
    """Interpolate a batched source, or take it at quadrature points (collective)."""
    matrix = len(shape) == 2

    def values(x: np.ndarray) -> np.ndarray:
        found = _values(source, what, x, shape)
        return 0.5 * (found + found.transpose(0, 2, 1)) if matrix else found

    if shape and space.quadrature is not None:
        return at_points(space, shape, values)
    degree = {0: space.degree + 1, 1: space.degree, 2: 1}[len(shape)]
    function = _filled(space, ("Lagrange", degree, shape), values)
    if matrix:
        middle = basix.geometry(space.mesh.basix_cell()).mean(axis=0, keepdims=True)
        x = physical(space, middle)
        with space.together():
            exact = values(x)
        if (error := missed(space, function, middle, exact)) > TABULATED:
            space.inexact[what] = error
    return function


def at_points(space: "Space", shape: tuple[int, ...], function: Callable[[np.ndarray], np.ndarray]) -> fem.Function:
    """A function that is exact at the points of ``space.quadrature``, in all local cells (collective)."""
    element = basix.ufl.quadrature_element(space.mesh.basix_cell(), shape, degree=space.quadrature)
    return _filled(space, element, function)


def _filled(space: "Space", element: Any, function: Callable[[np.ndarray], np.ndarray]) -> fem.Function:
    """A Function with the values of ``function`` at the interpolation points of all local cells (collective)."""
    answer = fem.Function(V := fem.functionspace(space.mesh, element))
    x, dofs = physical(space, interpolation_points(V.element), ghosts=True), V.dofmap.list.ravel()
    with space.together():
        parts = [function(p) for p in np.array_split(x, max(1, len(x) // 20_000))]
    if len(dofs):
        answer.x.array.reshape(-1, V.dofmap.bs)[dofs] = np.concatenate(parts).reshape(len(dofs), -1)
    answer.x.scatter_forward()
    return answer


def physical(space: "Space", X: np.ndarray, ghosts: bool = False) -> np.ndarray:
    """Reference points in this rank's cells, shape (cells * points, dim)."""
    # rounding may lead out of the box of nodes, where tables of measured values end
    mesh = space.mesh
    points = push_forward(mesh, X, own_cells(mesh, ghosts)).reshape(-1, mesh.geometry.dim)[:, : space.dim]
    if len(nodes := mesh.geometry.x[:, : space.dim]):
        low, high = nodes.min(axis=0), nodes.max(axis=0)
        moved, rounding = np.clip(points, low, high), 1e-12 * (1.0 + np.maximum(np.abs(low), np.abs(high)))
        points = np.where(np.abs(moved - points) <= rounding, moved, points)
    return np.ascontiguousarray(points)


def missed(space: "Space", table: Expr, X: np.ndarray, values: np.ndarray) -> float:
    """By how much a table misses values at reference points X, relative to the largest value (collective)."""
    here = compiled(space.mesh, table, X)(own_cells(space.mesh)).reshape(values.shape)
    most, size = (largest(space.mesh.comm, np.abs(v), 0.0) for v in (values - here, values))
    return most / size if size > 0 else 0.0


def _values(source: "Batched", what: str, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Values of ``source`` at points x (n, d), shape (n, ...)."""
    try:
        values = real_array(source.function(x), what)
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        raise ValueError(f"{what} failed on a numpy array of points of shape {x.shape}: {told}") from error
    wanted = (len(x), *shape)
    expect(f"{what}: of points {x.shape} the returned shape", values.shape, f"{wanted}", values.shape == wanted)
    if not np.isfinite(values).all():
        bad = x[np.argwhere(~np.isfinite(values))[0, 0]]
        raise ValueError(f"{what} is not finite at {tuple(float(c) for c in bad)}.")
    if len(shape) == 2:
        off, size = (np.abs(v).max(initial=0.0) for v in (values - values.transpose(0, 2, 1), values))
        if off > 1e-8 * size:
            raise ValueError(f"{what} is not symmetric: entries differ by up to {off:.3g}.")
    return values


def real_array(values: Any, what: str) -> np.ndarray:
    """An array of numpy, PyTorch or JAX in double precision."""
    found = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    if found.dtype.kind not in "biuf":
        raise TypeError(f"returned {type(values).__name__} of {found.dtype}; real numbers were expected")
    if found.dtype.kind == "f" and found.dtype.itemsize < 8:
        logger.warning(
            f"{what} returned {found.dtype}, so that its derivatives have few digits; compute in float64 (PyTorch: "
            ".double(), JAX: jax.config.update('jax_enable_x64', True))"
        )
    return found.astype(dolfinx.default_scalar_type)
