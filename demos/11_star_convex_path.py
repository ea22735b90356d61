r"""Is the path of SGD star-convex?  Two networks on handwritten digits, epoch by epoch.

Zhou, Yang, Zhang, Liang and Tarokh (ICLR 2019) explain that SGD finds global minima of networks by a property of its
path: with x* its end and f_B the mean loss of the batch B of step k,

    e_k = ⟨∇f_B(x_k), x_k − x*⟩ − f_B(x_k) + f_B(x*) ≥ 0        (the step is star-convex about x*),

or at least Σ e_k ≥ 0 over an epoch.  For small learning rates SGD then does not move away from x*, because

    |x_{k+1} − x*|² = |x_k − x*|² − 2η ⟨∇f_B(x_k), x_k − x*⟩ + η² |∇f_B(x_k)|².

A fully connected and a convolutional network learn the 1797 images of 8 × 8 pixels that come with scikit-learn, with
reshuffled batches of 32.  Each path is seen from its own end, and from the end of another run with other initial
weights, whose loss is as small.

The verdict: about its own end every epoch is star-convex, and so are nearly all steps, as the paper reports.  About the
other end no epoch is, and SGD moves away from it all the time.  So it is the path that is star-convex about the point
where it happens to go, known only afterwards, and not the landscape about its minima: the property describes
training, and does not predict where it goes.

Run it (a minute; each network has a rank of its own) with

    mpirun -n 2 python3 demos/11_star_convex_path.py
"""

# # Data and networks

from pathlib import Path

from mpi4py import MPI

import numpy as np
import torch
from sklearn.datasets import load_digits

import fpsolver as fp

comm = MPI.COMM_WORLD
OUTPUT = Path(__file__).parent / "output"
EPOCHS, BATCH = 40, 32
torch.set_num_threads(1)
digits = load_digits()
data = (digits.images[:, None] / 16, digits.target)


def fully_connected():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))


def convolutional():
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.Tanh(), torch.nn.Conv2d(8, 8, 3, stride=2), torch.nn.Tanh(),
        torch.nn.Flatten(), torch.nn.Linear(32, 10),
    )  # fmt: skip


def cross_entropy(outputs, labels):
    return torch.nn.functional.cross_entropy(outputs, labels.long(), reduction="none")


NETWORKS = {"fully connected": (fully_connected, 0.1), "convolutional": (convolutional, 0.2)}
SEEN = ("its own end", "the end of another run")


# # Two runs, and one path seen from both ends


def study(name):
    make, eta = NETWORKS[name]
    torch.manual_seed(0)
    network, other = (fp.Network.from_torch(make(), cross_entropy, data) for _ in range(2))
    steps = EPOCHS * -(-network.size // BATCH)
    elsewhere = network.sgd(eta, steps, BATCH, start=other.weights, seed=1, every=steps)[-1]
    own = fp.diagnostics.star_convex_path(network, eta, EPOCHS, batch_size=BATCH)
    far = fp.diagnostics.star_convex_path(network, eta, EPOCHS, batch_size=BATCH, x_star=elsewhere)
    return own, far, float(network.losses(elsewhere).mean())


names = list(NETWORKS)
mine = {name: study(name) for name in names[comm.rank :: comm.size]}
results = {name: r for part in comm.allgather(mine) for name, r in part.items()}
results = {name: results[name] for name in names}

# # Picture


def draw(row, name, own, far):
    epochs = np.arange(1, EPOCHS + 1)
    for path, colour, seen in zip((own, far), ("C0", "C3"), SEEN, strict=True):
        row[0].plot(epochs, path.residual, ".-", color=colour, label=f"x* = {seen}")
        row[1].plot(epochs, 100 * path.share, ".-", color=colour)
        row[2].plot(path.distance, color=colour)
    row[0].axhline(0, color="0.5", lw=0.8)
    row[0].set(yscale="symlog", ylabel=f"{name}\n$\\Sigma\\, e_k$ of the epoch")
    row[1].set(ylabel="per cent of the steps", ylim=(-3, 103))
    row[2].set(ylabel="|x − x*|", ylim=(0, None))
    row[3].semilogy(own.loss, color="C2", label="loss f")
    row[3].semilogy(own.variance, color="C4", label="variance of gradients, tr Σ")


if comm.rank == 0:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 6.4), layout="constrained")
    panels = figure.subplots(2, 4, sharex=True)
    for row, (name, (own, far, _)) in zip(panels, results.items(), strict=True):
        draw(row, name, own, far)
    titles = ("Star-convexity of epochs", "Steps that are star-convex", "Distance from x*", "Loss and noise")
    for ax, title in zip(panels[0], titles, strict=True):
        ax.set_title(title)
    for ax in panels[1]:
        ax.set_xlabel("epoch")
    panels[0, 0].legend(fontsize=9)
    panels[0, 3].legend(fontsize=9)
else:
    figure = None
fp.plot.save(figure, OUTPUT / "star_convex_path.png")

# # Verdict

for name, (own, far, loss) in results.items():
    if comm.rank == 0:
        print(f"\n{name}, learning rate {NETWORKS[name][1]}: loss {own.loss[-1]:.3f}, of the other run {loss:.3f}")
        for path, seen in zip((own, far), SEEN, strict=True):
            nearer = np.mean(np.diff(path.distance) < 0)
            print(f"  about {seen:22} star-convex {path.epochs:5.0%} of the epochs, {path.steps:6.1%} of the steps,")
            print(f"{'':31}|x − x*| {path.distance[0]:.2f} → {path.distance[-1]:.2f}, falling in {nearer:.0%} of them")
    assert max(own.loss[-1], loss) < 0.15 < 2 < own.loss[0], "both runs have learnt the digits"
    assert own.epochs == 1 and own.steps > 0.9, "the path is star-convex about its own end"
    assert (np.diff(own.distance) < 0).mean() > 0.9, "which it approaches all the time"
    assert far.epochs < 0.1 and far.steps < 0.2, "and not about another solution"
    assert far.distance[-1] > far.distance[0], "from which it moves away"
