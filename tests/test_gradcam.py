"""Grad-CAM by hand, against the grad-cam package, and without a trace left behind."""

import copy
import random
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from eva_utils.models import create_model
from eva_utils.models.norms import make_norm
from eva_utils.utils.assignments import Brief
from eva_utils.utils.brief import audit_plan
from eva_utils.utils.cam_layer import is_channels_last
from eva_utils.utils.data import load_data
from eva_utils.utils.gradcam import GradCAM, overlay
from eva_utils.utils.parts import copy_model
from eva_utils.utils.summary import summary

tv = torchvision.models


class TwoChannels(nn.Module):
    """Activations are the image's first two channels; logits are weighted means of them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)
        self.fc = nn.Linear(2, 2, bias=False)
        self.conv.weight.data = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])[:, :, None, None]
        self.fc.weight.data = torch.tensor([[2.0, -1.0], [-3.0, -3.0]])

    def forward(self, x):
        return self.fc(self.conv(x).mean(dim=(2, 3)))


def test_by_hand_on_two_channels():
    images = torch.rand(3, 3, 6, 5)
    a, b = images[:, 0], images[:, 1]
    cam = GradCAM(TwoChannels(), ["conv"])
    # d logit_0 / d A = (2, -1) / 30 at every pixel, so the map is relu(2 a - b) up to scale.
    raw = (2 * a - b).relu()
    low, high = raw.amin((1, 2), keepdim=True), raw.amax((1, 2), keepdim=True)
    torch.testing.assert_close(cam(images, 0)["conv"], (raw - low) / (high - low))
    # Class 1 has only negative weights: nothing speaks for it.
    assert (cam(images, 1)["conv"] == 0).all()
    both = cam(images, [1, 0, 1])["conv"]
    torch.testing.assert_close(both[1], cam(images, 0)["conv"][1])
    assert (both[[0, 2]] == 0).all()
    assert torch.equal(cam(images)["conv"], cam(images, TwoChannels()(images).argmax(1))["conv"])


def test_of_a_layer_that_runs_twice_the_last_run_counts():
    class Twice(TwoChannels):
        def forward(self, x):
            return super().forward(1 - torch.cat([self.conv(x), x[:, 2:]], dim=1))

    images = torch.rand(3, 3, 6, 5)
    raw = (1 - 2 * images[:, 0] + images[:, 1]).relu()  # 2 (1 - a) - (1 - b)
    low, high = raw.amin((1, 2), keepdim=True), raw.amax((1, 2), keepdim=True)
    torch.testing.assert_close(GradCAM(Twice(), ["conv"])(images, 0)["conv"], (raw - low) / (high - low))


def test_a_map_that_is_the_same_everywhere_is_all_zeros():
    model = TwoChannels()
    model.conv.stride = (2, 2)  # so that it is enlarged, and rounded
    assert not GradCAM(model, ["conv"])(torch.full((2, 3, 13, 11), 0.3), 0)["conv"].any()


def test_what_rounding_makes_of_equal_values_is_no_map():
    """The activations are equal to the last bit; their weighted sum is not, since it is not added in one order."""

    class Even(nn.Module):
        def forward(self, x):
            return x[..., :1, :1].expand_as(x).contiguous()

    found = []
    for seed in range(8):
        torch.manual_seed(seed)
        layers = nn.Conv2d(3, 32, 3, bias=False), nn.ReLU(), Even()
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3))
        found.append(GradCAM(model, ["2"])(torch.full((1, 3, 23, 23), 0.37))["2"].any())
    assert not any(found)


@pytest.mark.parametrize("norm", ["group", nn.InstanceNorm2d])
def test_a_convolution_whose_channels_are_normalized_one_by_one_has_no_map(norm):
    """No channel's mean counts behind the norm, so the mean gradient of each is 0 but for rounding."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 32, 3, padding=1), make_norm(norm)(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    model, images = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 3)), torch.randn(2, 3, 64, 64)
    maps = GradCAM(model, ["0", "1"])(images)
    assert not maps["0"].any() and (maps["1"].amax(dim=(1, 2)) == 1).all()


def calibrated(model, side):
    """Give norms the statistics of their inputs, so that activations have a size at which maps mean something."""
    for module in model.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean over the batches
    with torch.no_grad():
        model(torch.randn(8, 3, side, side))
    return model.eval()


def out_of_place(model):
    model = copy.deepcopy(model)
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return model


def small_vgg11_bn():
    """torchvision's with one linear layer for its three, which have 120 million weights."""
    features = tv.vgg.make_layers(tv.vgg.cfgs["A"], batch_norm=True)
    return nn.Sequential(OrderedDict(features=features, flatten=nn.Flatten(), classifier=nn.Linear(512, 10)))


ARCHITECTURES = {
    "resnet18 layer": (lambda: create_model("resnet18", norm="layer"), ["layer1", "layer2", "layer3", "layer4"], 32),
    "small_resnet": (lambda: create_model("small_resnet"), ["layer2", "layer3"], 32),
    "tv resnet18": (lambda: tv.resnet18(num_classes=10), ["layer3", "layer4", "bn1", "layer2.0.bn1"], 64),
    "vgg11_bn": (small_vgg11_bn, ["features.25", "features.26"], 32),
    "densenet121": (lambda: tv.densenet121(num_classes=10), ["features.denseblock3"], 32),
    "mobilenet_v2": (lambda: tv.mobilenet_v2(num_classes=10), ["features.16", "features.18"], 48),
    "squeezenet1_1": (lambda: tv.squeezenet1_1(num_classes=10), ["features.12", "features.9.expand3x3"], 48),
    "shufflenet_v2": (lambda: tv.shufflenet_v2_x0_5(num_classes=10), ["stage3", "conv5"], 48),
    "efficientnet_b0": (lambda: tv.efficientnet_b0(num_classes=10), ["features.6", "features.8"], 48),
    "convnext_tiny": (lambda: tv.convnext_tiny(num_classes=10), ["features.5", "features.7"], 64),
    "googlenet": (
        lambda: tv.googlenet(num_classes=10, aux_logits=False, init_weights=False),
        ["inception4e", "inception5b.branch2"],
        48,
    ),
    "regnet_y_400mf": (lambda: tv.regnet_y_400mf(num_classes=10), ["trunk_output.block2", "trunk_output.block3"], 64),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_agrees_with_the_grad_cam_package(name):
    from pytorch_grad_cam import GradCAM as Reference
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    build, layers, side = ARCHITECTURES[name]
    model = calibrated(build(), side)
    images = torch.randn(3, 3, side, side)
    reference_model = out_of_place(model)
    for classes in (None, 3) if name == "small_resnet" else (None,):
        maps = GradCAM(model, layers)(images, classes)
        targets = None if classes is None else [ClassifierOutputTarget(classes)] * 3
        for layer in layers:
            with Reference(reference_model, [reference_model.get_submodule(layer)]) as reference:
                expected = torch.from_numpy(reference(images, targets=targets))
            assert maps[layer].shape == (3, side, side) and maps[layer].dtype == torch.float32
            torch.testing.assert_close(maps[layer], expected, rtol=0, atol=1e-4)
            assert classes is not None or expected.any(), f"{layer} is blank, so this compares nothing"


def test_nothing_is_left_behind():
    class Drawing(nn.Identity):
        def forward(self, x):
            return x + 0 * random.random() * np.random.rand()

    model = nn.Sequential(tv.resnet18(num_classes=10), nn.Dropout(0.5), Drawing())
    model[0].layer1.eval()
    model[0].layer2.requires_grad_(False)
    parameter = model[0].fc.weight
    parameter.grad = torch.ones_like(parameter)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()

    def snapshot():
        return (
            [module.training for module in model.modules()],
            [parameter.requires_grad for parameter in model.parameters()],
            [len(module._forward_hooks) + len(module._backward_hooks) for module in model.modules()],
            torch.is_grad_enabled(),
            random.getstate(),
            np.random.get_state()[1].tolist(),
        )

    found = snapshot()
    with GradCAM(model, ["0.layer3"]) as cam:
        cam(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    with pytest.raises(ValueError, match=r"the model takes images of 3 channels and these are \(2, 5, 32, 32\)"):
        GradCAM(model, ["0.layer3"])(torch.zeros(2, 5, 32, 32))
    with pytest.raises(ValueError, match=r"classes are from 0 to 9, got \[10\]"):
        GradCAM(model, ["0.layer3"])(torch.zeros(2, 3, 32, 32), 10)
    assert snapshot() == found and sum(found[2]) == 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(parameter.grad, torch.ones_like(parameter))
    assert sum(parameter.grad is not None for parameter in model.parameters()) == 1
    assert torch.equal(torch.get_rng_state(), state)


class Keeps(nn.Module):
    """Keeps the maps of its last forward pass, to be looked at, and counts the passes."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.calls = nn.Conv2d(3, 6, 3), nn.Linear(6, 10), 0

    def forward(self, x):
        self.calls += 1
        self.kept = [self.conv(x)]
        return self.fc(self.kept[0].relu().mean(dim=(2, 3)))


def test_what_a_model_keeps_in_attributes_is_as_before_and_its_copies_hold_the_values():
    model, images = Keeps(), torch.randn(2, 3, 32, 32)
    GradCAM(model, "conv")(images)
    assert model.calls == 0 and not hasattr(model, "kept")
    model(images).sum().backward()
    kept = model.kept[0]
    GradCAM(model, "conv")(images)
    assert model.kept[0] is kept and kept.requires_grad and model.calls == 1
    copied = copy_model(model)
    assert torch.equal(copied.kept[0], kept) and not copied.kept[0].requires_grad
    assert copied.conv.weight is not model.conv.weight and torch.equal(copied.conv.weight, model.conv.weight)
    assert summary(model, (3, 32, 32))
    for rules in ({"depth": 2}, {"norm": "LayerNorm"}):
        assert audit_plan(Brief("title", "objective", **rules), model, load_data("shapes", limit=10)).findings
    model.turned = model.fc.weight.t()
    with pytest.raises(RuntimeError, match="Only Tensors created explicitly by the user"):
        copy_model(model)  # whose view would not follow its own weight


def test_surroundings_do_not_change_the_maps():
    model, images = calibrated(tv.resnet18(num_classes=10), 32), torch.randn(2, 3, 32, 32)
    cam = GradCAM(model, ["layer3", "layer2.1.bn2"])
    expected = cam(images)

    def same(maps):
        for name, map_ in expected.items():
            torch.testing.assert_close(maps[name], map_, rtol=0, atol=0)

    with torch.no_grad():
        same(cam(images))
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        same(cam(images.clone()))
        assert torch.is_inference_mode_enabled()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same(cam(images))
    same(GradCAM(copy.deepcopy(model).requires_grad_(False), cam.layers)(images))
    same(GradCAM(copy.deepcopy(model).train(), cam.layers)(images))
    same(GradCAM(nn.DataParallel(model), cam.layers)(images))
    same(GradCAM(torch.compile(model, backend="eager"), cam.layers)(images))
    compiled = copy.deepcopy(model)
    compiled.compile(backend="aot_eager")
    same(GradCAM(compiled, cam.layers)(images))
    assert compiled._compiled_call_impl is not None
    for number in range(2):
        alone = cam(images[number : number + 1])
        for name, map_ in expected.items():
            torch.testing.assert_close(alone[name], map_[number : number + 1], rtol=0, atol=1e-4)


def test_only_what_follows_the_layer_is_differentiated():
    """The graph is cut at the earliest chosen layer: what comes before it never records a gradient."""
    model, seen = tv.resnet18(num_classes=10).eval(), {}
    for name in ("layer1", "layer2", "layer3", "layer4"):
        hook = lambda module, inputs, output, name=name: seen.update({name: output.requires_grad})  # noqa: E731
        model.get_submodule(name)[0].conv1.register_forward_hook(hook)
    GradCAM(model, ["layer2", "layer3"])(torch.randn(1, 3, 32, 32))
    assert seen == {"layer1": False, "layer2": False, "layer3": True, "layer4": True}


def test_the_default_layer_is_the_deepest_of_at_least_five_pixels():
    images = torch.randn(1, 3, 32, 32)
    assert list(GradCAM(create_model("resnet18", last_stride=1))(images)) == ["layer4"]
    assert list(GradCAM(create_model("resnet18", last_stride=2))(images)) == ["layer3"]
    assert GradCAM(create_model("resnet18"), "layer4")(images)["layer4"].shape == (1, 32, 32)
    with pytest.raises(ValueError, match="no convolution gives a map of at least 5x5; choose layers= by name"):
        GradCAM(nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.Flatten(), nn.Linear(64, 10)))(images)
    five = nn.Sequential(nn.Conv2d(3, 4, 8, stride=6), nn.ReLU(), nn.Flatten(), nn.Linear(100, 10))
    assert GradCAM(five).sizes(images) == {"0": (5, 5)}
    narrow = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.Flatten(), nn.Linear(128, 10))  # a map of 8x4
    with pytest.raises(ValueError, match="no convolution gives a map of at least 5x5; choose layers= by name"):
        GradCAM(narrow)(torch.randn(1, 3, 64, 32))


@pytest.mark.parametrize(
    ("shape", "last"),
    [
        ((1, 8, 4, 96), True),
        ((1, 9, 5, 96), True),  # padded by a pixel
        ((1, 96, 8, 4), False),
        ((1, 4, 8, 96), False),  # neither lies as the images
        ((1, 8, 4, 2), False),  # both do
    ],
)
def test_a_map_of_oblong_images_is_known_by_its_form(shape, last):
    assert is_channels_last(shape, torch.empty(1, 3, 64, 32)) is last


def test_a_vision_transformer_through_reshape():
    model = tv.VisionTransformer(image_size=32, patch_size=4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32,
                                 num_classes=10)  # fmt: skip
    nn.init.normal_(model.heads.head.weight)

    def reshape(tokens):
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (8, 8))

    from pytorch_grad_cam import GradCAM as Reference

    layer, images = "encoder.layers.encoder_layer_1.ln_1", torch.randn(2, 3, 32, 32)
    maps = GradCAM(model, [layer], reshape=reshape)(images)
    with Reference(model.eval(), [model.get_submodule(layer)], reshape_transform=reshape) as reference:
        expected = torch.from_numpy(reference(images, targets=None))
    torch.testing.assert_close(maps[layer], expected, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match=r"gives \(2, 65, 16\) and not a map .* pass reshape= to make a map of it"):
        GradCAM(model, [layer])(images)


def test_a_patch_embedding_is_not_chosen():
    model = tv.VisionTransformer(32, 4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10)
    with pytest.raises(ValueError, match=r"'conv_proj', embeds patches, and the network goes on in tokens; name a"):
        GradCAM(model)(torch.rand(1, 3, 32, 32))
    assert GradCAM(model, ["conv_proj"])(torch.rand(1, 3, 32, 32))["conv_proj"].shape == (1, 32, 32)


def test_one_convolution_whose_map_is_flattened_is_no_patch_embedding():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(2), nn.LayerNorm(900), nn.Flatten(), nn.Linear(7200, 4)
    )
    assert list(GradCAM(model)(torch.rand(1, 3, 32, 32))) == ["0"]


class Idle(TwoChannels):
    def __init__(self):
        super().__init__()
        self.unused, self.aside = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        self.aside(x)
        return super().forward(x)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda x: GradCAM(create_model("resnet18"), ["layer5"]),
            r"unknown layer 'layer5': .*did you mean 'layer\d'\?",
        ),
        (lambda x: GradCAM(create_model("small_resnet"), ["layer4"]), r"did you mean 'layer\d'\?$"),
        (lambda x: GradCAM(create_model("resnet18"), ["layer4.conv1"]), r"did you mean 'layer4\.\d\.conv1'\?$"),
        (lambda x: GradCAM(create_model("resnet18"), [nn.ReLU()]), r"layers are names as in model\.named_modules\(\)"),
        (lambda x: GradCAM(create_model("resnet18"), 4), r"layers are names .* or their numbers, got \[4\]"),
        (
            lambda x: GradCAM(TwoChannels(), reshape=lambda t: t),
            "name the layer whose output reshape= turns into a map",
        ),
        (lambda x: GradCAM(TwoChannels(), ["conv"])(x, "cat"), "classes is None, a class number, or one for each"),
        (lambda x: GradCAM(TwoChannels(), ["conv"])(x * float("nan")), "logits that are NaN or infinite"),
        (lambda x: GradCAM(Idle(), ["unused"])(x), r"layer 'unused' exists and never runs in forward\(\)"),
        (lambda x: GradCAM(Idle(), ["aside"])(x), "layer 'aside' does not reach the logits by a path with gradients"),
        (lambda x: GradCAM(TwoChannels(), ["fc"])(x), r"layer 'fc' gives \(2, 2\) and not a map"),
        (lambda x: GradCAM(TwoChannels(), ["conv"])(x[0]), r"got torch\.float32 \(3, 8, 8\); add the batch axis"),
        (lambda x: GradCAM(TwoChannels(), ["conv"])(x, 2), r"classes are from 0 to 1, got \[2\]"),
        (lambda x: GradCAM(TwoChannels(), ["conv"])(x, [0, -1]), r"classes are from 0 to 1, got \[-1, 0\]"),
        (lambda x: GradCAM(TwoChannels(), ["conv"])(x, [0, 1, 1]), "one for each of the 2 images"),
    ],
)
def test_misuse_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.rand(2, 3, 8, 8))


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match=r"model is a torch\.nn\.Module, not str; pass the model itself"):
        GradCAM("resnet18")


def test_a_model_of_inference_mode_is_refused():
    with torch.inference_mode():
        model = TwoChannels()
    with pytest.raises(
        ValueError, match=r"made inside torch\.inference_mode\(\) or on the meta device, so it has no gradients"
    ):
        GradCAM(model)
    with torch.device("meta"), pytest.raises(ValueError, match="on the meta device, so it has no gradients; build it"):
        GradCAM(TwoChannels())
    with pytest.raises(ValueError, match="lazy layers that have seen no image, so their weights are yet to be made"):
        GradCAM(nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(3)))


def test_overlay_mixes_image_and_colours():
    image, map_ = torch.rand(3, 6, 7), torch.zeros(6, 7)
    map_[2, 3] = 1
    mixed = overlay(image, map_, strength=0.25)
    purple, yellow = torch.tensor([68, 1, 84]) / 255, torch.tensor([253, 231, 37]) / 255  # the ends of viridis
    torch.testing.assert_close(mixed[:, 0, 0], 0.75 * image[:, 0, 0] + 0.25 * purple, rtol=0, atol=0.002)
    torch.testing.assert_close(mixed[:, 2, 3], 0.75 * image[:, 2, 3] + 0.25 * yellow, rtol=0, atol=0.002)
    with pytest.raises(
        ValueError, match=r"the image has values from 0\.00 to 200\.00, not in \[0, 1\]; divide it by 255"
    ):
        overlay(torch.zeros(3, 6, 7).index_fill(2, torch.tensor(1), 200), map_)
    with pytest.raises(ValueError, match=r"the image has values from -?\d.* not in \[0, 1\]; denormalize\(\) it first"):
        overlay(3 * image - 1, map_)
    with pytest.raises(ValueError, match="the map has values from nan to nan, not in"):
        overlay(image, map_ * float("nan"))
    with pytest.raises(ValueError, match=r"the map has values from .* not in \[0, 1\]; as those of GradCAM are"):
        overlay(image, 9 * map_)
    with pytest.raises(ValueError, match="strength is a share from 0 to 1, not 2"):
        overlay(image, map_, strength=2)
    with pytest.raises(ValueError, match=r"got \(3, 6, 7\) and \(7, 6\)"):
        overlay(image, map_.T)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_parameters_of_another_precision(dtype):
    model, images = TwoChannels(), torch.rand(2, 3, 8, 8)
    expected = GradCAM(model, ["conv"])(images, 0)["conv"]
    found = GradCAM(model.to(dtype), ["conv"])(images, 0)["conv"]
    assert found.dtype == torch.float32 and next(model.parameters()).dtype == dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 if dtype == torch.float64 else 0.02)


def test_buffers_are_put_back():
    class Counts(TwoChannels):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            self.register_buffer("cache", x)
            return super().forward(x)

    model = Counts()
    GradCAM(model, ["conv"])(torch.rand(1, 3, 8, 8))
    assert model.calls == 0 and list(model.state_dict()) == ["calls", "conv.weight", "fc.weight"]
