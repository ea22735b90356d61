"""Every difference between DOLFINx 0.9, 0.10 and 0.11 that this package meets, told apart by features."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from dolfinx import cpp as _cpp
from dolfinx import fem
from dolfinx.fem.forms import CompiledForm
from dolfinx.mesh import GhostMode, Mesh, create_cell_partitioner
from ufl.algorithms import extract_coefficients
from ufl.algorithms.analysis import extract_constants


def interpolation_points(element: Any) -> npt.NDArray[np.float64]:
    """Points of the reference cell where an element wants values, shape (n, tdim): a method until 0.9."""
    points = element.interpolation_points
    return points() if callable(points) else points


def coordinate_map(mesh: Mesh) -> fem.CoordinateElement:
    """The map from the reference cell: ``cmap``, deprecated in 0.11 in favour of one map per cell type."""
    g = mesh.geometry
    return g.cmaps[0] if hasattr(g, "cmaps") else g.cmap


def geometry_dofmap(mesh: Mesh) -> npt.NDArray[np.int32]:
    """Nodes of each local cell, shape (cells, nodes per cell): ``dofmap``, deprecated in 0.11."""
    g = mesh.geometry
    return g.dofmaps[0] if hasattr(g, "dofmaps") else g.dofmap


def cell_partitioner(ghost_mode: GhostMode = GhostMode.shared_facet) -> Callable[..., Any]:
    """A partitioner that keeps the neighbours of each rank's cells, which integrals over interior facets need.

    ``create_mesh`` has none of its own, and since 0.11 a partitioner must say how many cells may share a facet.
    """
    try:
        return create_cell_partitioner(ghost_mode, 2)
    except TypeError:
        return create_cell_partitioner(ghost_mode)


def index_map(comm: Any, size: int, ghosts: npt.NDArray[np.int64], owners: npt.NDArray[np.int32]) -> Any:
    """Layout of what ranks share: since 0.10 with a tag for its messages."""
    try:
        return _cpp.common.IndexMap(comm, size, ghosts, owners, 1311)
    except TypeError:
        return _cpp.common.IndexMap(comm, size, ghosts, owners)


def node_order(convention: str, shape: str, nodes: int) -> npt.NDArray[np.int64]:
    """Permutation p of the nodes of a cell, so that ``dolfinx_nodes = file_nodes[p]``."""
    permutation = {"gmsh": _cpp.io.perm_gmsh, "vtk": _cpp.io.perm_vtk}[convention]
    return np.asarray(permutation(_cpp.mesh.to_type(shape), nodes), dtype=np.int64)


def evaluate_on_facets(expression: fem.Expression, mesh: Mesh, entities: npt.NDArray[np.int32]) -> npt.NDArray[Any]:
    """Evaluate an expression on (cell, local facet) pairs, shape (n, 2); DOLFINx 0.9 wants them flattened."""
    paired = hasattr(expression, "argument_space")
    return expression.eval(mesh, entities if paired else entities.ravel())


def create_form(
    compiled: CompiledForm, V: fem.FunctionSpace, domains: Mapping[str, Any], own: Mapping[Any, Any]
) -> fem.Form:
    """Bind a compiled form to data: DOLFINx 0.9 numbers coefficients as if all of them were used."""
    symbols = extract_coefficients(compiled.ufl_form)
    used = compiled.ufcx_form
    positions = [used.original_coefficient_positions[i] for i in range(used.num_coefficients)]
    by_position = hasattr(fem.Expression, "argument_space")
    coefficients = {symbols[p if by_position else i]: own.get(symbols[p], symbols[p]) for i, p in enumerate(positions)}
    constants = {c: own.get(c, c) for c in extract_constants(compiled.ufl_form)}
    ids: dict[str, set[int]] = {}
    for integral in compiled.ufl_form.integrals():
        here = integral.subdomain_id()
        here = here if isinstance(here, tuple) else (here,)
        ids.setdefault(integral.integral_type(), set()).update(i for i in here if isinstance(i, int))
    subdomains = {
        (kind := getattr(fem.IntegralType, name)): fem.forms.get_integration_domains(kind, tags, sorted(ids[name]))
        for name, tags in domains.items()
        if name in ids and tags is not None
    }
    spaces = [V] * len(compiled.ufl_form.arguments())
    return fem.create_form(compiled, spaces, V.mesh, subdomains, coefficients, constants)
