"""Errors of a run, explained by their cause."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .names import first_line


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or this process, has no memory left."""
    said = (
        "out of memory",
        "can't allocate memory",
        "not enough memory",
        "ALLOC_FAILED",
        "ALLOCATION_FAILED",
        "Invalid buffer size",  # MPS's words for a tensor that is larger than its memory
        "unable to find an engine",  # cuDNN's words where no way to compute a convolution has room
    )
    words = str(error) if isinstance(error, RuntimeError) else ""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(part in words for part in said)


def is_device_lost(error: BaseException | None) -> bool:
    """Whether after an error nothing on a CUDA device can be read or written any more, as after a failed assertion."""
    # A ValueError where it came on a first batch, and was explained.
    return isinstance(error, RuntimeError | ValueError) and "CUDA error" in str(error) and not is_lack_of_memory(error)


def overflow_advice(dtype: torch.dtype) -> str:
    """Return what else to try where a loss is not finite: float16 overflows where the other precisions do not."""
    return "; float16 ends at 65504, so try precision='float32' too" if dtype == torch.float16 else ""


def free_memory(error: BaseException) -> None:
    """Let go of a batch that found no memory: a notebook keeps the error, and with it the batch's tensors."""
    if is_lack_of_memory(error):
        traceback.clear_frames(error.__traceback__)


def is_misfit(error: Exception) -> bool:
    """Whether a model's error may be its images' fault; lack of memory and a killed worker are not."""
    return not is_lack_of_memory(error) and "worker" not in str(error)


def explain_failure(model: nn.Module, shape: tuple[int, ...], error: Exception) -> str:
    """Say why a model may have failed on its first batch, whose images have this shape."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is not None and len(shape) != 4:
        return f"the model is a convnet and the images are {shape}; give it batches (N, C, H, W)"
    if first is not None and "channels" in str(error) and first.in_channels != shape[1]:
        if first.in_channels == shape[3]:
            return (
                f"the images are {shape}, channels last; give (N, C, H, W), as images.permute(0, 3, 1, 2) makes of them"
            )
        return (
            f"the model takes images of {first.in_channels} channels and these are {shape}; "
            f"repeat or drop channels, or build its first layer for {shape[1]}"
        )
    return f"the model failed on images {shape}{_failing_layer(model, error)}: {first_line(error)}"


def _failing_layer(model: nn.Module, error: Exception) -> str:
    """Name the innermost layer that an error passed through, what it was given, and what would fit that."""
    names, said = {module: name for name, module in model.named_modules() if name}, ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        layer, given = frame.f_locals.get("self"), frame.f_locals.get("input")
        if isinstance(layer, nn.Module) and layer in names:
            said = f", in {names[layer]}"
            if isinstance(given, Tensor):
                shape = tuple(given.shape)
                said += f", {layer!r}, which was given {shape}{_remedy(layer, shape)}"
    return said


def _remedy(layer: nn.Module, given: tuple[int, ...]) -> str:
    """Say what a layer should be for its input, where that is plain."""
    if isinstance(layer, nn.Linear) and given and given[-1] != layer.in_features:
        if len(given) == 4:
            return " (flatten maps before it: x.flatten(1))"
        return f" (for these it is nn.Linear({given[-1]}, {layer.out_features}))"
    if isinstance(layer, nn.LayerNorm) and len(given) == 4:
        return f" (of maps normalize all channels together by nn.GroupNorm(1, {given[1]}))"
    if isinstance(layer, nn.Conv2d) and len(given) == 4 and given[1] != layer.in_channels:
        return f" (for these its in_channels are {given[1]})"
    if isinstance(layer, nn.BatchNorm2d) and len(given) == 4 and given[1] != layer.num_features:
        return f" (for these it is nn.BatchNorm2d({given[1]}))"
    return ""


@contextmanager
def failure_explained(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Turn the error of a model that runs on its first images into one that says what does not fit."""
    try:
        yield
    except RuntimeError as error:
        if not is_misfit(error):
            raise
        raise ValueError(explain_failure(model, tuple(images.shape), error)) from error


def explain_end(error: BaseException, place: str, loader: Any) -> None:
    """Put into an error's message where the run ended, and what to do, where its own does not say that.

    Args:
        error: is changed.
        place: names the part of the run, as "epoch 3".
        loader: the batches are of.
    """
    if isinstance(error, FloatingPointError):
        error.args = (f"{place}: {error}",)
    elif is_lack_of_memory(error):
        size = getattr(loader, "batch_size", None)
        advice = "this large; try smaller images"
        if isinstance(size, int) and size > 1:
            advice = f"of {size} images; try batch_size={size // 2}"
        error.args = (f"{place}: out of memory with a batch {advice} ({first_line(error)})",)
    elif "find_unused_parameters" in str(error):
        error.args = (
            f"{place}: several processes wait for a gradient of every parameter in every batch; set "
            "requires_grad_(False) on those that forward() does not use, or train in one process",
        )
    elif "Expected more than 1 value per channel" in str(error):
        error.args = (
            f"{place}: batch normalization has a batch of one image, in maps of one pixel; choose another batch_size, "
            "so that the last batch has more, or give a DataLoader drop_last=True",
        )
