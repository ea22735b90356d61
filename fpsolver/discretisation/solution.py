"""Answers: a function on the mesh, how it was obtained, and its values at points."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
from dolfinx import fem, geometry

from .. import _compat
from .._answer import Answer, doubt, figures, need_steps, with_bar
from .._arguments import expect
from .._sample import largest, own_cells, smallest, total


@dataclass(frozen=True)
class Level:
    """One mesh of an answer to a prescribed accuracy: the answer at the start, and its absolute error bar."""

    cells: int
    unknowns: int
    value: float
    error: float

    def __repr__(self) -> str:
        return f"{self.unknowns:>9} unknowns: {with_bar(self.value, self.error)}"


class Solution(Answer):
    """What a verb returns; its attributes cannot be assigned to.

    Attributes:
        function: dolfinx ``Function``; of a density, the one made non-negative by :func:`~fpsolver.make_nonnegative`
            (collective when it is first asked for), which may be discontinuous although ``raw`` is not.
        raw: what the discretisation gave; the same unless it is a density with undershoots.  Dualities and
            balances hold for it to rounding, and evolutions are to be continued from it.
        value: the answer at the starts that the verb was given, shape (n,), None without; ``float(solution)`` of one.
        stats: unknowns, scheme, degree, iterations, residual, seconds, ...; of a density, once ``function`` was asked
            for, the share of the mass that making it non-negative has moved (``limited``) and by how much that has
            moved the mean (``mean_shift``).
        generator: with which it was computed, None where it does not matter; with ``rtol=`` that of the last mesh.
        history: the meshes of an answer to a prescribed accuracy, the coarsest first, see :class:`~fpsolver.Level`.
    """

    def __init__(
        self, function: fem.Function, stats: Mapping[str, Any], name: str, estimate: Any = None, limiter: Any = None,
        *, start: Any = None, value: np.ndarray | None = None, error: np.ndarray | None = None,
        unit: float | None = None, generator: Any = None, history: Sequence[Level] = (),
    ):  # fmt: skip
        self._raw, self._stats, self._name, self._estimate, self._limiter = function, stats, name, estimate, limiter
        self._limited = function if limiter is None else None
        self._start, self._value, self._error, self._unit = start, value, error, unit
        self._generator, self._history = generator, tuple(history)
        comm, found = function.function_space.mesh.comm, function.x.array  # of all ranks, for those who print
        self._range = smallest(comm, found), largest(comm, found)
        function.name = name.replace(" ", "_")

    raw = property(lambda self: self._raw, doc="What the discretisation gave.")
    value = property(lambda self: self._value, doc="The answer at the starts, shape (n,), or None.")
    name = property(lambda self: self._name, doc="What it is.")
    estimate = property(lambda self: self._estimate, doc="Where error bars come from, or None.")
    generator = property(lambda self: self._generator, doc="With which it was computed.")
    history = property(lambda self: self._history, doc="One :class:`~fpsolver.Level` per mesh.")
    stats = property(lambda self: MappingProxyType(self._stats), doc="How it was obtained.")

    @property
    def function(self) -> fem.Function:
        """The answer as a dolfinx ``Function``."""
        if self._limited is None:
            assert self._limiter is not None
            self._limited, changes = self._limiter.limit(self._raw)
            self._stats = {**self._stats, **changes}
        return self._limited

    @property
    def error(self) -> np.ndarray | None:
        """Estimated absolute error of the discretisation, None where no estimate exists.

        Shape (n,) for n starts; (1,) for an initial density, and for the mean over the domain if the verb was given no
        start.  Collective on first access, which solves the problem once or twice more.
        """
        if self._error is None and self._estimate is not None:
            self._error = self._estimate.at_start()
        return self._error

    def error_at(self, points: Any) -> np.ndarray:
        """Estimated absolute error at points as in :meth:`at`, shape (n,) (collective).

        Raises:
            ValueError: no estimate exists for this answer, or a point lies outside the mesh.
        """
        if self._estimate is None:
            raise ValueError(f"{self.name}: no error estimate exists for this answer.")
        return self._estimate.at(points)

    def in_steps(self) -> "Solution":
        """A time of an algorithm counted in its steps, error bars as well: t/η, moments of order n by ηⁿ (collective).

        Raises:
            ValueError: not a time, or not that of an algorithm.
        """
        factor = 1.0 / need_steps(self._unit, self._name)
        function = fem.Function(self._raw.function_space)
        function.x.array[:] = factor * self._raw.x.array
        estimate, bars = None, self._estimate
        if bars is not None:
            estimate = SimpleNamespace(at_start=lambda: factor * bars.at_start(), at=lambda x: factor * bars.at(x))
        value = None if self._value is None else factor * self._value
        error = None if self._error is None else factor * self._error
        about = {"start": self._start, "value": value, "error": error, "generator": self._generator}
        return Solution(function, self._stats, f"{self._name} in steps", estimate, **about)

    def __float__(self) -> float:
        if self._value is None or len(self._value) != 1:
            raise TypeError(f"{self._name}: a number was expected, which takes one start; ask with start=, or use .at.")
        return float(self._value[0])

    def _headline(self) -> str:
        """The answer where it was asked for; without starts, the range of its values."""
        if self._value is None:
            low, high = self._range
            return f"between {low:.4g} and {high:.4g}"
        bars: Any = [None] * len(self._value) if self._error is None else self._error
        rows = []
        for value, error, where in zip(self._value, bars, places(self._start), strict=True):
            shown = with_bar(value, error)
            if self._unit is not None:
                shown += f" = {with_bar(value / self._unit, None if error is None else error / self._unit)} steps"
            rows.append(f"{shown} {where}{doubt(value, error)}")
        return "; ".join(rows[:3]) + (f"; ... ({len(rows)} starts)" if len(rows) > 3 else "")

    def __repr__(self) -> str:
        details = [f"  {level}" for level in self._history] + [f"  {figures(self._stats)}"]
        return "\n".join([f"{self._name}: {self._headline()}", *details])

    def at(self, points: Any) -> np.ndarray:
        """Values at points, shape (n, d), or (d,) for one, or (n,) in 1D; the same on all ranks (collective).

        On facets, where discontinuous functions have several values, their mean.

        Raises:
            ValueError: a point lies outside the mesh.
        """
        return evaluate(self.function, points)

    def plot(self, path: Any = None, **options: Any) -> Any:
        """Draw it, and write the picture to ``path`` if given: :func:`fpsolver.plot.field` (collective)."""
        from ..plot import field

        return field(self, path=path, **options)


def places(start: Any) -> list[str]:
    """``at (0, 1)`` for each start; an initial density is one."""
    if not isinstance(start, np.ndarray):
        return ["from the initial density"]
    return [f"at ({', '.join(f'{c:.4g}' for c in point)})" for point in start]


def as_points(points: Any, dim: int, what: str = "points") -> np.ndarray:
    """Points as an array of shape (n, dim); a single point or a list of numbers in 1D is accepted."""
    try:
        array = np.asarray(points, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"{what}: {points!r} is no array of numbers; expected shape (n, {dim}).") from None
    if array.ndim < 2:
        array = array.reshape(-1, 1) if dim == 1 or array.ndim == 0 else array.reshape(1, -1)
    good = array.ndim == 2 and array.shape[1] == dim
    expect(f"{what}: shape", np.shape(points), f"(n, {dim}), points in {dim} dimension(s),", good)
    if not np.isfinite(array).all():
        raise ValueError(f"{what}: {array[~np.isfinite(array).all(axis=1)][0]} is not finite.")
    return array


def locate(mesh: Any, points: np.ndarray, what: str = "points") -> tuple[np.ndarray, np.ndarray]:
    """Owned cells around each point, as arrays of its index and the cell; one in no cell is refused (collective)."""
    index, cells, found = _search(mesh, points)
    if not found.all():
        spans = " x ".join(f"[{a:g}, {b:g}]" for a, b in zip(*bounds(mesh), strict=True))
        outside = tuple(points[np.argmin(found)].tolist())
        raise ValueError(f"{what}: {outside} lies outside the mesh, which spans {spans}.")
    return index, cells


def contains(mesh: Any, points: np.ndarray) -> np.ndarray:
    """Which points lie in a cell of some rank, shape (n,) (collective)."""
    return _search(mesh, points)[2]


def _search(mesh: Any, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = np.zeros((len(points), 3))
    x[:, : points.shape[1]] = points
    index: np.ndarray = np.zeros(0, dtype=int)
    cells: np.ndarray = np.zeros(0, dtype=np.int32)
    if len(owned := own_cells(mesh)):
        padding = 1e-10 * float(np.ptp(mesh.geometry.x, axis=0).max())
        tree = geometry.bb_tree(mesh, mesh.topology.dim, padding=padding, entities=owned)
        candidates = geometry.compute_collisions_points(tree, x)
        index = np.repeat(np.arange(len(x)), np.diff(candidates.offsets))
        cells = np.asarray(candidates.array, dtype=np.int32)
        inside = _inside(mesh, x[index], cells)
        index, cells = index[inside], cells[inside]
    return index, cells, total(mesh.comm, np.bincount(index, minlength=len(x))) > 0


def bounds(mesh: Any) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the mesh's bounding box (collective)."""
    x = mesh.geometry.x[:, : mesh.geometry.dim].T
    lower, upper = ([extreme(mesh.comm, row) for row in x] for extreme in (smallest, largest))
    return np.array(lower), np.array(upper)


def _inside(mesh: Any, x: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Whether each point lies in its candidate cell, by its reference coordinates (simplices)."""
    inside = np.zeros(len(x), dtype=bool)
    cmap, dofmap, gdim = _compat.coordinate_map(mesh), _compat.geometry_dofmap(mesh), mesh.geometry.dim
    nodes = mesh.geometry.x[dofmap[cells]][:, :, :gdim]
    if dofmap.shape[1] == mesh.topology.dim + 1:
        J = (nodes[:, 1:] - nodes[:, :1]).transpose(0, 2, 1)
        X = np.linalg.solve(J, (x[:, :gdim] - nodes[:, 0])[..., None])[..., 0]
        return (X.min(axis=1) > -1e-9) & (X.sum(axis=1) < 1 + 1e-9)
    for i in range(len(x)):  # few: the candidates of each requested point
        try:
            X = cmap.pull_back(x[i : i + 1, :gdim].copy(), nodes[i].copy())[0]
        except RuntimeError:  # Newton diverges only for points far outside the cell
            continue
        inside[i] = X.min() > -1e-6 and X.sum() < 1 + 1e-6
    return inside


def evaluate(function: fem.Function, points: Any) -> np.ndarray:
    """Values of a scalar function at points (collective); see :meth:`Solution.at`."""
    mesh = function.function_space.mesh
    array = as_points(points, mesh.geometry.dim)
    index, cells = locate(mesh, array)
    sums = np.zeros((2, len(array)))
    if len(index):
        x = np.zeros((len(index), 3))
        x[:, : array.shape[1]] = array[index]
        values = function.eval(x, cells).reshape(len(index), -1)[:, 0]
        np.add.at(sums[0], index, values)
        np.add.at(sums[1], index, 1.0)
    values, count = total(mesh.comm, sums)
    return values / count
