"""UFL expressions of x as functions of many points at once, without a mesh: numpy code is generated.

Every common subexpression occurs once and every number is an argument, so that the losses of many samples, which differ
in their data only, share one function.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import basix.ufl
import numpy as np
import ufl
from ufl import classes
from ufl.algorithms.apply_algebra_lowering import apply_algebra_lowering
from ufl.algorithms.apply_derivatives import apply_derivatives
from ufl.core.expr import Expr

from ..models.fields import Batched, Space
from ..models.process import Process

Callback = Callable[[np.ndarray], np.ndarray]

_FUNCTIONS = {
    "Sqrt": "sqrt", "Exp": "exp", "Ln": "log", "Cos": "cos", "Sin": "sin", "Tan": "tan", "Cosh": "cosh",
    "Sinh": "sinh", "Tanh": "tanh", "Acos": "arccos", "Asin": "arcsin", "Atan": "arctan", "Abs": "abs",
    "MaxValue": "maximum", "MinValue": "minimum", "Atan2": "arctan2", "AndCondition": "logical_and",
    "OrCondition": "logical_or", "NotCondition": "logical_not",
}  # fmt: skip
_COMPARE = {"EQ": "==", "NE": "!=", "LE": "<=", "GE": ">=", "LT": "<", "GT": ">"}


class PointSpace(Space):
    """Where sources become UFL for evaluation at points: coordinates without a mesh, numbers as they are.

    Of ``dim`` coordinates, any number, sources see the leading ``seen``, and they may ask for numbers of ``process``;
    those in ``varying`` are further coordinates.
    """

    def __init__(self, dim: int, seen: int | None = None, process: Process | None = None, varying: Sequence[str] = ()):
        domain = ufl.Mesh(basix.ufl.element("Lagrange", "interval", 1, shape=(dim + len(varying),)))
        self.varying = {name: dim + i for i, name in enumerate(varying)}
        super().__init__(domain, 1, seen or dim)
        if process is not None:
            self.numbers, self.given = process.numbers(), frozenset(process.parameters)
        self.batched: dict[Any, Batched] = {}

    def constant(self, value: Any) -> Any:
        """The numbers themselves."""
        return ufl.as_ufl(float(value)) if np.ndim(value) == 0 else ufl.as_tensor(np.asarray(value, float).tolist())

    def parameter(self, name: str, value: float) -> Any:
        """The number itself, remembered by its name."""
        X, i = ufl.SpatialCoordinate(self.mesh), self.varying.get(name)
        self.parameters[name] = ufl.as_ufl(float(value)) if i is None else X[i]
        return self.parameters[name]

    def div(self, D: Expr) -> Expr:
        """∇·D with respect to x."""
        return ufl.as_vector([sum(self.grad(D[i, j])[j] for j in range(self.dim)) for i in range(self.dim)])

    def together(self) -> AbstractContextManager[None]:
        """No communicator belongs to it: what may raise on one rank alone, the caller wraps."""
        return nullcontext()

    def tabulated(self, source: Any, what: str, shape: tuple[int, ...]) -> Any:
        """A placeholder for a function of many points."""
        if not isinstance(source, Batched):
            raise ValueError(
                f"{what} is a dolfinx Function, which paths cannot evaluate off its mesh; give a callable of x or "
                "fp.batched(f)."
            )
        # a degree of which UFL drops no derivative
        element = basix.ufl.element("Lagrange", "interval", 5, **({"shape": shape} if shape else {}))
        coefficient = ufl.Coefficient(ufl.FunctionSpace(self.mesh, element))
        self.batched[coefficient] = source
        return coefficient


def finite_difference(f: Callable[[np.ndarray], Any], x: np.ndarray) -> np.ndarray:
    """Gradient (n, d) of values (n,) at points (n, d) by central differences of fourth order, of error about 1e-11."""
    h = 1e-3 * np.maximum(1.0, np.abs(x))
    columns = []
    for i, axis in enumerate(np.eye(x.shape[1])):
        near, far = (np.subtract(f(x + e), f(x - e)) for e in (h * axis, 2 * h * axis))
        columns.append((8 * near - far) / (12 * h[:, i]))
    return np.stack(columns, axis=-1)


@dataclass
class _Writer:
    """Writes the code of expressions, one line per operation."""

    space: PointSpace
    lines: list[str] = field(default_factory=list)
    numbers: list[float] = field(default_factory=list)
    callbacks: list[Callback] = field(default_factory=list)
    known: dict[Any, str] = field(default_factory=dict)

    def name(self, code: str) -> str:
        """A variable with this value; equal code gives the same one."""
        if code not in self.known:
            self.known[code] = f"v{len(self.lines)}"
            self.lines.append(f"{self.known[code]} = {code}")
        return self.known[code]

    def emit(self, e: Expr, at: tuple[int, ...], env: dict[int, int]) -> str:
        """The variable that holds component ``at`` of ``e``, free indices having the values in ``env``."""
        key = (e, at, tuple(env[i] for i in e.ufl_free_indices))
        if key not in self.known:
            self.known[key] = self._emit(e, at, env)
        return self.known[key]

    def _emit(self, e: Expr, at: tuple[int, ...], env: dict[int, int]) -> str:
        ops, kind = e.ufl_operands, type(e).__name__
        match e:
            case classes.Zero():
                return "0.0"
            case classes.ScalarValue():
                if (value := float(e)) in (0.0, 1.0):  # written out, for terms with them vanish
                    return f"{value:.1f}"
                self.numbers.append(value)
                return f"c[{len(self.numbers) - 1}]"
            case classes.Identity():
                return "1.0" if at[0] == at[1] else "0.0"
            case classes.SpatialCoordinate():
                return f"x[{at[0]}]"
            case classes.Indexed():
                fixed = classes.FixedIndex
                return self.emit(ops[0], tuple(int(i) if isinstance(i, fixed) else env[i.count()] for i in ops[1]), env)
            case classes.ComponentTensor():
                inner = {**env, **{i.count(): k for i, k in zip(ops[1], at, strict=True)}}
                return self.emit(ops[0], (), inner)
            case classes.ListTensor():
                return self.emit(ops[at[0]], at[1:], env)
            case classes.IndexSum():
                (index,) = ops[1]
                terms = [self.emit(ops[0], at, {**env, index.count(): k}) for k in range(e.dimension())]
                return self._joined("+", "0.0", terms)
            case classes.Sum():
                return self._joined("+", "0.0", [self.emit(o, at, env) for o in ops])
            case classes.Product():
                factors = [self.emit(o, (), env) for o in ops]
                return "0.0" if "0.0" in factors else self._joined("*", "1.0", factors)
            case classes.Division():
                a, b = self.emit(ops[0], at, env), self.emit(ops[1], (), env)
                return a if a == "0.0" or b == "1.0" else self.name(f"{a} / {b}")
            case classes.Power():
                return self._power(self.emit(ops[0], (), env), ops[1], env)
            case classes.Conditional():
                a, b, c = self.emit(ops[0], (), env), self.emit(ops[1], at, env), self.emit(ops[2], at, env)
                return b if b == c else self.name(f"np.where({a}, {b}, {c})")
            case classes.Variable() | classes.Conj() | classes.Real():
                return self.emit(ops[0], at, env)
            case classes.Coefficient() | classes.Grad():
                return self._tabulated(e, at)
        if kind in _COMPARE:
            return self.name(f"{self.emit(ops[0], (), env)} {_COMPARE[kind]} {self.emit(ops[1], (), env)}")
        if kind in _FUNCTIONS:
            arguments = [self.emit(o, at if len(ops) == 1 else (), env) for o in ops]
            return self.name(f"np.{_FUNCTIONS[kind]}({', '.join(arguments)})")
        raise ValueError(
            f"paths cannot evaluate the UFL node {kind}: expected arithmetic, powers, elementary functions, "
            "conditionals, max and min of x. Wrap a numpy function of an (n, d) array in fp.batched()."
        )

    def _joined(self, sign: str, neutral: str, operands: list[str]) -> str:
        first, *rest = [o for o in operands if o != neutral] or [neutral]
        for o in rest:
            first = self.name(f"{first} {sign} {o}")
        return first

    def _power(self, base: str, exponent: Expr, env: dict[int, int]) -> str:
        power = float(exponent) if isinstance(exponent, classes.ScalarValue) else None
        if power in (1.0, 2.0, 3.0, 4.0):  # a tenth of the time of a general power
            square = self.name(f"{base} * {base}") if power > 1 else base
            return square if power < 3 else self.name(f"{square} * {base if power == 3 else square}")
        return self.name(f"{base} ** {repr(power) if power is not None else self.emit(exponent, (), env)}")

    def _tabulated(self, e: Expr, at: tuple[int, ...]) -> str:
        gradient = isinstance(e, classes.Grad)
        source = self.space.batched.get(e.ufl_operands[0] if gradient else e)
        if source is None:
            what = "second derivatives of fp.batched functions" if gradient else "dolfinx Functions"
            raise ValueError(f"paths cannot evaluate {what}: write the source with UFL as a callable of x.")
        if gradient and len(e.ufl_shape) > 1:
            raise ValueError("paths cannot differentiate a batched vector or matrix: write it with UFL.")
        key = ("callback", e)
        if key not in self.known:
            self.callbacks.append(_callback(source.function, self.space.dim, e.ufl_shape, gradient))
            self.known[key] = self.name(f"f[{len(self.callbacks) - 1}](x)")
        return self.name(f"{self.known[key]}[{', '.join(map(str, at))}]") if at else self.known[key]


def _callback(function: Callable[[np.ndarray], Any], dim: int, shape: tuple[int, ...], gradient: bool) -> Callback:
    """A batched function, or its gradient, with coordinates first, as the code has them."""

    def checked(points: np.ndarray) -> np.ndarray:
        found, wanted = np.asarray(function(points), dtype=float), (len(points), *(() if gradient else shape))
        if found.shape != wanted:
            raise ValueError(f"a batched function returned shape {found.shape}; expected {wanted}.")
        return found

    def values(x: np.ndarray) -> np.ndarray:
        points = np.ascontiguousarray(x[:dim].T)
        if not gradient:
            return np.moveaxis(checked(points), 0, -1)
        return np.vstack([finite_difference(checked, points).T, np.zeros((len(x) - dim, len(points)))])

    return values


@dataclass(frozen=True)
class Code:
    """Generated code of scalar expressions: a function of points x, numbers c and functions f of ``fp.batched``."""

    source: str
    numbers: tuple[float, ...]
    callbacks: tuple[Callback, ...]

    def compile(self) -> Callable[[Any, Sequence[Any]], tuple[Any, ...]]:
        """The function (x, c) -> one value per expression: arrays, or floats for what does not depend on x."""
        scope: dict[str, Any] = {"np": np}
        exec(compile(self.source, "<generated by fpsolver>", "exec"), scope)
        evaluate, f = scope["evaluate"], self.callbacks
        return lambda x, c: evaluate(x, c, f)


def generate(expressions: Sequence[Expr], space: PointSpace) -> Code:
    """Code of UFL expressions of any shape, their components in row-major order."""
    writer, results = _Writer(space), []
    for e in expressions:
        # twice: the gradient of a gradient is only seen after the inner one is gone
        lowered = apply_derivatives(apply_algebra_lowering(ufl.as_ufl(e)))
        results += [writer.emit(lowered, at, {}) for at in np.ndindex(*lowered.ufl_shape)]
    body = "".join(f"    {line}\n" for line in writer.lines)
    text = f"def evaluate(x, c, f):\n{body}    return ({', '.join(results)},)\n"
    return Code(text, tuple(writer.numbers), tuple(writer.callbacks))
