"""Fewer cells than ranks: those without a cell take part in everything."""

import numpy as np
import pytest
from tools import check

import fpsolver as fp

STATES = np.array([0.0, 2.0, -6.0])


def _line(cells):
    return fp.Generator(fp.SDE(lambda x: -x[0], 1.0), fp.Domain.interval(-6, 6, cells), degree=6, scheme="dg")


@pytest.mark.parallel
@pytest.mark.parametrize("cells", [1, 2])
def test_long_time_questions(cells):
    """On meshes that resolve little, conservation laws hold and every rank has the same answer."""
    gen = _line(cells)
    law = fp.evolve(gen, fp.gaussian(0.5, 1.0), [0.0, 1.0])
    check(law.mass, [1.0, 1.0], 1e-13)
    p = fp.stationary(gen)
    assert len(fp.ergodic_laws(gen, tolerance=1e-3)) == 1
    d = fp.diagnostics
    answers = [
        law[1].at(STATES),
        p.at(STATES),
        fp.evolve(gen, fp.dirac(6.0), 1.0).mass,
        fp.backward(gen, lambda x: x[0] ** 2, 1.0)[0].at(STATES),
        d.entropy_decay(law, p).entropy,
        d.concentration(law, 0.0, 2.0, loss=lambda x: x[0] ** 2 / 2).ball_mass.ravel(),
        [d.tightness(gen).bound],
        d.regime_indicator(gen, loss=lambda x: x[0] ** 2 / 2).at(STATES),
    ]
    values = np.concatenate([np.ravel(a) for a in answers])
    assert np.isfinite(values).all()
    assert len(set(gen.domain.comm.allgather(tuple(values)))) == 1


@pytest.mark.parallel
def test_exit_times():
    """Polynomials of degree two are exact on any mesh: 1 − x² between −1 and 1."""
    gen = fp.Generator(fp.SDE(0.0, 0.5), fp.Domain.interval(-1, 1, 1), ["left", "right"], degree=2)
    x = np.array([-0.9, 0.0, 0.3])
    check(fp.mean_exit_time(gen).at(x), 1 - x**2, 1e-12)


@pytest.mark.parallel
def test_a_point_outside_is_named():
    with pytest.raises(ValueError, match=r"collapse: point: \(9.0,\) lies outside the mesh"):
        fp.diagnostics.collapse(_line(2), 9.0)
