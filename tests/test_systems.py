"""What Windows, macOS and Apple's GPUs do otherwise, as far as it shows here."""

import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from conftest import IMAGES, LABELS, TinyNet, fit
from eva_utils import main as engine
from eva_utils.models import create_model
from eva_utils.utils import compiling, figures, lock, shapes, verified
from eva_utils.utils.forward import use_channels_last


@pytest.mark.parametrize(("encoding", "bar"), [("cp1252", "|####"), ("cp437", "|####"), ("utf-8", "|████")])
def test_the_bar_is_drawn_of_what_the_output_can_write(encoding, bar, tiny_net, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, write_through=True))
    engine.fit(tiny_net, [(IMAGES, LABELS)], [(IMAGES, LABELS)], epochs=1, device="cpu")
    assert bar in written.getvalue().decode(encoding)


def test_labels_of_the_shapes_are_int64_where_numpys_whole_numbers_are_not(monkeypatch):
    arange = np.arange
    monkeypatch.setattr(np, "arange", lambda *bounds, dtype=np.int32: arange(*bounds, dtype=dtype))
    monkeypatch.setitem(shapes.COUNTS, "test", 20)
    assert shapes.make_shapes("test").labels.dtype == torch.int64


def test_images_to_whiten_by_change_device_and_type_in_two_steps(monkeypatch):
    """MPS has no float64, and some releases of torch copy nothing if asked for both at once."""
    move = torch.Tensor.to

    def to(tensor, *args, **options):
        assert len([arg for arg in args if not isinstance(arg, bool)]) + len(options) < 2
        return move(tensor, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", to)
    model = create_model("whitened_resnet", norm="layer")
    before = model.whitening.weight.clone()
    model.whiten(torch.randn(100, 3, 9, 9))
    assert not torch.equal(before, model.whitening.weight)


@pytest.mark.parametrize(("device", "last"), [("cpu", True), ("cuda", True), ("mps", False)])
def test_weights_do_not_lie_channels_last_on_mps(device, last):
    model = TinyNet()
    use_channels_last(model, torch.device(device), torch.bfloat16)
    assert model.conv.weight.is_contiguous(memory_format=torch.channels_last) == last


def test_a_lock_of_windows_holds_too(tmp_path, monkeypatch):
    held = []

    def locking(file, mode, count):
        assert (mode, count) == ("at once", 1)
        if held:
            raise PermissionError(13, "Permission denied")
        held.append(file)

    monkeypatch.setattr(lock, "fcntl", None)
    monkeypatch.setattr(lock, "msvcrt", SimpleNamespace(LK_NBLCK="at once", locking=locking), raising=False)
    with lock.locked(tmp_path):
        assert held
        with pytest.raises(ValueError, match="another run is training in"):
            fit(TinyNet(), [(IMAGES, LABELS)], checkpoint=tmp_path)


def test_a_file_system_that_allows_no_locks_is_trained_on_without_one(tmp_path, monkeypatch):
    pytest.importorskip("fcntl")

    def flock(file, operation):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    assert len(fit(TinyNet(), [(IMAGES, LABELS)], checkpoint=tmp_path)) == 1


def named(name):
    """The module os of a system of that name; pathlib keeps its own."""
    return SimpleNamespace(name=name, getpid=os.getpid, fsync=os.fsync)


def refuse(times, monkeypatch):
    """Let Windows hold a file for so many attempts to rename over it, and return the seconds that are waited."""
    replace, waits, left = Path.replace, [], [PermissionError(13, "Access is denied")] * times

    def held(path, target):
        if left:
            raise left.pop()
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", held)
    monkeypatch.setattr(verified.time, "sleep", waits.append)
    return waits


def test_a_file_that_windows_holds_for_a_moment_is_waited_for(tmp_path, monkeypatch):
    waits = refuse(5, monkeypatch)
    monkeypatch.setattr(verified, "os", named("nt"))
    verified.write_atomic(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new" and sum(waits) == 2


@pytest.mark.parametrize(("system", "times"), [("nt", 6), ("posix", 1)])
def test_a_file_that_stays_held_or_is_not_ours_is_an_error(system, times, tmp_path, monkeypatch):
    waits = refuse(times, monkeypatch)
    monkeypatch.setattr(verified, "os", named(system))
    with pytest.raises(PermissionError):
        verified.write_atomic(tmp_path / "file", b"new")
    assert len(waits) == times - 1 and not list(tmp_path.iterdir())


def test_an_old_epoch_that_is_held_goes_with_the_next(tmp_path, monkeypatch):
    unlink, held = Path.unlink, []

    def refuse_once(path, missing_ok=False):
        if path.name == "epoch-0001.pt" and not held:
            held.append(path)
            raise PermissionError(13, "Access is denied")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse_once)
    assert len(fit(TinyNet(), [(IMAGES, LABELS)], checkpoint=tmp_path, epochs=4)) == 4
    assert held and sorted(path.name for path in tmp_path.glob("epoch-*")) == ["epoch-0003.pt", "epoch-0004.pt"]


def test_a_figure_opens_no_window(monkeypatch):
    monkeypatch.setattr(plt, "new_figure_manager", lambda *args, **options: pytest.fail("Tk may be broken"))
    figure, ((left, right),) = figures.new_figure(1, 2, 2.0, ratios=(1, 3))
    assert len(figures.png_bytes(figure)) > 1000 and right.get_position().width > 2 * left.get_position().width


@pytest.mark.parametrize("kernel", [True, False])
def test_a_notebook_of_an_older_ipython_is_told_how_to_show_figures(kernel, monkeypatch):
    """There the import of pyplot does not: it waits for a figure of pyplot's own."""
    backend = "matplotlib_inline.backend_inline"
    pytest.importorskip("matplotlib_inline")
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
    if not kernel:
        monkeypatch.delitem(sys.modules, "ipykernel")
    monkeypatch.delitem(sys.modules, backend, raising=False)
    figures.new_figure(1, 1, 2.0)
    assert (backend in sys.modules) == kernel


def test_figures_need_no_inline_backend_in_a_kernel(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "matplotlib_inline", None)
    monkeypatch.delitem(sys.modules, "matplotlib_inline.backend_inline", raising=False)
    figure, _ = figures.new_figure(1, 1, 2.0)
    assert len(figures.png_bytes(figure)) > 1000


@pytest.mark.parametrize(
    ("system", "compiler"),
    [
        ("linux", r"install a C\+\+ compiler such as g\+\+, or leave compile out"),
        ("win32", r"install a C\+\+ compiler such as cl of Visual Studio's build tools, or leave compile out"),
        ("darwin", r"install a C\+\+ compiler such as clang, by xcode-select --install, or leave compile out"),
    ],
)
def test_the_compiler_that_is_missing_is_named_as_the_system_calls_it(system, compiler, tiny_net, monkeypatch):
    def no_compiler(function, **options):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setattr(compiling.sys, "platform", system)
    with pytest.raises(ValueError, match=compiler):
        compiling.check_compile(True, torch.device("cpu"))
