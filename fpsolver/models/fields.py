"""Sources of coefficients (numbers, callables, tabulated functions) become UFL expressions on a mesh.

A source is told by its type: a number or nested sequence is constant; a callable of ``x`` gives UFL, and gets the
numbers of the process that it asks for by further arguments, ``lambda x, F: F * x[0]``; :class:`Batched` wraps a
function of an ``(n, d)`` array, which is tabulated; a dolfinx ``Function`` is copied as it is.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from mpi4py import MPI

import dolfinx
import numpy as np
import ufl
from dolfinx import fem
from ufl.algorithms import extract_coefficients
from ufl.algorithms.analysis import extract_constants
from ufl.core.expr import Expr

from .._arguments import expect, is_number
from .._errors import together
from ._batched import tabulate


@dataclass(frozen=True)
class Batched:
    """A ``function`` that maps points of shape (n, d) to values of shape (n,), (n, d), (n, d, d) or (n, N, d).

    The values are tabulated on the mesh: losses, drifts and per-sample gradients as continuous piecewise polynomials,
    covariances as continuous piecewise linear tensors, which stay positive semi-definite between the nodes.

    ``function`` is called with a numpy array in double precision, and may return a numpy, PyTorch or JAX array.
    """

    function: Callable[[np.ndarray], Any]

    def __post_init__(self) -> None:
        if not callable(self.function):
            kind = type(self.function).__name__
            raise TypeError(f"batched: a function of an (n, d) array was expected, not a {kind}.")


batched = Batched


@dataclass
class Space:
    """Where sources are turned into UFL: a mesh, a polynomial degree, and which coordinates are the parameters."""

    mesh: dolfinx.mesh.Mesh
    degree: int  # of tabulated sources
    dim: int  # leading coordinates that sources see: all, or half of them for a kinetic process on (x, v)
    numbers: Mapping[str, float] = field(default_factory=dict)  # of the process, also those not asked for yet
    given: frozenset[str] = frozenset()  # names of those that the user has named
    parameters: dict[str, fem.Constant] = field(default_factory=dict)  # the numbers; changing them recompiles nothing
    tables: dict[Any, Any] = field(default_factory=dict)  # tabulated samples, which serve several coefficients
    inexact: dict[str, float] = field(default_factory=dict)  # sources whose interpolation misses over a thousandth
    copies: dict[Any, Any] = field(default_factory=dict)  # constants and Functions in formulas as they were first seen
    quadrature: int | None = None  # degree at whose points tabulated sources are exact; None: they are interpolated

    @property
    def x(self) -> Expr:
        """The leading ``dim`` coordinates."""
        X = ufl.SpatialCoordinate(self.mesh)
        return X if self.dim == X.ufl_shape[0] else ufl.as_vector([X[i] for i in range(self.dim)])

    def grad(self, f: Expr) -> Expr:
        """Gradient with respect to :attr:`x`, shape (dim,)."""
        if not ufl.domain.extract_domains(f):  # a number, of which UFL takes no derivative
            return ufl.as_vector([0.0] * self.dim)
        return ufl.as_vector([f.dx(i) for i in range(self.dim)])

    def div(self, D: Expr) -> Expr:
        """∇·D, shape (dim,)."""
        return ufl.div(D)

    def constant(self, value: Any) -> Any:
        """A number or an array of any shape that no compiled form depends on."""
        return fem.Constant(self.mesh, np.array(value, dtype=dolfinx.default_scalar_type))

    def parameter(self, name: str, value: float) -> fem.Constant:
        """The constant of a process' named number."""
        if name not in self.parameters:
            self.parameters[name] = self.constant(value)
        return self.parameters[name]

    def named(self, source: Callable[..., Any], what: str) -> dict[str, Any]:
        """The numbers that a callable of x asks for by name, as constants."""
        wanted = wanted_by(source, self.given)
        if missing := [name for name in wanted if name not in self.numbers]:
            known = ", ".join(sorted(self.numbers)) or "(none)"
            raise ValueError(
                f"{what} asks for {', '.join(missing)} besides x; the process has the numbers {known}. Name it in "
                f"parameters={{{missing[0]!r}: 1.0}}, or give it a default value."
            )
        return {name: self.parameter(name, self.numbers[name]) for name in wanted}

    def owned(self, expression: Expr) -> Expr:
        """The expression with copies of the constants and Functions in it, which others may change later."""
        copies, own = {}, set(self.parameters.values())
        for c in extract_constants(expression):
            if isinstance(c, fem.Constant) and c not in own:
                copies[c] = self.constant(self.copies.setdefault(c, np.array(c.value)))
        for f in extract_coefficients(expression):
            if isinstance(f, fem.Function):
                if f not in self.copies:
                    self.copies[f] = f.copy()
                copies[f] = self.copies[f]
        return ufl.replace(expression, copies) if copies else expression

    def inherit(self, model: "Space") -> None:
        """Take what another space has copied, and on the same mesh what it has tabulated."""
        self.copies = model.copies
        if self.mesh is model.mesh:
            self.tables.update(model.tables)

    def together(self) -> AbstractContextManager[None]:
        """Where the user's functions run: what one rank raises, all raise (collective)."""
        return together(self.mesh.comm)

    def scalar(self, source: Any, what: str) -> Expr:
        """``source`` as a scalar expression."""
        return self._shaped(source, what, ())

    def vector(self, source: Any, what: str) -> Expr:
        """``source`` as a vector of length ``dim``; in 1D a scalar will do."""
        return self._shaped(source, what, (self.dim,))

    def matrix(self, source: Any, what: str) -> Expr:
        """``source`` as a ``dim`` x ``dim`` matrix; a scalar s stands for s times the identity."""
        return self._shaped(source, what, (self.dim, self.dim))

    def _shaped(self, source: Any, what: str, shape: tuple[int, ...]) -> Expr:
        if isinstance(source, Batched | fem.Function):
            return _fit(self.tabulated(source, what, shape), what, shape)
        if callable(source) and not isinstance(source, Expr):
            with self.together():
                named = self.named(source, what)
                try:
                    source = source(self.x, **named)
                except Exception as error:
                    raise TypeError(
                        f"{what} failed on UFL coordinates ({type(error).__name__}: {error}). Write it with UFL "
                        "(ufl.exp, ufl.sin, x[0]**2, ...), or wrap a numpy, torch or jax function of an (n, d) array "
                        "in fp.batched()."
                    ) from error
        return _fit(self.owned(_as_ufl(self, source, what)), what, shape)

    def tabulated(self, source: Any, what: str, shape: tuple[int, ...]) -> Expr:
        """A function of many points, or a dolfinx Function."""
        if isinstance(source, Batched):
            return tabulate(self, source, what, shape)
        if source.function_space.mesh != self.mesh:
            raise ValueError(f"{what}: the Function lives on another mesh than the domain's; interpolate it first.")
        return self.owned(source)


def wanted_by(source: Any, given: frozenset[str] = frozenset()) -> list[str]:
    """Of a formula the arguments behind x without a value of their own, and those that the user has given values."""
    if not callable(source) or isinstance(source, Expr):
        return []
    try:
        arguments = list(inspect.signature(source).parameters.values())[1:]
    except (TypeError, ValueError):  # some compiled functions tell nothing
        return []
    named = [a for a in arguments if a.kind in (a.POSITIONAL_OR_KEYWORD, a.KEYWORD_ONLY)]
    return [a.name for a in named if a.name in given or a.default is a.empty]


def _as_ufl(space: Space, value: Any, what: str) -> Expr:
    """Numbers become constants, zeros stay zeros (UFL drops their terms), sequences become tensors."""
    if isinstance(value, Expr):
        return value
    if is_number(value):
        expect(what, value, "a finite number", np.isfinite(float(value)))
        return ufl.as_ufl(0) if value == 0 else space.constant(value)
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str):
        items = [_as_ufl(space, v, what) for v in value]
        if items and len({i.ufl_shape for i in items}) == 1:
            return ufl.as_tensor(items)
        raise ValueError(f"{what}: the rows have different lengths, or there are none.")
    raise TypeError(
        f"{what} is a {type(value).__name__}; expected a number, a nested sequence of numbers, a callable of x that "
        "returns UFL, fp.batched(f), or a dolfinx Function."
    )


def _fit(expression: Expr, what: str, shape: tuple[int, ...]) -> Expr:
    found = expression.ufl_shape
    if found == shape:
        return expression
    if found == () and len(shape) == 2:
        return expression * ufl.Identity(shape[0])
    if found == () and shape == (1,):
        return ufl.as_vector([expression])
    if found == (1,) and shape in ((), (1, 1)):
        return expression[0] if shape == () else ufl.as_matrix([[expression[0]]])
    names = {0: "a scalar", 1: f"a vector of length {shape[0] if shape else 0}", 2: f"a matrix of shape {shape}"}
    raise ValueError(f"{what} has shape {found}; {names[len(shape)]} was expected.")


def integrate(mesh: dolfinx.mesh.Mesh, expression: Expr, degree: int, measure: ufl.Measure = ufl.dx) -> float:
    """Integral over the whole mesh, or with ``ufl.ds`` its boundary, for a quadrature degree (collective)."""
    form = fem.form(expression * measure(domain=mesh, metadata={"quadrature_degree": degree}))
    return float(mesh.comm.allreduce(fem.assemble_scalar(form), op=MPI.SUM))
