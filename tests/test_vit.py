"""The vision transformer: against torch's own blocks, and its Grad-CAM by hand and against pytorch-grad-cam."""

import functools

import pytest
import torch
import torchvision
from torch import nn

from eva_utils.models import vit
from eva_utils.models.vit import Block, ViT
from eva_utils.utils.gradcam import GradCAM


def test_parameters_and_layers():
    model = vit()
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_806_538
    assert {type(part) for part in model.modules() if "Norm" in type(part).__name__} == {nn.LayerNorm}
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_a_block_is_torchs_own_pre_norm_layer():
    ours = Block(24, heads=3)
    theirs = nn.TransformerEncoderLayer(24, 3, 48, 0.0, "gelu", batch_first=True, norm_first=True)
    pairs = {
        "norm1": "norm1", "norm2": "norm2", "project": "self_attn.out_proj", "mlp.0": "linear1", "mlp.2": "linear2",
    }  # fmt: skip
    weights = {
        f"{theirs_}.{kind}": ours.get_parameter(f"{ours_}.{kind}")
        for ours_, theirs_ in pairs.items()
        for kind in ("weight", "bias")
    }
    weights |= {"self_attn.in_proj_weight": ours.qkv.weight, "self_attn.in_proj_bias": ours.qkv.bias}
    theirs.load_state_dict(weights)
    tokens = torch.randn(4, 17, 24)
    torch.testing.assert_close(ours(tokens), theirs.train()(tokens))


def test_it_computes_what_torchvisions_does():
    ours = ViT(num_classes=3, size=16, patch=4, width=24, depth=2, heads=3)
    nn.init.normal_(ours.class_token)
    theirs = torchvision.models.VisionTransformer(
        16, 4, 2, 3, 24, 48, num_classes=3, norm_layer=functools.partial(nn.LayerNorm, eps=1e-5)
    )
    names = {
        "blocks.": "encoder.layers.encoder_layer_", "norm1": "ln_1", "norm2": "ln_2", "mlp.2": "mlp.3",
        "qkv.": "self_attention.in_proj_", "project": "self_attention.out_proj", "patches": "conv_proj",
        "positions": "encoder.pos_embedding", "fc": "heads.head",
    }  # fmt: skip
    weights = {}
    for name, value in ours.state_dict().items():
        name = "encoder.ln" + name.removeprefix("norm") if name.startswith("norm.") else name
        for mine, other in names.items():
            name = name.replace(mine, other)
        weights[name] = value
    theirs.load_state_dict(weights)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(ours(images), theirs.eval()(images))


def test_patches_become_tokens_and_tokens_maps_in_the_same_order():
    model = ViT(size=16, patch=4, width=12, depth=1, heads=2)
    images = torch.randn(2, 3, 16, 16)
    tokens = model.patches(images).flatten(2).transpose(1, 2)
    first = model.patches.weight.flatten(1) @ images[1, :, 4:8, 8:12].flatten() + model.patches.bias
    torch.testing.assert_close(tokens[1, 4 + 2], first)
    maps = model.cam_reshape(torch.cat([torch.zeros(2, 1, 12), tokens], dim=1))
    torch.testing.assert_close(maps, model.patches(images))


def test_its_gradcam_agrees_with_pytorch_grad_cam():
    package = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = ViT(size=32, patch=4, width=24, depth=3, heads=2).eval()
    images, classes = torch.randn(4, 3, 32, 32), [1, 5, 2, 9]
    cam = GradCAM(model)
    assert cam.layers == ["blocks.2.norm1"] and cam.sizes(images) == {"blocks.2.norm1": (8, 8)}
    ours = cam(images, classes)["blocks.2.norm1"]
    with package.GradCAM(model, [model.blocks[2].norm1], reshape_transform=model.cam_reshape) as reference:
        theirs = reference(images, [ClassifierOutputTarget(number) for number in classes])
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=1e-4)


def test_a_layer_that_is_a_map_already_is_taken_as_it_is():
    model, images = ViT(size=32, patch=4, width=24, depth=1, heads=2), torch.randn(2, 3, 32, 32)
    assert GradCAM(model, ["patches", "blocks.0.norm2"]).sizes(images) == {"patches": (8, 8)} | {
        "blocks.0.norm2": (8, 8)
    }
    plain = GradCAM(model, ["patches"], reshape=lambda output: output)
    assert torch.equal(GradCAM(model, ["patches"])(images)["patches"], plain(images)["patches"])
    with pytest.raises(ValueError, match=r"layer 'norm' gives \(2, 24\) and not a map"):
        GradCAM(model, ["norm"])(images)


def test_another_size_of_image_and_of_patch():
    model = vit(num_classes=3, size=28, patch=7)
    assert model(torch.randn(2, 3, 28, 28)).shape == (2, 3) and model.side == 4


@pytest.mark.parametrize(
    "options, message",
    [
        ({"patch": 5}, "patches of 5 pixels do not divide images of 32; choose a divisor of 32"),
        ({"patch": 0}, "patch is a whole number from 1 up, not 0"),
        ({"size": 32.0}, "size is a whole number from 1 up, not 32.0"),
        ({"norm": "batch"}, "a vision transformer has LayerNorm only, not norm='batch'; leave norm out"),
    ],
)
def test_misuse_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        vit(**options)


def test_images_of_another_size_and_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="5 heads do not divide a width of 192; choose a divisor of 192"):
        ViT(heads=5)
    with pytest.raises(
        ValueError, match=r"the images are \(1, 3, 28, 28\) and the model takes \(N, 3, 32, 32\); build it with size="
    ):
        vit()(torch.randn(1, 3, 28, 28))
    with pytest.raises(ValueError, match=r"the images are \(2, 3072\) and the model takes"):
        vit()(torch.randn(2, 3072))
