"""After an error or an interruption everything is as the last finished epoch left it."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from conftest import QUIET
from eva_utils import main as engine
from eva_utils.utils.runtime import seed_everything
from plain import Poison, assert_same_weights, new_loaders


@pytest.mark.filterwarnings("ignore:the model has the weights")
def test_optimizer_and_scheduler_go_back_with_the_weights(tiny_net):
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.05, momentum=0.9)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.1, epochs=5, steps_per_epoch=3)
    model = Poison(tiny_net, 5, KeyboardInterrupt())
    options = {"optimizer": optimizer, "scheduler": scheduler, **QUIET}
    history = engine.fit(model, *new_loaders(), epochs=5, **options)
    assert len(history) == 1 and scheduler.last_epoch == 3
    assert {int(state["momentum_buffer"].isfinite().all()) for state in optimizer.state.values()} == {1}
    assert len(engine.fit(model, *new_loaders(), epochs=4, **options)) == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_step(value, tiny_net):
    undisturbed = copy.deepcopy(tiny_net)
    model = Poison(tiny_net, 8, value)  # the second batch of the third epoch of three batches
    seed_everything(1)
    with pytest.raises(FloatingPointError, match="epoch 3: the loss is NaN or infinite at batch 1; lower the"):
        engine.fit(model, *new_loaders(), epochs=5, **QUIET)
    seed_everything(1)
    engine.fit(undisturbed, *new_loaders(), epochs=2, **QUIET)
    assert_same_weights(model.net, undisturbed)


def test_ctrl_c_returns_the_finished_epochs(tiny_net):
    undisturbed = copy.deepcopy(tiny_net)
    model, lines = Poison(tiny_net, 5, KeyboardInterrupt()), []
    seed_everything(1)
    history = engine.fit(model, *new_loaders(), epochs=5, **{**QUIET, "log": lines.append})
    assert len(history) == 1 and lines[-1].startswith("Stopped in epoch 2: weights and history are those of the 1 ")
    seed_everything(1)
    engine.fit(undisturbed, *new_loaders(), epochs=1, **QUIET)
    assert_same_weights(model.net, undisturbed)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert engine.test(model, new_loaders()[1], precision="float32").loss == history.rows[-1]["test_loss"]


@pytest.mark.parametrize(
    ("call", "kind", "ema"), [(5, RuntimeError, None), (5, RuntimeError, 0.9), (4, ValueError, None)]
)
def test_an_error_after_which_the_device_is_lost_is_not_hidden_by_another(call, kind, ema, tiny_net, monkeypatch):
    def unreadable(*_):
        raise RuntimeError("CUDA error: nothing can be read")

    monkeypatch.setattr(nn.Module, "load_state_dict", unreadable)
    monkeypatch.setattr(engine, "note_trained", unreadable)
    model = Poison(tiny_net, call, RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(kind, match="device-side assert") as raised:
        engine.fit(model, *new_loaders(), epochs=5, ema=ema, **QUIET)
    assert len(raised.value.history) == 1


def test_a_model_that_raises_keeps_the_finished_epochs(tiny_net, tmp_path):
    model = Poison(tiny_net, 5, RuntimeError("out of cheese"))
    with pytest.raises(RuntimeError, match="out of cheese"):
        engine.fit(model, *new_loaders(), epochs=5, checkpoint=tmp_path / "run", **QUIET)
    assert (tmp_path / "run" / "epoch-0001.pt").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_remembers_the_bad_batch_without_waiting(tiny_net):
    model = Poison(tiny_net, 2, float("nan"))
    with pytest.raises(FloatingPointError, match="epoch 1: the loss is NaN or infinite at batch 1"):
        engine.fit(model, *new_loaders(), epochs=1, log=None, device="cuda")
