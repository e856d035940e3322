"""What the benchmarks share: interleaved timing, the table with goals, the results file."""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results.md"
sys.path.insert(0, str(ROOT))

from eva_utils.utils.runtime import hardware, pick_device  # noqa: E402


@dataclass(frozen=True)
class Row:
    """One line of a table: a figure and, if it has one, its goal and whether it is reached."""

    name: str
    figure: str
    goal: str = ""
    reached: bool | None = None


def at_least(name: str, value: float, goal: float) -> Row:
    return Row(name, f"{value:.2f}x", f"≥ {goal}x", value >= goal)


def at_most(name: str, value: float, goal: float) -> Row:
    return Row(name, f"{value:.2f}x", f"≤ {goal}x", value <= goal)


def parser(text: str, rounds: int = 5) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=text.splitlines()[0])
    made.add_argument("--rounds", type=int, default=rounds, help="timed rounds; one more warms up")
    return made


def seconds(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Run the ways in turn, round after round, and return the median seconds of each; the first round warms up."""
    device = pick_device()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            wait(device)
            if turn:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def own_memory(line: str) -> float:
    """Return this process's memory in MB as Linux has it: "VmRSS" resident now, "VmHWM" at its peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(text.split()[1]) for text in lines if text.startswith(line)) / 1024


def wait(device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()


def publish(title: str, rows: list[Row], note: str = "") -> None:
    """Print the table and put it into results.md in place of the section of this title and this kind of device."""
    device = pick_device()
    machine = hardware(device)
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    lines = [
        f"## {title} ({device.type})",
        "",
        f"{date.today()}, {machine['machine']}, {machine['threads']} threads, torch {machine['torch']}, "
        f"Python {machine['python']}. `{command}`",
        "",
        *([note, ""] if note else []),
        "| what | figure | goal | |",
        "|---|---|---|---|",
        *(f"| {row.name} | {row.figure} | {row.goal} | {verdict(row)} |" for row in rows),
    ]
    print("\n".join(lines), flush=True)
    write_section(lines)


def verdict(row: Row) -> str:
    return "" if row.reached is None else "pass" if row.reached else "**fail**"


def write_section(lines: list[str]) -> None:
    sections = RESULTS.read_text(encoding="utf-8").split("\n## ") if RESULTS.exists() else ["# Benchmark results\n"]
    title = lines[0].removeprefix("## ")
    kept = [section.strip("\n") for section in sections if section.split("\n")[0] != title]
    RESULTS.write_text("\n\n## ".join([*kept, "\n".join(lines)[3:]]) + "\n", encoding="utf-8")
