"""Generated code of many samples, compiled by the C compiler that DOLFINx compiles forms with.

Points are taken in groups of a fixed size, whose loops the compiler turns into vector instructions.  The last group is
filled up, so that a point's result does not depend on its neighbours or on their number.
"""

import ctypes
import hashlib
import os
import re
import shlex
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import dolfinx.jit

from .lambdify import Code

LONGEST = 3000  # lines of generated code, beyond which compiling takes too long

_HEAD = """
#include <math.h>
#if defined(__GLIBC_PREREQ) && defined(__x86_64__)
#if __GLIBC_PREREQ(2, 35)
#define VECTOR __attribute__((simd("notinbranch"), const)) double
VECTOR sin(double); VECTOR cos(double); VECTOR tan(double); VECTOR sinh(double); VECTOR cosh(double);
VECTOR tanh(double); VECTOR asin(double); VECTOR acos(double); VECTOR atan(double); VECTOR exp(double);
VECTOR log(double); VECTOR pow(double, double); VECTOR atan2(double, double);
#endif
#endif
#define arcsin asin
#define arccos acos
#define arctan atan
#define arctan2 atan2
#define abs fabs
#define where(a, b, c) ((a) ? (b) : (c))
#define maximum(a, b) ((a) > (b) || (a) != (a) ? (a) : (b))
#define minimum(a, b) ((a) < (b) || (a) != (a) ? (a) : (b))
#define logical_and(a, b) ((a) && (b))
#define logical_or(a, b) ((a) || (b))
#define logical_not(a) (!(a))
#define W 32
#define EACH for (int j = 0; j < W; j++)
typedef double lanes[W];
typedef long long integer;
"""

_BODY = """
static void load(const double *x, integer n, integer i, lanes *restrict X)
{
    for (int r = 0; r < D; r++) EACH X[r][j] = x[r * n + (i + j < n ? i + j : n - 1)];
}

/* the mean over a batch: x (D, n), sample (B, n), numbers (K, N), mean (M, n) */
void batch(integer n, integer N, integer B, const int *kinds, const int *uniform, const double *numbers,
           const double *x, const integer *sample, double *mean)
{
    lanes X[D], C[K], g[M], sum[M];
    integer s[W];
    for (integer i = 0; i < n; i += W) {
        load(x, n, i, X);
        for (int r = 0; r < M; r++) EACH sum[r][j] = 0.0;
        for (integer b = 0; b < B; b++) {
            EACH s[j] = sample[b * n + (i + j < n ? i + j : n - 1)];
            for (int k = 0; k < K; k++) {
                if (uniform[k]) EACH C[k][j] = numbers[k * N];
                else EACH C[k][j] = numbers[k * N + s[j]];
            }
            for (int kind = 0; kind < KINDS; kind++) {
                evaluate(kind, X, C, g);
                for (int r = 0; r < M; r++)
                    EACH sum[r][j] += KINDS == 1 || kinds[s[j]] == kind ? g[r][j] : 0.0;
            }
        }
        for (int r = 0; r < M; r++)
            for (int j = 0; j < W && i + j < n; j++) mean[r * n + i + j] = sum[r][j] / B;
    }
}

/* of all samples: out (M, N, n) */
void everyone(integer n, integer N, const int *kinds, const double *numbers, const double *x, double *out)
{
    lanes X[D], C[K], g[M];
    for (integer i = 0; i < n; i += W) {
        load(x, n, i, X);
        for (integer s = 0; s < N; s++) {
            for (int k = 0; k < K; k++) EACH C[k][j] = numbers[k * N + s];
            evaluate(kinds[s], X, C, g);
            for (int r = 0; r < M; r++)
                for (int j = 0; j < W && i + j < n; j++) out[(r * N + s) * n + i + j] = g[r][j];
        }
    }
}
"""


class NotCompilable(ValueError):
    """Something that there is no C code for, which numpy can do."""


def program(kinds: Sequence[Code], K: int, D: int, M: int) -> str:
    """Code in C for samples of some kinds, with K numbers, in D coordinates and of M components."""
    text = [_HEAD, f"#define D {D}\n#define M {M}\n#define K {max(K, 1)}\n#define KINDS {len(kinds)}"]
    for k, code in enumerate(kinds):
        *lines, last = code.source.splitlines()[1:]
        body = [f"const double {_translated(line)};" for line in lines]
        results = _translated(last).removeprefix("return (").removesuffix(",)").split(", ")
        body += [f"out[{r}][j] = {value};" for r, value in enumerate(results)]
        head = f"static void kind_{k}(const lanes *restrict x, const lanes *restrict c, lanes *restrict out)"
        text.append(head + "\n{\n    EACH {\n" + "".join(f"        {line}\n" for line in body) + "    }\n}")
    cases = " ".join(f"case {k}: kind_{k}(x, c, out); break;" for k in range(len(kinds)))
    head = "static void evaluate(int kind, const lanes *x, const lanes *c, lanes *out)"
    return "\n".join([*text, f"{head}\n{{\n    switch (kind) {{ {cases} }}\n}}", _BODY])


def _translated(line: str) -> str:
    """A line of generated Python in C."""
    line = re.sub(r"\b([xc])\[(\d+)\]", r"\1[\2][j]", line.strip().replace("np.", ""))
    return re.sub(r"(\S+) \*\* (\S+)", r"pow(\1, \2)", line)


@lru_cache(maxsize=64)
def library(source: str) -> ctypes.CDLL:
    """The compiled code, from DOLFINx' cache if it is there; every process does this for itself."""
    options = dolfinx.jit.get_options()
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    flags = [*options["cffi_extra_compile_args"], "-O3", "-fno-math-errno", "-fno-trapping-math", "-std=gnu11"]
    command = [*compiler, *flags, "-shared", "-fPIC"]
    name = hashlib.sha256("\0".join([source, *command]).encode()).hexdigest()[:32]
    folder = Path(options["cache_dir"])
    target = folder / f"fpsolver_{name}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            file, made = Path(place) / "code.c", Path(place) / "code.so"
            file.write_text(source)
            try:
                run = subprocess.run([*command, str(file), "-o", str(made), "-lm"], capture_output=True, text=True)
            except OSError as error:
                raise RuntimeError(f"no C compiler {compiler[0]!r} ({error}); backend='numpy' needs none.") from error
            if run.returncode:
                raise RuntimeError(f"{compiler[0]} refused generated code: {run.stderr.strip()[:500]}")
            os.replace(made, target)  # at once, whoever else is compiling it
    return ctypes.CDLL(str(target))
