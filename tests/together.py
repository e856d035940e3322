"""Two processes that train together, started by torchrun or by themselves, and the small training that each runs.

Usage: together.py OUT [epochs=N] [fault=...] [key=value of fit ...]
"""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import nn

from eva_utils import main as engine
from eva_utils.utils import processes
from eva_utils.utils.loader import Loader
from eva_utils.utils.runtime import seed_everything
from eva_utils.utils.transforms import train_transform


def make_loader(count, seed, *, shuffle):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.randint(4, (count,), generator=generator)
    transform = train_transform("none", (0.5,) * 3, (0.2,) * 3)
    return Loader(images, labels, transform, batch_size=6, shuffle=shuffle, seed=5)


class Faulty(nn.Module):
    """Does something terrible on the last process in its 8th step."""

    def __init__(self, net, fault):
        super().__init__()
        self.net, self.fault, self.steps = net, fault, 0

    def forward(self, x):
        self.steps += self.training
        if self.fault and self.steps == 8 and processes.rank() == processes.count() - 1:
            if self.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "stop":
                os.kill(os.getpid(), signal.SIGTERM)
            if self.fault == "error":
                raise ArithmeticError("broken on purpose")
            if self.fault == "nan":
                x = x * float("nan")
        return self.net(x)


def main(out, *given):
    options = dict(pair.split("=") for pair in given)
    with processes.process_group():
        seed_everything(1 + processes.rank())  # the first process's weights go to all
        net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(1, 6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4))
        model = Faulty(net, options.pop("fault", None))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        history = engine.fit(
            model,
            make_loader(31, 0, shuffle=True),  # the last batch of 6 has 1 image: some processes have none of it
            make_loader(13, 1, shuffle=False),
            epochs=int(options.pop("epochs", 3)),
            optimizer=optimizer,
            scheduler=scheduler,
            checkpoint=out,
            resume="auto",
            precision="float32",
            clip=0.5,
            ema=0.5,
            **options,
        )
        told = {"rows": history.rows, "weights": [p.double().sum().item() for p in model.parameters()]}
        Path(out, f"rank-{processes.rank()}.json").write_text(json.dumps(told))
    left = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    if any("gloo" in name for name in left):
        raise RuntimeError(f"the group's threads outlive it, and may end the process by SIGABRT: {left}")


def by_torchrun(out, *options):
    """Run two processes; return what they printed and the seconds they took."""
    start = time.monotonic()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    environment = {**os.environ, "TMPDIR": str(Path(out).parent)}  # where torchrun leaves a folder behind
    done = subprocess.run(
        [*command, str(out), *options], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    return done, time.monotonic() - start


def _be_one_of_two(rank, port, answer, out, options):
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in where.items()})
    torch.set_num_threads(1)  # as torchrun has it
    failed = None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            main(out, *options)
        except BaseException as error:
            failed = f"{type(error).__name__}: {error}"
    answer.send((printed.getvalue(), failed))
    answer.close()
    if failed:
        os._exit(1)  # without waiting for the group


def by_themselves(out, *options):
    """Run two processes with nothing above them; return what the first printed, and of each the error or None."""
    from alone import ALONE

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(2):
        ours, theirs = ALONE.Pipe(duplex=False)
        process = ALONE.Process(target=_be_one_of_two, args=(rank, port, theirs, str(out), options), daemon=True)
        process.start()
        theirs.close()
        started.append((process, ours))
    if not all(answer.poll(100) for _, answer in started):
        for process, _ in started:
            process.kill()
        raise TimeoutError("the processes have not ended in 100 seconds")
    (printed, failed), (_, other_failed) = (answer.recv() for _, answer in started)
    for process, _ in started:
        process.join()
    return printed, failed, other_failed


def told(out, rank=0):
    """Return the rows, without their seconds, and the sums of the weights that a process has left."""
    record = json.loads((out / f"rank-{rank}.json").read_text())
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in record["rows"]]
    return rows, record["weights"]


if __name__ == "__main__":
    main(*sys.argv[1:])
