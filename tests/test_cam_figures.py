"""Panels show the maps of the records beside them, with captions that are whole."""

import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision

from drawn import LongNames, overlaps, records, records_of, texts, visible
from eva_utils.models import create_model
from eva_utils.utils import plotting
from eva_utils.utils.data import load_data
from eva_utils.utils.gradcam import GradCAM, overlay
from eva_utils.utils.predictions import Record
from eva_utils.utils.transforms import denormalize

pytestmark = pytest.mark.usefixtures("settings_and_open_figures_stay")


@pytest.fixture(scope="module")
def data():
    return load_data("shapes", limit=40, recipe="eva6_s8")


def test_long_names_of_layers_are_told_apart():
    layers = ["features.denseblock3", "features.denseblock4", "layer1.1.block.conv2", "layer2.1.block.conv2"]
    shown, maps = records(LongNames, 1), {layer: torch.rand(1, 32, 32) for layer in layers}
    titles = [axis.get_title() for axis in plotting.draw_gradcam(shown, LongNames, maps).axes[1::2]]
    assert len(set(titles)) == 4 and titles[0].startswith("feat") and titles[0].endswith("block3")


def test_captions_beside_many_layers_are_whole():
    model = create_model("small_resnet")
    wide = SimpleNamespace(classes=["AUTOMOBILES"] * 10, mean=LongNames.mean, std=LongNames.std)
    layers = ["layer1", "layer1.4", "layer2", "layer2.4", "layer3", "layer3.4"]
    for count in (2, 4, 6):
        assert overlaps(plotting.plot_gradcam(model, records_of(model, 2), wide, layers[:count])) == ([], [])


@pytest.mark.parametrize(("count", "inches"), [(1, 20 / 3), (2, 20 / 3), (3, 10), (4, 10)])
def test_a_figure_of_few_images_is_as_wide_as_they_are(data, count, inches):
    shown = records_of(create_model("small_resnet"), count)
    figure = plotting.draw_gradcam(shown, data, {"layer1": torch.rand(count, 32, 32)})
    assert figure.get_figwidth() == pytest.approx(inches) and overlaps(figure) == ([], [])
    assert len(visible(figure)) == 3 * count  # image, predicted and actual class


def test_panels_show_the_maps_of_the_same_records(data):
    model, layers = create_model("small_resnet"), ["layer1", "layer2"]
    shown = records_of(model, 4)
    figure = plotting.plot_gradcam(model, shown, data, layers=layers)
    images = torch.stack([record.image for record in shown])
    maps = GradCAM(model, layers)(images, [record.predicted for record in shown])
    assert figure.get_suptitle().endswith("\nGrad-CAM for the predicted class; dark violet: nothing, yellow: most")
    axes = visible(figure)
    assert len(axes) == 4 * 5
    for number, record in enumerate(shown):
        row = axes[5 * number : 5 * number + 5]
        image = denormalize(record.image, data.mean, data.std)
        np.testing.assert_allclose(row[0].images[0].get_array(), image.permute(1, 2, 0))
        for place, layer in enumerate(layers):
            over = overlay(image, maps[layer][number]).permute(1, 2, 0)
            np.testing.assert_allclose(row[1 + 2 * place].images[0].get_array(), over, atol=1e-6)
            heat = row[2 + 2 * place].images[0]
            np.testing.assert_allclose(heat.get_array(), maps[layer][number], atol=1e-6)
            assert heat.get_cmap().name == "viridis"
        predicted, actual = data.classes[record.predicted], data.classes[record.target]
        confidence = f"confidence {100 * record.confidence:.0f}%"
        expected = f"#{record.index}\npredicted: {predicted}\n{confidence}\nactual: {actual}"
        assert row[0].get_ylabel() == expected
    assert [axis.get_title() for axis in axes[:5]] == ["", "layer1", "map 16x16", "layer2", "map 8x8"]
    assert not any("nothing stands out" in text for text in texts(figure))


def test_names_stand_above_every_fifth_row_and_a_hit_has_its_class_once(data):
    shown = [Record(number, torch.zeros(3, 8, 8), 1, 1, 0.75) for number in range(6)]
    maps = {"a": torch.ones(6, 8, 8), "b": torch.ones(6, 8, 8)}
    axes = plotting.draw_gradcam(shown, data, maps, sizes={"a": (4, 2), "b": (2, 1)}).axes
    titles = [[axis.get_title() for axis in axes[5 * row :][:5]] for row in range(6)]
    assert titles[0] == titles[5] == ["", "a", "map 4x2", "b", "map 2x1"] and not any(map(any, titles[1:5]))
    assert all(axis.images[0].get_clim() == (0, 1) for axis in axes[2::5])
    assert axes[5].get_ylabel() == f"#1\npredicted: {data.classes[1]}\nconfidence 75%"
    one = plotting.draw_gradcam(shown, data, {"a": maps["a"]}, sizes={"a": (4, 2)})
    assert one.get_suptitle().split("\n")[1].startswith("Grad-CAM at a, 4x2;")


@pytest.mark.parametrize("right, cells", [(False, 3), (True, 2)])
def test_mistakes_have_the_map_of_their_true_class_beside(data, right, cells):
    model = create_model("small_resnet")
    shown = records_of(model, 5, right)
    figure = plotting.plot_gradcam(model, shown, data, layers=["layer2"])
    assert figure.get_suptitle().endswith("\nGrad-CAM at layer2, 8x8; dark violet: nothing, yellow: most")
    axes = visible(figure)
    assert len(axes) == 5 * cells
    images = torch.stack([record.image for record in shown])
    for place, classes in ((1, "predicted"), (2, "target"))[: cells - 1]:
        maps = GradCAM(model, ["layer2"])(images, [getattr(record, classes) for record in shown])["layer2"]
        for number, record in enumerate(shown):
            expected = overlay(denormalize(record.image, data.mean, data.std), maps[number]).permute(1, 2, 0)
            np.testing.assert_allclose(axes[cells * number + place].images[0].get_array(), expected, atol=1e-6)
    for number, record in enumerate(shown):
        image, over, *true = axes[cells * number :][:cells]
        assert image.get_xlabel() == f"#{record.index}"
        assert over.get_title() == f"predicted:\n{data.classes[record.predicted]}"
        assert over.get_xlabel() == f"confidence {100 * record.confidence:.0f}%"
        assert [axis.get_title() for axis in true] == [f"actual:\n{data.classes[record.target]}"] * (cells - 2)


def test_one_mistake_among_hits_has_the_map_of_its_true_class_too(data):
    shown = [Record(number, torch.zeros(3, 8, 8), 0, int(number == 1), 0.5) for number in range(3)]
    maps, true_maps = ({"a": torch.full((3, 8, 8), level)} for level in (0.25, 0.75))
    axes = visible(plotting.draw_gradcam(shown, data, maps, true_maps))
    assert len(axes) == 9 and axes[5].get_title() == f"actual:\n{data.classes[0]}"
    grey = denormalize(shown[1].image, data.mean, data.std)
    for axis, level in ((axes[4], 0.25), (axes[5], 0.75)):
        expected = overlay(grey, torch.full((8, 8), level)).permute(1, 2, 0)
        np.testing.assert_allclose(axis.images[0].get_array(), expected, atol=1e-6)


def test_a_transformer_is_drawn_through_its_reshape(data):
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 16, num_classes=10)
    torch.nn.init.normal_(model.heads.head.weight)  # as it comes it is 0, and so would be every map
    layer, shown = "encoder.layers.encoder_layer_1.ln_1", records_of(model, 2)

    def reshape(tokens):
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4))

    axes = visible(plotting.plot_gradcam(model, shown, data, [layer], reshape=reshape))
    images = torch.stack([record.image for record in shown])
    maps = GradCAM(model, [layer], reshape=reshape)(images, [record.predicted for record in shown])[layer]
    expected = overlay(denormalize(images[1], data.mean, data.std), maps[1]).permute(1, 2, 0)
    np.testing.assert_allclose(axes[4].images[0].get_array(), expected, atol=1e-6)


def test_a_map_without_anything_positive_is_named(data, monkeypatch):
    explain = GradCAM.explain

    def without(self, images, classes):
        found = explain(self, images, classes)
        return found._replace(maps={name: torch.zeros_like(map_) for name, map_ in found.maps.items()})

    monkeypatch.setattr(GradCAM, "explain", without)
    model = create_model("small_resnet")
    assert overlaps(plotting.plot_gradcam(model, records_of(model, 5), data, "layer2")) == ([], [])
    figure = plotting.plot_gradcam(model, records_of(model, 2), data, layers=["layer2"])
    assert sum("nothing stands out" in text for text in texts(figure)) == 4


def test_records_of_another_model_are_warned_of(data):
    model, other = create_model("small_resnet"), create_model("small_resnet")
    shown = records_of(model, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plotting.plot_gradcam(model, shown, data, layers=["layer2"])
        near = [replace(record, confidence=record.confidence - 0.03) for record in shown]
        plotting.plot_gradcam(model, near, data, layers=["layer2"])  # as half precision may have it
    shown[1] = replace(shown[1], confidence=shown[1].confidence + 0.08)
    with pytest.warns(UserWarning, match=rf"hold: of image #{shown[1].index} .* predict anew if"):
        plotting.plot_gradcam(model, shown, data, layers=["layer2"])
    with torch.no_grad():
        other.fc.weight.mul_(100)
    said = GradCAM(other).explain(torch.stack([record.image for record in shown])).probabilities
    other.eval()
    torch.testing.assert_close(said, other(torch.stack([record.image for record in shown])).softmax(dim=1).detach())
    apart = [abs(row[record.predicted] - record.confidence) for row, record in zip(said, shown, strict=True)]
    most = max(range(3), key=lambda place: apart[place])
    assert apart[most] > 0.1
    name, before = data.classes[shown[most].predicted], 100 * shown[most].confidence
    now = 100 * said[most][shown[most].predicted]
    expected = rf"hold: of image #{shown[most].index} '{name}' with {now:.0f}% and not {before:.0f}%; predict anew if"
    with pytest.warns(UserWarning, match=expected):
        plotting.plot_gradcam(other, shown, data, layers=["layer2"])


@pytest.mark.parametrize(("layers", "passes"), [(["layer2", "layer3"], 1), (["layer2"], 2), (None, 3)])
def test_a_figure_runs_the_model_once_a_class_and_once_more_to_find_a_layer(data, layers, passes):
    model = create_model("small_resnet")
    shown, runs = records_of(model, 3), []
    model.register_forward_pre_hook(lambda module, inputs: runs.append(len(inputs[0])))
    plotting.plot_gradcam(model, shown, data, layers)
    assert len(runs) == passes and runs.count(3) == (1 if layers and len(layers) > 1 else 2)
