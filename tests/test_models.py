import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from eva_utils.models import create_model, list_models
from eva_utils.models.flip import FlipConv2d
from eva_utils.models.norms import NORMS, make_norm
from eva_utils.models.resnet import standardized

NORM_CLASSES = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def norms_in(model):
    return [module for module in model.modules() if isinstance(module, NORM_CLASSES)]


@pytest.mark.parametrize("name", sorted(set(list_models()) - {"vit"}))
@pytest.mark.parametrize("norm", NORMS)
def test_holds_the_chosen_norm_and_no_other(name, norm):
    with torch.device("meta"):
        model = create_model(name, num_classes=7, norm=norm)
    kind = type(make_norm(norm)(64))
    assert {type(module) for module in norms_in(model)} == {kind}
    if norm == "layer":
        assert {module.num_groups for module in norms_in(model)} == {1}
    for side in (9 if name.startswith("whitened") else 8, 13, 32):
        assert model(torch.empty(2, 3, side, side, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", sorted(set(list_models()) - {"vit"}))
def test_logits_are_finite_in_both_modes(name):
    model = create_model(name, norm="layer")
    for training in (True, False):
        assert model.train(training)(torch.randn(2, 3, 9, 9)).isfinite().all()


@pytest.mark.parametrize(
    "name, norms, parameters",
    [
        ("resnet18", 20, 11_173_962),
        ("resnet34", 36, 21_282_122),
        ("small_resnet", 9, 1_923_914),
        ("speed_resnet", 6, 1_960_384),
        ("speed_resnet4", 8, 3_141_056),
        ("flip_resnet", 8, 2_825_920),
        ("narrow_flip_resnet", 8, 1_571_392),
        ("whitened_resnet", 6, 1_972_768),
        ("whitened_flip_resnet", 6, 993_440),
        ("whitened_flip_resnet4", 8, 1_583_776),
        ("wide_whitened_flip_resnet4", 8, 2_155_744),
        ("davidnet", 8, 6_573_130),
    ],
)
def test_parameter_and_norm_counts(name, norms, parameters):
    for norm in ("batch", "layer"):
        with torch.device("meta"):
            model = create_model(name, norm=norm)
        assert sum(parameter.numel() for parameter in model.parameters()) == parameters
        assert len(norms_in(model)) == norms


def test_norm_as_a_callable():
    model = create_model("resnet18", norm=nn.InstanceNorm2d)
    assert {type(module) for module in norms_in(model)} == {nn.InstanceNorm2d}


@pytest.mark.parametrize("stride, side", [(1, 8), (2, 4)])
def test_last_stride_sets_the_size_of_layer4(stride, side):
    model = create_model("resnet18", norm="layer", last_stride=stride)
    sizes = {}
    model.layer4.register_forward_hook(lambda module, inputs, output: sizes.update(map=output.shape))
    model(torch.randn(1, 3, 32, 32))
    assert sizes["map"] == (1, 512, side, side)
    with torch.device("meta"):
        larger = create_model("resnet34", last_stride=stride)
        larger.layer4.register_forward_hook(lambda module, inputs, output: sizes.update(larger=output.shape))
        larger(torch.empty(2, 3, 32, 32))
    assert sizes["larger"] == (2, 512, side, side)


def test_what_each_norm_averages_over():
    x = 3 * torch.randn(4, 64, 5, 5) + 2
    for norm, dims in (("layer", (1, 2, 3)), ("channel", (1,)), ("batch", (0, 2, 3))):
        mean, var = x.mean(dims, keepdim=True), x.var(dims, keepdim=True, unbiased=False)
        torch.testing.assert_close(make_norm(norm)(64)(x), (x - mean) / (var + 1e-5).sqrt())
    groups = x.reshape(4, 32, -1)
    by_hand = (groups - groups.mean(-1, keepdim=True)) / (groups.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(make_norm("group")(64)(x), by_hand.reshape(x.shape))


def test_initialisation_is_as_stated():
    model = create_model("resnet18", norm="layer")
    small, fast = create_model("small_resnet"), create_model("speed_resnet")
    for conv in (model.layer1[0].conv1, model.layer4[1].conv2, small.layer2[0], fast.layer2[0]):
        assert conv.weight.std().item() == pytest.approx((2 / (9 * conv.out_channels)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_the_residual_networks_compute_what_torchvisions_do(name):
    """But for the stem, which is one convolution for small images."""
    ours, theirs = with_varied_norms(name), getattr(torchvision.models, name)(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    weights = {}
    for part, value in ours.state_dict().items():
        weights[part.replace("norm", "bn").replace("shortcut", "downsample")] = value
    theirs.load_state_dict(weights)
    images = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(ours(images), theirs.train()(images), rtol=1e-4, atol=1e-4)


def test_the_small_network_computes_what_it_says():
    """Three times a convolution, max pooling, norm and ReLU, then a block; an eighth of the largest of each map."""
    model, x = with_varied_norms("small_resnet"), torch.randn(4, 3, 16, 16)
    images = x
    for layer in ("layer1", "layer2", "layer3"):
        x = normed_relu(model, f"{layer}.2", convolved(model, f"{layer}.0", x, pool=True))
        inner = normed_relu(model, f"{layer}.4.norm1", convolved(model, f"{layer}.4.conv1", x))
        x = F.relu(
            x + normed_relu(model, f"{layer}.4.norm2", convolved(model, f"{layer}.4.conv2", inner), nn.Identity())
        )
    largest = x.flatten(2).max(dim=2).values
    torch.testing.assert_close(model(images), (largest @ model.fc.weight.T + model.fc.bias) / 8, rtol=1e-4, atol=1e-4)


def normed_relu(model, name, x, activation=F.relu):
    """Batch statistics, scale and shift, then the activation: by hand."""
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
    norm = model.get_submodule(name)
    scale, shift = (part[None, :, None, None] for part in (norm.weight, norm.bias))
    return activation((x - mean) / (var + 1e-5).sqrt() * scale + shift)


def convolved(model, name, x, pool=False):
    x = F.conv2d(x, model.get_parameter(f"{name}.weight"), padding=1)
    return F.max_pool2d(x, 2) if pool else x


def with_varied_norms(name):
    torch.manual_seed(4)
    model = create_model(name, norm="batch").train()
    for module in norms_in(model):
        nn.init.normal_(module.weight)
        nn.init.normal_(module.bias)
    return model


def test_the_custom_resnet_computes_what_the_course_draws():
    """The stem, X + R1(X), a layer between, X + R2(X), the largest of each map, an eighth of the linear layer."""
    model, images = with_varied_norms("davidnet"), torch.randn(4, 3, 32, 32)

    def residual(x, name):
        inner = normed_relu(model, f"{name}.branch.0.1", convolved(model, f"{name}.branch.0.0", x))
        return x + normed_relu(model, f"{name}.branch.1.1", convolved(model, f"{name}.branch.1.0", inner))

    x = normed_relu(model, "stem.1", convolved(model, "stem.0", images))
    x = residual(normed_relu(model, "layer1.0.2", convolved(model, "layer1.0.0", x, pool=True)), "layer1.1")
    x = normed_relu(model, "layer2.2", convolved(model, "layer2.0", x, pool=True))
    x = residual(normed_relu(model, "layer3.0.2", convolved(model, "layer3.0.0", x, pool=True)), "layer3.1")
    largest = x.flatten(2).max(dim=2).values
    torch.testing.assert_close(model(images), (largest @ model.fc.weight.T + model.fc.bias) / 8, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "pooled"), [("speed_resnet", 3), ("speed_resnet4", 2), ("whitened_resnet", 3)])
def test_the_fast_networks_compute_what_they_say(name, pooled):
    model, images = with_varied_norms(name), torch.randn(4, 3, 32, 32)
    x, activation = images, F.relu
    if name == "whitened_resnet":
        activation = F.gelu
        x = F.gelu(F.conv2d(images, model.whitening.weight))
    for number in range(1, model.stages + 1):
        layer, pool = f"layer{number}", number <= pooled
        x = normed_relu(model, f"{layer}.{2 if pool else 1}", convolved(model, f"{layer}.0", x, pool), activation)
        last = f"{layer}.{4 if pool else 3}"
        x = x + normed_relu(model, f"{last}.norm", convolved(model, f"{last}.conv", x), activation)
    largest = x.flatten(2).max(dim=2).values
    torch.testing.assert_close(model(images), largest @ model.fc.weight.T / 9, rtol=1e-4, atol=1e-4)


def test_whitened_patches_are_uncorrelated_and_come_with_their_negatives():
    model = create_model("whitened_resnet")
    images = F.avg_pool2d(torch.randn(64, 3, 36, 36, generator=torch.Generator().manual_seed(1)), 5, stride=1)
    model.whiten(3 * images)  # neighbouring pixels alike, as in photographs
    out = model.whitening(3 * images).transpose(0, 1).flatten(1)
    assert torch.equal(out[:12], -out[12:])
    covariance = out[:12] @ out[:12].T / out.shape[1]
    strong = covariance.diagonal() > 0.5  # weak ones are not blown up
    assert strong.sum() >= 10
    torch.testing.assert_close(covariance, covariance.diagonal().diag(), rtol=0, atol=2e-3)
    assert covariance.diagonal().max() < 1.001 and not model.whitening.weight.requires_grad
    with pytest.raises(ValueError, match="no whitening layer; those with whitened_ in their names have one"):
        create_model("speed_resnet").whiten(images)
    before = model.whitening.weight.clone()
    for wrong in (images.byte(), images[0], images[:, :1], images[:0], images[..., :1], [images], images.numpy()):
        with pytest.raises(
            ValueError, match=r"whiten takes a batch of normalized images, floating point \(N, 3, H, W\)"
        ):
            model.whiten(wrong)
    with pytest.raises(ValueError, match="whiten was given images with NaN or infinite pixels"):
        model.whiten(images / 0)
    assert torch.equal(model.whitening.weight, before)


@pytest.mark.parametrize("name", list_models())
@pytest.mark.parametrize("classes", [0, -1, "10"])
def test_a_width_of_the_logits_that_is_none_is_refused(name, classes):
    with pytest.raises(ValueError, match=f"num_classes is a whole number from 1 up, not {classes!r}"):
        create_model(name, num_classes=classes)


def test_blocks_of_the_small_network_start_as_the_identity():
    model = create_model("small_resnet")
    x = torch.randn(2, 128, 8, 8).relu()
    torch.testing.assert_close(model.layer2[-1](x), x)


def test_an_argument_of_another_model_is_refused():
    with pytest.raises(TypeError, match="davidnet takes num_classes, norm, and no last_stride; leave it out"):
        create_model("davidnet", last_stride=1)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown model 'resnet81': choose one of .*; did you mean 'resnet18'\?"):
        create_model("resnet81")
    with pytest.raises(ValueError, match=r"unknown norm 'layr': choose one of .*; did you mean 'layer'\?"):
        create_model("resnet18", norm="layr")
    with pytest.raises(ValueError, match="last_stride is 1 or 2, not 3"):
        create_model("resnet18", last_stride=3)


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet34", "small_resnet", "speed_resnet", "speed_resnet4", "whitened_resnet"]
)
def test_every_convolution_may_be_standardized_and_has_no_parameter_more(name):
    with torch.device("meta"):
        plain, model = (create_model(name, norm="layer", standardize=standardize) for standardize in (False, True))
    kinds = [[type(module).__name__ for module in each.modules()] for each in (plain, model)]
    assert "StandardizedConv2d" not in kinds[0] and "Conv2d" not in kinds[1]
    assert kinds[1].count("StandardizedConv2d") == kinds[0].count("Conv2d") > 0
    sizes = [sum(parameter.numel() for parameter in each.parameters()) for each in (plain, model)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("name", ["flip_resnet", "whitened_flip_resnet"])
def test_the_layers_of_flips_may_be_standardized(name):
    for standardize in (False, True):
        with torch.device("meta"):
            model = create_model(name, standardize=standardize)
        found = [module.standardize for module in model.modules() if isinstance(module, FlipConv2d)]
        assert found == [standardize] * len(norms_in(model))


def test_standardized_weights_have_mean_0_and_variance_2_over_fan_in():
    model = create_model("small_resnet", norm="layer", standardize=True)
    used = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            with torch.no_grad():
                module.weight.mul_(3).add_(0.5)
                eye = torch.eye(module.in_channels * module.kernel_size[0] ** 2)
                patches = eye.view(-1, module.in_channels, *module.kernel_size)
                module.padding, module.stride = (0, 0), (1, 1)
                weight = module(patches).view(len(eye), -1).T  # of each output channel, entry by entry
            torch.testing.assert_close(weight.mean(1), torch.zeros(len(weight)), atol=1e-5, rtol=0)
            expected = torch.full((len(weight),), 2 / len(eye))
            torch.testing.assert_close(weight.var(1, correction=0), expected, rtol=1e-3, atol=0)
            used.append(weight)
    assert len(used) == 9


class OnApple(torch.Tensor):
    """A tensor that says it lies on an Apple GPU."""

    device = torch.device("mps")


@pytest.mark.parametrize(
    ("name", "norm"), [("narrow_flip_resnet", "layer"), ("whitened_flip_resnet", "batch"), ("resnet18", "channel")]
)
def test_on_an_apple_gpu_no_map_lies_channels_last(name, norm):
    """Where it does, relu, pooling and batch normalization have wrong gradients."""
    model, images, seen = create_model(name, norm=norm).eval(), torch.randn(2, 3, 16, 16), set()
    expected = model(images)
    for module in model.modules():
        module.register_forward_pre_hook(
            lambda module, inputs: seen.add((type(module).__name__, inputs[0].is_contiguous()))
        )
    torch.testing.assert_close(model(images.as_subclass(OnApple)).as_subclass(torch.Tensor), expected)
    assert len(seen) > 5 and all(plain for _, plain in seen)
    assert standardized(torch.randn(4, 3, 3, 3).as_subclass(OnApple)).is_contiguous()
