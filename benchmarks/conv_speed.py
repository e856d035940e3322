"""What training 3x3 convolutions on small maps takes in bfloat16: as the networks do it, beside torch's own way."""

import common  # first: it finds the package
import torch
import torch.nn.functional as F

import eva_utils as eva
from eva_utils.models import conv
from eva_utils.models.conv import weight_gradient
from eva_utils.models.resnet import global_max
from eva_utils.utils.runtime import keep_freed_memory

# Images, inputs, outputs, side, stride; the last three lie beyond the bounds within which the networks do so.
LAYERS = [
    (128, 256, 256, 8, 1), (128, 384, 384, 8, 1), (128, 256, 512, 8, 2), (128, 512, 512, 4, 1), (128, 128, 256, 16, 2),
    (32, 256, 256, 8, 1), (16, 256, 256, 8, 1), (128, 64, 64, 8, 1), (128, 128, 128, 16, 1),
]  # fmt: skip
NETWORKS = ["resnet18", "flip_resnet"]


def channels_last(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape).to(dtype, memory_format=torch.channels_last)


def layer(images: int, inputs: int, outputs: int, side: int, stride: int) -> dict:
    x, weight = channels_last(images, inputs, side, side), channels_last(outputs, inputs, 3, 3)
    gradient = torch.randn_like(F.conv2d(x, weight, stride=stride, padding=1))
    return {
        "torch": lambda: torch.nn.grad.conv2d_weight(x, weight.shape, gradient, stride=stride, padding=1),
        "ours": lambda: weight_gradient(gradient, x, weight, stride),
    }


def pooling() -> dict:
    x, gradient = channels_last(128, 384, 8, 8).requires_grad_(), torch.randn(128, 384).bfloat16()
    return {
        "torch": lambda: torch.autograd.grad(x.amax(dim=(2, 3)), x, gradient),
        "ours": lambda: torch.autograd.grad(global_max(x), x, gradient),
    }


def step(name: str) -> dict:
    model = eva.create_model(name, norm="layer").to(memory_format=torch.channels_last)
    images, labels = channels_last(128, 3, 32, 32, dtype=torch.float32), torch.randint(10, (128,))

    def train(columns: int) -> None:
        usual, conv.COLUMNS = conv.COLUMNS, columns
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        conv.COLUMNS = usual

    return {"torch": lambda: train(0), "ours": lambda: train(conv.COLUMNS)}


def main():
    args = common.parser(__doc__, rounds=9).parse_args()
    torch.manual_seed(0)
    keep_freed_memory()
    cases = []
    for images, inputs, outputs, side, stride in LAYERS:
        used = images >= conv.IMAGES and inputs >= conv.CHANNELS and side <= conv.COLUMNS * stride
        name = f"weights of {inputs} to {outputs} channels at {side}x{side}, stride {stride}, {images} images"
        cases.append((name, used, layer(images, inputs, outputs, side, stride)))
    cases.append(("global maximum of 384 maps of 8x8, forward and backward, amax", True, pooling()))
    cases += [(f"forward and backward of {name}, 128 images", True, step(name)) for name in NETWORKS]
    rows = []
    for name, used, ways in cases:
        taken = common.seconds(ways, args.rounds)
        ratio = taken["torch"] / taken["ours"]
        rows.append(common.Row(f"{name}, torch", f"{1000 * taken['torch']:.1f} ms"))
        rows.append(
            common.at_least("ours against it", ratio, 1.0)
            if used
            else common.Row("ours against it, which is not used there", f"{ratio:.2f}x")
        )
    common.publish("Training 3x3 convolutions on small maps in bfloat16", rows)


if __name__ == "__main__":
    main()
