"""Monte Carlo: steps per second against plain loops, and the price of an exit time against the PDE's.

First, a sine neuron on 20 samples: steps of SGD and of its diffusion by ``fp.simulate`` (numpy, and
compiled C), by a loop over paths with numpy for the gradient of each, and, for SGD, by code for this very network:
numpy vectorised over all paths, and a loop compiled by numba where it is installed (the package does not use it).
Second, the mean exit time of the 2D double well to 1 %: the PDE on the coarsest mesh that gets there, and paths until
the 95 % interval is that narrow (time extrapolated from a smaller ensemble, whose interval shrinks like one over the
root of the number of paths).

    python3 benchmarks/ensemble.py
"""

import time

import numpy as np
import ufl

import fpsolver as fp

N, ETA, PATHS, STEPS = 20, 0.3, 8192, 1000


def neuron():
    rng = np.random.default_rng(11)
    a, y = 1.5 * rng.normal(size=N), rng.normal(size=N)
    losses = [
        lambda w, a=float(p), y=float(q): (ufl.sin(a * w[0] + w[1]) - y) ** 2 / 2 + 0.05 * (w[0] ** 2 + w[1] ** 2)
        for p, q in zip(a, y, strict=True)
    ]
    return a, y, fp.SGD(None, fp.PerSample(losses), ETA)


def by_loop(a, y, paths=4):
    """Steps per second of SGD, path after path."""
    rng, begin = np.random.default_rng(1), time.perf_counter()
    for _ in range(paths):
        w = np.array([-1.1, -1.9])
        for _ in range(STEPS):
            i = rng.integers(N)
            z = a[i] * w[0] + w[1]
            w = w - ETA * ((np.sin(z) - y[i]) * np.cos(z) * np.array([a[i], 1.0]) + 0.1 * w)
    return paths * STEPS / (time.perf_counter() - begin)


def diffusion_by_loop(a, y, paths=2, substeps=4):
    """Steps per second of Euler and Maruyama, path after path."""
    rng, begin, dt = np.random.default_rng(1), time.perf_counter(), ETA / substeps
    for _ in range(paths):
        w = np.array([-1.1, -1.9])
        for _ in range(STEPS):
            z = a * w[0] + w[1]
            g = (np.sin(z) - y) * np.cos(z) * np.stack((a, np.ones(N))) + 0.1 * w[:, None]
            mean = g.mean(axis=1)
            w = w - dt * mean + np.sqrt(dt * ETA / N) * (g - mean[:, None]) @ rng.normal(size=N)
    return paths * STEPS / (time.perf_counter() - begin)


def by_hand(a, y):
    """Steps per second of SGD, vectorised for this network."""
    rng, begin = np.random.default_rng(1), time.perf_counter()
    w = np.tile(np.array([[-1.1], [-1.9]]), PATHS)
    for _ in range(STEPS):
        i = rng.integers(N, size=PATHS)
        ai, yi = a[i], y[i]
        z = ai * w[0] + w[1]
        slope = (np.sin(z) - yi) * np.cos(z)
        w = w - ETA * (np.stack((slope * ai, slope)) + 0.1 * w)
    return PATHS * STEPS / (time.perf_counter() - begin)


def by_numba(a, y):
    """Steps per second of SGD, compiled for this network: what a backend in numba could reach at best."""
    import numba

    @numba.njit
    def run(rng, a, y, w, steps):
        for p in range(w.shape[1]):
            u, v = w[0, p], w[1, p]
            for _ in range(steps):
                i = rng.integers(0, len(a))
                z = a[i] * u + v
                slope = (np.sin(z) - y[i]) * np.cos(z)
                u, v = u - ETA * (slope * a[i] + 0.1 * u), v - ETA * (slope + 0.1 * v)
            w[0, p], w[1, p] = u, v

    rng, w = np.random.default_rng(1), np.tile(np.array([[-1.1], [-1.9]]), PATHS)
    run(rng, a, y, w, 1)  # compiles
    begin = time.perf_counter()
    run(rng, a, y, w, STEPS)
    return PATHS * STEPS / (time.perf_counter() - begin)


def by_package(process, method, backend):
    domain = fp.Domain.rectangle((-4, -5), (4, 3), (4, 4))
    options = {"paths": PATHS, "method": method, "backend": backend}
    length, steps = (ETA, STEPS) if method == "sgd" else (ETA / 4, STEPS // 5)
    for count in (1, steps):  # the first compiles
        e = fp.simulate(process, domain, (-1.1, -1.9), times=[count * length], **options)
    return e.stats["path_steps"] / e.stats["seconds"]


def speed():
    a, y, process = neuron()
    rows = [("SGD, loop over paths", by_loop(a, y)), ("SGD, by hand for this network", by_hand(a, y))]
    backends = ["numpy", "c"]
    try:
        rows.append(("SGD, by hand with numba", by_numba(a, y)))
    except ImportError:
        print("numba is not installed")
    rows += [(f"SGD, fp.simulate, {b}", by_package(process, "sgd", b)) for b in backends]
    rows += [("SDE, loop over paths", diffusion_by_loop(a, y))]
    rows += [(f"SDE, fp.simulate, {b}", by_package(process, "sde", b)) for b in backends]
    for name, rate in rows:
        base = rows[0][1] if name.startswith("SGD") else next(r for n, r in rows if n == "SDE, loop over paths")
        print(f"{name:32} {rate / 1e6:8.3f} million steps/s {rate / base:8.1f} times the loop")


def one_percent():
    process, start = fp.SDE(lambda x: (x[0] - x[0] ** 3, -x[1]), 0.1), (-1.0, 0.0)

    def pde(n, degree):
        begin = time.perf_counter()
        domain = fp.Domain.rectangle((-2.5, -2.0), (0.0, 2.0), (n, n))
        with fp.Generator(process, domain, ["right"], degree=degree) as gen:
            value = float(fp.mean_exit_time(gen).at(start)[0])
            size = gen.G.getSize()[0]
        return value, time.perf_counter() - begin, size

    exact = pde(20, 4)[0]
    for n in (2, 3, 4, 6, 8, 12):
        pde(n, 2)  # forms compiled, as in any second run
        value, seconds, size = pde(n, 2)
        if abs(value / exact - 1) < 0.01:
            break
    print(f"\nexit time {exact:.6f}; PDE: {size} unknowns, error {abs(value / exact - 1):.1e}, {seconds:.3f} s")
    for step in (0.1, 0.05):
        domain = fp.Domain.rectangle((-2.5, -2.0), (0.0, 2.0), (4, 4))
        e = fp.simulate(process, domain, start, absorbing="right", paths=1024, step=step, seed=3)
        found = e.mean_exit_time()
        full = e.stats["seconds"] * (found.error / found.value / 0.01) ** 2
        print(
            f"paths, step {step:5}: {found} ({e.stats['path_steps'] / e.stats['seconds'] / 1e6:.1f} million steps/s); "
            f"to 1 %: {full:6.0f} s, {full / seconds:8.0f} times the PDE's"
        )


if __name__ == "__main__":
    speed()
    one_percent()
