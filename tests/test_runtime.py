import ctypes
import platform
import random

import numpy as np
import pytest
import torch
from torch import nn

from eva_utils import main as engine
from eva_utils.utils import runtime


def draw():
    return random.random(), np.random.rand(), torch.rand(3).tolist()


def test_seeds_and_states_reach_every_generator():
    runtime.seed_everything(7)
    first = draw()
    state = runtime.rng_state()
    second = draw()
    runtime.set_rng_state(state)
    assert draw() == second != first
    runtime.seed_everything(7)
    assert draw() == first


def test_a_seed_may_be_numpys(tiny_net, loaders):
    runtime.seed_everything(np.int64(7))
    history = engine.fit(tiny_net, *loaders, epochs=1, seed=np.int64(7), log=None, device="cpu")
    assert type(history.settings["seed"]) is int


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "1", True, None])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match="a seed is a whole number from 0 to"):
        runtime.seed_everything(seed)


def test_modes_are_put_back_after_an_exception():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[1].eval()
    with pytest.raises(KeyError), runtime.keep_modes(model):
        model.train()
        raise KeyError
    assert [module.training for module in model.modules()] == [True, True, False]


@pytest.mark.parametrize(
    "device, native, bf16, expected",
    [
        ("cuda", True, False, torch.bfloat16),
        ("cuda", False, True, torch.float16),
        ("cpu", False, True, torch.bfloat16),
        ("cpu", True, False, torch.float32),
        ("mps", True, True, torch.float32),
    ],
)
def test_auto_precision(device, native, bf16, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    monkeypatch.setattr(runtime, "_cpu_computes_bfloat16", lambda: bf16)
    assert runtime.pick_precision("auto", torch.device(device)) == expected


def test_a_device_that_is_not_here_is_refused():
    assert runtime.pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="device 'tpu' is not usable here"):
        runtime.pick_device("tpu")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_kept_for_the_next_tensor():
    resource = pytest.importorskip("resource")
    assert runtime.keep_freed_memory()
    size, faults = 64 << 20, []
    for _ in range(12):  # a few, since the holes must first be found
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(size, dtype=torch.uint8)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert sum(faults[-4:]) < size / resource.getpagesize() / 10


def test_a_c_library_that_keeps_nothing_is_no_error(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not runtime.keep_freed_memory.__wrapped__()
