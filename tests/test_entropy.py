"""Entropies against closed forms of normal laws, their balance for non-reversible processes, and provable rates."""

import numpy as np
import pytest
import ufl
from scipy.integrate import quad
from scipy.linalg import block_diag, expm, solve_continuous_lyapunov
from scipy.stats import norm
from tools import check

import fpsolver as fp
from fpsolver import diagnostics as dg


def squares(x, n):
    return sum(x[i] ** 2 for i in range(n))


@pytest.mark.parallel
def test_entropy_of_an_ornstein_uhlenbeck_process():
    gen = fp.Generator(fp.SDE(lambda x: -x[0], 1.0), fp.Domain.interval(-8, 8, 40), degree=6)
    t = np.array([0, 0.5, 1, 2])
    flow = fp.evolve(gen, fp.gaussian(1, 0.5), t, time_rtol=1e-10)
    m, v = np.exp(-t), 1 - 0.75 * np.exp(-2 * t)  # dX = −X dt + √2 dW from N(1, 1/4)
    for p_inf in (lambda x: 5 * ufl.exp(-(x[0] ** 2) / 2), fp.stationary(gen)):
        found = dg.entropy_decay(flow, p_inf)
        check(found.entropy, [0.818147180559945, 0.207404433198961, 0.0704320106005604, 0.00920543039167978], 1e-9)
        check(found.fisher[:3], [3.25, 0.473012853809277, 0.146801686846737], 1e-8)
        assert np.abs(found.balance).max() < 1e-8
        assert found.neglected.max() < 1e-10
        assert (found.l1**2 <= 2 * found.entropy).all(), "Csiszár, Kullback, Pinsker"
    exact = [quad(lambda x, m=m[i], v=v[i]: abs(norm.pdf(x, m, np.sqrt(v)) - norm.pdf(x)), -8, 8)[0] for i in range(4)]
    check(found.l1, exact, 2e-4)  # |p − p∞| has kinks inside cells


def test_entropy_in_the_weighted_scheme():
    gen = fp.Generator(
        fp.Langevin(lambda x: x[0] ** 2 / 2, 1.0), fp.Domain.interval(-7, 7, 60), degree=4, scheme="weighted"
    )
    flow = fp.evolve(gen, fp.gaussian(1, 0.5), [0.5, 1], time_rtol=1e-9)
    found = dg.entropy_decay(flow, lambda x: ufl.exp(-(x[0] ** 2) / 2))
    check(found.entropy, [0.207404433198961, 0.0704320106005604], 1e-6)
    check(found.entropy_rate, [-0.473012853809277, -0.146801686846737], 1e-5)
    assert "0.5  2.0740e-01  4.7301e-01" in str(found)


def ellipse(C, radius, h):
    """A domain into which dX = −CX dt points everywhere: {x·Qx < radius²} with Cᵀ Q + Q C = 1."""
    Q = solve_continuous_lyapunov(C.T, np.eye(2))
    shape = radius * np.linalg.inv(np.linalg.cholesky(Q)).T
    return fp.Domain.disk((0, 0), 1.0, h).mapped(lambda x: shape @ x)


def normal(K, mean):
    """Density of N(mean, K), in UFL."""
    inverse, size = np.linalg.inv(K), 2 * np.pi * np.sqrt(np.linalg.det(K))

    def density(x):
        y = [x[i] - mean[i] for i in range(2)]
        return ufl.exp(-sum(inverse[i, j] * y[i] * y[j] for i in range(2) for j in range(2)) / 2) / size

    return density


def linear(C, D):
    """dX = −CX dt + √(2D) dW."""
    return fp.SDE(lambda x: tuple(-sum(c * x[j] for j, c in enumerate(row)) for row in C), tuple(map(tuple, D)))


def shifted_normal(C, D, P, K, mean, times):
    """Entropy, Fisher information and S_P of N(m(t), K): quadratic in K⁻¹m."""
    y = np.array([np.linalg.solve(K, expm(-C * t) @ mean) for t in times])
    return [0.5 * np.einsum("ti,ij,tj->t", y, K, y), *(np.einsum("ti,ij,tj->t", y, A, y) for A in (D, P))]


KINETIC = np.array([[0.0, -1.0], [1.0, 1.0]])  # dx = v dt, dv = −(x + v) dt + √2 dW


@pytest.mark.parallel
def test_kinetic_entropy_has_a_plateau_while_the_modified_functional_decays():
    pytest.importorskip("gmsh")
    D, t = np.diag([0.0, 1.0]), np.array([0.0, 0.25, 1.0, 2.0])
    erb = dg.arnold_erb_matrix(KINETIC, D)
    check(erb.P, [[1, 0.5], [0.5, 1]], 1e-12)
    assert abs(erb.rate - 1) < 1e-12
    assert not erb.defective and "S_P(t) <= e^(-1 t) S_P(0)" in str(erb)
    gen = fp.Generator(linear(KINETIC, D), ellipse(KINETIC, 8.5, 0.12), degree=4)
    flow = fp.evolve(gen, fp.gaussian((1, 0), 1), t, time_rtol=1e-8)
    found = dg.entropy_decay(flow, lambda x: ufl.exp(-squares(x, 2) / 2), P=2 * erb.P)
    H, information, S = shifted_normal(KINETIC, D, 2 * erb.P, np.eye(2), np.array([1.0, 0.0]), t)
    check(H[2], 0.359917109812091, 1e-12)
    check(S, 2 * np.exp(-t), 1e-12)
    assert np.abs(found.entropy - H).max() < 5e-6
    assert np.abs(found.fisher - information).max() < 4e-5
    assert abs(found.entropy_rate[0]) < 1e-5, "a plateau: the noise does not see a displacement in x"
    assert np.abs(found.modified - S).max() < 1e-4
    check(found.modified_rate, np.ones(3), 3e-4)
    assert np.abs(found.balance).max() < 4e-5
    assert (found.entropy <= erb.entropy_bound(t, found.modified[0] / 2) + 1e-6).all()


def test_non_normal_drift():
    C, D, t = np.array([[1.0, 10.0], [0.0, 2.0]]), np.eye(2), np.array([0.0, 0.1, 0.3, 1.0])
    erb = dg.arnold_erb_matrix(C, D)
    K = np.array([[53 / 3, -5 / 3], [-5 / 3, 0.5]])
    check(erb.covariance, K, 1e-12)
    mean = np.array([2.0, -0.5])
    domain = fp.Domain.rectangle((-25, -4.5), (25, 4.5), (22, 14))
    gen = fp.Generator(linear(C, D), domain, degree=4, scheme="dg")
    flow = fp.evolve(gen, normal(K, mean), t, time_rtol=1e-8)
    found = dg.entropy_decay(flow, normal(K, (0, 0)), P=erb.P)
    H, information, S = shifted_normal(C, D, erb.P, K, mean, t)
    check(found.entropy, H, 1e-4)
    check(found.fisher, information, 1e-3)
    check(found.modified, S, 1e-3)
    assert (found.modified_rate >= erb.rate * (1 - 1e-3)).all()
    assert found.rate.min() < erb.rate - 0.1, "the entropy itself decays more slowly than at the rate of S_P at times"


def reverse_rate(C, erb):
    """The largest r with C* P + P C*ᵀ ≥ r P."""
    reverse = erb.covariance @ C.T @ np.linalg.inv(erb.covariance)
    root = np.linalg.inv(np.linalg.cholesky(erb.P))
    return np.linalg.eigvalsh(root @ (reverse @ erb.P + erb.P @ reverse.T) @ root.T)[0]


def test_arnold_erb_matrices_satisfy_their_inequality():
    chain = np.array([[0.0, -1, 0], [0, 0, -1], [1, 3, 3]])  # the eigenvalue 1, three times, with one eigenvector
    D = np.diag([0.0, 0, 1])
    erb = dg.arnold_erb_matrix(chain, D)
    assert erb.defective
    assert abs(erb.mu - 1) < 1e-4  # a triple eigenvalue moves by the cube root of rounding
    assert abs(erb.rate - 1.98) < 2e-4
    assert reverse_rate(chain, erb) >= erb.rate - 1e-9
    check(erb.covariance, np.array([[3, 0, -1], [0, 1, 0], [-1, 0, 3]]) / 8, 1e-10)
    fast = block_diag(1.0, [[2.0, 1], [0, 2]])  # a defective eigenvalue that is not the slowest costs nothing
    for C, noise in ((fast, np.eye(3)), (np.diag([1.0, 1, 3]), np.eye(3)), (KINETIC, np.diag([0.0, 1]))):
        erb = dg.arnold_erb_matrix(C, noise)
        assert not erb.defective
        assert abs(reverse_rate(C, erb) - 2 * erb.mu) < 1e-9
        assert np.linalg.eigvalsh(erb.P)[0] > 0
    for _ in range(20):
        rng = np.random.default_rng(_)
        C = rng.normal(size=(3, 3)) + 3 * np.eye(3)
        erb = dg.arnold_erb_matrix(C, np.diag([1.0, 1, 0]))
        assert abs(reverse_rate(C, erb) - 2 * erb.mu) < 1e-8 * np.linalg.norm(C)


def test_arnold_erb_checks_its_hypotheses():
    with pytest.raises(ValueError, match="kernel of D"):
        dg.arnold_erb_matrix(np.diag([1.0, 2]), np.diag([1.0, 0]))
    with pytest.raises(ValueError, match="positive real parts"):
        dg.arnold_erb_matrix(np.diag([1.0, -2]), np.eye(2))
    with pytest.raises(ValueError, match="semi-definite"):
        dg.arnold_erb_matrix(np.eye(2), np.diag([1.0, -1]))
    with pytest.raises(ValueError, match="shape"):
        dg.arnold_erb_matrix(np.eye(2), np.eye(3))


def potential(x):
    return x[0] ** 4 / 4 + x[0] * x[1] / 3 + x[1] ** 2


def circulating():
    """b = −D∇V + ∇·D + ∇·Q − Q∇V with antisymmetric Q(x) and degenerate D(x): e^{−V} is invariant, with a current."""

    def drift(x):
        dV = (x[0] ** 3 + x[1] / 3, x[0] / 3 + 2 * x[1])
        q, D = 1 + x[0] ** 2 / 4, 0.5 + x[1] ** 2 / 4  # Q = [[0, −q], [q, 0]], D = diag(0, D)
        divergence_Q = (0.0, x[0] / 2)  # ∂ⱼQᵢⱼ = (−∂ᵧq, ∂ₓq)
        return (divergence_Q[0] + q * dV[1], -D * dV[1] + x[1] / 2 + divergence_Q[1] - q * dV[0])

    return fp.SDE(drift, lambda x: ((0, 0), (0, 0.5 + x[1] ** 2 / 4)))


def test_entropy_balance_without_reversibility_or_ellipticity():
    gen = fp.Generator(circulating(), fp.Domain.rectangle((-3.2, -4.4), (3.2, 4.4), (14, 14)), degree=4)
    step = 0.01
    t = np.array([0.3, 0.4 - step, 0.4, 0.4 + step, 0.8])
    flow = fp.evolve(gen, fp.gaussian((0.5, -0.5), 0.5), t, time_rtol=1e-9)
    found = dg.entropy_decay(flow, lambda x: ufl.exp(-potential(x)))
    assert np.abs(found.balance).max() < 2e-4 * found.fisher.max()
    difference = (found.entropy[3] - found.entropy[1]) / (2 * step)  # independent of G
    assert abs(difference + found.fisher[2]) < 1e-3 * found.fisher[2]
    assert (np.diff(found.entropy) < 0).all()
    check(dg.entropy_balance(flow, lambda x: ufl.exp(-potential(x))), found.balance, 1e-9)
    single = dg.relative_entropy(gen, flow[0], lambda x: ufl.exp(-potential(x)))
    check(float(single), found.entropy[0], 1e-12)
    single = dg.fisher_information(gen, flow[0], lambda x: ufl.exp(-potential(x)))
    check(float(single), found.fisher[0], 1e-12)


def test_unresolved_mass_is_reported():
    gen = fp.Generator(fp.SDE(lambda x: -x[0], 1.0), fp.Domain.interval(-5, 5, 6), degree=2)
    flow = fp.evolve(gen, fp.gaussian(1, 0.25), [0, 1.0])
    found = dg.entropy_decay(flow, lambda x: ufl.exp(-(x[0] ** 2) / 2))
    assert found.neglected[0] > 0.05
    assert found.neglected[1] < found.neglected[0]


@pytest.mark.parallel
def test_bakry_emery_with_constant_diffusion():
    D = np.array([[1.0, 0.3], [0.3, 0.5]])
    H = np.array([[2.0, 0.4], [0.4, 1.0]])
    root = np.linalg.cholesky(D)
    exact = np.linalg.eigvalsh(root.T @ H @ root)[0]
    domain = fp.Domain.rectangle((-5, -6), (5, 6), (5, 6))

    def V(x):
        return (H[0, 0] * x[0] ** 2 + H[1, 1] * x[1] ** 2) / 2 + H[0, 1] * x[0] * x[1]

    for turn, reversible in ((0.0, True), (0.7, False)):
        gen = fp.Generator(linear((D + turn * np.array([[0, 1], [-1, 0]])) @ H, D), domain)
        found = dg.bakry_emery(gen, potential=V)
        assert found.kind == "constant D"
        assert found.reversible == reversible
        check(found.bound, exact, 1e-10)
    with pytest.raises(ValueError, match="not invariant"):
        dg.bakry_emery(gen, potential=lambda x: V(x) + x[0])


def test_bakry_emery_finds_where_a_well_is_least_convex():
    gen = fp.Generator(fp.Langevin(fp.landscapes.double_well, 0.2), fp.Domain.interval(-2, 2, 40))
    found = dg.bakry_emery(gen)
    check(found.bound, -1.0, 1e-8)  # f'' = 3x² − 1
    assert abs(found.point[0]) < 1e-8
    assert not found.holds
    check(
        dg.spectral_gap(fp.Generator(fp.Langevin(fp.landscapes.double_well, 0.2), fp.Domain.interval(-3, 3, 40))),
        0.13477798375,
        1e-6,
    )


def test_bakry_emery_in_one_dimension_is_convexity_after_a_substitution():
    """D = (1 + x²)²/4 and y = ∫dx/√D = 2 atan x: U = V − ½ ln D as a function of y, differentiated by differences."""
    gen = fp.Generator(
        fp.SDE(lambda x: -((1 + x[0] ** 2) ** 2) / 4 * 3 * x[0], lambda x: (1 + x[0] ** 2) ** 2 / 4, "divergence"),
        fp.Domain.interval(-1.5, 1.5, 40),
    )
    found = dg.bakry_emery(gen, potential=lambda x: 1.5 * x[0] ** 2)

    def U(y):
        x = np.tan(y / 2)
        return 1.5 * x**2 - np.log((1 + x**2) / 2)

    y = np.linspace(-2 * np.arctan(1.5), 2 * np.arctan(1.5), 4001)
    h = 1e-3
    curvature = (U(y + h) - 2 * U(y) + U(y - h)) / h**2
    assert found.kind == "scalar D(x)"
    assert abs(found.bound - curvature.min()) < 1e-4
    assert abs(2 * np.arctan(found.point[0]) - y[np.argmin(curvature)]) < 0.05


def gamma_two(D, V, x, g):
    """min over ∇∇u of Γ₂(u) with ∇u(x) = g, Γ(u) = D|∇u|², from the definition ½LΓ(u) − Γ(u, Lu), by sympy."""
    sp = pytest.importorskip("sympy")
    X = sp.symbols("x y")
    a = sp.symbols("a b c")
    u = g[0] * X[0] + g[1] * X[1]
    y = [X[i] - x[i] for i in range(2)]
    u += a[0] * y[0] ** 2 / 2 + a[1] * y[0] * y[1] + a[2] * y[1] ** 2 / 2
    D, V = D(X), V(X)
    L = lambda w: sum(sp.diff(D * sp.diff(w, s), s) - D * sp.diff(V, s) * sp.diff(w, s) for s in X)  # noqa: E731
    G = lambda v, w: D * sum(sp.diff(v, s) * sp.diff(w, s) for s in X)  # noqa: E731
    form = sp.expand((L(G(u, u)) / 2 - G(u, L(u))).subs(dict(zip(X, x, strict=True))))
    least = sp.solve([sp.diff(form, s) for s in a], a)
    return float(form.subs(least)), float(D.subs(dict(zip(X, x, strict=True))))


def test_bakry_emery_with_scalar_diffusion_in_the_plane():
    def D(x):
        return 1 + x[0] ** 2 / 4 + x[1] / 8

    def V(x):
        return x[0] ** 2 + x[1] ** 2 + x[0] * x[1] / 2

    def drift(x):
        gradient = (2 * x[0] + x[1] / 2, 2 * x[1] + x[0] / 2)
        return tuple(-D(x) * g for g in gradient)

    domain = fp.Domain.rectangle((-1, -1), (1, 1), (8, 8))
    found = dg.bakry_emery(
        fp.Generator(fp.SDE(drift, lambda x: ((D(x), 0), (0, D(x))), "divergence"), domain), potential=V
    )
    assert found.kind == "scalar D(x)"
    assert found.reversible
    angles = np.linspace(0, np.pi, 7)[:-1]
    at_point = lambda x: [gamma_two(D, V, x, (np.cos(s), np.sin(s))) for s in angles]  # noqa: E731
    quotients = [form / d for form, d in at_point(tuple(found.point))]  # Γ₂ ≥ λΓ, sampled in the plane of gradients
    mean, cosine, sine = (2 * np.mean(quotients * f) for f in (np.full(6, 0.5), np.cos(2 * angles), np.sin(2 * angles)))
    check(mean - np.hypot(cosine, sine), found.bound, 1e-9)
    for x in ((0.9, -0.9), (-0.5, 0.3), (0.2, 0.8)):
        assert min(form / d for form, d in at_point(x)) >= found.bound


@pytest.mark.parallel
def test_bad_input():
    gen = fp.Generator(fp.SDE(lambda x: -x[0], 1.0), fp.Domain.interval(-5, 5, 10))
    killed = fp.Generator(fp.SDE(lambda x: -x[0], 1.0), fp.Domain.interval(-5, 5, 10), absorbing=["left"])
    flow = fp.evolve(gen, fp.gaussian(0.5, 1), [0.1])
    with pytest.raises(ValueError, match="leaves through left"):
        dg.entropy_decay(fp.evolve(killed, fp.gaussian(0.5, 1), [0.1]), lambda x: 1 + 0 * x[0])
    with pytest.raises(ValueError, match="densities was expected"):
        dg.entropy_decay(fp.backward(gen, 1, [0.1]), lambda x: 1 + 0 * x[0])
    with pytest.raises(ValueError, match="p_inf is negative"):
        dg.entropy_decay(flow, lambda x: x[0])
    with pytest.raises(ValueError, match="entropy: P has shape"):
        dg.entropy_decay(flow, lambda x: ufl.exp(-(x[0] ** 2)), P=[[1, 0], [0, 1]])
    with pytest.raises(ValueError, match="there was no P"):
        _ = dg.entropy_decay(flow, lambda x: ufl.exp(-(x[0] ** 2))).modified_rate
    with pytest.raises(ValueError, match="potential="):
        dg.bakry_emery(gen)
    with pytest.raises(ValueError, match="mass leaves"):
        dg.spectral_gap(killed)
    degenerate = fp.Generator(linear(KINETIC, np.diag([0.0, 1])), fp.Domain.rectangle((-3, -3), (3, 3), (3, 3)))
    with pytest.raises(ValueError, match="degenerates"):
        dg.bakry_emery(degenerate, potential=lambda x: squares(x, 2) / 2)
