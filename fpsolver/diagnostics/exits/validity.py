"""How far the diffusion of an algorithm is from the algorithm, for exits: both are solved, over learning rates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..._answer import Answer, with_bar
from ...chain import Chain
from ...discretisation.generator import Generator
from ...domains.domain import Domain
from ...exits.exit import mean_exit_time
from ...models.optimisers import SGD, MomentumSGD


@dataclass(frozen=True)
class Validity(Answer):
    """Mean exit times of an algorithm and of its diffusion, in steps.

    Attributes:
        learning_rates: η, ascending, shape (n,).
        chain, chain_error, diffusion, diffusion_error: steps of both and their error bars, shape (n,).
        tol: relative difference that is still called agreement.
    """

    learning_rates: np.ndarray
    chain: np.ndarray
    chain_error: np.ndarray
    diffusion: np.ndarray
    diffusion_error: np.ndarray
    tol: float

    @property
    def ratio(self) -> np.ndarray:
        """Steps of the algorithm over those of the diffusion, shape (n,)."""
        return self.chain / self.diffusion

    @property
    def valid(self) -> np.ndarray:
        """Whether both agree up to the tolerance, error bars included, shape (n,)."""
        unsure = self.chain_error / self.chain + self.diffusion_error / self.diffusion
        return np.abs(self.ratio - 1) + unsure * self.ratio <= self.tol

    @property
    def valid_from(self) -> float | None:
        """The smallest η from which on, upwards, the diffusion is within the tolerance at all that were asked."""
        good = np.logical_and.accumulate(self.valid[::-1])[::-1]
        return float(self.learning_rates[np.argmax(good)]) if good[-1] else None

    def __repr__(self) -> str:
        start, close = self.valid_from, f"within {self.tol:.0%} of the algorithm"
        verdict = f"not {close} at the largest learning rate" if start is None else f"{close} from η = {start:g} on"
        rows = [f"the diffusion is {verdict}\n{'η':>9} {'algorithm, steps':>24} {'diffusion, steps':>24} {'ratio':>9}"]
        columns = self.learning_rates, self.chain, self.chain_error, self.diffusion, self.diffusion_error, self.ratio
        for eta, a, a_error, b, b_error, ratio in np.column_stack(columns):
            rows.append(f"{eta:9.4g} {with_bar(a, a_error):>24} {with_bar(b, b_error):>24} {ratio:9.4g}")
        return "\n".join(rows)


def validity(
    process: SGD | MomentumSGD,
    domain: Domain,
    start: Any,
    *,
    absorbing: Sequence[str] | str,
    learning_rates: Sequence[float] | None = None,
    tol: float = 0.1,
    degree: int | None = None,
) -> Validity:
    """Whether mean exit times of the diffusion can be taken for the algorithm's (collective).

    Rare exits are decided by all cumulants of the noise, of which a diffusion has two; the ratio tends to zero or to
    infinity as η falls unless the noise is Gaussian, and to one only where exits are not rare.

    From one point (d,) of a domain with straight cells.  ``learning_rates`` are by default that of the process, its
    half and its double; ``tol`` is the relative difference that is called agreement, ``degree`` that of the generator.

    Raises:
        TypeError: no algorithm with a diffusion.
    """
    if not isinstance(process, SGD | MomentumSGD):
        raise TypeError(f"validity: process is a {type(process).__name__}; fp.SGD or fp.MomentumSGD was expected.")
    eta = process.learning_rate
    rates = np.sort(np.array([eta / 2, eta, 2 * eta] if learning_rates is None else learning_rates, dtype=float))
    rows = []
    for rate in rates:
        one = process.with_parameters(learning_rate=float(rate))
        with Generator(one, domain, absorbing, degree=degree) as gen:
            answers = [mean_exit_time(m, start=start).in_steps() for m in (Chain(one, domain, absorbing), gen)]  # type: ignore[arg-type]
            rows.append([float(a[0]) for s in answers for a in (s.value, s.error)])  # type: ignore[index]
    return Validity(rates, *np.array(rows).T, tol)  # type: ignore[call-arg]
