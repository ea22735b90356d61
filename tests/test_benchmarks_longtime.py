"""Long times: effective diffusion and drift in periodic potentials, stationary laws of linear drifts.

Tolerances are two to five times the discretisation error on these meshes.
"""

import numpy as np
import pytest
import scipy.linalg
import ufl
from scipy import special
from tools import BOX, check, mean_and_covariance

import fpsolver as fp

PERIOD = 2 * np.pi


@pytest.mark.parallel
@pytest.mark.parametrize(
    ("amplitude", "exact", "rtol"),
    [(1.0, 0.623860360432069, 1e-9), (2.0, 0.192436878491673, 1e-9), (5.0, 0.00134768961135402, 1e-7)],
)
def test_effective_diffusion_in_a_periodic_potential(amplitude, exact, rtol):
    """f = A cos x, D = 1: one period either way takes (2π)²/(2 D_eff), D_eff = D/I₀(A/D)² (Lifson, Jackson 1962)."""
    check(1 / special.i0(amplitude) ** 2, exact, 1e-13)
    process = fp.Langevin(lambda x: amplitude * ufl.cos(x[0]), 1.0)
    for start in (0.0, 0.7):  # the law of whole periods does not depend on the phase
        gen = fp.Generator(process, fp.Domain.interval(start - PERIOD, start + PERIOD, 120), BOX[1])
        tau = fp.mean_exit_time(gen).at(start)[0]
        check(PERIOD**2 / (2 * tau), exact, rtol)


@pytest.mark.parallel
@pytest.mark.parametrize(("D", "exact", "rtol"), [(0.5, 0.175593406036971, 1e-9), (0.1, 0.000870276719882199, 1e-7)])
def test_drift_velocity_in_a_tilted_periodic_potential(D, exact, rtol):
    """f = cos x − x/2: the mean velocity is E X_τ / E τ, for τ the time of one period either way (Wald)."""
    gen = fp.Generator(
        fp.Langevin(lambda x: ufl.cos(x[0]) - x[0] / 2, D), fp.Domain.interval(-PERIOD, PERIOD, 160), BOX[1]
    )
    tau = fp.mean_exit_time(gen).at(0.0)[0]
    right, left = (fp.exit_probability(gen, part).at(0.0)[0] for part in ("right", "left"))
    check(left / right, np.exp(-PERIOD / (2 * D)), 1e-5)
    check(PERIOD * (right - left) / tau, exact, rtol)


def test_stationary_covariance_of_a_non_normal_drift():
    """dX = −[[1, 10], [0, 2]] X dt + √2 dW: eigenvectors are almost parallel, and variances 35 to 1."""
    drift = lambda x: (-x[0] - 10 * x[1], -2 * x[1])  # noqa: E731
    gen = fp.Generator(fp.SDE(drift, 1.0), fp.Domain.rectangle((-25, -4.5), (25, 4.5), (20, 14)), scheme="dg")
    mean, covariance = mean_and_covariance(gen, fp.stationary(gen).raw)
    check(covariance, [[53 / 3, -5 / 3], [-5 / 3, 1 / 2]], 2e-7)
    assert abs(mean).max() < 1e-6


def test_stationary_covariance_of_a_chain_of_three():
    """dx₁ = x₂ dt, dx₂ = x₃ dt, dx₃ = −(x₁ + 3x₂ + 3x₃) dt + √2 dW: noise reaches x₁ through two integrations."""
    A, D = np.array([[0.0, 1, 0], [0, 0, 1], [-1, -3, -3]]), np.diag([0.0, 0, 1])
    exact = np.array([[3.0, 0, -1], [0, 1, 0], [-1, 0, 3]]) / 8
    check(scipy.linalg.solve_continuous_lyapunov(A, -2 * D), exact, 1e-14)
    process = fp.SDE(lambda x: (x[1], x[2], -x[0] - 3 * x[1] - 3 * x[2]), D.tolist())
    domain = fp.Domain.box((-2.6, -1.6, -2.6), (2.6, 1.6, 2.6), (6, 6, 6))
    gen = fp.Generator(process, domain, degree=2)
    assert gen.scheme == "dg"
    mean, covariance = mean_and_covariance(gen, fp.stationary(gen).raw)
    check(covariance, exact, 6e-3)  # 2e-2 with four cells a side
    assert abs(mean).max() < 1e-3
