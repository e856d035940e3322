import copy
import random
import re
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import is_parametrized

from eva_utils.models import create_model
from eva_utils.utils.summary import summary


def test_the_table_changes_nothing(tiny_net):
    tiny_net.norm.eval()
    before, state = copy.deepcopy(tiny_net.state_dict()), torch.get_rng_state()
    text = summary(tiny_net, (3, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in tiny_net.state_dict().items())
    assert [module.training for module in tiny_net.modules()] == [True, True, False, True, True]
    assert not any(module._forward_hooks for module in tiny_net.modules())
    assert re.search(r"Conv2d-1 +\[-1, 6, 8, 8\] +168", text)


def test_a_compiled_model_has_the_table_of_the_plain_one(tiny_net):
    assert summary(torch.compile(tiny_net), (3, 8, 8)) == summary(tiny_net, (3, 8, 8))


def test_nothing_is_printed(tiny_net, capsys):
    summary(tiny_net, (3, 8, 8))
    assert capsys.readouterr() == ("", "")


def test_totals_are_the_models_own():
    """torchsummary counts only what the layers own: here it would miss the scale."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(5))
            self.fc = nn.Linear(3 * 8 * 8, 5)
            self.fc.bias.requires_grad_(False)

        def forward(self, x):
            return self.scale * self.fc(x.flatten(1))

    text = summary(Scaled(), (3, 8, 8))
    total = 5 + 192 * 5 + 5
    assert f"Total params: {total}\n" in text
    assert f"Trainable params: {total - 5}\n" in text and "Non-trainable params: 5\n" in text

    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(10_000_000))
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            return self.fc(x.flatten(1)[:, :2]) * self.weight[0]

    text = summary(Large(), (3, 512, 512))
    assert "Input size (MB): 3.00\nForward/backward pass size (MB): 0.00\nParams size (MB): 38.15\n" in text
    assert "Estimated Total Size (MB): 41.15\n" in text
    model = Large()
    model.weight.data = model.weight.data.half()
    assert "Params size (MB): 19.07\n" in summary(model, (3, 512, 512))
    text = summary(create_model("resnet18", norm="layer"), (3, 32, 32))
    assert "Total params: 11,173,962\n" in text
    sizes = [float(size) for size in re.findall(r"[Ss]ize \(MB\): (.*)", text)]
    assert len(sizes) == 4 and sizes[1] > 1 and sum(sizes[:3]) == pytest.approx(sizes[3], abs=0.011)


def test_every_random_generator_is_put_back():
    class Draws(nn.Flatten):
        def forward(self, x):
            return super().forward(x) * (1 + random.random() + np.random.rand() + torch.rand(1))

    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    model = nn.Sequential(Draws(), nn.Linear(12, 2))
    before = states()
    summary(model, (3, 2, 2))
    assert states() == before


def test_the_table_is_that_of_evaluation():
    class Helped(nn.Linear):
        """Has a second answer for the training, as GoogLeNet."""

        def forward(self, x):
            x = super().forward(x.flatten(1))
            return (x, x) if self.training else x

    assert re.search(r"Helped-1 +\[-1, 5\] +65\n", summary(nn.Sequential(Helped(12, 5)), (3, 2, 2)))


def test_a_size_that_is_none_is_refused(tiny_net):
    with pytest.raises(
        ValueError, match=r"input_size is \(channels, height, width\), as \(3, 32, 32\), not \(32, 32\)"
    ):
        summary(tiny_net, (32, 32))
    with pytest.raises(ValueError, match=r"input_size is \(channels, height, width\), as \(3, 32, 32\), not 32"):
        summary(tiny_net, 32)
    with pytest.raises(ValueError, match=r"input_size is \(channels, height, width\), .* not \(3, 0, 32\)"):
        summary(tiny_net, (3, 0, 32))
    with pytest.raises(ValueError, match=r"does not take \(channels, height, width\) = \(32, 32, 3\)"):
        summary(tiny_net, (32, 32, 3))


def test_a_model_in_half_precision_has_the_table_of_the_same_layers(tiny_net):
    whole, half = (summary(model, (3, 8, 8)) for model in (tiny_net, copy.deepcopy(tiny_net).bfloat16()))
    assert half.split("\nParams size")[0] == whole.split("\nParams size")[0]


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match=r"model is a torch\.nn\.Module, not str; pass the model itself"):
        summary("resnet18", (3, 32, 32))


def test_a_model_that_torchsummary_cannot_list_is_named():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.fc = nn.Linear(8, 4)

        def forward(self, x):
            x = x.flatten(2)
            return self.fc(self.attention(x, x, x, need_weights=False)[0].mean(dim=1))

    with pytest.raises(ValueError, match=r"torchsummary cannot list the layers of this Attention \(.*NoneType"):
        summary(Attention(), (3, 2, 4))


def test_without_torchsummary_it_is_said_how_to_get_it(tiny_net, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchsummary", None)
    with pytest.raises(ModuleNotFoundError, match=r"summary needs torchsummary .*; pip install torchsummary"):
        summary(tiny_net, (3, 8, 8))


def test_parametrized_weights_are_listed_as_plain_ones_and_left_parametrized():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    plain = summary(model, (3, 8, 8))
    model[0] = parametrizations.weight_norm(model[0])
    model[2] = parametrizations.spectral_norm(model[2]).eval()
    images = torch.randn(2, 3, 8, 8)
    before = model(images)
    table = summary(model, (3, 8, 8))
    rows = [line for line in table.splitlines() if line.lstrip().startswith(("Conv2d", "Flatten", "Linear"))]
    assert rows == [line for line in plain.splitlines() if line.lstrip().startswith(("Conv2d", "Flatten", "Linear"))]
    assert len(rows) == 3 and "arametri" not in table and torch.equal(model(images), before)
    assert all(is_parametrized(layer) for layer in (model[0], model[2]))
