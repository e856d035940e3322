"""Galleries, the confusion matrix and augmentations show what their records say, at any count, on any background."""

import functools
import itertools
import warnings
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from conftest import TinyNet, random_batches
from drawn import LongNames, overlaps, records, records_of, texts, visible
from eva_utils.models import create_model
from eva_utils.utils import plotting
from eva_utils.utils.data import load_data
from eva_utils.utils.figures import BLUE, ORANGE, cut, wrap
from eva_utils.utils.predictions import Predictions, Record, predict
from eva_utils.utils.transforms import denormalize

pytestmark = pytest.mark.usefixtures("settings_and_open_figures_stay")


@pytest.fixture(scope="module")
def data():
    return load_data("shapes", limit=40, recipe="eva6_s8")


@pytest.mark.parametrize("count", [1, 10, 20, 25])
@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_a_gallery_shows_its_records(data, count, style):
    with matplotlib.style.context(style):
        shown = records(data, count)
        figure = plotting.plot_images(shown, data)
        assert overlaps(figure) == ([], [])
    axes = visible(figure)
    assert len(axes) == count
    for axis, record in zip(axes, shown, strict=True):
        pixels = axis.images[0].get_array()
        expected = denormalize(record.image, data.mean, data.std).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(pixels, expected)
        assert axis.images[0].get_interpolation() == "nearest"
        percent = f"confidence {100 * record.confidence:.0f}%"
        assert axis.get_title() == f"predicted: {data.classes[record.predicted]}\n{percent}"
        assert axis.get_xlabel() == f"actual: {data.classes[record.target]}\n#{record.index}"
        assert axis.title.get_color() == ORANGE
        assert not [*axis.get_xticks(), *axis.get_yticks()]
        assert not any(spine.get_visible() for spine in axis.spines.values())


@pytest.mark.parametrize("size, drawn", [(32, "nearest"), (64, "antialiased"), (224, "antialiased")])
def test_an_image_of_many_pixels_is_smoothed_and_no_setting_turns_it_over(data, size, drawn):
    record = Record(5, torch.zeros(3, size, 8), 2, 2, 0.875)
    maps = dict.fromkeys(("layer1", "layer2"), torch.ones(1, size, 8))
    with matplotlib.rc_context({"image.origin": "lower"}):
        (axis,) = visible(plotting.plot_images([record], data))
        cells = visible(plotting.draw_gradcam([record], data, maps))
    assert axis.images[0].get_interpolation() == drawn
    assert {cell.images[0].origin for cell in (axis, *cells)} == {"upper"}


def test_a_hit_is_of_another_colour_and_its_class_is_named_once(data):
    record = Record(5, torch.zeros(3, 8, 8), 2, 2, 0.875)
    (axis,) = visible(plotting.plot_images([record], data))
    assert axis.get_title() == f"predicted: {data.classes[2]}\nconfidence 88%" and axis.get_xlabel() == "#5"
    assert axis.title.get_color() == BLUE


@pytest.mark.parametrize("count", [1, 20])
def test_long_class_names_do_not_overlap(count):
    model = create_model("small_resnet")
    shown = records_of(model, count)
    for figure in (
        plotting.plot_images(shown, LongNames),
        plotting.plot_gradcam(model, shown, LongNames),
        plotting.plot_gradcam(model, shown[:3], LongNames, layers=["layer1", "layer2", "layer3", "layer3.4"]),
    ):
        assert overlaps(figure) == ([], [])


@pytest.mark.parametrize("name", ["W" * 13, "M" * 16, "W" * 40, "moving van mammoth", "[x](y)\n# `*_$ and $ again"])
def test_wide_class_names_do_not_overlap(name):
    model = create_model("small_resnet")
    wide = SimpleNamespace(classes=[name] * 10, mean=LongNames.mean, std=LongNames.std)
    shown = records_of(model, 7)
    shown.target = shown.predicted = 3
    for figure in (
        plotting.plot_images(shown, wide),
        plotting.plot_gradcam(model, shown, wide, layers=["layer2"]),
        plotting.plot_gradcam(model, shown[:3], wide, layers=["layer1", "layer2", "layer3", "layer3.4"]),
    ):
        assert overlaps(figure) == ([], [])


def test_a_name_that_its_column_has_no_room_for_stands_below_in_lines():
    names = SimpleNamespace(classes=["cat", "moving van mammoth", "W" * 16], mean=LongNames.mean, std=LongNames.std)
    shown = [Record(n, torch.zeros(3, 8, 8), target, n, 0.5) for n, target in enumerate((1, 2, 0))]
    first, second, third = visible(plotting.plot_images(shown, names))
    assert first.get_title() == "predicted: cat\nconfidence 50%"
    assert first.get_xlabel() == "actual:\nmoving van mammoth\n#0"
    assert second.get_title() == "predicted:\nmoving van mammoth\nconfidence 50%"
    assert second.get_xlabel() == f"actual:\n{'W' * 14}\nWW\n#1"
    assert third.get_xlabel() == "actual: cat\n#2"


@pytest.mark.parametrize(("count", "columns", "inches"), [(1, 1, 8), (4, 4, 8), (5, 5, 10), (7, 5, 10)])
def test_a_figure_of_few_images_is_as_wide_as_they_are(data, count, columns, inches):
    figure = plotting.plot_images(records(data, count), data)
    grid = figure.axes[0].get_subplotspec().get_gridspec()
    assert (grid.ncols, figure.get_figwidth(), len(visible(figure))) == (columns, inches, count)


def test_fewer_than_asked_for_or_none_is_said(data):
    assert "3 misclassified images, all there are of the 20 asked for" in texts(
        plotting.plot_images(records(data, 3, asked=20), data)
    )
    model = create_model("small_resnet")
    for figure in (
        plotting.plot_images(records(data, 0, asked=20), data),
        plotting.plot_gradcam(model, records(data, 0, asked=20), data),
    ):
        assert texts(figure) == ["No misclassified images: there are none to show"] and not visible(figure)


def test_the_heading_says_which_classes_were_chosen(data):
    target, predicted = torch.tensor([0, 0, 1, 0, 3]), torch.tensor([1, 0, 0, 2, 3])
    chances = torch.nn.functional.one_hot(predicted, 10).float()
    chosen = Predictions([(torch.zeros(5, 3, 8, 8), target)], chances, predicted, target)
    names = data.classes
    for shown, said in (
        (chosen.wrong(2), "2 misclassified images"),
        (chosen.wrong(2, target=0), f"2 misclassified images of class {names[0]}"),
        (chosen.wrong(3, target=0), f"2 misclassified images of class {names[0]}, all there are of the 3 asked for"),
        (chosen.wrong(1, predicted=0), f"1 misclassified image taken for {names[0]}"),
        (chosen.wrong(1, target=0, predicted=2), f"1 misclassified image of class {names[0]} taken for {names[2]}"),
        (chosen.correct(1, target=3), f"1 correctly classified image of class {names[3]}"),
        (chosen.wrong(2, target=9), f"No misclassified images of class {names[9]}: there are none to show"),
        (chosen.wrong(2)[:1], "1 image"),
    ):
        assert plotting.plot_images(shown, data).get_suptitle() == said
        maps = {"layer2": torch.ones(len(shown), 8, 8)}
        assert plotting.draw_gradcam(shown, data, maps).get_suptitle().split("\n")[0] == said
    with pytest.raises(ValueError, match="records name class 9 and the data has 2 classes"):
        plotting.plot_images(chosen.wrong(2, target=9), SimpleNamespace(classes="ab", mean=data.mean, std=data.std))


def test_data_of_other_colours_is_warned_of(data):
    other = SimpleNamespace(classes=data.classes, mean=(0.1, 0.5, 0.9), std=(0.25, 0.25, 0.25))
    shown = records(data, 3)
    low = min(float(record.image[0].min()) for record in shown) * 0.25 + 0.1
    high = max(float(record.image[2].max()) for record in shown) * 0.25 + 0.9
    with pytest.warns(UserWarning, match=rf"pixels run from {low:.2f} to {high:.2f} and not from 0 to 1"):
        plotting.plot_images(shown, other)
    image = torch.tensor([-1.0, 1.0]).expand(3, 8, 2)
    for mean in (0.1, 0.9):  # too dark alone, and too light
        other.mean, record = (mean,) * 3, Record(0, image, 0, 1, 0.5)
        with pytest.warns(UserWarning, match=f"pixels run from {mean - 0.25:.2f} to {mean + 0.25:.2f} and not from"):
            plotting.plot_images([record], other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plotting.plot_images(shown, data)
        plotting.plot_images([], data)


def test_the_confusion_matrix_is_that_of_the_predictions(data):
    predictions = predict(create_model("small_resnet"), data.test)
    axis = plotting.plot_confusion(predictions, data).axes[0]
    counts = predictions.confusion()
    assert [int(text.get_text()) for text in axis.texts] == counts.flatten().tolist()
    np.testing.assert_allclose(axis.images[0].get_array(), counts / counts.sum(1, keepdim=True).clamp(min=1))
    assert [text.get_text() for text in axis.get_yticklabels()] == data.classes
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted", "actual")
    assert axis.get_title() == f"{predictions.accuracy:.2f}% of 40 images are right"
    target, predicted = torch.tensor([0, 0, 1, 1, 1, 1]), torch.tensor([0, 1, 0, 1, 1, 1])
    found = Predictions(None, torch.eye(2)[predicted], predicted, target)
    names = ["plant_village_tomato_leaf_healthy", "plant_village_tomato_leaf_mosaic"]
    axis = plotting.plot_confusion(found, SimpleNamespace(classes=names)).axes[0]
    (shown,) = axis.images
    assert shown.get_array().tolist() == [[0.5, 0.5], [0.25, 0.75]] and shown.get_clim() == (0, 1)
    assert [text.get_text() for text in axis.get_yticklabels()] == ["plant_vil…_healthy", "plant_vil…f_mosaic"]


@pytest.mark.parametrize("style", ["ggplot", "seaborn-v0_8"])
def test_no_grid_of_a_style_crosses_the_counts(style):
    classes = torch.arange(3)
    with matplotlib.style.context(style):
        axis = plotting.plot_confusion(
            Predictions(None, torch.eye(3), classes, classes), SimpleNamespace(classes="abc")
        ).axes[0]
    assert not any(line.get_visible() for line in (*axis.get_xgridlines(), *axis.get_ygridlines()))


def test_a_mistake_in_thirty_images_can_be_seen_without_its_count():
    target, predicted = torch.arange(900) % 30, torch.arange(900) % 30
    predicted[30] = 5  # of class 0
    found = Predictions(None, torch.eye(30)[predicted], predicted, target)
    (image,) = plotting.plot_confusion(found, SimpleNamespace(classes=range(30))).axes[0].images
    shades = image.to_rgba(image.get_array())[..., :3].sum(axis=2)
    assert shades[0, 5] > shades[0, 4] + 0.15


@pytest.mark.parametrize("size", [20, 21])
def test_counts_are_written_where_there_is_room_and_can_be_read(size):
    """Dark squares have white counts, and light ones black: a fifth of the first class is right, and all others."""
    target = torch.cat([torch.zeros(5).long(), torch.arange(1, size)])
    predicted = torch.cat([torch.tensor([0, 1, 1, 1, 1]), torch.arange(1, size)])
    found = Predictions(None, torch.eye(size)[predicted], predicted, target)
    axis = plotting.plot_confusion(found, SimpleNamespace(classes=range(size))).axes[0]
    assert len(axis.texts) == (size**2 if size == 20 else 0)
    if size == 20:
        counts = {text.get_position(): (text.get_text(), text.get_color()) for text in axis.texts}
        assert counts[0, 0] == ("1", "white") and counts[1, 0] == ("4", "black")  # column, row
        assert counts[0, 1] == ("0", "white") and counts[1, 1] == ("1", "black")


@pytest.mark.parametrize(("count", "step"), [(76, 1), (100, 2), (200, 3)])
def test_names_beside_a_large_confusion_matrix_can_be_read(count, step):
    classes = torch.arange(count)
    predictions = Predictions(None, torch.eye(count), classes, classes)
    figure = plotting.plot_confusion(predictions, SimpleNamespace(classes=[f"class {n}" for n in range(count)]))
    figure.draw_without_rendering()
    axis = figure.axes[0]
    for along, said in ((axis.xaxis, "predicted"), (axis.yaxis, "actual")):
        texts = along.get_ticklabels()
        assert along.get_ticklocs().tolist() == list(range(0, count, step))
        assert [text.get_text() for text in texts] == [f"class {n}" for n in range(0, count, step)]
        assert all(text.get_fontsize() >= 6 for text in texts)
        boxes = [text.get_window_extent() for text in texts]
        assert not any(first.overlaps(second) for first, second in itertools.pairwise(boxes))
        assert along.get_label_text() == said + (f" (one class in {step} is named)" if step > 1 else "")


def test_grey_images_and_numbered_classes_of_ones_own():
    class Grey(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(self.conv(x).relu().mean(dim=(2, 3)))

    model, data = Grey(), SimpleNamespace(classes=[0, 1, 2, 3], mean=(0.0,), std=(1.0,))
    predictions = predict(model, DataLoader([(torch.full((1, 8, 8), 0.25), 2)] * 3, batch_size=3), device="cpu")
    shown = predictions.wrong(3) or predictions.correct(3)
    (image, *_) = plotting.plot_images(shown, data).axes
    assert image.images[0].get_array().tolist()[0][0] == [0.25] * 3
    figure = plotting.plot_gradcam(model, shown, data)
    assert visible(figure)[0].images[0].get_array().tolist()[0][0] == [0.25] * 3
    for drawn in (figure, plotting.plot_confusion(predictions, data)):
        drawn.canvas.draw()


def test_classes_that_the_data_has_not_are_refused(data):
    loader = DataLoader(random_batches(8), batch_size=4)
    predictions = predict(TinyNet(12), loader, device="cpu", precision="float32")
    with pytest.raises(TypeError, match="plot_confusion takes what predict returned, not Records"):
        plotting.plot_confusion(predictions.wrong(2), data)
    with pytest.raises(ValueError, match=r"the model has 12 outputs and the data 10 classes; build .* num_classes=10"):
        plotting.plot_confusion(predictions, data)
    record = Record(index=0, image=torch.zeros(3, 8, 8), target=0, predicted=11, confidence=0.5)
    for draw in (plotting.plot_images, functools.partial(plotting.plot_gradcam, TinyNet(12))):
        with pytest.raises(ValueError, match="records name class 11 and the data has 10 classes; pass the data they"):
            draw([record], data)


def test_augmentations_show_what_the_loader_yields(data):
    figure = plotting.plot_augmentations(data.train, n=16)
    axes = visible(figure)
    images, _ = next(iter(data.train))
    assert len(axes) == 32
    for number in range(8):
        position = int(data.train.order()[number])
        stored = data.train.images[position].permute(1, 2, 0) / 255
        np.testing.assert_allclose(axes[number].images[0].get_array(), stored)
        seen = denormalize(images[number], data.mean, data.std).permute(1, 2, 0)
        np.testing.assert_allclose(axes[8 + number].images[0].get_array(), seen)
    assert "RandomCrop → RandomRotate → Normalize → Cutout" in figure.get_suptitle()
    assert axes[3].get_title() == f"#{int(data.train.order()[3])}"
    steps = v2.Compose([v2.Grayscale(3), v2.RandomHorizontalFlip()])
    figure = plotting.plot_augmentations(load_data("shapes", limit=20, recipe=steps).train, n=3)
    assert figure.get_suptitle().endswith(": Grayscale → RandomHorizontalFlip → Normalize")
    own = load_data("shapes", limit=20, recipe=v2.Grayscale(3))
    own.train.set_epoch(7)
    figure = plotting.plot_augmentations(own.train, n=3)
    steps = "Epoch 7, as stored and as the model sees it: Grayscale → Normalize"
    assert figure.get_suptitle() == steps and len(visible(figure)) == 6
    with pytest.raises(ValueError, match="n is a whole number from 1 up, not 0"):
        plotting.plot_augmentations(data.train, n=0)
    with pytest.raises(TypeError, match=r"needs a loader of load_data, as data\.train, not DataLoader"):
        plotting.plot_augmentations(DataLoader(random_batches(8)))


def test_a_text_is_cut_and_wrapped_to_its_room():
    assert [cut("abcdefgh", width) for width in (9, 8, 7)] == ["abcdefgh", "abcdefgh", "abcdef…"]
    assert cut("abcdefgh", 5, end=0.5) == "ab…gh" and cut("abcdefgh", 5, end=1) == "…efgh"
    assert wrap("one two three four five", 60, 9) == "one two\nthree …r five"
    assert wrap("tomato_leaf_early-blight", 75, 9) == "tomato_leaf_\nearly-blight"


def test_other_things_than_records_and_data_are_refused(data):
    with pytest.raises(TypeError, match=r"records are those of predictions\.wrong\(20\) or \.correct\(20\), not Data"):
        plotting.plot_images(data, data)
    with pytest.raises(TypeError, match=r"records are those of predictions\.wrong\(20\).*, not int"):
        plotting.plot_images([*records(data, 2), 3], data)
    with pytest.raises(TypeError, match="any object with classes, mean and std; list has no classes"):
        plotting.plot_images(records(data, 2), data.classes)
    with pytest.raises(TypeError, match="plot_history takes what fit returned, or several by name, not int"):
        plotting.plot_history(8)
    for given in ("runs/s8", {"first": Path("runs/s8")}):
        with pytest.raises(TypeError, match=r"read it with eva\.History\.load\('runs/s8'\)"):
            plotting.plot_history(given)
