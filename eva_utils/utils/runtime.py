"""Device, precision, memory and seeds: the only file that asks about hardware."""

import ctypes
import os
import platform
import random
import re
import sys
import time
import warnings
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .checks import check_seed
from .names import first_line, unknown_name

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device asked for, or for None the best there is: CUDA, else MPS, else the CPU.

    Raises:
        ValueError: the device is unknown to torch or not on this machine.
    """
    if device is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(name)
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = first_line(error)
        if re.fullmatch(r"(cuda|gpu)(:\d+)?", str(device)) and not torch.cuda.is_available():
            reason = f"{reason.rstrip('.')}; in Colab choose a GPU under Runtime, Change runtime type"
        raise ValueError(f"device {str(device)!r} is not usable here ({reason}); leave it out to pick one") from None
    return chosen


def pick_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the type that convolutions and matrix products run in.

    "auto" is bfloat16 on a CUDA device that computes in it, else float16 there; bfloat16 on a CPU with
    AVX512-BF16 or AMX instructions; float32 on anything else. It is never chosen by timing.

    Raises:
        ValueError: the name is unknown, or float16 is asked of a device other than CUDA.
    """
    if precision == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if native else torch.float16
        return torch.bfloat16 if device.type == "cpu" and _cpu_computes_bfloat16() else torch.float32
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, ["auto", *PRECISIONS])
    if precision == "float16" and device.type != "cuda":
        raise ValueError(f"float16 needs a CUDA device and this is {device.type!r}; use 'auto' or 'float32'")
    return PRECISIONS[precision]


def warn_of_emulation(dtype: torch.dtype, device: torch.device) -> None:
    """Warn of bfloat16 on a GPU without instructions for it, whose half precision is float16."""
    if device.type == "cuda" and dtype == torch.bfloat16 != pick_precision("auto", device):
        warnings.warn(
            "this GPU has no instructions for bfloat16 and emulates it slowly; begin a run with precision='auto', "
            "which is float16 here, or train on a GPU that has them",
            stacklevel=3,
        )


def _cpu_computes_bfloat16() -> bool:
    # torch names these two checks with an underscore: a release without them means float32.
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check is not None and check() for check in checks)


def precision_name(dtype: torch.dtype) -> str:
    """Return the name of a precision, as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Return the context in which a model runs in `dtype`; float32 changes nothing."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def can_fuse(device: torch.device, dtype: torch.dtype) -> bool | None:
    """Whether an optimizer may step in one fused kernel: in half precision, where torch has such kernels.

    None is torch's own choice. In float32 the fused kernels would round otherwise than a plain loop's.
    """
    return True if dtype != torch.float32 and device.type in ("cpu", "cuda") else None


def move_images(images: Tensor, device: torch.device, *, last: bool) -> Tensor:
    """Bring a batch to the device, with channels last if that is wanted and it is one of maps (N, C, H, W)."""
    layout = torch.channels_last if last and images.ndim == 4 else torch.preserve_format
    return images.to(device, non_blocking=device.type == "cuda", memory_format=layout)


def memory_bytes(device: torch.device) -> int:
    """Return how much memory the device has in all; 8 GiB where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 8 << 30


@cache
def keep_freed_memory() -> bool:
    """Keep what tensors free for the next ones, in this process from now on, and return whether that took effect.

    The C library gives memory back to the system, large blocks at once, and every page of the next tensor is
    faulted in again: on virtual machines that takes longer than most kernels. Blocks of 256 MiB and more are
    still given back. Only glibc can be told so (mallopt(3)); CUDA's allocator keeps memory by itself.
    """
    trim_threshold, mmap_threshold = -1, -3  # of malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    larger = mallopt(mmap_threshold, 1 << 28) or mallopt(mmap_threshold, 1 << 25)  # glibc before 2.35 takes no more
    return bool(larger and mallopt(trim_threshold, 2**31 - 1))


def hardware(device: torch.device) -> dict[str, str | int]:
    """Return the day, the versions and the machine a run should name: python, torch, device and threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": device.type,
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "machine": name,
        "threads": torch.get_num_threads(),
    }


def versions() -> dict[str, str]:
    """Return the versions of this package and of those whose results a report shows."""
    from .. import __version__

    found = {"eva_utils": __version__, "Python": sys.version.split()[0]}
    for package in ("torch", "torchvision", "numpy", "matplotlib"):
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch on every device.

    Raises:
        ValueError: the seed is not a whole number from 0 to 2**32 - 1.
    """
    seed = check_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def rng_state() -> dict:
    """Return the state of every random generator (python, numpy, torch, its devices) as tensors and plain values."""
    name, keys, *rest = np.random.get_state(legacy=True)
    state: dict = {"python": random.getstate(), "torch": torch.get_rng_state()}
    state["numpy"] = (name, torch.from_numpy(np.asarray(keys, np.int64)), *rest)
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_rng_state(state: dict) -> None:
    """Put back what `rng_state` returned; the state of a device that is not here is left out."""
    name, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    for index, cuda in enumerate(state.get("cuda", [])[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda, index)
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])
