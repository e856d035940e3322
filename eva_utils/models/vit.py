"""A small vision transformer for 32x32 images (EVA8 S10), and how Grad-CAM reads its tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.checks import check_whole


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(query keyᵀ / √d) value, each (N, heads, T, d).

    Written out on a CPU, where the backward pass of torch's fused one is slow (benchmarks/attention.py).
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value)
    return ((query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)).softmax(dim=3) @ value


class Block(nn.Module):
    """Attention of every token to all, then two linear layers, each after a norm and added to what goes in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attend(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))

    def attend(self, tokens: Tensor) -> Tensor:
        """Multi-head self-attention: (N, T, width) to the same shape."""
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.project(attention(query, key, value).transpose(1, 2).flatten(2))


class ViT(nn.Module):
    """Patches as tokens, a class token, learnt positions, pre-norm blocks, a linear classifier of the class token.

    As Dosovitskiy et al., 2021 (https://arxiv.org/abs/2010.11929), at the size of a small image. The patches
    reach the classified token for the last time through the last block's attention: `GradCAM` reads them before
    it, at `cam_layer`, through `cam_reshape`.

    Args:
        num_classes: width of the logits.
        size: side of the square images.
        patch: side of the patches; it must divide the images' side.
        width, depth, heads: of the transformer; the hidden layers are twice the width.

    Raises:
        ValueError: a number is no whole one from 1 up, or the patches do not divide the images, or the heads the width;
            (when called) images of another size.
    """

    def __init__(
        self, num_classes: int = 10, size: int = 32, patch: int = 4, width: int = 192, depth: int = 6, heads: int = 6
    ) -> None:
        super().__init__()
        sizes = {
            "num_classes": num_classes,
            "size": size,
            "patch": patch,
            "width": width,
            "depth": depth,
            "heads": heads,
        }
        for name, value in sizes.items():
            check_whole(name, value, 1)
        if size % patch:
            raise ValueError(f"patches of {patch} pixels do not divide images of {size}; choose a divisor of {size}")
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}; choose a divisor of {width}")
        self.size, self.side = size, size // patch
        self.patches = nn.Conv2d(3, width, kernel_size=patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + self.side**2, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, num_classes)
        self.cam_layer = f"blocks.{depth - 1}.norm1"

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[2:] != (self.size, self.size):
            raise ValueError(
                f"the images are {tuple(x.shape)} and the model takes (N, 3, {self.size}, {self.size}); build it with "
                "size= of the images"
            )
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], dim=1) + self.positions
        return self.fc(self.norm(self.blocks(tokens)[:, 0]))

    def cam_reshape(self, tokens: Tensor) -> Tensor:
        """Return the patches' tokens (N, 1 + side², width) as maps (N, width, side, side), for `GradCAM`."""
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (self.side, self.side))


def vit(num_classes: int = 10, norm: str = "layer", size: int = 32, patch: int = 4) -> ViT:
    """Build a vision transformer for images (N, 3, size, size), of 1,806,538 parameters at 10 classes and the defaults.

    Args:
        num_classes: width of the logits.
        norm: "layer".
        size: side of the images in pixels.
        patch: side of the square patches, each of which becomes a token.

    Raises:
        ValueError: `norm` is not "layer", the only one a transformer has, and else those of `ViT`.
    """
    if norm != "layer":
        raise ValueError(f"a vision transformer has LayerNorm only, not norm={norm!r}; leave norm out")
    return ViT(num_classes, size, patch)
