"""Which scheme is worth its price as barriers grow: relative error of mean exit times against the temperature.

The quartic well (x² − 1)²/4 from −1 to the hyperplane x = 1, in one dimension and with a quadratic second direction
that changes nothing; exact values by quadrature.  A dash: refused, because rounding took every digit.

    python3 benchmarks/schemes.py [1D] [2D]
"""

import sys
import time

import numpy as np

import fpsolver as fp
from fpsolver.landscapes import double_well, double_well_2d

SCHEMES = ("galerkin", "dg", "weighted")
TEMPERATURES = (0.1, 0.05, 0.025, 0.0125, 0.005, 0.0025)
MESHES = {"1D": (20, 40, 80, 160), "2D": (12, 24)}


def exact(eps: float) -> float:
    """E τ = ∫_{-1}^{1} e^{f/eps} ∫_{-∞}^x e^{-f/eps} / eps, by composite Gauss quadrature of positive terms."""
    t, w = np.polynomial.legendre.leggauss(20)
    edges = np.linspace(-3, 1, 801)
    h = edges[1] - edges[0]
    x = edges[:-1, None] + h * (t + 1) / 2
    f = (x**2 - 1) ** 2 / 4
    density = np.exp(-f / eps)
    moments = np.polynomial.legendre.legvander(t, 19)
    integrals = np.array([np.polynomial.legendre.legint(c, lbnd=-1) for c in np.eye(20)])
    within = np.polynomial.legendre.legvander(t, 20) @ integrals.T @ np.linalg.inv(moments)
    mass = np.concatenate([[0], np.cumsum(density @ w * h / 2)])[:-1, None] + density @ within.T * h / 2
    return float(((np.exp(f / eps) * mass) @ w * h / 2)[edges[:-1] > -1 - 1e-9].sum() / eps)


def problem(dim: str, n: int) -> tuple[fp.Domain, fp.landscapes.Landscape, tuple[float, ...]]:
    if dim == "1D":
        return fp.Domain.interval(-2.2, 1, n), double_well, (-1.0,)
    return fp.Domain.rectangle((-2.2, -1.5), (1, 1.5), (n, max(n // 2, 1))), double_well_2d, (-1.0, 0.0)


def main() -> None:
    fp.set_log_level("ERROR")  # warnings of rounding are in the table
    chosen = [a for a in sys.argv[1:] if a in MESHES] or list(MESHES)
    for dim in chosen:
        print(
            f"\n{dim}: relative error\n  degree  scheme   cells  unknowns  "
            + "".join(f"  eps={e:<8g}" for e in TEMPERATURES)
        )
        for degree in (2, 4):
            for scheme in SCHEMES:
                for n in MESHES[dim]:
                    domain, loss, start = problem(dim, n)
                    row, size = [], 0
                    begin = time.perf_counter()
                    for eps in TEMPERATURES:
                        with fp.Generator(fp.Langevin(loss, eps), domain, ["right"], degree, scheme) as gen:
                            size = gen.G.getSize()[0]
                            try:
                                row.append(f"{abs(fp.mean_exit_time(gen).at(start)[0] / exact(eps) - 1):.1e}")
                            except fp.NotConverged:
                                row.append("-")
                    seconds = (time.perf_counter() - begin) / len(TEMPERATURES)
                    cells = "".join(f"  {r:<12}" for r in row)
                    print(f"  {degree:6}  {scheme:8} {n:5} {size:9}  {cells} {seconds:.2f} s", flush=True)


if __name__ == "__main__":
    main()
