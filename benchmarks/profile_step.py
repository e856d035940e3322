"""Where the time of a training step goes: torch's profiler over `fit`'s own steps, by kind of work."""

import common  # first: it finds the package
import torch
from torch.optim.lr_scheduler import ConstantLR
from torch.profiler import ProfilerActivity, profile

import eva_utils as eva
from eva_utils.utils.runtime import pick_device

KINDS = {
    "convolutions, backward": ("convolution_backward",),
    "convolutions, forward": ("mkldnn_convolution", "cudnn_convolution"),
    "normalization": ("group_norm", "batch_norm", "layer_norm"),
    "pooling": ("max_pool", "amax", "mean", "scatter"),
    "activations and additions": ("clamp_min", "threshold", "aten::add", "gelu"),
    "augmentation and normalization of pixels": ("gather", "index", "flip", "grid_sampler", "sub", "div"),
    "optimizer": ("sgd", "foreach"),
    "copies and casts": ("copy_", "fill_", "zero_"),
}


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--model", choices=eva.list_models(), default="resnet18")
    parser.add_argument("--batches", type=int, default=20)
    args = parser.parse_args()
    device = pick_device()
    data = eva.load_data("shapes", recipe="eva6_s8", limit=128 * args.batches, device=device)
    model = eva.create_model(args.model, norm="layer")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, fused=True)
    few = [tuple(part[:8] for part in next(iter(data.test)))]
    once = {"epochs": 1, "optimizer": optimizer, "scheduler": ConstantLR(optimizer, factor=1), "log": None}
    eva.fit(model, data.train, few, **once)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as seen:
        eva.fit(model, data.train, few, **once)
    times = {
        event.key: (event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total)
        for event in seen.key_averages()
        if event.device_type.name == "CPU"  # on a GPU kernels stand beside what launched them, with the same time
    }
    total, left = sum(times.values()), dict(times)
    rows = []
    for kind, parts in KINDS.items():
        own = [name for name in left if any(part in name.lower() for part in parts)]
        rows.append((sum(left.pop(name) for name in own), kind))
    rows = [*sorted(rows, reverse=True), (sum(left.values()), "all else")]
    common.publish(
        f"Profile of a training epoch, {args.model} with LayerNorm, recipe eva6_s8, batch 128",
        [common.Row(kind, f"{100 * share / total:.1f}%") for share, kind in rows],
    )


if __name__ == "__main__":
    main()
