"""Marked parts of the boundary end where their markers say, whatever the mesh."""

from itertools import pairwise

from mpi4py import MPI

import numpy as np
import pytest
from test_domain import measures
from tools import box

import fpsolver as fp
from fpsolver import Domain

pytestmark = pytest.mark.parallel
WORLD = MPI.COMM_WORLD


@pytest.mark.parametrize(("width", "n"), [(0.1, 16), (0.13, 20), (0.004, 5), (0.1, 20)])
def test_windows_are_as_wide_as_asked(width, n):
    domain = Domain.rectangle((-1, -1), (1, 1), (n, n))
    domain.mark("window", lambda x: (x[1] > 0.999) & (np.abs(x[0]) < width))
    domain.mark("rest", lambda x: ~((x[1] > 0.999) & (np.abs(x[0]) < width)))
    whole, parts = measures(domain)
    assert whole == pytest.approx(4) and domain.defects == {}
    assert parts["window"] == pytest.approx(2 * width, abs=1e-9) and parts["rest"] == pytest.approx(8 - 2 * width)
    assert [parts[name] for name in ("left", "right", "bottom", "top")] == pytest.approx(4 * [2])
    finer = domain.refine(np.arange(domain.mesh.topology.index_map(2).size_local))
    assert measures(finer)[1] == pytest.approx(parts)


def test_several_ends_in_one_facet_and_around_corners():
    domain = Domain.rectangle((0, 0), (1, 1), (4, 4))
    domain.mark("two", lambda x: (np.abs(x[0] - 0.31) < 0.013) | (np.abs(x[0] - 0.37) < 0.01))
    domain.mark("upper", lambda x: x[1] > 0.55)
    domain.mark("corner", lambda x: x[0] + x[1] > 1.9)
    parts = measures(domain)[1]
    assert parts["two"] == pytest.approx(4 * 0.023) and parts["upper"] == pytest.approx(1.9)
    assert parts["corner"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    "marker",
    [lambda x: x[1] > 0.999, lambda x: np.isclose(x[1], 1), lambda x: x[1] == 1, lambda x: x[1] > 1 - 1e-9],
)
def test_tolerances_of_markers_do_not_reach_around_corners(marker):
    domain = Domain.rectangle((0, 0), (1, 1), (4, 4))
    domain.mark("up", marker)
    assert measures(domain)[1]["up"] == pytest.approx(1, abs=1e-12)
    assert domain.mesh.topology.index_map(2).size_global == 64


def test_arcs():
    pytest.importorskip("gmsh")
    domain = Domain.disk((0, 0), 1, 0.3)
    domain.mark("arc", lambda x: (x[0] > 0) & (np.abs(np.arctan2(x[1], x[0])) < 0.2))
    assert measures(domain)[1]["arc"] == pytest.approx(0.4, abs=1e-5)


def test_a_square_window_of_a_box_is_exact_and_a_round_one_says_by_how_much_it_is_missed():
    domain = Domain.box((0, 0, 0), (1, 1, 1), (2, 2, 2))
    domain.mark("square", lambda x: (x[2] > 1 - 1e-9) & (np.abs(x[0] - 0.4) < 0.2) & (x[1] < 0.3))
    whole, parts = measures(domain)
    assert whole == pytest.approx(1) and parts["square"] == pytest.approx(0.12, abs=1e-9)
    domain = Domain.box((0, 0, 0), (1, 1, 1), (2, 2, 2))
    domain.mark("round", lambda x: (x[2] > 1 - 1e-9) & ((x[0] - 0.5) ** 2 + (x[1] - 0.5) ** 2 < 0.09))
    area = measures(domain)[1]["round"]
    assert area == pytest.approx(0.09 * np.pi, rel=5e-3)
    assert domain.defects["round"] == pytest.approx(0.09 * np.pi - area, rel=0.2)


@pytest.mark.parametrize(("width", "exact"), [(0.1, 3.807140152473), (0.13, 3.477706041256)])
def test_exit_times_through_a_window(width, exact):
    """From the centre of (−1, 1)², D = 1: integral equation for the flux, with Chebyshev polynomials (1e-9)."""
    domain = Domain.rectangle((-1, -1), (1, 1), (8, 8))
    domain.mark("window", lambda x: (x[1] > 0.999) & (np.abs(x[0]) < width))
    gen = fp.Generator(fp.SDE((0, 0), 1.0), domain, ["window"])
    answer = fp.mean_exit_time(gen, start=(0, 0), rtol=2e-3)
    error = float(answer.error[0])
    assert abs(answer.at((0, 0))[0] - exact) < 2 * error < 4e-3 * exact


def test_marks_take_nothing_from_generators():
    domain = Domain.rectangle((-1, -1), (1, 1), (3, 3))
    gen = fp.Generator(fp.SDE((0, 0), 1.0), domain, ["top"])
    before = fp.mean_exit_time(gen).at((0, 0))
    domain.mark("window", lambda x: (x[1] > 0.999) & (np.abs(x[0]) < 0.1))
    assert gen.domain.mesh is not domain.mesh
    assert fp.mean_exit_time(gen).at((0, 0)) == pytest.approx(before, rel=1e-12)


def test_markers_of_the_constructor_are_exact_too():
    cuts = np.linspace(-1, 1, 8)
    markers = {f"piece {i}": (lambda x, a=a, b=b: (x[0] >= a) & (x[0] < b)) for i, (a, b) in enumerate(pairwise(cuts))}
    domain = Domain(box(2, 3).mesh, {"left": lambda x: x[0] < -1 + 1e-9, **markers})
    parts = measures(domain)[1]
    assert "unnamed" in parts and parts["unnamed"] == pytest.approx(2)
    assert [parts[f"piece {i}"] for i in range(1, 6)] == pytest.approx(5 * [4 / 7])
