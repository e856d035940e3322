import ctypes
import platform
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from conftest import QUIET, TinyNet, random_batches
from eva_utils import main as engine
from eva_utils.models.resnet import global_max
from eva_utils.utils import runtime
from eva_utils.utils.finished import precision_of
from eva_utils.utils.kept import keep_modes


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
    with pytest.raises(KeyError), keep_modes(model):
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


@pytest.mark.parametrize(
    ("device", "precision", "fused"),
    [
        ("cpu", "float32", None),
        ("cuda", "float32", None),
        ("cpu", "bfloat16", True),
        ("cuda", "bfloat16", True),
        ("cuda", "float16", True),
        ("mps", "float16", None),
        ("mps", "bfloat16", None),
    ],
)
def test_an_optimizer_steps_in_one_kernel_in_half_precision_where_torch_has_it(device, precision, fused):
    assert runtime.can_fuse(torch.device(device), runtime.PRECISIONS[precision]) is fused


@pytest.mark.parametrize(("precision", "fused"), [("float32", None), ("bfloat16", True)])
def test_the_optimizer_that_fit_makes_steps_in_one_kernel_and_one_it_was_given_stays(
    precision, fused, tiny_net, loaders, monkeypatch
):
    made = []

    class Noted(torch.optim.SGD):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    given = torch.optim.SGD(tiny_net.parameters(), lr=0.01)
    monkeypatch.setattr(torch.optim, "SGD", Noted)
    options = {**QUIET, "precision": precision}
    engine.fit(tiny_net, *loaders, epochs=1, optimizer=given, **options)
    assert made == [] and given.param_groups[0]["fused"] is None
    engine.fit(TinyNet(), *loaders, epochs=1, **options)
    assert [optimizer.param_groups[0]["fused"] for optimizer in made] == [fused]


def test_bfloat16_on_a_gpu_that_emulates_it_is_warned_of(monkeypatch):
    """As Colab's T4, which torch calls able to compute in bfloat16 unless asked about emulation."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    with pytest.warns(UserWarning, match="no instructions for bfloat16 .* precision='auto', which is float16 here"):
        runtime.warn_of_emulation(torch.bfloat16, torch.device("cuda"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runtime.warn_of_emulation(torch.float16, torch.device("cuda"))
        runtime.warn_of_emulation(torch.bfloat16, torch.device("cpu"))  # asked for, where it is not the default
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
        runtime.warn_of_emulation(torch.bfloat16, torch.device("cuda"))


def test_a_run_is_looked_at_for_emulation_unless_it_is_finished(tiny_net, tmp_path, monkeypatch):
    seen, options = [], {**QUIET, "checkpoint": tmp_path, "resume": "auto"}
    monkeypatch.setattr(engine, "warn_of_emulation", lambda *given: seen.append(given))
    loader = DataLoader(random_batches(8), batch_size=8)
    for epochs in (1, 1, 2):
        engine.fit(tiny_net, loader, loader, epochs=epochs, **options)
    assert seen == [(torch.float32, torch.device("cpu"))] * 2


def test_a_device_that_is_not_here_is_refused():
    assert runtime.pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="device 'tpu' is not usable here"):
        runtime.pick_device("tpu")
    for name, advised in (("cuda:0", True), ("gpu", True), ("cuda:O", False)):
        with (
            pytest.MonkeyPatch.context() as patch,
            pytest.raises(ValueError, match=f"device '{name}' is not usable") as caught,
        ):
            patch.setattr(torch.cuda, "is_available", lambda: False)
            patch.setattr(torch, "empty", _absent)
            runtime.pick_device(name)
        assert ("in Colab choose a GPU" in str(caught.value)) is advised


def _absent(*_, **__):
    raise AssertionError("Torch not compiled with CUDA enabled")


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


def test_cuda_generators_are_put_back_on_the_devices_that_are_here(monkeypatch):
    put = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, index: put.append((index, state)))
    runtime.set_rng_state({**runtime.rng_state(), "cuda": ["first", "second"]})
    assert put == [(0, "first")]


@pytest.mark.parametrize(
    ("device", "native", "recorded", "used"),
    [
        ("cuda", True, "bfloat16", "bfloat16"),
        ("cuda", True, "float16", "float16"),
        ("cuda", False, "float16", "float16"),
        ("cuda", False, "bfloat16", "auto"),
        ("cuda", False, "float32", "float32"),
        ("cpu", False, "float16", "auto"),
        ("cpu", False, "bfloat16", "auto"),
        ("cpu", True, "bfloat16", "bfloat16"),
        ("mps", True, "bfloat16", "auto"),
    ],
)
def test_a_finished_run_is_scored_in_its_precision_where_the_device_computes_in_it(
    device, native, recorded, used, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    monkeypatch.setattr(runtime, "_cpu_computes_bfloat16", lambda: native)
    assert precision_of({"precision": recorded}, torch.device(device)) == used


def test_the_maximum_of_a_map_has_a_deterministic_gradient_on_cuda():
    with FakeTensorMode():
        x, seen = torch.empty(2, 3, 4, 4, device="cuda"), Operations()
        with seen:
            assert global_max(x).shape == (2, 3)
    assert seen.names == ["amax"]
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(global_max(x), x.amax(dim=(2, 3)), rtol=0, atol=0)


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))
