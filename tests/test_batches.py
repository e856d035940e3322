"""What a loader or a model gives that does not fit gets one sentence, before the first step."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import IMAGES, LABELS, QUIET, TinyNet, fit
from eva_utils import main as engine
from eva_utils.utils import batches
from eva_utils.utils.loader import Loader
from eva_utils.utils.transforms import test_transform as normalized

WRONG_BATCHES = {
    "one image": (
        (IMAGES[0], LABELS[0]),
        r"batch 0 is one image and its label; make batches of the dataset, as DataLo",
    ),
    "not a pair": (IMAGES, r"batch 0 is a Tensor; a loader must yield pairs of tensors \(images, labels\)"),
    "three things": (
        (IMAGES, LABELS, LABELS),
        r"batch 0 is a tuple of 3 \(Tensor, Tensor, Tensor\); a loader must yield pairs",
    ),
    "labels as a list": (
        (IMAGES, [0] * 8),
        r"batch 0 is a tuple of 2 \(Tensor, list\); a loader must yield pairs of tensors",
    ),
    "uint8 images": (
        ((255 * IMAGES).to(torch.uint8), LABELS),
        r"images of batch 0 are uint8 \(8, 3, 8, 8\); give float32",
    ),
    "float64 images": ((IMAGES.double(), LABELS), r"images of batch 0 are float64 .* give float32"),
    "no batch axis": ((IMAGES[0, 0, 0], LABELS), r"images of batch 0 are float32 \(8,\); give float32"),
    "wrong channels": (
        (IMAGES[:, :1], LABELS),
        r"takes images of 3 channels and these are \(8, 1, 8, 8\); repeat or drop channels",
    ),
    "channels last": (
        (IMAGES.permute(0, 2, 3, 1), LABELS),
        r"images are \(8, 8, 8, 3\), channels last; give \(N, C, H, W\), as images.permute\(0, 3, 1, 2\) makes",
    ),
    "wrong rank": (
        (IMAGES.flatten(1), LABELS),
        r"the model is a convnet and the images are \(8, 192\); give it batches \(N, C, H, W\)",
    ),
    "float labels": ((IMAGES, LABELS.float()), r"labels of batch 0 are float32 \(8,\); give class numbers, int64"),
    "one-hot labels": ((IMAGES, torch.eye(4)[LABELS]), r"float32 \(8, 4\); .* with labels\.argmax\(1\)"),
    "a column of labels": ((IMAGES, LABELS[:, None]), r"int64 \(8, 1\); .* with labels\.squeeze\(1\)"),
    "int32 labels": ((IMAGES, LABELS.int()), r"labels of batch 0 are int32 \(8,\); give class numbers, int64"),
    "too large a label": ((IMAGES, LABELS + 1), "labels from 1 to 4 and the model 4 classes; labels are from 0 to 3"),
    "a negative label": ((IMAGES, LABELS - 1), "labels from -1 to 2 and the model 4 classes"),
    "too few labels": ((IMAGES, LABELS[:5]), "batch 0 has 8 images and 5 labels; give one label an image"),
    "nothing in it": ((IMAGES[:0], LABELS[:0]), "batch 0 has 0 images and 0 labels"),
}


@pytest.mark.parametrize("case", WRONG_BATCHES)
def test_a_wrong_batch_is_refused_before_a_step(case, tiny_net, tmp_path):
    batch, message = WRONG_BATCHES[case]
    before = copy.deepcopy(tiny_net.state_dict())
    with pytest.raises(ValueError, match=message):
        fit(tiny_net, [batch], checkpoint=tmp_path / "run")
    assert all(torch.equal(before[name], value) for name, value in tiny_net.state_dict().items())
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_wrong_batch_later_on_keeps_the_finished_epochs(tiny_net):
    class TurnsBad(list):
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter([(IMAGES, LABELS), (IMAGES, LABELS + (self.passes == 3))])

    with pytest.raises(ValueError, match="batch 1 has labels from 1 to 4") as caught:
        fit(tiny_net, TurnsBad([0, 0]), epochs=5)
    assert [row["epoch"] for row in caught.value.history.rows] == [1, 2]


class Returns(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.net, self.change = TinyNet(), change

    def forward(self, x):
        return self.change(self.net(x))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda z: z[:, :, None], r"the model returned float32 \(8, 4, 1\) for 8 images; it must return logits"),
        (lambda z: z.argmax(1), r"the model returned int64 \(8,\) for 8 images"),
        (lambda z: (z, z), "the model returned tuple for 8 images"),
        (lambda z: z[:1], r"the model returned float32 \(1, 4\) for 8 images"),
    ],
)
def test_a_model_that_returns_no_logits_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        fit(Returns(change), [(IMAGES, LABELS)])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_softmax_at_the_end_is_warned_of(precision):
    with pytest.warns(UserWarning, match="ends in a softmax and cross entropy applies one itself.*return the logits"):
        fit(Returns(lambda z: z.softmax(1)), [(IMAGES, LABELS)], precision=precision)


def test_logits_and_log_probabilities_are_not_warned_of(recwarn):
    fit(TinyNet(), [(IMAGES, LABELS)])
    fit(Returns(lambda z: z.log_softmax(1)), [(IMAGES, LABELS)])
    assert not [warning for warning in recwarn if "softmax" in str(warning.message)]


def test_a_loss_that_takes_probabilities_is_given_them(recwarn):
    fit(Returns(lambda z: z.softmax(1)), [(IMAGES, LABELS)], criterion=lambda p, t: nn.functional.nll_loss(p.log(), t))
    assert not [warning for warning in recwarn if "softmax" in str(warning.message)]


def test_the_warning_of_a_softmax_comes_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        fit(Returns(lambda z: z.softmax(1)), [(IMAGES, LABELS)], epochs=2)
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("criterion", "error", "message"),
    [
        (lambda z, y: F.cross_entropy(z, y).item(), TypeError, r"returned float; it must return the mean loss .*item"),
        (lambda z, y: F.cross_entropy(z, y, reduction="none"), TypeError, r"returned float32 \(8,\); .*end in \.mean"),
        (lambda z, y: F.cross_entropy(z.detach(), y), ValueError, "the loss has no gradient; compute it from"),
        (nn.NLLLoss(), ValueError, "NLLLoss takes log-probabilities and the model returns logits; use nn.CrossEntropy"),
        (F.nll_loss, ValueError, "NLLLoss takes log-probabilities and the model returns logits; use nn.CrossEntropy"),
    ],
)
def test_a_criterion_that_gives_no_loss_is_refused_before_a_step(criterion, error, message, tiny_net):
    before = copy.deepcopy(tiny_net.state_dict())
    with pytest.raises(error, match=message):
        fit(tiny_net, [(IMAGES, LABELS)], criterion=criterion)
    assert all(torch.equal(before[name], value) for name, value in tiny_net.state_dict().items())


def test_a_model_that_cuts_the_graph_is_named_and_not_the_loss():
    with pytest.raises(ValueError, match=r"the logits have no gradient; see whether forward\(\) uses no_grad\(\)"):
        fit(Returns(torch.detach), [(IMAGES, LABELS)])


def test_channels_are_not_blamed_for_another_layer_where_the_first_convolution_runs_later():
    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.later, self.earlier, self.fc = nn.Conv2d(4, 4, 1), nn.Conv2d(3, 4, 1), nn.Linear(5, 4)

        def forward(self, x):
            return self.fc(self.later(self.earlier(x)).mean(dim=(2, 3)))

    with pytest.raises(ValueError, match=r"in fc, .* \(for these it is nn\.Linear\(4, 4\)\)"):
        fit(Reversed(), [(IMAGES, LABELS)])


def test_nll_loss_of_log_probabilities_is_cross_entropy():
    torch.manual_seed(0)
    model = Returns(lambda z: z.log_softmax(1))
    by_hand = F.cross_entropy(model.eval().net(IMAGES), LABELS).item()
    found = engine.test(model, [(IMAGES, LABELS)], criterion=nn.NLLLoss(), device="cpu", precision="float32")
    assert found.loss == pytest.approx(by_hand)


@pytest.mark.parametrize(("outputs", "in_test"), [(4, 4), (5, 4), (5, 5)])
def test_outputs_that_no_label_names_are_warned_of(outputs, in_test, recwarn):
    train, test = (
        Loader(
            torch.zeros(10, 3, 8, 8, dtype=torch.uint8), torch.arange(10) % classes, normalized((0.5,) * 3, (0.2,) * 3)
        )
        for classes in (4, in_test)
    )
    engine.fit(TinyNet(outputs), train, test, epochs=1, **QUIET)
    said = [str(warning.message) for warning in recwarn if "outputs" in str(warning.message)]
    assert len(said) == (outputs > in_test)
    assert not said or said[0].startswith("the model has 5 outputs and the data 4 classes; the figures")


def test_labels_that_come_up_late_are_refused_at_once(tiny_net):
    """On a GPU a label without an output would end every later call, not only the run."""
    images, labels = torch.zeros(10, 3, 8, 8, dtype=torch.uint8), torch.arange(10) // 2
    loader = Loader(images, labels, normalized((0.5,) * 3, (0.2,) * 3), batch_size=2)
    with pytest.raises(ValueError, match=r"has 4 outputs and the data 5 classes; build it with num_classes=len"):
        fit(tiny_net, loader)


@pytest.mark.parametrize(
    ("criterion", "logits"),
    [
        (nn.NLLLoss(), torch.full((2, 3), float("nan"))),
        (nn.NLLLoss(), torch.tensor([[0.3, -1.2, 0.8], [2.0, 0.1, -0.4]]).log_softmax(1)),
        (nn.NLLLoss(), (0.01 * torch.randn(2, 200)).bfloat16().log_softmax(1)),  # of 200 classes and so rounded
    ],
)
def test_log_probabilities_are_not_taken_for_logits(criterion, logits):
    batches.check_loss(criterion(logits.requires_grad_(), torch.tensor([0, 1])), criterion, logits)


def test_a_criterion_that_fails_is_named_with_its_inputs(tiny_net):
    with pytest.raises(ValueError, match=r"criterion failed on logits \(8, 4\) and .* \(8,\): weight"):
        fit(tiny_net, [(IMAGES, LABELS)], criterion=nn.CrossEntropyLoss(weight=torch.ones(3)))


def test_a_forward_that_is_not_written_is_named():
    with pytest.raises(ValueError, match=r"failed on images \(8, 3, 8, 8\): NotImplementedError"):

        def unfinished(z):
            raise NotImplementedError

        fit(Returns(unfinished), [(IMAGES, LABELS)])


def test_another_failure_of_the_model_is_told_in_its_own_words():
    with pytest.raises(ValueError, match=r"failed on images \(8, 3, 8, 8\): out of cheese"):

        def fail(z):
            raise RuntimeError("out of cheese\nand more")

        fit(Returns(fail), [(IMAGES, LABELS)])
