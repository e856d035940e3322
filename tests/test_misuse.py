"""What cannot be meant is refused before any work."""

import copy

import pytest
import torch
from torch import nn

from conftest import QUIET, TinyNet
from eva_utils import main as engine
from plain import assert_same_weights, new_loaders

DECAYING = TinyNet()
GROWING = torch.optim.SGD([{"params": list(DECAYING.parameters()), "weight_decay": -0.5}], lr=0.1)  # torch takes it


@pytest.mark.parametrize(
    "model, optimizer, error, message",
    [
        (TinyNet, None, TypeError, "model is a torch.nn.Module, not type; pass the model itself"),
        (TinyNet(), "sgd", TypeError, r"optimizer is a torch optimizer such as SGD.*, not 'sgd'"),
        (TinyNet(), torch.optim.SGD(TinyNet().parameters()), ValueError, "the optimizer holds no parameter of this"),
        (TinyNet().requires_grad_(False), None, ValueError, "the model has no trainable parameter"),
        (DECAYING, GROWING, ValueError, r"weight decays are \[-0\.5\]; a negative one makes the weights grow"),
    ],
)
def test_train_refuses_what_would_not_learn(model, optimizer, error, message):
    class Unread(list):
        def __iter__(self):
            raise AssertionError("a batch was read")

    with pytest.raises(error, match=message):
        engine.train(model, Unread([1]), optimizer, log=None)
    with torch.no_grad(), pytest.raises(ValueError, match="gradients are switched off here"):
        engine.train(TinyNet(), Unread([1]), optimizer, log=None)


def test_an_optimizer_whose_weight_decay_is_none_trains(tiny_net):
    groups = [{"params": list(tiny_net.parameters()), "weight_decay": None}]
    optimizer, before = torch.optim.Rprop(groups, lr=0.1), copy.deepcopy(tiny_net)  # which has no decay of its own
    engine.train(tiny_net, new_loaders()[0], optimizer, **QUIET)
    assert not torch.equal(tiny_net.fc.weight, before.fc.weight)


def test_test_refuses_what_is_no_model(loaders):
    with pytest.raises(TypeError, match=r"model is a torch\.nn\.Module, not str; pass the model itself"):
        engine.test("resnet18", loaders[1])


def test_what_train_cannot_step_is_refused(tiny_net):
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with pytest.raises(TypeError, match="step ReduceLROnPlateau yourself, with the loss that test returns"):
        engine.train(tiny_net, new_loaders()[0], optimizer, scheduler=plateau, log=None)
    with pytest.raises(TypeError, match="LBFGS runs the model several times a step"):
        engine.train(tiny_net, new_loaders()[0], torch.optim.LBFGS(tiny_net.parameters()), log=None)


def one_cycle_of(model, steps):
    return torch.optim.lr_scheduler.OneCycleLR(torch.optim.SGD(model.parameters()), max_lr=0.1, total_steps=steps)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"scheduler": one_cycle_of(TinyNet(), 99)}, ValueError, "the scheduler belongs to another optimizer"),
        ({"scheduler": "one_cycle"}, TypeError, r"scheduler is one of torch\.optim\.lr_scheduler, built with the"),
        ({"ema": 0.999}, TypeError, r"ema of train is an .*MovingAverage\(model, 0\.999\) or .*, not 0\.999; fit is"),
        ({"log": True}, TypeError, "log takes a line of text, as print does, or is None; True cannot be called"),
    ],
)
def test_train_refuses_before_a_step_what_it_could_not_use(given, error, message, tiny_net):
    before, optimizer = copy.deepcopy(tiny_net), torch.optim.SGD(tiny_net.parameters(), lr=0.1)
    with pytest.raises(error, match=message):
        engine.train(tiny_net, new_loaders()[0], optimizer, **{**QUIET, **given})
    assert_same_weights(tiny_net, before)
    if "log" in given:
        with pytest.raises(error, match=message):
            engine.fit(tiny_net, *new_loaders(), epochs=1, **{**QUIET, **given})
        assert_same_weights(tiny_net, before)


def test_train_refuses_a_one_cycle_schedule_with_too_few_steps_left(tiny_net):
    loader, before = new_loaders()[0], copy.deepcopy(tiny_net)
    scheduler = one_cycle_of(tiny_net, len(loader) - 1)
    with pytest.raises(ValueError, match=rf"OneCycleLR has {len(loader) - 1} of its .* the epoch takes {len(loader)};"):
        engine.train(tiny_net, loader, scheduler.optimizer, scheduler=scheduler, **QUIET)
    assert_same_weights(tiny_net, before)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"epochs": 0}, ValueError, "epochs is a whole number from 1 up, not 0"),
        ({"model": "resnet18"}, TypeError, "model is a torch.nn.Module, not str"),
        ({"model": nn.ReLU()}, ValueError, "the model has no trainable parameter"),
        (
            {"train_loader": iter([1])},
            TypeError,
            r"train_loader \(list_iterator\) can be passed over only once",
        ),
        ({"test_loader": []}, ValueError, "test_loader is empty"),
        ({"optimizer": torch.optim.SGD(TinyNet().parameters())}, ValueError, "holds no parameter of this model"),
        ({"criterion": nn.CrossEntropyLoss(reduction="sum")}, ValueError, "not reduction='sum'"),
        ({"precision": "bfloat61"}, ValueError, r"unknown precision 'bfloat61'.*did you mean 'bfloat16'\?"),
        ({"precision": "float16"}, ValueError, "float16 needs a CUDA device and this is 'cpu'"),
        ({"checkpoint": "run", "resume": 1}, ValueError, "resume is True, False or 'auto', not 1"),
        ({"resume": True}, ValueError, "resume needs the folder of the run: give checkpoint= as well"),
        ({"seed": -1}, ValueError, "a seed is a whole number from 0"),
    ],
)
def test_misuse_is_refused_before_any_work(change, error, message, tiny_net, loaders):
    arguments = {
        "model": tiny_net,
        "train_loader": loaders[0],
        "test_loader": loaders[1],
        "epochs": 1,
        **QUIET,
        **change,
    }
    before = copy.deepcopy(tiny_net.state_dict())
    positional = [arguments.pop(name) for name in ("model", "train_loader", "test_loader")]
    with pytest.raises(error, match=message):
        engine.fit(*positional, **arguments)
    assert all(torch.equal(before[name], value) for name, value in tiny_net.state_dict().items())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"ema": 1}, "ema is a number from 0 and below 1, not 1"),
        ({"ema": "0.9"}, "ema is a number from 0 and below 1, not '0.9'"),
        ({"clip": 0}, "clip is a number above 0, not 0"),
    ],
)
def test_averaging_misuse_is_refused(option, message, tiny_net):
    before = copy.deepcopy(tiny_net)
    with pytest.raises(ValueError, match=message):
        engine.fit(tiny_net, *new_loaders(), epochs=1, **option, **QUIET)
    assert_same_weights(tiny_net, before)
