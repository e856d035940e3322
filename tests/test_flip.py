import pytest
import torch
import torch.nn.functional as F
from torch import nn

from eva_utils import GradCAM, predict
from eva_utils.models import create_model
from eva_utils.models.flip import FlipConv2d, FlipLift, FlipNorm, FlipPool
from eva_utils.models.norms import NORMS, make_norm
from eva_utils.models.resnet import StandardizedConv2d


def varied(name="flip_resnet", **kwargs):
    torch.manual_seed(2)
    model = create_model(name, num_classes=4, **kwargs).double()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize(("standardize", "plain"), [(False, nn.Conv2d), (True, StandardizedConv2d)])
def test_a_convolution_equals_one_with_every_filter_written_out(standardize, plain):
    torch.manual_seed(1)
    conv = FlipConv2d(4, 6, standardize=standardize).double()
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


def test_pooling_leaves_out_no_column_on_one_side():
    x = torch.arange(35.0).view(1, 1, 5, 7)
    assert torch.equal(FlipPool()(x), x[:, :, 2::2, 2::2])  # the last of each window is the largest
    assert torch.equal(FlipPool()(-x), -x[:, :, :-1:2, :-1:2])
    assert torch.equal(FlipPool()(x[..., :4, :6]), F.max_pool2d(x[..., :4, :6], 2))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("flip_resnet", "speed_resnet4"),
        ("narrow_flip_resnet", "speed_resnet4"),
        ("whitened_flip_resnet", "whitened_resnet"),
        ("whitened_flip_resnet4", "whitened_resnet"),
        ("wide_whitened_flip_resnet4", "whitened_resnet"),
    ],
)
def test_a_flipped_image_has_the_same_logits(name, other, standardize, norm):
    images = torch.randn(3, 3, 30, 21, dtype=torch.float64)
    model, plain = (varied(each, norm=norm, standardize=standardize) for each in (name, other))
    for train in (True, False):
        model.train(train)
        torch.testing.assert_close(model(images.flip(3)), model(images))
    assert (model(images.flip(2)) - model(images)).abs().max() > 1e-3  # up and down are not the same
    assert (plain(images.flip(3)) - plain(images)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["flip_resnet", "whitened_flip_resnet"])
def test_the_network_computes_what_it_says(name):
    model, images = varied(name), torch.randn(200, 3, 32, 32, dtype=torch.float64)
    x, pooled, activation = images[:2].repeat(1, 2, 1, 1), 2, F.relu
    if name == "whitened_flip_resnet":
        model.whiten(images)
        weight, pooled, activation = model.whitening.weight, 3, F.gelu
        x = F.gelu(torch.cat([F.conv2d(images[:2], weight), F.conv2d(images[:2].flip(3), weight).flip(3)], dim=1))

    def block(x, conv, norm, pool):
        weight = torch.cat([conv.weight, torch.cat(conv.weight.chunk(2, dim=1)[::-1], dim=1).flip(3)])
        x = F.conv2d(x, weight, padding=1)
        x = F.max_pool2d(x, 3 if x.shape[-1] % 2 else 2, 2) if pool else x
        return activation(F.group_norm(x, 1, norm.norm.weight.repeat(2), norm.norm.bias.repeat(2)))

    for number in range(1, model.stages + 1):
        layer, pool = model.get_submodule(f"layer{number}"), number <= pooled
        x = block(x, layer[0], layer[2 if pool else 1], pool)
        x = x + block(x, layer[-1].conv, layer[-1].norm, False)
    largest = torch.maximum(*x.flatten(2).amax(2).chunk(2, dim=1))
    torch.testing.assert_close(model(images[:2]), largest @ model.fc.weight.T / 9)


def test_gradcam_of_a_flipped_image_is_flipped():
    model, images = varied().eval(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    layers = ["layer1", "layer2", "layer3", "layer4"]
    maps, flipped = GradCAM(model, layers)(images), GradCAM(model, layers)(images.flip(3))
    for layer in layers:
        torch.testing.assert_close(flipped[layer], maps[layer].flip(-1))
        assert maps[layer].std() > 0.01


def test_misuse_is_refused():
    for channels in ((3, 8), (8, 7)):
        with pytest.raises(ValueError, match=f"even numbers of channels, not {channels[0]} and {channels[1]}"):
            FlipConv2d(*channels)
    assert repr(FlipLift(3, 8)).startswith("FlipLift(3, 8,")  # as it is used
    grey = [(torch.zeros(2, 1, 32, 32), torch.tensor([0, 1]))]
    with pytest.raises(ValueError, match=r"the model takes images of 3 channels and these are \(2, 1, 32, 32\)"):
        predict(create_model("flip_resnet"), grey)
