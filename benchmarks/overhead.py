"""What the package costs on top of the same DOLFINx and PETSc calls written by hand.

Mean exit time of the 2D double well at about 100 000 unknowns, with continuous and with discontinuous elements: the
same weak forms, quadrature, matrices and MUMPS options, once through ``fp.Generator`` and ``fp.mean_exit_time``, once
in a few dozen lines.  Runs alternate, and medians are compared.  The package does more: it surveys D and β, classifies
the boundary, assembles the mass matrix, and checks the residual.

    python3 benchmarks/overhead.py [repetitions]
"""

import sys
import time

from petsc4py import PETSc

import numpy as np
import ufl
from dolfinx import fem, mesh
from dolfinx.fem import petsc as fem_petsc

import fpsolver as fp

CASES = {"galerkin": (4, 56), "dg": (4, 41)}  # degree, cells per side
ICNTL_ORDERING = 7
QAMD = 6


def by_package(domain, scheme, degree):
    begin = time.perf_counter()
    process = fp.SDE(lambda x: (x[0] - x[0] ** 3, -x[1]), 0.05)
    gen = fp.Generator(process, domain, ["right"], degree=degree, scheme=scheme)
    middle = time.perf_counter()
    tau = fp.mean_exit_time(gen)
    end = time.perf_counter()
    value = tau.at([(-1.0, 0.0)])[0]
    size = gen.G.getSize()[0]
    gen.close()
    return middle - begin, end - middle, value, size


def by_hand(domain, scheme, degree):
    begin = time.perf_counter()
    msh, q = domain.mesh, 2 * degree + 2
    x, n = ufl.SpatialCoordinate(msh), ufl.FacetNormal(msh)
    D = fem.Constant(msh, 0.05)
    beta = ufl.as_vector((x[0] - x[0] ** 3, -x[1]))
    facets = domain.facets("right")
    tags = mesh.meshtags(msh, 1, facets, np.full(len(facets), 1, np.int32))
    metadata = {"quadrature_degree": q}
    dx, dS = ufl.dx(msh, metadata=metadata), ufl.dS(msh, metadata=metadata)
    ds = ufl.ds(msh, subdomain_data=tags, metadata=metadata)(1)
    V = fem.functionspace(msh, ("DG" if scheme == "dg" else "Lagrange", degree))
    u, v = ufl.TrialFunction(V), ufl.TestFunction(V)
    h = abs(ufl.JacobianDeterminant(msh)) / abs(ufl.classes.FacetJacobianDeterminant(msh))
    alpha = 4.0 * degree * (degree + 1)
    bn = ufl.dot(beta, n)
    a = (D * ufl.inner(ufl.grad(u), ufl.grad(v)) - ufl.dot(beta, ufl.grad(u)) * v) * dx
    a += ((alpha * D / h + 0.5 * (bn + abs(bn))) * u * v - D * ufl.dot(ufl.grad(u), n) * v - D * ufl.dot(ufl.grad(v), n) * u) * ds  # fmt: skip  # noqa: E501
    if scheme == "dg":
        m = n("+")
        drift = ufl.dot(ufl.avg(beta), m)
        jump_u, jump_v = u("+") - u("-"), v("+") - v("-")
        a += (alpha * D / ufl.min_value(h("+"), h("-")) + 0.5 * abs(drift)) * jump_u * jump_v * dS
        a -= D * (ufl.dot(ufl.avg(ufl.grad(u)), m) * jump_v + ufl.dot(ufl.avg(ufl.grad(v)), m) * jump_u) * dS
        a += drift * jump_u * ufl.avg(v) * dS
    form = fem.form(a)
    A = fem_petsc.create_matrix(form)
    fem_petsc.assemble_matrix(A, form)
    A.assemble()
    tau, b = fem.Function(V), fem.Function(V)
    fem.assemble_vector(b.x.array, fem.form(v * dx))
    middle = time.perf_counter()
    ksp = PETSc.KSP().create(msh.comm)
    ksp.setOperators(A)
    ksp.setType("preonly")
    pc = ksp.getPC()
    pc.setType("lu")
    pc.setFactorSolverType("mumps")
    pc.setFactorSetUpSolverType()
    pc.getFactorMatrix().setMumpsIcntl(ICNTL_ORDERING, QAMD)
    vectors = [PETSc.Vec().createWithArray(f.x.array, comm=msh.comm) for f in (b, tau)]
    ksp.solve(*vectors)
    end = time.perf_counter()
    points = np.array([[-1.0, 0.0, 0.0]])
    value = fp.Solution(tau, {}, "tau").at(points[:, :2])[0]
    for thing in (ksp, A, *vectors):
        thing.destroy()
    return middle - begin, end - middle, value, V.dofmap.index_map.size_global


def main():
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    print("                              set-up   solve   both   (seconds, medians; set-up: forms, assembly)")
    for scheme, (degree, n) in CASES.items():
        domain = fp.Domain.rectangle((-2.2, -1.5), (0.0, 1.5), (n, n))
        runs = {by_hand: [], by_package: []}
        for work in runs:  # compiles
            *_, value, size = work(domain, scheme, degree)
            assert abs(value / 361.90375950092 - 1) < 1e-6, value
        for _ in range(repetitions):
            for work, times in runs.items():
                setup, solve, *_ = work(domain, scheme, degree)
                times.append((setup, solve, setup + solve))
        medians = {work: np.median(times, axis=0) for work, times in runs.items()}
        for work, name in ((by_hand, "by hand"), (by_package, "fpsolver")):
            print(f"{scheme:9} {size:7} {name:10}" + "".join(f"{t:8.3f}" for t in medians[work]))
        ratios = np.median(np.array(runs[by_package]) / np.array(runs[by_hand]), axis=0)
        print(f"{'ratio':>28}" + "".join(f"{r:8.2f}" for r in ratios), flush=True)


if __name__ == "__main__":
    main()
