"""Functions of many points at once, tabulated on a mesh or exact at quadrature points."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import basix.ufl
import dolfinx
import numpy as np
from dolfinx import fem
from ufl.core.expr import Expr

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
    function = fem.Function(fem.functionspace(space.mesh, ("Lagrange", degree, shape)))
    _fill(space, function, values)
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
    mesh = space.mesh
    element = basix.ufl.quadrature_element(mesh.basix_cell(), shape, degree=space.quadrature)
    answer = fem.Function(fem.functionspace(mesh, element))
    _fill(space, answer, function)
    return answer


def _fill(space: "Space", answer: fem.Function, function: Callable[[np.ndarray], np.ndarray]) -> None:
    """Set ``answer`` from the values at the interpolation points of all local cells (collective)."""
    V = answer.function_space
    x, dofs = physical(space, interpolation_points(V.element), ghosts=True), V.dofmap.list.ravel()
    with space.together():
        parts = [function(p) for p in np.array_split(x, max(1, len(x) // 20_000))]
    if len(dofs):
        answer.x.array.reshape(-1, V.dofmap.bs)[dofs] = np.concatenate(parts).reshape(len(dofs), -1)
    answer.x.scatter_forward()


def physical(space: "Space", X: np.ndarray, ghosts: bool = False) -> np.ndarray:
    """Reference points in this rank's cells, shape (cells * points, dim)."""
    points = push_forward(space.mesh, X, own_cells(space.mesh, ghosts)).reshape(-1, space.mesh.geometry.dim)
    return np.ascontiguousarray(unrounded(space.mesh, points)[:, : space.dim])


def unrounded(mesh: dolfinx.mesh.Mesh, points: np.ndarray) -> np.ndarray:
    """Points (n, d) of this rank's cells, those outside its nodes' box by rounding moved onto it.

    Tables of measured values end exactly where the domain does, and refuse what lies beyond.
    """
    nodes = mesh.geometry.x[:, : points.shape[1]]
    if not len(nodes):
        return points
    low, high = nodes.min(axis=0), nodes.max(axis=0)
    moved = np.clip(points, low, high)
    return np.where(np.abs(moved - points) <= 1e-12 * (1.0 + np.maximum(np.abs(low), np.abs(high))), moved, points)


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
        raise ValueError(
            f"{what} failed on a numpy array of points of shape {x.shape}: {type(error).__name__}: {error}"
        ) from error
    if values.shape != (len(x), *shape):
        raise ValueError(
            f"{what} returned shape {values.shape} for points of shape {x.shape}; expected {(len(x), *shape)}."
        )
    if not np.isfinite(values).all():
        bad = x[np.argwhere(~np.isfinite(values))[0, 0]]
        raise ValueError(f"{what} is not finite at {tuple(float(c) for c in bad)}.")
    if len(shape) == 2 and (off := np.abs(values - values.transpose(0, 2, 1)).max(initial=0.0)) > 1e-8 * np.abs(
        values
    ).max(initial=0.0):
        raise ValueError(f"{what} is not symmetric: entries differ by up to {off:.3g}.")
    return values


def real_array(values: Any, what: str) -> np.ndarray:
    """An array of numpy, PyTorch or JAX in double precision."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    found = np.asarray(values)
    if found.dtype.kind not in "biuf":
        raise TypeError(f"returned {type(values).__name__} of {found.dtype}; real numbers were expected")
    if found.dtype.kind == "f" and found.dtype.itemsize < 8:
        logger.warning(
            "%s returned %s, so that its derivatives have few digits; compute in float64 (PyTorch: .double(), JAX: "
            "jax.config.update('jax_enable_x64', True))",
            what,
            found.dtype,
        )
    return found.astype(dolfinx.default_scalar_type)
