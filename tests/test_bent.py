"""Costs, killing rates and exit data that bend or jump inside cells: error bars are at least half of the error."""

from itertools import pairwise

import numpy as np
import pytest
import ufl
from scipy.integrate import quad

import fpsolver as fp

ENDS = ["left", "right"]
STARTS = np.array([[-0.62], [0.1], [0.7]])


def brownian(n, degree):
    process = fp.SDE(drift=lambda x: (0.0 * x[0],), diffusion=((1.0,),))
    return fp.Generator(process, fp.Domain.interval(-1, 1, n), ENDS, degree=degree)


def green(x, f, at):
    """∫ G(x, y) f(y) dy with u'' = −f, u(±1) = 0."""
    parts = np.unique([-1.0, x, at, 1.0])
    kernel = lambda y: (1 + min(x, y)) * (1 - max(x, y)) / 2 * f(y)  # noqa: E731
    return sum(quad(kernel, a, b, epsabs=1e-13)[0] for a, b in pairwise(parts))


def honest(answer, exact):
    assert (np.abs(answer.value - exact) <= 2 * answer.error + 1e-12).all(), f"{answer.value - exact}, {answer.error}"
    return answer.error


@pytest.mark.parametrize("degree", [2, 4])
@pytest.mark.parametrize("n", [5, 9])
def test_running_cost(n, degree):
    for c in (-0.37, 0.05, 0.581):
        bend = fp.feynman_kac(brownian(n, degree), running=lambda x, c=c: abs(x[0] - c), start=STARTS)
        honest(bend, [green(x, lambda y, c=c: abs(y - c), c) for x in STARTS[:, 0]])
        step = fp.feynman_kac(
            brownian(n, degree), running=lambda x, c=c: ufl.conditional(x[0] > c, 1.0, 0.0), start=STARTS
        )
        bars = honest(step, [green(x, lambda y, c=c: float(y > c), c) for x in STARTS[:, 0]])
        assert (bars < 0.3).all()


@pytest.mark.parametrize("degree", [2, 4])
def test_killing(degree):
    """Killed with rate κ² beyond c: sums of exponentials, linear before it."""
    kappa, c = 3.0, 0.13

    def survives(x):
        """u = A (x + 1) + 1 below c, u = cosh-like above, u(1) = 1, with u and u' continuous."""
        matrix = [[c + 1, -np.cosh(kappa * c), -np.sinh(kappa * c)],
                  [1.0, -kappa * np.sinh(kappa * c), -kappa * np.cosh(kappa * c)],
                  [0.0, np.cosh(kappa), np.sinh(kappa)]]  # fmt: skip
        A, C, S = np.linalg.solve(matrix, [-1.0, 0.0, 1.0])
        return A * (x + 1) + 1 if x < c else C * np.cosh(kappa * x) + S * np.sinh(kappa * x)

    for n in (5, 8):
        answer = fp.feynman_kac(
            brownian(n, degree), exit=1.0, killing=lambda x: ufl.conditional(x[0] > c, kappa**2, 0.0), start=STARTS
        )
        honest(answer, [survives(x) for x in STARTS[:, 0]])


def test_exit_data_in_the_plane():
    """g = |y − c| on the right of a square: harmonic, a Fourier series."""
    c, start = 0.317, (0.6, 0.4)
    k = np.arange(1, 200)
    exact = (1 - c) ** 2 / 2 + c**2 / 2
    exact *= (start[0] + 1) / 2  # mean over y, linear in x
    x = start[0] + 1.0
    for m in k:
        a = 2 * quad(lambda y, m=m: abs(y - c) * np.cos(m * np.pi * y), 0, 1, points=[c], limit=400)[0]
        exact += (
            a
            * np.cos(m * np.pi * start[1])
            * np.exp(m * np.pi * (x - 2))
            * ((1 - np.exp(-2 * m * np.pi * x)) / (1 - np.exp(-4 * m * np.pi)))
        )
    process = fp.SDE(drift=lambda x: (0.0 * x[0], 0.0), diffusion=((1.0, 0.0), (0.0, 1.0)))
    for n in (4, 7):
        gen = fp.Generator(process, fp.Domain.rectangle((-1, 0), (1, 1), (2 * n, n)), ["left", "right"], degree=3)
        data = {"right": lambda x: abs(x[1] - c), "left": 0.0}
        honest(fp.feynman_kac(gen, exit=data, start=start), [exact])
