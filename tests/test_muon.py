"""Muon against its formula in float64, against torch's own on matrices, and against SGD on everything else."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from conftest import TinyNet, random_batches
from eva_utils import main as engine
from eva_utils.models import create_model
from eva_utils.utils import muon
from eva_utils.utils.muon import Muon, orthogonalize
from eva_utils.utils.optim import make_optimizer, one_cycle


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    monkeypatch.setattr(muon, "pick_precision", lambda *_: torch.float32)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (4, 4)])
def test_the_quintic_is_taken_of_the_singular_values(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(3):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    torch.testing.assert_close(orthogonalize(matrix).double(), left * values @ right, rtol=0, atol=1e-5)
    assert torch.equal(orthogonalize(torch.zeros(shape)), torch.zeros(shape))


def test_bfloat16_is_near(monkeypatch):
    matrix = torch.randn(16, 40, generator=torch.Generator().manual_seed(1))
    exact = orthogonalize(matrix)
    monkeypatch.setattr(muon, "pick_precision", lambda *_: torch.bfloat16)
    assert orthogonalize(matrix).dtype == torch.float32
    assert (orthogonalize(matrix) - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("shape", [(6, 2, 3, 3), (30, 2, 3, 3)])
def test_convolutions_step_as_torch_steps_matrices(shape):
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon came with torch 2.9")
    generator = torch.Generator().manual_seed(2)
    weight = nn.Parameter(torch.randn(shape, generator=generator))
    matrix = nn.Parameter(weight.detach().flatten(1).clone())
    ours = Muon([weight], lr=0.1, momentum=0.6)
    theirs = torch.optim.Muon([matrix], lr=0.1, momentum=0.6, weight_decay=0, nesterov=True, ns_steps=3)
    for _ in range(4):
        weight.grad = torch.randn(shape, generator=generator)
        matrix.grad = weight.grad.flatten(1).clone()
        matrix.data.mul_(shape[0] ** 0.5 / matrix.data.norm())  # what ours does to keep the length
        ours.step()
        theirs.step()
        torch.testing.assert_close(weight.flatten(1), matrix, rtol=0, atol=0.01)  # torch computes in bfloat16


def test_what_is_no_convolution_steps_as_in_sgd():
    generator = torch.Generator().manual_seed(3)
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((4, 6), (6,))]
    theirs = copy.deepcopy(ours)
    own = Muon([{"params": ours, "orthogonal": False}], lr=0.1, momentum=0.9, weight_decay=0.01)
    sgd = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        own.step()
        sgd.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


def test_the_length_of_a_convolution_is_kept_whatever_its_gradient():
    weight = nn.Parameter(torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(4)))
    optimizer = Muon([weight], lr=1e-6)
    for size in (1e-3, 1e6):
        weight.grad = torch.full_like(weight, size)
        optimizer.step()
        assert weight.norm().item() == pytest.approx(8**0.5, rel=1e-4)


def test_the_named_optimizer_and_its_cycle_give_each_group_its_rate():
    model = create_model("whitened_resnet")
    optimizer = make_optimizer("muon", model, lr=0.08, momentum=0.9, weight_decay=0.01)
    convolutions, head, others = optimizer.param_groups
    assert [len(group["params"]) for group in optimizer.param_groups] == [6, 1, 12]
    assert {parameter.ndim for parameter in convolutions["params"]} == {4} and convolutions["momentum"] == 0.6
    assert head["params"] == [model.fc.weight] and head["weight_decay"] == 0.01 and head["momentum"] == 0.9
    assert others["weight_decay"] == 0
    one_cycle(optimizer, 10, 5, lr_max=0.1, lr_min=0.01)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.025, 0.025])
    assert [group["max_lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.25, 0.25])


def test_only_convolutions_before_the_last_layer_are_orthogonalized():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.full((1, 4, 1, 1), 0.01))
            self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.GroupNorm(1, 4), nn.Conv2d(4, 10, 1)

    net = Net()
    optimizer = make_optimizer("muon", net, lr=0.08)
    taken = [parameter for group in optimizer.param_groups if group["orthogonal"] for parameter in group["params"]]
    assert taken == [net.conv.weight]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(net.parameters()))
    with pytest.raises(ValueError, match=r"a parameter \(4,\) is no matrix; put norms and biases into a group with"):
        Muon(net.norm.parameters())


def test_a_run_resumed_ends_as_one_that_never_stopped(tmp_path):
    def run(epochs, folder, resume=False):
        torch.manual_seed(5)
        model = TinyNet()
        loader = DataLoader(random_batches(22), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(2))
        optimizer = make_optimizer("muon", model, lr=0.02)
        engine.fit(
            model, loader, loader, epochs=epochs, optimizer=optimizer, log=None, device="cpu", precision="float32",
            checkpoint=folder, resume=resume,
        )  # fmt: skip
        return model.state_dict()

    whole = run(3, tmp_path / "whole")
    run(1, tmp_path / "parts")
    parts = run(3, tmp_path / "parts", resume=True)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("wrong", [{"lr": -0.1}, {"momentum": 1.0}, {"weight_decay": -1}])
def test_misuse_is_refused(wrong, tiny_net):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is a number from 0"):
        Muon(tiny_net.parameters(), **wrong)
