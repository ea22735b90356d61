"""Conventions, noises and sources: different descriptions of one process give the same matrices."""

from functools import cache

import cffi
import numpy as np
import pytest
import ufl
from dolfinx import fem
from scipy import integrate
from tools import BOX, box, check

import fpsolver as fp
from fpsolver.discretisation.solver import exit_flux
from fpsolver.models.fields import Space


@cache
def _line():
    return fp.Domain.interval(-1, 1, 12)


@cache
def _square():
    return box(2, 3)


def _values(process, points, domain=None):
    """D and β of a process at points (n, d), without a generator."""
    domain = domain or _square()
    mesh = domain.mesh
    d = domain.dim
    c = process.coefficients(process.space(mesh, 3))
    row = [*(c.D[i, j] for i in range(d) for j in range(d)), *(c.beta[i] for i in range(d))]
    V = fem.functionspace(mesh, ("DG", 4, (len(row),)))
    function = fem.Function(V)
    from fpsolver._compat import interpolation_points
    from fpsolver.discretisation.solution import locate

    function.interpolate(fem.Expression(ufl.as_vector(row), interpolation_points(V.element)))
    points = np.atleast_2d(points)
    index, cells = locate(mesh, points)
    first = [cells[np.flatnonzero(index == i)[0]] for i in range(len(points))]
    values = function.eval(np.pad(points, ((0, 0), (0, 3 - d))), np.array(first, np.int32)).reshape(len(points), -1)
    return values[:, : d * d].reshape(-1, d, d), values[:, d * d :]


def _difference(process, other, domain, degree=2, scheme="dg", absorbing=("left",)):
    """‖G − G'‖/‖G‖ in the Frobenius norm."""
    with (
        fp.Generator(process, domain, absorbing, degree=degree, scheme=scheme) as a,
        fp.Generator(other, domain, absorbing, degree=degree, scheme=scheme) as b,
    ):
        size = a.G.norm()
        difference = a.G.copy()
        difference.axpy(-1.0, b.G)
        value = difference.norm() / size
        difference.destroy()
        return value


# ---------------------------------------------------------------- conventions

D = lambda x: 0.2 + 0.1 * x[0] + 0.2 * x[0] ** 2  # noqa: E731
HALF_SLOPE = lambda x: 0.05 + 0.2 * x[0]  # noqa: E731  D'/2


def test_conventions_agree_where_they_should():
    """Itô b, Stratonovich b − D'/2 and divergence b − D' are one process with one mean exit time."""
    b = lambda x: 0.3 - x[0]  # noqa: E731
    same = [
        fp.SDE(b, D),
        fp.SDE(lambda x: b(x) - HALF_SLOPE(x), D, "stratonovich"),
        fp.SDE(lambda x: b(x) - 2 * HALF_SLOPE(x), D, "divergence"),
    ]
    times = []
    for process in same:
        with fp.Generator(process, _line(), BOX[1]) as gen:
            times.append(fp.mean_exit_time(gen).at([-0.5, 0.0, 0.5]))
    check(times[1], times[0], 1e-13)
    check(times[2], times[0], 1e-13)
    exact = _exit_time(0.0, lambda x: 0.3 - x)
    check(times[0][1], exact, 1e-8)


@pytest.mark.parametrize(("convention", "share"), [("ito", 0.0), ("stratonovich", 1.0), ("divergence", 2.0)])
def test_conventions_differ_for_the_same_drift(convention, share):
    """Without drift each convention has an exit time of its own, by an independent quadrature."""
    with fp.Generator(fp.SDE(0.0, D, convention), _line(), BOX[1]) as gen:
        check(fp.mean_exit_time(gen).at(0.2)[0], _exit_time(0.2, lambda x: share * HALF_SLOPE([x])), 1e-7)


def _exit_time(x, b):
    """E τ of (−1, 1) for the Itô drift b and D above, by quadrature of scale and speed."""
    h = lambda y: integrate.quad(lambda z: b(z) / D([z]), 0, y, epsabs=1e-13)[0]  # noqa: E731
    t, w = np.polynomial.legendre.leggauss(40)

    def inside(a, c, f):
        return (c - a) / 2 * sum(wi * f((a + c) / 2 + (c - a) / 2 * ti) for ti, wi in zip(t, w, strict=True))

    S = lambda a, c: inside(a, c, lambda y: np.exp(-h(y)))  # noqa: E731
    speed = lambda y: np.exp(h(y)) / D([y])  # noqa: E731
    left, right = inside(-1, x, lambda y: S(-1, y) * speed(y)), inside(x, 1, lambda y: S(y, 1) * speed(y))
    return (S(x, 1) * left + S(-1, x) * right) / S(-1, 1)


def test_conventions_in_the_plane():
    level = lambda x: 0.3 + 0.1 * x[0] ** 2 + 0.1 * x[1]  # noqa: E731
    ito = fp.SDE(lambda x: (0.2 * x[0], 0.1), level)
    stratonovich = fp.SDE(lambda x: (0.1 * x[0], 0.05), level, "stratonovich")
    divergence = fp.SDE(lambda x: (0, 0), level, "divergence")
    assert _difference(ito, stratonovich, _square()) < 1e-14
    assert _difference(ito, divergence, _square()) < 1e-14


def test_stratonovich_needs_the_factor_in_the_plane():
    process = fp.SDE((0, 0), lambda x: ((1 + x[0] ** 2, 0), (0, 1)), "stratonovich")
    with pytest.raises(ValueError, match="factor σ"):
        fp.Generator(process, _square())
    constant = fp.SDE((0, 0), ((1, 0.5), (0.5, 1)), "stratonovich")
    assert _difference(constant, fp.SDE((0, 0), ((1, 0.5), (0.5, 1))), _square()) < 1e-15


# ---------------------------------------------------------------- gradient descent


LOSS = lambda x: x[0] ** 2 / 2 + x[0] * x[1] + x[1] ** 4 / 4  # noqa: E731
GRADIENT = lambda x: (x[0] + x[1], x[0] + x[1] ** 3)  # noqa: E731
POINTS = np.array([(0.3, 0.2), (-0.7, 0.61), (0.11, -0.83)])


def test_sgd_is_its_stochastic_differential_equation():
    """b = −∇f, D = η/(2B) Σ in Itô form."""
    Sigma = lambda x: ((1 + x[1] ** 2, x[0]), (x[0], 2 + x[0] ** 2))  # noqa: E731
    sgd = fp.SGD(LOSS, fp.Covariance(Sigma), learning_rate=0.3, batch_size=4)
    level = 0.3 / 8
    sde = fp.SDE(lambda x: [-g for g in GRADIENT(x)], lambda x: level * ufl.as_matrix(Sigma(x)))
    assert _difference(sgd, sde, _square()) < 1e-14
    assert sgd.time_per_step == 0.3


def test_langevin_is_isotropic_gradient_noise():
    langevin = fp.Langevin(LOSS, 0.15)
    assert _difference(langevin, fp.SGD(LOSS, fp.Isotropic(1.0), 0.3), _square()) < 1e-14
    assert _difference(langevin, fp.SDE(lambda x: [-g for g in GRADIENT(x)], 0.15), _square()) < 1e-14


def test_momentum_coefficients():
    """γ = (1 − μ)/√η, D_v = √η Σ/(2B) in the velocity only, on (x, v)."""
    eta, mu, B = 0.04, 0.9, 2
    process = fp.MomentumSGD(lambda x: x[0] ** 4 / 4, fp.Isotropic(lambda x: 1 + x[0] ** 2), eta, mu, B)
    D, beta = _values(process, POINTS)
    x, v = POINTS.T
    check(D[:, 1, 1], np.sqrt(eta) / (2 * B) * (1 + x**2), 1e-13)
    assert np.abs(D[:, 0, :]).max() == np.abs(D[:, :, 0]).max() == 0
    check(beta, np.column_stack([v, -(1 - mu) / np.sqrt(eta) * v - x**3]), 1e-13)
    assert process.time_per_step == pytest.approx(0.2)


def test_momentum_is_its_kinetic_equation():
    """With γ = 1, D = 1 in v: the kinetic Ornstein-Uhlenbeck process."""
    process = fp.MomentumSGD(lambda x: x[0] ** 2 / 2, fp.Isotropic(8.0), learning_rate=0.25, momentum=0.5, batch_size=2)
    kinetic = fp.SDE(lambda x: (x[1], -x[0] - x[1]), ((0, 0), (0, 1.0)))
    assert _difference(process, kinetic, _square(), absorbing=()) < 1e-14


def test_the_scheme_follows_the_degeneracy():
    """Degeneracy on a line counts wherever the line lies relative to the mesh."""
    grushin = lambda x: ((0.5, 0), (0, x[0] ** 2 / 2))  # noqa: E731
    for diffusion, expected in (
        (lambda x: ((0.5, 0), (0, 0.5)), "galerkin"),
        (lambda x: ((0.5, 0), (0, 0)), "dg"),
        (grushin, "dg"),
    ):
        for cells in (3, 4):
            with fp.Generator(fp.SDE((0, 0), diffusion), box(2, cells), ["left"], degree=2) as gen:
                assert gen.scheme == expected, f"{cells} cells"


# ---------------------------------------------------------------- noise


SAMPLES = (
    lambda x: x[0] ** 2 + x[1],
    lambda x: x[1] ** 2 - x[0],
    lambda x: x[0] * x[1] + 0.5 * x[0],
)


def _gradients(x, y):
    return np.array([(2 * x, 1.0), (-1.0, 2 * y), (y + 0.5, x)])


def test_covariance_of_samples():
    """Σ = 1/N Σ g gᵀ − ḡ ḡᵀ for three samples, and the mean loss as drift."""
    process = fp.SGD(None, fp.PerSample(SAMPLES), learning_rate=0.2)
    D, beta = _values(process, POINTS)
    step = 1e-4
    for point, found, drift in zip(POINTS, D, beta, strict=True):
        g = _gradients(*point)
        check(found, 0.1 * np.cov(g.T, bias=True), 1e-12)
        shifted = [0.1 * np.cov(_gradients(*(point + s * e)).T, bias=True) for e in np.eye(2) for s in (step, -step)]
        divergence = (shifted[0] - shifted[1])[:, 0] + (shifted[2] - shifted[3])[:, 1]
        check(drift, -g.mean(axis=0) - divergence / (2 * step), 1e-7)


def test_covariance_of_two_samples_has_rank_one():
    process = fp.SGD(None, fp.PerSample(SAMPLES[:2]), learning_rate=0.2)
    D, _ = _values(process, POINTS)
    eigenvalues = np.linalg.eigvalsh(D)
    assert (np.abs(eigenvalues[:, 0]) < 1e-15).all()
    assert (eigenvalues[:, 1] > 1e-3).all()
    with fp.Generator(process, _square(), degree=2) as gen:
        assert gen.scheme == "dg"


def test_noises_add():
    noise = fp.PerSample(SAMPLES) + fp.Isotropic(0.5) + fp.Covariance(((1, 0.5), (0.5, 2))) + fp.Isotropic(0.25)
    D = [_values(fp.SGD(LOSS, n, 2.0), POINTS)[0] for n in (noise, fp.PerSample(SAMPLES))]
    check(D[0] - D[1], np.broadcast_to([[1.75, 0.5], [0.5, 2.75]], (3, 2, 2)), 1e-13)
    assert fp.SGD(LOSS, noise, 2.0).numbers() == {"learning_rate": 2.0, "batch_size": 1.0, "s": 0.75}


def test_samples_with_added_noise_know_their_mean_loss():
    noise = fp.PerSample(SAMPLES) + fp.Isotropic(0.5)
    mean = lambda x: sum(f(x) for f in SAMPLES) / 3  # noqa: E731
    assert _difference(fp.SGD(None, noise, 0.2), fp.SGD(mean, noise, 0.2), _square()) < 1e-14


# ---------------------------------------------------------------- changing numbers


def _compilations(monkeypatch):
    calls = []
    original = cffi.FFI.compile
    monkeypatch.setattr(cffi.FFI, "compile", lambda self, *a, **k: calls.append(1) or original(self, *a, **k))
    return calls


@pytest.mark.parametrize("scheme", ["galerkin", "dg"])
def test_replacing_numbers_equals_a_fresh_generator(scheme, monkeypatch):
    noise = lambda s: fp.Covariance(lambda x: ((1 + x[0] ** 2, 0), (0, 1))) + fp.Isotropic(s)  # noqa: E731
    make = lambda eta, B, s: fp.SGD(LOSS, noise(s), eta, B)  # noqa: E731
    old = fp.Generator(make(0.3, 1, 0.5), _square(), ["left", "right"], degree=2, scheme=scheme)
    before = fp.mean_exit_time(old).at(POINTS)
    calls = _compilations(monkeypatch)
    new = old.replace(learning_rate=0.1, batch_size=4, s=0.9)
    tau = fp.mean_exit_time(new).at(POINTS)
    assert not calls, "a form was compiled"
    with fp.Generator(make(0.1, 4, 0.9), _square(), ["left", "right"], degree=2, scheme=scheme) as fresh:
        difference = new.G.copy()
        difference.axpy(-1.0, fresh.G)
        assert difference.norm() < 1e-13 * fresh.G.norm()
        check(tau, fp.mean_exit_time(fresh).at(POINTS), 1e-12)
        assert new.process.learning_rate == 0.1
        # what is assembled later uses each generator's own numbers
        flux = {gen: exit_flux(gen, "left").norm() for gen in (new, fresh, old)}
        assert flux[new] == pytest.approx(flux[fresh], rel=1e-13)
        assert flux[old] != pytest.approx(flux[new], rel=1e-3)
    check(fp.mean_exit_time(old).at(POINTS), before, 1e-14)
    check(fp.exit_time_moments(old, 1)[0].at(POINTS), before, 1e-14)
    new.close()
    old.close()


def test_numbers_of_processes():
    assert fp.Langevin(LOSS, 0.2).numbers() == {"temperature": 0.2}
    assert fp.SDE(1.0, 0.5).numbers() == {"drift": 1.0, "diffusion": 0.5}
    assert fp.Langevin(LOSS, 0.2).with_parameters(temperature=0.3).temperature == 0.3
    momentum = fp.MomentumSGD(LOSS, fp.Isotropic(1.0), 0.1, 0.9)
    assert set(momentum.numbers()) == {"learning_rate", "momentum", "batch_size", "s"}
    with fp.Generator(fp.SDE(1.0, 0.5), _line(), BOX[1]) as gen, gen.replace(drift=0.0) as still:
        check(fp.mean_exit_time(still).at([0.0, 0.5]), [1.0, 0.75], 1e-12)


def test_processes_are_frozen():
    with pytest.raises(AttributeError):
        fp.Langevin(LOSS, 0.2).temperature = 0.3


# ---------------------------------------------------------------- sources


def test_batched_loss_equals_its_formula():
    """Losses are tabulated one degree above the space: a cubic on quadratic elements is exact."""
    cubic = lambda x: x[0] ** 3 / 3 + x[0] * x[1]  # noqa: E731
    batched = fp.batched(lambda x: x[:, 0] ** 3 / 3 + x[:, 0] * x[:, 1])
    assert _difference(fp.Langevin(cubic, 0.2), fp.Langevin(batched, 0.2), _square()) < 1e-12


def test_batched_drift_and_diffusion_equal_their_formulas():
    formula = fp.SDE(lambda x: (x[1], -x[0] * x[1]), lambda x: ((2 + x[0], 0.3), (0.3, 1 + x[1] / 2)))

    def diffusion(x):
        out = np.full((len(x), 2, 2), 0.3)
        out[:, 0, 0], out[:, 1, 1] = 2 + x[:, 0], 1 + x[:, 1] / 2
        return out

    tabulated = fp.SDE(fp.batched(lambda x: np.column_stack([x[:, 1], -x[:, 0] * x[:, 1]])), fp.batched(diffusion))
    assert _difference(formula, tabulated, _square()) < 1e-12


def test_batched_gradients_equal_samples():
    """Samples with a common Hessian have a constant covariance, which piecewise linear tensors represent."""
    centres = np.array([(0.5, 0.1), (-0.3, 0.4), (0.2, -0.9)])
    samples = [lambda x, a=a: (x[0] - a[0]) ** 2 / 2 + (x[1] - a[1]) ** 2 for a in centres]

    def gradients(x):
        return (x[:, None, :] - centres) * np.array([1.0, 2.0])

    loss = lambda x: sum(f(x) for f in samples) / 3  # noqa: E731
    symbolic = fp.SGD(None, fp.PerSample(samples), 0.1)
    tabulated = fp.SGD(loss, fp.PerSample(fp.batched(gradients)), 0.1)
    assert _difference(symbolic, tabulated, _square()) < 1e-12


def test_tabulated_covariance_of_rank_one_stays_semidefinite():
    """Interpolated between nodes where it has rank one, and converging to the symbolic one."""
    losses = [lambda x: ufl.cos(2 * x[0]) + x[1] ** 2, lambda x: x[0] * x[1]]

    def gradients(x):
        g = np.empty((len(x), 2, 2))
        g[:, 0] = np.column_stack([-2 * np.sin(2 * x[:, 0]), 2 * x[:, 1]])
        g[:, 1] = x[:, ::-1]
        return g

    loss = lambda x: sum(f(x) for f in losses) / 2  # noqa: E731
    error = []
    for n in (4, 8):
        pair = [
            _values(fp.SGD(loss, noise, 1.0), POINTS, box(2, n))[0]
            for noise in (fp.PerSample(losses), fp.PerSample(fp.batched(gradients)))
        ]
        assert np.linalg.eigvalsh(pair[1]).min() > -1e-15
        error.append(np.abs(pair[0] - pair[1]).max())
    assert error[1] < error[0] / 2


def test_functions_as_sources():
    mesh = _square().mesh
    loss = fem.Function(fem.functionspace(mesh, ("Lagrange", 2)))
    loss.interpolate(lambda x: x[0] ** 2 / 2 + x[0] * x[1])
    level = fem.Function(fem.functionspace(mesh, ("Lagrange", 1)))
    level.interpolate(lambda x: 2 + x[0])
    by_function = fp.SGD(loss, fp.Isotropic(level), 0.1)
    by_formula = fp.SGD(lambda x: x[0] ** 2 / 2 + x[0] * x[1], fp.Isotropic(lambda x: 2 + x[0]), 0.1)
    assert _difference(by_function, by_formula, _square()) < 1e-12
    running = fem.Function(fem.functionspace(mesh, ("Lagrange", 1)))
    running.interpolate(lambda x: 1 + x[0])
    with fp.Generator(by_formula, _square(), ["left"], degree=2) as gen:
        found = fp.feynman_kac(gen, running=running, exit=level).at(POINTS)
        expected = fp.feynman_kac(gen, running=lambda x: 1 + x[0], exit=lambda x: 2 + x[0]).at(POINTS)
    check(found, expected, 1e-12)


def test_numbers_and_arrays_as_sources():
    A = np.array([[1.0, 0.2], [0.2, 0.5]])
    nested = fp.SDE((0.1, 0), A.tolist())
    assert _difference(nested, fp.SDE(np.array([0.1, 0.0]), A), _square()) < 1e-15
    assert _difference(nested, fp.SDE(lambda x: ufl.as_vector([0.1, 0]), lambda x: A.tolist()), _square()) < 1e-15
    assert _difference(fp.SDE(0.1, 0.5), fp.SDE((0.1,), ((0.5,),)), _line()) < 1e-15


def test_kinetic_sources_see_positions_only():
    space = fp.MomentumSGD(lambda x: x[0] ** 2, fp.Isotropic(1.0), 0.1, 0.9).space(_square().mesh, 2)
    assert isinstance(space, Space)
    assert space.x.ufl_shape == (1,)
