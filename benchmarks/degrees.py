"""Which polynomial degree is worth its price: unknowns and wall time that degrees 1 to 6 take for a given error.

For each problem and degree the mesh is refined until the error is below the target; printed is the first mesh that gets
there, or the finest tried, in brackets.  Times go from generator to answer (meshes are made before), with all forms
compiled, and are the best of two.  Errors are relative to closed forms.

    python3 benchmarks/degrees.py
"""

import sys
import time
from collections.abc import Callable

import numpy as np
from scipy.special import gamma, hyp2f1

import fpsolver as fp

LIMIT = 100_000  # unknowns; finer meshes are not tried


def exit_error(gen: fp.Generator, points: np.ndarray, exact: np.ndarray) -> float:
    return float(np.abs(fp.mean_exit_time(gen).at(points) / exact - 1).max())


def double_well(n: int) -> tuple[fp.Domain, Callable]:
    domain = fp.Domain.rectangle((-2.2, -1.5), (0.0, 1.5), (n, n))
    process = fp.SDE(lambda x: (x[0] - x[0] ** 3, -x[1]), 0.05)

    def solve(degree: int) -> tuple[fp.Generator, float]:
        gen = fp.Generator(process, domain, ["right"], degree=degree)
        return gen, exit_error(gen, np.array([(-1.0, 0.0)]), np.array([361.90375950092]))

    return domain, solve


def layer(n: int) -> tuple[fp.Domain, Callable]:
    domain = fp.Domain.rectangle((0.0, 0.0), (1.0, 1.0), (n, n), diagonal="right")
    process = fp.SDE((1.0, 0.0), 0.01)
    x = np.array([0.003, 0.01, 0.03, 0.1, 0.5])
    exact = np.expm1(-100 * x) / np.expm1(-100) - x

    def solve(degree: int) -> tuple[fp.Generator, float]:
        gen = fp.Generator(process, domain, ["left", "right"], degree=degree)
        return gen, exit_error(gen, np.column_stack((x, np.full(5, 0.4321))), exact)

    return domain, solve


def kinetic(n: int) -> tuple[fp.Domain, Callable]:
    square = fp.Domain.rectangle((-1.0, -1.0), (1.0, 1.0), (2 * n, 3 * n), diagonal="right")
    # graded towards the points where the walls stop taking data
    domain = square.mapped(
        lambda x: (0.5 + 0.5 * np.sign(x[0]) * (1 - (1 - np.abs(x[0])) ** 3), 6 * np.sign(x[1]) * np.abs(x[1]) ** 2)
    )
    process = fp.SDE(lambda x: (x[1], 0), ((0, 0), (0, 1.0)))
    x = np.array([0.1, 0.25, 0.5])
    f = hyp2f1(1, -1 / 3, 7 / 6, x) + hyp2f1(1, -1 / 3, 7 / 6, 1 - x)
    exact = 3 ** (11 / 6) * 2 ** (-5 / 3) / gamma(1 / 3) * (x * (1 - x)) ** (1 / 6) * f

    def solve(degree: int) -> tuple[fp.Generator, float]:
        gen = fp.Generator(process, domain, ["left", "right"], degree=degree)
        return gen, exit_error(gen, np.column_stack((x, 0 * x)), exact)

    return domain, solve


def oscillator(n: int) -> tuple[fp.Domain, Callable]:
    domain = fp.Domain.rectangle((-6.0, -6.0), (6.0, 6.0), (n, n))
    process = fp.SDE(lambda x: (x[1], -x[0] - x[1]), ((0, 0), (0, 1.0)))
    points = np.array([(0.0, 0.0), (1.0, 1.0), (-1.5, 0.5), (0.3, -2.0)])
    exact = np.exp(-(points**2).sum(1) / 2) / (2 * np.pi)

    def solve(degree: int) -> tuple[fp.Generator, float]:
        gen = fp.Generator(process, domain, degree=degree)
        return gen, float(np.abs(fp.stationary(gen).at(points) - exact).max() * 2 * np.pi)

    return domain, solve


def ball(n: int) -> tuple[fp.Domain, Callable]:
    domain = fp.Domain.ball((0.0, 0.0, 0.0), 1.0, 1.6 / n)
    process = fp.SDE(lambda x: (-x[0], -x[1], -x[2]), 0.1)

    def solve(degree: int) -> tuple[fp.Generator, float]:
        gen = fp.Generator(process, domain, ["boundary"], degree=degree, scheme="galerkin")
        return gen, exit_error(gen, np.zeros((1, 3)), np.array([8.49929032528538]))

    return domain, solve


SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
BALLS = (2, 3, 4, 5, 6, 8, 10, 13)
PROBLEMS = {
    "double well, 2D (smooth)": (double_well, 1e-5, range(1, 7), SIZES),
    "drift towards a wall, 2D (layer of width 0.01)": (layer, 1e-3, range(1, 7), SIZES),
    "random acceleration, 2D (degenerate, dg, graded)": (kinetic, 1e-5, range(1, 7), SIZES),
    "kinetic oscillator, 2D (degenerate, dg, density)": (oscillator, 1e-4, range(1, 7), SIZES[2:]),
    "Ornstein-Uhlenbeck in a ball, 3D (galerkin)": (ball, 1e-3, range(2, 6), BALLS),
    "Ornstein-Uhlenbeck in a ball, 3D (galerkin), more accurate": (ball, 5e-5, range(2, 6), BALLS),
}


def timed(solve: Callable, degree: int) -> tuple[float, int, str, float]:
    best = np.inf
    for _ in range(2):
        begin = time.perf_counter()
        gen, error = solve(degree)
        best = min(best, time.perf_counter() - begin)
        size, scheme = gen.V.dofmap.index_map.size_global, gen.scheme
        gen.close()
    return best, size, scheme, error


def unknowns(domain: fp.Domain, degree: int, scheme: str) -> int:
    """Roughly, to leave out what would be too large."""
    cells, k = domain.mesh.topology.index_map(domain.dim).size_global, degree
    dg = (k + 1) * (k + 2) // 2 if domain.dim == 2 else (k + 1) * (k + 2) * (k + 3) // 6
    return cells * (dg if scheme == "dg" else k**domain.dim // (2 if domain.dim == 2 else 6) + 1)


def main() -> None:
    fp.set_log_level("ERROR")  # the oscillator lives on a box that truncates the plane, which is warned about
    chosen = sys.argv[1:]
    for name, (problem, target, degrees, sizes) in PROBLEMS.items():
        if chosen and not any(c in name for c in chosen):
            continue
        print(f"\n{name}, error {target:g}\n  degree   scheme  unknowns   seconds     error")
        meshes: dict[int, tuple] = {}
        for degree in degrees:
            scheme, row = "galerkin", None
            for n in sizes:
                domain, solve = meshes.setdefault(n, problem(n) if n not in meshes else meshes[n])
                if unknowns(domain, degree, scheme) > LIMIT:
                    break
                row = timed(solve, degree)
                scheme = row[2]
                if row[3] < target:
                    break
            assert row is not None
            seconds, size, scheme, error = row
            line = f"{degree:6} {scheme:>10} {size:9} {seconds:9.3f} {error:9.1e}"
            print(f"  {line}" if error < target else f" ({line})", flush=True)


if __name__ == "__main__":
    main()
