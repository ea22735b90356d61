"""Stochastic processes: frozen descriptions of drift and diffusion, with no mesh in them.

dX = b(X) dt + √(2D(X)) dW in the Itô sense.  Its generator is L u = ∇·(D∇u) + β·∇u with β = b − ∇·D.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

import numpy as np
import ufl
from ufl.core.expr import Expr

from .._arguments import check_choice, expect, is_number
from .fields import Space, wanted_by
from .noise import Isotropic, Noise, PerSample, Sum, is_level, parts_of

SHARES = {"ito": 1.0, "stratonovich": 0.5, "divergence": 0.0}  # of ∇·D, which are taken off the drift


@dataclass(frozen=True)
class Coefficients:
    """A process on a mesh, as UFL.

    Attributes:
        D: diffusion, shape (d, d).
        beta: β, shape (d,): b − ∇·D, with the derivative that UFL takes cell by cell.
        share: how much of ∇·D was taken off the drift: 1 (Itô), ½, 0 (divergence form).  Where D jumps, forms need it.
        drift: the Itô drift b, where it needs no derivative of D or of tabulated sources; it can be left out.
        inside: D and b at the points of a quadrature degree, where they are tabulated and the tables miss them by more
            than a little; None: D and β are what they are everywhere.
    """

    D: Expr
    beta: Expr
    share: float = 1.0
    drift: Expr | None = None
    inside: Callable[[int], tuple[Expr, Expr]] | None = None

    def generator(self, u: Expr, quadrature: int) -> Expr:
        """L u = D:∇∇u + b·∇u, which contains no derivative of D, for a quadrature degree."""
        if self.inside is not None:
            D, b = self.inside(quadrature)
        else:
            D, b = self.D, self.beta + ufl.div(self.D) if self.drift is None else self.drift
        return ufl.inner(D, ufl.grad(ufl.grad(u))) + ufl.dot(b, ufl.grad(u))


@dataclass(frozen=True)
class Process(ABC):
    """What every process provides.

    Attributes:
        parameters: numbers by name, which formulas see as further arguments: ``lambda x, F: F * x[0]`` with
            ``{"F": 1.0}``.  ``gen.replace(F=2.0)`` recompiles nothing.
    """

    parameters: Any = field(default=None, kw_only=True)

    scaling: ClassVar[tuple[str, ...]] = ()  # numbers that scale coordinates or time, and cannot change on the way
    copies: ClassVar[int] = 1  # coordinates per coordinate that sources see, which are the first ones: 2 on (x, v)
    kinetic: ClassVar[bool] = False  # whether it lives on (x, v) with the loss a function of x
    timed: ClassVar[bool] = False  # whether formulas ask for the time; with a number t given, it stands still there

    def __post_init__(self) -> None:
        # copied, for others may change it later
        what, given = type(self).__name__, {} if self.parameters is None else self.parameters
        if not isinstance(given, Mapping):
            raise TypeError(f'{what}: parameters is {given!r}; names and numbers, {{"F": 1.0}}, were expected.')
        taken = {f.name for f in fields(self)} | {"s", "delta", "x"}
        for name, value in given.items():
            free = isinstance(name, str) and name.isidentifier() and name not in taken
            expect(f"{what}: a name in parameters", name, f"one that is none of {sorted(taken)}", free)
            expect(f"{what}: {name} in parameters", value, "a finite number", is_number(value) and np.isfinite(value))
        object.__setattr__(self, "parameters", {name: float(value) for name, value in given.items()})
        object.__setattr__(self, "timed", "t" not in given and any(map(_asks_for_time, vars(self).values())))

    @property
    def time_per_step(self) -> float | None:
        """Time of one step of the algorithm that the process stands for; None if it stands for none."""
        return None

    @abstractmethod
    def coefficients(self, space: Space) -> Coefficients:
        """D and β = b − ∇·D on the mesh of ``space``."""

    def potential(self, space: Space) -> Expr | None:
        """U with invariant density ∝ e^{−U} and no current, where it is known in closed form; None otherwise."""
        return None

    def loss_on(self, space: Space) -> Expr | None:
        """The loss of which it is a descent, as UFL; None for other processes."""
        if isinstance(source := self.loss_source(), PerSample):
            return source.mean_loss(space)
        return None if source is None else space.scalar(source, f"{type(self).__name__}: loss")

    def loss_source(self) -> Any:
        """The source of it, of positions only, or the noise whose samples' mean it is; None for other processes."""
        return getattr(self, "loss", None)

    def energy(self, space: Space) -> Expr | None:
        """The loss, to which motion on (x, v) adds |v|²/2; None for other processes."""
        f, m = self.loss_on(space), space.dim
        if f is None or not self.kinetic:
            return f
        return f + sum(ufl.SpatialCoordinate(space.mesh)[m + i] ** 2 for i in range(m)) / 2

    def isotropic_diffusion(self) -> float | None:
        """ε where D = εI everywhere and the drift is −∇f, known in closed form; None otherwise."""
        return None

    def weights(self, dim: int) -> int:
        """How many of ``dim`` coordinates sources see, of which ``dim`` must be a multiple."""
        if dim % self.copies:
            per = f"{type(self).__name__} has {self.copies} coordinates per weight"
            raise ValueError(f"{per}: the domain's dimension must be a multiple of that, it is {dim}.")
        return dim // self.copies

    def space(self, mesh: Any, degree: int, dim: int | None = None) -> Space:
        """Where sources of ``dim`` coordinates, by default those of this process, become UFL that sees its numbers."""
        dim = self.weights(mesh.geometry.dim) if dim is None else dim
        return Space(mesh, degree, dim, numbers=self.numbers(), given=frozenset(self.parameters))

    def numbers(self) -> dict[str, float]:
        """All that can change without recompiling anything: ``{"learning_rate": 0.1, ...}`` and what the user named."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if not f.metadata.get("fixed")}
        numbers = {name: float(value) for name, value in given.items() if is_number(value)}
        numbers |= ({"t": 0.0} if self.timed else {}) | self.parameters
        levels = [float(p.s) for p in parts_of(given.get("noise")) if is_level(p)]  # one at most
        return numbers | ({"s": levels[0]} if levels else {})

    def with_parameters(self, **changes: float) -> Self:
        """The same process with other numbers."""
        known, new = self.numbers(), dict[str, Any](changes)
        for name in changes:
            if name not in known:
                raise ValueError(f"{type(self).__name__} has no numeric parameter {name!r}; it has {sorted(known)}.")
            if name == "s":
                s = new.pop(name)
                parts = [Isotropic(s) if is_level(p) else p for p in parts_of(self.noise)]  # type: ignore
                new["noise"] = Sum(tuple(parts)) if len(parts) > 1 else parts[0]
            elif name in self.parameters or name == "t":
                new["parameters"] = new.get("parameters", self.parameters) | {name: new.pop(name)}
        return replace(self, **new)  # type: ignore[type-var]


def _asks_for_time(source: Any) -> bool:
    """Whether a formula has an argument t, or one in a noise or a list has."""
    parts = vars(source).values() if isinstance(source, Noise) else source if isinstance(source, list | tuple) else ()
    return "t" in wanted_by(source) or any(map(_asks_for_time, parts))


def on_phase_space(space: Space, gamma: Any, force: Expr, D: Expr) -> Coefficients:
    """Those of dX = v dt, dV = −(γ v + force) dt + √(2D) dW."""
    m, X = space.dim, ufl.SpatialCoordinate(space.mesh)
    v = [X[m + i] for i in range(m)]
    b = [*v, *(-gamma * v[i] - force[i] for i in range(m))]
    rows = [[D[i, j] if min(i, j) >= 0 else ufl.as_ufl(0) for j in range(-m, m)] for i in range(-m, m)]
    return Coefficients(ufl.as_matrix(rows), ufl.as_vector(b), drift=ufl.as_vector(b))  # ∇·D = 0


@dataclass(frozen=True)
class SDE(Process):
    """dX = b dt + √(2D) dW with any drift and any positive semi-definite D.

    Attributes:
        drift: vector source (d,), which may depend on the time, ``lambda x, t: -x[0] + ufl.sin(t)``, as all formulas of
            all processes may: for ``evolve``, ``backward`` and ``simulate``.
        diffusion: matrix source (d, d), or a scalar D standing for D·I.
        convention: how drift and diffusion are meant.  ``"ito"``: L u = b·∇u + D:∇∇u.  ``"divergence"``:
            L u = ∇·(D∇u) + b·∇u (Hänggi–Klimontovich).  ``"stratonovich"``: with σ the symmetric root of 2D, defined
            here for a scalar D(x) or a constant matrix, where b_Ito = b + ½ ∇·D.
        gibbs: scalar source U if the invariant density e^{−U} without current is known, as in one dimension it always
            is: U = ln D − ∫ b/D (Itô).  The ``weighted`` scheme needs it; a generator checks β = −D∇U cell by cell.
            With that scheme D may jump where the mesh has facets.
    """

    drift: Any
    diffusion: Any
    convention: str = "ito"
    gibbs: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("SDE: convention", self.convention, list(SHARES))

    def coefficients(self, space: Space) -> Coefficients:
        """β = b − ∇·D (Itô), b − ½∇·D (Stratonovich), b (divergence form)."""
        given = space.parameter("drift", self.drift) if is_number(self.drift) else self.drift
        drift = space.vector(given, "SDE: drift")
        if is_number(self.diffusion):
            return Coefficients(space.parameter("diffusion", self.diffusion) * ufl.Identity(space.dim), drift)
        D = space.matrix(self.diffusion, "SDE: diffusion")
        if self.convention == "stratonovich":
            _check_stratonovich(D, space)
        share = SHARES[self.convention]
        return Coefficients(D, drift - share * space.div(D) if share else drift, share, drift if share == 1 else None)

    def potential(self, space: Space) -> Expr | None:
        """The potential that was given."""
        return None if self.gibbs is None else space.scalar(self.gibbs, "SDE: gibbs")


def _check_stratonovich(D: Expr, space: Space) -> None:
    """½ Σ_k (σ_k·∇)σ_k depends on the factor σ, not on D alone, unless D is scalar or constant."""
    nodes = list(ufl.corealg.traversal.unique_pre_traversal(D))
    isotropic = isinstance(D, ufl.classes.ComponentTensor) and any(isinstance(o, ufl.Identity) for o in nodes)
    varies = any(isinstance(o, ufl.classes.SpatialCoordinate | ufl.classes.Coefficient) for o in nodes)
    if space.dim > 1 and varies and not isotropic:
        raise ValueError(
            "SDE: in more than one dimension a Stratonovich drift is determined by the factor σ, not by the matrix "
            "D(x). Give a scalar D(x) or a constant matrix, or convert the drift yourself: "
            "b_Ito = b + ½ Σ_k (σ_k·∇)σ_k with convention='ito'."
        )
