"""Refined domains, and answers to a prescribed accuracy."""

from mpi4py import MPI

import numpy as np
import pytest
import reference
import ufl
from dolfinx import fem
from tools import BOX, box, narrow_escape, random_acceleration

import fpsolver as fp
from fpsolver import _compat


def _measure(domain, part=None):
    """Volume of the domain, or length or area of a part."""
    if part is None:
        form = fem.form(1.0 * ufl.dx(domain=domain.mesh))
    else:
        facets = [(1, domain.integration_facets(part))]
        form = fem.form(1.0 * ufl.ds(domain=domain.mesh, subdomain_data=facets, subdomain_id=1))
    return domain.comm.allreduce(fem.assemble_scalar(form), op=MPI.SUM)


def _around(domain, point):
    """Owned cells near a point: those within three times the smallest distance of a midpoint."""
    mesh, d = domain.mesh, domain.dim
    owned = mesh.topology.index_map(d).size_local
    middle = mesh.geometry.x[_compat.geometry_dofmap(mesh)[:owned, : d + 1]].mean(axis=1)[:, :d]
    distance = np.linalg.norm(middle - point, axis=1)
    return np.flatnonzero(distance <= 3 * domain.comm.allreduce(distance.min(initial=np.inf), op=MPI.MIN))


MESHES = {
    "interval": lambda: fp.Domain.interval(-1, 1, 5),
    "rectangle": lambda: box(2, 3),
    "box": lambda: box(3, 2),
    "disk": lambda: fp.Domain.disk((0, 0), 1, 0.5),
    "quartic disk": lambda: fp.Domain.disk((0, 0), 1, 0.5).closer(),
    "ball": lambda: fp.Domain.ball((0, 0, 0), 1, 0.7),
    "annulus": lambda: fp.Domain.annulus((0, 0), 1, 2, 0.6),
}


@pytest.mark.parallel
@pytest.mark.parametrize("name", MESHES)
def test_refined_meshes_conform_and_keep_shape_and_parts(name):
    """Volume and parts, some of which overlap, stay; facets that hang would form a part "unnamed"."""
    domain = MESHES[name]()
    domain.mark("half", lambda x: x[0] > 0.1)
    finer = domain
    for _ in range(4):
        finer = finer.refine(_around(finer, np.eye(domain.dim)[0]))
    cells = [d.mesh.topology.index_map(d.dim).size_global for d in (domain, finer)]
    assert cells[1] > cells[0]
    assert finer.parts == domain.parts
    if name == "quartic disk":  # new nodes are on the circle
        assert abs(_measure(finer) - np.pi) < abs(_measure(domain) - np.pi)
    else:
        assert _measure(finer) == pytest.approx(_measure(domain), rel=1e-12)
    tolerance = (
        1e-12 if name in ("interval", "rectangle", "box") else 1e-4 if name == "quartic disk" else 1e-5
    )  # of the quadrature on curved facets
    for part in domain.parts:
        assert _measure(finer, part) == pytest.approx(_measure(domain, part), rel=tolerance)


@pytest.mark.parallel
def test_linear_functions_are_exact_on_refined_boxes():
    """With D = 1 and drift e₁ on boxes, hanging facets would spoil the continuous linear solution u = x₁."""
    for dim in (2, 3):
        domain = box(dim, 2)
        for _ in range(5):
            domain = domain.refine(_around(domain, np.full(dim, 0.9)))
        gen = fp.Generator(fp.SDE((0.0,) * dim, 1.0), domain, BOX[dim], degree=1)
        u = fp.feynman_kac(gen, exit=lambda x: x[0] + 2 * x[1])
        points = np.random.default_rng(1).uniform(-0.99, 0.99, (20, dim))
        assert np.abs(u.at(points) - points[:, 0] - 2 * points[:, 1]).max() < 1e-11


def test_refinement_keeps_angles():
    """Forty rounds towards a corner: the smallest angle does not fall below half of what it was."""
    domain = fp.Domain.disk((0, 0), 1, 0.6)
    first = _smallest_angle(domain)
    for _ in range(40):
        domain = domain.refine(_around(domain, np.array([1.0, 0.0])))
    assert _smallest_angle(domain) > 0.5 * first
    assert _diameters(domain).min() < 1e-11


def _corners(domain):
    return domain.mesh.geometry.x[_compat.geometry_dofmap(domain.mesh)[:, :3]][:, :, :2]


def _diameters(domain):
    x = _corners(domain)
    return np.linalg.norm(x - np.roll(x, 1, axis=1), axis=2).max(axis=1)


def _smallest_angle(domain):
    x = _corners(domain)
    a, b = np.roll(x, -1, axis=1) - x, np.roll(x, 1, axis=1) - x
    return np.arccos((a * b).sum(axis=2) / np.linalg.norm(a, axis=2) / np.linalg.norm(b, axis=2)).min()


@pytest.mark.parallel
def test_cells_to_refine_are_checked():
    domain = box(2, 2)
    with pytest.raises(ValueError, match="what was to be refined has indices from"):
        domain.refine([-1])
    with pytest.raises(ValueError, match="indices were expected"):
        domain.refine([0.5])
    nothing = domain.refine([])
    assert nothing.mesh.topology.index_map(2).size_global == domain.mesh.topology.index_map(2).size_global


def _true_error(adapted, exact):
    return abs(float(adapted) - exact) / abs(exact)


def _uniform(gen, start, exact, tolerance):
    """Unknowns that uniform refinement needs for a relative error, by its observed rate; a lower bound."""
    errors, unknowns = [], []
    for _ in range(3):
        errors.append(abs(fp.mean_exit_time(gen).at(start)[0] - exact) / abs(exact))
        unknowns.append(gen.G.getSize()[0])
        cells = np.arange(gen.domain.mesh.topology.index_map(gen.domain.dim).size_local)
        gen = fp.Generator(gen.process, gen.domain.refine(cells), gen.absorbing, gen.degree, gen.scheme)
    if errors[-1] < tolerance:
        return float(np.exp(np.interp(-np.log(tolerance), -np.log(errors), np.log(unknowns))))
    rate = max(np.log(errors[-2] / errors[-1]) / np.log(unknowns[-1] / unknowns[-2]), 1e-3)
    return float(unknowns[-1] * (errors[-1] / tolerance) ** (1 / rate))


def test_ends_of_a_narrow_gate_are_found():
    """Gate of half-width 0.01 in the unit disk: ten times fewer unknowns than on uniform meshes, and many more."""
    gen = narrow_escape(0.01, h=0.15)
    exact = float(reference.narrow_escape_time(0.0, 0.01))
    adapted = fp.mean_exit_time(gen, start=(0, 0), rtol=1e-3)
    error = _true_error(adapted, exact)
    assert 0.5 * error < adapted.error[0] / abs(exact) < 1e-3
    assert error < 2e-3
    assert _uniform(gen, (0, 0), exact, error) > 10 * adapted.history[-1].unknowns


def test_saddle_of_the_double_well_is_found():
    """(x² − 1)²/4 + y²/2 at temperature 0.0125, to x = 0: three times fewer unknowns than on uniform meshes."""
    process = fp.Langevin(lambda x: (x[0] ** 2 - 1) ** 2 / 4 + x[1] ** 2 / 2, 0.0125)
    domain = fp.Domain.rectangle((-2, -1.5), (0, 1.5), (8, 12))
    gen = fp.Generator(process, domain, ["right"], degree=3, scheme="weighted")
    exact = reference.double_well_exit_time(0.0125, 0.0)
    adapted = fp.mean_exit_time(gen, start=(-1, 0), rtol=1e-5)
    error = _true_error(adapted, exact)
    assert 0.5 * error < adapted.error[0] / exact < 1e-5
    assert _uniform(gen, (-1, 0), exact, error) > 3 * adapted.history[-1].unknowns


@pytest.mark.parallel
def test_grazing_points_are_found():
    """Random acceleration: solution and occupation density are singular where v = 0 at either wall."""
    gen = random_acceleration()
    exact = reference.random_acceleration_exit_time(0.5, 0)
    adapted = fp.mean_exit_time(gen, start=(0.5, 0), rtol=4e-5)
    error = _true_error(adapted, exact)
    assert 0.5 * error < adapted.error[0] / exact < 4e-5
    assert adapted.history[-1].unknowns < 6000  # uniform refinement: 6.8e-5 with 30 720, 3.5e-5 with 122 880
    assert adapted.generator.domain.parts == gen.domain.parts
    assert adapted.at((0.5, 0))[0] == adapted.value[0] == adapted.history[-1].value
    assert str(adapted).count("unknowns:") == len(adapted.history)
    assert gen.G.handle  # the given generator is left as it was


KINETIC_WELL = 21.864445  # degrees 5 and 6 on meshes graded by hand towards (0, 0): ...4453, ...4451


def test_kinetic_double_well():
    """f = (x² − 1)²/4, γ = 1, β = 5, exit through x = 0 outwards from rest at −1."""
    domain = fp.Domain.rectangle((-2.5, -4), (0, 4), (8, 8))
    domain.mark("out", lambda x: (x[0] > -1e-9) & (x[1] > 0))
    process = fp.SDE(lambda x: (x[1], x[0] - x[0] ** 3 - x[1]), ((0, 0), (0, 0.2)))
    gen = fp.Generator(process, domain, ["out"])
    adapted = fp.mean_exit_time(gen, start=(-1, 0), rtol=6e-5)
    error = _true_error(adapted, KINETIC_WELL)
    assert 0.5 * error < adapted.error[0] / KINETIC_WELL < 6e-5


def test_other_goals_and_densities():
    common = {"absorbing": ["left", "right"], "degree": 2, "scheme": "galerkin"}  # few forms to compile
    gen = fp.Generator(fp.SDE(1.0, 0.01), fp.Domain.interval(0, 1, 20), **common)
    right = fp.exit_probability(gen, "right", start=0.05, rtol=1e-5)
    assert _true_error(right, (1 - np.exp(-5)) / (1 - np.exp(-100))) < 2e-5
    brownian = fp.Generator(fp.SDE(0.0, 0.5), fp.Domain.interval(-1, 1, 3), **common)
    second = fp.exit_time_moments(brownian, 2, start=0.1, rtol=1e-6)[1]
    assert _true_error(second, 5 / 3 - 2 * 0.1**2 + 0.1**4 / 3) < 2e-6
    spread = fp.mean_exit_time(brownian, start=lambda x: 0.75 * (1 - x[0] ** 2), rtol=1e-6)
    assert _true_error(spread, 0.8) < 2e-6
    killed = fp.feynman_kac(brownian, start=0.0, rtol=1e-6, exit=1.0, killing=1.0)
    assert _true_error(killed, 1 / np.cosh(np.sqrt(2))) < 2e-6


@pytest.mark.parallel
def test_a_budget_too_small_leaves_a_partial_answer():
    gen = random_acceleration()
    with pytest.raises(fp.NotConverged, match=r"mean exit time to rtol 1e-08 .* max_unknowns") as caught:
        fp.mean_exit_time(gen, start=(0.5, 0), rtol=1e-8, max_unknowns=3000)
    partial = caught.value.partial
    assert partial.history[-1].unknowns <= 3000
    assert caught.value.reason == "DIVERGED_MAX_UNKNOWNS"
    assert isinstance(partial, fp.Solution) and partial.at((0.5, 0))[0] == float(partial)


@pytest.mark.parallel
def test_bad_input_is_refused():
    gen = fp.Generator(fp.SDE(0.0, 0.5), fp.Domain.interval(-1, 1, 3), ["left", "right"])
    for rtol in (0, 1, -0.1, 2.0, "fine", np.nan):
        with pytest.raises(ValueError, match=r"rtol is .* between 0 and 1"):
            fp.mean_exit_time(gen, start=0.0, rtol=rtol)
    with pytest.raises(ValueError, match="start is None"):
        fp.mean_exit_time(gen, rtol=1e-3)
    with pytest.raises(ValueError, match="lies outside the mesh"):
        fp.mean_exit_time(gen, start=1.5, rtol=1e-3)
    with pytest.raises(ValueError, match="2 points; with rtol one was expected"):
        fp.mean_exit_time(gen, start=[0.0, 0.5], rtol=1e-3)
    with pytest.raises(ValueError, match="the density has mass 6 in the domain"):
        fp.mean_exit_time(gen, start=lambda x: 3.0 + 0 * x[0], rtol=1e-3)
    with pytest.raises(ValueError, match="at least 13 was expected"):
        fp.mean_exit_time(gen, start=0.0, rtol=1e-3, max_unknowns=5)
    with pytest.raises(ValueError, match="tied to the first mesh"):
        fp.feynman_kac(gen, running=fem.Function(gen.V), start=0.0, rtol=1e-3)


def test_functions_tied_to_a_mesh_are_refused():
    domain = fp.Domain.interval(-1, 1, 3)
    drift = fem.Function(fem.functionspace(domain.mesh, ("Lagrange", 1, (1,))))
    gen = fp.Generator(fp.SDE(drift, 0.5), domain, ["left", "right"], degree=1)
    with pytest.raises(ValueError, match="lives on another mesh"):
        fp.mean_exit_time(gen, start=0.0, rtol=1e-8)
