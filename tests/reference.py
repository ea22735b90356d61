"""Closed forms and quadratures that the tests compare with: nothing here uses the package under test.

Half-Laplacian means D = I/2, i.e. standard Brownian motion.
"""

from collections.abc import Callable
from functools import cache
from itertools import pairwise

import mpmath as mp
import numpy as np
from scipy import integrate, linalg, special

Scalar = Callable[[float], float]


# ------------------------------------------------------------------------------------------ one dimension


def exit_time_1d(x: float, a: float, c: float, force: Scalar, D: Scalar, reflecting: bool = False) -> float:
    """Mean exit time from (a, c) by the scale function and speed measure; Itô drift ``force``, diffusion ``D``.

    Both ends absorb; with ``reflecting`` the end a reflects.  Gauss-Legendre on a fine composite grid.
    """
    nodes, weights = _composite(a, c, 400, x)
    h = _antiderivative(nodes, weights, np.array([force(t) / D(t) for t in nodes]))
    h -= np.median(h)
    s, m = np.exp(-h), np.array([1 / D(t) for t in nodes]) * np.exp(h)
    right = nodes > x
    if reflecting:
        inner = _antiderivative(nodes, weights, m)
        return float(np.sum((weights * s * inner)[right]))
    S = _antiderivative(nodes, weights, s)
    total = float(np.sum(weights * s))
    Sx = float(np.sum((weights * s)[~right]))
    left_part = np.sum((weights * S * m)[~right])
    right_part = np.sum((weights * (total - S) * m)[right])
    return float(((total - Sx) * left_part + Sx * right_part) / total)


def _composite(a: float, c: float, pieces: int, x: float) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre panels of 8 points, with a break at x."""
    t, w = np.polynomial.legendre.leggauss(_PANEL)
    edges = np.unique(np.concatenate([np.linspace(a, x, pieces + 1), np.linspace(x, c, pieces + 1)]))
    half = np.diff(edges) / 2
    nodes = edges[:-1, None] + half[:, None] * (1 + t)
    return nodes.ravel(), (half[:, None] * w).ravel()


_PANEL = 8


def _antiderivative(nodes: np.ndarray, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """∫ from the left end to each node: whole panels by Gauss, within a panel by its interpolating polynomial."""
    t, _ = np.polynomial.legendre.leggauss(_PANEL)
    vander = np.vander(t, increasing=True)
    powers = np.array([(t ** (k + 1) - (-1.0) ** (k + 1)) / (k + 1) for k in range(_PANEL)]).T
    inner = powers @ np.linalg.inv(vander)  # ∫_{-1}^{t_i} of the interpolant
    f = values.reshape(-1, _PANEL)
    panel = (values * weights).reshape(-1, _PANEL).sum(axis=1)
    half = weights.reshape(-1, _PANEL).sum(axis=1) / 2
    start = np.concatenate([[0.0], np.cumsum(panel)[:-1]])
    return (start[:, None] + half[:, None] * (f @ inner.T)).ravel()


def interval_survival(t: float, x: float = 0.0) -> float:
    """P(τ > t) of Brownian motion in (-1, 1)."""
    k = np.arange(400)
    odd = 2 * k + 1
    return float(
        np.sum(4 / np.pi * (-1.0) ** k / odd * np.cos(odd * np.pi * x / 2) * np.exp(-(odd**2) * np.pi**2 * t / 8))
    )


def ou_exit_time(R: float, theta: float, s2: float) -> float:
    """E τ of (-R, R) from 0 for dX = -θX dt + s dW: (R²/s²) ₂F₂(1, 1; 3/2, 2; θR²/s²)."""
    z = mp.mpf(theta) * R**2 / s2
    return float(mp.mpf(R) ** 2 / s2 * mp.hyp2f2(1, 1, mp.mpf(3) / 2, 2, z))


def double_well_exit_time(eps: float, target: float, tilt: float = 0.0, start: float = -1.0) -> float:
    """E of the time from ``start`` up to ``target`` for f = (x² - 1)²/4 + tilt·x, D = ε on (-∞, target)."""
    left = -np.sqrt(1 + 2 * np.sqrt(60 * eps))  # where f/ε = 60
    return exit_time_1d(start, left, target, lambda x: x - x**3 - tilt, lambda x: eps, reflecting=True)


def double_well_minima(tilt: float) -> tuple[float, float]:
    """Minima of (x² - 1)²/4 + tilt·x."""
    roots = np.sort(np.roots([1.0, 0.0, -1.0, tilt]).real)
    return float(roots[0]), float(roots[2])


def space_time_exit_time(y: float) -> float:
    """E min(τ, 1 - y) from (0, y), τ the exit time of Brownian motion from (-1, 1): ∫₀^{1-y} P(τ > s) ds."""
    k = np.arange(4000)
    odd = 2 * k + 1
    rate = odd**2 * np.pi**2 / 8
    return float(np.sum(4 / np.pi * (-1.0) ** k / odd * (1 - np.exp(-rate * (1 - y))) / rate))


# ------------------------------------------------------------------------------------------ balls, boxes, annuli


def disk_survival(t: float) -> float:
    """P(τ > t) of planar Brownian motion from the centre of the unit disk."""
    j = special.jn_zeros(0, 200)
    return float(np.sum(2 / (j * special.j1(j)) * np.exp(-(j**2) * t / 2)))


def ball_survival(t: float) -> float:
    """P(τ > t) of Brownian motion from the centre of the unit ball in three dimensions."""
    n = np.arange(1, 200)
    return float(np.sum(2 * (-1.0) ** (n + 1) * np.exp(-(n**2) * np.pi**2 * t / 2)))


def square_exit_time(x: float, y: float) -> float:
    """E τ of Brownian motion in (-1, 1)²."""
    n = np.arange(1, 400, 2)
    k = n * np.pi / 2
    ratio = np.exp(k * (np.abs(y) - 1)) * (1 + np.exp(-2 * k * np.abs(y))) / (1 + np.exp(-2 * k))
    series = (-1.0) ** ((n - 1) // 2) / n**3 * ratio * np.cos(k * x)
    return float(1 - x**2 - 32 / np.pi**3 * np.sum(series))


def cube_exit_time() -> float:
    """E τ of Brownian motion in (-1, 1)³ from the centre: ∫ P(τ > t)³ dt in one dimension each."""
    t, w = np.polynomial.legendre.leggauss(40)
    edges = np.concatenate([[0.0], np.geomspace(0.01, 20, 30)])
    total = 0.0
    for a, b in pairwise(edges):
        s = a + (b - a) * (1 + t) / 2
        total += float(np.sum((b - a) / 2 * w * np.array([interval_survival(v) ** 3 for v in s])))
    return total


def annulus_exit_time(r: float) -> float:
    """E τ of planar Brownian motion in 1 < r < 2, both circles absorbing."""
    return (1 - r * r) / 2 + 1.5 * np.log(r) / np.log(2)


def radial_ou_exit_time(eps: float, d: int) -> float:
    """E τ of the unit ball from its centre for dX = -X dt + √(2ε) dW in d dimensions."""
    z = mp.mpf(1) / (2 * eps)
    if d == 2:
        return float((mp.ei(z) - mp.log(z) - mp.euler) / 2)
    inner = lambda r: mp.quad(lambda s: s ** (d - 1) * mp.exp((r * r - s * s) / (2 * eps)), [0, r])  # noqa: E731
    return float(mp.quad(lambda r: inner(r) * r ** (1 - d), [0, 0.25, 0.5, 0.75, 1]) / eps)


def exit_side_probability(x: float, y: float) -> float:
    """P that Brownian motion from (x, y) leaves the unit square through its right side."""
    n = np.arange(1, 200, 2)
    ratio = np.exp(n * np.pi * (x - 1)) * (1 - np.exp(-2 * n * np.pi * x)) / (1 - np.exp(-2 * n * np.pi))
    return float(np.sum(4 / (n * np.pi) * ratio * np.sin(n * np.pi * y)))


def narrow_escape_time(z: complex, e: float) -> float:
    """E τ in the unit disk with D = I through the arc |θ| < e, the rest reflecting (Caginalp, Chen 2012)."""
    w = (1 - z + np.sqrt((1 - z * np.exp(-1j * e)) + 0j) * np.sqrt((1 - z * np.exp(1j * e)) + 0j)) / (2 * np.sin(e / 2))
    return float((1 - abs(z) ** 2) / 4 + np.log(abs(w)))


# ------------------------------------------------------------------------------------------ degenerate diffusion


@cache
def random_acceleration_exit_time(x: float, v: float) -> float:
    """E τ of dX = V dt, dV = √2 dW from 0 < x < 1 (Franklin, Rodemich 1968; Masoliver, Porra 1995)."""
    al = mp.mpf(1) / 3
    C = mp.mpf(3) ** (mp.mpf(11) / 6) * mp.mpf(2) ** (-mp.mpf(5) / 3) / mp.gamma(al)

    def F(y: mp.mpf) -> mp.mpf:
        return mp.hyp2f1(1, -al, mp.mpf(7) / 6, y)

    def rest(y: mp.mpf) -> mp.mpf:
        return C * (y * (1 - y)) ** (mp.mpf(1) / 6) * (F(y) + F(1 - y)) if 0 < y < 1 else mp.mpf(0)

    x, v = mp.mpf(x), mp.mpf(v)
    if v < 0:
        x, v = 1 - x, -v
    if v == 0:
        return float(rest(x))
    t = 1 - x
    A = mp.mpf(9) ** al * mp.gamma(mp.mpf(5) / 3) / (2 * mp.gamma(mp.mpf(4) / 3))

    def K(r: mp.mpf) -> mp.mpf:
        return v * mp.exp(-(v**3) / (9 * r)) / (mp.mpf(3) ** (2 * al) * mp.gamma(al) * r ** (mp.mpf(4) / 3))

    free = -v * v / 2 + A * v * t**al * mp.hyp1f1(-al, mp.mpf(4) / 3, -(v**3) / (9 * t))
    return float(free + mp.quad(lambda r: K(r) * rest(1 - t + r), [0, t / 16, t / 4, t / 2, t]))


def random_acceleration_exit_side(x: float) -> float:
    """P that dX = V dt, dV = √2 dW from (x, 0) leaves 0 < x < 1 at 1: I_x(1/6, 1/6) (Bicout, Burkhardt 2000)."""
    return float(special.betainc(1 / 6, 1 / 6, x))


def linear_moments(
    A: np.ndarray, D: np.ndarray, mean: np.ndarray, cov: np.ndarray, t: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance at time t of dX = A X dt + √(2D) dW from mean and cov."""
    n = len(A)
    block = linalg.expm(np.block([[-A, 2 * D], [np.zeros((n, n)), A.T]]) * t)
    E = block[n:, n:].T
    return E @ mean, E @ cov @ E.T + E @ block[:n, n:]


def gaussian_density(points: np.ndarray, mean: np.ndarray, cov: np.ndarray) -> np.ndarray:
    """Density of N(mean, cov) at points (n, d)."""
    y = np.atleast_2d(points) - mean
    P = np.linalg.inv(cov)
    return np.exp(-0.5 * np.einsum("ni,ij,nj->n", y, P, y)) / np.sqrt(np.linalg.det(2 * np.pi * cov))


def wright_fisher_exit_time(x: float) -> float:
    """Mean time until one of two alleles is lost, L = x(1 - x)/2 d²."""
    return float(-2 * (x * np.log(x) + (1 - x) * np.log(1 - x)))


def wright_fisher_survival(t: float) -> float:
    """P(both alleles present at t) from x = 1/2: Σ (4k+3)/... in Gegenbauer polynomials, rates n(n+1)/2, n odd."""
    total = mp.mpf(0)
    for n in range(1, 200, 2):
        rate = mp.mpf(n * (n + 1)) / 2
        # eigenfunctions x(1-x) P'_n(1-2x), weight 1/(x(1-x)); from 1/2 and against 1
        dP = mp.mpf(n) * mp.legendre(n - 1, 0)  # P'_n(0) = n P_{n-1}(0)
        norm = mp.mpf(2) * n * (n + 1) / (2 * n + 1)  # ∫ (1-s²) P'_n² ds
        total += mp.exp(-rate * t) * dP * 2 / norm * (1 if n % 2 else 0)
    return float(total)


def wright_fisher_simplex_exit_time(x: tuple[float, float, float]) -> float:
    """Mean time until the first of three alleles is lost."""
    return float(2 * sum((1 - a) * np.log(1 - a) - a * np.log(a) for a in x))


def gate_parameters(learning_rate: float) -> tuple[float, float]:
    """Inverse gamma law (shape, scale) of y = 2/3 - x for dy = (2/3 - 5y/2) dt + 1.5 √η y dW."""
    s2 = 2.25 * learning_rate
    return 1 + 5 / s2, (4 / 3) / s2


def gate_density(y: float, learning_rate: float) -> float:
    """Stationary density of the one-way gate at distance y below the zero of the noise."""
    shape, scale = gate_parameters(learning_rate)
    return float(np.exp(shape * np.log(scale) - special.gammaln(shape) - (shape + 1) * np.log(y) - scale / y))


def geometric_exit_time(x: float, a: float, c: float, mu: float, s2: float) -> float:
    """E τ of dX = μX dt + √(s²) X dW from (a, c), in y = ln x."""
    m = mu - s2 / 2
    y, A, B = np.log(x), np.log(a), np.log(c)
    k = 2 * m / s2
    hit = (1 - np.exp(-k * (y - A))) / (1 - np.exp(-k * (B - A)))
    return float(((B - A) * hit - (y - A)) / m)


def pearson_parameters(h: float, learning_rate: float, slope: float, level: float) -> tuple[float, float]:
    """Power p and peak density of ρ = C (level + slope x²)^{-p} for dX = -hX dt + √(η(slope X² + level)) dW."""
    p = 1 + h / (learning_rate * slope)
    value, _ = integrate.quad(lambda x: (1 + slope * x * x / level) ** (-p), -np.inf, np.inf, epsabs=0, epsrel=1e-13)
    return p, 1 / value
