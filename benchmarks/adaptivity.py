"""Unknowns for one and the same true error: adaptive meshes against uniform refinement.

    docker/run python3 benchmarks/adaptivity.py             # half a minute
    docker/run python3 benchmarks/adaptivity.py --precise   # and 1e-6 on the kinetic double well

True errors are taken from closed forms, or from a value on which two discretisations agree.
"""

import argparse
import logging
import sys
from pathlib import Path

from mpi4py import MPI

import numpy as np

import fpsolver as fp

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import reference
from tools import narrow_escape, random_acceleration

KINETIC_WELL = 21.864445  # P5 and P6 on meshes graded by hand towards (0, 0), 86 016 and 100 800 unknowns


def double_well():
    """(x² − 1)²/4 + y²/2 at temperature 0.0125, from (−1, 0) to x = 0."""
    process = fp.Langevin(lambda x: (x[0] ** 2 - 1) ** 2 / 4 + x[1] ** 2 / 2, 0.0125)
    domain = fp.Domain.rectangle((-2, -1.5), (0, 1.5), (8, 12))
    return fp.Generator(process, domain, ["right"], degree=3, scheme="weighted")


def kinetic_double_well():
    """(x² − 1)²/4, friction 1, temperature 0.2, from (−1, 0) out through x = 0."""
    domain = fp.Domain.rectangle((-2.5, -4), (0, 4), (8, 8))
    domain.mark("out", lambda x: (x[0] > -1e-9) & (x[1] > 0))
    process = fp.SDE(lambda x: (x[1], x[0] - x[0] ** 3 - x[1]), ((0, 0), (0, 0.2)))
    return fp.Generator(process, domain, ["out"])


def uniform(gen, start, exact, levels):
    """(unknowns, relative error) on uniformly refined meshes."""
    table = []
    for level in range(levels):
        value = fp.mean_exit_time(gen).at(start)[0]
        table.append((gen.G.getSize()[0], abs(value - exact) / abs(exact)))
        if level < levels - 1:
            cells = np.arange(gen.domain.mesh.topology.index_map(gen.domain.dim).size_local)
            gen = fp.Generator(gen.process, gen.domain.refine(cells), gen.absorbing, gen.degree, gen.scheme)
    return table


def needed(table, error):
    """Unknowns for an error, between the entries of a table or beyond it by the rate of the last two."""
    sizes, errors = np.log(np.array(table)).T
    if np.log(error) >= errors[-1]:
        return float(np.exp(np.interp(-np.log(error), -errors, sizes)))
    rate = (errors[-2] - errors[-1]) / (sizes[-1] - sizes[-2])
    return float(np.exp(sizes[-1] + (errors[-1] - np.log(error)) / rate))


def compare(name, gen, start, exact, rtol, levels=4):
    """Print one comparison."""
    adapted = fp.mean_exit_time(gen, start=start, rtol=rtol)
    table = uniform(gen, start, exact, levels)
    if MPI.COMM_WORLD.rank:
        return
    print(f"\n{name}: scheme {gen.scheme}, degree {gen.degree}, rtol {rtol:g}")
    print(f"{'unknowns':>10s}{'error bar':>11s}{'error':>10s}{'bar/error':>11s}{'uniform needs':>15s}{'ratio':>8s}")
    for level in adapted.history:
        error = abs(level.value - exact) / abs(exact)
        need = needed(table, error)
        print(
            f"{level.unknowns:10d}{level.error / abs(exact):11.1e}{error:10.1e}{level.error / abs(exact) / error:11.2f}"
            f"{need:15.2g}{need / level.unknowns:8.1f}"
        )
    print("uniform: " + ", ".join(f"{size} {error:.1e}" for size, error in table) + " (beyond: extrapolated)")


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--precise", action="store_true", help="the kinetic double well to 1e-6 instead of 1e-5")
    precise = parser.parse_known_args()[0].precise
    logging.getLogger("fpsolver").setLevel(logging.ERROR)  # the truncation at x = -2.5 is warned about on every mesh
    gate = float(reference.narrow_escape_time(0.0, 0.01))
    compare("gate of half-width 0.01 in the unit disk", narrow_escape(0.01, h=0.15), (0, 0), gate, 1e-3)
    well = reference.double_well_exit_time(0.0125, 0.0)
    compare("double well in two dimensions", double_well(), (-1, 0), well, 1e-6, levels=3)
    graze = reference.random_acceleration_exit_time(0.5, 0)
    compare("random acceleration", random_acceleration(), (0.5, 0), graze, 1e-5)
    compare("kinetic double well", kinetic_double_well(), (-1, 0), KINETIC_WELL, 1e-6 if precise else 1e-5)


if __name__ == "__main__":
    main()
