import matplotlib
import matplotlib.pyplot as plt
import pytest

from eva_utils.utils.history import History
from eva_utils.utils.plotting import plot_history


def history(rates):
    return History(
        rows=[
            {"epoch": n, "train_loss": 2 / n, "train_accuracy": 10.0 * n, "test_loss": 3 / n,
             "test_accuracy": 55 - (n - 4) ** 2, "lr": rate, "seconds": 1.0}
            for n, rate in enumerate(rates, start=1)
        ]
    )  # fmt: skip


def test_curves_show_the_rows_the_best_epoch_and_the_drops():
    before = dict(matplotlib.rcParams)
    figure = plot_history(history([0.1, 0.1, 0.01, 0.01, 0.001]))
    loss, accuracy = figure.axes
    lines = {line.get_label(): line for line in loss.lines}
    assert lines["train"].get_ydata() == pytest.approx([2, 1, 2 / 3, 0.5, 0.4])
    assert lines["test"].get_xdata().tolist() == [1, 2, 3, 4, 5]
    assert "best epoch, 4: 55.00%" in {line.get_label() for line in accuracy.lines}
    assert [line.get_xdata()[0] for line in loss.lines if line.get_linestyle() == ":"] == [2.5, 4.5]
    assert dict(matplotlib.rcParams) == before and not plt.get_fignums()


def test_one_epoch_is_enough_and_none_is_refused():
    assert len(plot_history(history([0.1])).axes) == 2
    with pytest.raises(ValueError, match="no epoch has finished"):
        plot_history(History())
