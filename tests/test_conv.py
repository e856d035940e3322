import pytest
import torch
import torch.nn.functional as F
from torch import nn

from eva_utils.models import conv, create_model
from eva_utils.models.conv import Conv2d, SmallMapConvolution, weight_gradient

SIZES = [(8, 8), (7, 7), (5, 8), (9, 6), (3, 3), (2, 4), (4, 1), (1, 1)]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_gradients_are_those_of_torch(size, stride):
    torch.manual_seed(0)
    x = torch.randn(5, 4, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    plain = F.conv2d(x, weight, stride=stride, padding=1)
    gradient = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, (x, weight), gradient)
    ours = SmallMapConvolution.apply(x, weight, stride)
    found = torch.autograd.grad(ours, (x, weight), gradient)
    assert torch.equal(ours, plain)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)
    assert torch.equal(weight_gradient(gradient, x, weight, stride), found[1])


def test_second_derivatives_are_right():
    torch.manual_seed(0)
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(SmallMapConvolution.apply, (x, weight, 1))


@pytest.mark.parametrize("autocast", [False, True])
def test_in_bfloat16_the_gradients_differ_by_rounding_only(autocast):
    torch.manual_seed(0)
    layer = Conv2d(16, 32, 3, padding=1, bias=False)
    images = torch.randn(16, 16, 8, 8)
    exact = torch.autograd.grad(F.conv2d(images, layer.weight, padding=1).square().sum(), layer.weight)[0]
    if not autocast:
        layer, images = layer.bfloat16(), images.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = layer(images)
    assert out.grad_fn.name() != "ConvolutionBackward0" and out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert layer.weight.grad.dtype == layer.weight.dtype
    assert (layer.weight.grad - exact).abs().max() < 0.01 * exact.abs().max()


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (Conv2d(4, 4, 3, padding=1, bias=False), 9),  # no small map
        (Conv2d(4, 4, 3, padding=1), 8),
        (Conv2d(4, 4, 3, bias=False), 8),
        (Conv2d(4, 4, 5, padding=2, bias=False), 8),
        (Conv2d(4, 4, 1, bias=False), 8),
        (Conv2d(4, 4, 3, padding=1, bias=False, groups=2), 8),
        (Conv2d(4, 4, 3, padding=1, bias=False, stride=(1, 2)), 8),
        (Conv2d(4, 4, 3, padding=1, bias=False, padding_mode="reflect"), 8),
        (Conv2d(4, 4, 3, padding=1, bias=False).requires_grad_(False), 8),
        (Conv2d(4, 4, 3, padding="same", bias=False), 8),
    ],
)
def test_everything_else_goes_torchs_own_way(monkeypatch, layer, size):
    monkeypatch.setattr(conv, "SmallMapConvolution", None)
    x = torch.randn(2, 4, size, size)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), nn.Conv2d._conv_forward(layer, x, layer.weight, layer.bias))


def test_float32_and_scoring_go_torchs_own_way(monkeypatch):
    monkeypatch.setattr(conv, "SmallMapConvolution", None)
    layer, x = Conv2d(4, 4, 3, padding=1, bias=False), torch.randn(2, 4, 8, 8)
    layer(x).sum().backward()
    assert torch.equal(
        layer.weight.grad, torch.autograd.grad(F.conv2d(x, layer.weight, padding=1).sum(), layer.weight)[0]
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        layer(x)


@pytest.mark.parametrize("name", ["resnet18", "small_resnet", "speed_resnet4", "flip_resnet"])
@pytest.mark.parametrize("standardize", [False, True])
def test_convnets_train_their_small_maps_so(monkeypatch, name, standardize):
    calls = []
    monkeypatch.setattr(conv, "weight_gradient", lambda *args: calls.append(args) or weight_gradient(*args))
    model = create_model(name, norm="layer", standardize=standardize)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(2, 3, 32, 32)).float().square().sum()
    loss.backward()
    assert calls and all(args[0].shape[3] <= 8 for args in calls)
    assert all(p.grad is not None for p in model.parameters())
