"""The layer whose map Grad-CAM shows where none is named, and whether a layer has one."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from .failures import failure_explained

LEAST_SIDE = 5


def deepest_layer(model: nn.Module, images: Tensor, as_map: Callable[[Tensor], Tensor]) -> str:
    """Return the layer that ends last of those which hold a convolution and give a map of at least 5x5.

    Args:
        model: is run on the first image, as it is.
        images: (N, C, H, W).
        as_map: turns a layer's output into a map, if it can.

    Raises:
        ValueError: there is none, or the network embeds patches by its only convolution and goes on in tokens.
    """
    modules, found, tokens = dict(model.named_modules()), [], []

    def note(name: str, convolves: bool) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(module, nn.LayerNorm) and isinstance(output, Tensor) and output.ndim == 3:
                tokens.append(name)
            shape = as_map(output).shape if convolves and isinstance(output, Tensor) else ()
            if len(shape) == 4:
                side = min(shape[1:3] if is_channels_last(tuple(shape), images) else shape[2:])
                if side >= LEAST_SIDE:
                    found.append(name)

        return hook

    with ExitStack() as stack:
        for name, module in modules.items():
            convolves = any(isinstance(part, nn.Conv2d) for part in module.modules())
            if name:
                stack.callback(module.register_forward_hook(note(name, convolves)).remove)
        with failure_explained(model, images):
            model(images[:1])
    convolutions = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
    if tokens and len(convolutions) == 1 and modules[convolutions[0]].stride != (1, 1):
        raise ValueError(
            f"the only convolution, {convolutions[0]!r}, embeds patches, and the network goes on in tokens; name a "
            "layer in layers=, as the norm before the last attention, and pass reshape= to make a map (N, C, h, w) "
            "of its output (N, T, C)"
        )
    if not found:
        raise ValueError(f"no convolution gives a map of at least {LEAST_SIDE}x{LEAST_SIDE}; choose layers= by name")
    return found[-1]


def check_map(shape: tuple[int, ...], name: str, images: Tensor, *, reshaped: bool) -> None:
    """Raise ValueError unless a layer's output is a map (N, C, h, w), as far as its shape shows."""
    if len(shape) != 4:
        raise ValueError(
            f"layer {name!r} gives {shape} and not a map (N, C, h, w); choose a layer before it, or "
            "pass reshape= to make a map of it"
        )
    if not reshaped and is_channels_last(shape, images):
        raise ValueError(
            f"layer {name!r} gives {shape} for images {tuple(images.shape)}, as it seems (N, h, w, C) and no map "
            "(N, C, h, w); name it in layers= and pass reshape=lambda output: output.permute(0, 3, 1, 2), or "
            "reshape=lambda output: output if it is one after all"
        )


def is_channels_last(shape: tuple[int, ...], images: Tensor) -> bool:
    """Whether a shape looks like (N, h, w, C): h to w is as in the images, up to two pixels of padding, and w to C not.

    As many channels as the map has columns are not told apart.
    """
    height, width = images.shape[2:]

    def has_their_form(rows: int, columns: int) -> bool:
        return abs(rows * width - columns * height) <= 2 * max(height, width)

    return has_their_form(shape[1], shape[2]) and not has_their_form(shape[2], shape[3])
