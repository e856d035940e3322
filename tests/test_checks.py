"""Arguments that do not fit get one sentence, before any work."""

import copy
import os
import re
import shutil
import subprocess
import sys
import warnings
import weakref
from types import SimpleNamespace

import pytest
import torch
from conftest import IMAGES, LABELS, QUIET, ROOT, TinyNet, fit, random_batches
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler

from eva_utils import main as engine
from eva_utils.utils import checks, parts, schedule_checks
from eva_utils.utils.checkpoint import load_weights
from eva_utils.utils.data import load_data
from eva_utils.utils.lock import locked
from eva_utils.utils.lr_finder import lr_find
from eva_utils.utils.optim import one_cycle


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


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        MemoryError(),
    ],
)
def test_lack_of_memory_names_the_batch_size_and_a_smaller_one(error, tiny_net, tmp_path):
    held = []

    class Greedy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.calls = tiny_net, 0

        def forward(self, x):
            self.calls += self.training
            if self.calls == 4:
                activation = x * 1
                held.append(weakref.ref(activation))
                raise error
            return self.net(x)

    loader = DataLoader(random_batches(24), batch_size=8)
    with pytest.raises(
        type(error), match="epoch 2: out of memory with a batch of 8 images; try batch_size=4"
    ) as caught:
        engine.fit(Greedy(), loader, loader, epochs=3, checkpoint=tmp_path, **QUIET)
    assert len(caught.value.history) == 1 and (tmp_path / "epoch-0001.pt").exists()
    assert held[0]() is None  # though the error is kept: a notebook does so, and the batch would stay on the GPU


KILLED_WORKER = """
import os, signal, sys
import torch
from torch.utils.data import DataLoader, Dataset
from eva_utils.main import fit

class Killed(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        if index == 9 and os.environ.get("EPOCH") == "2":
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.ones(3, 8, 8), index % 4

def log(line):
    if line.startswith("EPOCH"):
        os.environ["EPOCH"] = line.split()[-1]

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))
loader = DataLoader(Killed(), batch_size=4, num_workers=1)
tests = DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 3, 8, 8), torch.arange(4)), batch_size=4)
try:
    fit(model, loader, tests, epochs=3, checkpoint=sys.argv[1], device="cpu", precision="float32", log=log)
except RuntimeError as error:
    print(len(error.history), str(error).splitlines()[0])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_worker_ends_the_run_and_keeps_the_finished_epochs(tmp_path):
    """In a process of its own: torch tells of the dead worker by a signal, which might reach the next test."""
    command = [sys.executable, "-c", KILLED_WORKER, str(tmp_path / "run")]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # where the dead worker leaves its socket
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert re.match(r"1 .*worker.*(killed|exited unexpectedly)", done.stdout), done.stdout + done.stderr
    assert (tmp_path / "run" / "epoch-0001.pt").exists()


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


def test_a_one_cycle_schedule_that_is_used_up_is_refused(tiny_net):
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=4)
    options = {"optimizer": optimizer, "scheduler": scheduler, "epochs": 4}
    fit(tiny_net, [(IMAGES, LABELS)], **options)
    with pytest.raises(
        ValueError, match="OneCycleLR has 0 of its 4 steps left and the run takes 4; build optimizer and"
    ):
        fit(tiny_net, [(IMAGES, LABELS)], **options)


def test_the_rate_that_a_finished_one_cycle_leaves_is_refused(tiny_net):
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.1)
    scheduler = one_cycle(optimizer, 2, 4, 0.1, 0.01, peak_epoch=1)
    fit(tiny_net, [(IMAGES, LABELS)] * 4, optimizer=optimizer, scheduler=scheduler, epochs=2)
    assert optimizer.param_groups[0]["lr"] < 0  # torch goes on along the line
    with pytest.raises(
        ValueError, match=r"the optimizer's learning rate is -0\.0.*; build optimizer and scheduler anew"
    ):
        fit(tiny_net, [(IMAGES, LABELS)], optimizer=optimizer)


def test_a_one_cycle_schedule_inside_another_is_refused_where_it_would_not_end(tiny_net):
    optimizer, loader = torch.optim.SGD(tiny_net.parameters(), lr=0.1, momentum=0.9), [(IMAGES, LABELS)] * 3

    def chained(steps):
        parts = [torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)]
        parts = [torch.optim.lr_scheduler.ChainedScheduler(parts)]
        return torch.optim.lr_scheduler.ChainedScheduler(parts)

    with pytest.raises(
        ValueError, match=r"a OneCycleLR of 6 steps inside ChainedScheduler would be stepped .* 2 times"
    ):
        fit(tiny_net, loader, optimizer=optimizer, scheduler=chained(6), epochs=2)
    assert len(fit(tiny_net, loader, optimizer=optimizer, scheduler=chained(2), epochs=2)) == 2


def test_a_one_cycle_schedule_that_was_not_passed_is_noticed(tiny_net):
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.1, momentum=0.9)
    one_cycle(optimizer, 2, 4, 0.1, 0.01, peak_epoch=1)
    with pytest.raises(
        ValueError, match=r"a OneCycleLR was built on this optimizer and not passed, .* pass scheduler="
    ):
        fit(tiny_net, [(IMAGES, LABELS)] * 4, optimizer=optimizer, epochs=2)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    assert len(fit(tiny_net, [(IMAGES, LABELS)] * 4, optimizer=optimizer, scheduler=plateau, epochs=2)) == 2


def test_the_rate_of_a_schedule_that_was_not_passed_is_warned_of(tiny_net):
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.1)
    rising = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=5)
    with pytest.warns(UserWarning, match="rate is 0.001, and a schedule that is not passed was built on it at 0.1;"):
        fit(tiny_net, [(IMAGES, LABELS)], optimizer=optimizer)
    optimizer.param_groups[0]["lr"] = 0.1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the optimizer's rate is")
        fit(tiny_net, [(IMAGES, LABELS)], optimizer=optimizer)
        fit(tiny_net, [(IMAGES, LABELS)], optimizer=optimizer, scheduler=rising)


def test_gradients_that_are_switched_off_are_noticed(tiny_net):
    with torch.no_grad(), pytest.raises(ValueError, match=r"gradients are switched off here, by torch\.no_grad\(\)"):
        fit(tiny_net, [(IMAGES, LABELS)])


def test_a_last_batch_of_one_image_is_named_where_batch_normalization_cannot_take_it():
    model = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Flatten())
    loader = DataLoader(random_batches(9), batch_size=8)
    with pytest.raises(ValueError, match=r"^epoch 1: batch normalization has a batch of one image.*another batch_size"):
        engine.fit(model, loader, [(IMAGES, LABELS)], epochs=1, **QUIET)


def test_lack_of_memory_on_the_test_images_is_explained(tiny_net):
    def greedy(module, images):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    tiny_net.register_forward_pre_hook(greedy)
    loader = DataLoader(random_batches(16), batch_size=8)
    with pytest.raises(RuntimeError, match="test batch 0: out of memory with a batch of 8 images; try batch_size=4"):
        engine.fit(tiny_net, loader, loader, epochs=1, **QUIET)


def test_a_one_cycle_schedule_that_does_not_end_is_warned_of_and_can_go_on(tmp_path):
    def run(model, epochs, **options):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9)
        fit(model, [(IMAGES, LABELS)], optimizer=optimizer, scheduler=scheduler, epochs=epochs, **options)
        return model.state_dict()

    start = TinyNet()
    with pytest.warns(UserWarning, match="has 9 steps left and the run takes 4, so the rate does not come down in it"):
        run(copy.deepcopy(start), 4, seed=1, checkpoint=tmp_path)
    resumed = run(copy.deepcopy(start), 9, resume=True, checkpoint=tmp_path)
    whole = run(copy.deepcopy(start), 9, seed=1)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_names_and_classes_in_place_of_objects_are_refused(tiny_net):
    with pytest.raises(TypeError, match="LBFGS runs the model several times a step"):
        fit(tiny_net, [(IMAGES, LABELS)], optimizer=torch.optim.LBFGS(tiny_net.parameters()))
    with pytest.raises(TypeError, match=r"optimizer is a torch optimizer such as SGD.*, not 'adam'"):
        fit(tiny_net, [(IMAGES, LABELS)], optimizer="adam")
    with pytest.raises(TypeError, match=r"scheduler is one of torch\.optim\.lr_scheduler, built with the optimizer"):
        fit(tiny_net, [(IMAGES, LABELS)], optimizer=torch.optim.SGD(tiny_net.parameters()), scheduler="step")


def test_a_wrong_test_loader_is_refused_before_training(tiny_net):
    lines = []
    for batch, message in (
        ((IMAGES, LABELS + 1), "^test batch 0 has labels from 1 to 4 and the model 4 classes"),
        ((IMAGES, LABELS.float()), r"the labels of test batch 0 are float32 \(8,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.fit(tiny_net, [(IMAGES, LABELS)], [batch], epochs=1, **{**QUIET, "log": lines.append})
    assert lines == []


@pytest.mark.parametrize(
    ("length", "warmup", "message"),
    [
        (50, 0, r"T_max=50\) steps once an epoch, so the rate hardly falls.*it is T_max=5"),
        (15, 0, r"T_max=15\) steps once an epoch, so the rate hardly falls.*it is T_max=5"),  # 5 epochs of 3 batches
        (2, 0, r"T_max=2\) .* rises again after 2 of the 5 epochs.*it is T_max=5"),
        (5, 0, None),
        (4, 0, None),
        (3, 2, None),
        (10, 0, None),  # more epochs may follow
    ],
)
def test_a_cosine_of_another_length_is_warned_of(length, warmup, message, tiny_net, recwarn):
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=length)
    schedule_checks.warn_of_cosine(cosine, 5, warmup, 3)
    assert len(recwarn) == (message is not None)
    assert message is None or re.search(message, str(recwarn[0].message))


def test_a_rate_of_0_is_refused_unless_the_schedule_raises_it(tiny_net):
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.0)
    for plateau in (None, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)):
        with pytest.raises(ValueError, match="learning rate is 0, so nothing would be learnt"):
            fit(tiny_net, [(IMAGES, LABELS)], optimizer=optimizer, scheduler=plateau)
    assert lr_find(tiny_net, [(IMAGES, LABELS)] * 16, optimizer, device="cpu").rates  # which sets rates of its own
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.1)
    rising = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: epoch)
    assert optimizer.param_groups[0]["lr"] == 0
    assert len(fit(tiny_net, [(IMAGES, LABELS)], epochs=2, optimizer=optimizer, scheduler=rising)) == 2


def test_parameters_that_the_optimizer_does_not_know_are_named(tiny_net):
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.1)
    tiny_net.fc = nn.Linear(6, 4)  # after the optimizer
    with pytest.warns(UserWarning, match="2 of the model's 6 parameters are not in the optimizer, as 'fc.weight'"):
        fit(tiny_net, [(IMAGES, LABELS)], optimizer=optimizer)
    tiny_net.fc.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "2 of the model's")
        fit(tiny_net, [(IMAGES, LABELS)], optimizer=optimizer)


def test_loaders_without_length_or_batches_are_refused(tiny_net):
    class Endless(IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(TypeError, match=r"train_loader \(DataLoader\) has no length; its dataset has none"):
        fit(tiny_net, DataLoader(Endless()))
    with pytest.raises(TypeError, match=r"train_loader \(NoneType\) has no length; if it was data\.validation"):
        fit(tiny_net, None)
    with pytest.raises(TypeError, match=r"\(SimpleNamespace\) has no length; pass its \.train or \.test"):
        fit(tiny_net, SimpleNamespace(train=[(IMAGES, LABELS)], test=[(IMAGES, LABELS)]))
    with pytest.raises(TypeError, match=r"train_loader \(list_iterator\) can be passed over only once"):
        fit(tiny_net, iter([(IMAGES, LABELS)]))
    with pytest.raises(ValueError, match="loader is empty; it must yield at least one batch"):
        engine.test(tiny_net, [])


class Rewinding:
    """An iterator that begins anew each time it is asked for one."""

    def __len__(self):
        return 2

    def __iter__(self):
        self.left = 2
        return self

    def __next__(self):
        if not self.left:
            raise StopIteration
        self.left -= 1
        return IMAGES, LABELS


def test_an_iterator_that_begins_anew_and_parts_of_one_dataset_are_loaders(tiny_net):
    pairs = [(image, int(label)) for image, label in zip(IMAGES, LABELS, strict=True)]
    halves = [DataLoader(pairs, batch_size=4, sampler=SubsetRandomSampler(range(n, n + 4))) for n in (0, 4)]
    lists = [DataLoader(list(pairs), batch_size=4) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for train, test in ((Rewinding(), Rewinding()), halves, lists):
            assert len(engine.fit(TinyNet(), train, test, epochs=2, **QUIET)) == 2


SAMPLES = random_batches(8)
IN_ORDER = DataLoader(SAMPLES, batch_size=8)
SHUFFLED = DataLoader(SAMPLES, batch_size=8, shuffle=True)


def test_loaders_that_seem_swapped_are_warned_of(tiny_net):
    data = load_data("shapes", limit=10)
    net = TinyNet(10)
    for model, train, test in ((tiny_net, IN_ORDER, SHUFFLED), (net, data.test, data.train)):
        with pytest.warns(UserWarning, match=r"seem to be swapped; .* fit\(model, data\.train, data\.test\)"):
            engine.fit(model, train, test, epochs=1, **QUIET)
    drawn = DataLoader(SAMPLES, batch_sampler=[[0, 3], [5, 1]])  # an order that is not known
    ordered = DataLoader(random_batches(8, seed=4), batch_size=8)
    others = DataLoader(random_batches(8, seed=4), batch_size=8, shuffle=True)
    for train, test in ((others, IN_ORDER), (IN_ORDER, ordered), (drawn, others)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            engine.fit(TinyNet(), train, test, epochs=1, **QUIET)


def test_images_that_are_trained_and_tested_on_are_warned_of(tiny_net):
    data = load_data("shapes", limit=10)
    runs = ((TinyNet(10), data.train, data.train), (tiny_net, IN_ORDER, IN_ORDER))
    for model, train, test in runs:
        with pytest.warns(UserWarning, match="tested on the images it trains on.*pass data.test"):
            engine.fit(model, train, test, epochs=1, **QUIET)


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


def test_of_a_loader_is_known_whether_it_shuffles():
    loaders = {
        True: [SHUFFLED, DataLoader(SAMPLES, batch_size=None, shuffle=True)],
        False: [IN_ORDER, DataLoader(SAMPLES, batch_size=None)],
        None: [[(IMAGES, LABELS)], DataLoader(SAMPLES, batch_sampler=[[0, 3], [5, 1]])],
    }
    for known, those in loaders.items():
        assert [parts.is_shuffled(loader) for loader in those] == [known] * 2


@pytest.mark.parametrize("rate", [float("nan"), float("inf")])
def test_a_rate_that_is_not_finite_is_refused(rate, tiny_net):
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=rate)
    with pytest.raises(ValueError, match=rf"the optimizer's learning rates are \[{rate}\]; give finite ones"):
        fit(tiny_net, [(IMAGES, LABELS)], optimizer=optimizer)


def test_copying_the_run_keeps_its_lock(tmp_path):
    pytest.importorskip("fcntl")
    with locked(tmp_path / "run"):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        with pytest.raises(ValueError, match="another run is training in"), locked(tmp_path / "run"):
            pass
    with locked(tmp_path / "run"):
        pass
