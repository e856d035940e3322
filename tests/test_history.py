from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ConstantLR

from eva_utils.utils.history import History, describe_run


def row(epoch, accuracy):
    return {"epoch": epoch, "test_accuracy": accuracy, "train_loss": 0.1 + 0.2, "seconds": 1e-9}


def test_best_is_the_first_row_of_the_highest_accuracy():
    history = History(rows=[row(1, 50.0), row(2, 61.5), row(3, 61.5), row(4, 60.0)])
    assert history.best["epoch"] == 2 and len(history) == 4


def test_json_gives_back_the_same_record():
    history = History(
        rows=[row(1, 100 / 3), row(2, 61.5)], settings={"seed": None, "groups": {"lr": 0.1}, "é": [1, "a"]}
    )
    assert History.from_json(history.to_json()) == history
    assert History.from_json(History().to_json()) == History()


def test_a_loss_is_described_by_its_options_or_those_it_is_given():
    batches, optimizer = [(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))], SGD([torch.zeros(1)], lr=0.1)
    scheduler, found = ConstantLR(optimizer, factor=1), []
    given = {"label_smoothing": 0.1, "weight": torch.full((2,), 0.5)}
    for loss in (nn.CrossEntropyLoss(label_smoothing=0.1), partial(F.cross_entropy, **given)):
        found.append(describe_run(nn.Linear(1, 1), optimizer, scheduler, loss, batches, batches)["criterion"])
    assert found[0].items() >= {"class": "CrossEntropyLoss", "label_smoothing": 0.1}.items()
    assert found[1] == {
        "class": "cross_entropy",
        "arguments": ["label_smoothing", "weight"],
        "label_smoothing": 0.1,
        "weight": [0.5, 0.5],
    }


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"rows": 1, "settings": {}}'])
def test_what_is_no_record_is_named(text):
    with pytest.raises(
        ValueError, match=r"this is not the record of a run, the text of a history\.json .*a path is to be opened"
    ):
        History.from_json(text)


def test_no_epoch_has_no_best():
    with pytest.raises(ValueError, match="no epoch has finished"):
        _ = History().best
