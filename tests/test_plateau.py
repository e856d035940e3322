"""What ReduceLROnPlateau would have done with the losses of a run, against hand counting and the published records."""

import json

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

import eva_utils as eva
from audited import record, small
from conftest import ROOT
from eva_utils.utils.data import load_data
from eva_utils.utils.plateau import make_plateau


@pytest.fixture(scope="module")
def data():
    return load_data("shapes", limit=70)


def test_the_plateau_has_the_options_it_is_given():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    plateau = make_plateau(optimizer, factor=0.5, patience=2, threshold=0.01)
    assert (plateau.factor, plateau.patience, plateau.threshold) == (0.5, 2, 0.01)
    assert (plateau.mode, plateau.threshold_mode) == ("min", "rel")
    plateau = make_plateau(optimizer)
    assert (plateau.factor, plateau.patience, plateau.threshold) == (0.1, 3, 1e-4)
    for wrong in ({"factor": 1}, {"factor": 0}, {"patience": -1}, {"threshold": -0.1}):
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))} is a "):
            make_plateau(optimizer, **wrong)


def test_with_the_options_of_the_run_it_is_the_run(data):
    history = record(data, small(), warmup=3)
    assert eva.plateau_rates(history) == pytest.approx([row["lr"] for row in history.rows], rel=1e-12)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # The losses are 1.0, 0.9, 0.95, 0.94, 0.93, 0.92, 0.8, 0.81 to 0.85; the run itself halves after the third bad.
        ({"factor": 0.1}, [0.1] * 5 + [0.01] * 5 + [0.001] * 2),
        ({"patience": 1}, [0.1] * 4 + [0.05] * 2 + [0.025] * 3 + [0.0125] * 2 + [0.00625]),
        # Only less than 0.8 times 1.0 would be progress: epochs 2 to 4, 5 to 7 and 8 to 10 are bad.
        ({"threshold": 0.2}, [0.1] * 4 + [0.05] * 3 + [0.025] * 3 + [0.0125] * 2),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_option_moves_the_cuts_as_counted_by_hand(options, expected, data):
    assert eva.plateau_rates(record(data, small()), **options) == pytest.approx(expected, rel=1e-12)


def test_a_run_without_a_plateau_has_none_to_replay(data):
    history = record(data, small(), scheduler=lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=12))
    with pytest.raises(ValueError, match="the run had OneCycleLR, at whose rates"):
        eva.plateau_rates(history)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 1}, "factor is a number above 0 and below 1, not 1"),
        ({"factor": 0}, "factor is a number above 0 and below 1, not 0"),
        ({"patience": -1}, "patience is a whole number"),
        ({"threshold": 1}, "threshold is a number from 0 and below 1, not 1"),
    ],
)
def test_an_option_out_of_range_is_named(options, message, data):
    with pytest.raises(ValueError, match=message):
        eva.plateau_rates(record(data, small()), **options)


def test_an_absolute_threshold_may_be_of_whole_points(data):
    def points(optimizer):
        return ReduceLROnPlateau(optimizer, mode="max", threshold=1, threshold_mode="abs", patience=0)

    history = record(data, small(), scheduler=points)
    assert eva.plateau_rates(history) == pytest.approx([row["lr"] for row in history.rows], rel=1e-12)


def test_what_is_no_history_is_refused():
    with pytest.raises(TypeError, match="plateau_rates takes the history that fit returned, not list"):
        eva.plateau_rates([0.1, 0.2])


@pytest.mark.parametrize(
    ("run", "options", "cuts"),
    [
        ("eva6_s8-1", {}, [25, 33, 38]),
        ("eva6_s8-1", {"factor": 0.6, "patience": 2, "threshold": 0.05}, [14, 19, 22, 28, 32, 35, 40]),
        ("eva6_s8-2", {}, [14, 18, 22, 27, 30, 33, 37, 40]),
        ("eva6_s8-3", {}, [14, 18, 22, 28, 31, 34, 37, 40]),
        ("eva6_s8-4", {}, [13, 17, 22, 25, 28, 31, 34, 37, 40]),
        ("eva6_s8-6", {}, [12, 16, 20, 23, 27, 30, 33, 36, 39]),
    ],
)
def test_the_cuts_that_the_experiments_tell_of_are_those_of_the_records(run, options, cuts):
    text = (ROOT / "benchmarks" / "records" / run / "history.json").read_text()
    rates = eva.plateau_rates(eva.History.from_json(text), **options)
    warmup = json.loads(text)["settings"]["warmup"]
    assert [epoch for epoch in range(warmup + 1, 41) if rates[epoch - 1] != rates[epoch - 2]] == cuts
