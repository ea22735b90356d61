"""Laws: densities that answer for masses, means and expectations, each with its error bar."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement
from typing import Any

from petsc4py import PETSc

import numpy as np
from dolfinx import fem

from .._answer import WARNING, Answer, with_bar
from .._errors import together
from .._sample import nodal, quadrature, total
from ..chain import Chain
from ..chain.equations import bar, variants
from ..chain.sources import field
from ..discretisation.generator import Generator
from ..discretisation.others import Measure, Others
from ..discretisation.solution import Level, Solution, as_points, evaluate
from ..domains.domain import Domain
from ..domains.regions import as_inside, marker_of
from .initial import is_density, load_density

Array = np.ndarray[Any, Any]
Field = Callable[[Array], Array]
SINGULAR = "a projection: laws of chains may be singular; masses and expectations converge"
_DEGREE = 8  # of the quadrature beyond that of the density: for a wave per cell 1e-8


@dataclass(frozen=True)
class Measured(Answer):
    """A number, or an array of numbers, with its error bar.

    Attributes:
        value: what was found.
        error: its absolute error bar, of the same shape.
    """

    value: Any
    error: Any

    def __float__(self) -> float:
        return float(self.value)

    def __repr__(self) -> str:
        if np.ndim(self.value):
            return f"{self.value} ± {np.max(self.error):.1g}"
        return with_bar(float(self.value), float(self.error))


class Whole(Solution):
    """A function whose error bars are those of the whole of it: ∫ |p − p*|, for densities the total variation.

    The same of other degrees (see :class:`~fpsolver.discretisation.others.Others`), of a chain that of its variants,
    tell how far it is off; ``again`` makes them when an error bar is first asked for, for a chain as coefficients.
    Without it nothing is known.
    """

    def __init__(
        self, gen: Generator | Chain, function: fem.Function, stats: Any, name: str,
        again: Callable[[Any], Any] | None, limiter: Any = None,
    ):  # fmt: skip
        super().__init__(function, stats, name, limiter=limiter, generator=gen)
        self._again = again
        if again is not None and isinstance(gen, Generator):
            self._estimate = _Change(self._others)
        elif again is not None and isinstance(gen, Chain) and not isinstance(self, Law):
            self._estimate = Spread(gen, gen.vector(function), lambda other: [again(other)], None, 0.0)

    @cached_property
    def _others(self) -> Others:
        assert self._again is not None
        return Others(self.generator, self.raw, self._again)

    sure = True  # the whole function is compared
    roundoff = 0.0

    def shape_error(self) -> float:
        """Nothing: the whole function lives on its own cells."""
        return 0.0

    def accuracy(self) -> tuple[float, float]:
        """∫ |p| and its error, as :func:`~fpsolver.chain.refinement.to_accuracy` asks (collective)."""
        size = float(total(self.generator.domain.comm, _sizes(self.raw).sum()))
        return size, float(np.ravel(np.asarray(self.error))[0])

    def by_cells(self) -> Array | None:
        """Shares of this rank's cells in the error; None: not known (collective)."""
        return _Change(self._others).by_cells()

    def keep(self, history: tuple[Level, ...]) -> None:
        """Remember the meshes that led here."""
        self._history = history

    def _headline(self) -> str:
        low, high = self._range
        bar = "" if self._error is None else f", off by {self._error[0]:.2g} in all"
        doubt = "" if low > -0.1 * high or self._limiter is None else f"  {WARNING}: the mesh does not resolve it"
        return f"between {low:.4g} and {high:.4g}{bar}{doubt}{'; refine it, or ask with rtol=' if doubt else ''}"


class Law(Whole):
    """A density whose masses, means and expectations have error bars.

    Laws of chains may be singular: then the density is a projection, while masses and expectations converge.
    """

    @cached_property
    def _variants(self) -> list[tuple[Chain, Any]]:
        chain: Chain = self.generator
        others = [] if self._again is None else [(c, self._again(c)) for c in variants(chain)]
        return [(chain, chain.vector(self.raw)), *others]

    def expectation(self, f: Any) -> Measured:
        """∫ f p with its error bar, for a scalar source f (collective)."""
        gen = self.generator
        known = isinstance(gen, Generator) and isinstance(f, fem.Function)
        return self._measured([f if known else field(gen, f, "expectation")], lambda row: row[0])

    def mass_in(self, region: Any) -> Measured:
        """Probability of a region with its error bar (collective).

        A region is a marker of points x, a ball (centre, radius), the corners of a polygon in the plane, or the name of
        a region of the domain.  The bar contains what lies between a curved edge and its chords.
        """
        gen = self.generator
        if isinstance(gen, Chain):
            inside = as_inside(marker_of(region, gen.domain.dim, "mass_in"), "region 'mass_in'")
            return self._measured([inside], lambda row: row[0])
        domain = gen.domain
        if not (isinstance(region, str) and region in domain.regions):
            domain, region = domain.following(region, "mass_in"), "mass_in"
        x, weights = _points_in(domain, region)

        def mass(_: Generator, p: fem.Function) -> Array:
            return np.array([evaluate(p, x) @ weights])

        missed = domain.defects.get(region, 0.0)
        missed *= np.abs(evaluate(self.raw, x)).max() if missed else 0.0
        return Measured(float(mass(gen, self.raw)[0]), float(self._bars(mass)[0] + missed))

    def mean(self) -> Measured:
        """Mean, shape (d,), with error bars (collective)."""
        return self._measured(self._products(1, np.zeros(self.generator.domain.dim)), lambda row: row)

    def covariance(self) -> Measured:
        """Covariance, shape (d, d), with error bars (collective)."""
        d = self.generator.domain.dim
        pairs = list(combinations_with_replacement(range(d), 2))
        center = np.atleast_1d(self.mean().value)

        def of(row: Array) -> Array:
            shift, found = row[:d], np.zeros((d, d))
            for value, (i, j) in zip(row[d:], pairs, strict=True):
                found[i, j] = found[j, i] = value - shift[i] * shift[j]
            return found

        return self._measured(self._products(1, center) + self._products(2, center), of)

    def _products(self, n: int, center: Array) -> list[Field]:
        """Products of n coordinates, counted from a centre."""
        rows = combinations_with_replacement(range(len(center)), n)
        return [lambda x, row=row: np.asarray(np.prod([x[:, i] - center[i] for i in row], axis=0)) for row in rows]  # type: ignore[misc]

    def _measured(self, fields: Sequence[Field | fem.Function], of: Callable[[Array], Any]) -> Measured:
        """A function of some integrals."""
        gen = self.generator
        if isinstance(gen, Chain):
            loads = [(p, [c.load(f) for f in fields]) for c, p in self._variants]
            values = np.array([of(np.array([load.dot(p) for load in found])) for p, found in loads], dtype=float)
            error = bar(values, 1e-12) if len(values) > 1 else np.full_like(values[0], np.nan)
            return Measured(values[0][()], error[()])

        def measure(_: Generator, p: fem.Function) -> Array:
            return np.ravel(of(integrals(p, fields)))

        value = np.asarray(of(integrals(self.raw, fields)))
        return Measured(value[()], self._bars(measure).reshape(value.shape)[()])

    def _bars(self, measure: Measure) -> Array:
        """Error bars, NaN where nothing is known."""
        if self._again is None:
            return np.full_like(measure(self.generator, self.raw), np.nan)
        return self._others.bars(measure)


@dataclass
class _Change:
    """Error bars of a function: at points, and of all of it where nothing else is asked."""

    others: Others

    def at(self, points: Any) -> Array:
        return self.others.bars(lambda _, p: evaluate(p, points))

    def at_start(self) -> Array:
        p = self.others.answer
        return np.array([float(total(p.function_space.mesh.comm, self.by_cells().sum()))])

    def by_cells(self) -> Array:
        return _sizes(self.others.answer, self.others.of_degree(self.others.gen.degree + 1)[1])


def _sizes(p: fem.Function, other: fem.Function | None = None) -> Array:
    """∫ |p − other| over each of this rank's cells."""
    mesh = p.function_space.mesh
    X, _, weights = quadrature(mesh, 2 * p.function_space.element.basix_element.degree + 2)
    return np.asarray((np.abs(nodal(p, X) - (0.0 if other is None else nodal(other, X))) * weights).sum(axis=1))


def integrals(p: fem.Function, fields: Sequence[Field | fem.Function]) -> Array:
    """∫ f p for functions of points (n, d), or on the same mesh, shape (fields,) (collective)."""
    mesh = p.function_space.mesh
    X, x, weights = quadrature(mesh, 2 * p.function_space.element.basix_element.degree + _DEGREE)
    weights, points = (weights * nodal(p, X)).ravel(), x.reshape(-1, x.shape[2])
    with together(mesh.comm):
        found = [(nodal(f, X).ravel() if isinstance(f, fem.Function) else f(points)) @ weights for f in fields]
    return np.asarray(total(mesh.comm, found))


def _points_in(domain: Domain, region: str) -> tuple[Array, Array]:
    """Points and weights that integrate over a region, on every rank."""
    mesh, comm = domain.mesh, domain.comm
    owned = mesh.topology.index_map(domain.dim).size_local
    cells = domain.cells(region)
    _, x, weights = quadrature(mesh, 14, cells[cells < owned])
    points, weights = (np.concatenate(comm.allgather(a)) for a in (x.reshape(-1, domain.dim), weights.ravel()))
    return points, weights


@dataclass
class Spread:
    """Error bars of one answer, ``at_start()`` and ``at(points)`` (collective)."""

    chain: Chain  #: the one that answered
    u: PETSc.Vec  #: its answer
    solve: Callable[[Chain], list[PETSc.Vec]]  #: the answers of another chain, this one last
    start: Any  #: points (n, d), an initial law, or None for the uniform law on the domain
    floor: float  #: relative error from rounding

    def __post_init__(self) -> None:
        if self.start is not None and not is_density(self.start):
            self.start = as_points(self.start, self.chain.domain.dim, "start")

    @cached_property
    def _all(self) -> list[tuple[Chain, PETSc.Vec]]:
        return [(self.chain, self.u), *((c, self.solve(c)[-1]) for c in variants(self.chain))]

    def value(self) -> Array:
        """The answer at the starts, shape (n,)."""
        return _at_start(self.chain, self.u, self.start)

    def at_start(self) -> Array:
        """Error bars at the starts."""
        return bar(np.array([_at_start(c, u, self.start) for c, u in self._all]), self.floor)

    def at(self, points: Any) -> Array:
        """Error bars at points."""
        x = as_points(points, self.chain.domain.dim)
        return bar(np.array([c.values(u, x) for c, u in self._all]), self.floor)


def _at_start(chain: Chain, u: PETSc.Vec, start: Any) -> Array:
    """Values at points, or the mean over an initial law, shape (n,) (collective)."""
    if isinstance(start, np.ndarray):
        return chain.values(u, start)
    if start is None:
        return np.array([u.dot(chain.integrals) / chain.integrals.sum()])
    return np.array([u.dot(load_density(chain, start))])
