"""One, two and three processes side by side: how far they agree, and how fast they are on this machine.

Each trains resnet18 with LayerNorm on the same shapes in float32, recipe "none", the same global batch and a ragged
last one, through torchrun; the machine's cores are divided among them. A network with max pooling would not do: on
plain backgrounds its maxima are tied, and rounding decides which of them gets the gradient. Nor would a high rate: at
0.01 the loss goes up to 5.9 and what rounding changes grows with it, to 1e-3 of the weights.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import common  # first: it finds the package
import torch

from eva_utils.utils.verified import load_verified


def train(count, images, out):
    """Run so many processes; return the rows of the record and the last weights."""
    threads = max(1, (os.cpu_count() or 1) // count)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command += [
        "main.py",
        "--model",
        "resnet18",
        "--data",
        "shapes",
        "--limit",
        str(images),
        "--epochs",
        "2",
        "--lr",
        "0.001",
    ]
    command += ["--precision", "float32", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run(command, check=True, capture_output=True, cwd=common.ROOT, env=environment)
    return json.loads((out / "history.json").read_text())["rows"], load_verified(out / "last.pt")


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--images", type=int, default=385, help="3 batches of 128 and one of a single image")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        runs = {count: train(count, args.images, Path(folder, str(count))) for count in (1, 2, 3)}
    alone, weights = runs[1]
    for count, (record, ours) in runs.items():
        loss, speed = record[-1]["train_loss"], 2 * args.images / record[-1]["seconds"]
        figure = f"loss {loss:.6f}, test {record[-1]['test_accuracy']:.2f}%, {speed:.0f} images/s trained and tested"
        if count == 1:
            rows.append(common.Row("1 process", figure))
            continue
        apart = max(float((ours[name] - weight).abs().max()) for name, weight in weights.items())
        largest = max(float(weight.abs().max()) for weight in weights.values())
        agree = apart <= 1e-4 * largest and abs(loss - alone[-1]["train_loss"]) <= 1e-5 * loss
        rows.append(
            common.Row(
                f"{count} processes", f"{figure}; weights differ by {apart:.1e} of {largest:.1f}", "to rounding", agree
            )
        )
    torch.set_num_threads(os.cpu_count() or 1)
    common.publish("Processes, resnet18 with LayerNorm, recipe none, gloo", rows)


if __name__ == "__main__":
    main()
