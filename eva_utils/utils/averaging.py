"""Averaged weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .compiling import unwrap
from .failures import is_device_lost
from .parts import copy_model


class MovingAverage(AveragedModel):
    """The exponential moving average of a model's weights and buffers over its steps, in `.module`.

    It is torch's AveragedModel. The first step's weights are copied; the decay is min(decay, (1 + n) / (10 + n)) after
    n steps, so that the weights of the start are soon forgotten (as TensorFlow's ExponentialMovingAverage with
    `num_updates`). Whole numbers are copied, and what begins with an infinite value, as an attention mask.

    Args:
        model: is copied.
        decay: from 0 to below 1; 0.999 averages over about the last 1,000 steps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        # Of a copy: torch copies the model itself, and refuses one that holds what leads to a graph.
        super().__init__(copy_model(unwrap(model)), use_buffers=True)
        self.decay = decay
        self.mixed = [
            (part.is_floating_point() or part.is_complex()) and bool(part.isfinite().all())
            for part in (*self.module.parameters(), *self.module.buffers())
        ]

    def update_parameters(self, model: nn.Module) -> None:
        """Take in the weights of a model; on a GPU without waiting for it, as torch's own way does."""
        steps, model = int(self.n_averaged), unwrap(model)
        take_in = get_ema_multi_avg_fn(min(self.decay, (1 + steps) / (10 + steps)))
        averages: list[Tensor] = []
        weights: list[Tensor] = []
        with torch.no_grad():
            own, given = ((*module.parameters(), *module.buffers()) for module in (self.module, model))
            for ours, theirs, mix in zip(own, given, self.mixed, strict=True):
                if steps and mix:
                    averages.append(ours.detach())
                    weights.append(theirs.detach().to(ours.device))
                else:
                    ours.copy_(theirs)
            if averages:
                take_in(averages, weights, self.n_averaged)
            self.n_averaged += 1


def check_average(average: object) -> None:
    """Raise TypeError unless what is to take in a model's weights does so, or is None."""
    if average is not None and not isinstance(average, AveragedModel):
        raise TypeError(
            "ema of train is an eva_utils.utils.averaging.MovingAverage(model, 0.999) or torch's AveragedModel, not "
            f"{average!r:.60}; fit is the one that takes a decay"
        )


@contextmanager
def averaged(model: nn.Module, decay: float | None) -> Iterator[MovingAverage | None]:
    """Yield the average of a model's weights, and put it into the model in the end; without a decay yield None.

    Where the device is lost there is nothing to put.
    """
    if decay is None:
        yield None
        return
    average, plain_model = MovingAverage(model, decay), unwrap(model)
    lost = False
    try:
        yield average
    except BaseException as error:
        lost = is_device_lost(error)
        raise
    finally:
        if not lost:
            state = average.module.state_dict()
            plain_model.load_state_dict(state)
            for (name, ours), theirs in zip(plain_model.named_buffers(), average.module.buffers(), strict=True):
                if name not in state and not torch.equal(ours, theirs):
                    ours.copy_(theirs)
