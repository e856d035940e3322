"""A small run that draws from every generator, how it is stopped, and how two runs are compared."""

import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from conftest import QUIET, TinyNet, random_batches
from eva_utils import main as engine
from eva_utils.utils.runtime import seed_everything
from plain import SCHEDULERS, assert_equal_weights


class Restless(nn.Module):
    """Draws from every generator as it trains, so that a resumed run must restore them all."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        if self.training:
            x = x * (1 + 0.1 * (random.random() + np.random.rand()) + 0.1 * torch.randn(len(x), 1, 1, 1))
        return self.net(x)


def make_run(scheduler="plateau", epochs=5, **options):
    """Everything a run needs, made the same each time."""
    seed_everything(11)
    model = Restless(TinyNet())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = DataLoader(random_batches(22), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(2))
    test_loader = DataLoader(random_batches(13, seed=4), batch_size=8)
    options = {"optimizer": optimizer, "scheduler": SCHEDULERS[scheduler](optimizer), **QUIET, **options}
    return model, engine.fit(model, loader, test_loader, epochs=epochs, **options)


class StopAfter:
    """A log that interrupts, as Ctrl-C would, when the epoch after the given one begins."""

    def __init__(self, epoch):
        self.epoch, self.lines = epoch, []

    def __call__(self, line):
        self.lines.append(line)
        if line == f"EPOCH: {self.epoch + 1}":
            raise KeyboardInterrupt


def without_time(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history.rows]


def check_resumes_exactly(run, folder):
    """`run` makes its parts anew, passes its options to fit, and returns the modules that train, and the record."""
    modules, history = run()
    run(log=StopAfter(2), checkpoint=folder, resume="auto")
    resumed_modules, resumed = run(checkpoint=folder, resume="auto")
    assert without_time(resumed) == without_time(history)
    assert_equal_weights(resumed_modules.state_dict(), modules.state_dict())


def train_telling(teller, **options):
    """Train 30 epochs of `make_run`'s, as a process of its own that sends each line of its log."""
    make_run(epochs=30, resume="auto", log=teller.send, **options)
