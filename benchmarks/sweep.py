"""What a sweep over ten learning rates costs: nothing is compiled twice, and set-up is shared.

The mean exit time of a single neuron trained on eight samples from a box, for ten learning rates: through
``gen.replace(learning_rate=...)``, and with ten generators made from scratch.  The first solve starts with an empty
cache of compiled forms.  Run it with

    python3 benchmarks/sweep.py
"""

import os
import tempfile
import time
from pathlib import Path

cache = tempfile.TemporaryDirectory()
os.environ["XDG_CACHE_HOME"] = cache.name  # before DOLFINx is imported: an empty cache

import numpy as np  # noqa: E402
import ufl  # noqa: E402

import fpsolver as fp  # noqa: E402

rng = np.random.default_rng(0)
DATA = [(float(a), float(np.sin(a) + 0.3 * e)) for a, e in 1.5 * rng.normal(size=(8, 2))]
LOSSES = [lambda w, a=a, y=y: (ufl.sin(a * w[0] + w[1]) - y) ** 2 / 2 + 0.05 * (w[0] ** 2 + w[1] ** 2) for a, y in DATA]
RATES = np.geomspace(0.2, 0.8, 10)


def compiled():
    """Number of compiled modules in the cache."""
    return len(list(Path(cache.name, "fenics").glob("*.so")))


def generator(eta):
    domain = fp.Domain.rectangle((-2, -2), (2, 2), (24, 24))
    process = fp.SGD(loss=None, noise=fp.PerSample(LOSSES), learning_rate=eta)
    return fp.Generator(process, domain, absorbing=["right"])


def timed(work):
    begin, before = time.perf_counter(), compiled()
    result = work()
    return time.perf_counter() - begin, compiled() - before, result


def answer(gen):
    return fp.mean_exit_time(gen).at([(0.0, 0.0)])[0]


def cold():
    gen = generator(RATES[0])
    return gen, answer(gen)


def sweep(gen):
    values = []
    for eta in RATES:
        with gen.replace(learning_rate=eta) as other:
            values.append(answer(other))
    return values


def main():
    seconds, modules, (gen, _) = timed(cold)
    print(f"{'':34}{'seconds':>9}{'compilations':>14}")
    print(f"{'first solve, everything cold':34}{seconds:9.2f}{modules:14}")
    first = seconds
    seconds, modules, swept = timed(lambda: sweep(gen))
    print(f"{'ten learning rates, replace()':34}{seconds:9.2f}{modules:14}")
    total, again = first + seconds, modules
    seconds, modules, fresh = timed(lambda: [answer(generator(eta)) for eta in RATES])
    print(f"{'ten learning rates, new generators':34}{seconds:9.2f}{modules:14}")
    print(f"\n{gen.G.size[0]} unknowns; cold solve and sweep together: {total / first:.2f} cold solves;")
    print(f"ten new generators with warm cache: {seconds / (total - first):.2f} times the sweep")
    print(f"largest relative difference of the answers: {np.abs(np.array(swept) / fresh - 1).max():.1e}")
    assert again == 0, "replace() compiled something"
    assert total < 10 * first


if __name__ == "__main__":
    main()
