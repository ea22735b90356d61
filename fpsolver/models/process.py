"""Stochastic processes: frozen descriptions of drift and diffusion, with no mesh in them.

dX = b(X) dt + √(2D(X)) dW in the Itô sense.  Its generator is L u = ∇·(D∇u) + β·∇u with β = b − ∇·D.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
import ufl
from ufl.core.expr import Expr

from .fields import Space, bound, is_number, wanted_by
from .noise import Noise, isotropic_level, with_isotropic_level

SHARES = {"ito": 1.0, "stratonovich": 0.5, "divergence": 0.0}
"""How much of ∇·D each convention takes off the drift."""


@dataclass(frozen=True)
class Coefficients:
    """A process on a mesh, as UFL.

    Attributes:
        D: diffusion, shape (d, d).
        beta: β, shape (d,): b − ∇·D, with the derivative that UFL takes cell by cell.
        share: how much of ∇·D was taken off the drift: 1 (Itô), ½ (Stratonovich), 0 (divergence form).  Where D jumps,
            the derivative is not the divergence, and the forms need to know.
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


class Process(ABC):
    """What every process provides."""

    scaling: ClassVar[tuple[str, ...]] = ()
    """Parameters by which coordinates or time are scaled, so that they cannot change on the way."""
    copies: ClassVar[int] = 1
    """Coordinates per coordinate that sources see, which are the first ones: 2 on (x, v)."""
    kinetic: bool = False
    """Whether it lives on (x, v) with the loss a function of x."""
    parameters: Any = MappingProxyType({})
    """Numbers that the user has named."""
    timed: bool = False
    """Whether formulas ask for the time t; with another value of the number t, the time stands still there."""

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
        loss = getattr(self, "loss", None)
        return None if loss is None else space.scalar(loss, f"{type(self).__name__}: loss")

    def loss_source(self) -> Any:
        """The same as a scalar source, of positions only; None for other processes."""
        return bound(getattr(self, "loss", None), self.numbers(), frozenset(self.parameters))

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
        """How many of ``dim`` coordinates sources see.

        Raises:
            ValueError: ``dim`` is no multiple of the coordinates per weight.
        """
        if dim % self.copies:
            raise ValueError(
                f"{type(self).__name__} has {self.copies} coordinates per weight: the domain's dimension must be a "
                f"multiple of that, it is {dim}."
            )
        return dim // self.copies

    def space(self, mesh: Any, degree: int) -> Space:
        """The coordinates that this process' sources see."""
        return space_of(self, mesh, degree, self.weights(mesh.geometry.dim))

    def numbers(self) -> dict[str, float]:
        """All that can change without recompiling anything: ``{"learning_rate": 0.1, ...}`` and what the user named."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        numbers = {name: float(value) for name, value in given.items() if is_number(value)}
        numbers |= ({"t": 0.0} if self.timed else {}) | self.parameters
        level = isotropic_level(given["noise"]) if "noise" in given else None
        return numbers if level is None else numbers | {"s": level}

    def with_parameters(self, **changes: float) -> Self:
        """The same process with other numbers.

        Raises:
            ValueError: unknown name; the known ones are listed.
        """
        known, new = self.numbers(), dict[str, Any](changes)
        for name in changes:
            if name not in known:
                raise ValueError(f"{type(self).__name__} has no numeric parameter {name!r}; it has {sorted(known)}.")
            if name == "s":
                new["noise"] = with_isotropic_level(self.noise, new.pop(name))  # type: ignore
            elif name in self.parameters or name == "t":
                new["parameters"] = new.get("parameters", self.parameters) | {name: new.pop(name)}
        return replace(self, **new)  # type: ignore[type-var]


def space_of(process: Process, mesh: Any, degree: int, dim: int) -> Space:
    """Where sources of ``dim`` coordinates become UFL that sees the numbers of a process."""
    return Space(mesh, degree, dim, numbers=process.numbers(), given=frozenset(process.parameters))


def _asks_for_time(source: Any) -> bool:
    """Whether a formula has an argument t, or one in a noise or a list has."""
    parts = vars(source).values() if isinstance(source, Noise) else source if isinstance(source, list | tuple) else ()
    return "t" in wanted_by(source) or any(map(_asks_for_time, parts))


def own_numbers(process: Any) -> None:
    """Copy ``parameters``, which others may change later, checked; see whether formulas ask for the time."""
    what, given = type(process).__name__, process.parameters
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(
            f'{what}: parameters is a {type(given).__name__}; names and numbers, {{"F": 1.0}}, were expected.'
        )
    taken = {f.name for f in fields(process)} | {"s", "delta", "x"}
    for name, value in (given or {}).items():
        if not isinstance(name, str) or not name.isidentifier() or name in taken:
            raise ValueError(f"{what}: parameters has {name!r}; a name was expected that is none of {sorted(taken)}.")
        if not is_number(value) or not np.isfinite(value):
            raise ValueError(f"{what}: parameters has {name} = {value!r}; a finite number was expected.")
    object.__setattr__(process, "parameters", {name: float(value) for name, value in (given or {}).items()})
    timed = "t" not in process.parameters and any(map(_asks_for_time, vars(process).values()))
    object.__setattr__(process, "timed", timed)


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
        parameters: numbers by name, which formulas see as further arguments: ``lambda x, F: F * x[0]`` with
            ``{"F": 1.0}``.  ``gen.replace(F=2.0)`` recompiles nothing.
    """

    drift: Any
    diffusion: Any
    convention: str = "ito"
    gibbs: Any = None
    parameters: Any = None

    def __post_init__(self) -> None:
        own_numbers(self)
        if self.convention not in SHARES:
            raise ValueError(f"SDE: convention is {self.convention!r}; one of {', '.join(SHARES)} was expected.")

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
