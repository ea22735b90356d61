"""Evolutions that survive: every output is a file, complete at any moment, that any number of ranks can read.

A checkpoint is a folder.  ``start.npz`` has, for every cell and every node in it, a place inside the cell, which tells
the meaning of all values whatever the partition, the numbering or the continuity of the elements; and the values at
time 0 and of what G does to one function.  ``00000.npz``, ``00001.npz``, ... are the outputs, ``evolution.json`` says
of what.  Files are written under another name, forced to the disk and then renamed, so that a process that is killed
loses no more than the output it was working on.  (Not by adios4dolfinx, which reads on other ranks only with the mesh
in the same file, ends the process where the disk is full, and has no version for DOLFINx 0.11 in Debian.)
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
from dolfinx import fem
from scipy.spatial import cKDTree

from .. import _compat
from .._errors import agree, on_root
from .._files import store
from .._log import logger
from .._sample import own_cells, push_forward
from ..discretisation.assembly import to_function, to_vector
from ..discretisation.generator import Generator
from ..discretisation.solution import bounds
from ._krylov import Snapshot
from ._scheduled import functionals

VERSION = 2
INSIDE = 0.9  # nodes are told apart by their images under this contraction of the cell: those of neighbours coincide
CLOSE = 1e-10  # times the domain's extent: places that are the same
SAME = 1e-8  # relative difference of values that are the same but for the order of summation
ABOUT = "evolution.json"


def describe(path: str | Path, comm: MPI.Comm) -> dict[str, Any]:
    """What a checkpoint is about: evolution, times, time_rtol and all else that must stay the same (collective).

    Raises:
        FileNotFoundError: there is none.
    """
    about = comm.bcast(on_root(comm, lambda: _about(Path(path))), root=0)
    if about is None:
        raise FileNotFoundError(f"{path} is not the folder of a checkpoint: there is no {ABOUT} in it.")
    return about


class Checkpoint:
    """The checkpoint of a ``"density"``, maybe a signed one, or of an ``"expectation"`` (collective, as all here)."""

    def __init__(self, path: str | Path, gen: Generator, evolution: str, signed: bool = False):
        self.path, self.gen, self.comm = Path(path), gen, gen.domain.comm
        self._kind = {"version": VERSION, "evolution": evolution, "signed": signed}
        self._order = np.zeros(0, int)  # on rank 0: places in the files of all nodes, rank after rank

    def open(
        self, v0: PETSc.Vec | None, times: np.ndarray, tol: float, more: Callable[[float], dict[str, Any]]
    ) -> PETSc.Vec:
        """Begin a checkpoint with ``v0``, or take up one that exists, and return what it began with.

        ``more`` tells what else the evolution depends on, for given last time.

        Raises:
            ValueError: the folder has other contents, or the checkpoint of another evolution.
        """
        gen, asked = self.gen, [float(t) for t in times]
        kept = self._on_root(lambda: _about(self.path))
        about = {
            **self._kind, "time_rtol": tol, "process": type(gen.process).__name__, "parameters": gen.process.numbers(),
            "absorbing parts": list(gen.absorbing), "scheme": gen.scheme, "degree": gen.degree,
            "number of unknowns": gen.G.getSize()[0],
        }  # fmt: skip
        # for each node of each owned cell, in the order of the dofmap, a place in the cell
        mesh, X = gen.domain.mesh, _compat.interpolation_points(gen.V.element)
        x = push_forward(mesh, X, own_cells(mesh))
        centre = x.mean(axis=1, keepdims=True)
        places = self._gathered((centre + INSIDE * (x - centre)).reshape(-1, gen.domain.dim))
        if kept is None:
            assert v0 is not None
            on_root(self.comm, lambda: self._begin(len(places)))
            values = [self._values(v) for v in (v0, *self._action())]
            self._write("start", points=places, values=values)
        else:
            self._check_described(kept, {**about, **more(kept["times"][-1])}, asked)
            v0 = self._check_values(places, v0)
        if kept is None or asked != kept["times"]:
            content = json.dumps({**about, **more(asked[-1]), "times": asked}, indent=1).encode()
            on_root(self.comm, lambda: store(self.path / ABOUT, lambda file: file.write(content)))
        return v0

    def read(self, times: np.ndarray) -> Iterator[tuple[Snapshot, float]]:
        """The outputs that are there, each with the estimated error spent until then."""
        files = [self.path / f"{i:05d}.npz" for i in range(len(times))]
        there = self._on_root(lambda: [file.is_file() for file in files])
        count = [*there, False].index(False)
        if count:
            last = times[count - 1]
            logger.info("%s: %d of %d outputs are there, the last at t = %g", self.path, count, len(times), last)
        for i in range(count):
            record = on_root(self.comm, lambda i=i: self._load(f"{i:05d}"))  # type: ignore[misc]
            vector = self._vector(record.pop("values") if record else None)
            numbers = self.comm.bcast(record, root=0)
            yield Snapshot(float(times[i]), vector, numbers["integrals"]), float(numbers["spent"])

    def save(self, index: int, snapshot: Snapshot, spent: float) -> None:
        """Keep an output."""
        numbers = {"time": snapshot.time, "integrals": snapshot.integrals, "spent": spent}
        self._write(f"{index:05d}", values=self._values(snapshot.vector), **numbers)

    def _on_root(self, work: Callable[[], Any]) -> Any:
        """What rank 0 finds out, on every rank."""
        return self.comm.bcast(on_root(self.comm, work), root=0)

    def _gathered(self, mine: np.ndarray) -> Any:
        """Rows of all ranks, on rank 0."""
        pieces = self.comm.gather(mine, root=0)
        return pieces and np.concatenate(pieces)

    def _begin(self, nodes: int) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        other = sorted(p.name for p in self.path.iterdir() if p.name != "start.npz" and not p.name.endswith(".part"))
        if other:
            raise ValueError(f"{self.path} is not a checkpoint and not empty: there is {other[0]!r}. Name a new one.")
        self._order = np.arange(nodes)

    def _check_described(self, kept: dict[str, Any], about: dict[str, Any], asked: list[float]) -> None:
        """Refuse to go on with another evolution; everything that is compared is the same on all ranks."""
        for name in sorted({*kept, *about} - {"times"}):
            old, new = kept.get(name), json.loads(json.dumps(about.get(name)))
            if old != new:
                raise ValueError(f"{self.path} was written with {name} {old}, this evolution has {new}.")
        done = kept["times"][: self._on_root(lambda: len(list(self.path.glob("[0-9]*.npz"))))]
        if asked[: len(done)] != done:
            raise ValueError(f"{self.path} has outputs at {done}; the times must begin with these, not with {asked}.")

    def _check_values(self, places: np.ndarray, v0: PETSc.Vec | None) -> PETSc.Vec:
        """Find where the files have this partition's nodes; refuse another mesh, operator or start, and return that."""
        now = [None if v is None else self._gathered(self._local(v)) for v in (v0, *self._action())]

        def compare() -> np.ndarray:
            kept = self._load("start")
            points, then = kept["points"], kept["values"]
            distance, self._order = cKDTree(points).query(places) if points.shape == places.shape else (np.inf, [])
            found = np.max(distance) <= CLOSE * np.ptp(points, axis=0).max()
            if not found or len(np.unique(self._order)) < len(points):
                raise ValueError(f"{self.path} was written on another mesh: its nodes are elsewhere.")
            names = ["the function at t = 0", "the diffusion", "the drift"]
            names += [f"the place of part {part!r}" for part in self.gen.absorbing]
            scales = np.abs(then).max(axis=1)
            scales[1:3] = scales[1:3].max()  # a process without drift has rounding in its skew part
            changes = [0.0 if a is None else np.abs(a - b[self._order]).max() for a, b in zip(now, then, strict=True)]
            if (differs := np.array(changes) > SAME * scales).any():
                what = " and ".join(n for n, d in zip(names, differs, strict=True) if d)
                size = (changes / np.maximum(scales, 1e-300)).max()
                raise ValueError(
                    f"{self.path} was written for another evolution: {what} differ from then, by up to {size:.2g} of "
                    "its size. Name a new folder."
                )
            return then[0]

        return self._vector(on_root(self.comm, compare))

    def _action(self) -> list[PETSc.Vec]:
        """What G does to a function that has no symmetry: its symmetric part, its skew part, flux through each part."""
        gen, dual = self.gen, self.gen.G.createVecLeft()
        low, high = bounds(gen.domain.mesh)
        waves = 3.1 * (1.0 + 0.37 * np.arange(len(low)) ** 2)
        probe = fem.Function(gen.V)

        def values(x: np.ndarray) -> np.ndarray:
            s = (x[: len(low)] - low[:, None]) / (high - low)[:, None]
            return np.cos(waves @ s + 0.4) + 0.5 * (s**2).sum(axis=0)

        probe.interpolate(values)
        w = to_vector(gen, probe)
        gen.G.multTranspose(w, dual)
        forward = gen.G * w
        return [forward + dual, forward - dual, *functionals(gen, gen.absorbing)[1:]]

    def _local(self, vector: PETSc.Vec) -> np.ndarray:
        """Values at all nodes of this rank's cells."""
        function = to_function(self.gen, vector)
        return function.x.array[self.gen.V.dofmap.list[own_cells(self.gen.domain.mesh)]].ravel()

    def _values(self, vector: PETSc.Vec) -> np.ndarray | None:
        """Values at all nodes of all cells in the order of the files, on rank 0."""
        found = self._gathered(self._local(vector))
        return found if found is None else found[np.argsort(self._order)]

    def _vector(self, values: np.ndarray | None) -> PETSc.Vec:
        """The vector with these values, which rank 0 has in the order of the files."""
        dofs = self.gen.V.dofmap.list[own_cells(self.gen.domain.mesh)].ravel()
        sizes = self.comm.gather(len(dofs), root=0)
        pieces = None
        if values is not None and sizes is not None:
            pieces = np.split(values[self._order], np.cumsum(sizes)[:-1])
        function = fem.Function(self.gen.V)
        function.x.array[:] = np.nan
        function.x.array[dofs] = self.comm.scatter(pieces, root=0)
        vector = to_vector(self.gen, function)
        complete = np.isfinite(vector.array_r).all()
        agree(self.comm, None if complete else f"{self.path}: values are missing or not finite.")
        return vector

    def _load(self, name: str) -> dict[str, np.ndarray]:
        try:
            with np.load(self.path / f"{name}.npz") as data:
                return dict(data)
        except Exception as error:
            raise ValueError(f"{self.path / name}.npz is damaged: {error}") from error

    def _write(self, name: str, **arrays: Any) -> None:
        on_root(self.comm, lambda: store(self.path / f"{name}.npz", lambda file: np.savez(file, **arrays)))


def _about(path: Path) -> dict[str, Any] | None:
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; a checkpoint is a folder.")
    file = path / ABOUT
    return json.loads(file.read_text()) if file.is_file() else None
