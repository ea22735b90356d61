r"""Is the path of SGD star-convex?  Two networks on handwritten digits, epoch by epoch.

SGD converges to a minimum x* of a non-convex loss if every step, with its batch B, is star-convex about x*,

    e_k = ⟨∇f_B(x_k), x_k − x*⟩ − f_B(x_k) + f_B(x*) ≥ 0,

or at least the sum of e_k over each epoch is not negative (Zhou, Yang, Zhang, Liang, Tarokh, ICLR 2019); then, up to
the noise,

    |x_{k+1} − x*|² = |x_k − x*|² − 2η ⟨∇f_B(x_k), x_k − x*⟩ + η² |∇f_B(x_k)|²

decreases.  A fully connected and a convolutional network are trained on the 1797 digits of scikit-learn by SGD with
reshuffled batches, to zero training error.  For each epoch the sum of e_k, the share of star-convex steps, |x − x*|,
the loss and the variance of the gradients tr Σ are shown, about two points x*:

- the end of the path itself, as in that paper.  Both networks are star-convex in every epoch; but near its end a path
  about its own end cannot be much else;
- the minimum that the same network found from another start.  It is a minimum of the same loss, and as good; the path
  is not star-convex about it, and does not come closer.

So star-convexity is a property of a path and of its own limit, found with hindsight; it is no property of the
landscape.  The variance of the gradients vanishes with the loss, since all samples are interpolated: SGD stops by
itself.

Run it (about a minute) with PyTorch and scikit-learn:

    mpirun -n 2 python3 demos/11_star_convex_paths.py
"""

# # Data and networks

from pathlib import Path

from mpi4py import MPI

import torch
from sklearn.datasets import load_digits

import fpsolver as fp

OUTPUT = Path(__file__).parent / "output"
COMM = MPI.COMM_WORLD
EPOCHS, BATCH = 40, 32
torch.set_num_threads(1)
images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 1, 8, 8) / 16.0


def fully_connected():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))


def convolutional():
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.Tanh(), torch.nn.AvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(72, 10)
    )


def cross_entropy(outputs, targets):
    return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")


MODELS = {"fully connected": (fully_connected, 0.5), "convolutional": (convolutional, 0.5)}

# # Training: one network a rank


def study(make, learning_rate):
    """The path about its own end, and about the end of another one."""
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = fp.Network.from_torch(make(), cross_entropy, (images, labels))
        x_star = found[0].x_star if found else None
        arguments = {"batch_size": BATCH, "seed": seed, "x_star": x_star}
        found.append(fp.diagnostics.star_convex_path(network, learning_rate, EPOCHS, **arguments))
    return found


mine = {name: study(*MODELS[name]) for name in list(MODELS)[COMM.rank :: COMM.size]}
paths = {name: pair for part in COMM.allgather(mine) for name, pair in part.items()}

# # Picture

if COMM.rank == 0:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6.6), layout="constrained")
    axes = figure.subplots(2, 4, sharex=True)
    for row, (name, pair) in zip(axes, ((n, paths[n]) for n in MODELS), strict=True):
        for path, colour, label in zip(pair, ("C0", "C3"), ("x* = its own end", "x* of another start"), strict=True):
            epoch = range(1, EPOCHS + 1)
            row[0].plot(epoch, path.residual, colour, label=label)
            row[1].plot(epoch, 100 * path.share, colour)
            row[2].plot(range(EPOCHS + 1), path.distance, colour)
        own = pair[0]
        row[3].semilogy(range(EPOCHS + 1), own.loss, "C0", label="loss f")
        row[3].semilogy(range(EPOCHS + 1), own.variance, "C0--", label="tr Σ")
        row[0].axhline(0, color="0.6", lw=0.8)
        row[0].set_yscale("symlog", linthresh=1.0)
        row[0].set_ylabel(f"{name}\n\nsum of $e_k$ over the epoch")
        row[1].set(ylabel="star-convex steps, %", ylim=(-3, 103))
        row[2].set(ylabel="$|x - x^*|$", ylim=(0, None))
        row[3].set_ylabel("loss, variance of the gradients")
    axes[0, 0].legend(fontsize=9)
    axes[0, 3].legend(fontsize=9)
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    OUTPUT.mkdir(exist_ok=True)
    figure.savefig(OUTPUT / "star_convex_paths.png", dpi=150)

# # Report and claims

if COMM.rank == 0:
    for name in MODELS:
        for path in paths[name]:
            print(f"{name}: {path}")
for own, other in paths.values():
    assert own.loss[-1] < 0.02 and other.loss[-1] < 0.02, "both runs reach a minimum"
    assert own.epochs == 1.0, "about its own end every epoch is star-convex"
    assert own.steps > 0.95, "and so is nearly every step"
    assert own.variance[-1] < 0.05 * own.variance.max(), "the noise vanishes with the loss"
    assert other.epochs < 0.5, "about another minimum most epochs are not"
    assert other.distance[-1] > 0.9 * other.distance[0], "and the path does not come closer to it"
