"""Drift against diffusion: which of the two rules, where and until when."""

from typing import Any

import numpy as np
import ufl
from dolfinx import fem

from ... import _compat
from ...discretisation.generator import Generator
from ...discretisation.solution import Solution
from ...discretisation.solver import statistics
from ...models.fields import is_number
from ...models.process import space_of
from ..pointwise import ito_drift
from ..quadrature import Quadrature

_LARGEST = 1e12


def loss_expression(gen: Generator, loss: Any, what: str) -> Any:
    """The loss of the process as UFL on the generator's mesh, or a given one; None if there is none."""
    if loss is not None:
        return space_of(gen.process, gen.domain.mesh, gen.degree, gen.domain.dim).scalar(loss, what)
    return gen.process.loss_on(gen.process.space(gen.domain.mesh, gen.degree))


def rates_of(gen: Generator, f: Any) -> tuple[Any, Any]:
    """b·∇f and D:∇∇f, the two parts of Lf, as UFL on the generator's mesh."""
    c = gen.coefficients
    return ufl.dot(ito_drift(c), ufl.grad(f)), ufl.inner(c.D, ufl.grad(ufl.grad(f)))


def regime_indicator(gen: Generator, *, loss: Any = None) -> Solution:
    """|b·∇f| / |D:∇∇f|, one value per cell: above one drift rules, below one diffusion (collective).

    For SGD this is |∇f|² / ((η/2B) |Σ:∇∇f|).  The values are those at the midpoints of the cells, at most 1e12
    where nothing diffuses.

    Args:
        gen: generator.
        loss: f, a scalar source of all coordinates; by default the loss of the process.

    Raises:
        ValueError: the process has no loss and none is given.
    """
    f = loss_expression(gen, loss, "regime_indicator: loss")
    if f is None:
        raise ValueError(f"regime_indicator: {type(gen.process).__name__} has no loss; give one by loss=.")
    drift, diffusion = rates_of(gen, f)
    mesh = gen.domain.mesh
    V = fem.functionspace(mesh, ("DG", 0))
    pair = ufl.as_vector([drift, diffusion, ufl.SpatialCoordinate(mesh)[0]])
    cells = np.arange(mesh.topology.index_map(gen.domain.dim).size_local, dtype=np.int32)
    table = fem.Expression(pair, _compat.interpolation_points(V.element)).eval(mesh, cells).reshape(len(cells), 3)
    function = fem.Function(V)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.abs(table[:, 0]) / np.abs(table[:, 1])
    function.x.array[V.dofmap.list[cells, 0]] = np.minimum(np.nan_to_num(ratio, nan=1.0, posinf=_LARGEST), _LARGEST)
    function.x.scatter_forward()
    return Solution(function, statistics(gen), "regime indicator")


def shadowing_time(gen: Generator, *, distance: float = 1.0) -> float:
    """How long the law provably stays within ``distance`` of that of the noiseless flow, in W₂ (collective).

    With sym ∇b ≤ K and S = sup tr 2D over the mesh (both measured at quadrature points), coupling X with the flow from
    the same point gives W₂² ≤ S (e^{2Kt} − 1)/2K, hence t = ln(1 + 2K distance²/S)/2K, which for SGD grows
    like ln(1/η)/2K.

    Args:
        gen: generator.
        distance: a length.

    Returns:
        The time; infinite if the bound never reaches ``distance``.
    """
    if not is_number(distance) or not distance > 0:
        raise ValueError(f"shadowing_time: distance is {distance!r}; a positive number was expected.")
    c = gen.coefficients
    quadrature = Quadrature.of(gen.domain.mesh, max(4, gen.degree))
    jacobian = quadrature.expression(ufl.sym(ufl.grad(ito_drift(c))))
    largest, _ = quadrature.minimum(-np.linalg.eigvalsh(jacobian)[..., -1])
    noise, _ = quadrature.minimum(-2 * quadrature.expression(ufl.tr(c.D)))
    return _time_to(-largest, -noise, distance**2)


def _time_to(K: float, S: float, square: float) -> float:
    """Solution t of S (e^{2Kt} − 1)/2K = square."""
    if S <= 0 or 1 + 2 * K * square / S <= 0:
        return float(np.inf)
    return float(square / S if abs(K) * square < 1e-12 * S else np.log1p(2 * K * square / S) / (2 * K))
