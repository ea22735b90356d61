"""Evolution by edge averages and backward Euler: positivity, mass and entropy at every step; orders; refusals."""

from mpi4py import MPI

import numpy as np
import pytest
import ufl
from dolfinx import fem, la
from tools import box, l2_error

import fpsolver as fp


def _swirl(x):
    return (-x[0] + 3 * x[1] + x[0] * x[1], -x[1] - 3 * x[0])


PROCESSES = {
    "line": (1, fp.Langevin(lambda x: 6 * (x[0] ** 2 - 0.3) ** 2, 0.2)),
    "well": (2, fp.Langevin(lambda x: 3 * (x[0] ** 2 - 0.4) ** 2 + x[1] ** 2, 0.1)),
    "steep": (2, fp.Langevin(lambda x: 1.2 * x[0] ** 2 + 1.5 * x[1] ** 2, 0.05)),  # cell Péclet numbers up to 8
    "swirl": (2, fp.SDE(_swirl, 0.1)),  # not reversible
    "sgd": (2, fp.SGD(lambda x: ufl.dot(x, x), fp.Isotropic(lambda x: 0.2 + ufl.dot(x, x)), 0.3)),  # D(x) I
    "solid": (3, fp.Langevin(lambda x: ufl.dot(x, x), 0.3)),
}
PHI = {
    "kl": lambda r: r * np.log(np.maximum(r, 1e-300)),
    "chi2": lambda r: (r - 1) ** 2,
    "l1": lambda r: abs(r - 1),
    "root": lambda r: -np.sqrt(r),
    "fourth": lambda r: r**4,
    "kink": lambda r: np.maximum(r - 1.7, 0),
}


def _generator(name, n=None):
    dim, process = PROCESSES[name]
    return fp.Generator(process, box(dim, n or {1: 24, 2: 8, 3: 4}[dim]), scheme="dg", degree=1)


def _weights(V):
    """∫φ_i at the nodes of this rank."""
    weights = fem.Function(V)
    fem.assemble_vector(weights.x.array, fem.form(ufl.TestFunction(V) * ufl.dx(domain=V.mesh)))
    weights.x.scatter_reverse(la.InsertMode.add)
    return weights.x.array[: V.dofmap.index_map.size_local]


def _sum(V, values):
    return V.mesh.comm.allreduce(float(values.sum()), op=MPI.SUM)


@pytest.mark.parallel
@pytest.mark.parametrize("steps", [3, 40])
@pytest.mark.parametrize("name", PROCESSES)
def test_every_step_is_positive_conservative_and_entropic(name, steps):
    """From a point mass, for six convex functions, whether the steps resolve anything or not."""
    gen = _generator(name)
    start = fp.dirac((0.31, -0.22, 0.17)[: gen.domain.dim])
    flow = fp.evolve_monotone(gen, start, np.linspace(0, 0.5, steps + 1), steps=steps)
    assert flow.stats["steps"] == steps
    assert flow.stats["rounding"] > -1e-14
    assert flow.minimum.min() >= 0
    assert abs(flow.mass - 1).max() < 1e-13
    pi = fp.evolve_monotone(gen, start, [1e9], steps=4)[0].function
    m = _weights(pi.function_space)
    limit = pi.x.array[: len(m)]
    for phi in PHI.values():
        H = np.array([_sum(pi.function_space, m * limit * phi(p.function.x.array[: len(m)] / limit)) for p in flow])
        assert (np.diff(H) <= 1e-12 * abs(H[:-1])).all()
        assert H[-1] < H[0]


@pytest.mark.parallel
@pytest.mark.parametrize("name", ["line", "well", "steep", "solid"])
def test_gibbs_law_is_exact_at_the_nodes(name):
    gen = _generator(name)
    dim, process = PROCESSES[name]
    p = fp.evolve_monotone(gen, fp.dirac((0.1,) * dim), [1e10], steps=5)[0].function
    U = fem.Function(p.function_space)
    x = [p.function_space.tabulate_dof_coordinates().T[i] for i in range(dim)]
    losses = {
        "line": lambda x: 6 * (x[0] ** 2 - 0.3) ** 2,
        "well": lambda x: 3 * (x[0] ** 2 - 0.4) ** 2 + x[1] ** 2,
        "steep": lambda x: 1.2 * x[0] ** 2 + 1.5 * x[1] ** 2,
        "solid": lambda x: sum(y**2 for y in x),
    }
    U.x.array[:] = losses[name](x) / process.temperature
    weights = _weights(p.function_space)
    gibbs = np.exp(-U.x.array[: len(weights)])
    gibbs /= _sum(p.function_space, gibbs * weights)
    assert abs(p.x.array[: len(weights)] / gibbs - 1).max(initial=0) < 1e-8


def test_first_order_in_time_second_in_space():
    """Ornstein-Uhlenbeck in one dimension against N(e^{-t}, ...)."""
    process = fp.SDE(lambda x: -x[0], 0.5)
    start, t = fp.gaussian(1.0, 0.4), 0.5
    variance = 0.16 * np.exp(-2 * t) + 0.5 * (1 - np.exp(-2 * t))

    def exact(x):
        return np.exp(-((x[0] - np.exp(-t)) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)

    def p(n, steps):
        gen = fp.Generator(process, fp.Domain.interval(-4, 5, n))
        return fp.evolve_monotone(gen, start, [t], steps=steps)[0]

    joint = [l2_error(p(n, n * n // 40).function, exact) for n in (40, 80, 160)]
    assert np.log2(joint[0] / joint[1]) == pytest.approx(2, abs=0.1)
    assert np.log2(joint[1] / joint[2]) == pytest.approx(2, abs=0.1)
    x = np.linspace(-1, 2, 13)
    coarse, middle, fine = (p(100, steps).at(x) for steps in (20, 40, 80))
    order = np.log2(abs(coarse - middle).max() / abs(middle - fine).max())
    assert order == pytest.approx(1, abs=0.1)


@pytest.mark.parallel
def test_converges_to_the_accurate_evolution():
    """A drift that is not a gradient: second order when the step goes with the square of the mesh size."""
    process, start = PROCESSES["swirl"][1], fp.gaussian((0.3, 0), 0.3)
    points = np.random.default_rng(3).uniform(-0.9, 0.9, (50, 2))
    exact = fp.evolve(fp.Generator(process, box(2, 8)), start, [0.2])[0].at(points)
    errors = []
    for n, steps in ((16, 80), (32, 320)):
        gen = fp.Generator(process, box(2, n), scheme="dg", degree=1)
        errors.append(abs(fp.evolve_monotone(gen, start, [0.2], steps=steps)[0].at(points) - exact).max())
    assert errors[1] < 0.03 * exact.max()
    assert errors[0] / errors[1] > 3


@pytest.mark.parallel
def test_times_between_steps():
    """Output times are hit exactly; equal step lengths share one factorisation."""
    gen = _generator("line")
    flow = fp.evolve_monotone(gen, fp.gaussian(0.3, 0.2), [0.1, 0.1, 0.35, 1.0], steps=10)
    assert list(flow.times) == [0.1, 0.1, 0.35, 1.0]
    assert flow.stats["steps"] == 1 + 3 + 7
    assert fp.evolve_monotone(gen, fp.gaussian(0.3, 0.2), [0.5, 1.0], steps=10).stats["factorisations"] == 1


# ---------------------------------------------------------------- refusals


@pytest.mark.parallel
@pytest.mark.parametrize(
    ("process", "pattern"),
    [
        (fp.SDE((0, 0), ((1, 0), (0, 2))), "depends on direction.*Motzkin"),
        (fp.SDE(lambda x: (-x[0], -x[1]), lambda x: x[0] ** 2), "degenerates"),
    ],
)
def test_noise_that_no_monotone_scheme_serves(process, pattern):
    gen = fp.Generator(process, box(2, 4), scheme="dg", degree=1)
    with pytest.raises(ValueError, match=pattern):
        fp.evolve_monotone(gen, fp.gaussian((0, 0), 0.3), [1.0])


@pytest.mark.parallel
def test_obtuse_triangles():
    domain = fp.Domain.rectangle((-1, -1), (1, 1), (6, 6), diagonal="left")
    domain = domain.mapped(lambda x: (x[0] - 0.8 * x[1], x[1]))
    gen = fp.Generator(PROCESSES["well"][1], domain)
    with pytest.raises(ValueError, match=r"not Delaunay: .* obtuse"):
        fp.evolve_monotone(gen, fp.gaussian((0, 0), 0.3), [1.0])


def test_bad_input():
    gen = _generator("line")
    start = fp.gaussian(0.0, 0.3)
    with pytest.raises(ValueError, match="steps is 0"):
        fp.evolve_monotone(gen, start, [1.0], steps=0)
    with pytest.raises(ValueError, match="negative"):
        fp.evolve_monotone(gen, lambda x: x[0], [1.0])
    with pytest.raises(ValueError, match="right absorbs"):
        fp.evolve_monotone(fp.Generator(PROCESSES["line"][1], box(1, 4), ["right"]), start, [1.0])
    with pytest.raises(ValueError, match="sorted"):
        fp.evolve_monotone(gen, start, [1.0, 0.5])
