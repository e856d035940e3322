"""Loops and schedules as a textbook has them, for the tests that compare `fit` with them."""

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

from conftest import random_batches


def new_loaders():
    return (
        DataLoader(random_batches(22), batch_size=8, shuffle=True),
        DataLoader(random_batches(13, seed=4), batch_size=8),
    )


def plain_loop(model, loaders, epochs, optimizer, step_batch=None, step_epoch=None):
    """A loop as a textbook has it; returns the rows it would publish."""
    rows = []
    for _ in range(epochs):
        model.train()
        loss_sum = correct = count = 0
        for x, y in loaders[0]:
            optimizer.zero_grad()
            logits = model(x)
            loss = nn.functional.cross_entropy(logits, y)
            loss.backward()
            optimizer.step()
            if step_batch:
                step_batch()
            loss_sum += loss.item() * len(y)
            correct += (logits.argmax(1) == y).sum().item()
            count += len(y)
        model.eval()
        with torch.no_grad():
            logits, targets = zip(*((model(x), y) for x, y in loaders[1]), strict=True)
        logits, targets = torch.cat(logits), torch.cat(targets)
        test_loss = nn.functional.cross_entropy(logits, targets).item()
        accuracy = 100 * (logits.argmax(1) == targets).sum().item() / len(targets)
        rows.append((loss_sum / count, 100 * correct / count, test_loss, accuracy))
        if step_epoch:
            step_epoch(test_loss)
    return rows


def assert_equal_weights(first, second):
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name


def assert_same_weights(first, second):
    assert_equal_weights(first.state_dict(), second.state_dict())


def assert_same_rows(history, rows):
    for row, expected in zip(history.rows, rows, strict=True):
        found = (row["train_loss"], row["train_accuracy"], row["test_loss"], row["test_accuracy"])
        assert found == pytest.approx(expected, rel=1e-6)


SCHEDULERS = {
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5, threshold=0.5),
    # Cuts after the fourth epoch, so that a stop after the second one falls into its count.
    "plateau_patient": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=2, factor=0.5, threshold=0.9),
    "plateau_max": lambda o: lr_scheduler.ReduceLROnPlateau(o, mode="max", patience=0, factor=0.5),
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, epochs=5, steps_per_epoch=3),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=4),
    "step": lambda o: lr_scheduler.StepLR(o, 2, gamma=0.5),
    "multi_step": lambda o: lr_scheduler.MultiStepLR(o, [1, 3], gamma=0.5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "constant": lambda o: lr_scheduler.ConstantLR(o, factor=1),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=2), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[2]
    ),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
}


PER_BATCH = {"one_cycle", "cyclic"}


class Poison(nn.Module):
    """Passes images through until a chosen call, whose output is made NaN or is an interruption."""

    def __init__(self, net, call, what):
        super().__init__()
        self.net, self.call, self.what, self.calls = net, call, what, 0

    def forward(self, x):
        if self.training:
            self.calls += 1
            if self.calls == self.call:
                if isinstance(self.what, BaseException):
                    raise self.what
                return self.net(x) * self.what
        return self.net(x)
