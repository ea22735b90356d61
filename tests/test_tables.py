"""Tables of values that end where the domain does."""

import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator

import fpsolver as fp


def test_a_table_that_covers_the_rectangle_exactly():
    """The exit time is that of finite differences on the same table, 100.36148."""
    g = np.linspace(-1.5, 1.5, 61)
    X, Y = np.meshgrid(g, g, indexing="ij")
    table = RegularGridInterpolator((g, g), (X**2 - 1) ** 2 + Y**2 + 0.3 * X * Y, method="cubic")
    process = fp.Langevin(fp.batched(table), 0.2)
    gen = fp.Generator(process, fp.Domain.rectangle((-1.5, -1.5), (0, 1.5), (15, 30)), ["right"])
    assert fp.mean_exit_time(gen).at((-1, 0))[0] == pytest.approx(100.36148, rel=2e-5)


@pytest.mark.parallel
@pytest.mark.parametrize("what", ["loss", "drift", "diffusion", "gradients"])
@pytest.mark.parametrize("cells", [7, 30])
def test_functions_are_asked_nothing_outside_the_domain(what, cells):
    """Sides that are no binary fractions, in one and two dimensions."""
    for d, ends in ((1, (-0.7, 1.1)), (2, (0.1, 0.3))):
        asked = []

        def checked(x, value, low=ends[0], high=ends[1], asked=asked):
            asked.append(len(x))
            if (x < low).any() or (x > high).any():
                raise ValueError("one of the points is out of bounds")
            return value(x)

        make = {
            "loss": lambda c: fp.Langevin(fp.batched(lambda x: c(x, lambda y: (y**2).sum(axis=1))), 1.0),
            "drift": lambda c: fp.SDE(fp.batched(lambda x: c(x, lambda y: -y)), 1.0),
            "diffusion": lambda c: fp.SDE(lambda x: -x, fp.batched(lambda x: c(x, lambda y: 1 + y[:, :, None] ** 2))),
            "gradients": lambda c: fp.SGD(
                lambda x: sum(x[i] ** 2 for i in range(len(x))),
                fp.PerSample(fp.batched(lambda x: c(x, lambda y: np.stack([y - 1, y + 2], axis=1))))
                + fp.Isotropic(1.0),
                0.1,
            ),
        }[what]
        if d == 2 and what == "diffusion":
            continue
        domain = (
            fp.Domain.interval(*ends, cells)
            if d == 1
            else fp.Domain.rectangle((ends[0],) * 2, (ends[1],) * 2, (cells, 3))
        )
        fp.Generator(make(checked), domain, ["right"])
        assert asked
