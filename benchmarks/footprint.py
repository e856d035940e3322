"""What the toolkit costs beside torch: time to import, memory of a run, time of a checkpoint."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common  # first: it finds the package
import torch

import eva_utils as eva
from eva_utils.utils import checkpoint
from eva_utils.utils.loader import Loader
from eva_utils.utils.runtime import pick_device
from eva_utils.utils.transforms import train_transform

DATASET_MB = 60_000 * 3 * 32 * 32 / 2**20


def import_ratio(rounds):
    """Return how much longer `from eva_utils.main import fit` takes than `import torch`, in processes of their own."""

    def run(code):
        return lambda: subprocess.run([sys.executable, "-c", code], cwd=common.ROOT, check=True)

    taken = common.seconds({"torch": run("import torch"), "fit": run("from eva_utils.main import fit")}, rounds)
    return taken["fit"] / taken["torch"]


def run_of(kind, epochs, batches):
    """In a process of its own: train as `fit` does, or by bare steps, and print the resident MB after each epoch."""
    torch.manual_seed(1)
    model = eva.resnet18(norm="layer")
    after = []
    if kind == "bare":
        from fit_speed import bare_steps

        from eva_utils.utils.runtime import keep_freed_memory, move_images, pick_precision

        keep_freed_memory()  # as fit does
        dtype = pick_precision("auto", torch.device("cpu"))
        if dtype != torch.float32:
            model.to(memory_format=torch.channels_last)
        images = move_images(torch.randn(128, 3, 32, 32), torch.device("cpu"), last=dtype != torch.float32)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
        for _ in range(epochs):
            bare_steps(model, images, torch.arange(128) % 10, optimizer, dtype, batches)
            after.append(common.own_memory("VmRSS"))
    else:
        everything = torch.randint(256, (60_000, 3, 32, 32), dtype=torch.uint8)
        transform = train_transform("eva6_s8", (0.5,) * 3, (0.25,) * 3)
        part = everything[: 128 * batches]
        loader = Loader(part, torch.arange(len(part)) % 10, transform, shuffle=True)
        with tempfile.TemporaryDirectory() as folder:

            def log(line):
                if line.startswith("Test set"):
                    after.append(common.own_memory("VmRSS"))

            where = f"{folder}/run" if kind == "fit, checkpoints" else None
            eva.fit(model, loader, loader, epochs=epochs, progress=False, log=log, checkpoint=where)
    print(*after, common.own_memory("VmHWM"))


def memory(kind, epochs, batches):
    command = [sys.executable, __file__, "--run", kind, str(epochs), str(batches)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [float(value) for value in printed.split()]


def checkpoint_seconds(rounds):
    """Return the median seconds in which an epoch of ResNet18 with its momentum is put on disk."""
    model = eva.resnet18(norm="layer")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    taken = []
    with tempfile.TemporaryDirectory(dir=common.ROOT) as folder:
        for epoch in range(1, rounds + 2):
            start = time.perf_counter()
            checkpoint.save_epoch(Path(folder), {**state, "epoch": epoch}, "{}", epoch)
            taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def main():
    parser = common.parser(__doc__, rounds=7)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument(
        "--speed", type=float, default=170, help="images/s at which ResNet18 trains here (fit_speed.py)"
    )
    parser.add_argument("--run", nargs=3, help="used by the benchmark itself")
    args = parser.parse_args()
    if args.run:
        run_of(args.run[0], int(args.run[1]), int(args.run[2]))
        return
    ratio = import_ratio(args.rounds)
    rows = [common.at_most("import of fit against import of torch", ratio, 1.10)]
    if pick_device().type == "cpu":
        *bare, bare_peak = memory("bare", args.epochs, args.batches)
        *without, peak = memory("fit", args.epochs, args.batches)
        *saving, saving_peak = memory("fit, checkpoints", args.epochs, args.batches)
        more = statistics.median(without[1:]) - statistics.median(bare[1:])
        saved_more = statistics.median(saving[1:]) - statistics.median(bare[1:])
        limit = 1.15 * DATASET_MB
        growth = without[-1] - without[len(without) // 2 - 1]
        rows += [
            common.Row("the dataset as uint8", f"{DATASET_MB:.0f} MB"),
            common.Row(
                "resident after an epoch beyond the bare step", f"{more:.0f} MB", f"≤ {limit:.0f} MB", more <= limit
            ),
            common.Row(
                "peak beyond the bare step's",
                f"{peak - bare_peak:.0f} MB",
                f"≤ {limit:.0f} MB",
                peak - bare_peak <= limit,
            ),
            common.Row("growth over the later half of the epochs", f"{growth:.0f} MB", "flat (≤ 10 MB)", growth <= 10),
            common.Row(
                "resident after an epoch beyond the bare step, with checkpoints",
                f"{saved_more:.0f} MB",
                f"≤ {limit:.0f} MB",
                saved_more <= limit,
            ),
            common.Row("peaks: bare, fit, with checkpoints", f"{bare_peak:.0f}, {peak:.0f}, {saving_peak:.0f} MB"),
        ]
    saved = checkpoint_seconds(args.rounds)
    share = 100 * saved / (50_000 / args.speed)
    rows.append(common.Row("a checkpoint of ResNet18", f"{saved:.2f} s, {share:.2f}% of an epoch", "≤ 1%", share <= 1))
    kept = "Beyond the dataset fit keeps a copy of weights and momentum, to go back to after an error or a stop."
    common.publish("Footprint", rows, f"The epoch is 50,000 images at {args.speed:.0f} images/s. {kept}")


if __name__ == "__main__":
    main()
