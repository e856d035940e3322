"""Panels show the maps of the records beside them, with captions that are whole."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from drawn import LongNames, overlaps, records, records_of, texts, visible
from eva_utils.models import create_model
from eva_utils.utils import plotting
from eva_utils.utils.data import load_data
from eva_utils.utils.gradcam import GradCAM, overlay
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
            np.testing.assert_allclose(row[2 + 2 * place].images[0].get_array(), maps[layer][number], atol=1e-6)
        predicted, actual = data.classes[record.predicted], data.classes[record.target]
        confidence = f"confidence {100 * record.confidence:.0f}%"
        expected = f"#{record.index}\npredicted: {predicted}\n{confidence}\nactual: {actual}"
        assert row[0].get_ylabel() == expected


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


def test_a_map_without_anything_positive_is_named(data, monkeypatch):
    monkeypatch.setattr(GradCAM, "__call__", lambda self, images, classes: {"layer2": torch.zeros(len(images), 32, 32)})
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
    with torch.no_grad():
        other.fc.weight.mul_(100)
    said = GradCAM(other).probabilities(torch.stack([record.image for record in shown]))
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
