"""ResNet-18 and ResNet-34 for small images (He et al., 2016, https://arxiv.org/abs/1512.03385).

The stem is one 3x3 convolution with stride 1 and no pooling, as for CIFAR. Convolutions start from a
normal distribution with variance 2 / fan_out (He et al., 2015), norms from weight 1 and bias 0, the
classifier from torch's default.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.checks import check_whole
from .conv import Conv2d, convolve
from .norms import Norm, channels_first, make_norm


class StandardizedConv2d(nn.Conv2d):
    """A convolution whose weights are standardized, for each output channel, before they are used.

    They get mean 0 and variance 2 / fan_in (Qiao et al., 2019, https://arxiv.org/abs/1903.10520; the
    variance as in Brock et al., 2021, https://arxiv.org/abs/2101.08692). Activations are not touched.
    """

    def forward(self, x: Tensor) -> Tensor:
        return convolve(self, x, standardized(self.weight))


def standardized(weight: Tensor) -> Tensor:
    """Return a weight (out, in, h, w) with mean 0 and variance 2 / fan_in in each output channel."""
    weight = weight.permute(0, 2, 3, 1)  # as it lies in memory in channels last, so in half precision
    weight = (2 / weight.shape[1:].numel()) ** 0.5 * F.layer_norm(weight, weight.shape[1:], eps=1e-6)
    return channels_first(weight)


def conv3x3(inputs: int, outputs: int, stride: int = 1, conv: type[nn.Conv2d] = Conv2d) -> nn.Conv2d:
    """Return a 3x3 convolution that keeps the size (at stride 1) and has no bias, since a norm follows."""
    return conv(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)


def global_max(x: Tensor) -> Tensor:
    """Return the maximum of every map, (N, C, H, W) to (N, C); of equal ones the first has the gradient on a CPU.

    `amax` shares the gradient among them, which takes several times as long on a CPU (benchmarks/conv_speed.py); on
    CUDA it is the one whose gradient is deterministic.
    """
    if x.device.type == "cuda":
        return x.amax(dim=(2, 3))
    return F.adaptive_max_pool2d(x, 1).flatten(1)


def init_convolutions(model: nn.Module) -> None:
    """Draw every convolution's weight from a normal distribution with variance 2 / fan_out, in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions added to a shortcut: (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        norm: Callable[[int], nn.Module],
        conv: type[nn.Conv2d] = Conv2d,
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride, conv)
        self.norm1 = norm(outputs)
        self.conv2 = conv3x3(outputs, outputs, 1, conv)
        self.norm2 = norm(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            projection = conv(inputs, outputs, kernel_size=1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """Stem, four stages `layer1` to `layer4` of basic blocks, average pooling and a linear classifier.

    Args:
        blocks: basic blocks in each of the four stages.
        num_classes: width of the logits.
        norm: see `eva_utils.models.norms.make_norm`; no other normalization is in the model.
        last_stride: stride of `layer4`; 2 gives it 4x4 maps on a 32x32 image, 1 gives 8x8.
        standardize: whether every convolution standardizes its weights, see `StandardizedConv2d`.

    Raises:
        ValueError: `num_classes` is no whole number from 1 up, the norm is unknown, or `last_stride` neither 1 nor 2.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        num_classes: int = 10,
        norm: Norm = "batch",
        last_stride: int = 2,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        check_whole("num_classes", num_classes, 1)
        if last_stride not in (1, 2):
            raise ValueError(f"last_stride is 1 or 2, not {last_stride!r}")
        make, conv = make_norm(norm), StandardizedConv2d if standardize else Conv2d
        self.conv1 = conv3x3(3, 64, 1, conv)
        self.norm1 = make(64)
        self.layer1 = self._stage(64, 64, blocks[0], 1, make, conv)
        self.layer2 = self._stage(64, 128, blocks[1], 2, make, conv)
        self.layer3 = self._stage(128, 256, blocks[2], 2, make, conv)
        self.layer4 = self._stage(256, 512, blocks[3], last_stride, make, conv)
        self.fc = nn.Linear(512, num_classes)
        init_convolutions(self)

    @staticmethod
    def _stage(
        inputs: int,
        outputs: int,
        blocks: int,
        stride: int,
        norm: Callable[[int], nn.Module],
        conv: type[nn.Conv2d],
    ) -> nn.Sequential:
        first = BasicBlock(inputs, outputs, stride, norm, conv)
        return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1, norm, conv) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean(dim=(2, 3)))


def resnet18(num_classes: int = 10, norm: Norm = "batch", last_stride: int = 2, standardize: bool = False) -> ResNet:
    """Build a ResNet-18 of 11,173,962 parameters at 10 classes, for images (N, 3, H, W) from 8x8 up.

    That of He et al. (2015, https://arxiv.org/abs/1512.03385) with the stem of their networks for CIFAR-10, a 3x3
    convolution and no pooling. Arguments and errors are those of `ResNet`.
    """
    return ResNet((2, 2, 2, 2), num_classes, norm, last_stride, standardize)


def resnet34(num_classes: int = 10, norm: Norm = "batch", last_stride: int = 2, standardize: bool = False) -> ResNet:
    """Build a ResNet-34 of 21,282,122 parameters at 10 classes; all else is as in `resnet18`."""
    return ResNet((3, 4, 6, 3), num_classes, norm, last_stride, standardize)
