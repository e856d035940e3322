"""Arguments that do not fit get one sentence, before any work."""

import copy
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from conftest import IMAGES, LABELS, ROOT, TinyNet, fit
from eva_utils.utils import checks
from eva_utils.utils.checkpoint import load_weights
from eva_utils.utils.data import load_data
from eva_utils.utils.lock import locked


def test_a_model_or_optimizer_that_cannot_train_is_refused(tiny_net):
    with torch.inference_mode():
        inferred = TinyNet()
    with pytest.raises(ValueError, match=r"made inside torch\.inference_mode\(\) or on the meta device"):
        fit(inferred, [(IMAGES, LABELS)])
    with pytest.raises(ValueError, match=r"lazy layers that have seen no image.*run a batch through it first"):
        fit(nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), [(IMAGES, LABELS)])
    optimizer = torch.optim.SGD(tiny_net.conv.parameters(), lr=0.1)
    tiny_net.conv.requires_grad_(False)
    with pytest.raises(ValueError, match="every parameter of the optimizer is frozen"):
        fit(tiny_net, [(IMAGES, LABELS)], optimizer=optimizer)


@pytest.mark.parametrize("value", [0.5, "3", None, True, -1])
def test_whole_numbers(value):
    with pytest.raises(ValueError, match=f"epochs is a whole number from 1 up, not {value!r}"):
        checks.check_whole("epochs", value, 1)


def test_whole_numbers_have_a_highest(tiny_net):
    assert checks.check_whole("size", 10_000, 8, 10_000) == 10_000
    with pytest.raises(ValueError, match="n is a whole number of at most 2147483647, not 2147483648"):
        checks.check_whole("n", 2**31, 1)
    with pytest.raises(ValueError, match="size is a whole number of at most 10000, not 10001"):
        load_data("no such folder", size=10_001)
    with pytest.raises(ValueError, match="epochs is a whole number of at most 2147483647, not 2147483648"):
        fit(tiny_net, [(IMAGES, LABELS)], epochs=2**31)


@pytest.mark.parametrize("value", [0, -0.1, float("nan"), float("inf"), "0.1", None, True])
def test_real_numbers_above_zero(value):
    with pytest.raises(ValueError, match="lr is a number above 0, not "):
        checks.check_real("lr", value, 0, open_low=True)


def test_real_numbers_below_a_bound():
    checks.check_real("momentum", 0, 0, 1)
    with pytest.raises(ValueError, match=r"momentum is a number from 0 and below 1, not 1\.0"):
        checks.check_real("momentum", 1.0, 0, 1)


def test_a_folder_in_use_is_refused_and_free_again_when_its_process_dies(tmp_path):
    pytest.importorskip("fcntl")
    script = (
        "import sys, time; from pathlib import Path; from eva_utils.utils.lock import locked\n"
        f"with locked(Path({str(tmp_path)!r})):\n    print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=r"another run is training in .*; wait for it, stop it, or choose another"):
            fit(TinyNet(), [(IMAGES, LABELS)], checkpoint=tmp_path)
    finally:
        other.kill()
        other.communicate()
    assert len(fit(TinyNet(), [(IMAGES, LABELS)], checkpoint=tmp_path)) == 1


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file.run cannot be written to \(Not a directory\); choose another folder"):
        fit(TinyNet(), [(IMAGES, LABELS)], checkpoint=tmp_path / "file" / "run")


def test_gradients_that_are_switched_off_are_noticed(tiny_net):
    with torch.no_grad(), pytest.raises(ValueError, match=r"gradients are switched off here, by torch\.no_grad\(\)"):
        fit(tiny_net, [(IMAGES, LABELS)])


def test_names_and_classes_in_place_of_objects_are_refused(tiny_net):
    with pytest.raises(TypeError, match="LBFGS runs the model several times a step"):
        fit(tiny_net, [(IMAGES, LABELS)], optimizer=torch.optim.LBFGS(tiny_net.parameters()))
    with pytest.raises(TypeError, match=r"optimizer is a torch optimizer such as SGD.*, not 'adam'"):
        fit(tiny_net, [(IMAGES, LABELS)], optimizer="adam")
    with pytest.raises(TypeError, match=r"scheduler is one of torch\.optim\.lr_scheduler, built with the optimizer"):
        fit(tiny_net, [(IMAGES, LABELS)], optimizer=torch.optim.SGD(tiny_net.parameters()), scheduler="step")


def test_parameters_that_the_optimizer_does_not_know_are_named(tiny_net):
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.1)
    tiny_net.fc = nn.Linear(6, 4)  # after the optimizer
    with pytest.warns(UserWarning, match="2 of the model's 6 parameters are not in the optimizer, as 'fc.weight'"):
        fit(tiny_net, [(IMAGES, LABELS)], optimizer=optimizer)
    tiny_net.fc.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "2 of the model's")
        fit(tiny_net, [(IMAGES, LABELS)], optimizer=optimizer)


def test_a_model_that_trains_on_is_warned_of_and_the_record_says_so(tiny_net, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = fit(tiny_net, [(IMAGES, LABELS)], checkpoint=tmp_path / "run")
        longer = fit(tiny_net, [(IMAGES, LABELS)], checkpoint=tmp_path / "run", resume=True, epochs=2)
        fit(TinyNet(), [(IMAGES, LABELS)])
    assert not first.settings["trained_before"] and not longer.settings["trained_before"]
    for model in (copy.deepcopy(tiny_net), load_weights(TinyNet(), tmp_path / "run"), tiny_net):
        with pytest.warns(UserWarning, match="has the weights of an earlier run.*build a new model"):
            again = fit(model, [(IMAGES, LABELS)])
        assert again.settings["trained_before"]
    averaged = TinyNet()
    start = copy.deepcopy(averaged.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(averaged, [(IMAGES, LABELS)], ema=0.5)
        trained = copy.deepcopy(averaged)
        averaged.load_state_dict(start)  # as one who compares optimizers does
        fit(averaged, [(IMAGES, LABELS)])
    with pytest.warns(UserWarning, match="has the weights of an earlier run"):
        fit(trained, [(IMAGES, LABELS)])


def test_copying_the_run_keeps_its_lock(tmp_path):
    pytest.importorskip("fcntl")
    with locked(tmp_path / "run"):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        with pytest.raises(ValueError, match="another run is training in"), locked(tmp_path / "run"):
            pass
    with locked(tmp_path / "run"):
        pass
