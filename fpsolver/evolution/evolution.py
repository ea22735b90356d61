"""What an evolution gives: a solution at each of its times, and the mass that has left until then."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .._answer import Answer, figures
from ..discretisation.assembly import to_density, to_function
from ..discretisation.fluxes import basis_integrals
from ..discretisation.generator import Generator
from ..discretisation.positivity import Limiter, limiter
from ..discretisation.solution import Solution
from ._expm import Snapshot


class Evolution(Answer, Sequence[Solution]):
    """A solution at several times; ``evolution[i]`` is the :class:`~fpsolver.Solution` at ``times[i]``.

    Attributes:
        name: what evolves, "density" or "expectation".
        generator: with which it was made.
        parts: absorbing parts whose outflux is kept.
        times: shape (n,).
        mass: integral over the domain at each time, shape (n,).
        minimum: smallest value of the discrete solution at each time, looked for at and between nodes, shape (n,): for
            a density a measure of what the mesh does not resolve.  ``evolution[i].function`` is non-negative with the
            same mass, ``evolution[i].raw`` is what was computed.
        outflux: mass that has left through absorbing parts since time 0, shape (n,); an integral over time of the
            flux itself, so ``mass + outflux`` tests the balance.  Zero for :func:`~fpsolver.backward`.
        outflux_by_part: the same for each absorbing part.
        outflow: dictionary part -> mass per time that is leaving, shape (n,).
        limiter: what makes the reported densities non-negative; None for signed measures and expectations.
        stats: unknowns, scheme, degree, solves, factorisations, steps, basis, time_error (estimated, relative, in the
            L² norm).
    """

    def __init__(self, gen: Generator, name: str, parts: Sequence[str] = ()):
        self.name, self.generator, self.parts = name, gen, tuple(parts)
        self._solutions: list[Solution] = []
        self._rows: list[tuple[float, float, float]] = []
        self._integrals: list[np.ndarray] = []
        self._values: list[np.ndarray] = []
        self.stats: dict[str, Any] = {}
        self.limiter: Limiter | None = None

    def append(self, snapshot: Snapshot) -> None:
        """Keep the solution at one more time; the snapshot's vector is consumed (collective)."""
        make = to_density if self.name == "density" else to_function
        function = make(self.generator, snapshot.vector, self.name)
        mass = float(snapshot.vector.dot(basis_integrals(self.generator)))
        self._rows.append((snapshot.time, mass, limiter(self.generator).minimum(function)))
        self._integrals.append(snapshot.integrals)
        self._values.append(snapshot.values)
        name = f"{self.name} at t = {snapshot.time:g}"
        self._solutions.append(Solution(function, self.stats, name, limiter=self.limiter))
        snapshot.vector.destroy()

    @property
    def times(self) -> np.ndarray:
        """Times, shape (n,)."""
        return self._column(0)

    @property
    def mass(self) -> np.ndarray:
        """Integral over the domain, shape (n,)."""
        return self._column(1)

    @property
    def minimum(self) -> np.ndarray:
        """Smallest value, shape (n,)."""
        return self._column(2)

    @property
    def outflux(self) -> np.ndarray:
        """Mass that has left, shape (n,)."""
        return np.array([row[0] if len(row) else 0.0 for row in self._integrals])

    @property
    def outflux_by_part(self) -> dict[str, np.ndarray]:
        """Mass that has left through each part, shape (n,) each."""
        return {part: np.array([row[i + 1] for row in self._integrals]) for i, part in enumerate(self.parts)}

    @property
    def outflow(self) -> dict[str, np.ndarray]:
        """Mass per time leaving through each part, shape (n,) each."""
        return {part: np.array([row[i + 1] for row in self._values]) for i, part in enumerate(self.parts)}

    def _column(self, i: int) -> np.ndarray:
        return np.array([row[i] for row in self._rows])

    def __len__(self) -> int:
        return len(self._solutions)

    def __getitem__(self, i: Any) -> Any:
        return self._solutions[i]

    def __iter__(self) -> Iterator[Solution]:
        return iter(self._solutions)

    def plot(self, path: Any = None, **options: Any) -> Any:
        """Draw a filmstrip, and write it to ``path`` if given: :func:`fpsolver.plot.series` (collective)."""
        from ..plot import series

        return series(self, path=path, **options)

    def __repr__(self) -> str:
        if not len(self):
            return f"{self.name} at no time"
        when = f"t = {self.times[0]:g}" + (f" to {self.times[-1]:g} ({len(self)} times)" if len(self) > 1 else "")
        mass = f": mass {self.mass[0]:.6g}" + (f" to {self.mass[-1]:.6g}" if len(self) > 1 else "")
        return f"{self.name} at {when}{mass if self.name == 'density' else ''}\n  {figures(self.stats)}"


def check_times(times: Any) -> np.ndarray:
    """Output times as an array of shape (n,): finite, non-negative and sorted."""
    try:
        array = np.atleast_1d(np.asarray(times, dtype=float))
    except (TypeError, ValueError):
        raise ValueError(f"times is {times!r}; numbers were expected.") from None
    if array.ndim != 1 or not len(array):
        raise ValueError(f"times has shape {array.shape}; at least one time, shape (n,), was expected.")
    if not np.isfinite(array).all() or array.min() < 0:
        bad = array[~(np.isfinite(array) & (array >= 0))][0]
        raise ValueError(f"times contains {bad}; finite, non-negative numbers were expected.")
    if (np.diff(array) < 0).any():
        raise ValueError("times must be sorted in increasing order.")
    return array
