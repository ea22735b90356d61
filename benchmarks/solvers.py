"""Linear solvers of exit problems: orderings of direct solvers and multigrid, in two and three dimensions.

Factorisation (or set-up) and transposed solve of the same matrices.  A solver is skipped where it would take minutes.
The last table is the preset for large problems on tetrahedra: the iterations must not depend on mesh and noise.

    python3 benchmarks/solvers.py
    mpirun -n 2 python3 benchmarks/solvers.py
"""

import time

from mpi4py import MPI

import fpsolver as fp
from fpsolver import _petsc
from fpsolver.discretisation.solver import basis_integrals, exit_preset

comm = MPI.COMM_WORLD
PREFIX = "fp_exit_"
DIRECT = {"ksp_type": "preonly", "pc_type": "lu"}
MUMPS = {**DIRECT, "pc_factor_mat_solver_type": "mumps"}
SOLVERS = {
    "MUMPS, its own choice": MUMPS,
    "MUMPS, QAMD": {**MUMPS, "mat_mumps_icntl_7": 6},
    "MUMPS, METIS": {**MUMPS, "mat_mumps_icntl_7": 5},
    "SuperLU_DIST": {**DIRECT, "pc_factor_mat_solver_type": "superlu_dist"},
    "UMFPACK": {**DIRECT, "pc_factor_mat_solver_type": "umfpack"},
    "BoomerAMG, hypre's defaults": {"ksp_type": "gmres", "ksp_rtol": 1e-12, "ksp_gmres_restart": 100,
                                    "ksp_max_it": 400, "pc_type": "hypre"},
    "BoomerAMG, preset": _petsc.multigrid_preset(),
}  # fmt: skip


def say(*words: object) -> None:
    if comm.rank == 0:
        print(*words, flush=True)


def square(n: int, scheme: str) -> fp.Generator:
    domain = fp.Domain.rectangle((-2.2, -1.5), (0.0, 1.5), (n, n))
    return fp.Generator(fp.SDE(lambda x: (x[0] - x[0] ** 3, -x[1]), 0.05), domain, ["right"], scheme=scheme)


def ball(h: float, eps: float = 0.1, degree: int = 3) -> fp.Generator:
    domain = fp.Domain.ball((0.0, 0.0, 0.0), 1.0, h)
    process = fp.SDE(lambda x: (-x[0], -x[1], -x[2]), eps)
    return fp.Generator(process, domain, ["boundary"], degree=degree, scheme="galerkin")


def measure(gen: fp.Generator, options: dict) -> tuple[float, float, int]:
    """Seconds of set-up, seconds of a solve with Gᵀ, and iterations."""
    comm.Barrier()
    begin = time.perf_counter()
    adjoint = options["ksp_type"] != "preonly"  # iterative solvers are set up for the transposed matrix itself
    A = gen.G.transpose(type(gen.G)()) if adjoint else gen.G
    solver = _petsc.LinearSolver(A, PREFIX, "benchmark", options)
    middle = time.perf_counter()
    x = gen.M.createVecRight()
    try:
        solver.solve(basis_integrals(gen), x, transpose=not adjoint)
        return middle - begin, time.perf_counter() - middle, solver.iterations
    finally:
        solver.destroy()
        x.destroy()
        if adjoint:
            A.destroy()


def table(title: str, gen: fp.Generator, leave_out: tuple[str, ...] = ()) -> None:
    say(f"\n{title}: {gen.G.getSize()[0]} unknowns, {comm.size} rank(s)\n{'':30} set-up     solve  iterations")
    for name, options in SOLVERS.items():
        if name in leave_out or (name == "UMFPACK" and comm.size > 1):
            continue
        try:
            setup, solve, iterations = measure(gen, options)
            say(f"  {name:28}{setup:7.2f}{solve:10.3f}{iterations if 'AMG' in name else '':>12}")
        except fp.NotConverged as error:
            say(f"  {name:28}{error.reason:>20} after {error.iterations} iterations")
    gen.close()


def main() -> None:
    fp.set_log_level("ERROR")
    slow_in_3d = ("SuperLU_DIST", "UMFPACK", "MUMPS, QAMD")
    table("2D, continuous P4", square(32, "galerkin"))
    table("2D, continuous P4", square(64, "galerkin"))
    table("2D, discontinuous P4", square(16, "dg"))
    table(
        "2D, discontinuous P4", square(36, "dg"), ("SuperLU_DIST", "BoomerAMG, hypre's defaults", "BoomerAMG, preset")
    )
    table("3D, continuous P3", ball(0.2))
    table("3D, continuous P3", ball(0.115), slow_in_3d if comm.size == 1 else (*slow_in_3d, "MUMPS, METIS"))
    say("\n3D preset above 50 000 unknowns, Ornstein-Uhlenbeck in the unit ball, continuous P3")
    say("  noise  unknowns  iterations   seconds   error at the centre")
    exact = {0.5: 0.415167144109642, 0.1: 8.49929032528538, 0.05: 373.905502332379}
    for h in (0.12, 0.085):
        for eps, value in exact.items():
            with ball(h, eps) as gen:
                comm.Barrier()
                begin = time.perf_counter()
                try:
                    tau = fp.mean_exit_time(gen, options=exit_preset(gen))
                except fp.NotConverged as error:
                    say(f"{eps:7} {gen.G.getSize()[0]:9}  {error.reason} after {error.iterations}")
                    continue
                seconds = time.perf_counter() - begin
                error = tau.at([(0.0, 0.0, 0.0)])[0] / value - 1
                say(f"{eps:7} {gen.G.getSize()[0]:9} {tau.stats['iterations']:11} {seconds:9.2f} {error:12.1e}")


if __name__ == "__main__":
    main()
