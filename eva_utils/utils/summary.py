"""torchsummary's table without its side effects."""

import contextlib
import io
import re

import torch
from torch import nn

from .checks import check_model
from .compiling import unwrap
from .kept import keep_rng
from .names import first_line
from .parts import copy_model, drop_parametrizations


def summary(model: nn.Module, input_size: tuple[int, int, int]) -> str:
    """Return torchsummary's table of layers, output shapes and parameters as text.

    The table is made on a copy on the CPU, in evaluation mode and with the random generators put back,
    so that nothing of the model changes. What there is of parameters is counted on the model itself.

    Args:
        model: on any device.
        input_size: (channels, height, width) of one image.

    Raises:
        TypeError: `model` is no model.
        ModuleNotFoundError: the torchsummary package is missing.
        ValueError: `input_size` is not three positive whole numbers, the model does not take such images, or
            torchsummary does not take the model, as one whose layers return more than tensors.
    """
    check_model(model)
    three = isinstance(input_size, tuple | list) and len(input_size) == 3
    if not three or not all(isinstance(side, int) and side > 0 for side in input_size):
        raise ValueError(f"input_size is (channels, height, width), as (3, 32, 32), not {input_size!r:.60}")
    try:
        import torchsummary
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"summary needs torchsummary ({error}); pip install torchsummary") from error

    table = io.StringIO()
    with keep_rng(), torch.no_grad(), contextlib.redirect_stdout(table):
        trial = copy_model(unwrap(model)).cpu().float().eval()
        try:
            trial(torch.rand(2, *input_size))
        except Exception as error:
            size = f"(channels, height, width) = {input_size}"
            raise ValueError(f"the model does not take {size}: {first_line(error)}") from error
        drop_parametrizations(trial)  # else each look at such a weight would be a row
        try:
            torchsummary.summary(trial, tuple(input_size), device="cpu")
        except Exception as error:  # what its hooks make of outputs they do not know
            kind = type(model).__name__
            raise ValueError(
                f"torchsummary cannot list the layers of this {kind} ({first_line(error)}); print(model) does"
            ) from error
    parameters = list(model.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    megabytes = round(sum(parameter.numel() * parameter.element_size() for parameter in parameters) / 2**20, 2)
    text = table.getvalue().strip("\n")
    passes = sum(
        map(float, re.findall(r"^(?:Input size|Forward/backward pass size) \(MB\): (.*)$", text, re.MULTILINE))
    )
    for label, value in (
        ("Total params", f"{total:,}"),
        ("Trainable params", f"{trainable:,}"),
        ("Non-trainable params", f"{total - trainable:,}"),
        (r"Params size \(MB\)", f"{megabytes:.2f}"),
        (r"Estimated Total Size \(MB\)", f"{passes + megabytes:.2f}"),
    ):
        text = re.sub(rf"^({label}): .*$", rf"\g<1>: {value}", text, flags=re.MULTILINE)
    return text
