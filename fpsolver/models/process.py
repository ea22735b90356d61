"""Stochastic processes: frozen descriptions of drift and diffusion, with no mesh in them.

dX = b(X) dt + √(2D(X)) dW in the Itô sense.  Its generator is L u = ∇·(D∇u) + β·∇u with β = b − ∇·D.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import ufl
from ufl.core.expr import Expr

from .fields import Space, bound, is_number
from .noise import Isotropic, Noise, isotropic_level, samples_of, with_isotropic_level

CONVENTIONS = ("ito", "stratonovich", "divergence")


@dataclass(frozen=True)
class Coefficients:
    """A process on a mesh, as UFL.

    Attributes:
        D: diffusion, shape (d, d).
        beta: β, shape (d,): b − ∇·D, with the derivative that UFL takes cell by cell.
        share: how much of ∇·D was taken off the drift: 1 (Itô), ½ (Stratonovich), 0 (divergence form).  Where D jumps,
            the derivative is not the divergence, and the forms need to know.
        drift: the Itô drift b, if ∇·D was taken off it; it can be left out, and is then made from the others.
        inside: D and the Itô drift b at the points of a quadrature degree, where they are tabulated and the tables miss
            them by more than a little; None: D and β are what they are everywhere.
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

    @property
    def time_per_step(self) -> float | None:
        """Time of one step of the algorithm that the process stands for; None if it stands for none."""
        return None

    @abstractmethod
    def coefficients(self, space: Space) -> Coefficients:
        """D and β = b − ∇·D on the mesh of ``space``."""

    def inside(self, space: Space) -> tuple[Expr, Expr] | None:
        """D and the Itô drift b without derivatives of tabulated sources; None: this process has no such form."""
        return None

    def potential(self, space: Space) -> Expr | None:
        """U with invariant density ∝ e^{−U} and no current, where it is known in closed form; None otherwise."""
        return None

    def loss_on(self, space: Space) -> Expr | None:
        """The loss of which it is a descent, as UFL; None for other processes."""
        return None

    def loss_source(self) -> Any:
        """The same as a scalar source, of positions only; None for other processes."""
        return None

    def isotropic_diffusion(self) -> float | None:
        """ε where D = εI everywhere and the drift is −∇f, known in closed form; None otherwise."""
        return None

    def gradient_noise(self) -> Noise | None:
        """The noise of the gradients of which it is a descent; None for other processes."""
        return None

    @property
    def kinetic(self) -> bool:
        """Whether it lives on (x, v) with the loss a function of x."""
        return False

    def space(self, mesh: Any, degree: int) -> Space:
        """The coordinates that this process' sources see."""
        return space_of(self, mesh, degree, mesh.geometry.dim)

    def numbers(self) -> dict[str, float]:
        """All that can change without recompiling anything: ``{"learning_rate": 0.1, ...}`` and what the user named."""
        numbers = {f.name: float(getattr(self, f.name)) for f in fields(self) if is_number(getattr(self, f.name))}  # type: ignore[arg-type]
        numbers |= getattr(self, "parameters", {})
        noise = getattr(self, "noise", None)
        if noise is not None and (s := isotropic_level(noise)) is not None:
            numbers["s"] = s
        return numbers

    def with_parameters(self, **changes: float) -> Self:
        """The same process with other numbers.

        Raises:
            ValueError: unknown name; the known ones are listed.
        """
        known = self.numbers()
        for name in changes:
            if name not in known:
                raise ValueError(f"{type(self).__name__} has no numeric parameter {name!r}; it has {sorted(known)}.")
        if "s" in changes:
            changes["noise"] = with_isotropic_level(self.noise, changes.pop("s"))  # type: ignore
        named = getattr(self, "parameters", {})
        if any(name in named for name in changes):
            changes["parameters"] = {name: changes.pop(name, value) for name, value in named.items()}  # type: ignore
        return replace(self, **changes)  # type: ignore[type-var]


def space_of(process: Process, mesh: Any, degree: int, dim: int) -> Space:
    """Where sources of ``dim`` coordinates become UFL that sees the numbers of a process."""
    return Space(mesh, degree, dim, numbers=process.numbers(), given=frozenset(getattr(process, "parameters", {})))


def _own_numbers(process: Any) -> None:
    """Copy ``parameters``, checked; whoever has given them may change the mapping later."""
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


def _positive(name: str, value: float, what: str) -> None:
    if not is_number(value) or not np.isfinite(value) or value <= 0:
        raise ValueError(f"{what}: {name} is {value!r}; a positive finite number was expected.")


@dataclass(frozen=True)
class SDE(Process):
    """dX = b dt + √(2D) dW with any drift and any positive semi-definite D.

    Attributes:
        drift: vector source (d,).
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
        _own_numbers(self)
        if self.convention not in CONVENTIONS:
            raise ValueError(
                f"SDE: convention {self.convention!r} is unknown; expected one of {', '.join(CONVENTIONS)}."
            )

    def coefficients(self, space: Space) -> Coefficients:
        """β = b − ∇·D (Itô), b − ½∇·D (Stratonovich), b (divergence form)."""
        drift = self._drift(space)
        if is_number(self.diffusion):
            return Coefficients(space.parameter("diffusion", self.diffusion) * ufl.Identity(space.dim), drift)
        D = space.matrix(self.diffusion, "SDE: diffusion")
        if self.convention == "stratonovich":
            _check_stratonovich(D, space)
        share = {"ito": 1.0, "stratonovich": 0.5, "divergence": 0.0}[self.convention]
        return Coefficients(D, drift - share * ufl.div(D) if share else drift, share, drift if share == 1 else None)

    def inside(self, space: Space) -> tuple[Expr, Expr] | None:
        """As given, in the Itô convention."""
        if self.convention != "ito":
            return None
        return space.matrix(self.diffusion, "SDE: diffusion"), self._drift(space)

    def _drift(self, space: Space) -> Expr:
        return space.vector(space.parameter("drift", self.drift) if is_number(self.drift) else self.drift, "SDE: drift")

    def potential(self, space: Space) -> Expr | None:
        """The potential that was given."""
        return None if self.gibbs is None else space.scalar(self.gibbs, "SDE: gibbs")


def _check_stratonovich(D: Expr, space: Space) -> None:
    """½ Σ_k (σ_k·∇)σ_k depends on the factor σ, not on D alone, unless D is scalar or constant."""
    isotropic = isinstance(D, ufl.classes.ComponentTensor) and any(
        isinstance(o, ufl.classes.Identity) for o in ufl.corealg.traversal.unique_pre_traversal(D)
    )
    constant = not any(
        isinstance(o, ufl.classes.SpatialCoordinate | ufl.classes.Coefficient)
        for o in ufl.corealg.traversal.unique_pre_traversal(D)
    )
    if space.dim > 1 and not isotropic and not constant:
        raise ValueError(
            "SDE: in more than one dimension a Stratonovich drift is determined by the factor σ, not by the matrix "
            "D(x). Give a scalar D(x) or a constant matrix, or convert the drift yourself: "
            "b_Ito = b + ½ Σ_k (σ_k·∇)σ_k with convention='ito'."
        )


@dataclass(frozen=True)
class Langevin(Process):
    """Overdamped Langevin: b = −∇f, D = temperature · I, with invariant density ∝ e^{−f/temperature}.

    Attributes:
        loss: scalar source f.
        temperature: ε.
        parameters: numbers by name, which formulas see as further arguments: ``lambda x, F: F * x[0]`` with
            ``{"F": 1.0}``.  ``gen.replace(F=2.0)`` recompiles nothing.
    """

    loss: Any
    temperature: float
    parameters: Any = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _own_numbers(self)
        _positive("temperature", self.temperature, "Langevin")

    def coefficients(self, space: Space) -> Coefficients:
        """β = −∇f."""
        D = space.parameter("temperature", self.temperature) * ufl.Identity(space.dim)
        return Coefficients(D, -space.grad(space.scalar(self.loss, "Langevin: loss")))

    def loss_on(self, space: Space) -> Expr:
        """f."""
        return space.scalar(self.loss, "Langevin: loss")

    def loss_source(self) -> Any:
        """f."""
        return bound(self.loss, self.numbers(), frozenset(self.parameters))

    def isotropic_diffusion(self) -> float:
        """The temperature."""
        return float(self.temperature)

    def potential(self, space: Space) -> Expr:
        """U = f / temperature (Gibbs)."""
        return space.scalar(self.loss, "Langevin: loss") / space.parameter("temperature", self.temperature)


@dataclass(frozen=True)
class SGD(Process):
    """Stochastic gradient descent to first order: b = −∇f, D = η/(2B) Σ; one step is time η (t = η k).

    Li, Tai, E (2017), stochastic modified equations of order one and two, Itô sense: expectations at a fixed time
    differ from the algorithm's by O(η) or O(η²).  Order two has the drift −∇(f + (η/4)|∇f|²) and the same D.

    Order two is about means on finite times.  Variances are O(η) themselves and right to leading order in both: on
    f = h x²/2 with noise s² the stationary one is η s²/(h(2 − ηh)) for the algorithm, η s²/(2h) for order one and
    η s²/(h(2 + ηh)), no better, for order two.

    Attributes:
        loss: scalar source f; None with a :class:`~fpsolver.models.noise.PerSample` noise means the mean loss.
        noise: Σ for batches of one sample.
        learning_rate: η.
        batch_size: B (sampled with replacement, unless ``PerSample`` says otherwise).
        order: weak order of the approximation, 1 or 2.
        parameters: numbers by name, which formulas see as further arguments: ``lambda x, F: F * x[0]`` with
            ``{"F": 1.0}``.  ``gen.replace(F=2.0)`` recompiles nothing.
    """

    loss: Any
    noise: Noise
    learning_rate: float
    batch_size: float = 1
    order: Literal[1, 2] = 1
    parameters: Any = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_sgd(self)
        if self.order not in (1, 2):
            raise ValueError(f"SGD: order is {self.order!r}; the weak order 1 or 2 was expected.")

    def numbers(self) -> dict[str, float]:
        """All that can change without recompiling; the order is none of them."""
        return {name: value for name, value in super().numbers().items() if name != "order"}

    @property
    def time_per_step(self) -> float:
        """Time of one step of the algorithm: η."""
        return self.learning_rate

    def coefficients(self, space: Space) -> Coefficients:
        """D = η/(2B) Σ, β = −∇f − ∇·D with the modified f for order two."""
        eta = space.parameter("learning_rate", self.learning_rate)
        B = space.parameter("batch_size", self.batch_size)
        D = eta / (2 * B) * self.noise.covariance(space)
        drift = -space.grad(self._modified_loss(space))
        return Coefficients(D, drift - ufl.div(D), 1.0, drift)

    def inside(self, space: Space) -> tuple[Expr, Expr] | None:
        """To first order, D and −∇f."""
        if self.order != 1:
            return None
        eta, B = space.parameters["learning_rate"], space.parameters["batch_size"]
        return eta / (2 * B) * self.noise.covariance(space), -mean_gradient(self, space)

    def loss_on(self, space: Space) -> Expr:
        """The loss, by default the mean of the samples'."""
        return mean_loss(self, space)

    def loss_source(self) -> Any:
        """The same as a source."""
        return _mean_source(self)

    def gradient_noise(self) -> Noise:
        """Σ for batches of one sample."""
        return self.noise

    def isotropic_diffusion(self) -> float | None:
        """ηs/2B for isotropic noise of constant level s."""
        if not isinstance(self.noise, Isotropic) or not is_number(self.noise.s):
            return None
        return float(self.learning_rate * self.noise.s / (2 * self.batch_size))

    def _modified_loss(self, space: Space) -> Expr:
        f = mean_loss(self, space)
        if self.order == 1:
            return f
        g = space.grad(f)
        return f + space.parameter("learning_rate", self.learning_rate) / 4 * ufl.dot(g, g)

    def potential(self, space: Space) -> Expr | None:
        """U = 2Bf/(ηs) for isotropic noise of constant level s; Itô SGD with any other Σ(x) is not Gibbs."""
        if not isinstance(self.noise, Isotropic) or not is_number(self.noise.s) or self.noise.s == 0:
            return None
        eta = space.parameter("learning_rate", self.learning_rate)
        B = space.parameter("batch_size", self.batch_size)
        return 2 * B * self._modified_loss(space) / (eta * space.parameter("s", self.noise.s))


@dataclass(frozen=True)
class MomentumSGD(Process):
    """Heavy-ball SGD as a kinetic process on (x, v), with noise in v only: D is degenerate for every Σ.

    The algorithm v ← μ v − η g, x ← x + v with stochastic gradient g becomes, with V = v/√η and time √η per step,
    dX = V dt, dV = −(γ V + ∇f) dt + (√η Σ/B)^{1/2} dW, γ = (1 − μ)/√η, hence D_v = √η/(2B) Σ.

    Attributes:
        loss: scalar source of x (d/2 coordinates); None with ``PerSample``: the mean loss.
        noise: Σ(x).
        learning_rate: η.
        momentum: μ in [0, 1).
        batch_size: B.
        parameters: numbers by name, which formulas see as further arguments: ``lambda x, F: F * x[0]`` with
            ``{"F": 1.0}``.  ``gen.replace(F=2.0)`` recompiles nothing.
    """

    scaling = ("learning_rate",)

    loss: Any
    noise: Noise
    learning_rate: float
    momentum: float
    batch_size: float = 1
    parameters: Any = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_sgd(self)
        if not is_number(self.momentum) or not 0 <= self.momentum < 1:
            raise ValueError(f"MomentumSGD: momentum is {self.momentum!r}; a number in [0, 1) was expected.")

    @property
    def time_per_step(self) -> float:
        """Time of one step of the algorithm: √η."""
        return float(np.sqrt(self.learning_rate))

    def loss_on(self, space: Space) -> Expr:
        """The loss, by default the mean of the samples'."""
        return mean_loss(self, space)

    def loss_source(self) -> Any:
        """The same as a source."""
        return _mean_source(self)

    def gradient_noise(self) -> Noise:
        """Σ for batches of one sample."""
        return self.noise

    @property
    def kinetic(self) -> bool:
        """It is."""
        return True

    def space(self, mesh: Any, degree: int) -> Space:
        """Sources see x, the first half of the coordinates."""
        d = mesh.geometry.dim
        if d % 2:
            raise ValueError(f"MomentumSGD lives on (x, v): the domain's dimension must be even, it is {d}.")
        return space_of(self, mesh, degree, d // 2)

    def coefficients(self, space: Space) -> Coefficients:
        """b = (v, −γv − ∇f), D = diag(0, √η/(2B) Σ(x)); ∇·D = 0 because Σ does not depend on v."""
        m = space.dim
        root = ufl.sqrt(space.parameter("learning_rate", self.learning_rate))
        B = space.parameter("batch_size", self.batch_size)
        gamma = (1 - space.parameter("momentum", self.momentum)) / root
        X = ufl.SpatialCoordinate(space.mesh)
        gradient, Sigma = mean_gradient(self, space), self.noise.covariance(space)
        b = [X[m + i] for i in range(m)] + [-gamma * X[m + i] - gradient[i] for i in range(m)]
        D = [
            [root / (2 * B) * Sigma[i - m, j - m] if min(i, j) >= m else ufl.as_ufl(0) for j in range(2 * m)]
            for i in range(2 * m)
        ]
        return Coefficients(ufl.as_matrix(D), ufl.as_vector(b))

    def inside(self, space: Space) -> tuple[Expr, Expr]:
        """The same, as ∇·D = 0."""
        c = self.coefficients(space)
        return c.D, c.beta


def check_sgd(process: Any) -> None:
    """Refuse numbers and noises that no algorithm has."""
    name = type(process).__name__
    _own_numbers(process)
    _positive("learning_rate", process.learning_rate, name)
    _positive("batch_size", process.batch_size, name)
    if not isinstance(process.noise, Noise):
        raise TypeError(
            f"{name}: noise is a {type(process.noise).__name__}; expected fp.Isotropic, fp.Covariance, fp.PerSample "
            "or a sum of them."
        )
    per_sample = samples_of(process.noise)
    N = per_sample.size if per_sample is not None else None
    if N is not None and process.batch_size > N:
        raise ValueError(f"{name}: batch_size is {process.batch_size:g}, but there are only {N} samples.")
    if process.loss is None and per_sample is None:
        raise ValueError(f"{name}: loss=None needs a fp.PerSample noise, whose mean loss is then taken.")


def mean_gradient(process: SGD | MomentumSGD, space: Space) -> Expr:
    """The gradient of the loss of a process as UFL."""
    samples = samples_of(process.noise)
    if process.loss is None and samples is not None:
        return samples.mean_gradient(space)
    return space.grad(mean_loss(process, space))


def mean_loss(process: SGD | MomentumSGD, space: Space) -> Expr:
    """The loss of a process as UFL, by default the mean of its samples'."""
    if process.loss is None:
        samples = samples_of(process.noise)
        assert samples is not None
        return samples.mean_loss(space)
    return space.scalar(process.loss, f"{type(process).__name__}: loss")


def _mean_source(process: SGD | MomentumSGD) -> Any:
    def bind(source: Any) -> Any:
        return bound(source, process.numbers(), frozenset(process.parameters))

    if process.loss is not None:
        return bind(process.loss)
    samples = samples_of(process.noise)
    assert samples is not None
    return samples.mean_source(bind)
