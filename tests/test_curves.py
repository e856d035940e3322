"""Curves show the rows of their records, told apart and with room for them."""

import matplotlib
import numpy as np
import pytest
import torch

from drawn import labels
from eva_utils.utils import plotting
from eva_utils.utils.history import History

pytestmark = pytest.mark.usefixtures("settings_and_open_figures_stay")


def history(rates, shift=0.0):
    return History(
        rows=[
            {"epoch": n, "train_loss": 2 / n, "train_accuracy": 10.0 * n, "test_loss": 3 / n,
             "test_accuracy": 55 - (n - 4) ** 2 + shift, "lr": rate, "seconds": 1.0}
            for n, rate in enumerate(rates, start=1)
        ]
    )  # fmt: skip


def test_curves_show_the_rows_the_best_epoch_and_the_drops():
    loss, accuracy = plotting.plot_history(history([0.1, 0.1, 0.01, 0.01, 0.001])).axes
    assert labels(loss)["train"].get_ydata() == pytest.approx([2, 1, 2 / 3, 0.5, 0.4])
    assert labels(loss)["test"].get_xdata().tolist() == [1, 2, 3, 4, 5]
    ring = labels(accuracy)["best: 55.00%, epoch 4"]
    assert (ring.get_xdata().tolist(), ring.get_ydata().tolist()) == ([4], [55])
    assert labels(loss)["best: 55.00%, epoch 4"].get_ydata().tolist() == [0.75]  # the loss of that epoch
    for axis in (loss, accuracy):
        train, test = labels(axis)["train"], labels(axis)["test"]
        assert (train.get_linestyle(), test.get_linestyle()) == ("--", "-") and train.get_color() != test.get_color()
        assert axis.get_xlabel() == "epoch"
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("loss (mean over samples)", "accuracy (%)")
    assert [line.get_xdata()[0] for line in loss.lines if line.get_linestyle() == ":"] == [2.5, 4.5]


def test_a_run_that_was_tested_on_held_out_images_says_so():
    alone = plotting.plot_history(history([0.1, 0.1]), "validation").axes[0]
    assert {"train", "validation"} < set(labels(alone)) and "test" not in labels(alone)
    assert labels(alone)["validation"].get_ydata() == pytest.approx([3, 1.5])
    several = plotting.plot_history({"a": history([0.1]), "b": history([0.1])}, tested="validation")
    assert [text.get_text() for text in several.legends[0].get_texts()][-2:] == ["train", "validation"]


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
    astray.rows[1]["test_loss"] = 21.0  # of 2.0 in training
    for row in calm.rows[1:]:
        row["train_loss"] = 0.0  # a fast fall is none
    assert [axis.get_yscale() for axis in plotting.plot_history(calm).axes] == ["linear", "linear"]
    assert [axis.get_yscale() for axis in plotting.plot_history(astray).axes] == ["log", "linear"]


def test_several_histories_share_a_figure():
    _, accuracy = plotting.plot_history({"batch": history([0.1] * 5), "layer": history([0.1] * 6, shift=2.0)}).axes
    found = labels(accuracy)
    batch, layer = (found[name] for name in (" batch, best: 55.00%, epoch 4", " layer, best: 57.00%, epoch 4"))
    assert layer.get_ydata()[3] == 57 and batch.get_color() != layer.get_color()
    shorter = plotting.plot_history({"one": history([0.1]), "six": history([0.1] * 6)}).axes[0]
    assert {1, 5} <= set(shorter.get_xticks().tolist())


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


def test_one_epoch_is_enough_and_none_is_refused():
    assert len(plotting.plot_history(history([0.1])).axes) == 2
    with pytest.raises(ValueError, match="no epoch has finished"):
        plotting.plot_history(History())
    with pytest.raises(ValueError, match="there is no history to draw"):
        plotting.plot_history({})
    with pytest.raises(
        TypeError, match=r"tested is what the images are called.*compare runs as plot_history\(\{'batch"
    ):
        plotting.plot_history(history([0.1]), history([0.1]))
    with pytest.raises(TypeError, match="plot_history takes what fit returned, not list for 'first'"):
        plotting.plot_history({"first": history([0.1]).rows})


def test_a_schedule_by_step_and_by_epoch():
    (axis,) = plotting.plot_schedule([0.1, 0.3, 0.2]).axes
    assert axis.lines[0].get_ydata().tolist() == [0.1, 0.3, 0.2] and axis.get_xlabel() == "step"
    (axis,) = plotting.plot_schedule(np.array([0.1, 0.3])).axes
    assert axis.lines[0].get_ydata().tolist() == [0.1, 0.3]
    (axis,) = plotting.plot_schedule(history([0.1, 0.01])).axes
    assert axis.lines[0].get_ydata().tolist() == [0.1, 0.01] and axis.get_xlabel() == "epoch"
    for count, style in ((60, "steps-mid"), (61, "default")):
        assert plotting.plot_schedule([0.1] * count).axes[0].lines[0].get_drawstyle() == style
    assert {" a", " b"} == set(labels(plotting.plot_schedule({"a": [1, 2], "b": [2, 1]}).axes[0]))


def test_a_dozen_schedules_are_told_apart_and_the_legend_covers_none():
    figure = plotting.plot_schedule({f"schedule {number}": [number + 1.0] * 100 for number in range(12)})
    figure.draw_without_rendering()
    (axis,), (legend,) = figure.axes, figure.legends
    assert len({(line.get_color(), line.get_marker()) for line in axis.lines}) == 12
    assert [text.get_text() for text in legend.get_texts()] == [f" schedule {number}" for number in range(12)]
    assert legend.get_window_extent().y1 < axis.bbox.y0 and axis.bbox.height > 200
    (axis,) = plotting.plot_schedule({str(number): [number + 1.0] for number in range(24)}).axes
    assert len({(line.get_color(), line.get_marker()) for line in axis.lines}) == 24
    with pytest.raises(TypeError, match="takes a list of rates") as refused:
        plotting.plot_schedule([*[0.1] * 50_000, "high"])
    assert len(str(refused.value)) < 200


def test_the_finders_curve_marks_its_suggestion():
    rates, losses = [10.0**n for n in range(-5, 1)], [2.0, 2.0, 1.5, 1.0, 1.2, 90.0]
    (axis,) = plotting.plot_lr_find((rates, losses, 1e-3)).axes
    assert axis.lines[0].get_xdata().tolist() == rates and axis.lines[0].get_ydata().tolist() == losses
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("learning rate", "loss (smoothed)")
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


@pytest.mark.parametrize("size", [10, 14, 20])
def test_labels_stay_in_the_figure_at_any_size_of_text(size):
    with matplotlib.rc_context({"font.size": size}):
        figure = plotting.plot_history(history([0.1] * 5))
        figure.draw_without_rendering()
        boxes = [axis.yaxis.label.get_window_extent() for axis in figure.axes]
    height = figure.canvas.get_width_height()[1]
    assert all(box.y0 >= 0 and box.y1 <= height and box.x0 >= -1 for box in boxes)


def test_every_drop_of_a_rate_can_be_seen():
    (axis,) = plotting.plot_schedule([0.1] * 10 + [0.01] * 10 + [0.001] * 10 + [0.0001] * 10).axes
    assert axis.get_yscale() == "log"
    for others in ([0.1] * 10 + [0.01] * 10, [0.1] * 5 + [0.0] * 5, [0.1 * 0.8**step for step in range(40)]):
        assert plotting.plot_schedule(others).axes[0].get_yscale() == "linear"


def test_one_epoch_has_one_tick():
    for axis in plotting.plot_history(history([0.1])).axes + plotting.plot_schedule([0.1]).axes:
        assert axis.get_xticks().tolist() == [1]


@pytest.mark.parametrize("count", [2, 3, 7])
def test_epochs_and_steps_are_whole_numbers(count):
    for figure in (plotting.plot_history(history([0.1] * count)), plotting.plot_schedule([0.1] * count)):
        for axis in figure.axes:
            ticks = axis.get_xticks().tolist()
            assert all(tick == round(tick) for tick in ticks) and len({*range(1, count + 1)} & {*ticks}) > 1
