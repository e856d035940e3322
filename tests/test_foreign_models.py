"""Other people's classifiers train with `fit` and are explained by `GradCAM`, unchanged and from random weights."""

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from eva_utils import main as engine
from eva_utils.utils.gradcam import GradCAM
from eva_utils.utils.predictions import predict

TORCHVISION = [
    "convnext_tiny",
    "mnasnet0_5",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
]
TIMM = ["mobilenetv3_small_050", "resnet10t", "ghostnet_050"]


def build(name):
    if name.startswith("timm/"):
        return pytest.importorskip("timm").create_model(name.removeprefix("timm/"), pretrained=False, num_classes=3)
    return torchvision.models.get_model(name, weights=None, num_classes=3)


@pytest.mark.parametrize("name", [*TORCHVISION, *(f"timm/{name}" for name in TIMM)])
def test_it_trains_and_is_explained(name):
    model = build(name)
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 0])
    loader = DataLoader(TensorDataset(images, labels), batch_size=4)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    history = engine.fit(model, loader, loader, epochs=1, device="cpu", precision="float32", log=None)
    assert history.rows[0]["test_loss"] > 0
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert {next(iter(before)), next(reversed(before))} <= moved  # the first layer and the last
    predictions = predict(model, loader, device="cpu", precision="float32")
    (maps,) = GradCAM(model)(images).values()
    assert maps.shape == (4, 64, 64) and maps.min() == 0 and maps.max() == 1
    assert not any(part._forward_hooks for part in model.modules())
    with torch.no_grad():
        assert predictions.predicted.tolist() == model.eval()(images).argmax(1).tolist()


def test_a_network_with_logits_beside_its_logits_is_told_how_to_build_it():
    model = torchvision.models.googlenet(weights=None, num_classes=3, init_weights=False)
    images = DataLoader(TensorDataset(torch.randn(2, 3, 64, 64), torch.tensor([0, 1])), batch_size=2)
    with pytest.raises(ValueError, match=r"returned GoogLeNetOutputs for 2 images; .*; build it with aux_logits=False"):
        engine.fit(model, images, images, epochs=1, device="cpu", precision="float32", log=None)


def test_a_swin_transformer_wants_its_channels_moved_to_where_a_map_has_them():
    model = torchvision.models.swin_t(weights=None, num_classes=3)
    images = torch.randn(2, 3, 64, 64)
    with pytest.raises(ValueError, match=r"'features.3' gives \(2, 8, 8, 192\) .* seems \(N, h, w, C\) and no map"):
        GradCAM(model, ["features.3"])(images)
    with pytest.raises(ValueError, match=r"'features.0' gives .* name it in layers= and pass reshape=lambda output"):
        GradCAM(model)(images)
    cam = GradCAM(model, ["features.3"], reshape=lambda output: output.permute(0, 3, 1, 2))
    assert cam.sizes(images) == {"features.3": (8, 8)} and cam(images)["features.3"].shape == (2, 64, 64)


@pytest.mark.parametrize(
    ("layer", "size", "map_"),
    [
        (nn.Conv2d(24, 12, 9), (32, 96), (24, 88)),  # without padding
        (nn.AdaptiveAvgPool2d(7), (64, 128), (7, 7)),
        (nn.Conv2d(24, 12, 3, stride=(2, 1), padding=1), (32, 32), (16, 32)),
    ],
)
def test_a_map_of_another_form_than_the_images_is_taken(layer, size, map_):
    model = nn.Sequential(nn.Conv2d(3, 24, 1), layer, nn.Flatten(), nn.LazyLinear(4))
    images = torch.randn(2, 3, *size)
    model(images)
    assert GradCAM(model, ["1"]).sizes(images) == {"1": map_}
