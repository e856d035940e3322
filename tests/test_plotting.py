"""Figures show what their records say, at any count, on any background, and leave matplotlib as it was."""

import copy
import functools
import itertools
import warnings
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import TinyNet, random_batches
from torch.utils.data import DataLoader

from eva_utils.models import create_model
from eva_utils.utils import plotting
from eva_utils.utils.data import load_data
from eva_utils.utils.gradcam import GradCAM, overlay
from eva_utils.utils.history import History
from eva_utils.utils.predictions import Predictions, Record, Records, predict
from eva_utils.utils.transforms import denormalize


@pytest.fixture(autouse=True)
def settings_and_open_figures_stay(monkeypatch):
    before = dict(matplotlib.rcParams)
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: pytest.fail("nothing may call plt.show()"))
    yield
    assert dict(matplotlib.rcParams) == before and not plt.get_fignums()


def history(rates, shift=0.0):
    return History(
        rows=[
            {"epoch": n, "train_loss": 2 / n, "train_accuracy": 10.0 * n, "test_loss": 3 / n,
             "test_accuracy": 55 - (n - 4) ** 2 + shift, "lr": rate, "seconds": 1.0}
            for n, rate in enumerate(rates, start=1)
        ]
    )  # fmt: skip


def labels(axis):
    return {line.get_label(): line for line in axis.lines}


def test_curves_show_the_rows_the_best_epoch_and_the_drops():
    loss, accuracy = plotting.plot_history(history([0.1, 0.1, 0.01, 0.01, 0.001])).axes
    assert labels(loss)["train"].get_ydata() == pytest.approx([2, 1, 2 / 3, 0.5, 0.4])
    assert labels(loss)["test"].get_xdata().tolist() == [1, 2, 3, 4, 5]
    ring = labels(accuracy)["best: 55.00%, epoch 4"]
    assert (ring.get_xdata().tolist(), ring.get_ydata().tolist()) == ([4], [55])
    assert [line.get_xdata()[0] for line in loss.lines if line.get_linestyle() == ":"] == [2.5, 4.5]


def test_the_legend_covers_no_curve():
    figure = plotting.plot_history(history([0.1, 0.1, 0.01, 0.01, 0.001]))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == ["train", "test", "best: 55.00%, epoch 4", "rate drops"]
    assert all(axis.get_legend() is None and legend.get_window_extent().y1 < axis.bbox.y0 for axis in figure.axes)


@pytest.mark.parametrize(
    ("rates", "drops"),
    [
        ([0.1, 0.4, 0.3, 0.2, 0.1], []),  # one cycle
        ([0.1, 0.2, 0.3, 0.4, 0.3], []),  # one that was cut short
        ([0.4, 0.3, 0.2, 0.1], []),
        ([0.1, 0.01, 0.01], [1.5]),
        ([0.05, 0.1, 0.1, 0.01, 0.001, 0.001], [3.5, 4.5]),  # a warmup, then two cuts running
    ],
)
def test_a_rate_that_falls_all_the_time_has_no_drops(rates, drops):
    loss, _ = plotting.plot_history(history(rates)).axes
    assert [line.get_xdata()[0] for line in loss.lines if line.get_linestyle() == ":"] == drops


def test_an_epoch_gone_astray_does_not_flatten_the_others():
    calm, astray = history([0.1] * 5), history([0.1] * 5)
    astray.rows[1]["test_loss"] = 300.0
    for row in calm.rows[1:]:
        row["train_loss"] = 0.0  # a fast fall is none
    assert [axis.get_yscale() for axis in plotting.plot_history(calm).axes] == ["linear", "linear"]
    assert [axis.get_yscale() for axis in plotting.plot_history(astray).axes] == ["log", "linear"]


def test_several_histories_share_a_figure():
    _, accuracy = plotting.plot_history({"batch": history([0.1] * 5), "layer": history([0.1] * 6, shift=2.0)}).axes
    found = labels(accuracy)
    batch, layer = (found[name] for name in (" batch, best: 55.00%, epoch 4", " layer, best: 57.00%, epoch 4"))
    assert layer.get_ydata()[3] == 57 and batch.get_color() != layer.get_color()


def test_a_dozen_histories_are_told_apart_and_leave_room_for_the_curves():
    figure = plotting.plot_history({f"_a run of a long name ${number}$": history([0.1] * 5) for number in range(12)})
    figure.canvas.draw()
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    names = [rf" _a run of a long name \${number}\$, best: 55.00%, epoch 4" for number in range(12)]
    assert texts == [*names, "train", "test"]
    drawn = {(line.get_color(), line.get_marker()) for line in figure.axes[0].lines if line.get_label() in names}
    assert len(drawn) == 12
    assert all(axis.get_window_extent().height > 250 for axis in figure.axes)
    assert " layer, best: 55.00%, epoch 4" in labels(plotting.plot_history({"layer": history([0.1] * 5)}).axes[0])


LONG_NAMES = [
    [f"{number}: resnet18_layer_norm_batch128_OneCycleLR_max_lr" for number in range(4)],
    [f"resnet18_layer_norm_batch128_OneCycleLR_max_lr_{number}" for number in range(4)],
    [70 * "W" + str(number) for number in range(4)],
]


@pytest.mark.parametrize("names", LONG_NAMES)
def test_long_names_of_runs_are_told_apart_and_stay_in_the_figure(names):
    for figure in (
        plotting.plot_history({name: history([0.1] * 5) for name in names}),
        plotting.plot_schedule({name: [0.1, 0.2] for name in names}),
    ):
        figure.draw_without_rendering()
        (legend,) = figure.legends
        box, (width, _) = legend.get_window_extent(), figure.canvas.get_width_height()
        assert box.x0 > 0 and box.x1 < width
        assert len({text.get_text() for text in legend.get_texts()[:4]}) == 4


def test_long_names_of_layers_are_told_apart():
    layers = ["features.denseblock3", "features.denseblock4", "layer1.1.block.conv2", "layer2.1.block.conv2"]
    shown, maps = records(LongNames, 1), {layer: torch.rand(1, 32, 32) for layer in layers}
    titles = [axis.get_title() for axis in plotting.draw_gradcam(shown, LongNames, maps).axes[1::2]]
    assert len(set(titles)) == 4 and titles[0].startswith("feat") and titles[0].endswith("block3")


def test_one_epoch_is_enough_and_none_is_refused():
    assert len(plotting.plot_history(history([0.1])).axes) == 2
    with pytest.raises(ValueError, match="no epoch has finished"):
        plotting.plot_history(History())
    with pytest.raises(ValueError, match="there is no history to draw"):
        plotting.plot_history({})
    with pytest.raises(TypeError, match="plot_history takes what fit returned, not list for 'first'"):
        plotting.plot_history({"first": history([0.1]).rows})


def test_a_schedule_by_step_and_by_epoch():
    (axis,) = plotting.plot_schedule([0.1, 0.3, 0.2]).axes
    assert axis.lines[0].get_ydata().tolist() == [0.1, 0.3, 0.2] and axis.get_xlabel() == "step"
    (axis,) = plotting.plot_schedule(np.array([0.1, 0.3])).axes
    assert axis.lines[0].get_ydata().tolist() == [0.1, 0.3]
    (axis,) = plotting.plot_schedule(history([0.1, 0.01])).axes
    assert axis.lines[0].get_ydata().tolist() == [0.1, 0.01] and axis.get_xlabel() == "epoch"
    assert {" a", " b"} == set(labels(plotting.plot_schedule({"a": [1, 2], "b": [2, 1]}).axes[0]))


def test_a_dozen_schedules_are_told_apart_and_the_legend_covers_none():
    figure = plotting.plot_schedule({f"schedule {number}": [number + 1.0] * 100 for number in range(12)})
    figure.draw_without_rendering()
    (axis,), (legend,) = figure.axes, figure.legends
    assert len({(line.get_color(), line.get_marker()) for line in axis.lines}) == 12
    assert [text.get_text() for text in legend.get_texts()] == [f" schedule {number}" for number in range(12)]
    assert legend.get_window_extent().y1 < axis.bbox.y0 and axis.bbox.height > 200
    with pytest.raises(TypeError, match="takes a list of rates") as refused:
        plotting.plot_schedule([*[0.1] * 50_000, "high"])
    assert len(str(refused.value)) < 200


def test_the_finders_curve_marks_its_suggestion():
    rates, losses = [10.0**n for n in range(-5, 1)], [2.0, 2.0, 1.5, 1.0, 1.2, 90.0]
    (axis,) = plotting.plot_lr_find((rates, losses, 1e-3)).axes
    assert axis.lines[0].get_xdata().tolist() == rates and axis.lines[0].get_ydata().tolist() == losses
    assert axis.get_xscale() == "log" and axis.lines[1].get_xdata() == [1e-3, 1e-3]
    assert "steepest slope: 1.0e-03" in labels(axis)
    (rising,) = plotting.plot_lr_find(([1e-3, 1e-2, 1e-1], [2.3, 4.0, 11.0], None)).axes
    assert len(rising.lines) == 1 and rising.get_title() == "the loss does not fall by a tenth: no suggestion"
    with pytest.raises(TypeError, match=r"plot_schedule\(eva\.learning_rates\(scheduler, steps\)\) draws a scheduler"):
        plotting.plot_schedule(torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)], lr=1), 1))
    with pytest.raises(TypeError, match="plot_lr_find takes what lr_find returned, not NoneType"):
        plotting.plot_lr_find(None)
    with pytest.raises(TypeError, match=r"takes a list of rates, several by name, or a history, not 0\.1"):
        plotting.plot_schedule(0.1)
    for nothing in ([], {}, {"a": []}):
        with pytest.raises(ValueError, match="there is no rate to draw"):
            plotting.plot_schedule(nothing)
    assert rising.get_ylim()[0] < 2.3 and rising.get_ylim()[1] > 4.0
    assert axis.get_ylim()[0] < 1.0 and 2.0 < axis.get_ylim()[1] < 3.0  # the divergence does not flatten the rest


@pytest.fixture(scope="module")
def data():
    return load_data("shapes", limit=40, recipe="eva6_s8")


def records(data, count, asked=None):
    generator = torch.Generator().manual_seed(count)
    made = []
    for index in range(count):
        target = index % 10
        image = 2 * torch.rand(3, 32, 32, generator=generator) - 1  # of every data's colours
        made.append(Record(index + 7, image, target, (target + 1) % 10, 0.5 + index / 100))
    return Records(made, "misclassified", asked or count, count)


def records_of(model, count, right=False):
    """Records of random images that hold what the model says of them."""
    images = 2 * torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(count)) - 1
    with torch.no_grad():
        said = copy.deepcopy(model).eval()(images).argmax(1)
    predictions = predict(model, [(images, said if right else (said + 1) % 10)], precision="float32")
    return predictions.correct(count) if right else predictions.wrong(count)


def visible(figure):
    return [axis for axis in figure.axes if axis.get_visible()]


def texts(figure):
    found = [figure.get_suptitle()]
    for axis in visible(figure):
        found += [axis.get_title(), axis.get_xlabel(), axis.get_ylabel()]
    return [text for text in found if text]


def overlaps(figure):
    """Pairs of texts whose boxes overlap by more than a pixel, and texts outside the figure."""
    figure.draw_without_rendering()
    boxes = []
    for axis in visible(figure):
        for text in (axis.title, axis.xaxis.label, axis.yaxis.label):
            if text.get_text():
                boxes.append((text.get_text(), text.get_window_extent()))
    boxes += [(text.get_text(), text.get_window_extent()) for text in figure.texts]
    clashes = [
        (first, second)
        for number, (first, a) in enumerate(boxes)
        for second, b in boxes[number + 1 :]
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]
    width, height = figure.canvas.get_width_height()
    outside = [text for text, box in boxes if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1]
    return clashes, outside


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


class LongNames:
    classes = tuple(f"an exceeding $dollar$ name, number {n}, longer than any line" for n in range(10))
    mean, std = (0.5,) * 3, (0.25,) * 3


@pytest.mark.parametrize("count", [1, 20])
def test_long_class_names_do_not_overlap(count):
    model = create_model("small_resnet")
    shown = records_of(model, count)
    for figure in (
        plotting.plot_images(shown, LongNames),
        plotting.plot_gradcam(model, shown, LongNames),
        plotting.plot_gradcam(model, shown, LongNames, layers=["layer1", "layer2", "layer3", "layer3.4"]),
    ):
        assert overlaps(figure) == ([], [])


@pytest.mark.parametrize("name", ["W" * 13, "M" * 16, "W" * 40, "moving van mammoth"])
def test_wide_class_names_do_not_overlap(name):
    model = create_model("small_resnet")
    wide = SimpleNamespace(classes=[name] * 10, mean=LongNames.mean, std=LongNames.std)
    shown = records_of(model, 7)
    shown.target = shown.predicted = 3
    for figure in (
        plotting.plot_images(shown, wide),
        plotting.plot_gradcam(model, shown, wide, layers=["layer2"]),
        plotting.plot_gradcam(model, shown, wide, layers=["layer1", "layer2", "layer3", "layer3.4"]),
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


def test_captions_beside_many_layers_are_whole():
    model = create_model("small_resnet")
    wide = SimpleNamespace(classes=["AUTOMOBILES"] * 10, mean=LongNames.mean, std=LongNames.std)
    layers = ["layer1", "layer1.4", "layer2", "layer2.4", "layer3", "layer3.4"]
    for count in (2, 4, 6):
        assert overlaps(plotting.plot_gradcam(model, records_of(model, 2), wide, layers[:count])) == ([], [])


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
    assert overlaps(plotting.plot_gradcam(model, records_of(model, 20), data, "layer2")) == ([], [])
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


def test_data_of_other_colours_is_warned_of(data):
    other = SimpleNamespace(classes=data.classes, mean=(0.1, 0.5, 0.9), std=(0.25, 0.25, 0.25))
    shown = records(data, 3)
    low = min(float(record.image[0].min()) for record in shown) * 0.25 + 0.1
    high = max(float(record.image[2].max()) for record in shown) * 0.25 + 0.9
    with pytest.warns(UserWarning, match=rf"pixels run from {low:.2f} to {high:.2f} and not from 0 to 1"):
        plotting.plot_images(shown, other)
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
    for figure in (
        plotting.plot_gradcam(model, predictions.wrong(3), data),
        plotting.plot_confusion(predictions, data),
    ):
        figure.canvas.draw()


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


def test_one_epoch_has_one_tick():
    for axis in plotting.plot_history(history([0.1])).axes + plotting.plot_schedule([0.1]).axes:
        assert axis.get_xticks().tolist() == [1]


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
    with pytest.raises(TypeError, match=r"needs a loader of load_data, as data\.train, not DataLoader"):
        plotting.plot_augmentations(DataLoader(random_batches(8)))


def test_other_things_than_records_and_data_are_refused(data):
    with pytest.raises(TypeError, match=r"records are those of predictions\.wrong\(20\) or \.correct\(20\), not Data"):
        plotting.plot_images(data, data)
    with pytest.raises(TypeError, match="any object with classes, mean and std; list has no classes"):
        plotting.plot_images(records(data, 2), data.classes)
    with pytest.raises(TypeError, match="plot_history takes what fit returned, or several by name, not str"):
        plotting.plot_history("runs/s8")
