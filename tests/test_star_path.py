"""Star-convexity of paths of SGD through all weights."""

import numpy as np
import pytest

import fpsolver as fp

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def regression():
    """f_i = (a_i·w − y_i)²/2 in two weights: convex, so that every step is star-convex about every point."""
    random = np.random.default_rng(3)
    a, y = random.normal(size=(20, 2)), random.normal(size=20)
    model = torch.nn.Linear(2, 1, bias=False)
    return fp.Network.from_torch(model, lambda out, y: (out[:, 0] - y) ** 2 / 2, (a, y)), a, y


@pytest.mark.parametrize("given", [False, True], ids=["its own end", "a given point"])
def test_least_squares(regression, given):
    """e_k = mean over the batch of (r_i − r_i*)²/2, with r the residuals of the regression."""
    network, a, y = regression
    x_star = np.array([0.7, -2.0]) if given else None
    found = fp.diagnostics.star_convex_path(
        network, 0.1, 4, batch_size=5, start=np.array([2.0, 1.0]), seed=2, x_star=x_star
    )
    random, w, path = np.random.default_rng(2), np.array([2.0, 1.0]), []
    for _ in range(4):
        order = random.permutation(20)
        for batch in order.reshape(4, 5):
            path.append((w, batch))
            w = w - 0.1 * a[batch].T @ (a[batch] @ w - y[batch]) / 5
    end = w if x_star is None else x_star
    e = np.array([np.mean((a[batch] @ (v - end)) ** 2) / 2 for v, batch in path]).reshape(4, 4)
    assert found.residual == pytest.approx(e.sum(axis=1), rel=1e-12)
    assert found.epochs == found.steps == 1.0
    marks = [path[k][0] for k in (0, 4, 8, 12)] + [w]
    assert found.distance == pytest.approx([np.linalg.norm(v - end) for v in marks])
    assert found.loss == pytest.approx([np.mean((a @ v - y) ** 2) / 2 for v in marks])
    gradients = [(a @ v - y)[:, None] * a for v in marks]
    assert found.variance == pytest.approx([g.var(axis=0).sum() for g in gradients])
    assert ("its own end" in repr(found)) is not given


def test_a_step_that_is_not(regression):
    """f(w) = 1 − cos w, between two minima: a step at 2 goes away from the far one."""

    class Wave(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor([2.0]))

        def forward(self, x):
            return 1 - torch.cos(self.w) + 0 * x

    network = fp.Network.from_torch(Wave(), lambda out, y: out[:, 0] - y, (np.zeros((2, 1)), np.zeros(2)))
    far = fp.diagnostics.star_convex_path(network, 0.1, 3, batch_size=2, x_star=[2 * np.pi])
    near = fp.diagnostics.star_convex_path(network, 0.1, 3, batch_size=2, x_star=[0.0])
    assert near.steps == 1.0 and far.steps == 0.0 and (far.residual < 0).all()


def test_bad_arguments(regression):
    network = regression[0]
    for arguments, message in (
        ((-1.0, 3), "learning_rate is -1"),
        ((0.1, 0), "epochs is 0"),
        ((0.1, 3, 21), "batch_size is 21; an integer between 1 and 20"),
    ):
        with pytest.raises(ValueError, match=message):
            fp.diagnostics.star_convex_path(network, *arguments[:2], batch_size=(*arguments, 5)[2])
    with pytest.raises(ValueError, match="diverges"):
        fp.diagnostics.star_convex_path(network, 1e6, 200, batch_size=5)
