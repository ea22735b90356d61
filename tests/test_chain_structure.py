"""What any chain keeps to rounding, on any number of ranks: constants, mass, dualities; and what it refuses."""

from petsc4py import PETSc

import numpy as np
import pytest
import ufl

import fpsolver as fp

WELL = [lambda x: (x[0] ** 2 - 1) ** 2 / 4 + x[0], lambda x: (x[0] ** 2 - 1) ** 2 / 4 - x[0]]


def plane(x, sign):
    return (x[0] ** 2 - 1) ** 2 / 4 + x[1] ** 2 / 2 + sign * (x[0] + 0.3 * x[0] * x[1])


PLANE = [lambda x: plane(x, 1.0), lambda x: plane(x, -1.0), lambda x: plane(x, -0.6)]


def interval():
    return fp.Domain.interval(-1.8, 0.9, 24), ["right"]


def square():
    return fp.Domain.rectangle((-1.8, -1.2), (0.9, 1.2), (8, 7)), ["right", "top"]


def rotation(x, b):
    c, s = np.cos(0.5 + b), np.sin(0.5 + b)
    return 0.9 * np.column_stack((c * x[:, 0] - s * x[:, 1] + 0.3 * b, s * x[:, 0] + c * x[:, 1]))


def in_a_cube():
    losses = [lambda x, i=i: ufl.inner(x, x) / 2 + 2 * x[i] for i in range(3)]
    domain = fp.Domain.box((-1, -1, -1), (1, 1, 1), (2, 2, 2))
    return fp.Chain(fp.SGD(None, fp.PerSample(losses), 0.4), domain, ["left", "top"], degree=1)


MAKERS = {
    "samples": lambda: fp.Chain(fp.SGD(None, fp.PerSample(WELL), 0.3), *interval()),
    "batches": lambda: fp.Chain(fp.SGD(None, fp.PerSample(PLANE), 0.3, batch_size=2), *square()),
    "without replacement": lambda: fp.Chain(
        fp.SGD(None, fp.PerSample(PLANE, replacement=False), 0.3, batch_size=2), *square()
    ),
    "Gaussian noise": lambda: fp.Chain(fp.SGD(lambda x: (x[0] ** 2 - 1) ** 2 / 4, fp.Isotropic(0.5), 0.3), *interval()),
    "drawn noise": lambda: fp.Chain(fp.SGD(PLANE[0], fp.Isotropic(0.5), 0.3), *square(), batches=16),
    "labels": lambda: fp.Chain(
        fp.SGD(None, fp.PerSample(WELL) + fp.LabelNoise([lambda x: ufl.sin(x[0]), lambda x: x[0]], 0.3), 0.3),
        *interval(), batches=16,
    ),
    "momentum": lambda: fp.Chain(fp.MomentumSGD(None, fp.PerSample(WELL), 0.1, 0.7), *square()),
    "a step": lambda: fp.Chain.of_step(rotation, [0.0, 1.0, 2.5], *square(), weights=[0.5, 0.3, 0.2]),
    "a cube": in_a_cube,
}  # fmt: skip


VALUES = {
    "samples": 13.5052041009015,
    "batches": 5.38723794771097,
    "without replacement": 3.33461821935527,
    "Gaussian noise": 45.900756422215,
    "drawn noise": 126.267388590647,
    "labels": 11.5627248053136,
    "momentum": 14.9150530447938,
    "a step": 102.92972077693,
    "a cube": 3.24263660872072,
}  # on one rank


@pytest.fixture(scope="module", params=MAKERS)
def chain(request):
    return MAKERS[request.param]()


def largest(vector):
    return vector.norm(PETSc.NormType.INFINITY)


@pytest.mark.parallel
def test_constants_mass_and_duality(chain):
    image = chain.M.createVecLeft()
    chain.P.mult(chain.one, image)
    for e in chain.exits.values():
        image.axpy(1.0, e)
    image.axpy(-1.0, chain.integrals)
    assert largest(image) < 1e-12 * largest(chain.integrals)
    d = chain.domain.dim
    start = fp.gaussian((0.1,) * d, 0.25)
    unit, k = chain.time_per_step, 4
    flow = fp.evolve(chain, start, [unit, k * unit])
    assert np.abs(flow.mass + flow.outflux - 1.0).max() < 1e-12
    back = fp.backward(chain, lambda x: 1 + x[0], [k * unit])
    first = fp.backward(chain, lambda x: 1 + x[0], [0.0])
    work = chain.M.createVecLeft()

    def pairing(u, p):
        chain.M.mult(chain.vector(p), work)
        return work.dot(chain.vector(u))

    later = pairing(first[0].function, flow[1].raw)
    now = pairing(back[0].function, fp.evolve(chain, start, [0.0])[0].raw)
    assert abs(later - now) < 1e-12 * abs(now)


@pytest.mark.parallel
def test_exit_times_are_occupation(chain):
    start = fp.gaussian((0.1,) * chain.domain.dim, 0.25)
    tau = fp.mean_exit_time(chain, start=start)
    law = fp.exit_distribution(chain, start)
    assert sum(law.probability.values()) == pytest.approx(1.0, rel=1e-9)
    density = fp.evolve(chain, start, [0.0])[0].raw
    work = chain.M.createVecLeft()
    chain.M.mult(chain.vector(density), work)
    assert work.dot(chain.vector(tau.function)) == pytest.approx(law.mean_time, rel=1e-9)


@pytest.mark.parallel
def test_the_same_on_any_number_of_ranks(chain, request):
    """Points depend on the cells, not on who owns them."""
    start = [0.1] * chain.domain.dim
    name = request.node.callspec.params["chain"]
    assert fp.mean_exit_time(chain).at([start])[0] == pytest.approx(VALUES[name], rel=1e-9)


@pytest.mark.parallel
def test_bad_input():
    domain = fp.Domain.interval(0, 1, 8)
    with pytest.raises(ValueError, match="weights of the batches sum"):
        fp.Chain.of_step(lambda x, b: x + b, [0.0, 0.1], domain, weights=[0.5, 0.6])
    with pytest.raises(ValueError, match="shape"):
        fp.Chain.of_step(lambda x, b: x[:1], [0.0], domain)
    with pytest.raises(ValueError, match="not finite"):
        fp.Chain.of_step(lambda x, b: x / 0.0 * 0.0, [0.0], domain)
    with pytest.raises(ValueError, match="beyond a reflecting wall"):
        fp.Chain.of_step(lambda x, b: x + 5.0, [0.0], domain)
    with pytest.raises(ValueError, match="no boundary part is called"):
        fp.Chain.of_step(lambda x, b: x, [0.0], domain, ["nowhere"])
    with pytest.raises(ValueError, match="no batch"):
        fp.Chain.of_step(lambda x, b: x, [], domain)
    with pytest.raises(TypeError, match="an algorithm was expected"):
        fp.Chain(fp.Langevin(lambda x: x[0] ** 2, 1.0), domain)
    with pytest.raises(ValueError, match="integer"):
        fp.Chain(fp.SGD(None, fp.PerSample(WELL), 0.1, batch_size=1.5), domain)


@pytest.mark.parallel
def test_what_never_leaves_is_refused():
    stay = fp.Chain.of_step(lambda x, b: 0.5 * x + 0.2 * b, [0.0, 1.0], fp.Domain.interval(-1, 1, 12), ["right"])
    with pytest.raises(fp.NotConverged, match="did not converge"):
        fp.mean_exit_time(stay)
    with pytest.raises(ValueError, match="nothing absorbs"):
        fp.mean_exit_time(fp.Chain.of_step(lambda x, b: 0.5 * x, [0], fp.Domain.interval(-1, 1, 4)))
    with pytest.raises(ValueError, match="mass leaves"):
        fp.stationary(stay)
    apart = fp.Chain.of_step(lambda x, b: np.sign(x) * (0.3 + 0.5 * np.abs(x)), [0], fp.Domain.interval(-1, 1, 12))
    with pytest.raises(ValueError, match="not unique"):
        fp.stationary(apart)


def test_schedules():
    process = fp.SGD(None, fp.PerSample(WELL), 0.3)
    domain, absorbing = interval()
    chain = fp.Chain(process, domain, absorbing)
    flow = fp.evolve(chain, fp.dirac(-1.0), [0.6, 1.5], schedule={"learning_rate": [(0, 0.3), (0.6, 0.1)]})
    assert flow.times == pytest.approx([0.6, 1.5])
    paths = fp.simulate(process, domain, (-1.0,), absorbing=absorbing, method="sgd", times=[0.6], paths=40_000)
    mean = paths.expectation(lambda x: x[0])[0]
    first = fp.backward(chain, lambda x: x[0], [0.6])[0].at([[-1.0]])[0]
    assert abs(mean.value - first) < 2 * mean.error + 1e-3
    with pytest.raises(ValueError, match="function of time"):
        fp.evolve(chain, fp.dirac(-1.0), [1.0], schedule={"learning_rate": lambda t: 0.1 + t})
