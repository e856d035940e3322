"""Benchmarks take minutes and are not run here; what they take from the repository is looked up."""

import ast
import importlib

import pytest

from conftest import ROOT

OURS = {"eva_utils", *(path.stem for path in (ROOT / "tests").glob("*.py"))}


def taken_of_ours(tree):
    """Yield what is imported from the repository, and the name it has there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in OURS:
                    yield importlib.import_module(alias.name), alias.asname or alias.name
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in OURS:
            for alias in node.names:
                yield getattr(importlib.import_module(node.module), alias.name), alias.asname or alias.name


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_takes_and_calls_what_is_there(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for taken, name in taken_of_ours(tree):
        assert name not in called or callable(taken), f"{name} is called and is {taken!r}"
        for call in called:
            part = call.removeprefix(f"{name}.")
            assert part == call or not part.isidentifier() or callable(getattr(taken, part)), call
