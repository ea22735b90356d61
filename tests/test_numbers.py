"""Numbers of user formulas by name: replaced without compiling, seen by paths, and owned by the generator."""

from mpi4py import MPI

import cffi
import numpy as np
import pytest
import reference
import ufl
from dolfinx import fem
from tools import BOX, within

import fpsolver as fp
from fpsolver.diagnostics import eyring_kramers

LINE = fp.Domain.interval(-1, 1, 8)


def pulled(F=1.0, s=0.5):
    """dX = (F − sin X) dt + √(2s) dW."""
    drift = lambda x, F: (F - ufl.sin(x[0]),)  # noqa: E731
    return fp.SDE(drift, lambda x, s2: s2 * (1 + x[0] ** 2), parameters={"F": F, "s2": s})


def exit_time(F, s):
    return reference.exit_time_1d(0.2, -1, 1, lambda x: F - np.sin(x), lambda x: s * (1 + x * x))


@pytest.mark.parallel
def test_exit_times_by_replace(monkeypatch):
    """Against quadrature, for several numbers from one compilation."""
    gen = fp.Generator(pulled(), LINE, BOX[1], degree=6)
    assert gen.process.numbers() == {"F": 1.0, "s2": 0.5}
    fp.mean_exit_time(gen).at((0.2,))
    compiled = []
    original = cffi.FFI.compile
    monkeypatch.setattr(cffi.FFI, "compile", lambda *a, **k: compiled.append(a) or original(*a, **k))
    for F, s in ((1.0, 0.5), (2.0, 0.5), (-0.5, 0.2)):
        other = gen.replace(F=F, s2=s)
        assert other.process.parameters == {"F": F, "s2": s}
        tau = fp.mean_exit_time(other).at((0.2,))[0]
        assert tau == pytest.approx(exit_time(F, s), rel=1e-6) and not compiled
    assert fp.mean_exit_time(gen).at((0.2,))[0] == pytest.approx(exit_time(1.0, 0.5), rel=1e-6)


@pytest.mark.parametrize("backend", ["numpy", "c"])
def test_paths_see_the_numbers(backend):
    """The same paths as with the numbers written into the formulas."""
    options = {"absorbing": BOX[1], "paths": 200, "step": 0.02, "seed": 3, "backend": backend}
    named = fp.simulate(pulled(0.7, 0.3), LINE, 0.2, **options)
    plain = fp.SDE(lambda x: (0.7 - ufl.sin(x[0]),), lambda x: 0.3 * (1 + x[0] ** 2))
    np.testing.assert_allclose(named.exit_times, fp.simulate(plain, LINE, 0.2, **options).exit_times, rtol=1e-12)


@pytest.mark.parametrize("momentum", [False, True])
def test_losses_and_noises_of_sgd(momentum):
    """Numbers in losses of samples and in a covariance; the learning rate is one of them."""
    losses = [lambda x, c: c * x[0] ** 2 / 2, lambda x, c: (x[0] - c) ** 2]
    plain = [lambda x, c=c, k=k: k(x, c) for k in losses for c in (0.8,)]
    extra = fp.Covariance(lambda x, c, learning_rate: c * learning_rate)
    make, rest = (fp.MomentumSGD, (0.1, 0.5)) if momentum else (fp.SGD, (0.1,))
    named = make(None, fp.PerSample(losses) + extra, *rest, parameters={"c": 0.8})
    other = make(None, fp.PerSample(plain) + fp.Covariance(0.08 * np.eye(1)), *rest)
    assert named.numbers()["c"] == 0.8 and named.with_parameters(c=1.0).parameters == {"c": 1.0}
    start = (0.4, 0.1) if momentum else (0.4,)
    for method in ("sgd", "sde"):
        options = {"times": [0.5], "paths": 50, "method": method, **({} if method == "sgd" else {"step": 0.05})}
        a, b = (fp.simulate(p, None, start, **options).positions for p in (named, other))
        np.testing.assert_allclose(a, b, rtol=1e-10)
    if not momentum:
        taus = [fp.mean_exit_time(fp.Generator(p, LINE, BOX[1])).at((0.2,))[0] for p in (named, other)]
        assert taus[0] == pytest.approx(taus[1], rel=1e-10)
        halved = fp.Generator(named, LINE, BOX[1]).replace(c=0.4)
        again = fp.Generator(named.with_parameters(c=0.4), LINE, BOX[1])
        assert fp.mean_exit_time(halved).at((0.2,))[0] == pytest.approx(fp.mean_exit_time(again).at((0.2,))[0])


def test_a_langevin_process_with_numbers():
    """Gibbs' law with a loss that has a number; Eyring and Kramers see it as well."""
    process = fp.Langevin(lambda x, k: k * (x[0] ** 2 - 1) ** 2 / 4, 0.1, parameters={"k": 1.0})
    domain = fp.Domain.interval(-2, 2, 60)
    p = fp.stationary(fp.Generator(process, domain).replace(k=2.0))
    weight = lambda x: np.exp(-2 * (x**2 - 1) ** 2 / 4 / 0.1)  # noqa: E731
    grid = np.linspace(-2, 2, 4001)
    Z = np.trapezoid(weight(grid), grid)
    x = np.array([0.0, 0.9, 1.3])
    np.testing.assert_allclose(p.at(x[:, None]), weight(x) / Z, rtol=1e-4)
    found = eyring_kramers(process.with_parameters(k=2.0), domain, start=-1.0)
    plain = eyring_kramers(fp.Langevin(lambda x: (x[0] ** 2 - 1) ** 2 / 2, 0.1), domain, start=-1.0)
    assert found.time == pytest.approx(plain.time, rel=1e-8)


@pytest.mark.parallel
def test_a_number_on_a_schedule():
    """A trap that moves: E X_t = a (sin ωt − ω cos ωt + ω e^{−t})/(1 + ω²) = 0.49547… at t = 1."""
    a, w = 1.0, 2.0
    process = fp.SDE(lambda x, F: (F - x[0],), 0.1, parameters={"F": 0.0})
    gen = fp.Generator(process, fp.Domain.interval(-4, 4, 32))
    p = fp.evolve(gen, fp.gaussian(0.0, 0.3), [1.0], schedule={"F": lambda t: a * np.sin(w * t)})[0].function
    form = fem.form(p * ufl.SpatialCoordinate(gen.domain.mesh)[0] * ufl.dx)
    mean = gen.domain.comm.allreduce(fem.assemble_scalar(form), op=MPI.SUM)
    exact = a * (np.sin(w) - w * np.cos(w) + w * np.exp(-1)) / (1 + w * w)
    assert mean == pytest.approx(exact, rel=1e-4)


@pytest.mark.parallel
@pytest.mark.parametrize("kind", ["constant", "vector", "function", "function in a formula"])
def test_what_others_change_later_does_not_change_answers(kind):
    """A generator has copies of constants and Functions in formulas: its answers and error bars stay."""
    mesh = LINE.mesh
    c, v = fem.Constant(mesh, 0.5), fem.Constant(mesh, (0.5, 1.0))
    f = fem.Function(fem.functionspace(mesh, ("Lagrange", 1)))
    f.x.array[:] = 0.5
    diffusion = {
        "constant": lambda x: c * (1 + x[0] ** 2),
        "vector": lambda x: v[0] * (v[1] + x[0] ** 2),
        "function": f,
        "function in a formula": lambda x: f * (1 + x[0] ** 2),
    }[kind]
    drift = lambda x: (-x[0],)  # noqa: E731
    gen = fp.Generator(fp.SDE(drift, diffusion), LINE, BOX[1], degree=5)
    c.value, f.x.array[:] = 5.0, 5.0
    v.value[:] = 5.0
    D = (lambda x: 0.5) if kind == "function" else lambda x: 0.5 * (1 + x * x)
    tau = fp.mean_exit_time(gen, start=0.2)
    exact = reference.exit_time_1d(0.2, -1, 1, lambda x: -x, D)
    assert tau.at((0.2,))[0] == pytest.approx(exact, rel=1e-6) and float(tau.error[0]) < 1e-4
    if "function" not in kind:
        e = fp.simulate(fp.SDE(drift, diffusion), LINE, 0.2, absorbing=BOX[1], paths=500, step=0.05)
        assert e.mean_exit_time().value < exact / 3  # now, with what they are now


def test_paths_with_a_constant():
    c = fem.Constant(LINE.mesh, 0.5)
    e = fp.simulate(fp.SDE(lambda x: (0.0,), lambda x: c), LINE, 0.0, absorbing=BOX[1], step=0.02, paths=4000)
    within(e.mean_exit_time(), 1.0)


@pytest.mark.parallel
def test_numbers_that_do_not_fit():
    for match, make in (
        ("asks for G besides x; the process has the numbers F", lambda: pulled_with(lambda x, G: (G - x[0],))),
        ("F in parameters is nan", lambda: fp.SDE(0.0, 1.0, parameters={"F": np.nan})),
        ("in parameters is 'drift'", lambda: fp.SDE(0.0, 1.0, parameters={"drift": 1.0})),
        ("in parameters is '2F'", lambda: fp.Langevin(lambda x: x[0] ** 2, 0.1, parameters={"2F": 1.0})),
        ("in parameters is 's'", lambda: fp.SGD(lambda x: x[0], fp.Isotropic(1.0), 0.1, parameters={"s": 1.0})),
        ("no numeric parameter 'G'", lambda: fp.Generator(pulled(), LINE).replace(G=1.0)),
    ):
        with pytest.raises(ValueError, match=match):
            make()
    with pytest.raises(TypeError, match=r"parameters is \["):
        fp.SDE(0.0, 1.0, parameters=["F"])
    given = {"F": 1.0}
    process = fp.SDE(lambda x, F: (F,), 1.0, parameters=given)
    given["F"] = 3.0
    assert process.parameters == {"F": 1.0}


def pulled_with(drift):
    return fp.Generator(fp.SDE(drift, 1.0, parameters={"F": 1.0}), LINE)


def test_default_values_stay_what_they_are():
    """The usual way to bind a sample's data is no number, unless the process says so."""
    process = fp.SDE(lambda x, a=2.0: (-a * x[0],), 0.5)
    named = fp.SDE(lambda x, a=2.0: (-a * x[0],), 0.5, parameters={"a": 3.0})
    taus = [fp.mean_exit_time(fp.Generator(p, LINE, BOX[1], degree=6)).at((0.2,))[0] for p in (process, named)]
    exact = [reference.exit_time_1d(0.2, -1, 1, lambda x, a=a: -a * x, lambda x: 0.5) for a in (2.0, 3.0)]
    np.testing.assert_allclose(taus, exact, rtol=1e-6)


def test_added_noise_keeps_loss_and_temperature():
    """No added noise, and noise that is a higher temperature, are told by no diagnostic."""
    dg, domain, f = fp.diagnostics, fp.Domain.interval(-2, 2, 20), fp.landscapes.double_well
    for delta in (0.0, 0.05):
        plain, noisy = fp.Langevin(f, 0.1 + delta), fp.Noisy(fp.Langevin(f, 0.1), delta)
        assert noisy.loss is f and noisy.temperature == plain.temperature
        a, b = (fp.Generator(p, domain, ["right"]) for p in (plain, noisy))
        assert [c.point for c in dg.critical_points(noisy, domain)] == [
            c.point for c in dg.critical_points(plain, domain)
        ]
        found = [dg.eyring_kramers(p, domain, start=-1.0).time for p in (plain, noisy)]
        assert found[0] == pytest.approx(found[1], rel=1e-12)
        indicator = [dg.regime_indicator(gen).function.x.array for gen in (a, b)]
        np.testing.assert_allclose(*indicator, rtol=1e-10)
        bounds = [next(x for x in dg.exit_bounds(g, start=-1.0).bounds if x.name == "arrhenius") for g in (a, b)]
        assert bounds[0].value == pytest.approx(bounds[1].value, rel=1e-9)
    sgd = fp.SGD(f, fp.Isotropic(1.0), 0.1, 2)  # D = η s/(2B) + δ
    noisy = fp.Noisy(sgd, 0.05)
    assert noisy.isotropic_diffusion() == pytest.approx(0.075) and noisy.loss is f
