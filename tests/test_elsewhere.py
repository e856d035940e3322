"""A run goes on, or is loaded, on another machine, in another precision, by another optimizer kernel."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from conftest import QUIET, TinyNet, random_batches
from eva_utils import main as engine
from eva_utils.utils import processes, runtime, verified
from eva_utils.utils.state import RunState
from runs import Restless, StopAfter, assert_equal_weights, make_run


@pytest.mark.filterwarnings("ignore:the run was trained in bfloat16")
def test_the_recorded_precision_is_taken_up_again(tmp_path):
    make_run(epochs=1, checkpoint=tmp_path, precision="bfloat16")
    _, history = make_run(epochs=2, checkpoint=tmp_path, precision="auto", resume=True)
    assert history.settings["precision"] == "bfloat16"


def test_a_precision_that_this_machine_emulates_is_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr("eva_utils.utils.runtime._cpu_computes_bfloat16", lambda: False)
    make_run(epochs=1, checkpoint=tmp_path, precision="bfloat16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_run(epochs=1, checkpoint=tmp_path, precision="auto", resume=True)
        make_run(epochs=2, checkpoint=tmp_path, precision="bfloat16", resume=True)
    with pytest.warns(UserWarning, match="trained in bfloat16, which this machine has no instructions for"):
        make_run(epochs=3, checkpoint=tmp_path, precision="auto", resume=True)


def test_a_resumed_float32_run_keeps_its_layout_where_half_precision_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "_cpu_computes_bfloat16", lambda: False)
    whole, _ = make_run(epochs=3)
    make_run(epochs=3, checkpoint=tmp_path, log=StopAfter(1))
    monkeypatch.setattr(runtime, "_cpu_computes_bfloat16", lambda: True)
    resumed, history = make_run(epochs=3, checkpoint=tmp_path, resume=True, precision="auto")
    assert history.settings["precision"] == "float32"
    assert_equal_weights(resumed.state_dict(), whole.state_dict())
    assert all(parameter.is_contiguous() for parameter in resumed.parameters())


def test_a_finished_run_of_a_gpu_is_loaded_where_its_precision_is_missing(tmp_path):
    model, history = make_run(epochs=1, checkpoint=tmp_path)
    state = verified.load_verified(tmp_path / "epoch-0001.pt")
    state["history"]["settings"]["precision"] = "float16"
    state["scaler"] = torch.amp.GradScaler("cpu").state_dict()
    verified.save_verified(tmp_path / "epoch-0001.pt", state)
    for precision in ("auto", "bfloat16"):
        again, loaded = make_run(epochs=1, checkpoint=tmp_path, precision=precision, resume=True)
        assert (loaded.rows, loaded.settings["precision"]) == (history.rows, "float16")
        assert_equal_weights(again.state_dict(), model.state_dict())
    with pytest.raises(ValueError, match="cannot resume: the run was trained in float16; resume it on a CUDA device"):
        make_run(epochs=2, checkpoint=tmp_path, precision="auto", resume=True)
    with pytest.raises(ValueError, match="precision was 'float16' and is now 'float32'"):
        make_run(epochs=2, checkpoint=tmp_path, precision="float32", resume=True)


def test_a_finished_run_is_loaded_in_float16_though_it_left_no_scale(tmp_path, monkeypatch):
    model, history = make_run(epochs=1, checkpoint=tmp_path)
    monkeypatch.setattr(engine, "pick_precision", lambda *_: torch.float16)  # as precision="float16" on CUDA
    again, loaded = make_run(epochs=1, checkpoint=tmp_path, resume=True)
    assert loaded.rows == history.rows
    assert_equal_weights(again.state_dict(), model.state_dict())


def test_a_finished_run_of_several_processes_or_compiled_is_loaded_by_one_that_is_not(tmp_path, monkeypatch):
    model, history = make_run(epochs=1, checkpoint=tmp_path)
    path = tmp_path / "epoch-0001.pt"
    state = verified.load_verified(path)
    state["history"]["settings"].update(processes=2, compile=True)
    state["rng"] = 2 * state["rng"]
    verified.save_verified(path, state)
    with pytest.raises(ValueError, match="cannot resume: compile was True and is now False"):
        make_run(epochs=2, checkpoint=tmp_path, resume=True)
    again, loaded = make_run(epochs=1, checkpoint=tmp_path, resume=True)
    assert (loaded.rows, loaded.settings["processes"]) == (history.rows, 2)
    assert_equal_weights(again.state_dict(), model.state_dict())

    monkeypatch.setattr(processes, "rank", lambda: 2)  # the third, of which the run has left no random state
    third = Restless(TinyNet())
    RunState((), model=third).restore({**state, "generators": []})
    assert_equal_weights(third.state_dict(), model.state_dict())


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_run_in_float32_goes_on_as_it_stepped_with_a_fused_optimizer_too(kind, tmp_path):
    """The command line gives one where half precision is the default; here its steps would round otherwise."""

    def run(fused, epochs, **folder):
        torch.manual_seed(0)
        model = TinyNet()
        optimizer = kind(model.parameters(), lr=0.01, weight_decay=0.1, fused=fused)
        loader = DataLoader(random_batches(16), batch_size=8)
        engine.fit(model, loader, loader, epochs=epochs, optimizer=optimizer, **folder, **QUIET)
        return optimizer, model.state_dict()

    _, whole = run(None, 4)
    run(None, 1, checkpoint=tmp_path)
    optimizer, resumed = run(True, 4, checkpoint=tmp_path, resume=True)
    assert optimizer.param_groups[0]["fused"] is None
    assert_equal_weights(resumed, whole)


@pytest.mark.parametrize(("then", "now"), [(None, True), (True, None)])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_run_in_float16_goes_on_with_a_fused_optimizer_or_without(kind, then, now, tmp_path, monkeypatch):
    """On the CPU, which scales gradients as a GPU does; the steps differ by rounding alone."""
    for name in ("pick_precision", "recorded_precision"):
        monkeypatch.setattr(f"eva_utils.main.{name}", lambda *_: torch.float16)

    def run(fused, epochs, folder):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
        optimizer = kind(model.parameters(), lr=0.01, fused=fused)
        options = {"device": "cpu", "log": None, "checkpoint": folder, "resume": "auto", "optimizer": optimizer}
        loader = DataLoader(random_batches(16), batch_size=8)
        engine.fit(model, loader, loader, epochs=epochs, **options)
        return model[1].weight.detach()

    run(then, 1, tmp_path / "resumed")
    torch.testing.assert_close(run(now, 2, tmp_path / "resumed"), run(then, 2, tmp_path / "whole"))
