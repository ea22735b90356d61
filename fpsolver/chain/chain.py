"""The Markov chain of an algorithm on a domain: its mass and transition matrices, made once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self, cast

from petsc4py import PETSc

import basix.ufl
import numpy as np
from dolfinx import fem

from .._arguments import part_names
from .._errors import agree
from .._log import logger
from ..domains.domain import Domain
from ..models.fields import is_number
from ..pointwise.walls import walls_of
from ._assemble import Assembled, Field, Recipe, assemble, bases
from ._cells import cells_of
from ._density import DensityRecipe
from ._images import Region
from ._steps import Blurred, Given, Steps, steps_of

Array = np.ndarray[Any, Any]
DEGREE = 2
SMOOTH = 4
"""Degree where Gaussian noise makes everything smooth."""
POINTS = {1: 32, 2: 8, 3: 8}
"""Points per cell, as multiples of the unknowns of a cell."""
FINER = {1: 8, 2: 6, 3: 4}
"""How many times more where the exit's preimage crosses a cell."""


@dataclass(frozen=True)
class _Shared:
    """What a chain and its variants have in common."""

    walls: Any
    steps: Steps
    base: "Chain"
    variants: dict[Any, "Chain"] = field(default_factory=dict)


@dataclass(frozen=True)
class StepFunction:
    """The process of :meth:`Chain.of_step`."""

    step: Callable[[Array, Any], Any]
    time_per_step: float


class Chain:
    """X' = Φ_b(X), batch b drawn afresh in every step, killed where a step ends beyond an absorbing part (collective).

    The operator P u(x) = Σ_b w_b u(Φ_b(x)) is discretised on discontinuous polynomials with many points in each cell.
    With any points P1 + Σ exits = M1, so that constants, mass and dualities hold to rounding.  Laws of chains may be
    singular: a density is then a projection, while masses of regions and expectations converge.

    Times are t = η k, k counting steps, so that answers lie beside those of the diffusion.

    Args:
        process: :class:`~fpsolver.SGD` or :class:`~fpsolver.MomentumSGD`; others by :meth:`of_step`.
        domain: where, with straight cells.
        absorbing: names of the boundary parts that end a path; the rest mirrors, as in :func:`~fpsolver.simulate`.
        degree: of the polynomials, by default 2, and 4 where Gaussian noise smooths in one dimension.
        batches: how many to draw for each point, where not all of them are taken: all are by default up to 512.

    Attributes:
        M, P: ``PETSc.Mat``, mass and transition matrices; forward M p' = Pᵀ p, backward M u' = P u.
        V: the dolfinx space, discontinuous of this degree; cells' unknowns lie side by side.
        exits: dictionary part -> vector of ∫ φ_i times the probability to leave there in the next step.
        process, domain, absorbing, degree: as used.

    Raises:
        TypeError: no algorithm.
        ValueError: an unknown part, images that are not finite or leave the domain for good where nothing absorbs.
    """

    assembled: Assembled

    def __init__(
        self,
        process: Any,
        domain: Domain,
        absorbing: Sequence[str] = (),
        degree: int | None = None,
        batches: int | None = None,
    ):
        absorbing = _known_parts(domain, absorbing)
        steps, problem = None, None
        kind: type[Exception] = ValueError
        try:
            steps = steps_of(process, domain, batches)
        except (ValueError, TypeError) as e:
            problem, kind = str(e), type(e)
        agree(domain.comm, problem, kind)
        self._begin(process, domain, absorbing, degree, steps, float(process.time_per_step))

    @classmethod
    def of_step(
        cls,
        step: Callable[[Array, Any], Any],
        batches: Sequence[Any],
        domain: Domain,
        absorbing: Sequence[str] = (),
        degree: int | None = None,
        *,
        weights: Any = None,
        time_per_step: float = 1.0,
    ) -> "Chain":
        """The chain of any algorithm (collective).

        Args:
            step: maps points (n, d) and a batch to points (n, d).
            batches: whatever ``step`` takes as its second argument, one after the other.
            domain: where.
            absorbing: as of the constructor.
            degree: as of the constructor.
            weights: probabilities of the batches, by default all the same.
            time_per_step: the time that a step takes.

        Raises:
            ValueError: weights that do not sum to one, points of another shape.
        """
        chain = object.__new__(cls)
        steps, problem = None, None
        try:
            steps = Given(step, batches, weights)
        except ValueError as e:
            problem = str(e)
        agree(domain.comm, problem)
        process = StepFunction(step, float(time_per_step))
        chain._begin(process, domain, _known_parts(domain, absorbing), degree, steps, process.time_per_step)
        return chain

    def _begin(
        self, process: Any, domain: Domain, absorbing: tuple[str, ...], degree: int | None, steps: Any, unit: float
    ) -> None:
        degree = (SMOOTH if isinstance(steps, Blurred) else DEGREE) if degree is None else degree
        if not is_number(degree) or degree != int(degree) or degree < 0:
            raise ValueError(f"Chain: degree is {degree!r}; an integer of at least 0 was expected.")
        self.process, self.domain, self.absorbing, self.degree = process, domain, absorbing, int(degree)
        self.time_per_step = unit
        self.regions: dict[str, Region] = {}
        self.cells = cells_of(domain)
        self._shared, self._seed = _Shared(walls_of(domain, absorbing), steps, self), 0
        self._make()

    def _make(self) -> None:
        d, shared = self.domain.dim, self._shared
        element = basix.ufl.element("DG", self.domain.mesh.topology.cell_name(), self.degree)
        m, self.basis = element.dim, bases(element.basix_element)
        recipe = (DensityRecipe if isinstance(shared.steps, Blurred) else Recipe)(
            self.cells, shared.walls, cast(Any, shared.steps), len(self.absorbing), tuple(self.regions.values()),
            self.basis, POINTS[d] * m, FINER[d], self._seed,
        )  # fmt: skip
        with PETSc.Log.Stage("fpsolver assemble"):
            self.assembled = assemble(recipe, self.domain.comm)
        self._recipe = replace(recipe, count=self.assembled.count)
        logger.info("chain with %d unknowns from %d images", self.assembled.M.getSize()[0], self.assembled.images)

    @property
    def block(self) -> int:
        """Unknowns of a cell."""
        return self.M.getSize()[0] // self.cells.size

    @property
    def base(self) -> "Chain":
        """The chain on the domain's own mesh, of which this one may be a variant."""
        return self._shared.base

    @property
    def M(self) -> PETSc.Mat:
        """Mass matrix."""
        return self.assembled.M

    @property
    def P(self) -> PETSc.Mat:
        """Transition matrix."""
        return self.assembled.P

    @cached_property
    def exits(self) -> dict[str, PETSc.Vec]:
        """Per absorbing part: ∫ φ_i times the probability of leaving through it in the next step."""
        return dict(zip((*self.absorbing, *self.regions), self.assembled.exits, strict=True))

    @cached_property
    def V(self) -> fem.FunctionSpace:
        """The space of the answers."""
        return fem.functionspace(self.domain.mesh, ("DG", self.degree))

    @cached_property
    def integrals(self) -> PETSc.Vec:
        """M1."""
        vector = self.M.createVecLeft()
        self.M.mult(self.one, vector)
        return vector

    @cached_property
    def one(self) -> PETSc.Vec:
        """Coefficients of the constant 1."""
        one = self.M.createVecRight()
        one.set(1.0)
        return one

    def stats(self) -> dict[str, Any]:
        """Size and figures, for answers."""
        found = self.assembled
        return {
            "unknowns": self.M.getSize()[0], "scheme": "chain", "degree": self.degree, "images": found.images,
            "batches": len(self._shared.steps.weights), "mirrored": found.mirrored,
        }  # fmt: skip

    def varied(self, seed: int, finer: bool = False) -> "Chain":
        """The same chain with other points and moved inner nodes; ``finer``: cut in two, or of the next degree.

        Collective; kept for further questions.
        """
        known = self._shared.variants
        if (seed, finer) not in known:
            other, cells = self._copy(), self.base.cells.moved(seed)
            other._seed = seed
            if finer and cells.dim == 1:
                cells = cells.halved()
            elif finer:
                other.degree += 1
            other.cells = cells
            other._make()
            known[seed, finer] = other
        return known[seed, finer]

    def refined(self) -> "Chain":
        """The same chain with every cell cut in two along each edge (collective)."""
        owned = self.domain.mesh.topology.index_map(self.domain.dim).size_local
        other = self._copy()
        other.domain = self.domain.refine(np.arange(owned, dtype=np.int32))
        other.cells = cells_of(other.domain)
        other._shared = replace(self._shared, walls=walls_of(other.domain, other.absorbing), variants={}, base=other)
        other._make()
        return other

    def stopped(self, regions: Mapping[str, Region], parts: Sequence[str] = ()) -> "Chain":
        """The chain that also ends where a step ends in one of some regions, or beyond further parts (collective)."""
        other = self._copy()
        other.absorbing = _known_parts(self.domain, (*self.absorbing, *parts))
        other.regions = {**self.regions, **regions}
        walls = walls_of(self.domain, other.absorbing)
        other._shared = replace(self._shared, walls=walls, variants={}, base=other)
        other._make()
        return other

    def replace(self, **parameters: float) -> "Chain":
        """The chain of the same process with other numbers (collective)."""
        if isinstance(self.process, StepFunction):
            raise ValueError("Chain.replace: the chain of a step function has no numbers; make another of_step.")
        process = self.process.with_parameters(**parameters)
        return Chain(process, self.domain, self.absorbing, self.degree)

    def _copy(self) -> Self:
        other = object.__new__(type(self))
        for name in (
            "process",
            "domain",
            "absorbing",
            "degree",
            "time_per_step",
            "regions",
            "_shared",
            "cells",
            "_seed",
        ):
            setattr(other, name, getattr(self, name))
        return other

    def load(self, field: Field) -> PETSc.Vec:
        """Σ_q ω_q φ_i(x_q) f(x_q) with the points of the chain, for a function f of points (n, d) (collective)."""
        vector, problem, recipe = self.M.createVecLeft(), None, self._recipe
        try:
            for points in recipe.samples():
                phi = recipe.basis(points.reference)
                chosen, first = np.unique(points.cell, return_index=True)
                values = (points.weight * field(points.x))[:, None] * phi
                blocks = vector.array_w.reshape(-1, phi.shape[1])
                blocks[chosen - self.cells.begin] = np.add.reduceat(values, first)
        except (ValueError, TypeError) as e:
            problem = str(e)
        finite = np.isfinite(vector.array_r).all()
        agree(self.domain.comm, problem or (None if finite else "a source is not finite on the domain."))
        return vector

    def masked(self, f: Field, density: PETSc.Vec) -> PETSc.Vec:
        """∫ f p φ_i for a function f of points and a density p by its coefficients (collective)."""
        result, recipe = self.M.createVecLeft(), self._recipe
        for points in recipe.samples():
            phi = recipe.basis(points.reference)
            chosen, first = np.unique(points.cell, return_index=True)
            mine = density.array_r.reshape(-1, phi.shape[1])[points.cell - self.cells.begin]
            values = (points.weight * f(points.x) * (mine * phi).sum(axis=1))[:, None] * phi
            result.array_w.reshape(-1, phi.shape[1])[chosen - self.cells.begin] = np.add.reduceat(values, first)
        return result

    def crossings(self, part: int, visits: PETSc.Vec) -> tuple[Array, Array]:
        """Where paths cross a part, from the expected visits of its cells: points, probabilities (collective)."""
        recipe, where, share = self._recipe, [np.zeros((0, self.domain.dim))], [np.zeros(0)]
        for points, images in recipe.chunks():
            gone = images.left_part == part
            source = images.left_source[gone]
            phi = recipe.basis(points.reference[source])
            mine = visits.array_r.reshape(-1, phi.shape[1])[points.cell[source] - self.cells.begin]
            share.append(images.left_weight[gone] * points.weight[source] * (mine * phi).sum(axis=1))
            where.append(images.left_at[gone])
        comm = self.domain.comm
        return np.concatenate(comm.allgather(np.concatenate(where))), np.concatenate(
            comm.allgather(np.concatenate(share))
        )

    def discounted(self, discount: Field | None, payoffs: tuple[Field | None, ...]) -> Assembled:
        """Matrices with values per step and per exit (collective)."""
        recipe = replace(self._recipe, discount=discount, payoffs=payoffs)
        return assemble(recipe, self.domain.comm)

    def function(self, vector: PETSc.Vec, name: str = "u") -> fem.Function:
        """The function with these coefficients (collective)."""
        function = fem.Function(self.V, name=name)
        function.x.array[: vector.local_size] = vector.array_r
        function.x.scatter_forward()
        return function

    def vector(self, function: fem.Function) -> PETSc.Vec:
        """The coefficients of a function on :attr:`V` as a new vector."""
        if function.function_space.ufl_element() != self.V.ufl_element():
            raise ValueError(
                f"{function.name!r} is a function of {function.function_space.ufl_element()}, the chain's space is "
                f"{self.V.ufl_element()}."
            )
        vector = self.M.createVecRight()
        vector.array_w = function.x.array[: vector.local_size]
        return vector

    def density(self, vector: PETSc.Vec, name: str = "density") -> fem.Function:
        """As :meth:`function`."""
        return self.function(vector, name)

    def values(self, vector: PETSc.Vec, points: Array) -> Array:
        """Values at points (n, d), on every rank (collective).

        Raises:
            ValueError: a point lies outside the mesh.
        """
        cell, phi = self._at(points)
        found = np.zeros(len(points))
        mine = (cell >= self.cells.begin) & (cell < self.cells.end)
        blocks = vector.array_r.reshape(-1, phi.shape[1])
        found[mine] = (blocks[cell[mine] - self.cells.begin] * phi[mine]).sum(axis=1)
        return np.asarray(self.domain.comm.allreduce(found))

    def dirac(self, point: Array) -> PETSc.Vec:
        """φ_i(point), the vector of the law of one point."""
        cell, phi = self._at(np.asarray(point, dtype=float).reshape(1, -1))
        vector = self.M.createVecLeft()
        if self.cells.begin <= cell[0] < self.cells.end:
            vector.array_w.reshape(-1, phi.shape[1])[cell[0] - self.cells.begin] = phi[0]
        vector.assemble()
        return vector

    def _at(self, points: Array) -> tuple[Array, Array]:
        cell, reference = self.cells.nearest(points, 1e-9)
        if (cell < 0).any():
            missing = tuple(float(c) for c in points[(cell < 0).argmax()])
            raise ValueError(f"points: {missing} lies outside the mesh of the chain.")
        return cell, self.basis(reference)


def _known_parts(domain: Domain, absorbing: Sequence[str]) -> tuple[str, ...]:
    names = part_names(absorbing)
    for name in names:
        domain.facets(name)  # refuses unknown names
    return names
