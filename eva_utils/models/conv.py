"""3x3 convolutions whose backward pass is fast on small maps in bfloat16 on the CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDEST = 8  # columns of an output for which `weight_gradient` is faster than torch's own


def weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """Return the gradient of the weight (O, C, 3, 3) of a convolution of x (N, C, H, W) with a padding of 1.

    The kernels of the CPU go along the rows of a map, and a row of 8 or 4 fills a fraction of their registers. Here
    rows run over the images instead: of the three columns of the filter, each one's gradient is that of a 3x1
    convolution in which the columns of the map are the batch, and the images the width.

    Args:
        gradient: the gradient of the output, (N, O, ceil(H / stride), ceil(W / stride)).
        x: the input, of the same dtype.
        weight: tells shape and dtype; its values do not count.
        stride: of the convolution, both ways.
    """
    columns, outputs = x.shape[3], gradient.shape[3]
    x, gradient = (maps.permute(3, 2, 0, 1).contiguous().permute(0, 3, 1, 2) for maps in (x, gradient))
    column = weight[..., :1]
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


class SmallMapConvolution(torch.autograd.Function):
    """A 3x3 convolution with a padding of 1 and no bias, whose backward pass calls `weight_gradient`."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, stride=stride, padding=1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, weight = ctx.saved_tensors
        below = None
        if ctx.needs_input_grad[0]:
            below, _, _ = torch.ops.aten.convolution_backward(
                gradient, x, weight, None,
                [ctx.stride] * 2, [1, 1], [1, 1], False, [0, 0], 1, [True, False, False],
            )  # fmt: skip
        return below, weight_gradient(gradient, x, weight, ctx.stride), None


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`, with a faster backward pass where it trains 3x3 filters on small maps in bfloat16 on the CPU.

    The values are the same but for the order in which products are added up. See `benchmarks/conv_speed.py`.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        stride = self.stride[0]
        plain = (
            self.kernel_size == (3, 3) and self.padding == self.dilation == (1, 1) and self.stride == (stride, stride)
            and self.groups == 1 and self.padding_mode == "zeros" and bias is None
        )  # fmt: skip
        trained = torch.is_grad_enabled() and weight.requires_grad
        if plain and trained and input.device.type == "cpu" and input.shape[-1] <= WIDEST * stride and input.ndim == 4:
            dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
            if dtype == torch.bfloat16:
                return SmallMapConvolution.apply(input.to(dtype), weight.to(dtype), stride)
        return super()._conv_forward(input, weight, bias)
