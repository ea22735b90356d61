"""What exit probabilities, exit laws, survival and spectra refuse: the same on every rank, with the reason."""

from functools import cache

import numpy as np
import pytest
import ufl
from dolfinx import fem
from test_errors import refused
from tools import BOX, box

import fpsolver as fp

pytestmark = pytest.mark.parallel


@cache
def _gen():
    return fp.Generator(fp.SDE((0, 0), 0.5), box(2, 3), ["left", "right"], degree=2)


@cache
def _closed():
    return fp.Generator(fp.SDE((0, 0), 0.5), box(2, 3), degree=2)


# ---------------------------------------------------------------- exit_probability


def test_exit_probability_of_parts_that_do_not_absorb():
    for to in ("top", ["left", "top"], ["nowhere"]):
        refused(lambda to=to: fp.exit_probability(_gen(), to), ValueError, "does not absorb", "left, right")


def test_exit_probability_of_no_part():
    for to in ([], ()):
        refused(lambda to=to: fp.exit_probability(_gen(), to), ValueError, "to is empty", "left, right")


def test_exit_probability_of_what_is_no_name():
    for to in (None, 3, [3], ["left", None]):
        refused(lambda to=to: fp.exit_probability(_gen(), to), TypeError, "exit_probability", "left, right")


def test_exit_probability_where_nothing_absorbs():
    refused(lambda: fp.exit_probability(_closed(), "left"), ValueError, "nothing absorbs", "left, right, bottom, top")


# ---------------------------------------------------------------- exit_distribution, survival


def _start(verb, start, gen=None):
    gen = gen or _gen()
    return fp.exit_distribution(gen, start) if verb == "exit_distribution" else fp.survival(gen, start, [0.1])


@pytest.mark.parametrize("verb", ["exit_distribution", "survival"])
def test_starts_that_are_none(verb):
    refused(lambda: _start(verb, (1.5, 0.0)), ValueError, r"\(1.5, 0.0\)", "outside the mesh")
    refused(lambda: _start(verb, (0.1, 0.0, 0.0)), ValueError, "3|shape", "2")
    refused(lambda: _start(verb, (0.1, np.nan)), ValueError, "not finite")
    refused(lambda: _start(verb, "middle"), (TypeError, ValueError), "start", "middle", "array of numbers")
    refused(lambda: _start(verb, None), (TypeError, ValueError), "start")
    refused(lambda: _start(verb, fp.gaussian((3, 0), 0.2)), ValueError, "mass", "inside the domain")
    refused(lambda: _start(verb, fp.gaussian(0.0, 0.2)), ValueError, r"mean is \(0\.0,\)", "2")
    refused(lambda: _start(verb, lambda x: ufl.sqrt(x[0])), ValueError, "mass nan")


def test_exit_distribution_has_one_start():
    refused(
        lambda: fp.exit_distribution(_gen(), [(0, 0), (0.1, 0)]), ValueError, "number of points is 2", "was expected"
    )


@pytest.mark.parametrize("verb", ["exit_distribution", "survival"])
def test_starts_that_are_no_density(verb):
    """Mass other than one: exit probabilities would not add up to one."""
    refused(lambda: _start(verb, lambda x: 1 + 0 * x[0]), ValueError, "mass 4", "1 was expected")
    refused(lambda: _start(verb, lambda x: x[0]), ValueError, "mass", "1 was expected")
    double = fem.Function(_gen().V)
    double.x.array[:] = 0.5
    refused(lambda: _start(verb, double), ValueError, "mass 2", "1 was expected")


def test_a_density_of_mass_one_is_a_start():
    uniform = fp.exit_distribution(_gen(), lambda x: 0.25 + 0 * x[0])
    assert uniform.probability["left"] == pytest.approx(0.5, abs=1e-12)
    assert uniform.mean_time == pytest.approx(2 / 3, rel=1e-10)  # the mean of 1 - x²


@pytest.mark.parametrize("verb", ["exit_distribution", "survival"])
def test_starts_where_nothing_absorbs(verb):
    refused(lambda: _start(verb, (0, 0), _closed()), ValueError, verb, "nothing absorbs", "left, right, bottom, top")


@pytest.mark.parametrize(
    ("times", "pattern"),
    [
        ([], "at least one"),
        ([0.2, 0.1], "sorted"),
        ([-1.0], "-1"),
        ([np.nan], "nan"),
        ([np.inf], "inf"),
        ("now", "now"),
    ],
)
def test_times_of_survival(times, pattern):
    refused(lambda: fp.survival(_gen(), (0, 0), times), ValueError, pattern)
    refused(lambda: fp.survival(_gen(), fp.gaussian((0, 0), 0.2), times), ValueError, pattern)


def test_tolerance_of_survival():
    for tol in (0.0, 1.0, -1e-6, "tight"):
        refused(lambda t=tol: fp.survival(_gen(), (0, 0), [0.1], time_rtol=t), ValueError, "time_rtol is")


def test_density_along_a_part_that_does_not_absorb():
    law = fp.exit_distribution(_gen(), (0, 0))
    refused(lambda: law.density("top"), ValueError, "'top'", "does not absorb", "left, right")
    refused(lambda: law.density("nowhere"), ValueError, "'nowhere'", "left, right")


def test_exit_law_where_paths_may_stay_for_ever():
    """Noise that vanishes at 0 traps; exit probabilities that do not add up to one are not given."""
    gen = fp.Generator(fp.SDE(lambda x: -x[0], lambda x: x[0] ** 2 / 2), fp.Domain.interval(-1, 1, 8), BOX[1])
    refused(lambda: fp.exit_distribution(gen, 0.5), (ValueError, fp.NotConverged))


# ---------------------------------------------------------------- spectrum, quasi_stationary


def test_number_of_modes():
    n = _gen().G.getSize()[0]
    for k in (0, -1, 1.5, n, "six", None, True):
        refused(lambda k=k: fp.spectrum(_gen(), k), ValueError, "spectrum: k is", f"between 1 and {n - 1}")


def test_spectrum_that_does_not_converge():
    options = {"eps_max_it": 1, "eps_ncv": 9, "eps_tol": 1e-15}
    error = refused(
        lambda: fp.spectrum(_gen(), 8, options=options), fp.NotConverged, "of 8 modes converged", "-fp_spectrum_"
    )
    assert error.prefix == "fp_spectrum_"


def test_quasi_stationary_law_where_nothing_absorbs():
    refused(lambda: fp.quasi_stationary(_closed()), ValueError, "nothing absorbs", "stationary")


# ---------------------------------------------------------------- the potential of an SDE


def _well(**options):
    return fp.SDE(lambda x: x[0] - x[0] ** 3, 0.1, **options)


def _weighted(process):
    return fp.Generator(process, fp.Domain.interval(-1.5, 1, 16), ["right"], scheme="weighted", degree=2)


def test_potential_of_another_process():
    refused(
        lambda: _weighted(_well(gibbs=lambda x: (x[0] ** 2 - 1) ** 2 / 4)), ValueError, "potential U does not", "At x"
    )
    state = fp.SDE(lambda x: -x[0], lambda x: 1 + x[0] ** 2, gibbs=lambda x: ufl.ln(1 + x[0] ** 2) / 2)
    refused(lambda: _weighted(state), ValueError, "potential U does not belong")
    refused(lambda: _weighted(_well(gibbs=lambda x: ufl.ln(x[0]))), ValueError, "potential.*not finite")
    refused(lambda: _weighted(_well()), ValueError, "gibbs=")


def test_potential_after_replacing_a_number():
    """The potential that was given is one for D = 0.1."""
    gen = _weighted(_well(gibbs=lambda x: (x[0] ** 2 - 1) ** 2 / 0.4))
    refused(lambda: gen.replace(diffusion=0.2), ValueError, "potential U does not belong")


def test_potential_of_a_rotating_process():
    """A current: the density e^{−|x|²/2} is invariant, but not without one."""
    process = fp.SDE(lambda x: (-x[0] + x[1], -x[0] - x[1]), 1.0, gibbs=lambda x: (x[0] ** 2 + x[1] ** 2) / 2)
    make = lambda: fp.Generator(process, box(2, 2), ["left"], scheme="weighted", degree=2)  # noqa: E731
    refused(make, ValueError, "potential U does not belong")


def test_jumping_diffusion_in_the_stratonovich_convention():
    domain = fp.Domain.interval(-1, 1, 8)
    D = fem.Function(fem.functionspace(domain.mesh, ("DG", 0)))
    D.interpolate(lambda x: np.where(x[0] < 0, 1.0, 2.0))
    process = fp.SDE(0.0, D, "stratonovich")
    refused(lambda: fp.Generator(process, domain, BOX[1]), ValueError, "stratonovich", "jumps", "'divergence'")
    for convention in ("ito", "divergence"):
        assert fp.Generator(fp.SDE(0.0, D, convention), domain, BOX[1]).scheme in ("galerkin", "dg")


# ---------------------------------------------------------------- answers that mean nothing


def _negative(process, domain, **options):
    gen = fp.Generator(process, domain, ["left", "right"], **options)
    refused(
        lambda: fp.mean_exit_time(gen), fp.NotConverged, "DIVERGED_NEGATIVE", "cannot be negative", "resolves nothing"
    )
    return gen


def test_exit_times_of_the_wrong_sign_on_meshes_that_miss_a_barrier():
    """Below zero for 9.9e7; refinement finds the barrier, where rounding leaves more digits than are asked for."""
    process = fp.Langevin(lambda x: x[0] ** 2 / 2, 0.025)
    gen = _negative(process, fp.Domain.interval(-1, 1, 8), scheme="dg", degree=4)
    found = fp.mean_exit_time(gen, start=0.0, rtol=1e-3)
    exact = 98755019.9214596  # 20 2F2(1, 1; 3/2, 2; 20)
    assert abs(float(found) - exact) < 2 * found.error[0] + 1e-3 * exact


def test_exit_times_that_are_infinite_near_a_point_without_noise():
    """dX = −X dt + √0.1 X dW may never leave (−1, 1); no cell is closed, as every facet but x = 0 is crossed."""
    noise = fp.Covariance(lambda x: ((x[0] ** 2,),))
    _negative(fp.SGD(lambda x: x[0] ** 2 / 2, noise, 0.1), fp.Domain.interval(-1, 1, 8))


def test_killing_rates_that_are_not_finite():
    gen = fp.Generator(fp.SDE(0.0, 0.5), fp.Domain.interval(-1, 1, 4), ["left", "right"])
    for rate in (np.nan, np.inf, lambda x: ufl.sqrt(x[0])):
        refused(lambda rate=rate: fp.feynman_kac(gen, exit=1.0, killing=rate), ValueError, "killing rate is not finite")


def test_a_loss_without_values_everywhere():
    domain = fp.Domain.interval(-1, 1, 4)
    refused(lambda: fp.Generator(fp.Langevin(lambda x: ufl.ln(x[0]), 0.1), domain, ["left"]), ValueError, "loss", "NaN")


def test_arguments_of_the_wrong_kind():
    domain = fp.Domain.interval(-1, 1, 4)
    for absorbing in (None, 1):
        refused(
            lambda a=absorbing: fp.Generator(fp.SDE(0.0, 0.5), domain, a), TypeError, "absorbing is", "boundary parts"
        )
    closed = fp.Generator(fp.SDE(0.0, 0.5), domain)
    refused(lambda: fp.first_passage(closed, ["left", "right"]), TypeError, "first_passage: regions", "dictionary")
    leaves = fp.Generator(fp.SDE(0.0, 0.5), domain, ["left"])
    refused(lambda: fp.exit_time_moments(leaves, None), ValueError, "order is None")


def test_answers_print_well():
    domain = fp.Domain.interval(-1, 1, 4)
    leaves, closed = (fp.Generator(fp.SDE(0.0, 0.5), domain, parts) for parts in (["left", "right"], []))
    assert str(fp.exit_distribution(leaves, 0.5)).startswith("exit through left 0.25, right 0.75; mean time 0.75")
    assert str(fp.transition_rate(closed, "left", "right")).startswith("transition rate: 0.125; k_AB 0.25, ")


def test_exit_distribution_that_no_mesh_resolves():
    """Six cells of degree one gave probabilities of 1.42 and -0.42."""
    process = fp.SDE(lambda x: -(x[0] ** 3), lambda x: 0.062 * (1 + x[0] ** 2))
    gen = fp.Generator(process, fp.Domain.interval(-1.3, 1.0, 6), ["left", "right"], degree=1)
    with pytest.raises(ValueError, match="does not resolve the way out"):
        fp.exit_distribution(gen, fp.gaussian(0.0, 0.3))
