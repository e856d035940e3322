"""What `compile=` costs and gains: the training step as torch.compile makes it beside the step as it is."""

import os
import time

os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # what an earlier run compiled would count as no time

import common  # first: it finds the package
import torch
from torch import nn

import eva_utils as eva
from eva_utils.utils.runtime import autocast, keep_freed_memory, move_images, pick_device, pick_precision

STEPS = 5


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=eva.list_models(), default=["speed_resnet", "resnet18"])
    args = parser.parse_args()
    device = pick_device()
    dtype = pick_precision("auto", device)
    modes = [True] + ["reduce-overhead"] * (device.type == "cuda")
    keep_freed_memory()
    rows = []
    for name in args.models:
        images = move_images(torch.randn(128, 3, 32, 32), device, last=dtype != torch.float32)
        labels = torch.randint(10, (128,), device=device)

        def stepper(mode, name=name, images=images, labels=labels):
            model = eva.create_model(name, norm="layer").to(device, memory_format=torch.channels_last)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, fused=True)
            if mode is not False:
                model.compile(mode=None if mode is True else mode)

            def steps():
                for _ in range(STEPS):
                    optimizer.zero_grad()
                    with autocast(device, dtype):
                        logits = model(images)
                    nn.functional.cross_entropy(logits.float(), labels).backward()
                    optimizer.step()

            return steps

        ways = {mode: stepper(mode) for mode in (False, *modes)}
        first = {}
        for mode, way in ways.items():
            start = time.perf_counter()
            way()
            common.wait(device)
            first[mode] = time.perf_counter() - start
        taken = common.seconds(ways, args.rounds)
        rows.append(common.Row(f"{name}, as it is", f"{STEPS * 128 / taken[False]:.0f} images/s"))
        rows += [
            common.Row(
                f"{name}, compile={mode}",
                f"{taken[False] / taken[mode]:.2f}x, after {first[mode] - first[False]:.0f} s of compiling",
            )
            for mode in modes
        ]
    common.publish("torch.compile, training step with LayerNorm, batch 128", rows)


if __name__ == "__main__":
    main()
