"""What cannot work is refused with a message that names it, the same on every rank, and without a hang."""

import re
from functools import cache

from mpi4py import MPI

import numpy as np
import pytest
import ufl
from dolfinx import fem
from tools import BOX, box

import fpsolver as fp

pytestmark = pytest.mark.parallel


def refused(call, error, *patterns):
    """Assert that ``call`` raises the same ``error`` on all ranks, with a message that matches each pattern."""
    try:
        found, seen = call(), None
    except Exception as exception:
        found, seen = exception, (type(exception).__name__, str(exception))
    everywhere = MPI.COMM_WORLD.allgather(seen)
    assert None not in everywhere, f"not refused on some rank: {everywhere}; got {found!r}"
    assert len(set(everywhere)) == 1, f"ranks disagree: {everywhere}"
    assert isinstance(found, error), repr(found)
    for pattern in patterns:
        assert re.search(pattern, str(found)), f"{pattern!r} is not in: {found}"
    return found


@cache
def _line():
    return fp.Domain.interval(-1, 1, 8)


@cache
def _square():
    return box(2, 3)


@cache
def _brownian():
    return fp.Generator(fp.SDE((0, 0), 0.5), _square(), ["left", "right"], degree=2)


@cache
def _closed():
    return fp.Generator(fp.SDE((0, 0), 0.5), _square(), degree=2)


# ---------------------------------------------------------------- names


def test_unknown_boundary_name():
    refused(lambda: fp.Generator(fp.SDE(0.0, 1.0), _line(), ["rigth"]), ValueError, "'rigth'", "left, right")


def test_exit_through_a_part_that_does_not_absorb():
    refused(lambda: fp.exit_probability(_brownian(), to=["top"]), ValueError, "'top'", "left, right")
    refused(lambda: fp.feynman_kac(_brownian(), exit={"nowhere": 1.0}), ValueError, "'nowhere'", "left, right")


def test_unknown_scheme_and_degree():
    make = lambda **k: fp.Generator(fp.SDE(0.0, 1.0), _line(), **k)  # noqa: E731
    refused(lambda: make(scheme="supg"), ValueError, "'supg'", "'auto'", "'galerkin'", "'dg'")
    for degree in (0, -1, 1.5, "2"):
        refused(lambda d=degree: make(degree=d), ValueError, re.escape(repr(degree)), "integer of at least 1")


def test_unknown_parameter():
    gen = fp.Generator(fp.SGD(lambda x: x[0] ** 2, fp.Isotropic(1.0), 0.1), _line(), degree=2)
    refused(lambda: gen.replace(learnig_rate=0.2), ValueError, "'learnig_rate'", "batch_size.*learning_rate.*'s'")
    refused(lambda: gen.replace(learning_rate=-0.2), ValueError, "learning_rate", "-0.2", "positive")


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("value", [-0.1, 0.0, float("nan"), float("inf"), "0.1", None])
def test_parameters_must_be_positive(value):
    shown = re.escape(repr(value))
    refused(lambda: fp.SGD(lambda x: x[0] ** 2, fp.Isotropic(1.0), value), ValueError, "SGD: learning_rate", shown)
    refused(lambda: fp.Langevin(lambda x: x[0] ** 2, value), ValueError, "Langevin: temperature", shown)
    if value is not None:
        refused(lambda: fp.SGD(lambda x: x[0], fp.Isotropic(1.0), 0.1, value), ValueError, "batch_size", shown)


def test_momentum_must_be_below_one():
    for momentum in (1.0, -0.1):
        make = lambda m=momentum: fp.MomentumSGD(lambda x: x[0] ** 2, fp.Isotropic(1.0), 0.1, m)  # noqa: E731
        refused(make, ValueError, "momentum", re.escape(str(momentum)), r"\[0, 1\)")


def test_unknown_convention():
    refused(lambda: fp.SDE(0.0, 1.0, "itô"), ValueError, "'itô'", "'ito', 'stratonovich', 'divergence'")


def test_noise_must_be_a_noise():
    refused(lambda: fp.SGD(lambda x: x[0] ** 2, 0.5, 0.1), TypeError, "noise is a float", "fp.Isotropic")
    refused(lambda: fp.SGD(None, fp.Isotropic(1.0), 0.1), ValueError, "loss=None", "PerSample")
    refused(lambda: fp.PerSample([lambda x: x[0]]), ValueError, "samples is 1", "at least two")
    refused(lambda: fp.PerSample(3), TypeError, "sequence of losses")


def test_moments_have_an_order():
    refused(lambda: fp.exit_time_moments(_brownian(), 0), ValueError, "order is 0", "at least 1")


# ---------------------------------------------------------------- coefficients


def test_loss_that_is_not_finite():
    """NaN and infinity on a part of the domain, hence on some ranks only."""
    nan = fp.Langevin(lambda x: ufl.sqrt(x[0] - 0.3), 1.0)
    inf = fp.Langevin(lambda x: ufl.exp(2000 * x[0]), 1.0)
    for process in (nan, inf):
        refused(lambda p=process: fp.Generator(p, _line(), degree=2), ValueError, "not finite", r"At x = \(-?0\.\d+\)")


def test_indefinite_diffusion():
    """The worst place and the eigenvalue there: 1 − 2x at (1, ·) is −1 at most, everywhere else larger."""
    constant = fp.SDE((0, 0), ((1, 2), (2, 1)))
    refused(lambda: fp.Generator(constant, _square()), ValueError, r"At x = \(", "indefinite", "eigenvalue is -1.0")
    varying = fp.SDE((0, 0), lambda x: ((0.5 - x[0], 0), (0, 1.0)))
    error = refused(lambda: fp.Generator(varying, _square()), ValueError, "indefinite")
    place, value = re.search(r"x = \((.*?),.*eigenvalue is (\S+)\.", str(error)).groups()
    assert float(place) > 0.9
    assert float(value) == pytest.approx(0.5 - float(place), abs=1e-5)


def test_unsymmetric_diffusion():
    process = fp.SDE((0, 0), ((1, 0.5), (0, 1)))
    refused(lambda: fp.Generator(process, _square()), ValueError, "not symmetric", r"\[\[1.0, 0.5\], \[0.0, 1.0\]\]")


def test_rank_deficient_diffusion_is_accepted():
    """Rounding makes the smallest eigenvalue of a rank-one matrix slightly negative."""
    z = np.array([1 / 3, np.sqrt(2)])
    with fp.Generator(fp.SDE((0, 0), np.outer(z, z).tolist()), _square(), degree=2) as gen:
        assert gen.scheme == "dg"


@pytest.mark.parametrize(
    ("process", "patterns"),
    [
        (fp.SDE((0, 0, 0), 1.0), ("drift has shape \\(3,\\)", "length 2")),
        (fp.SDE(lambda x: x[0], 1.0), ("drift has shape \\(\\)", "length 2")),
        (fp.SDE((0, 0), np.eye(3).tolist()), ("diffusion has shape \\(3, 3\\)", "shape \\(2, 2\\)")),
        (fp.SDE((0, 0), ((1, 0), (0,))), ("diffusion", "rows have different lengths")),
        (fp.Langevin(lambda x: (x[0], x[1]), 1.0), ("loss has shape \\(2,\\)", "scalar")),
        (fp.SGD(lambda x: x[0], fp.Covariance(((1, 0, 0),)), 0.1), ("Covariance", "\\(1, 3\\)", "\\(2, 2\\)")),
    ],
    ids=["long-drift", "scalar-drift", "large-diffusion", "ragged-diffusion", "vector-loss", "covariance"],
)
def test_wrong_shapes(process, patterns):
    refused(lambda: fp.Generator(process, _square()), ValueError, *patterns)


def test_sources_of_an_unknown_type():
    refused(lambda: fp.Generator(fp.Langevin("x**2", 1.0), _line()), TypeError, "loss is a str", "fp.batched")


def test_numpy_function_of_symbolic_coordinates():
    process = fp.Langevin(lambda x: np.exp(-(x[0] ** 2)), 1.0)
    refused(
        lambda: fp.Generator(process, _line()), TypeError, "loss failed on UFL coordinates", "ufl.exp", "fp.batched"
    )


def test_function_of_another_mesh():
    other = fem.Function(fem.functionspace(fp.Domain.interval(-1, 1, 4).mesh, ("Lagrange", 1)))
    refused(lambda: fp.Generator(fp.Langevin(other, 1.0), _line()), ValueError, "another mesh", "interpolate")


@pytest.mark.parametrize(
    ("function", "patterns"),
    [
        (lambda x: x, ("loss", "returned shape", "expected")),
        (lambda x: 1.0, ("loss", r"returned shape is \(\)")),
        (lambda x: np.where(x[:, 0] > 0.4, np.nan, x[:, 0]), ("loss is not finite at \\(",)),
        (lambda x: 1 // 0, ("loss failed on a numpy array of points", "ZeroDivisionError")),
    ],
    ids=["too-many", "too-few", "nan", "raises"],
)
def test_batched_functions(function, patterns):
    refused(lambda: fp.Generator(fp.Langevin(fp.batched(function), 1.0), _line(), degree=2), ValueError, *patterns)


def test_batched_gradients():
    grads = fp.PerSample(fp.batched(lambda x: x))
    process = fp.SGD(lambda x: x[0] ** 2, grads, 0.1)
    refused(lambda: fp.Generator(process, _line()), ValueError, "grads returned shape", r"\(points, N, 1\)")
    gradients = fp.PerSample(fp.batched(lambda x: np.stack([x, 2 * x], axis=1)))
    refused(lambda: fp.Generator(fp.SGD(None, gradients, 0.1), _line()), ValueError, "gradients, not losses", "loss=")


def test_momentum_needs_an_even_dimension():
    process = fp.MomentumSGD(lambda x: x[0] ** 2, fp.Isotropic(1.0), 0.1, 0.9)
    refused(lambda: fp.Generator(process, _line()), ValueError, "multiple of that", "1")


# ---------------------------------------------------------------- boundaries


def test_absorbing_part_that_cannot_be_reached():
    time = fp.SDE((0, 1), ((0.5, 0), (0, 0)))
    refused(
        lambda: fp.Generator(time, _square(), ["top", "bottom"]), ValueError, "'bottom' cannot be reached", "inflow 2,"
    )
    still = fp.SDE((0, 0), ((0.5, 0), (0, 0)))
    refused(
        lambda: fp.Generator(still, _square(), ["top"]), ValueError, "'top' cannot be reached", "characteristic 2 of 2"
    )


def test_galerkin_at_degenerate_walls():
    kinetic = fp.SDE(lambda x: (x[1], -x[0]), ((0, 0), (0, 1)))
    for absorbing in ((), ("left",)):
        make = lambda a=absorbing: fp.Generator(kinetic, _square(), a, degree=2, scheme="galerkin")  # noqa: E731
        refused(make, ValueError, "'galerkin' cannot be used here", "scheme='dg'", "on left")


def test_exit_where_nothing_absorbs():
    refused(lambda: fp.mean_exit_time(_closed()), ValueError, "nothing absorbs", "left, right, bottom, top")
    refused(lambda: fp.feynman_kac(_closed(), running=1.0), ValueError, "nothing absorbs")


def test_killing_alone_is_enough():
    """With a killing rate s and cost 1 the answer is 1/s."""
    u = fp.feynman_kac(_closed(), running=1.0, killing=4.0)
    np.testing.assert_allclose(u.at([(0.1, 0.2)]), [0.25], rtol=1e-10)


TRAPS = {
    "noise that vanishes at 0": (fp.SDE(0.0, lambda x: x[0] ** 2), ["left", "right"]),
    "noise and drift that vanish at 0": (fp.SDE(lambda x: -x[0] / 2, lambda x: x[0] ** 2 / 2), ["left", "right"]),
    "a stable point without noise": (fp.SDE(lambda x: 4 * x[0] ** 3 - x[0], 0.0), ["left", "right"]),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_no_exit_time_of_a_trap(trap):
    """The mean exit time is infinite from everywhere or from an interval: no number may come out."""
    process, absorbing = TRAPS[trap]

    def ask():
        with fp.Generator(process, fp.Domain.interval(-1, 1, 8), absorbing) as gen:
            return fp.mean_exit_time(gen).at([0.25, 0.5])

    refused(ask, (ValueError, fp.NotConverged))


def test_invariant_law_of_an_absorbed_process():
    refused(lambda: fp.stationary(_brownian()), ValueError, "left, right", "without absorbing parts")


def test_invariant_law_that_is_not_unique():
    """Both minima carry an invariant point mass where the noise follows the loss."""
    well = lambda x: (x[0] ** 2 - 1) ** 2 / 4  # noqa: E731
    gen = fp.Generator(fp.SGD(well, fp.Covariance(well), 1.0), fp.Domain.interval(-2, 2, 40))
    refused(lambda: fp.stationary(gen), ValueError, "not unique")


# ---------------------------------------------------------------- points and times


def test_points_outside_the_mesh():
    tau = fp.mean_exit_time(_brownian())
    refused(lambda: tau.at([(0.0, 0.0), (1.5, 0.0)]), ValueError, r"\(1.5, 0.0\)", r"\[-1, 1\] x \[-1, 1\]")
    refused(lambda: tau.at([(0.0, 0.0, 0.0)]), ValueError, r"shape is \(1, 3\)", r"\(n, 2\)")
    refused(lambda: tau.at([(0.0, np.nan)]), ValueError, "not finite")


def test_initial_densities():
    evolve = lambda p: fp.evolve(_closed(), p, [0.1])  # noqa: E731
    refused(lambda: evolve(fp.dirac((3, 0))), ValueError, "dirac", r"\(3.0, 0.0\)", "outside the mesh")
    refused(lambda: evolve(fp.dirac(0.5)), ValueError, "dirac: point", "one of 2 coordinate")
    refused(lambda: evolve(fp.gaussian((3, 0), 0.2)), ValueError, "mass", "inside the domain")
    refused(lambda: evolve(lambda x: ufl.sqrt(x[0])), ValueError, "initial density is not finite")
    refused(lambda: fp.gaussian((0, 0), (1, -1)), ValueError, "std", "positive")
    refused(lambda: fp.backward(_closed(), lambda x: ufl.ln(x[0]), [0.1]), ValueError, "payoff is not finite")


@pytest.mark.parametrize(
    ("times", "pattern"),
    [([], "at least one"), ([0.2, 0.1], "sorted"), ([-1.0], "-1"), ([np.nan], "nan"), ("now", "now")],
)
def test_times(times, pattern):
    refused(lambda: fp.evolve(_closed(), fp.gaussian((0, 0), 0.3), times), ValueError, pattern)


def test_tolerances():
    for tol in (0.0, 1.0, -1e-6, "tight"):
        refused(
            lambda t=tol: fp.backward(_closed(), 1.0, [0.1], time_rtol=t),
            ValueError,
            "time_rtol is " + re.escape(repr(tol)),
        )


def test_costs_that_are_not_finite():
    for running in (float("nan"), lambda x: ufl.ln(x[0])):
        refused(lambda r=running: fp.feynman_kac(_brownian(), running=r), ValueError, "finite")
    refused(lambda: fp.feynman_kac(_brownian(), exit=lambda x: ufl.sqrt(x[0])), ValueError, "not finite")


# ---------------------------------------------------------------- solvers


def test_solver_that_does_not_converge():
    options = {"ksp_type": "gmres", "pc_type": "jacobi", "ksp_max_it": 1}
    with fp.Generator(fp.SDE((0, 0), 0.5), _square(), BOX[2], degree=2, options=options) as gen:
        error = refused(lambda: fp.mean_exit_time(gen), fp.NotConverged, "mean exit time did not converge")
    assert error.reason == "DIVERGED_MAX_IT"
    assert error.iterations == 1
    assert 1e-12 < error.residual < 1e3
    assert error.prefix == "fp_exit_"
    assert "-fp_exit_ksp_max_it" in str(error)
    assert isinstance(error, RuntimeError)


@pytest.mark.parametrize(
    ("make", "named", "instead"),
    [
        (fp.SGD, {"lr": 0.1}, "learning_rate="),
        (fp.SGD, {"learning_rate": 0.1, "momentum": 0.9}, "fp.MomentumSGD"),
        (fp.SGD, {"learning_rate": 0.1, "weight_decay": 0.1}, "weight_decay / 2"),
        (fp.Adam, {"learning_rate": 0.1, "betas": (0.9, 0.999)}, "beta1="),
        (fp.RMSprop, {"learning_rate": 0.1, "eps": 1e-8}, "epsilon="),
    ],
)
def test_arguments_that_have_other_names_elsewhere(make, named, instead):
    refused(lambda: make(lambda x: x[0] ** 2, fp.Isotropic(1.0), **named), TypeError, "has no argument", instead)
