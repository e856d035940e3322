"""Centered filters stay so, train as SGD on centered gradients does, and go through a run like any weights."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD

import eva_utils as eva
from conftest import IMAGES, LABELS, QUIET, TinyNet, fit
from eva_utils import main as engine
from eva_utils.models import center_filters, create_model
from eva_utils.utils.optim import make_optimizer
from plain import assert_same_weights


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3, bias=False), nn.Flatten(), nn.Linear(64, 4))


def test_it_is_sgd_on_gradients_without_their_mean_from_filters_without_theirs():
    ours, theirs = center_filters(network()), network()
    optimizer, plain = (
        SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01) for model in (ours, theirs)
    )
    engine.train(ours, [(IMAGES, LABELS)] * 4, optimizer, **QUIET)
    for layer in (0, 2):
        for one in theirs[layer].weight.data:
            one -= one.sum() / one.numel()
    for _ in range(4):
        plain.zero_grad()
        nn.functional.cross_entropy(theirs(IMAGES), LABELS).backward()
        for layer in (0, 2):
            for gradient in theirs[layer].weight.grad:
                gradient -= gradient.sum() / gradient.numel()
        plain.step()
    for layer in (0, 2, 4):
        torch.testing.assert_close(ours[layer].weight, theirs[layer].weight)
    assert ours[0].weight.flatten(1).mean(1).abs().max() < 1e-7


@pytest.mark.parametrize("name", ["resnet18", "flip_resnet", "whitened_flip_resnet"])
def test_all_filters_but_frozen_ones_are_centered(name):
    model = center_filters(create_model(name, norm="layer"))
    frozen = [part for part in model.modules() if isinstance(part, nn.Conv2d) and not part.weight.requires_grad]
    assert len(frozen) == (name == "whitened_flip_resnet")
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            centered = bool(part.weight.flatten(1).mean(1).abs().max() < 1e-6)
            assert centered == (part not in frozen)


def test_what_has_no_filters_to_center_is_refused():
    with pytest.raises(TypeError, match=r"center_filters takes a torch\.nn\.Module, not str"):
        center_filters("resnet18")
    with pytest.raises(ValueError, match="Linear has no 2d convolution to train, and so no filters to center"):
        center_filters(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="the filters of this TinyNet are centered, or parametrized, already"):
        center_filters(center_filters(TinyNet()))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv2d(8, 8, 1, groups=8), "a filter of one weight is 0 where its mean is; leave center_filters out"),
        (nn.LazyConv2d(8, 3), "a lazy convolution has its filters from the first batch; run the model on one, then"),
    ],
)
def test_filters_that_cannot_be_centered_are_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        center_filters(nn.Sequential(layer))


def test_muon_orthogonalizes_the_convolutions_of_a_centered_network_too():
    for change in (nn.Module.train, center_filters):
        model = change(create_model("small_resnet"))
        (first, *_) = make_optimizer("muon", model, lr=0.1).param_groups
        assert [parameter.ndim for parameter in first["params"]] == [4] * 9


def test_muon_leaves_no_bias_of_a_convolution_out():
    model = center_filters(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)))
    groups = make_optimizer("muon", model, lr=0.1).param_groups
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))


def test_a_layer_with_another_option_is_another_network_on_resume_also_if_centered(tmp_path):
    def strided(stride):
        return center_filters(nn.Sequential(nn.Conv2d(3, 4, 3, stride), nn.AdaptiveAvgPool2d(1), nn.Flatten()))

    fit(strided(1), [(IMAGES, LABELS)], checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"parametrized layer 0 stride was \[1, 1\] and is now \[2, 2\]"):
        fit(strided(2), [(IMAGES, LABELS)], epochs=2, checkpoint=tmp_path, resume=True)


def test_a_centered_network_is_averaged_resumed_and_loaded_and_only_into_a_centered_one(tmp_path):
    options = {"ema": 0.9, "seed": 1}
    whole = center_filters(TinyNet())
    half = copy.deepcopy(whole)
    fit(whole, [(IMAGES, LABELS)], epochs=2, checkpoint=tmp_path / "whole", **options)
    start = copy.deepcopy(half)
    fit(half, [(IMAGES, LABELS)], epochs=1, checkpoint=tmp_path / "half", **options)
    fit(start, [(IMAGES, LABELS)], epochs=2, checkpoint=tmp_path / "half", resume=True, **options)
    assert_same_weights(start, whole)
    loaded = eva.load_weights(center_filters(TinyNet()), tmp_path / "half", "last")
    assert_same_weights(loaded, whole)
    for action in (
        lambda: fit(TinyNet(), [(IMAGES, LABELS)], epochs=3, checkpoint=tmp_path / "half", resume=True, **options),
        lambda: eva.load_weights(TinyNet(), tmp_path / "half", "last"),
    ):
        with pytest.raises(ValueError, match=r"'conv\.weight' is only in the model|conv\.parametrizations"):
            action()


def test_the_report_tells_of_it_below_a_table_of_the_layers_as_they_are(tmp_path, undrawn):
    data = eva.load_data("shapes", limit=40)
    model = center_filters(TinyNet(10))
    eva.summary(model, (3, 32, 32))  # leaves it as it was
    eva.fit(model, data.train, data.test, epochs=1, checkpoint=tmp_path, **QUIET)
    text = eva.write_report(tmp_path, model, data).path.read_text(encoding="utf-8")
    table, rest = text.split("\n\nNormalization layers: ")
    assert "Conv2d-1" in table and "Centered" not in table and "Parametrized" not in table
    assert rest.startswith("1 BatchNorm2d. Parametrizations of weights: 1 Centered.\n")
