import pytest
import torch
import torch.nn.functional as F
from torch import nn

from eva_utils import GradCAM
from eva_utils.models import create_model
from eva_utils.models.flip import FlipConv2d, FlipNorm, StandardizedFlipConv2d
from eva_utils.models.norms import NORMS, make_norm
from eva_utils.models.resnet import StandardizedConv2d


def varied(name="flip_resnet", **kwargs):
    torch.manual_seed(2)
    model = create_model(name, num_classes=4, **kwargs).double()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize(("flipping", "plain"), [(FlipConv2d, nn.Conv2d), (StandardizedFlipConv2d, StandardizedConv2d)])
def test_a_convolution_equals_one_with_every_filter_written_out(flipping, plain):
    torch.manual_seed(1)
    conv = flipping(4, 6, kernel_size=3, padding=1, bias=False).double()
    written = plain(4, 6, kernel_size=3, padding=1, bias=False).double()
    with torch.no_grad():
        for out in range(3):
            for inside in range(4):
                for row in range(3):
                    for column in range(3):
                        value = conv.weight[out, inside, row, column]
                        written.weight[out, inside, row, column] = value
                        written.weight[out + 3, (inside + 2) % 4, row, 2 - column] = value
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(conv(x), written(x))
    flipped = conv(torch.cat([x[:, 2:], x[:, :2]], dim=1).flip(3)).flip(3)
    torch.testing.assert_close(torch.cat([flipped[:, 3:], flipped[:, :3]], dim=1), conv(x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_norm_takes_both_halves_of_the_channels_alike(layout):
    torch.manual_seed(1)
    norm, whole = FlipNorm(make_norm("layer"), 8), nn.GroupNorm(1, 8)
    nn.init.normal_(norm.norm.weight)
    nn.init.normal_(norm.norm.bias)
    with torch.no_grad():
        whole.weight.copy_(norm.norm.weight.repeat(2))
        whole.bias.copy_(norm.norm.bias.repeat(2))
    x = (3 * torch.randn(2, 8, 5, 6) + 1).to(memory_format=layout)
    torch.testing.assert_close(norm(x), whole(x))
    batch = FlipNorm(make_norm("batch"), 8)(x)
    pairs = torch.cat([x[:, :4], x[:, 4:]], dim=3)
    by_hand = (pairs - pairs.mean((0, 2, 3), keepdim=True)) / (
        pairs.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-5
    ).sqrt()
    torch.testing.assert_close(batch, torch.cat([by_hand[..., :6], by_hand[..., 6:]], dim=1))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize(
    ("name", "plain"), [("flip_resnet", "speed_resnet4"), ("whitened_flip_resnet", "whitened_resnet")]
)
def test_a_flipped_image_has_the_same_logits(norm, standardize, name, plain):
    images = torch.randn(3, 3, 32, 24, dtype=torch.float64)
    model = varied(name, norm=norm, standardize=standardize)
    torch.testing.assert_close(model(images.flip(3)), model(images))
    assert (model(images.flip(2)) - model(images)).abs().max() > 1e-3  # up and down are not the same
    plain = varied(plain, norm=norm, standardize=standardize)
    assert (plain(images.flip(3)) - plain(images)).abs().max() > 1e-3


def test_the_network_computes_what_it_says():
    model, images = varied(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    x = images.repeat(1, 2, 1, 1)

    def block(x, conv, norm, pool):
        weight = torch.cat([conv.weight, torch.cat(conv.weight.chunk(2, dim=1)[::-1], dim=1).flip(3)])
        x = F.conv2d(x, weight, padding=1)
        x = F.max_pool2d(x, 2) if pool else x
        return F.relu(F.group_norm(x, 1, norm.norm.weight.repeat(2), norm.norm.bias.repeat(2)))

    for number in range(1, 5):
        layer = model.get_submodule(f"layer{number}")
        x = block(x, layer[0], layer[-3], number <= 2)
        x = x + block(x, layer[-1].conv, layer[-1].norm, False)
    largest = x.flatten(2).amax(2)
    largest = torch.maximum(largest[:, :192], largest[:, 192:])
    torch.testing.assert_close(model(images), largest @ model.fc.weight.T / 9)


def test_gradcam_of_a_flipped_image_is_flipped():
    model, images = varied().eval(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    layers = ["layer1", "layer2", "layer3", "layer4"]
    maps, flipped = GradCAM(model, layers)(images), GradCAM(model, layers)(images.flip(3))
    for layer in layers:
        torch.testing.assert_close(flipped[layer], maps[layer].flip(-1))
        assert maps[layer].std() > 0.01
