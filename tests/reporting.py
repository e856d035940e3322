"""Finished runs to write reports of; conftest.py makes the fixtures known to every test."""

import copy
import io
import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from conftest import TinyNet
from eva_utils import main as engine
from eva_utils.utils.page import render
from eva_utils.utils.report import write_report


def train_one(folder, data, tested=None, epochs=2, **options):
    torch.manual_seed(1)
    model = TinyNet(10)
    options = {"optimizer": SGD(model.parameters(), lr=0.05), "checkpoint": folder, "log": None, **options}
    return model, engine.fit(model, data.train, tested or data.test, epochs=epochs, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("trained") / "run"
    return folder, *train_one(folder, data)


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of a run, of whose reports each is drawn once for all tests."""
    folder, model, history = trained
    shutil.copytree(folder, tmp_path / "run")
    monkeypatch.setattr("eva_utils.utils.page.render", drawn_once)
    return tmp_path / "run", copy.deepcopy(model), history


DRAWN = {}


def drawn_once(record):
    saved = io.BytesIO()
    torch.save(record, saved)
    if saved.getvalue() not in DRAWN:
        DRAWN[saved.getvalue()] = render(record)
    return DRAWN[saved.getvalue()]


@pytest.fixture
def undrawn(monkeypatch):
    """Reports without their figures, which take seconds to draw, for tests of what the text says."""

    def render_text(record):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("eva_utils.utils.page._figures", lambda record: {})
            return render(record)

    monkeypatch.setattr("eva_utils.utils.page.render", render_text)


class Sign(nn.Module):
    """Knows two classes by the sign of the mean, without learning anything."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([-1.0, 1.0])[:, None, None, None].expand(2, 3, 1, 1))
            self.conv.bias.zero_()

    def forward(self, x):
        return self.conv(x).mean(dim=(2, 3))


@pytest.fixture
def own_data():
    """Data of one's own: plain DataLoaders, two classes that a sign tells apart."""
    labels = torch.arange(12) % 2
    images = (2.0 * labels - 1)[:, None, None, None].expand(12, 3, 8, 8) + 0.01 * torch.randn(12, 3, 8, 8)
    loader = DataLoader(TensorDataset(images.contiguous(), labels), batch_size=6)
    return SimpleNamespace(train=loader, test=loader, classes=["minus", "plus"], mean=(0.5,) * 3, std=(0.5,) * 3)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def refused(folder, model, data, match, brief=None, kind=ValueError):
    before = contents(folder) if folder.exists() else {}
    with pytest.raises(kind, match=match):
        write_report(folder, model, data, brief)
    assert (contents(folder) if folder.exists() else {}) == before
