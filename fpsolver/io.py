"""Fields and domains in files: VTX and XDMF for ParaView, npz for everything else."""

import ctypes
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from mpi4py import MPI

import dolfinx
import numpy as np
import numpy.typing as npt
from dolfinx import fem
from dolfinx import io as dio
from dolfinx import mesh as dmesh

from . import _compat
from ._errors import on_root, together
from ._files import Staged, store
from ._log import logger
from ._sample import degree, lagrange
from .domains.domain import Domain
from .domains.meshfile import UNSIGNED, XDMF_KEY, sign

SUFFIXES = {".bp": "VTX (ADIOS2)", ".xdmf": "XDMF", ".npz": "NumPy"}
"""The file types of :func:`write`."""

Fields: TypeAlias = Any
"""A function, a list of functions or a dictionary of functions, see :func:`write`."""


def write(path: str | Path, functions: Fields, times: Sequence[float] | None = None) -> None:
    """Write functions to a file whose type follows from its suffix (collective).

    ======== ===========================================================================================
    .bp      VTX, for ParaView: every degree, continuous or not, as it is (needs DOLFINx with ADIOS2)
    .xdmf    XDMF, for ParaView: the values at the nodes of the mesh, averaged where the function jumps
    .npz     NumPy: ``points`` (n, dim), ``cells`` (m, nodes per cell), ``times`` and under each name the values
             (times, n), or (times, n, components); gathered on rank 0
    ======== ===========================================================================================

    Args:
        path: the file; missing folders are created.
        functions: a function, a list of functions with different names, or a dictionary {name: function}, where
            whatever has an attribute ``function`` (a solution) is a function too.  With ``times``, one of these for
            each time; an object that has ``times`` itself (an evolution) is enough alone.
        times: increasing times.

    Raises:
        ValueError: for an unknown suffix, or functions that cannot be written.
    """
    if times is None and hasattr(functions, "times"):
        times, name = functions.times, str(getattr(functions, "name", "solution")).replace(" ", "_")
        functions = [{name: functions[i]} for i in range(len(functions))]
    if times is not None and len(times) != len(functions):
        raise ValueError(
            f"{path}: {len(times)} times, but {len(functions)} entries to write; expected one for each time"
        )
    with Writer(path) as writer:
        if times is None:
            writer.write(0.0, functions)
        else:
            for i, t in enumerate(times):
                writer.write(t, functions[i])


class Writer:
    """A file that takes fields at one time after the other: ``with Writer("p.bp") as w: w.write(0.1, {"p": p})``.

    The fields of every time must be as many as the first ones, with the same names if they are in a dictionary.
    Closing is collective, as is everything else.  The file gets its name when it is closed, and until then, or where
    writing fails, a file of that name stays as it was.

    Args:
        path: the file, see :func:`write`.

    Raises:
        OSError: the file cannot be written, with its name and the reason.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.suffix not in SUFFIXES:
            raise ValueError(f"{path}: unknown file type {self.path.suffix!r}; known are {', '.join(SUFFIXES)}")
        if self.path.suffix == ".bp" and not dolfinx.has_adios2:
            raise ValueError(f"{path}: this DOLFINx was built without ADIOS2; write .xdmf or .npz instead")
        self._held: dict[str, fem.Function] = {}
        self._file: Any = None
        self._staged: Staged | None = None
        self._table: dict[str, Any] = {}

    def write(self, t: float, functions: Fields) -> None:
        """Write the fields of one time."""
        fields = _named(functions, self.path)
        if not self._held:
            self._open(fields)
        elif not isinstance(functions, Mapping) and len(fields) == len(self._held):
            fields = dict(zip(self._held, fields.values(), strict=True))  # solutions may be named after their times
        if fields.keys() != self._held.keys():
            raise ValueError(f"{self.path} holds {', '.join(self._held)}; it cannot also take {', '.join(fields)}")
        for name, f in fields.items():
            _transfer(f, self._held[name])
        if self._staged is not None:
            with self._writing(sum(f.x.array.nbytes for f in self._held.values())):
                if self.path.suffix == ".bp":
                    self._file.write(t)
                for f in self._held.values() if self.path.suffix == ".xdmf" else ():
                    self._file.write_function(f, t)
        else:
            self._table["times"].append(t)
            for name, f in self._held.items():
                self._table[name].append(_gathered(f))

    def _open(self, fields: dict[str, fem.Function]) -> None:
        V = next(iter(fields.values())).function_space
        mesh, comm = V.mesh, V.mesh.comm
        if any(f.function_space.mesh is not mesh for f in fields.values()):
            raise ValueError(
                f"{self.path}: the functions {', '.join(fields)} live on different meshes; use a file for each"
            )
        shapes = {tuple(f.function_space.value_shape) for f in fields.values()}
        if self.path.suffix == ".bp" and len(shapes) > 1:
            raise ValueError(f"{self.path}: scalars and vectors cannot share a .bp file; use a file for each")
        order = _compat.coordinate_map(mesh).degree
        if self.path.suffix == ".xdmf" and order > 2:
            raise ValueError(
                f"{self.path}: XDMF has no cells of degree {order}; write .bp, or make the mesh with order=2"
            )
        family, k = ("Lagrange", order) if self.path.suffix == ".xdmf" else _common_family(fields.values())
        for name, f in fields.items():
            self._held[name] = fem.Function(
                fem.functionspace(mesh, (family, k, tuple(f.function_space.value_shape))), name=name
            )
        logger.info(
            "%s: %s as %s of degree %d", self.path, ", ".join(fields), f"{SUFFIXES[self.path.suffix]}, {family}", k
        )
        if self.path.suffix != ".npz":
            self._staged = staged = Staged(comm, self.path)
            held = next(iter(self._held.values())).function_space
            nodes = mesh.geometry.x.nbytes + 3 * held.tabulate_dof_coordinates().nbytes
            size = nodes + 8 * (held.dofmap.list.size + _compat.geometry_dofmap(mesh).size)
        if self.path.suffix == ".bp":
            with self._writing(size):
                policy = dio.VTXMeshPolicy.reuse
                self._file = dio.VTXWriter(comm, str(staged.path), list(self._held.values()), mesh_policy=policy)
        elif self.path.suffix == ".xdmf":
            with self._writing(size):
                self._file = dio.XDMFFile(comm, str(staged.path), "w")
                self._file.write_mesh(mesh)
        else:
            if reserved := {"points", "cells", "times"} & fields.keys():
                raise ValueError(f"{self.path}: a function in a .npz file cannot be called {reserved.pop()!r}")
            points, cells = _gathered_nodes(next(iter(self._held.values())).function_space)
            self._table = {"points": points, "cells": cells, "times": [], **{name: [] for name in fields}}

    @contextmanager
    def _writing(self, size: int) -> Iterator[None]:
        """Where a library writes so many bytes from this rank; a file that it has failed on is given up."""
        assert self._staged is not None
        try:
            self._staged.claim(size)
            with self._staged.unfinished(), together(self._staged.comm):
                yield
        except BaseException as e:
            if self._file is not None:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._file))  # its destructor would end the process
            self._file = self._staged = None
            if isinstance(e, RuntimeError):
                raise OSError(f"{self.path} cannot be written: {e}") from e
            raise

    def close(self) -> None:
        """Finish the file, and give it its name."""
        if self._staged is not None and self._file is not None:
            staged = self._staged
            with self._writing(0):
                self._file.close()
            staged.publish()
        if self._table:
            comm = next(iter(self._held.values())).function_space.mesh.comm
            table, self._table = self._table, {}
            arrays: dict[str, Any] = {k: np.asarray(v) for k, v in table.items()}
            on_root(comm, lambda: store(self.path, lambda file: np.savez_compressed(file, **arrays)))
        self._file = self._staged = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_domain(path: str | Path, domain: Domain) -> None:
    """Write a mesh and the names of its boundary parts to an .xdmf file (and the .h5 file that belongs to it).

    :meth:`fpsolver.Domain.read` reads it on any number of ranks, and refuses files that have changed since.  ParaView
    shows the parts as the field "parts" on the boundary: part i of ``domain.parts`` adds 2^i.

    Raises:
        OSError: the files cannot be written, with their name and the reason.
    """
    path = Path(path)
    if path.suffix != ".xdmf":
        raise ValueError(f"{path}: domains are written as .xdmf, not {path.suffix!r}")
    mesh, dim = domain.mesh, domain.dim
    if (order := _compat.coordinate_map(mesh).degree) > 2:
        raise ValueError(f"{path}: XDMF has no cells of degree {order}; make the mesh with order=2")
    if len(domain.parts) > 31:
        raise ValueError(f"{path}: at most 31 boundary parts can be written, got {len(domain.parts)}")
    facets = np.unique(np.concatenate([domain.facets(name) for name in domain.parts]))
    values = np.zeros(len(facets), dtype=np.int32)
    for i, name in enumerate(domain.parts):
        values[np.isin(facets, domain.facets(name))] += 1 << i
    tags = dmesh.meshtags(mesh, dim - 1, facets.astype(np.int32), values)
    tags.name = "parts"
    staged = Staged(domain.comm, path)
    staged.claim(mesh.geometry.x.nbytes + 8 * (_compat.geometry_dofmap(mesh).size + (dim + 1) * len(facets)))
    before, mesh.name = mesh.name, "mesh"
    try:
        with staged.unfinished(), dio.XDMFFile(domain.comm, str(staged.path), "w") as file:
            file.write_mesh(mesh)
            file.write_meshtags(tags, mesh.geometry)
            file.write_information(XDMF_KEY, json.dumps({"parts": domain.parts, "sha256": UNSIGNED}))
    except RuntimeError as e:
        raise OSError(f"{path} cannot be written: {e}") from e
    finally:
        mesh.name = before
    on_root(domain.comm, lambda: sign(staged.path))
    staged.publish()


# -- Fields


def _named(functions: Fields, path: Path) -> dict[str, fem.Function]:
    """The functions to write, by name."""
    if isinstance(functions, Mapping):
        fields = {name: getattr(f, "function", f) for name, f in functions.items()}
    else:
        many = functions if isinstance(functions, list | tuple) else [functions]
        found = [getattr(f, "function", f) for f in many]
        names = [getattr(f, "name", "") for f in found]
        if len(set(names)) < len(names):
            raise ValueError(
                f"{path}: several functions have the same name ({', '.join(names)}); give a dict {{name: function}}"
            )
        fields = dict(zip(names, found, strict=True))
    for name, f in fields.items():
        if not isinstance(f, fem.Function):
            raise ValueError(
                f"{path}: expected DOLFINx functions or solutions, but {name or 'an entry'!r} is {type(f).__name__}"
            )
    if not fields:
        raise ValueError(f"{path}: there is nothing to write")
    return fields


def _common_family(functions: Any) -> tuple[str, int]:
    """A Lagrange family that holds all of the functions."""
    spaces = [f.function_space for f in functions]
    kinds = [lagrange(V) or ("DG", degree(V)) for V in spaces]
    return "DG" if any(family == "DG" for family, _ in kinds) else "Lagrange", max(k for _, k in kinds)


def _transfer(f: fem.Function, held: fem.Function) -> None:
    """Give ``held`` the values of ``f``."""
    family, target = lagrange(f.function_space), lagrange(held.function_space)
    if family == target and f.function_space.element.basix_element == held.function_space.element.basix_element:
        held.x.array[:] = f.x.array
    elif target is not None and target[0] == "Lagrange" and (family is None or family[0] == "DG"):
        _average(f, held)
    else:
        held.interpolate(f)
    held.x.scatter_forward()


def _average(f: fem.Function, held: fem.Function) -> None:
    """Average the values of a discontinuous function at each node of a continuous space.

    Plain interpolation would keep the value of whichever cell comes last, which depends on the number of ranks.
    """
    P = held.function_space
    mesh, bs = P.mesh, P.dofmap.index_map_bs
    D = fem.functionspace(mesh, ("DG", lagrange(P)[1], tuple(P.value_shape)))  # type: ignore[index]
    cellwise = fem.Function(D)
    cellwise.interpolate(f)
    owned = mesh.topology.index_map(mesh.topology.dim).size_local
    nodes, mine = P.dofmap.list[:owned], D.dofmap.list[:owned]
    held.x.array[:] = 0.0
    count = fem.Function(P)
    for i in range(bs):
        np.add.at(held.x.array, nodes * bs + i, cellwise.x.array[mine * bs + i])
        np.add.at(count.x.array, nodes * bs + i, 1.0)
    for g in (held, count):
        g.x.scatter_reverse(dolfinx.la.InsertMode.add)
        g.x.scatter_forward()
    held.x.array[:] /= count.x.array


# -- Gathering on rank 0


def _gathered(f: fem.Function) -> npt.NDArray[Any] | None:
    """Values of all degrees of freedom in global order, shape (n,) or (n, components), on rank 0."""
    index_map, bs = f.function_space.dofmap.index_map, f.function_space.dofmap.index_map_bs
    values = _stacked(f.function_space.mesh.comm, f.x.array[: index_map.size_local * bs])
    return values if values is None or bs == 1 else values.reshape(-1, bs)


def _gathered_nodes(V: fem.FunctionSpace) -> tuple[npt.NDArray[Any] | None, npt.NDArray[Any] | None]:
    """Nodes of all degrees of freedom and their numbers in each cell, on rank 0."""
    mesh, index_map = V.mesh, V.dofmap.index_map
    x = V.tabulate_dof_coordinates()[: index_map.size_local, : mesh.geometry.dim]
    cells = V.dofmap.list[: mesh.topology.index_map(mesh.topology.dim).size_local]
    numbers = index_map.local_to_global(cells.ravel()).reshape(cells.shape)
    return _stacked(mesh.comm, x), _stacked(mesh.comm, numbers)


def _stacked(comm: MPI.Comm, mine: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    pieces = comm.gather(mine, root=0)
    return None if pieces is None else np.concatenate(pieces)
