"""An error that ends a run says what to change."""

import os
import re
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from conftest import IMAGES, LABELS, QUIET, ROOT, random_batches
from eva_utils import main as engine
from eva_utils.utils.lr_finder import lr_find

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


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
        RuntimeError("Invalid buffer size: 9.75 GB"),
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


def test_lack_of_memory_in_an_epochs_test_names_the_test_loaders_batch_size(tiny_net):
    tested = []

    def greedy(module, images):
        tested.append(not module.training)
        if sum(tested) == 2:  # the first is a look at the outputs before the training
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")

    tiny_net.register_forward_pre_hook(greedy)
    loaders = [DataLoader(random_batches(24), batch_size=size) for size in (8, 24)]
    with pytest.raises(torch.OutOfMemoryError, match="epoch 1: out of memory with a batch of 24 images; try batch_s"):
        engine.fit(tiny_net, *loaders, epochs=1, **QUIET)


def test_lack_of_memory_in_the_finder_names_the_batch_size_and_lets_go_of_the_batch(tiny_net):
    held = []

    class Greedy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny_net

        def forward(self, x):
            activation = self.net(x)
            held.append(weakref.ref(activation))
            if len(held) == 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
            return activation

    loader, optimizer = DataLoader(random_batches(64), batch_size=4), torch.optim.SGD(tiny_net.parameters(), lr=0.1)
    with pytest.raises(torch.OutOfMemoryError, match="lr_find: out of memory with a batch of 4 images") as caught:
        lr_find(Greedy(), loader, optimizer, device="cpu")
    assert caught.value and [activation() for activation in held] == [None] * 3


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_worker_ends_the_run_and_keeps_the_finished_epochs(tmp_path):
    """In a process of its own: torch tells of the dead worker by a signal, which might reach the next test."""
    command = [sys.executable, "-c", KILLED_WORKER, str(tmp_path / "run")]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # where the dead worker leaves its socket
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert re.match(r"1 .*worker.*(killed|exited unexpectedly)", done.stdout), done.stdout + done.stderr
    assert (tmp_path / "run" / "epoch-0001.pt").exists()


def test_a_parameter_without_a_gradient_is_explained_where_several_processes_wait_for_it(tiny_net):
    seen = []

    def waits(module, images):
        seen.append(module.training)
        if sum(seen) == 2:  # torch notices in the second step
            raise RuntimeError("Expected to have finished reduction ... `find_unused_parameters=True` to ...")

    tiny_net.register_forward_pre_hook(waits)
    with pytest.raises(RuntimeError, match=r"^epoch 1: several processes wait for a gradient of every parameter"):
        engine.fit(tiny_net, [(IMAGES, LABELS)] * 2, [(IMAGES, LABELS)], epochs=1, **QUIET)


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
