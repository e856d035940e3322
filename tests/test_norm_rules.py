"""The rule of a single kind of normalization: what hides is found, what is allowed passes."""

import copy
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.ops import stochastic_depth

from audited import check, normed, record, small
from eva_utils.models import center_filters, create_model, resnet18
from eva_utils.models.norms import NORMS
from eva_utils.models.resnet import StandardizedConv2d
from eva_utils.utils.assignments import Brief
from eva_utils.utils.data import load_data


@pytest.fixture(scope="module")
def data():
    return load_data("shapes", limit=70, recipe="eva6_s8")


class Sneaky(nn.Module):
    """Normalizes by batch statistics without a module for it, in training only."""

    def forward(self, x):
        return F.batch_norm(x, torch.zeros(8), torch.ones(8), training=True) if self.training else x


class Functional(nn.Module):
    """A function without a module of its own."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class OwnLayerNorm(nn.Module):
    """A LayerNorm of one's own, by torch's function."""

    def forward(self, x):
        return F.layer_norm(x, x.shape[1:])


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        ([nn.GroupNorm(1, 8)], "1 GroupNorm of one group (a forward pass: 1 group_norm of one group)"),
        ([NORMS["channel"](8)], "1 ChannelLayerNorm (a forward pass: 1 layer_norm)"),
        ([OwnLayerNorm()], "no normalization module (a forward pass: 1 layer_norm)"),
    ],
)
def test_layer_norm_alone_passes(data, layers, found):
    model = normed(*layers)
    finding = check(record(data, model), model, data, norm="LayerNorm")
    assert (finding.verdict, finding.found) == ("pass", found)


def test_a_hidden_batch_norm_is_found(data):
    model = resnet18(norm="layer")
    model.layer2[0].shortcut[1] = nn.BatchNorm2d(128)
    finding = check(record(data, model), model, data, norm="LayerNorm")
    assert finding.verdict == "FAIL"
    assert finding.found.startswith("19 GroupNorm of one group, 1 BatchNorm2d (a forward pass: ")
    assert finding.found.endswith("; not LayerNorm: layer2.0.shortcut.1")


@pytest.mark.parametrize(
    "layers",
    [
        [nn.BatchNorm2d(8)],
        [nn.GroupNorm(4, 8)],
        [nn.InstanceNorm2d(8)],
        [nn.GroupNorm(1, 8), Sneaky()],
        [nn.GroupNorm(1, 8), nn.LocalResponseNorm(2)],
        [nn.GroupNorm(1, 8), Functional(lambda x: F.local_response_norm(x, 2))],
        [nn.GroupNorm(1, 8), Functional(lambda x: F.rms_norm(x, x.shape[1:]))],
        [StandardizedConv2d(8, 8, 3)],
        [],
    ],
    ids=[
        "batch",
        "group",
        "instance",
        "functional",
        "response",
        "functional response",
        "functional rms",
        "weights",
        "none",
    ],
)
def test_other_norms_and_none_fail(data, layers):
    model = normed(*layers)
    assert check(record(data, model), model, data, norm="LayerNorm").verdict == "FAIL"


def test_batches_of_one_image_are_enough(data):
    """Batch normalization of 1x1 maps refuses to train on a single image."""
    model = nn.Sequential(nn.Conv2d(3, 8, 32), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 10))
    single = DataLoader(TensorDataset(torch.randn(3, 3, 32, 32), torch.arange(3)), batch_size=1)
    own = SimpleNamespace(train=data.train, test=single, classes=data.classes)
    assert check(record(data, model), model, own, norm="BatchNorm").verdict == "pass"


class Standardized(nn.Module):
    """Standardizes by hand over the dimensions given."""

    def __init__(self, *dims):
        super().__init__()
        self.dims = dims

    def forward(self, x):
        return (x - x.mean(self.dims, keepdim=True)) / (x.var(self.dims, keepdim=True) + 1e-5).sqrt()


class Draws(nn.Module):
    """Drops images from a branch at random, counts its calls, and lets the dropout of a batch vary."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.9)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        if self.training and random.random() < 0.5:
            x = x * np.random.uniform(2, 3)
        return (x + self.dropout(x) + stochastic_depth(x, 0.5, "row", self.training)) / self.calls


@pytest.mark.parametrize("norm", ["LayerNorm", "GroupNorm"])
def test_statistics_of_the_batch_by_hand_are_found(data, norm):
    torch.manual_seed(0)
    model = normed(nn.GroupNorm(1, 8), Standardized(0, 2, 3))
    finding = check(record(data, model), model, data, norm=norm)
    assert finding.verdict == "FAIL"
    assert finding.found.endswith("; in training an image's logits depend on the others of its batch")
    for other, verdict in ((Standardized(1, 2, 3), "not checked"), (Draws(), "pass")):
        model = normed(nn.GroupNorm(1, 8), other)
        history = record(data, model)
        state, before = torch.get_rng_state(), copy.deepcopy(model.state_dict())
        assert check(history, model, data, norm=norm).verdict == verdict
        assert torch.equal(torch.get_rng_state(), state) and model.training
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("layers", "ran"),
    [
        ([nn.GroupNorm(1, 8), Standardized(2, 3)], "1 group_norm of one group, 1 variance"),
        ([Standardized(1, 2, 3)], "1 variance"),
        ([Functional(lambda x: x / x.std((2, 3), keepdim=True))], "1 standard deviation"),
        ([nn.GroupNorm(1, 8), Functional(lambda x: F.normalize(x, dim=1))], "1 group_norm of one group, 1 length"),
    ],
)
def test_what_a_variance_is_computed_for_is_left_to_the_reader(data, layers, ran):
    model = normed(*layers)
    finding = check(record(data, model), model, data, norm="LayerNorm")
    assert finding.verdict == "not checked"
    assert finding.found.endswith(f"(a forward pass: {ran}); whether what is computed by hand normalizes is not known")


class OwnInstanceNorm(nn.Module):
    def forward(self, x):
        return F.instance_norm(x)


def test_instance_norm_is_told_from_batch_norm(data):
    model = normed(OwnInstanceNorm())
    finding = check(record(data, model), model, data, norm="BatchNorm")
    found = "no normalization module (a forward pass: 1 instance_norm)"
    assert (finding.verdict, finding.found) == ("FAIL", found)
    model[1] = nn.BatchNorm2d(8)
    finding = check(record(data, model), model, data, norm="BatchNorm")
    assert (finding.verdict, finding.found) == ("pass", "1 BatchNorm2d (a forward pass: 1 batch_norm)")


def test_a_layer_norm_that_never_runs_does_not_count(data):
    model = normed()
    model[0].idle = nn.LayerNorm(8)
    assert check(record(data, model), model, data, norm="LayerNorm").verdict == "FAIL"


@pytest.mark.parametrize(("norm", "layer"), [("BatchNorm", nn.BatchNorm2d(8)), ("GroupNorm", nn.GroupNorm(4, 8))])
def test_other_required_norms(data, norm, layer):
    model = normed(layer)
    assert check(record(data, model), model, data, norm=norm).verdict == "pass"
    assert check(record(data, small()), small(), data, norm="BatchNorm").verdict == "FAIL"


@pytest.mark.parametrize(("norm", "required"), [("batch", "BatchNorm"), ("layer", "LayerNorm"), ("group", "GroupNorm")])
def test_what_parametrizations_compute_is_of_weights(data, norm, required):
    model = center_filters(create_model("small_resnet", norm=norm, standardize=True))
    model.fc = nn.utils.parametrizations.spectral_norm(model.fc)
    finding = check(record(data, model), model, data, norm=required)
    assert finding.verdict == "pass" and "9 layer_norm of weights" in finding.found
    assert nn.utils.parametrize.is_parametrized(model.fc) and model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_an_unknown_norm_is_refused_when_the_brief_is_made():
    with pytest.raises(ValueError, match=r"unknown normalization 'Layernorm': .*did you mean 'LayerNorm'"):
        Brief("title", "objective", norm="Layernorm")


def test_a_reparametrized_weight_is_no_normalization_layer(data):
    model = small()
    model[0] = nn.utils.parametrizations.weight_norm(model[0])
    assert check(record(data, model), model, data, norm="LayerNorm").verdict == "pass"


@pytest.mark.parametrize(("norm", "required"), [("batch", "BatchNorm"), ("layer", "LayerNorm")])
def test_standardized_weights_are_named_and_are_no_normalization_layer(data, norm, required):
    model = create_model("speed_resnet", norm=norm, standardize=True)
    finding = check(record(data, model), model, data, norm=required)
    assert finding.verdict == "pass"
    assert "6 layer_norm of weights" in finding.found
