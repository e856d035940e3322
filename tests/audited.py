"""Records as `fit` would have made them, and their audit by one rule."""

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from eva_utils.models.norms import NORMS
from eva_utils.utils.assignments import Brief
from eva_utils.utils.brief import Audit, audit
from eva_utils.utils.history import History, describe_run
from eva_utils.utils.rules import Finding

LOSSES = [1.0, 0.9, 0.95, 0.94, 0.93, 0.92, 0.8, 0.81, 0.82, 0.83, 0.84, 0.85]


def small(norm="layer"):
    return nn.Sequential(nn.Conv2d(3, 8, 3), NORMS[norm](8), nn.Flatten(), nn.LazyLinear(10))


def record(data, model, *, scheduler=None, warmup=0, lr=0.1, losses=LOSSES):
    """What `fit` would have recorded with these test losses; the accuracies go their own way."""
    model(torch.zeros(2, 3, 32, 32))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    scheduler = scheduler(optimizer) if scheduler else ReduceLROnPlateau(optimizer, factor=0.5, patience=2)
    settings = describe_run(model, optimizer, scheduler, nn.CrossEntropyLoss(), data.train, data.test)
    settings["warmup"] = warmup
    rows = []
    for epoch, loss in enumerate(losses, 1):
        rate = lr * epoch / warmup if epoch < warmup else optimizer.param_groups[0]["lr"]
        accuracy = 50.0 + epoch % 4
        rows.append({"epoch": epoch, "lr": rate, "test_loss": loss, "test_accuracy": accuracy})
        if isinstance(scheduler, ReduceLROnPlateau) and epoch > warmup:
            scheduler.step(loss if scheduler.mode == "min" else accuracy)
    return History(rows, settings)


def normed(*layers):
    return nn.Sequential(nn.Conv2d(3, 8, 3), *layers, nn.Flatten(), nn.LazyLinear(10))


def only(found: Audit) -> Finding:
    (finding,) = found.findings
    return finding


def check(history, model, data, **rules):
    return only(audit(Brief("title", "objective", **rules), history, model, data))
