"""The custom ResNet of EVA6 S9 and EVA8 S8: David Page's ResNet-9 as the course has it."""

from torch import Tensor, nn

from ..utils.checks import check_whole
from .norms import Norm, make_norm
from .resnet import conv3x3, global_max


class DavidNet(nn.Module):
    """Stem of 64 channels, stages of 128, 256 and 512 that halve the map by max pooling, then a linear classifier.

    The first and the last stage add a residual branch of two convolutions. Images (N, 3, 32, 32); the maps of
    `layer1`, `layer2` and `layer3` are 16x16, 8x8 and 4x4. From "How to Train Your ResNet" (Page, 2018,
    https://myrtle.ai/learn/how-to-train-your-resnet/), whose logits are an eighth of the classifier's output too:
    SGD diverges at a fraction of his rates without it. Weights start as torch has them.

    Args:
        num_classes: width of the logits.
        norm: see `eva_utils.models.norms.make_norm`; no other normalization is in the model.

    Raises:
        ValueError: `num_classes` is no whole number from 1 up, or the norm is unknown.
    """

    def __init__(self, num_classes: int = 10, norm: Norm = "batch") -> None:
        super().__init__()
        check_whole("num_classes", num_classes, 1)
        make = make_norm(norm)

        def convolution(inputs: int, outputs: int, pool: bool = False) -> nn.Sequential:
            pooling = [nn.MaxPool2d(2)] if pool else []
            return nn.Sequential(conv3x3(inputs, outputs), *pooling, make(outputs), nn.ReLU())

        def stage(inputs: int, outputs: int) -> nn.Sequential:
            branch = nn.Sequential(convolution(outputs, outputs), convolution(outputs, outputs))
            return nn.Sequential(convolution(inputs, outputs, pool=True), Residual(branch))

        self.stem = convolution(3, 64)
        self.layer1 = stage(64, 128)
        self.layer2 = convolution(128, 256, pool=True)
        self.layer3 = stage(256, 512)
        self.fc = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.stem(x))))
        return self.fc(global_max(x)) / 8


class Residual(nn.Module):
    """A branch added to what goes in."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def davidnet(num_classes: int = 10, norm: Norm = "batch") -> DavidNet:
    """Build the custom ResNet of 6,573,130 parameters at 10 classes, for images (N, 3, H, W) from 8x8 up.

    Arguments and errors are those of `DavidNet`.
    """
    return DavidNet(num_classes, norm)
