"""3x3 convolutions whose backward pass is fast on small maps in bfloat16 on the CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# `weight_gradient` is the faster one for so many images, so many channels, and no more columns of the output
# (benchmarks/conv_speed.py).
IMAGES, CHANNELS, COLUMNS = 32, 128, 8


def weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """Return the gradient of the weight (O, C, 3, 3) of a convolution of x (N, C, H, W) with a padding of 1.

    The CPU's kernels go along the rows of a map, and a row of 8 or 4 fills a fraction of their registers. Here rows
    run over the images instead: each of the three columns of the filter has the gradient of a 3x1 convolution in
    which the columns of the map are the batch, and the images the width.

    Args:
        gradient: the gradient of the output, (N, O, ceil(H / stride), ceil(W / stride)).
        x: the input, of the same dtype.
        weight: tells shape and dtype; its values do not count.
        stride: of the convolution, both ways.
    """
    columns, outputs = x.shape[3], gradient.shape[3]
    gradient, x = (_images_along_rows(maps) for maps in (gradient, x))
    column = weight.new_empty((*weight.shape[:3], 1))
    parts = []
    for tap in range(3):  # output column v meets input column stride * v + tap - 1
        first, last = int(tap == 0), min(outputs - 1, (columns - tap) // stride)
        if first > last:
            parts.append(torch.zeros_like(column))
            continue
        met = x[stride * first + tap - 1 : stride * last + tap : stride]
        _, part, _ = torch.ops.aten.convolution_backward(
            gradient[first : last + 1], met, column, None,
            [stride, 1], [1, 0], [1, 1], False, [0, 0], 1, [False, True, False],
        )  # fmt: skip
        parts.append(part)
    return torch.cat(parts, dim=3)


def _images_along_rows(maps: Tensor) -> Tensor:
    """Turn maps (N, C, H, W) into (W, C, H, N), in channels last."""
    maps = maps.permute(0, 2, 3, 1).contiguous()  # no copy from channels last, and from there the next one is fast
    return maps.permute(2, 1, 0, 3).contiguous().permute(0, 3, 1, 2)


class SmallMapConvolution(torch.autograd.Function):
    """A 3x3 convolution with a padding of 1 and no bias, whose backward pass calls `weight_gradient`.

    That is so even when only the gradient of the input is asked for. It has no forward-mode derivative.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: int) -> Tensor:
        return F.conv2d(x, weight, stride=stride, padding=1)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        x, weight, ctx.stride = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        below = None
        if ctx.needs_input_grad[0]:
            below, _, _ = torch.ops.aten.convolution_backward(
                gradient, x, weight, None,
                [ctx.stride] * 2, [1, 1], [1, 1], False, [0, 0], 1, [True, False, False],
            )  # fmt: skip
        return below, weight_gradient(gradient, x, weight, ctx.stride) if ctx.needs_input_grad[1] else None, None


def convolve(layer: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    """Return what the layer makes of x (N, C, H, W) with this weight in place of its own.

    Where it trains 3x3 filters on small maps, and autocast computes them in bfloat16 on the CPU, the backward pass is
    that of `SmallMapConvolution`; its values are torch's but for the order in which products are added up.
    """
    if torch.is_autocast_enabled("cpu") and torch.is_grad_enabled() and _small(layer, x, weight):
        return SmallMapConvolution.apply(x.bfloat16(), weight.bfloat16(), layer.stride[0])
    return layer._conv_forward(x, weight, layer.bias)


def _small(layer: nn.Conv2d, x: Tensor, weight: Tensor) -> bool:
    stride = layer.stride[0]
    plain = layer.bias is None and layer.groups == 1 and layer.padding_mode == "zeros" and layer.stride[1] == stride
    form = layer.kernel_size == (3, 3) and layer.padding == layer.dilation == (1, 1)
    halves = (torch.float32, torch.bfloat16)  # what autocast takes for a convolution in bfloat16
    typed = x.dtype in halves and weight.dtype in halves and torch.get_autocast_dtype("cpu") == torch.bfloat16
    trained = weight.requires_grad and x.device.type == weight.device.type == "cpu"
    sized = x.ndim == 4 and len(x) >= IMAGES and x.shape[1] >= CHANNELS and x.shape[3] <= COLUMNS * stride
    return plain and form and typed and trained and sized


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` that convolves by `convolve`."""

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self._conv_forward(input, self.weight, self.bias)
        else:
            return convolve(self, input, self.weight)
