"""The weights' gradients of 3x3 convolutions on small maps in bfloat16: as the networks have them, beside torch's."""

import common  # first: it finds the package
import torch
import torch.nn.functional as F

import eva_utils as eva
from eva_utils.models import conv
from eva_utils.models.conv import weight_gradient
from eva_utils.utils.runtime import keep_freed_memory

LAYERS = [(256, 256, 8, 1), (384, 384, 8, 1), (256, 512, 8, 2), (512, 512, 4, 1)]  # inputs, outputs, side, stride
STEPS = ["resnet18", "flip_resnet"]
IMAGES = 128


def gradients(inputs: int, outputs: int, side: int, stride: int) -> dict:
    x = torch.randn(IMAGES, inputs, side, side).to(torch.bfloat16, memory_format=torch.channels_last)
    weight = torch.randn(outputs, inputs, 3, 3, dtype=torch.bfloat16)
    gradient = torch.randn_like(F.conv2d(x, weight, stride=stride, padding=1))
    return {
        "torch": lambda: torch.nn.grad.conv2d_weight(x, weight.shape, gradient, stride=stride, padding=1),
        "ours": lambda: weight_gradient(gradient, x, weight, stride),
    }


def steps(name: str) -> dict:
    model = eva.create_model(name, norm="layer").to(memory_format=torch.channels_last)
    images = torch.randn(IMAGES, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (IMAGES,))

    def step(widest: int) -> None:
        conv.WIDEST = widest
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()

    widest = conv.WIDEST
    return {"torch": lambda: step(0), "ours": lambda: step(widest)}


def main():
    args = common.parser(__doc__, rounds=9).parse_args()
    torch.manual_seed(0)
    keep_freed_memory()
    cases = {f"{i} to {o} channels, {side}x{side}, stride {s}": gradients(i, o, side, s) for i, o, side, s in LAYERS}
    cases |= {f"training step of {name}": steps(name) for name in STEPS}
    rows = []
    for name, ways in cases.items():
        taken = common.seconds(ways, args.rounds)
        rows.append(common.Row(f"{name}, torch", f"{1000 * taken['torch']:.1f} ms"))
        rows.append(common.at_least(f"{name}, ours against it", taken["torch"] / taken["ours"], 1.0))
    common.publish(f"Training 3x3 convolutions on small maps, {IMAGES} images, bfloat16", rows)


if __name__ == "__main__":
    main()
