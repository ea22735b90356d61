"""The demos run on two ranks, keep what they claim (they assert it), and leave pictures that show something."""

import shutil
from pathlib import Path

import numpy as np
import pytest

DEMOS = sorted((Path(__file__).parents[1] / "demos").glob("[0-9]*.py"))
PICTURES = {
    "01_single_neuron": ["single_neuron"],
    "02_degenerate_walls": ["degenerate_walls"],
    "05_noisy_sgd": ["noisy_sgd"],
    "04_two_phases": ["two_phases"],
    "06_entropy_decay": ["entropy_decay"],
    "03_escape": ["escape"],
    "07_network_slice": ["network_slice"],
    "08_convolutional_slice": ["convolutional_slice"],
    "09_optimisers": ["optimisers"],
    "10_interpolation": ["interpolation"],
    "11_star_convex_path": ["star_convex_path"],
}


def test_every_demo_is_known():
    assert {demo.stem for demo in DEMOS} == set(PICTURES)


@pytest.mark.parametrize("demo", DEMOS, ids=lambda demo: demo.stem)
def test_demo(demo, tmp_path, mpirun):
    for module in ("gmsh", "matplotlib", "scipy", "sklearn", "slepc4py", "torch"):
        pytest.importorskip(module)
    copy = tmp_path / demo.name  # output goes beside the demo
    shutil.copy(demo, copy)
    run = mpirun(2, copy, timeout=1500)
    assert run.stdout.strip(), "the demo prints its answers"
    for name in PICTURES[demo.stem]:
        check_picture(tmp_path / "output" / f"{name}.png")


def check_picture(path):
    from matplotlib.image import imread

    image = imread(path)[..., :3]
    assert image.shape[0] > 300 and image.shape[1] > 400, f"{path}: {image.shape}"
    assert image.std() > 0.05, f"{path} is almost of one colour"
    inside = image[100:-100, 100:-100]
    assert len(np.unique(inside.reshape(-1, 3), axis=0)) > 50, f"{path} shows next to nothing"
