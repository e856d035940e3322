"""Loaders that are none, or not meant, are refused or warned of."""

import warnings
from types import SimpleNamespace

import pytest
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
)

from conftest import IMAGES, LABELS, QUIET, TinyNet, fit, random_batches
from eva_utils import main as engine
from eva_utils.utils import parts
from eva_utils.utils.data import load_data
from eva_utils.utils.history import describe_loader


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


SAMPLES = random_batches(8)


IN_ORDER = DataLoader(SAMPLES, batch_size=8)


SHUFFLED = DataLoader(SAMPLES, batch_size=8, shuffle=True)


def test_a_wrong_test_loader_is_refused_before_training(tiny_net):
    lines = []
    for batch, message in (
        ((IMAGES, LABELS + 1), "^test batch 0 has labels from 1 to 4 and the model 4 classes"),
        ((IMAGES, LABELS.float()), r"the labels of test batch 0 are float32 \(8,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.fit(tiny_net, [(IMAGES, LABELS)], [batch], epochs=1, **{**QUIET, "log": lines.append})
    assert lines == []


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


def test_a_loader_that_has_a_length_and_yields_nothing_is_refused(tiny_net):
    class Hollow(list):
        def __iter__(self):
            return iter([])

    with pytest.raises(ValueError, match="test_loader yields nothing; it must yield at least one batch"):
        engine.fit(tiny_net, [(IMAGES, LABELS)], Hollow([0]), epochs=1, **QUIET)
    with pytest.raises(ValueError, match="the loader yielded no batch; it must yield its batches anew"):
        fit(tiny_net, Hollow([0]))


def test_an_iterator_that_begins_anew_and_parts_of_one_dataset_are_loaders():
    pairs = [(image, int(label)) for image, label in zip(IMAGES, LABELS, strict=True)]
    halves = [DataLoader(pairs, batch_size=4, sampler=SubsetRandomSampler(range(n, n + 4))) for n in (0, 4)]
    lists = [DataLoader(list(pairs), batch_size=4) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for train, test in ((Rewinding(), Rewinding()), halves, lists):
            assert len(engine.fit(TinyNet(), train, test, epochs=2, **QUIET)) == 2


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


def test_two_loaders_of_one_whole_dataset_are_warned_of(tiny_net):
    dataset = random_batches(8)
    shuffled, ordered = DataLoader(dataset, batch_size=4, shuffle=True), DataLoader(dataset, batch_size=4)
    with pytest.warns(UserWarning, match="tested on the images it trains on"):
        engine.fit(tiny_net, shuffled, ordered, epochs=1, **QUIET)
    halves = [DataLoader(dataset, batch_size=4, sampler=SubsetRandomSampler(range(at, at + 4))) for at in (0, 4)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.fit(TinyNet(), *halves, epochs=1, **QUIET)


def test_of_a_loader_is_known_whether_it_shuffles():
    loaders = {
        True: [SHUFFLED, DataLoader(SAMPLES, batch_size=None, shuffle=True)],
        False: [IN_ORDER, DataLoader(SAMPLES, batch_size=None)],
        None: [[(IMAGES, LABELS)], DataLoader(SAMPLES, batch_sampler=[[0, 3], [5, 1]])],
    }
    for known, those in loaders.items():
        assert [parts.is_shuffled(loader) for loader in those] == [known] * 2


def test_of_a_dataset_count_the_images_that_its_loader_draws():
    dataset, half = random_batches(8), SubsetRandomSampler(range(4))
    in_batches = BatchSampler(RandomSampler(dataset), 2, False)
    loaders = {
        8: [
            DataLoader(dataset),
            DataLoader(dataset, shuffle=True),
            DataLoader(dataset, batch_size=None),
            DataLoader(dataset, sampler=in_batches, batch_size=None),
            DataLoader(dataset, sampler=RandomSampler(dataset, replacement=True, num_samples=12)),
            DataLoader(dataset, sampler=DistributedSampler(dataset, 2, 0)),  # of all processes together
        ],
        4: [DataLoader(dataset, sampler=half), DataLoader(dataset, batch_sampler=BatchSampler(half, 2, False))],
        None: [[(IMAGES, LABELS)]],
    }
    for known, those in loaders.items():
        assert [parts.count_drawn(loader) for loader in those] == [known] * len(those)
        told = [describe_loader(loader) for loader in those]
        assert [options.get("drawn", options.get("images")) for options in told] == [known] * len(told)
        assert all(options.get("images") == parts.count_images(DataLoader(dataset)) for options in told if known)
