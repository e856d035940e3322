"""The rule of depth: layers with weights that run, shortcuts apart."""

import pytest
import torch
from torch import nn
from torchvision import models as tv

from audited import check, record
from eva_utils.models import resnet18, resnet34
from eva_utils.models.resnet import StandardizedConv2d
from eva_utils.utils.data import load_data
from eva_utils.utils.depth_rule import depth


@pytest.fixture(scope="module")
def data():
    return load_data("shapes", limit=70, recipe="eva6_s8")


@pytest.mark.parametrize(("build", "found"), [(resnet18, 18), (resnet34, 34), (tv.resnet18, 18), (tv.resnet50, 50)])
def test_depth_counts_layers_with_weights(data, build, found):
    model = build(num_classes=10)
    finding = check(record(data, model), model, data, depth=18)
    assert (finding.verdict, finding.found) == ("pass" if found == 18 else "FAIL", f"{found} in ResNet")


class Bottlenecks(nn.Module):
    """Seven weighted layers, and four 1x1 convolutions in shortcuts, of which one has this name."""

    def __init__(self, name):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(1, 8)
        self.residual = nn.Sequential(nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 8, 1))
        self.output_projection = nn.Conv2d(8, 8, 1)
        self.skips = nn.ModuleDict({name: nn.Conv2d(8, 8, 1)})
        self.residual_1 = nn.ModuleDict({"conv": nn.Conv2d(8, 8, 3), "shortcut": nn.Sequential(nn.Conv2d(8, 8, 1))})
        self.shortcut = nn.ModuleList([nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)])
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = self.norm(self.conv(x))
        x = self.residual(x) + self.output_projection(x)
        for layer in (*self.skips.values(), *self.residual_1.values(), *self.shortcut):
            x = layer(x)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("name", ["shortcut", "shortcut_conv", "skip_1"])
def test_depth_leaves_out_what_is_called_a_shortcut_and_is_one(data, name):
    assert depth(7, Bottlenecks(name), torch.zeros(1, 3, 32, 32)).found == "7 in Bottlenecks"


class Spare(nn.Module):
    """A convolution, a transformer's layer and a linear layer, and sixteen that nothing uses."""

    def __init__(self):
        super().__init__()
        self.conv = StandardizedConv2d(3, 8, 4, stride=4)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)  # in evaluation it calls no linear layer
        self.fc = nn.utils.parametrizations.weight_norm(nn.Linear(8, 10))
        self.spare = nn.ModuleList(nn.Linear(8, 8) for _ in range(16))

    def forward(self, x):
        return self.fc(self.layer(self.conv(x).flatten(2).transpose(1, 2)).mean(1))


def test_depth_counts_the_layers_that_run(data):
    model = Spare()
    for required, verdict in ((5, "pass"), (21, "FAIL")):
        finding = check(record(data, model), model, data, depth=required)
        assert (finding.verdict, finding.found) == (verdict, "5 in Spare; 16 more never run")
