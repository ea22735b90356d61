"""The Markov chain of an algorithm on a domain: its mass and transition matrices, made once."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self, cast

from petsc4py import PETSc

import basix.ufl
import numpy as np
from dolfinx import fem

from .._arguments import check_integer, part_names
from .._errors import agree, together
from .._log import logger
from .._sample import own_cells
from ..domains.domain import Domain
from ..pointwise.walls import Walls, walls_of
from ._assemble import Assembled, Field, Recipe, assemble, bases
from ._cells import cells_of
from ._density import DensityRecipe, sides_of
from ._images import Region
from ._steps import DRAWS, Blurred, Drawn, Given, Steps, steps_of

Array = np.ndarray[Any, Any]
DEGREE, SMOOTH = 2, {1: 4, 2: 3}  # the latter where Gaussian noise makes everything smooth
POINTS = {1: 32, 2: 8, 3: 8}  # per cell, as multiples of its unknowns
FINER = {1: 8, 2: 6, 3: 4}  # how many times more where the exit's preimage crosses a cell


@dataclass(frozen=True)
class _Shared:
    """What a chain and its variants have in common."""

    walls: Walls
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

    Gaussian noise of full rank, alone or added to samples, is taken by its transition density in intervals, and in
    rectangles whose absorbing sides are one part or those of one coordinate, on cells of a few standard deviations at
    most; else it is drawn.

    Times are t = η k, k counting steps, so that answers lie beside those of the diffusion.

    Args:
        process: :class:`~fpsolver.SGD`, :class:`~fpsolver.MomentumSGD`, :class:`~fpsolver.Adam`, ...; any other
            algorithm by :meth:`of_step`.
        domain: where, with straight cells.
        absorbing: names of the boundary parts that end a path; the rest mirrors, as in :func:`~fpsolver.simulate`.
        degree: of the polynomials, by default 2; where densities smooth, 4 in one and 3 in two dimensions.
        batches: how many to draw for each point, where not all of them are taken: all are by default up to 512.

    Attributes:
        M, P: ``PETSc.Mat``, mass and transition matrices; forward M p' = Pᵀ p, backward M u' = P u.
        inverse: ``PETSc.Mat``, M⁻¹.
        V: the dolfinx space, discontinuous of this degree; cells' unknowns lie side by side.
        exits: dictionary part -> vector of ∫ φ_i times the probability to leave there in the next step.
        one, integrals: the coefficients of 1, and M1.
        process, domain, absorbing, degree: as used; regions in which the chain stops absorb as well.

    Raises:
        TypeError: no algorithm.
        ValueError: an unknown part, images that are not finite or leave the domain for good where nothing absorbs.
    """

    def __init__(
        self,
        process: Any,
        domain: Domain,
        absorbing: Sequence[str] = (),
        degree: int | None = None,
        batches: int | None = None,
    ):
        self._batches = batches
        self._begin(process, domain, part_names(absorbing), degree, steps_of(process, domain, batches))

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

        The function ``step`` maps points (n, d) and one of the batches, whatever these are, to points (n, d);
        ``weights`` are the probabilities of the batches, by default all the same.  Else as the constructor.

        Raises:
            ValueError: weights that do not sum to one, points of another shape.
        """
        chain, steps = object.__new__(cls), Given(step, batches, weights)
        process, chain._batches = StepFunction(step, float(time_per_step)), None
        chain._begin(process, domain, part_names(absorbing), degree, steps)
        return chain

    def _begin(self, process: Any, domain: Domain, parts: tuple[str, ...], degree: int | None, steps: Steps) -> None:
        walls = walls_of(domain, parts)
        steps = _suited(steps, walls)
        degree = (SMOOTH[domain.dim] if isinstance(steps, Blurred) else DEGREE) if degree is None else degree
        self.degree = check_integer("Chain: degree", degree, least=0)
        self.process, self.domain, self.declared = process, domain, parts
        self.time_per_step, self.cells = float(process.time_per_step), cells_of(domain)
        self.regions: dict[str, Region] = {}
        self._shared, self._seed = _Shared(walls, steps, self), 0
        self._make()

    def _make(self) -> None:
        d, shared = self.domain.dim, self._shared
        element = basix.ufl.element("DG", self.domain.mesh.topology.cell_name(), self.degree)
        self.basis = bases(element.basix_element)
        recipe = (DensityRecipe if isinstance(shared.steps, Blurred) else Recipe)(
            self.cells, shared.walls, cast(Any, shared.steps), len(self.declared), tuple(self.regions.values()),
            self.basis, POINTS[d] * element.dim, FINER[d], self._seed,
        )  # fmt: skip
        with PETSc.Log.Stage("fpsolver assemble"):
            found = assemble(recipe, self.domain.comm)
        self._recipe, self.assembled = replace(recipe, count=found.count), found
        self.M, self.P, self.inverse, self.one = found.M, found.P, found.inverse, found.M.createVecRight()
        self.one.set(1.0)
        self.integrals: PETSc.Vec = self.M * self.one
        self.exits: dict[str, PETSc.Vec] = dict(zip(self.absorbing, found.exits, strict=True))
        logger.info("chain with %d unknowns from %d images", self.M.getSize()[0], found.images)

    def _variant(self, **changes: Any) -> Self:
        """A chain like this one but for some attributes, whose matrices are still to be made."""
        other = copy(self)
        other.__dict__.pop("V", None)
        other.__dict__ |= changes
        return other

    @property
    def absorbing(self) -> tuple[str, ...]:
        """Names of what ends a path: parts of the boundary, then regions."""
        return (*self.declared, *self.regions)

    @property
    def base(self) -> "Chain":
        """The chain on the domain's own mesh, of which this one may be a variant."""
        return self._shared.base

    @cached_property
    def V(self) -> fem.FunctionSpace:
        """The space of the answers."""
        return fem.functionspace(self.domain.mesh, ("DG", self.degree))

    def stats(self) -> dict[str, Any]:
        """Size and figures, for answers."""
        found = self.assembled
        return {
            "unknowns": self.M.getSize()[0], "scheme": "chain", "degree": self.degree, "images": found.images,
            "batches": len(self._shared.steps.weights), "mirrored": found.mirrored,
        }  # fmt: skip

    def varied(self, seed: int, finer: bool = False) -> "Chain":
        """With other points and moved inner nodes, kept; ``finer``: cut in two, or of the next degree (collective)."""
        known = self._shared.variants
        if (seed, finer) not in known:
            domain, cells, degree = self.domain, self.base.cells, self.degree
            if finer and domain.dim == 1:
                domain = domain.refine(own_cells(domain.mesh))
                cells = cells_of(domain)
            elif finer:
                degree += 1
            other = self._variant(_seed=seed, domain=domain, cells=cells.moved(seed), degree=degree)
            other._make()
            known[seed, finer] = other
        return known[seed, finer]

    def refined(self) -> "Chain":
        """The same chain with every cell cut in two along each edge (collective)."""
        domain = self.domain.refine(own_cells(self.domain.mesh))
        return self._elsewhere(domain=domain, cells=cells_of(domain))

    def stopped(self, regions: Mapping[str, Region], parts: Sequence[str] = ()) -> "Chain":
        """The chain that also ends where a step ends in one of some regions, or beyond further parts (collective)."""
        declared = part_names((*self.declared, *parts))
        return self._elsewhere(declared=declared, regions={**self.regions, **regions})

    def _elsewhere(self, **changes: Any) -> "Chain":
        other = self._variant(**changes)
        walls = walls_of(other.domain, other.declared)
        steps = _suited(self._shared.steps, walls)
        other._shared = _Shared(walls, steps, other)
        other._make()
        return other

    def replace(self, **parameters: float) -> "Chain":
        """The chain of the same process with other numbers (collective)."""
        if isinstance(self.process, StepFunction):
            raise ValueError("Chain.replace: the chain of a step function has no numbers; make another of_step.")
        process = self.process.with_parameters(**parameters)
        return Chain(process, self.domain, self.declared, self.degree, self._batches)

    def load(self, field: Field, density: PETSc.Vec | None = None) -> PETSc.Vec:
        """Σ_q ω_q φ_i(x_q) f(x_q) with the points of the chain, for a function f of points (n, d) (collective).

        With a density p, by its coefficients, of f p instead.
        """
        vector, recipe = self.M.createVecLeft(), self._recipe
        with together(self.domain.comm):
            for points in recipe.samples():
                phi = recipe.basis(points.reference)
                chosen, first = np.unique(points.cell, return_index=True)
                weight = points.weight if density is None else recipe.visits(points, density.array_r)
                values = weight * field(points.x)
                blocks = vector.array_w.reshape(-1, phi.shape[1])
                blocks[chosen - self.cells.begin] = np.add.reduceat(values[:, None] * phi, first)
        finite = np.isfinite(vector.array_r).all()
        agree(self.domain.comm, None if finite else "a source is not finite on the domain.")
        vector.assemble()  # as in dirac, on ranks without cells
        return vector

    def crossings(self, part: int, visits: PETSc.Vec) -> tuple[Array, Array]:
        """Where paths cross a part, from the expected visits of its cells: points, probabilities (collective)."""
        where, share = (self.domain.comm.allgather(a) for a in self._recipe.crossings(part, visits.array_r))
        return np.concatenate(where), np.concatenate(share)

    def discounted(self, discount: Field | None, payoffs: tuple[Field | None, ...]) -> Assembled:
        """Matrices with values per step and per exit (collective)."""
        return assemble(replace(self._recipe, discount=discount, payoffs=payoffs), self.domain.comm)

    def function(self, vector: PETSc.Vec, name: str = "u") -> fem.Function:
        """The function with these coefficients (collective)."""
        function = fem.Function(self.V, name=name)
        function.x.array[: vector.local_size] = vector.array_r
        function.x.scatter_forward()
        return function

    def vector(self, function: fem.Function) -> PETSc.Vec:
        """The coefficients of a function on :attr:`V` as a new vector."""
        found, expected = function.function_space.ufl_element(), self.V.ufl_element()
        if found != expected:
            raise ValueError(f"{function.name!r} is a function of {found}, the chain's space is {expected}.")
        vector = self.M.createVecRight()
        vector.array_w = function.x.array[: vector.local_size]
        return vector

    def values(self, vector: PETSc.Vec, points: Array) -> Array:
        """Values at points (n, d), on every rank (collective)."""
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
        vector.assemble()  # on every rank: a norm that only some remember is waited for by the others
        return vector

    def _at(self, points: Array) -> tuple[Array, Array]:
        cell, reference = self.cells.locate(points, 1e-9)
        if (cell < 0).any():
            missing = tuple(float(c) for c in points[(cell < 0).argmax()])
            raise ValueError(f"points: {missing} lies outside the mesh of the chain.")
        return cell, self.basis(reference)


def _suited(steps: Steps, walls: Walls) -> Steps:
    """The steps, their noise drawn where its density does not know through which walls it leaves."""
    return Drawn(steps.algorithm, DRAWS) if isinstance(steps, Blurred) and sides_of(walls) is None else steps
