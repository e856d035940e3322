"""Faults injected for real into small runs: what was tried, how often a finished epoch was lost or a result wrong.

"Lost" counts runs in which an epoch that had been announced as finished was not on disk afterwards, or in
which nothing could be resumed; "wrong" those that did not end bit for bit as an undisturbed run, or in which
damage went unnoticed. Needs Linux; as root also a small tmpfs and another user are used.
"""

import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import common  # first: it finds the package
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, get_worker_info

sys.path.insert(0, str(common.ROOT / "tests"))

from conftest import TinyNet, random_batches
from eva_utils import main as engine
from eva_utils.utils import checkpoint as disk
from eva_utils.utils import verified
from eva_utils.utils.data import load_data
from eva_utils.utils.runtime import hardware, pick_device, seed_everything
from runs import StopAfter, make_run, without_time
from together import by_torchrun, told

EPOCHS = 8
FORK = multiprocessing.get_context("fork")


class Told:
    """A log that writes each line to a file at once, so that it outlives its process."""

    def __init__(self, path):
        self.path = path

    def __call__(self, line):
        with self.path.open("a") as file:
            file.write(line + "\n")

    @property
    def lines(self):
        return self.path.read_text().splitlines() if self.path.exists() else []

    @property
    def saved(self):
        """The last epoch that was on disk for certain: the next one has begun after it."""
        begun = [int(line.split()[1]) for line in self.lines if line.startswith("EPOCH")]
        return max(begun, default=1) - 1


def start(out, prepare=None, **options):
    """Start a run in a process of its own, which first does what it is to prepare."""

    def run():
        if prepare is not None:
            prepare()
        try:
            make_run(epochs=EPOCHS, checkpoint=out / "run", resume="auto", log=Told(out / "log"), **options)
        except BaseException as error:
            Told(out / "error")(f"{type(error).__name__}: {error}")

    process = FORK.Process(target=run)
    process.start()
    return process


def same(first, second):
    """Whether two runs, as (model, history), ended bit for bit alike."""
    weights = zip(first[0].state_dict().values(), second[0].state_dict().values(), strict=True)
    return without_time(first[1]) == without_time(second[1]) and all(torch.equal(a, b) for a, b in weights)


def resumed(out, **options):
    return make_run(epochs=EPOCHS, checkpoint=out / "run", resume="auto", **options)


def on_disk(out):
    try:
        state = disk.latest_state(out / "run", lambda line: None) if (out / "run").exists() else None
    except verified.DamagedFileError:
        return 0
    return 0 if state is None else state["epoch"]


class Bench:
    """The undisturbed run, the folder of the faults and the table."""

    def __init__(self, root):
        self.root, self.rows, self.truth, self.count = root, [], make_run(epochs=EPOCHS), 0

    def new(self):
        self.count += 1
        out = self.root / str(self.count)
        out.mkdir()
        out.chmod(0o777)
        return out

    def judge(self, out, **options):
        """Return (lost, wrong) of a run that was disturbed: is every announced epoch there, and the end the same?"""
        lost = on_disk(out) < Told(out / "log").saved
        try:
            return int(lost), int(not same(resumed(out, **options), self.truth))
        except (ValueError, OSError):
            return 1, 0

    def add(self, name, outcomes, note=""):
        outcomes = list(outcomes)
        lost, wrong = (sum(part) for part in zip(*outcomes, strict=True))
        self.rows.append(f"| {name} | {len(outcomes)} | {lost} | {wrong} | {note} |")
        print(self.rows[-1], flush=True)


def kills(bench, times):
    """kill -9 at random moments from the first batch to after the last, those while saving included."""
    out = bench.new()
    began = time.perf_counter()
    start(out).join()
    span, inside, outcomes, chosen = time.perf_counter() - began, 0, [], random.Random(0)
    for _ in range(times):
        out = bench.new()
        process = start(out)
        time.sleep(chosen.uniform(0, span))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        inside += bool(list((out / "run").glob(".*.tmp"))) if (out / "run").exists() else 0
        outcomes.append(bench.judge(out))
    bench.add("kill -9 at a random moment, then resumed", outcomes, f"{inside} of them while a file was written")


def kills_while_saving(bench, times):
    """kill -9 as soon as a temporary file is seen."""
    outcomes = []
    for number in range(times):
        out = bench.new()
        process = start(out)
        while process.is_alive() and Told(out / "log").saved < number % (EPOCHS - 2):
            time.sleep(0.0005)
        while process.is_alive() and not list((out / "run").glob(".*.tmp")):
            pass
        process.kill()
        process.join()
        outcomes.append(bench.judge(out))
    bench.add("kill -9 in the middle of a save, then resumed", outcomes)


def full_disks(bench):
    """A limit on the size of files, and as root a tmpfs too small for the run."""

    def limited(size):
        def prepare():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        return prepare

    whole, outcomes, clear = bench.new(), [], 0
    make_run(epochs=2, checkpoint=whole / "run", resume="auto")
    size = (whole / "run" / "epoch-0002.pt").stat().st_size
    for share in (0.05, 0.1, 0.5, 0.9, 0.999):
        out = bench.new()
        make_run(epochs=EPOCHS, checkpoint=out / "run", resume="auto", log=StopAfter(2))
        start(out, limited(int(share * size))).join()
        clear += "File too large" in " ".join(Told(out / "error").lines)
        kept = on_disk(out) >= 2
        lost, wrong = bench.judge(out)
        outcomes.append((int(lost or not kept), wrong))
    bench.add("file-size limit during a save", outcomes, f"{clear} clear errors")
    if os.geteuid() == 0:
        outcomes, clear = [], 0
        for room in (1.5, 2.5, 3.5, 4.5):
            out = bench.new()
            (out / "run").mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int(room * size)}", "tmpfs", out / "run"], check=True)
            try:
                start(out).join()
                clear += "No space left" in " ".join(Told(out / "error").lines)
                before = on_disk(out)
                shutil.copytree(out / "run", out / "copy")
            finally:
                subprocess.run(["umount", out / "run"], check=True)
            shutil.rmtree(out / "run")
            (out / "copy").rename(out / "run")
            lost, wrong = bench.judge(out)
            outcomes.append((int(lost or before < Told(out / "log").saved), wrong))
        bench.add("tmpfs full during a save, then resumed elsewhere", outcomes, f"{clear} clear errors")


def damage(bench, times):
    """Bits flipped and files cut at random places."""
    out = bench.new()
    make_run(epochs=3, checkpoint=out / "run", resume="auto")
    file = out / "run" / "epoch-0003.pt"
    content, chosen = file.read_bytes(), random.Random(1)
    for name in ("a flipped bit", "a truncated file"):
        outcomes, said = [], 0
        for _ in range(times):
            broken = bytearray(content)
            place = chosen.randrange(len(content))
            if name == "a flipped bit":
                broken[place] ^= 1 << chosen.randrange(8)
            else:
                del broken[place:]
            file.write_bytes(broken)
            lines = []
            state = disk.latest_state(out / "run", lines.append)
            said += bool(lines) and "is damaged" in lines[0]
            outcomes.append((int(state is None), int(state is None or state["epoch"] != 2)))
        file.write_bytes(content)
        bench.add(f"{name} at a random byte: the epoch before is used", outcomes, f"said {said} times")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def hostile(bench):
    """A checkpoint that runs code when it is unpickled, with a valid checksum or none."""
    outcomes = []
    for sealed in (True, False):
        out = bench.new()
        make_run(epochs=1, checkpoint=out / "run", resume="auto")
        file, proof = out / "run" / "epoch-0001.pt", out / "proof"
        torch.save({"epoch": 1, "model": Payload(proof)}, file)
        if sealed:
            content = file.read_bytes()[:-2] + (len(verified._MARK) + 64).to_bytes(2, "little") + verified._MARK
            file.write_bytes(content + verified.hashlib.sha256(content).hexdigest().encode())
        refused = False
        try:
            resumed(out)
        except (ValueError, pickle.UnpicklingError):
            refused = True
        outcomes.append((0, int(proof.exists() or not refused)))
    bench.add("a checkpoint that runs code: refused", outcomes)


def read_only(bench):
    """The folder loses its write permission during the run; root is another user meanwhile."""

    def prepare():
        if os.geteuid() == 0:
            os.setuid(65534)

    outcomes, clear = [], 0
    for epoch in (1, 3, 5):
        out = bench.new()
        process = start(out, prepare)
        while process.is_alive() and Told(out / "log").saved < epoch:
            time.sleep(0.0005)
        if (out / "run").exists():
            (out / "run").chmod(0o555)
        process.join()
        (out / "run").chmod(0o777)
        clear += "ermission" in " ".join(Told(out / "error").lines)
        outcomes.append(bench.judge(out))
    bench.add("the folder turns read-only, then resumed", outcomes, f"{clear} clear errors")


def intruders(bench, times):
    """A second run into the folder of one that trains."""
    outcomes, refused = [], 0
    for _ in range(times):
        out = bench.new()
        process = start(out)
        while process.is_alive() and Told(out / "log").saved < 1:
            time.sleep(0.0005)
        try:
            resumed(out)
        except ValueError as error:
            refused += "another run is training" in str(error)
        process.join()
        outcomes.append(bench.judge(out))
    bench.add("a second run into the same folder", outcomes, f"{refused} refused")


def clocks(bench):
    """The system's clock jumps by years during the run, and files carry dates of the future."""
    outcomes, true_time = [], time.time
    for jump in (-3e9, -4e8, 4e8, 3e9):

        def shifted(jump=jump):
            return true_time() + jump * (random.random() < 0.5)

        out = bench.new()
        make_run(epochs=EPOCHS, checkpoint=out / "run", resume="auto", log=StopAfter(3))
        for number, path in enumerate(sorted((out / "run").glob("*.pt"))):
            os.utime(path, (4e9 - 1e8 * number,) * 2)
        time.time = shifted
        try:
            outcomes.append(bench.judge(out))
        finally:
            time.time = true_time
    bench.add("the clock jumps, then resumed", outcomes)


def mirrors(bench):
    """The mirror vanishes or becomes unwritable in each epoch; then the run itself is lost."""
    outcomes, warned = [], 0
    for epoch in range(1, EPOCHS):
        out = bench.new()
        mirror, lines = out / "mirror", []

        def unplug(line, mirror=mirror, epoch=epoch, lines=lines):
            lines.append(line)
            if line == f"EPOCH: {epoch}":
                shutil.rmtree(mirror, ignore_errors=True)
                mirror.touch()
            if line == f"EPOCH: {epoch + 1}":
                mirror.unlink()

        whole = resumed(out, mirror=mirror, log=unplug)
        warned += any(line.startswith("Warning") for line in lines)
        shutil.rmtree(out / "run")
        outcomes.append((0, int(not same(whole, bench.truth) or not same(resumed(out, mirror=mirror), bench.truth))))
    bench.add("the mirror disappears for an epoch; then only it is left", outcomes, f"{warned} warnings")


class Deadly(Dataset):
    """Images of which one kills the worker that loads it, once, when the flag is there."""

    def __init__(self, flag):
        self.images, self.flag = random_batches(22), flag

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index == 5 and get_worker_info() is not None and self.flag.exists():
            self.flag.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.images[index]


def workers(bench):
    """A worker of a DataLoader is killed in the third, fourth, ... epoch; then the run resumes."""

    def train(out, log=None):
        seed_everything(11)
        model, batches = TinyNet(), Deadly(out / "flag")
        loader = DataLoader(
            batches, batch_size=8, shuffle=True, num_workers=2, generator=torch.Generator().manual_seed(2)
        )
        history = engine.fit(
            model, loader, loader, epochs=EPOCHS, checkpoint=out / "run", resume="auto", log=log, precision="float32"
        )
        return model, history

    truth, outcomes, clear = train(bench.new()), [], 0
    for epoch in range(3, EPOCHS):
        out = bench.new()

        def arm(line, out=out, epoch=epoch):
            if line == f"EPOCH: {epoch}":
                (out / "flag").touch()

        try:
            train(out, log=arm)
        except RuntimeError as error:
            clear += "DataLoader worker" in str(error)
        lost = on_disk(out) != epoch - 1
        outcomes.append((int(lost), int(not same(train(out), truth))))
    bench.add("a worker of the loader is killed, then resumed", outcomes, f"{clear} clear errors")


def changed_images(bench):
    """The folder of images changes between a stop and the resume: a pixel, a name, one more, one fewer, a label."""
    out = bench.new()
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (out / split / name).mkdir(parents=True)
            for number in range(4):
                pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(out / split / name / f"{number}.png")
    first = out / "train" / "cat" / "0.png"

    def train(**options):
        seed_everything(1)
        data = load_data(out)
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
        engine.fit(net, data.train, data.test, epochs=3, checkpoint=out / "run", resume="auto", **options)

    train(log=StopAfter(1))
    before = first.read_bytes()
    changes = {
        "a pixel": lambda: Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(first),
        "one more": lambda: shutil.copy(first, first.with_name("9.png")),
        "one fewer": first.unlink,
        "a label": lambda: first.rename(out / "train" / "dog" / "8.png"),
    }
    outcomes, named = [], 0
    for change in changes.values():
        change()
        refused = False
        try:
            train(log=None)
        except ValueError as error:
            refused, named = True, named + ("train_loader" in str(error))
        outcomes.append((int(on_disk(out) != 1), int(not refused)))
        for stray in (first.with_name("9.png"), out / "train" / "dog" / "8.png"):
            stray.unlink(missing_ok=True)
        first.write_bytes(before)
    bench.add("the image folder changes before the resume: refused", outcomes, f"the loader named {named} times")


def several(bench):
    """Two processes, one of which is killed, fails, or meets NaN; then both resume."""
    whole = bench.new()
    by_torchrun(whole)
    for fault in ("kill", "error", "nan"):
        out = bench.new()
        ended, seconds = by_torchrun(out, f"fault={fault}")
        lost = (disk.latest_state(out, lambda line: None) or {"epoch": 0})["epoch"] != 1
        by_torchrun(out)
        wrong = ended.returncode == 0 or seconds > 60 or told(out) != told(whole)
        bench.add(f"one of two processes: {fault}", [(int(lost), int(wrong))], f"all ended after {seconds:.0f} s")


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--kills", type=int, default=50)
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        Path(root).chmod(0o755)
        bench = Bench(Path(root))
        kills(bench, args.kills)
        kills_while_saving(bench, 20)
        full_disks(bench)
        damage(bench, 200)
        hostile(bench)
        read_only(bench)
        intruders(bench, 5)
        clocks(bench)
        mirrors(bench)
        workers(bench)
        changed_images(bench)
        several(bench)
    machine = hardware(pick_device())
    lines = [
        "## Faults injected",
        "",
        f"{date.today()}, {machine['machine']}, torch {machine['torch']}, Python {machine['python']}; "
        f"{time.monotonic() - began:.0f} s. `make faults`",
        "",
        "Lost: a finished epoch gone. Wrong: not bit for bit the undisturbed run, or damage unnoticed.",
        "",
        "| fault | times | lost | wrong | |",
        "|---|---|---|---|---|",
        *bench.rows,
    ]
    common.write_section(lines)


if __name__ == "__main__":
    main()
