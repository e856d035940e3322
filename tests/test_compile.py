"""Compiled and wrapped models are given back as they were."""

import copy

import pytest
import torch
from torch import nn

from conftest import QUIET
from eva_utils import main as engine
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
