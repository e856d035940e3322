"""`torch.compile` around a model while it trains, and the model inside its wrappers."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import nn

from .names import first_line, unknown_name

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def check_compile(mode: bool | str, device: torch.device) -> None:
    """Raise ValueError unless `torch.compile` works on this device in this mode; False asks for nothing.

    A small function is compiled, which takes seconds and on the CPU needs a C++ compiler.
    """
    if mode is False:
        return
    if mode is not True and mode not in COMPILE_MODES:
        raise unknown_name("compile mode", mode, COMPILE_MODES)
    try:
        torch.compile(lambda x: 2 * x.sin())(torch.ones(8, device=device))
    except Exception as error:
        wanted = "Triton, as pip install triton does," if device.type == "cuda" else _compiler()
        raise ValueError(
            f"compile={mode!r} does not work here ({first_line(error)}); install {wanted} or leave compile out"
        ) from error


def _compiler() -> str:
    named = {"win32": "cl of Visual Studio's build tools,", "darwin": "clang, by xcode-select --install,"}
    return f"a C++ compiler such as {named.get(sys.platform, 'g++,')}"


@contextmanager
def compiled(model: nn.Module, mode: bool | str) -> Iterator[None]:
    """Run the model's forward through `torch.compile` while the context lasts; False changes nothing.

    What was compiled is given up then, in the whole process: torch would keep it, with the memory of its CUDA graphs,
    and compiles no more than eight variants of one function.
    """
    before = getattr(model, "_compiled_call_impl", None)
    if mode is not False:
        model.compile(mode=None if mode is True else mode)
    try:
        yield
    finally:
        model._compiled_call_impl = before
        if mode is not False:
            with suppress(RuntimeError):  # of a device that was lost, whose own error is to be seen
                torch.compiler.reset()


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside torch.compile's and the parallel wrappers."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]
        elif isinstance(model, wrappers):
            model = model.module
        else:
            return model
