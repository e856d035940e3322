from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ConstantLR, MultiStepLR, ReduceLROnPlateau, SequentialLR
from torch.utils.data import DataLoader, TensorDataset

from eva_utils.models import center_filters, small_resnet
from eva_utils.utils.history import History, describe_criterion, describe_layers, describe_loader, describe_run


def row(epoch, accuracy):
    return {"epoch": epoch, "test_accuracy": accuracy, "train_loss": 0.1 + 0.2, "seconds": 1e-9}


def test_best_is_the_first_row_of_the_highest_accuracy():
    history = History(rows=[row(1, 50.0), row(2, 61.5), row(3, 61.5), row(4, 60.0)])
    assert history.best["epoch"] == 2 and len(history) == 4
    assert repr(history) == "History(4 epochs, best 61.50% at epoch 2)"


def test_json_gives_back_the_same_record():
    history = History(
        rows=[row(1, 100 / 3), row(2, 61.5)], settings={"seed": None, "groups": {"lr": 0.1}, "é": [1, "a"]}
    )
    assert History.from_json(history.to_json()) == history
    assert History.from_json(History().to_json()) == History()


def test_the_record_tells_a_networks_norms_and_what_makes_its_weights():
    batches, described = [(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))], {}
    for norm in ("batch", "layer"):
        model = center_filters(small_resnet(norm=norm))
        optimizer = SGD(model.parameters(), lr=0.1)
        scheduler = ConstantLR(optimizer, factor=1)
        described[norm] = describe_run(model, optimizer, scheduler, nn.CrossEntropyLoss(), batches, batches)
    assert described["batch"]["norms"] == {"BatchNorm2d": 9}
    assert described["layer"]["norms"] == {"GroupNorm of one group": 9}
    assert described["layer"]["parametrizations"] == {"Centered": 9}


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


def test_a_loss_of_ones_own_is_described_with_what_it_holds():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.share, self.inner = 0.25, nn.CrossEntropyLoss(label_smoothing=0.1)
            self.scale = nn.Parameter(torch.ones(2, 3))
            self.register_buffer("offset", torch.tensor([1.0, 2.0]))

    found = describe_criterion(Two())
    assert found.items() >= {"class": "Two", "share": 0.25, "scale": [2, 3], "offset": [1, 2]}.items()
    assert found["inner"].items() >= {"class": "CrossEntropyLoss", "label_smoothing": 0.1}.items()
    given = describe_criterion(partial(F.huber_loss, 2.0, delta=3.0))
    assert given == {"class": "huber_loss", "arguments": ["args", "delta"], "args": [2.0], "delta": 3.0}


def test_a_schedule_is_described_by_its_options_and_not_by_how_far_it_is():
    optimizer, batches = SGD([torch.zeros(1)], lr=0.1), [(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))]

    def described(scheduler):
        return describe_run(nn.Linear(1, 1), optimizer, scheduler, None, batches, batches)["scheduler"]

    steps = MultiStepLR(optimizer, [4, 2, 2], gamma=0.5)
    whole = SequentialLR(optimizer, [ConstantLR(optimizer, 0.5, total_iters=3), steps], [3])
    plateau = ReduceLROnPlateau(optimizer, factor=0.5)
    before = described(whole), described(plateau)
    assert before[0]["milestones"] == [3] and before[0]["part 0"]["factor"] == 0.5
    assert before[0]["part 1"].items() >= {"class": "MultiStepLR", "milestones": [2, 2, 4], "gamma": 0.5}.items()
    optimizer.step()
    whole.step()
    plateau.step(1.0)
    assert (described(whole), described(plateau)) == before


def test_a_loader_and_layers_are_described_by_what_decides():
    loader = DataLoader(TensorDataset(torch.zeros(5, 2)), batch_size=2, generator=torch.Generator())
    found = describe_loader(loader)
    assert found == {"class": "DataLoader", "batch_size": 2, "shuffle": False, "generators": 1, "images": 5}
    layers = describe_layers(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)))
    assert layers["layer 0"].items() >= {"class": "Conv2d", "kernel_size": [3, 3], "out_channels": 4}.items()
    assert layers["layer 1"] == {"class": "ReLU"}  # in place or not it computes the same


def test_a_run_that_goes_on_elsewhere_notes_each_change():
    history = History(settings={"machine": "a", "threads": 2})
    history.note_machine({"machine": "b", "threads": 2})
    assert "continued" not in history.settings  # nothing was trained there
    history.rows.append(row(1, 50.0))
    for machine, threads in (("a", 2), ("b", 2), ("b", 2), ("b", 4), ("a", 2)):
        history.note_machine({"machine": machine, "threads": threads})
    places = [("b", 2), ("b", 4), ("a", 2)]
    assert history.settings["continued"] == [{"after": 1, "machine": name, "threads": n} for name, n in places]


def test_a_run_is_read_from_its_folder(tmp_path):
    history = History([{"epoch": 1, "test_accuracy": 50.0}], {"model": "TinyNet"})
    (tmp_path / "history.json").write_text(history.to_json(), encoding="utf-8")
    assert History.load(tmp_path) == History.load(str(tmp_path)) == history
    with pytest.raises(FileNotFoundError, match=r"history\.json does not exist; give the folder that fit"):
        History.load(tmp_path / "history.json")


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"rows": 1, "settings": {}}'])
def test_what_is_no_record_is_named(text):
    with pytest.raises(
        ValueError,
        match=r"this is not the record of a run, the text of a history\.json .*for a folder there is History\.load",
    ):
        History.from_json(text)


def test_no_epoch_has_no_best():
    with pytest.raises(ValueError, match="no epoch has finished"):
        _ = History().best
