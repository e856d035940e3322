"""Compiled and wrapped models are given back as they were."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from conftest import QUIET
from eva_utils import main as engine
from eva_utils.utils.compiling import check_compile, compiled
from eva_utils.utils.runtime import seed_everything
from plain import assert_same_weights, new_loaders


def _compile(model, seen, options):
    seen.append(options)
    model._compiled_call_impl = torch.compile(model._call_impl)


@pytest.mark.parametrize("mode", [True, "default"])
def test_a_compiled_run_is_given_back_as_it_was(mode, tiny_net, monkeypatch):
    """With the compiler that only traces, which needs no C++ compiler."""
    compile_plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: compile_plain(model, backend="eager"))
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: _compile(self, seen, options))
    seen = []
    plain = copy.deepcopy(tiny_net)
    seed_everything(1)
    expected = engine.fit(plain, *new_loaders(), epochs=2, **QUIET)
    seed_everything(1)
    history = engine.fit(tiny_net, *new_loaders(), epochs=2, compile=mode, **QUIET)
    assert seen == [{"mode": None if mode is True else mode}] and history.settings["compile"] == mode
    assert tiny_net._compiled_call_impl is None
    assert_same_weights(tiny_net, plain)
    assert [row["test_loss"] for row in history.rows] == pytest.approx([row["test_loss"] for row in expected.rows])


def test_what_was_compiled_is_given_up_after_the_run(tiny_net, monkeypatch):
    graphs = weakref.WeakSet()

    def keep_no_graph(graph, inputs):
        graphs.add(graph)
        return graph.forward

    def compile_model(model, **options):
        model._compiled_call_impl = torch.compile(model._call_impl, backend=keep_no_graph)

    monkeypatch.setattr(nn.Module, "compile", compile_model)
    with compiled(tiny_net, True):
        tiny_net(torch.randn(2, 3, 8, 8))
        assert graphs
    gc.collect()
    assert not graphs


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_a_wrapped_model_is_recorded_by_its_own_name(wrap, tiny_net):
    assert engine.fit(wrap(tiny_net), *new_loaders(), epochs=1, **QUIET).settings["model"] == "TinyNet"


def test_compile_misuse_is_refused(tiny_net, monkeypatch):
    with pytest.raises(ValueError, match=r"unknown compile mode 'fast': choose one of default, .*"):
        engine.fit(tiny_net, *new_loaders(), epochs=1, compile="fast", **QUIET)

    def no_compiler(function, **options):
        raise RuntimeError("No working C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", no_compiler)
    message = r"compile=True does not work here \(No working C\+\+ compiler found\); install a C\+\+ compiler"
    with pytest.raises(ValueError, match=message):
        engine.fit(tiny_net, *new_loaders(), epochs=1, compile=True, **QUIET)


@pytest.mark.parametrize(("device", "wanted"), [("cuda", "Triton"), ("cpu", r"a C\+\+ compiler")])
def test_a_compiler_that_fails_is_told_with_what_the_device_compiles_with(device, wanted, monkeypatch):
    def broken(function):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ValueError, match=rf"compile=True does not work here \(no compiler\); install {wanted}"):
        check_compile(True, torch.device(device))
