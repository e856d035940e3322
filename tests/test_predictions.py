import random
from html import unescape

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

from conftest import TinyNet, random_batches
from eva_utils import main as engine
from eva_utils.utils import sections
from eva_utils.utils.data import load_data
from eva_utils.utils.predictions import Predictions, predict
from eva_utils.utils.runtime import autocast

SAMPLES = random_batches(41)


def brute_force(model, samples):
    model.eval()
    with torch.no_grad():
        return torch.cat([model(image[None]) for image, _ in samples]).softmax(1)


@pytest.fixture
def predictions(tiny_net):
    return predict(tiny_net, DataLoader(SAMPLES, batch_size=8), device="cpu", precision="float32")


def test_probabilities_are_by_position(predictions, tiny_net):
    expected = brute_force(tiny_net, SAMPLES)
    torch.testing.assert_close(predictions.probabilities, expected)
    assert torch.equal(predictions.predicted, expected.argmax(1))
    assert torch.equal(predictions.target, SAMPLES.tensors[1])
    assert predictions.accuracy == 100 * (expected.argmax(1) == SAMPLES.tensors[1]).sum().item() / 41
    assert repr(predictions) == f"Predictions(41 images, {predictions.accuracy:.2f}% correct)"
    assert not predictions.probabilities.requires_grad


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_computes_in_the_precision_asked_for_and_its_accuracy_equals_tests(precision, tiny_net):
    loader = DataLoader(SAMPLES, batch_size=8)
    found = predict(tiny_net, loader, device="cpu", precision=precision)
    score = engine.test(tiny_net, loader, device="cpu", precision=precision)
    assert (found.accuracy, len(found)) == (score.accuracy, score.samples)
    layout = {"memory_format": torch.channels_last if precision == "bfloat16" else torch.preserve_format}
    tiny_net.to(**layout).eval()
    with torch.no_grad(), autocast(torch.device("cpu"), getattr(torch, precision)):
        logits = [tiny_net(images.to(**layout)) for images, _ in loader]
    assert torch.equal(found.probabilities, torch.cat(logits).float().softmax(1))


def test_weights_lie_as_test_puts_them():
    """Else some GPU would run other kernels, which round otherwise."""
    loader, models = DataLoader(SAMPLES, batch_size=8), (TinyNet(), TinyNet())
    engine.test(models[0], loader, device="cpu", precision="bfloat16")
    predict(models[1], loader, device="cpu", precision="bfloat16")
    strides = [[parameter.stride() for parameter in model.parameters()] for model in models]
    assert strides[0] == strides[1] and models[1].conv.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_model_is_shown_what_test_shows_it(precision, tiny_net):
    """The same values in another memory layout would round differently in half precision."""
    shown = []
    tiny_net.register_forward_pre_hook(lambda module, inputs: shown.append((inputs[0].stride(), inputs[0].clone())))
    loader = DataLoader(SAMPLES, batch_size=41)
    engine.test(tiny_net, loader, device="cpu", precision=precision)
    predict(tiny_net, loader, device="cpu", precision=precision)
    (first_layout, first), (second_layout, second) = shown
    assert first_layout == second_layout and torch.equal(first, second)


def test_wrong_and_correct_partition_the_images_in_order(predictions):
    wrong, correct = predictions.wrong(100), predictions.correct(100)
    assert sorted(record.index for record in [*wrong, *correct]) == list(range(41))
    assert len(wrong) == int((predictions.predicted != predictions.target).sum()) > 0
    for records, right in ((wrong, False), (correct, True)):
        confidences = [record.confidence for record in records]
        assert confidences == sorted(confidences, reverse=True)
        for record in records:
            assert torch.equal(record.image, SAMPLES[record.index][0])
            assert record.target == SAMPLES[record.index][1] and (record.predicted == record.target) == right
            assert record.confidence == predictions.probabilities[record.index].max()
    assert [record.index for record in predictions.wrong(3)] == [record.index for record in wrong[:3]]
    assert (wrong.kind, wrong.asked, correct.kind) == ("misclassified", 100, "correctly classified")
    assert predictions.wrong().asked == predictions.correct().asked == 20


def test_confidences_that_round_to_1_are_in_order_of_what_the_other_classes_have():
    ones = torch.ones(3, dtype=torch.int64)
    probabilities = torch.tensor([[1e-9, 1], [1e-12, 1], [1e-10, 1]])
    found = Predictions(DataLoader(TensorDataset(torch.zeros(3, 3, 8, 8), ones)), probabilities, ones, ones).correct(3)
    assert [(record.index, record.confidence) for record in found] == [(1, 1), (2, 1), (0, 1)]


def test_what_is_done_to_a_records_image_leaves_the_loaders_alone(tiny_net):
    images, labels = SAMPLES.tensors
    before = images.clone()
    for record in predict(tiny_net, [(images, labels)], device="cpu", precision="float32").wrong(3):
        record.image.zero_()
    assert torch.equal(images, before)


def test_random_order_is_the_seeds(predictions):
    def indices(seed):
        return [record.index for record in predictions.wrong(10, order="random", seed=seed)]

    assert indices(1) == indices(1) != indices(2)
    assert set(indices(1)) <= set((predictions.predicted != predictions.target).nonzero().flatten().tolist())
    hits = [[record.index for record in predictions.correct(9, order="random", seed=seed)] for seed in (1, 1, 2)]
    assert hits[0] == hits[1] != hits[2]


def test_selection_by_class_pair(predictions):
    first, second, count = predictions.most_confused(1)[0]
    records = predictions.wrong(100, target=first, predicted=second)
    assert len(records) == count > 0
    assert {(record.target, record.predicted) for record in records} == {(first, second)}
    assert (records.target, records.predicted, predictions.wrong(1).target) == (first, second, None)
    assert records.total == len(predictions.wrong(100)) > count  # what an audit takes for all there are


def test_confusion_and_class_accuracy_by_hand(predictions):
    pairs = list(zip(predictions.target.tolist(), predictions.predicted.tolist(), strict=True))
    confusion = predictions.confusion()
    for row in range(4):
        for column in range(4):
            assert confusion[row, column] == pairs.count((row, column))
        own = [predicted for target, predicted in pairs if target == row]
        assert predictions.class_accuracy()[row].item() == pytest.approx(100 * own.count(row) / len(own))
    counts = [count for _, _, count in predictions.most_confused(20)]
    assert counts == sorted(counts, reverse=True) and sum(counts) == 41 - int(confusion.diag().sum())


def test_pairs_that_were_not_confused_are_left_out():
    said, target = torch.tensor([1, 1, 0, 2]), torch.tensor([0, 0, 2, 2])
    assert Predictions(None, torch.eye(3)[said], said, target).most_confused(5) == [(0, 1, 2), (2, 0, 1)]


def test_the_model_is_left_as_it_was(tiny_net):
    tiny_net.norm.eval()
    predict(tiny_net, DataLoader(SAMPLES, batch_size=8))
    assert [module.training for module in tiny_net.modules()] == [True, True, False, True, True]


def test_misuse_is_refused(predictions, tiny_net):
    data = load_data("shapes", limit=20)
    for loader in (DataLoader(SAMPLES, batch_size=8, shuffle=True), data.train):
        with pytest.raises(
            ValueError, match="the loader shuffles, so positions in it mean nothing; pass the test loader"
        ):
            predict(tiny_net, loader)
    with pytest.raises(ValueError, match="the loader is empty"):
        predict(tiny_net, [])
    with pytest.raises(ValueError, match="n is a whole number from 1 up, not 0"):
        predictions.wrong(0)
    with pytest.raises(ValueError, match="n is a whole number from 1 up, not -1"):
        predictions.most_confused(-1)
    with pytest.raises(ValueError, match="order is 'confident' or 'random', not 'best'"):
        predictions.wrong(5, order="best")
    with pytest.raises(ValueError, match=r"not 'cat'; data\.classes\.index\(\.\.\.\) is the number of a name"):
        predictions.wrong(target="cat")
    with pytest.raises(ValueError, match=r"class 3 are no mistakes; correct\(target=3\) has them"):
        predictions.wrong(target=3, predicted=3)
    with pytest.raises(ValueError, match="target is a class from 0 to 3, not 4"):
        predictions.correct(5, target=4)
    nan = SAMPLES[5][0].new_full((1, 3, 8, 8), float("nan"))
    with pytest.raises(FloatingPointError, match="logits of 2 of 4 images are NaN or infinite, image 1 the first"):
        predict(tiny_net, [(torch.cat([SAMPLES[0][0][None], nan, SAMPLES[1][0][None], nan]), torch.zeros(4).long())])
    shuffled = BatchSampler(RandomSampler(SAMPLES), 8, drop_last=False)
    with pytest.raises(ValueError, match="the loader shuffles"):
        predict(tiny_net, DataLoader(SAMPLES, batch_sampler=shuffled))
    with pytest.raises(ValueError, match="the loader has labels from 7 to 7 and the model 4 classes"):
        predict(tiny_net, [(torch.zeros(2, 3, 8, 8), torch.tensor([7, 7]))])
    with pytest.raises(TypeError, match=r"as predict\(model, data\.test\), not Data"):
        predict(tiny_net, data)
    with pytest.raises(ValueError, match=r"takes images of 3 channels and these are \(2, 1, 8, 8\)"):
        predict(tiny_net, [(torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.long))])


def test_a_loader_that_changes_its_order_is_noticed(tiny_net):
    class Restless:
        hidden = torch.Generator().manual_seed(0)

        def __iter__(self):
            order = torch.randperm(41, generator=self.hidden)
            return iter([(SAMPLES.tensors[0][order], SAMPLES.tensors[1][order])])

    found = predict(tiny_net, Restless())
    with pytest.raises(ValueError, match="the loader yields another order at each pass"):
        found.wrong(5)
    spent = predict(tiny_net, iter([SAMPLES.tensors]))
    with pytest.raises(ValueError, match="the loader ended early on its second pass"):
        spent.wrong(5)


def test_images_that_are_drawn_anew_are_those_predicted_and_generators_stay_as_they_were(tiny_net):
    class Noisy(list):
        def __iter__(self):
            for images, labels in super().__iter__():
                seen.append(images + torch.randn(images.shape) + random.random() + np.random.rand())
                yield seen[-1], labels

    seen = []
    loader = Noisy(DataLoader(SAMPLES, batch_size=8))
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    found = predict(tiny_net, loader)
    predicted = torch.cat(seen)
    assert all(torch.equal(record.image, predicted[record.index]) for record in found.wrong(5) + found.correct(5))
    python, numpy, of_torch = before
    assert random.getstate() == python and torch.equal(torch.get_rng_state(), of_torch)
    assert all(np.array_equal(now, then) for now, then in zip(np.random.get_state(), numpy, strict=True))


class DrawsItself(Dataset):
    """Each image is drawn when it is asked for."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.randn(3, 8, 8), index % 4


def test_images_drawn_by_workers_are_those_predicted_though_their_loader_was_used_since():
    loader = DataLoader(DrawsItself(), 4, num_workers=1, generator=torch.Generator().manual_seed(1))
    shown = []
    net = TinyNet()
    net.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0].clone()))
    predictions = predict(net, loader, device="cpu", precision="float32")
    seen = torch.cat(shown)
    assert len(list(loader)) == 3  # moves on the loader's own generator, which seeds the workers
    records = [*predictions.wrong(12), *predictions.correct(12)]
    assert len(records) == 12 and all(torch.equal(record.image, seen[record.index]) for record in records)


def test_lack_of_memory_stays_what_it_is(tiny_net):
    def fail(module, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")

    tiny_net.register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        predict(tiny_net, DataLoader(SAMPLES, batch_size=8))


@pytest.mark.parametrize("look", [predict, lambda model, loader: predict(model, loader).wrong(3)])
def test_a_loaders_own_generator_stays_as_it_was(look, tiny_net):
    generator = torch.Generator().manual_seed(1)
    loader, state = DataLoader(random_batches(20), batch_size=8, generator=generator), generator.get_state()
    look(tiny_net, loader)
    assert torch.equal(generator.get_state(), state)


def test_a_class_without_images_has_no_accuracy_and_none_in_the_report():
    said, target = torch.tensor([0, 0, 2, 1]), torch.tensor([0, 2, 2, 2])
    probabilities = torch.eye(3)[said]
    found = Predictions(None, probabilities, said, target)
    accuracies = found.class_accuracy()
    assert accuracies.dtype == torch.float64 and accuracies[1].isnan()
    assert accuracies[[0, 2]].tolist() == pytest.approx([100, 100 / 3])
    predicted = {"probabilities": probabilities, "predicted": said, "target": target}
    section = sections.confusion({"predictions": predicted, "data": {"classes": ["cat", "dog", "owl"]}})
    rows = [[unescape(cell.strip()) for cell in line.split("|")[1:-1]] for line in section.splitlines()[2:5]]
    assert rows == [
        ["cat", "1", "100.00%", "nothing else"],
        ["dog", "0", "-", "nothing else"],
        ["owl", "3", "33.33%", "cat (1)"],
    ]
