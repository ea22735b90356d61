"""The documented critical points are critical points, of the stated kind, in the stated order."""

import numpy as np
import pytest

import fpsolver as fp
from fpsolver.landscapes import Landscape

ALL = {name: f for name, f in vars(fp.landscapes).items() if isinstance(f, Landscape)}


def gradient(f, x, h=1e-6):
    steps = np.eye(len(x)) * h
    # fourth-order central differences: error far below the printed digits of the points
    return np.array([(8 * (f(x + s) - f(x - s)) - (f(x + 2 * s) - f(x - 2 * s))) / (12 * h) for s in steps])


def hessian(f, x, h=1e-4):
    return np.array([(gradient(f, x + s) - gradient(f, x - s)) / (2 * h) for s in np.eye(len(x)) * h])


@pytest.mark.parametrize("name", ALL)
def test_critical_points_are_of_the_stated_kind(name):
    f = ALL[name]
    for points, index in ((f.minima, 0), (f.saddles, 1)):
        for point in points:
            x = np.array(point)
            assert len(x) == f.dim
            H = hessian(f, x)
            # a Newton step from the printed point must stay within its printed digits
            assert np.abs(np.linalg.solve(H, gradient(f, x))).max() < 1e-8
            assert (np.linalg.eigvalsh(0.5 * (H + H.T)) < 0).sum() == index


@pytest.mark.parametrize("name", ALL)
def test_minima_and_saddles_are_sorted_by_height(name):
    f = ALL[name]
    for points in (f.minima, f.saddles):
        heights = [f(np.array(p)) for p in points]
        assert np.all(np.diff(heights) >= -1e-9)


def test_published_values_of_mueller_brown():
    f = fp.landscapes.muller_brown
    values = [f(np.array(p)) for p in f.minima]
    assert np.allclose(values, [-146.6995172100, -108.1667241169, -80.7678181297], rtol=1e-11)
    assert np.allclose([f(np.array(p)) for p in f.saddles], [-72.2489401123, -40.6648435087], rtol=1e-11)
