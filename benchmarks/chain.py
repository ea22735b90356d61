"""What the chain of SGD costs: an escape time against paths at equal error, assembly, iterations of GMRES.

The neuron of ``demos/01_single_neuron.py`` with 20 samples leaves its worse minimum when w₀ passes the saddle: after
2231 ± 2 steps at η = 0.4, and about a million at η = 0.2.  Run it with

    python3 benchmarks/chain.py
    mpirun -n 2 python3 benchmarks/chain.py
"""

import time

from mpi4py import MPI

import numpy as np
import ufl

import fpsolver as fp

COMM = MPI.COMM_WORLD
START = (-1.1048, -1.9063)
OPTIONS = {"ksp_rtol": 1e-9}  # at a million steps rounding leaves no more
rng = np.random.default_rng(11)
A, TEACHER = 1.5 * rng.normal(size=20), 1.5 * rng.normal(size=2)
Y = np.sin(TEACHER[0] * A + TEACHER[1]) + 0.4 * rng.normal(size=20)


def say(*words):
    if COMM.rank == 0:
        print(*words, flush=True)


def sgd(eta, n=20):
    def sample(a, y):
        return lambda w: (ufl.sin(a * w[0] + w[1]) - y) ** 2 / 2 + 0.05 * (w[0] ** 2 + w[1] ** 2)

    losses = [sample(*pair) for pair in zip(A[:n].tolist(), Y[:n].tolist(), strict=True)]
    return fp.SGD(None, fp.PerSample(losses), eta)


def domain(cells):
    return fp.Domain.rectangle((-4.5, -4.4), (-0.47, 1.4), cells, diagonal="right")


def timed(work):
    """The answer, and the seconds of CPU that the slowest rank took, which a busy machine hardly changes."""
    COMM.barrier()
    begin = time.process_time()
    found = work()
    return found, COMM.allreduce(time.process_time() - begin, op=MPI.MAX)


def escape(eta, cells, degree=2, bar=True):
    """Steps from the worse minimum, with the error bar that three more chains give."""
    chain = fp.Chain(sgd(eta), domain(cells), ["right"], degree)
    steps = fp.mean_exit_time(chain, start=START if bar else None, options=OPTIONS).in_steps()
    return float(steps.at(START)[0]), float(steps.error[0]) if bar else np.nan, steps.stats


def against_paths(eta, cells, degree, target):
    escape(0.6, (8, 8))  # compiles
    (value, _, _), alone = timed(lambda: escape(eta, cells, degree, bar=False))
    (_, error, stats), whole = timed(lambda: escape(eta, cells, degree))
    say(f"η = {eta:g}, {stats['unknowns']} unknowns: {value:.1f} ± {error:.2g} steps ({error / value:.2%})")
    say(f"   chain {alone:8.1f} s, with its error bar {whole:.1f} s")
    paths, rate = paths_per_second(eta)
    found = paths.mean_exit_time().scaled(1 / eta)
    count = len(paths) * (found.error / (target * found.value)) ** 2
    needed = count * found.value / rate
    say(f"   paths {needed:8.1f} s for {target:.1%}: {count:.3g} paths at {rate / 1e6:.1f} million steps/s ({found})")
    say(f"   ratio {needed / whole:8.1f} with the chain's error bar, {needed / alone:.1f} without")


def paths_per_second(eta):
    """Some paths until they leave, and the steps per second of many at a time, where nothing is idle."""
    process, box = sgd(eta), domain((8, 8))
    options = {"absorbing": "right", "method": "sgd", "backend": "c"}
    few = fp.simulate(process, box, START, paths=2000, **options)
    many, seconds = timed(lambda: fp.simulate(process, box, START, paths=100_000, horizon=100 * eta, **options))
    return few, many.stats["path_steps"] / seconds


def out_of_reach(eta, cells, degree):
    (value, error, stats), seconds = timed(lambda: escape(eta, cells, degree))
    say(
        f"η = {eta:g}, {stats['unknowns']} unknowns: {value:.5g} ± {error:.2g} ({error / value:.2%}) in {seconds:.1f} s"
    )


def assembly(cells):
    process, box = sgd(0.4), domain(cells)
    chain, seconds = timed(lambda: fp.Chain(process, box, ["right"]))
    images = chain.stats()["images"]
    say(f"assembly: {images / 1e6:.1f} million images in {seconds:.2f} s, {images / seconds / 1e6:.2f} million/s")


def iterations():
    say("\niterations of GMRES     η = 0.6     0.4    0.3    0.2")
    for n, cells, degree in (
        (20, (16, 24), 2),
        (20, (32, 48), 2),
        (20, (16, 24), 1),
        (20, (16, 24), 3),
        (5, (16, 24), 2),
    ):
        counts = []
        for eta in (0.6, 0.4, 0.3, 0.2):
            try:
                chain = fp.Chain(sgd(eta, n), domain(cells), ["right"], degree)
                counts.append(fp.mean_exit_time(chain, options=OPTIONS).stats["iterations"])
            except fp.NotConverged:  # the mesh is too coarse for so rare an exit
                counts.append("refused")
        say(f"N = {n:2}, {cells[0]} x {cells[1]} x 2, P{degree}" + "".join(f"{count:>8}" for count in counts))


if __name__ == "__main__":
    against_paths(0.4, (36, 52), 3, 3e-3)
    assembly((28, 40))
    iterations()
    out_of_reach(0.2, (36, 50), 4)
