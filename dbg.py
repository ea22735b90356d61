import sys; sys.path.insert(0,'tests')
import fpsolver as fp, reference, numpy as np
from test_benchmarks_gradient import _well
left, right = reference.double_well_minima(0.1)
for eps in (0.1,0.05):
    gen = fp.Generator(_well(eps, 0.1), fp.Domain.interval(-3, right, 100), ["right"])
    t=fp.mean_exit_time(gen)
    ex=reference.double_well_exit_time(eps, right, 0.1, left)
    v=t.at(left)[0]
    if gen.domain.comm.rank==0: print(gen.scheme,gen.degree, v,ex,v/ex-1,t.stats)
