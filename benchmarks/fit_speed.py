"""Images a second of `fit` beside a plain PyTorch loop, on the same model and images.

    python benchmarks/fit_speed.py --model resnet18 --images 640

The plain loop is what a careful student writes: torchvision's transforms for each image in a `DataLoader`
with two workers, float32, one `loss.item()` a batch. The three are run in turn, and the median of the
rounds is taken. Prints the table and writes it, with machine and versions, to benchmarks/results.md.
"""

import argparse
import statistics
import sys
import time
from datetime import date
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import ConstantLR
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import eva_utils as eva  # noqa: E402
from eva_utils.utils.runtime import hardware, pick_device, pick_precision, precision_name  # noqa: E402


class PlainDataset(Dataset):
    """The images as PIL, each through torchvision's transforms."""

    def __init__(self, images, labels, mean, std):
        self.pictures = [v2.functional.to_pil_image(image) for image in images]
        self.labels = labels.tolist()
        self.transform = v2.Compose(
            [
                v2.RandomCrop(32, padding=4),
                v2.RandomRotation(5, interpolation=v2.InterpolationMode.BILINEAR),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(mean), list(std)),
                v2.RandomErasing(p=1, scale=(0.25, 0.25), ratio=(1, 1), value=0),  # 16x16 of 32x32
            ]
        )

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(self.pictures[index]), self.labels[index]


def plain_epoch(model, loader, optimizer, device):
    model.train()
    loss_sum, correct, count = 0.0, 0, 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        logits = model(images)
        loss = nn.functional.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(labels)
        correct += (logits.argmax(1) == labels).sum().item()
        count += len(labels)
    return loss_sum / count, 100 * correct / count


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=eva.list_models(), default="resnet18")
    parser.add_argument("--data", default="shapes", help="shapes, cifar10 or a folder of 32x32 images")
    parser.add_argument("--images", type=int, default=640, help="in each timed epoch")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    device = pick_device()
    auto = precision_name(pick_precision("auto", device))
    data = eva.load_data(args.data, recipe="eva6_s8", limit=args.images)
    dataset = PlainDataset(data.train.images, data.train.labels, data.mean, data.std)
    plain_loader = DataLoader(dataset, batch_size=128, shuffle=True, num_workers=2, persistent_workers=True)
    model = eva.create_model(args.model, norm="layer").to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    few = [next(iter(data.test))]  # fit tests after its epoch: one batch here, counted against it
    once = {"epochs": 1, "optimizer": optimizer, "scheduler": ConstantLR(optimizer, factor=1), "log": None}
    ways = {
        "plain loop, float32": lambda: plain_epoch(model, plain_loader, optimizer, device),
        "fit, float32": lambda: eva.fit(model, data.train, few, precision="float32", **once),
        f"fit, {auto} (auto)": lambda: eva.fit(model, data.train, few, **once),
    }
    speeds = {name: [] for name in ways}
    for turn in range(args.rounds + 1):
        for name, epoch in ways.items():
            start = time.perf_counter()
            epoch()
            if turn:  # the first round warms up
                speeds[name].append(args.images / (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    plain = medians["plain loop, float32"]
    machine = hardware(device)
    lines = [
        f"## Training speed, {args.model} with LayerNorm, recipe eva6_s8, batch 128",
        "",
        f"{date.today()}, {machine['machine']}, {machine['threads']} threads, device {device.type}, "
        f"torch {machine['torch']}, Python {machine['python']}; median of {args.rounds} interleaved rounds.",
        "",
        f"`python {' '.join(['benchmarks/fit_speed.py', *sys.argv[1:]])}`",
        "",
        "| way | images/s | against the plain loop |",
        "|---|---|---|",
        *(f"| {name} | {speed:.0f} | {speed / plain:.2f}x |" for name, speed in medians.items()),
    ]
    print("\n".join(lines))
    write_section(ROOT / "benchmarks" / "results.md", lines)


def write_section(path, lines):
    """Put a section into the results file, in place of one with the same title."""
    sections = path.read_text(encoding="utf-8").split("\n## ") if path.exists() else ["# Benchmark results\n"]
    title = lines[0].removeprefix("## ")
    kept = [section.strip("\n") for section in sections if not section.startswith(title)]
    path.write_text("\n\n## ".join([*kept, "\n".join(lines)[3:]]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
