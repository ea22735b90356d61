"""A learning rate that changes: ``evolve(schedule=...)`` against PETSc's adaptive time steppers at equal error.

SGD on the double well in one dimension, and with noise of rank one (two samples) in the plane.  The learning rate
decays by a cosine, or in three pieces.  Competitors are rosw and bdf, which start anew where the rate jumps; all take
the matrix of a moment from ``gen.replace``.  Every method takes the loosest setting whose relative L² error in time,
against a much smaller tolerance on the same mesh, is below the target.

    python3 benchmarks/schedules.py
"""

import time
from collections.abc import Callable

from petsc4py import PETSc

import numpy as np

import fpsolver as fp
from fpsolver import _petsc
from fpsolver.discretisation.assembly import to_vector
from fpsolver.evolution.initial import coefficients

END = 2.0
JUMPS = [(0.0, 0.4), (0.7, 0.2), (1.4, 0.05)]


def cosine(t: float) -> float:
    return 0.05 + 0.175 * (1 + np.cos(np.pi * t / END))


SCHEDULES = {"cosine": [(0.0, cosine)], "pieces": JUMPS}


def problem(dim: str, cells: int) -> tuple[fp.Generator, fp.initial.Gaussian]:
    if dim == "1D":
        process = fp.SGD(lambda x: (x[0] ** 2 - 1) ** 2 / 4, fp.Isotropic(1.0), 0.4)
        return fp.Generator(process, fp.Domain.interval(-2.5, 2.5, cells), scheme="galerkin"), fp.gaussian(-0.3, 0.3)
    noise = fp.PerSample([lambda x: x[0] ** 2 / 2, lambda x: x[1] ** 2 / 2])
    domain = fp.Domain.rectangle((-3.0, -3.0), (3.0, 3.0), (cells, cells))
    return fp.Generator(fp.SGD(None, noise, 0.4), domain, degree=3), fp.gaussian((1.0, 0.7), 0.4)


def ours(gen: fp.Generator, start: fp.initial.Gaussian, schedule: list, tol: float) -> tuple[np.ndarray, int, int]:
    flow = fp.evolve(gen, start, [END], time_rtol=tol, schedule={"learning_rate": schedule})
    return to_vector(gen, flow[0].raw).array_r.copy(), flow.stats["solves"], flow.stats["factorisations"]


def stepper(kind: str) -> Callable[..., tuple[np.ndarray, int, int]]:
    """M ṗ = G(t) p by PETSc's TS with adaptive steps; solves and factorisations are those of its KSP."""

    def run(gen: fp.Generator, start: fp.initial.Gaussian, schedule: list, tol: float) -> tuple[np.ndarray, int, int]:
        p, work = coefficients(gen, start, "initial density"), gen.G.createVecLeft()
        solves = factorisations = 0
        ends = [begin for begin, _ in schedule[1:]] + [END]
        for (begin, rate), end in zip(schedule, ends, strict=True):
            kept: dict[float, fp.Generator] = {}

            def matrix(t: float, rate: object = rate, kept: dict = kept) -> PETSc.Mat:
                eta = float(rate(t)) if callable(rate) else rate
                if eta not in kept:
                    for other in kept.values():
                        other.close()
                    kept.clear()
                    kept[eta] = gen.replace(learning_rate=eta)
                return kept[eta].G

            def function(ts: PETSc.TS, t: float, u: PETSc.Vec, udot: PETSc.Vec, f: PETSc.Vec, matrix=matrix) -> None:
                gen.M.mult(udot, f)
                matrix(t).mult(u, work)
                f.axpy(-1.0, work)

            def derivative(
                ts: PETSc.TS, t: float, u: PETSc.Vec, udot: PETSc.Vec, shift: float, *J: PETSc.Mat, matrix=matrix
            ) -> None:
                nonlocal factorisations
                factorisations += 1
                matrix(t).copy(J[-1], PETSc.Mat.Structure.SAME_NONZERO_PATTERN)
                J[-1].scale(-1.0)
                J[-1].axpy(shift, gen.M, PETSc.Mat.Structure.SUBSET_NONZERO_PATTERN)
                J[-1].assemble()

            ts = PETSc.TS().create(gen.M.comm)
            ts.setType(kind)
            ts.setIFunction(function, p.copy())
            ts.setIJacobian(derivative, gen.G.copy())
            ts.setTime(begin)
            ts.setTimeStep(1e-3)
            ts.setMaxTime(end)
            ts.setMaxSteps(100000)
            ts.setExactFinalTime(PETSc.TS.ExactFinalTime.MATCHSTEP)
            ts.setTolerances(rtol=tol, atol=tol * 1e-2)
            ts.getSNES().setType("ksponly")
            with _petsc.inserted_options("fp_evolve_", None, _petsc.direct_preset(gen.M.comm, gen.domain.dim)):
                ts.getSNES().getKSP().setOptionsPrefix("fp_evolve_")
                ts.getSNES().getKSP().setFromOptions()
            ts.solve(p)
            solves += ts.getKSPIterations()
            ts.destroy()
        return p.array_r.copy(), solves, factorisations

    return run


def main() -> None:
    fp.set_log_level("ERROR")
    methods = {"evolve": (ours, 2), "TS rosw": (stepper("rosw"), 4), "TS bdf": (stepper("bdf"), 6)}
    for dim, cells in (("1D", 50), ("1D", 200), ("2D", 4)):
        gen, start = problem(dim, cells)
        for name, schedule in SCHEDULES.items():
            fine = ours(gen, start, schedule, 1e-5)[0]
            for target in (1e-2, 1e-4):
                print(f"{dim}, {gen.G.getSize()[0]} unknowns, {name}, error {target:.0e}")
                first = 0.0
                for method, (run, begin) in methods.items():
                    if method == "TS bdf" and target < 1e-3:  # hundreds of steps
                        continue
                    for i in range(max(begin - 2 * (target > 1e-3), 1), 26):
                        tol, clock = 10.0 ** (-i / 2), time.perf_counter()
                        found, solves, factorisations = run(gen, start, schedule, tol)
                        seconds = time.perf_counter() - clock
                        error = np.linalg.norm(found - fine) / np.linalg.norm(fine)
                        if error <= target:
                            break
                    first = first or seconds
                    print(
                        f"  {method:8s} {seconds:7.3f} s  x {seconds / first:6.2f}  error {error:.1e}"
                        f"  tol {tol:.0e}  {solves} solves, {factorisations} factorisations",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
