"""Residual networks that learn CIFAR-10 in minutes on two CPU cores, with LayerNorm."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.checks import check_whole
from .conv import Conv2d
from .flip import FlipConv2d, FlipLift, FlipNorm, FlipPool
from .norms import Norm, make_norm
from .resnet import StandardizedConv2d, conv3x3, global_max, init_convolutions


class ResidualConv(nn.Module):
    """A 3x3 convolution, norm and activation added to what goes in: (N, channels, H, W) to the same shape."""

    def __init__(
        self,
        channels: int,
        norm: Callable[[int], nn.Module],
        conv: Callable[[int, int], nn.Module],
        activation: type[nn.Module],
    ) -> None:
        super().__init__()
        self.conv = conv(channels, channels)
        self.norm = norm(channels)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.activation(self.norm(self.conv(x)))


class Whitening(nn.Conv2d):
    """A frozen 2x2 convolution (N, 3, H, W) to (N, 24, H - 1, W - 1) that `whiten` sets from images.

    Its first 12 outputs are then uncorrelated, with a mean square of 1 each, less where patches hardly
    vary; the others are their negatives, which the activation after them would lose
    (Page, 2019, https://myrtle.ai/learn/how-to-train-your-resnet-8-bag-of-tricks/).
    """

    def __init__(self) -> None:
        super().__init__(3, 24, kernel_size=2, bias=False)
        self.weight.requires_grad_(False)

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Set the weights from a batch of normalized images (N, 3, H, W), a hundred or more."""
        patches = F.unfold(images.cpu().double(), 2).transpose(1, 2).flatten(0, 1)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / (values + 5e-4).sqrt()).T.view(12, 3, 2, 2)
        self.weight.copy_(torch.cat([filters, -filters]))


class FlipWhitening(Whitening):
    """A `Whitening` before the layers of `flip.py`: (N, 3, H, W) to (N, 48, H - 1, W - 1), half by flipped filters."""

    def __init__(self) -> None:
        super().__init__()
        self.out_channels *= 2

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, torch.cat([self.weight, self.weight.flip(3)]), None)


class SpeedResNet(nn.Module):
    """Stages of a convolution, max pooling by 2 while the map is large, norm, activation and one residual convolution.

    The shape, the head on the maximum of the maps and its small logits are those of the fast CIFAR-10 trainings
    (Jordan, 2024, https://arxiv.org/abs/2404.00498), without their batch normalization.

    Args:
        widths: channels of each stage, `layer1` and so on.
        pooled: how many of the first stages halve the map.
        num_classes: width of the logits.
        norm: see `eva_utils.models.norms.make_norm`; no other normalization is in the model.
        standardize: whether every trained convolution standardizes its weights, see `StandardizedConv2d`.
        whitened: whether a `Whitening` comes first, to be set by `model.whiten(images)` before training; the
            activation is then GELU, else ReLU.
        flip_invariant: whether the layers are those of `flip.py`, so that a flipped image has the same logits.

    Raises:
        ValueError: `num_classes` is no whole number from 1 up, or the norm is unknown.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        pooled: int,
        num_classes: int = 10,
        norm: Norm = "layer",
        standardize: bool = False,
        whitened: bool = False,
        flip_invariant: bool = False,
    ) -> None:
        super().__init__()
        check_whole("num_classes", num_classes, 1)
        self.stages, self.flip_invariant = len(widths), flip_invariant
        activation: type[nn.Module] = nn.GELU if whitened else nn.ReLU
        make, whitening = make_norm(norm), Whitening
        pool: Callable[[], nn.Module] = partial(nn.MaxPool2d, 2)
        conv: Callable[[int, int], nn.Module] = partial(conv3x3, conv=StandardizedConv2d if standardize else Conv2d)
        first = conv
        if flip_invariant:
            make, whitening, pool = partial(FlipNorm, make), FlipWhitening, FlipPool
            conv = partial(FlipConv2d, standardize=standardize)
            first = conv if whitened else partial(FlipLift, standardize=standardize)
        self.whitening = whitening() if whitened else None
        images = 3 if self.whitening is None else self.whitening.out_channels
        for number, (inputs, outputs) in enumerate(pairwise((images, *widths)), start=1):
            pooling = [pool()] if number <= pooled else []
            convolution = (first if number == 1 else conv)(inputs, outputs)
            last = ResidualConv(outputs, make, conv, activation)
            setattr(self, f"layer{number}", nn.Sequential(convolution, *pooling, make(outputs), activation(), last))
        self.fc = nn.Linear(widths[-1] // (2 if flip_invariant else 1), num_classes, bias=False)
        init_convolutions(self)

    def whiten(self, images: Tensor) -> None:
        """Set the frozen first layer from a batch of normalized training images (N, 3, H, W), a hundred or more.

        Raises:
            ValueError: the network has no such layer, or these are no such images.
        """
        if self.whitening is None:
            raise ValueError("this network has no whitening layer; those with whitened_ in their names have one")
        found = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        fits = isinstance(images, Tensor) and images.is_floating_point() and images.ndim == 4 and images.shape[1] == 3
        if not fits or not len(images) or min(images.shape[2:]) < 2:
            raise ValueError(
                "whiten takes a batch of normalized images, floating point (N, 3, H, W), as "
                f"next(iter(data.train))[0], not {found}"
            )
        if not images.isfinite().all():
            raise ValueError("whiten was given images with NaN or infinite pixels")
        self.whitening.whiten(images)

    def forward(self, x: Tensor) -> Tensor:
        if self.whitening is not None:
            x = F.gelu(self.whitening(x))
        for number in range(1, self.stages + 1):
            x = getattr(self, f"layer{number}")(x)
        x = global_max(x)
        if self.flip_invariant:
            x = x.unflatten(1, (2, -1)).amax(dim=1)
        return self.fc(x) / 9


def speed_resnet(num_classes: int = 10, norm: Norm = "layer", standardize: bool = False) -> SpeedResNet:
    """Build three stages, 1,960,384 parameters at 10 classes, for images (N, 3, H, W) from 8x8 up.

    Arguments and errors are those of `SpeedResNet`, here and in the networks below.
    """
    return SpeedResNet((64, 256, 256), 3, num_classes, norm, standardize)


def whitened_resnet(num_classes: int = 10, norm: Norm = "layer", standardize: bool = False) -> SpeedResNet:
    """Build `speed_resnet` behind a whitening layer, 1,972,768 parameters, for images (N, 3, H, W) from 9x9 up.

    Call `model.whiten(images)` on a batch of training images before training; without it the layer stays random.
    """
    return SpeedResNet((64, 256, 256), 3, num_classes, norm, standardize, whitened=True)


def whitened_flip_resnet(num_classes: int = 10, norm: Norm = "layer", standardize: bool = False) -> SpeedResNet:
    """Build `whitened_resnet` for which an image and its mirror image are the same: 993,440 parameters, 9x9 up.

    Call `model.whiten(images)` here, too.
    """
    return SpeedResNet((64, 256, 256), 3, num_classes, norm, standardize, whitened=True, flip_invariant=True)


def speed_resnet4(num_classes: int = 10, norm: Norm = "layer", standardize: bool = False) -> SpeedResNet:
    """Build four stages, 3,141,056 parameters at 10 classes, whose last three keep a 32x32 image's map at 8x8."""
    return SpeedResNet((64, 256, 256, 256), 2, num_classes, norm, standardize)


def flip_resnet(num_classes: int = 10, norm: Norm = "layer", standardize: bool = False) -> SpeedResNet:
    """Build four stages for which an image and its mirror image are the same: 2,825,920 parameters at 10 classes.

    Images are (N, 3, H, W) from 8x8 up; stages 3 and 4 are wider than those of `speed_resnet4`.
    """
    return SpeedResNet((64, 256, 384, 384), 2, num_classes, norm, standardize, flip_invariant=True)


def narrow_flip_resnet(num_classes: int = 10, norm: Norm = "layer", standardize: bool = False) -> SpeedResNet:
    """Build `flip_resnet` in the widths of `speed_resnet4`: 1,571,392 parameters at 10 classes, 8x8 up."""
    return SpeedResNet((64, 256, 256, 256), 2, num_classes, norm, standardize, flip_invariant=True)


def whitened_flip_resnet4(num_classes: int = 10, norm: Norm = "layer", standardize: bool = False) -> SpeedResNet:
    """Build `narrow_flip_resnet` behind a whitening layer: 1,583,776 parameters at 10 classes, 9x9 up.

    Call `model.whiten(images)` here, too. The last three stages keep a 32x32 image's map at 7x7.
    """
    return SpeedResNet((64, 256, 256, 256), 2, num_classes, norm, standardize, whitened=True, flip_invariant=True)


def wide_whitened_flip_resnet4(num_classes: int = 10, norm: Norm = "layer", standardize: bool = False) -> SpeedResNet:
    """Build `whitened_flip_resnet4` with wider last stages: 2,155,744 parameters at 10 classes, 9x9 up.

    Call `model.whiten(images)` here, too.
    """
    return SpeedResNet((64, 256, 320, 320), 2, num_classes, norm, standardize, whitened=True, flip_invariant=True)
