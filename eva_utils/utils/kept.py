"""Random generators, attributes, buffers and modes that are put back as they were."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .runtime import rng_state, set_rng_state


@contextmanager
def keep_rng() -> Iterator[None]:
    """Put every random generator back as it was, also after an exception."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


@contextmanager
def keep_buffers(model: nn.Module) -> Iterator[None]:
    """Put every buffer back as it was, those in no state_dict too, also after an exception."""
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    try:
        yield
    finally:
        for module, name, buffer, value in buffers:
            module._buffers[name] = buffer
            if buffer is None or value is None:
                continue
            if buffer.shape != value.shape:  # as an observer's, which begins empty
                buffer.data = value
                continue
            try:
                buffer.data.copy_(value)
            except RuntimeError:  # an expanded one cannot be written, here or by the model
                if not torch.equal(buffer, value):
                    raise


@contextmanager
def keep_attributes(model: nn.Module) -> Iterator[None]:
    """Put every submodule's attributes back as they were, without what a forward pass has kept or registered."""
    before = [(module, dict(vars(module)), list(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes, buffers in before:
            for name in [name for name in module._buffers if name not in buffers]:
                del module._buffers[name]
            vars(module).clear()
            vars(module).update(attributes)


@contextmanager
def keep_modes(model: nn.Module) -> Iterator[None]:
    """Put every submodule back into training or evaluation mode as it was, also after an exception."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
