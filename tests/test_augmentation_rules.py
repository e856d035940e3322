"""Training transforms are held to those required, by what they do to pixels."""

import pytest
from torchvision.transforms import v2

from audited import check, record, small
from eva_utils.utils.assignments import BRIEFS
from eva_utils.utils.cutout import Cutout
from eva_utils.utils.data import load_data
from eva_utils.utils.per_image import PerImage
from eva_utils.utils.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, RandomRotate


@pytest.fixture(scope="module")
def data():
    return load_data("shapes", limit=70, recipe="eva6_s8")


@pytest.fixture
def loader(data, monkeypatch):
    """The training loader, whose transform a test may replace."""
    monkeypatch.setattr(data.train, "transform", data.train.transform)
    return data.train


class Idle(Cutout):
    """Computes the squares and returns the images as they were."""

    def __repr__(self):
        return "Cutout(16, fill=0)"

    def forward(self, images, generator=None):
        super().forward(images, generator)
        return images


class Drops(Compose):
    """Runs every step and forgets the result of the last, as the first assignment's own pipeline did."""

    def forward(self, images, generator=None):
        for step in list(self)[:-1]:
            images = step(images, generator)
        self[-1](images, generator)
        return images


def transforms(data, loader, transform):
    loader.transform = transform
    model = small()
    return check(record(data, model), model, data, transforms=BRIEFS["eva6_s8"].transforms)


def test_the_required_transforms_pass(data, loader):
    finding = transforms(data, loader, loader.transform)
    assert finding.verdict == "pass"
    assert finding.found.startswith("RandomCrop(padding=4), RandomRotate(5), Cutout(16, fill=0); RandomCrop: ")


@pytest.mark.parametrize("kind", [Idle, Drops])
def test_a_cutout_that_does_nothing_fails(data, loader, kind):
    steps = [RandomCrop(), RandomRotate(), Normalize(data.mean, data.std), Cutout()]
    if kind is Idle:
        steps[-1] = Idle()
    finding = transforms(data, loader, (Drops if kind is Drops else Compose)(*steps))
    assert finding.verdict == "FAIL" and "0% of 64 images changed" in finding.found


def own_pipeline(data, *steps):
    return Compose(PerImage(v2.Compose(steps)), Normalize(data.mean, data.std))


def test_a_pipeline_of_ones_own_may_be_the_one_that_is_required(data, loader):
    finding = transforms(data, loader, own_pipeline(data, v2.RandomCrop(32, padding=4), v2.RandomRotation(5)))
    assert finding.verdict == "not checked" and finding.found.startswith("PerImage(Compose( RandomCrop(")
    assert finding.found.endswith("; whether a pipeline of one's own does the same is not known")
    assert transforms(data, loader, own_pipeline(data, v2.Identity())).verdict == "FAIL"


def test_a_pipeline_of_ones_own_is_not_none_at_all(data, loader):
    loader.transform, model = own_pipeline(data, v2.RandomCrop(32, padding=4)), small()
    history = record(data, model)
    assert check(history, model, data, transforms=()).verdict == "FAIL"
    recorded = repr(loader.transform[0])
    assert check(history, model, data, transforms=(recorded,)).verdict == "pass"


def test_a_flip_is_one_too_many(data, loader):
    finding = transforms(data, loader, Compose(RandomHorizontalFlip(), *loader.transform))
    assert finding.verdict == "FAIL" and finding.found.startswith("RandomHorizontalFlip(p=0.5), RandomCrop")


def test_a_brief_without_transforms_asks_for_none(data, loader):
    loader.transform = Compose(Normalize(data.mean, data.std))
    model = small()
    finding = check(record(data, model), model, data, transforms=())
    assert (finding.required, finding.verdict) == ("none", "pass")


def test_another_order_and_another_size_fail(data, loader):
    crop, turn, normalize, cut = loader.transform
    assert transforms(data, loader, Compose(turn, crop, normalize, cut)).verdict == "FAIL"
    assert transforms(data, loader, Compose(crop, turn, normalize, Cutout(8))).verdict == "FAIL"


def test_transforms_changed_after_training_fail(data, loader):
    model = small()
    history = record(data, model)
    loader.transform = Compose(*list(loader.transform)[:-1])
    finding = check(history, model, data, transforms=BRIEFS["eva6_s8"].transforms)
    assert finding.verdict == "FAIL" and "data.train now has" in finding.found


def test_a_loader_without_a_record_is_not_checked(data):
    model = small()
    history = record(data, model)
    del history.settings["train_loader"]["transform"]
    assert check(history, model, data, transforms=("Cutout(16, fill=0)",)).verdict == "not checked"
