"""Error bars over true errors on sixty-odd exact problems over the exit questions; the table is printed (pytest -s)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import reference
from scipy.integrate import quad
from tools import BOX, box

import fpsolver as fp

X = 0.137  # no node, no centre
ENDS = ["left", "right"]
Problem = tuple[str, fp.Generator, Callable[..., Any], Any, float]


def _line(drift: Any, D: Any, n: int, k: int, absorbing: Any = ENDS, scheme: str = "auto", **numbers: float) -> Any:
    process = fp.SDE(drift, D, parameters=numbers or None)
    return fp.Generator(process, fp.Domain.interval(-1, 1, n), absorbing, degree=k, scheme=scheme)


def _times_on_a_line() -> list[Problem]:
    found: list[Problem] = []
    for a, m in ((0.0, 0.5), (1.0, 0.5), (2.0, 0.2), (-1.0, 1.0)):
        exact = reference.exit_time_1d(X, -1, 1, lambda x, a=a: a, lambda x, m=m: m)
        for n, k, scheme in ((8, 1, "auto"), (5, 2, "auto"), (4, 3, "auto"), (6, 2, "dg"), (4, 3, "dg")):
            if a or k == 1:  # without drift parabolas are exact
                gen = _line(lambda x, a: a, lambda x, m: m, n, k, scheme=scheme, a=a, m=m)
                found.append((f"drift {a:g}, D {m:g}", gen, fp.mean_exit_time, X, exact))
    for m in (0.3, 0.7):
        exact = reference.exit_time_1d(X, -1, 1, lambda x: -x, lambda x, m=m: m * (1 + x * x))
        for n, k in ((8, 1), (6, 2), (5, 3)):
            gen = _line(lambda x, m: -x[0], lambda x, m: m * (1 + x[0] ** 2), n, k, m=m)
            found.append((f"D {m:g}(1 + x²)", gen, fp.mean_exit_time, X, exact))
    for h in (1.0, 3.0):
        exact = reference.exit_time_1d(X, -1, 1, lambda x, h=h: -h * x, lambda x: 0.5, reflecting=True)
        for n, k in ((10, 1), (6, 2), (5, 3)):
            gen = _line(lambda x, h: -h * x[0], 0.5, n, k, ["right"], h=h)
            found.append((f"reflected, trap {h:g}", gen, fp.mean_exit_time, X, exact))
    return found


def _probabilities_on_a_line() -> list[Problem]:
    found: list[Problem] = []
    right = partial(fp.exit_probability, to="right")
    for h, m in ((1.0, 0.5), (2.0, 0.5), (3.0, 0.3)):
        weight = lambda y, h=h, m=m: np.exp(h * y * y / (2 * m))  # noqa: E731
        exact = quad(weight, -1, X)[0] / quad(weight, -1, 1)[0]
        for n, k in ((8, 1), (6, 2), (5, 3)):
            gen = _line(lambda x, h: -h * x[0], lambda x, m: m, n, k, h=h, m=m)
            found.append((f"right of a trap {h:g}, {m:g}", gen, right, X, exact))
    for s, k in ((1.0, 1), (1.0, 2), (1.0, 3), (20.0, 2), (20.0, 3)):
        exact = np.cosh(X * np.sqrt(2 * s)) / np.cosh(np.sqrt(2 * s))
        gen = _line(0.0, 0.5, 6, k)
        found.append((f"killed at {s:g}", gen, partial(fp.feynman_kac, exit=1.0, killing=s), X, exact))
    second = lambda gen, **more: fp.exit_time_moments(gen, 2, **more)[1]  # noqa: E731
    for n, k in ((7, 1), (5, 2), (4, 3)):
        found.append(("second moment", _line(0.0, 0.5, n, k), second, X, 5 / 3 - 2 * X**2 + X**4 / 3))
        cost = partial(fp.feynman_kac, running=lambda x: x[0] ** 2)
        found.append(("cost x²", _line(0.0, 0.5, n, k), cost, X, (1 - X**4) / 6))
    return found


def _in_the_plane_and_in_space() -> list[Problem]:
    found: list[Problem] = []
    brownian = lambda d, domain, parts, k, **more: fp.Generator(  # noqa: E731
        fp.SDE((0.0,) * d, 0.5), domain, parts, degree=k, **more
    )
    for n, k, scheme in ((5, 1, "auto"), (4, 2, "auto"), (3, 3, "auto"), (3, 2, "dg"), (3, 3, "dg")):
        gen = brownian(2, box(2, n), BOX[2], k, scheme=scheme)
        found.append(("square", gen, fp.mean_exit_time, (0.1, 0.2), reference.square_exit_time(0.1, 0.2)))
    for n, k in ((5, 1), (4, 2), (3, 3)):
        gen = brownian(2, fp.Domain.rectangle((0, 0), (1, 1), (n, n)), BOX[2], k)
        exact = reference.exit_side_probability(0.27, 0.31)
        found.append(("side", gen, partial(fp.exit_probability, to="right"), (0.27, 0.31), exact))
    turn = lambda x: ((x[1] ** 2 / 2, -x[0] * x[1] / 2), (-x[0] * x[1] / 2, x[0] ** 2 / 2))  # noqa: E731
    for k in (1, 2, 3):
        gen = fp.Generator(fp.SDE((0.0, 0.0), turn), fp.Domain.annulus((0, 0), 1, 2, 0.4), ["outer"], degree=k)
        found.append(("rank one", gen, fp.mean_exit_time, (1.2, 0.3), 2 * np.log(2 / np.hypot(1.2, 0.3))))
    for n, k in ((4, 1), (3, 2)):
        gen = brownian(3, box(3, n), BOX[3], k)
        found.append(("cube", gen, fp.mean_exit_time, (0, 0, 0), reference.cube_exit_time()))
    return found


@pytest.mark.parametrize("make", [_times_on_a_line, _probabilities_on_a_line, _in_the_plane_and_in_space])
def test_no_bar_is_below_half_of_the_error(make):
    """Or it is above a tenth of the answer, and the answer says so; nine in ten are within a factor of two."""
    ratios = []
    for name, gen, ask, start, exact in make():
        answer = ask(gen, start=start)
        error, bar = abs(float(answer.at(start)[0]) - exact), float(answer.error[0])
        said = bar > 0.1 * abs(exact)
        ratios.append(bar / error)
        print(
            f"{name:24s}{gen.scheme:9s}k={gen.degree}{gen.G.getSize()[0]:6d} unknowns  error {error / abs(exact):.1e}  "
            f"bar / error {bar / error:.2f}{'  (warned)' if said else ''}"
        )
        assert error > 1e-11 * abs(exact), f"{name}: rounding is no test"
        assert bar >= 0.5 * error or said, name
        gen.close()
    ratios = np.array(ratios)
    print(f"{len(ratios)} problems, from {ratios.min():.2f} to {ratios.max():.2f}, median {np.median(ratios):.2f}")
    assert np.mean((ratios >= 0.5) & (ratios <= 2)) >= 0.9
