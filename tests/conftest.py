import copy
import functools
import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores, and so do the runs they start
    os.environ["OMP_NUM_THREADS"] = "1"
# The tests run on the CPU; those of a GPU by themselves: CUDA_VISIBLE_DEVICES=0 python -m pytest -k cuda
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from eva_utils import main as engine
from eva_utils.utils import shapes, sources
from eva_utils.utils.runtime import seed_everything

pytest.register_assert_rewrite("audited", "cells", "command", "drawn", "plain", "reporting", "runs", "together")
pytest_plugins = ["reporting"]

ROOT = Path(__file__).resolve().parent.parent

# A job in the background of a script ignores Ctrl-C, and so would the runs that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def seeded():
    seed_everything(0)


@pytest.fixture(autouse=True, scope="session")
def shapes_drawn_once():
    """Draw the embedded dataset once a process and give out copies: it takes seconds, and dozens of tests load it."""
    drawn = functools.cache(shapes.make_shapes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "shapes", SimpleNamespace(**vars(shapes)))
        patch.setattr(sources.shapes, "make_shapes", lambda split: copy.deepcopy(drawn(split)))
        yield


class TinyNet(nn.Module):
    """A convolution, dropout and a linear layer: small, and it draws random numbers as it trains."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(6, classes)

    def forward(self, x):
        return self.fc(self.drop(torch.relu(self.norm(self.conv(x))).mean(dim=(2, 3))))


@pytest.fixture
def tiny_net():
    return TinyNet()


def random_batches(count: int = 22, side: int = 8, classes: int = 4, seed: int = 3) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    images = torch.randn(count, 3, side, side, generator=generator) + labels[:, None, None, None]
    return TensorDataset(images, labels)


@pytest.fixture
def loaders():
    """A training loader with a ragged last batch (8, 8, 6) and a test loader (8, 5)."""
    return (
        DataLoader(random_batches(22), batch_size=8, shuffle=True),
        DataLoader(random_batches(13, seed=4), batch_size=8),
    )


@pytest.fixture
def settings_and_open_figures_stay(monkeypatch):
    """Fail a test that shows a window, leaves a figure on pyplot's stack, or changes matplotlib's settings."""
    import matplotlib
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: pytest.fail("nothing may call plt.show()"))
    yield
    assert dict(matplotlib.rcParams) == before and not plt.get_fignums()


IMAGES, LABELS = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4
QUIET = {"log": None, "device": "cpu", "precision": "float32"}


def fit(model, loader, **options):
    """Fit in silence for an epoch and test on one batch."""
    return engine.fit(model, loader, [(IMAGES, LABELS)], **{"epochs": 1, **QUIET, **options})


@pytest.fixture
def image_folder(tmp_path):
    """Two classes of 10x10 images: 6 and 4 to train on, 3 and 2 to test on; lossless."""
    rng = np.random.default_rng(0)
    for part, counts in (("train", (6, 4)), ("test", (3, 2))):
        for name, count in zip(("cat", "dog"), counts, strict=True):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                cv2.imwrite(str(folder / f"{number:02d}.png"), rng.integers(0, 256, (10, 10, 3), np.uint8))
    return tmp_path / "images"


@pytest.fixture(scope="session")
def clone(tmp_path_factory):
    """A real `git clone` named eva_utils, with what is not committed yet; returns the folder above it."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout to clone")
    parent = tmp_path_factory.mktemp("colab")
    cloned = parent / "eva_utils"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(cloned)], check=True)
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (cloned / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, cloned / name)
        else:
            (cloned / name).unlink(missing_ok=True)
    return parent
