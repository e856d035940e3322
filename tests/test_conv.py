import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from eva_utils.models import conv, create_model
from eva_utils.models.conv import Conv2d, SmallMapConvolution, weight_gradient
from eva_utils.models.resnet import global_max

SIZES = [(8, 8), (7, 7), (5, 8), (9, 6), (3, 3), (2, 4), (4, 1), (1, 1)]


def bfloat16():
    return torch.autocast("cpu", torch.bfloat16)


def layer_of(inputs=128, outputs=4, kernel=3, **options):
    return Conv2d(inputs, outputs, kernel, **{"padding": 1, "bias": False, **options})


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
    assert torch.equal(ours, plain)
    for mine, theirs in zip(torch.autograd.grad(ours, (x, weight), gradient), expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)


def test_second_derivatives_are_right():
    torch.manual_seed(0)
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(SmallMapConvolution.apply, (x, weight, 1))


def test_gradients_of_each_image_by_torch_func_are_those_of_torch():
    torch.manual_seed(0)
    images, weight = torch.randn(3, 2, 4, 4, dtype=torch.float64), torch.randn(5, 2, 3, 3, dtype=torch.float64)

    def of_each(convolution):
        loss = lambda weight, image: convolution(image[None], weight).square().sum()  # noqa: E731
        return torch.func.vmap(torch.func.grad(loss), (None, 0))(weight, images)

    expected = of_each(lambda x, weight: F.conv2d(x, weight, padding=1))
    assert torch.allclose(of_each(lambda x, weight: SmallMapConvolution.apply(x, weight, 1)), expected, rtol=1e-12)


def test_what_needs_no_gradient_gets_none(monkeypatch):
    x, weight = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 3, 3)
    calls = []
    monkeypatch.setattr(conv, "weight_gradient", lambda *args: calls.append(args) or weight_gradient(*args))
    SmallMapConvolution.apply(x.requires_grad_(), weight, 1).sum().backward()
    assert x.grad is not None and not calls
    SmallMapConvolution.apply(x.detach(), weight.requires_grad_(), 1).sum().backward()
    assert len(calls) == 1


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("side", "stride"), [(8, 1), (7, 1), (4, 1), (16, 2), (15, 2), (8, 2)])
def test_in_bfloat16_the_error_is_no_larger_than_torchs(side, stride, layout):
    torch.manual_seed(0)
    x = torch.randn(32, 128, side, side).bfloat16().contiguous(memory_format=layout)
    weight = torch.randn(32, 128, 3, 3).bfloat16()
    gradient = torch.randn(32, 32, -(-side // stride), -(-side // stride)).bfloat16().contiguous(memory_format=layout)

    def by_torch(dtype):
        return torch.nn.grad.conv2d_weight(
            x.to(dtype), weight.shape, gradient.to(dtype), stride=stride, padding=1
        ).double()

    exact = by_torch(torch.float64)
    error = (weight_gradient(gradient, x, weight, stride).double() - exact).norm()
    assert error <= max(1.05 * (by_torch(torch.bfloat16) - exact).norm(), 0.002 * exact.norm())


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (32, 128, 8, 8)),
        ({}, (32, 128, 20, 8)),
        ({"stride": 2}, (32, 128, 16, 16)),
        ({"stride": 2}, (32, 128, 4, 15)),
    ],
)
def test_small_maps_in_bfloat16_are_trained_so(options, shape):
    torch.manual_seed(0)
    layer, x = layer_of(**options), torch.randn(shape)
    with bfloat16():
        out, plain = layer(x), nn.Conv2d.forward(layer, x)
    assert type(out.grad_fn).__name__ == "SmallMapConvolutionBackward"
    assert torch.equal(out, plain)
    ours, torchs = (torch.autograd.grad(y.float().square().sum(), layer.weight)[0] for y in (out, plain))
    assert ours.dtype == torch.float32 and (ours - torchs).norm() < 0.01 * torchs.norm()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layer_of(), (32, 128, 8, 9)),
        (layer_of(stride=2), (32, 128, 8, 17)),
        (layer_of(), (31, 128, 8, 8)),
        (layer_of(), (0, 128, 8, 8)),
        (layer_of(127), (32, 127, 8, 8)),
        (layer_of(), (128, 128, 8)),
        (layer_of(bias=True), (32, 128, 8, 8)),
        (layer_of(padding=0), (32, 128, 8, 8)),
        (layer_of(padding="same"), (32, 128, 8, 8)),
        (layer_of(kernel=5, padding=1), (32, 128, 8, 8)),
        (layer_of(kernel=1, padding=0), (32, 128, 8, 8)),
        (layer_of(dilation=2), (32, 128, 8, 8)),
        (layer_of(groups=2), (32, 128, 8, 8)),
        (layer_of(stride=(1, 2)), (32, 128, 8, 8)),
        (layer_of(padding_mode="reflect"), (32, 128, 8, 8)),
        (layer_of().requires_grad_(False), (32, 128, 8, 8)),
    ],
)
def test_every_other_layer_goes_torchs_own_way(monkeypatch, layer, shape):
    monkeypatch.setattr(conv, "SmallMapConvolution", None)
    x = torch.randn(shape, requires_grad=True)
    with bfloat16():
        out = layer(x)
        assert torch.equal(out, nn.Conv2d.forward(layer, x))
    out.float().sum().backward()
    assert x.grad.shape == x.shape


def test_every_other_precision_and_place_goes_torchs_own_way(monkeypatch):
    monkeypatch.setattr(conv, "SmallMapConvolution", None)
    layer, x = layer_of(), torch.randn(32, 128, 8, 8)
    assert layer(x).dtype == torch.float32
    assert copy.deepcopy(layer).bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    with torch.no_grad(), bfloat16():
        assert layer(x).dtype == torch.bfloat16
    with bfloat16():
        assert copy.deepcopy(layer).double()(x.double()).dtype == torch.float64
        assert copy.deepcopy(layer).to("meta")(x.to("meta")).device.type == "meta"
    with torch.autocast("cpu", torch.float16):
        assert layer(x).dtype == torch.float16
    with bfloat16(), pytest.raises(RuntimeError):
        layer(x.long())
    with bfloat16(), pytest.raises(RuntimeError):
        copy.deepcopy(layer).double()(x)


@pytest.mark.parametrize(
    ("name", "options", "layers"),
    [
        ("resnet18", {}, 8),
        ("resnet18", {"standardize": True}, 8),
        ("small_resnet", {"standardize": True}, 5),
        ("speed_resnet4", {}, 5),
        ("flip_resnet", {}, 5),
        ("flip_resnet", {"standardize": True}, 5),
        ("davidnet", {}, 3),
    ],
)
def test_convnets_train_their_small_maps_so(monkeypatch, name, options, layers):
    calls = []
    monkeypatch.setattr(conv, "weight_gradient", lambda *args: calls.append(args) or weight_gradient(*args))
    with FakeTensorMode(), bfloat16():  # shapes without values: a CPU without bfloat16 would take minutes
        model = create_model(name, norm="layer", **options)
        model(torch.randn(32, 3, 32, 32)).float().square().sum().backward()
    assert len(calls) == layers
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.filterwarnings("ignore")
def test_a_network_can_still_be_traced_and_scripted():
    model, x = create_model("resnet18", norm="layer").eval(), torch.randn(1, 3, 32, 32)
    expected = model(x)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), expected)
    assert torch.allclose(torch.jit.trace(model, x)(x), expected)
    assert torch.allclose(torch.jit.script(model)(x), expected)


def test_the_global_maximum_is_that_of_every_map():
    maps = torch.tensor([[[[1.0, 5.0], [2.0, 5.0]], [[-4.0, -3.0], [-2.0, -9.0]]]], requires_grad=True)
    peaks = global_max(maps)
    assert peaks.tolist() == [[5.0, -2.0]]
    peaks.sum().backward()
    assert maps.grad.tolist() == [[[[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]]]
