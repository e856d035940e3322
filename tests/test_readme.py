"""The README says what is there."""

import re
import subprocess

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def tracked_files():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs a git checkout")
    return {line for line in listed.stdout.splitlines() if (ROOT / line).exists()}


def tree():
    """Paths of the captioned tree: two spaces of indent a level, folders end with a slash."""
    block = re.search(r"## What is where\n+```\n(.*?)```", README, re.DOTALL)[1]
    folders, paths = [], {}
    for line in block.splitlines():
        name, caption = re.fullmatch(r"( *\S+)(?:  +(.*))?", line).groups()
        depth = (len(name) - len(name.lstrip())) // 2
        folders[depth:] = [name.strip()]
        paths["".join(folders)] = caption
    return paths


def test_the_tree_matches_the_disk():
    listed, tracked = tree(), tracked_files()
    assert all(caption for caption in listed.values())
    for path in listed:
        assert any(file.startswith(path) for file in tracked) if path.endswith("/") else path in tracked, path
    explained = {path for path in tracked if path.startswith("eva_utils/") and not path.endswith("utils/__init__.py")}
    assert explained - set(listed) == set()
    top = {path.split("/")[0] + ("/" if "/" in path else "") for path in tracked if not path.startswith(".")}
    assert top - set(listed) == set()


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert "://" in target or (ROOT / target).exists(), target


def test_the_notebook_calls_run(tmp_path, monkeypatch):
    """The calls of the README's notebook, then those to try it, with the real dataset and sizes made small."""
    notebook, trial = re.findall(r"```python\n(.*?)```", README[README.index("## The notebook") :], re.DOTALL)[:2]
    code = notebook + trial
    for real, small in (
        ('"cifar10", root="data"', '"shapes", limit=40'),
        ("limit=2000", "limit=40"),
        ("epochs=5", "epochs=1"),
        ("epochs=40", "epochs=1"),
        (', "layer4"]', "]"),
        ('resnet18(num_classes=10, norm="layer", last_stride=1)', "small_resnet(num_classes=10)"),
    ):
        assert real in code
        code = code.replace(real, small)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    assert [record.index for record in names["predictions"].wrong(20)]
    assert all((tmp_path / "runs" / run / "best.pt").exists() for run in ("s8", "try"))
