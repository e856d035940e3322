"""The schedule of a record is held to the one required."""

import pytest
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from audited import LOSSES, check, record, small
from eva_utils.utils.data import load_data


@pytest.fixture(scope="module")
def data():
    return load_data("shapes", limit=70, recipe="eva6_s8")


def test_plateau_is_replayed_from_the_record(data):
    history = record(data, small())
    finding = check(history, small(), data, scheduler="ReduceLROnPlateau")
    # Worse than 0.9 in epochs 3, 4 and 5, and than 0.8 in 8, 9 and 10: the epochs after them run at half the rate.
    assert [row["lr"] for row in history.rows] == [0.1] * 5 + [0.05] * 5 + [0.025] * 2
    assert finding.verdict == "pass" and finding.found.startswith("0.1, cut from epoch 6, 11 on; replayed")


@pytest.mark.parametrize(
    ("rates", "verdict", "found"),
    [
        ([0.1, 0.4, 0.3, 0.1], "pass", "0.1 at first, 0.4 after epoch 2, 0.1 at last"),
        ([0.1, 0.1, 0.1, 0.1], "FAIL", "0.1 at first, 0.1 after epoch 1, 0.1 at last"),
        ([0.1, 0.3, 0.4, 0.1], "FAIL", "0.1 at first, 0.4 after epoch 3, 0.1 at last"),
        ([0.1, 0.4, 0.3, 1e-5], "FAIL", "0.1 at first, 0.4 after epoch 2, 1e-05 at last"),
    ],
)
def test_a_one_cycle_peaks_where_it_should_and_is_not_annihilated(rates, verdict, found, data):
    history = record(data, small(), losses=LOSSES[:4])
    for row, rate in zip(history.rows, rates, strict=True):
        row["lr"] = rate
    finding = check(history, small(), data, peak_epoch=2)
    assert (finding.rule, finding.verdict, finding.found) == ("one cycle", verdict, found)


def test_a_rate_changed_by_hand_is_found(data):
    history = record(data, small())
    history.rows[3]["lr"] = 0.07
    finding = check(history, small(), data, scheduler="ReduceLROnPlateau")
    assert finding.verdict == "FAIL" and finding.found == "epoch 4 ran at 0.07; ReduceLROnPlateau says 0.1"


def test_a_cut_that_did_not_happen_is_found(data):
    history = record(data, small())
    for row in history.rows:
        row["lr"] = 0.1
    assert check(history, small(), data, scheduler="ReduceLROnPlateau").found.startswith("epoch 6 ran at 0.1;")


def test_a_declared_warmup_is_not_the_schedules(data):
    history = record(data, small(), warmup=3)
    finding = check(history, small(), data, scheduler="ReduceLROnPlateau")
    assert finding.verdict == "pass" and "after a warmup of 3 epochs" in finding.found
    history.settings["warmup"] = 0
    assert check(history, small(), data, scheduler="ReduceLROnPlateau").verdict == "FAIL"


PLATEAUS = {  # options, and one of them with a value by which the rates would be others
    "accuracy": ({"mode": "max", "patience": 1}, "mode", "min"),
    "threshold": ({"threshold": 0.2, "patience": 1}, "threshold", 1e-4),
    # Half a point of accuracies from 50 on is progress, half of their value is not.
    "absolute": ({"mode": "max", "threshold": 0.5, "threshold_mode": "abs", "patience": 1}, "threshold_mode", "rel"),
    "cooldown": ({"patience": 0, "cooldown": 3}, "cooldown", 0),
    "floor": ({"patience": 0, "min_lr": 0.03}, "min_lrs", [0.0]),
}


@pytest.mark.parametrize(("options", "option", "other"), PLATEAUS.values(), ids=PLATEAUS)
def test_each_option_of_the_plateau_matters_in_its_replay(data, options, option, other):
    history = record(data, small(), scheduler=lambda optimizer: ReduceLROnPlateau(optimizer, **options))
    assert len({row["lr"] for row in history.rows}) > 1
    assert check(history, small(), data, scheduler="ReduceLROnPlateau").verdict == "pass"
    history.settings["scheduler"][option] = other
    assert check(history, small(), data, scheduler="ReduceLROnPlateau").verdict == "FAIL"


def test_a_warmup_that_is_the_whole_run_fails(data):
    history = record(data, small(), warmup=12)
    finding = check(history, small(), data, scheduler="ReduceLROnPlateau")
    assert (finding.verdict, finding.found) == ("FAIL", "the warmup takes all of the 12 epochs")


def test_a_rate_within_the_warmup_is_checked_too(data):
    history = record(data, small(), warmup=3)
    history.rows[0]["lr"] = 0.1
    assert check(history, small(), data, scheduler="ReduceLROnPlateau").found.startswith("epoch 1 ran at 0.1;")


def test_another_required_schedule_is_compared_by_its_class(data):
    history = record(data, small(), scheduler=lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=9))
    assert check(history, small(), data, scheduler="OneCycleLR").verdict == "pass"
    assert check(record(data, small()), small(), data, scheduler="OneCycleLR").verdict == "FAIL"


def test_one_cycle_is_not_plateau(data):
    history = record(data, small(), scheduler=lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=9))
    finding = check(history, small(), data, scheduler="ReduceLROnPlateau")
    assert (finding.verdict, finding.found) == ("FAIL", "OneCycleLR")
