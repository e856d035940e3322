"""What is no report of the run is not written, and what is one's own is never written over."""

import dataclasses
import json
import re

import pytest
import torch
from PIL import Image
from torch import nn
from torch.optim import SGD

from conftest import TinyNet
from eva_utils import main as engine
from eva_utils.utils.data import load_data
from eva_utils.utils.history import History
from eva_utils.utils.lock import locked
from eva_utils.utils.report import write_report
from eva_utils.utils.verified import save_verified
from reporting import refused, train_one


@pytest.fixture(scope="module")
def data():
    return load_data("shapes", limit=80, recipe="eva8_s7", batch_size=32)


def test_an_unfinished_run_is_refused(tmp_path, data):
    def stop(line):
        if line == "EPOCH: 2":
            raise KeyboardInterrupt

    model, _ = train_one(tmp_path / "run", data, log=stop)
    refused(tmp_path / "run", model, data, "has 1 of its 2 epochs; finish it with resume='auto'")


def test_a_run_that_is_still_going_is_refused(run, data):
    folder, model, _ = run
    with locked(folder):
        refused(folder, model, data, "another run is training in")


def test_a_folder_without_a_run_is_refused(tmp_path, data):
    refused(tmp_path / "none", TinyNet(10), data, "holds no finished epoch", kind=FileNotFoundError)
    with pytest.raises(TypeError, match=r"run is the folder that fit\(checkpoint=...\) wrote, not History"):
        write_report(History(), TinyNet(10), data)


def test_a_record_edited_by_hand_is_refused(run, data, undrawn):
    folder, model, _ = run
    path = folder / "history.json"
    record = json.loads(path.read_text())
    record["rows"][0]["test_accuracy"] = 99.0
    path.write_text(json.dumps(record))
    refused(folder, model, data, r"history\.json is not what the run recorded")
    train_one(folder, data, resume="auto")  # as the message says
    write_report(folder, model, data)


def test_weights_that_do_not_score_what_the_record_says_are_refused(run, data):
    folder, model, _ = run
    other = TinyNet(10)
    nn.init.zeros_(other.fc.weight)
    with torch.no_grad():
        other.fc.bias.copy_(torch.arange(10.0))
    save_verified(folder / "best.pt", other.state_dict())
    refused(folder, model, data, r"best\.pt gets 8 of 80 images right and the record says")


def test_damaged_weights_are_refused(run, data):
    folder, model, _ = run
    path = folder / "best.pt"
    path.write_bytes(path.read_bytes()[:-100])
    refused(folder, model, data, "is damaged")


def test_another_model_is_refused(run, data):
    refused(run[0], TinyNet(4), data, "does not fit this TinyNet")


def test_other_data_is_refused(run):
    folder, model, _ = run
    refused(folder, model, load_data("shapes", limit=60), r"trained on \(80 images, and these are 60\); load the data")
    other = load_data("shapes", limit=80, seed=1)
    refused(folder, model, other, "data.train is not what the run was trained on; load the data as it was")


def test_other_test_images_are_refused(run, data):
    folder, model, _ = run
    other = dataclasses.replace(data, test=load_data("shapes", limit=60).test)
    refused(folder, model, other, "the run was tested on other images than data's; load the data as it was")


def test_a_damaged_last_epoch_is_refused(run, data):
    folder, model, _ = run
    (folder / "epoch-0002.pt").write_bytes(b"damaged")
    refused(folder, model, data, r"the last checkpoint is damaged, so the run is not whole .*; resume it first")


def test_an_unknown_brief_is_refused(run, data):
    refused(run[0], run[1], data, "unknown brief 'eva6': choose one of eva6_s8, eva8_s7", brief="eva6")


def test_things_that_are_no_model_and_no_data_are_refused(run, data):
    refused(run[0], "resnet18", data, "model is a torch.nn.Module, not str", kind=TypeError)
    refused(run[0], run[1], data.test, "data is what load_data returned; Loader has no train", kind=TypeError)


def test_a_readme_of_ones_own_is_never_written_over(run, data, undrawn):
    folder, model, _ = run
    (folder / "README.md").write_text("my thesis")
    refused(folder, model, data, r"README\.md was edited or written by hand; rename it")
    (folder / "README.md").unlink()
    path = write_report(folder, model, data).path
    path.write_text(path.read_text(encoding="utf-8").replace("epoch", "EPOCH", 1), encoding="utf-8")
    refused(folder, model, data, "was edited or written by hand")


def test_a_figure_of_ones_own_or_edited_is_never_written_over(run, data):
    folder, model, _ = run
    (folder / "figures").mkdir()
    curves = folder / "figures" / "curves.png"
    curves.write_bytes(b"mine")
    refused(folder, model, data, r"curves\.png was edited or written by hand")
    curves.unlink()
    write_report(folder, model, data)
    picture = Image.open(curves)
    picture.putpixel((5, 5), (255, 0, 0, 255))
    picture.save(curves)
    refused(folder, model, data, r"curves\.png was edited or written by hand")


def test_a_file_where_the_figures_go_is_named(run, data):
    folder, model, _ = run
    (folder / "figures").write_text("mine")
    refused(folder, model, data, r"figures is a file, where the report's figures go; rename it")


def test_a_record_of_ones_own_is_never_written_over(run, data):
    folder, model, _ = run
    (folder / "report.pt").write_bytes(b"mine")
    refused(folder, model, data, r"report\.pt is damaged or was not saved by this package")


def test_sealed_figures_are_sound_pictures(run, data):
    folder, model, _ = run
    write_report(folder, model, data)
    for path in (folder / "figures").iterdir():
        with Image.open(path) as picture:
            picture.load()
            assert re.fullmatch("[0-9a-f]{64}", picture.text["eva_utils sha256"])


def test_line_ends_do_not_break_the_seal(run, data, undrawn):
    folder, model, _ = run
    path = write_report(folder, model, data).path
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    write_report(folder, model, data)
    assert b"\r" not in path.read_bytes()


@pytest.mark.parametrize("files", [0, 1, 6, 7])
def test_a_report_that_was_interrupted_is_written_by_the_next(run, data, monkeypatch, files):
    """After 0 to 7 of its files, with the temporary file of the next left behind."""
    folder, model, _ = run
    written = []

    def stop(path, content):
        if len(written) == files:
            (path.parent / f".{path.name}.1.tmp").write_bytes(content[:10])
            raise KeyboardInterrupt
        written.append(path)
        path.write_bytes(content)

    with monkeypatch.context() as patch:
        patch.setattr("eva_utils.utils.page.write_atomic", stop)
        if files < 7:
            with pytest.raises(KeyboardInterrupt):
                write_report(folder, model, data)
        else:
            write_report(folder, model, data)
    assert len(written) == files
    write_report(folder, model, data)
    assert len(list((folder / "figures").iterdir())) == 6


def test_a_run_ended_early_is_reported_as_the_message_says(tmp_path, data, undrawn):
    def stop(line):
        if line == "EPOCH: 3":
            raise KeyboardInterrupt

    model, _ = train_one(tmp_path / "run", data, epochs=5, log=stop)
    refused(tmp_path / "run", model, data, "or end it there with epochs=2")
    train_one(tmp_path / "run", data, epochs=2, resume="auto")
    assert write_report(tmp_path / "run", model, data).record["results"]["last"]["epoch"] == 2


def test_more_outputs_than_classes_are_refused(tmp_path, data):
    model = TinyNet(15)
    fit = {"optimizer": SGD(model.parameters(), lr=0.01), "checkpoint": tmp_path / "run", "log": None}
    with pytest.warns(UserWarning, match="the model has 15 outputs and the data 10 classes"):
        engine.fit(model, data.train, data.test, epochs=1, **fit)
    refused(tmp_path / "run", model, data, "the model has 15 outputs and the data 10 classes")
