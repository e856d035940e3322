"""Other people's classifiers train with `fit` and are explained by `GradCAM`, unchanged and from random weights."""

import pytest
import torch
import torchvision
from torch.utils.data import DataLoader, TensorDataset

from eva_utils import main as engine
from eva_utils.utils.gradcam import GradCAM
from eva_utils.utils.predictions import predict

TORCHVISION = {
    "squeezenet1_1": None,
    "shufflenet_v2_x0_5": None,
    "mobilenet_v3_small": None,
    "mnasnet0_5": None,
    "resnet18": None,
    "densenet121": None,
    "efficientnet_b0": None,
    "regnet_y_400mf": None,
    "convnext_tiny": None,
}
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
    before = {key: value.clone() for key, value in model.state_dict().items()}
    history = engine.fit(model, loader, loader, epochs=1, device="cpu", precision="float32", log=None)
    assert history.rows[0]["test_loss"] > 0
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
    predictions = predict(model, loader, device="cpu", precision="float32")
    modules = dict(model.named_modules())
    last = [key for key, part in modules.items() if isinstance(part, torch.nn.Conv2d)][-1]
    layers = [last] if name != "squeezenet1_1" else ["features"]
    cam = GradCAM(model, layers)
    maps = cam(images)[layers[0]]
    assert maps.shape == (4, 64, 64) and maps.min() >= 0 and maps.max() <= 1
    assert not any(part._forward_hooks for part in modules.values())
    assert predictions.predicted.tolist() == cam_free(model, images)


def cam_free(model, images):
    with torch.no_grad():
        return model.eval()(images).argmax(1).tolist()


def test_a_torchvision_transformer_is_explained_through_its_tokens():
    model = torchvision.models.VisionTransformer(
        32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3
    )
    torch.nn.init.normal_(model.heads.head.weight)
    images = torch.randn(2, 3, 32, 32)
    maps = GradCAM(
        model,
        ["encoder.layers.encoder_layer_1.ln_1"],
        reshape=lambda tokens: tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4)),
    )(images)
    (found,) = maps.values()
    assert found.shape == (2, 32, 32) and found.max() <= 1
