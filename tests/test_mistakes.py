"""Each mistake that raises no error is found by the function that looks for it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms import v2

from conftest import TinyNet
from eva_utils.models import create_model
from eva_utils.utils import mistakes
from eva_utils.utils.augmentation import augmentation_checks
from eva_utils.utils.data import load_data
from eva_utils.utils.images import ImageFiles
from eva_utils.utils.loader import Loader
from eva_utils.utils.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip

IMAGES, LABELS = torch.zeros(20, 3, 32, 32), torch.arange(20) % 10


@pytest.fixture(scope="module")
def data():
    return load_data("shapes", limit=200, recipe="eva6_s8", batch_size=64)


class Ends(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.net, self.change = create_model("small_resnet"), change

    def forward(self, x):
        return self.change(self.net(x))


def test_a_softmax():
    check = mistakes.outputs_are_logits(torch.randn(20, 10).softmax(1), LABELS, 10)
    assert check.passed is False and "ends in a softmax" in check.cause


class Hides(nn.Module):
    """Holds its first layers where PyTorch does not look for them."""

    def __init__(self, kind):
        super().__init__()
        self.net = create_model("small_resnet")
        self.net.extra = kind([nn.Conv2d(3, 3, 1), nn.ReLU()])

    def forward(self, x):
        for layer in self.net.extra.values() if isinstance(self.net.extra, dict) else self.net.extra:
            x = layer(x)
        return self.net(x)


@pytest.mark.parametrize("kind", [list, tuple, lambda layers: dict(enumerate(layers)), nn.ModuleList])
def test_layers_in_a_plain_container_are_found(kind):
    check = mistakes.layers_are_known(Hides(kind))
    assert check.name == "every layer is known to the model" and check.passed is (kind is nn.ModuleList)
    assert check.passed or (check.found == "1 layer in net.extra" and "nn.ModuleList" in check.cause)


def test_layers_that_hold_no_weights_or_known_ones_may_be_anywhere():
    model = create_model("small_resnet")
    model.acts, model.views = [nn.ReLU()], [nn.Sequential(model.layer1, model.layer2)]
    assert mistakes.layers_are_known(model).passed is True


def test_a_last_layer_of_zeros_is_no_relu():
    model = create_model("small_resnet")
    nn.init.zeros_(model.fc.weight)
    nn.init.zeros_(model.fc.bias)
    assert mistakes.outputs_are_logits(model(IMAGES), LABELS, 10).passed is True


def test_dropout_that_goes_on_in_evaluation_is_found():
    check = mistakes.evaluation_repeats(Ends(lambda z: z + F.dropout(torch.ones_like(z))), IMAGES)
    assert check.passed is False and check.found == "100% of 20 images have other logits the second time"
    sound = Ends(nn.Dropout())
    assert mistakes.evaluation_repeats(sound, IMAGES).passed is True


class Mixes(nn.Linear):
    """Takes the batch for another axis."""

    def forward(self, x):
        return super().forward(x.mean(dim=(2, 3)).t().reshape(-1, 3))


def test_a_model_that_mixes_the_images_of_a_batch_is_found():
    images = torch.randn(16, 3, 8, 8)
    check = mistakes.images_do_not_mix(Mixes(3, 10), images)
    assert check.passed is False and check.found.endswith("% of 16 images have other logits in half the batch")
    scores = nn.Sequential(nn.Flatten(), nn.Linear(192, 10), nn.LogSoftmax(dim=0))
    assert mistakes.images_do_not_mix(scores, images).passed is False
    fixed = nn.Sequential(nn.Flatten(), nn.Unflatten(0, (2, 8)), nn.Flatten(0, 1), nn.Linear(192, 10))
    assert mistakes.images_do_not_mix(fixed, images).found.startswith("with half the batch the model fails: ")
    for sound in (TinyNet(10), nn.Sequential(nn.Flatten(), nn.Linear(192, 10))):
        assert mistakes.images_do_not_mix(sound, images).passed is True


def test_a_forgotten_return_is_told():
    check = mistakes.outputs_are_logits(None, LABELS, 10)
    assert check.passed is False and check.cause == "forward() must return one tensor; its return is missing"


def test_a_relu_at_the_end_is_noticed():
    logits = torch.relu(torch.randn(16, 10, generator=torch.Generator().manual_seed(0)))
    check = mistakes.outputs_are_logits(logits, torch.arange(16) % 10, 10)
    assert check.passed is None and check.found.endswith("none is below: the model seems to end in a ReLU")
    few = torch.arange(160.0).reshape(16, 10)  # of which one is 0 and none is below
    assert mistakes.outputs_are_logits(few, torch.arange(16) % 10, 10).passed is True


def test_outputs_that_are_not_one_for_each_image_and_class_are_told():
    for shape in ((19, 10), (20, 9), (20, 10, 1)):
        check = mistakes.outputs_are_logits(torch.randn(shape), LABELS, 10)
        assert check.passed is False and check.found == f"{shape} for 20 images of 10 classes"


class InPlace(nn.Module):
    """Changes what its sigmoid's gradient needs."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 10)

    def forward(self, x):
        hidden = self.fc(x.mean((2, 3))).sigmoid()
        hidden += 1
        return hidden - 1.5


def test_a_backward_pass_that_fails_is_told():
    (found,) = mistakes.learns_by_heart(InPlace(), torch.randn(16, 3, 8, 8), torch.arange(16) % 10)
    assert found.passed is False
    assert found.found.startswith("training fails in step 1: RuntimeError: one of the variables needed for gradient")
    assert "h += 1 after a sigmoid" in found.cause


class Recalls(nn.Linear):
    """Adds what it computed of the batch before."""

    def __init__(self):
        super().__init__(3, 10)
        self.state = torch.zeros(16, 10)

    def forward(self, x):
        self.state = super().forward(x.mean((2, 3))) + 0.5 * self.state
        return self.state


def test_a_state_kept_with_its_graph_is_told():
    (found,) = mistakes.learns_by_heart(Recalls(), torch.randn(16, 3, 8, 8), torch.arange(16) % 10)
    assert found.passed is False and found.found.startswith(
        "training fails in step 2: RuntimeError: Trying to backward"
    )
    assert found.cause.endswith("as a hidden state: detach() that")


def test_a_model_that_fails_in_evaluation_alone_is_told():
    class Broken(nn.Linear):
        def forward(self, x):
            return super().forward(x) if self.training else super().forward(x).softmax(2)

    check = mistakes.evaluation_repeats(Broken(4, 2), torch.zeros(16, 4))
    assert check.passed is False and check.found.startswith("there the model fails: IndexError: Dimension out of range")


def test_weights_that_are_too_large():
    logits = torch.randn(20, 10)
    assert mistakes.starts_near_chance(logits, LABELS).passed is True
    check = mistakes.starts_near_chance(300 * logits, LABELS)
    assert check.passed is False and "the first weights are too large" in check.cause


@pytest.mark.parametrize(
    ("classes", "off", "passed"),
    [
        (10, 1.5, True),  # ln(9 + e^-1.5) + 1.5 = 3.72 and ln 10 = 2.30: less than 1.5 apart
        (10, 1.7, False),  # 3.92
        (100, 2.0, True),  # 6.60 and ln 100 = 4.61: less than 0.6 of it
        (100, 3.0, False),  # 7.60
        (10, -20.0, False),  # one that was trained before
    ],
)
def test_a_first_loss_far_from_a_guesss_is_noticed(classes, off, passed):
    outputs = -off * torch.eye(classes)
    assert mistakes.starts_near_chance(outputs, torch.arange(classes)).passed is passed


def test_a_layer_that_gets_no_gradient():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fc, self.spare = nn.Conv2d(3, 64, 8, stride=4), nn.Linear(64 * 49, 10), nn.Linear(2, 2)

        def forward(self, x):
            return self.fc(self.body(x).relu().detach().flatten(1)) / 8

    _, check = mistakes.learns_by_heart(Detached(), torch.randn(20, 3, 32, 32), LABELS)
    assert check.name == "gradients reach every parameter" and check.passed is False
    assert "2 of 6 parameters moved; not body.weight" in check.found and "detach()" in check.cause


def test_a_frozen_model():
    (check,) = mistakes.learns_by_heart(TinyNet(10).requires_grad_(False), IMAGES, LABELS)
    assert check.name == "one batch can be learnt"
    assert check.passed is False and check.found == "no trainable parameter"


def test_a_frozen_layer_may_be_meant():
    model = TinyNet(10)
    model.conv.weight.requires_grad_(False)
    _, check = mistakes.learns_by_heart(model, torch.randn(20, 3, 32, 32), LABELS)
    assert check.passed is None
    assert check.found == "5 of 6 parameters moved; not conv.weight; requires_grad is off: fine if you meant it"


def test_test_images_among_the_training_images(data):
    test = Loader(data.train.images[:30], data.train.labels[:30], data.test.transform)
    check = mistakes.shares_no_image(data.train, test)
    assert check.passed is False and check.found == "30 of 30 test images are training images too"


def test_shared_images_are_counted_among_the_test_images_and_files_by_their_content(data, image_folder):
    images, labels = torch.cat([data.train.images[:1]] * 3 + [data.test.images[:2]]), torch.zeros(5).long()
    check = mistakes.shares_no_image(data.train, Loader(images, labels, data.test.transform))
    assert check.passed is False and check.found.startswith("3 of 5 test images")
    train, test = (sorted((image_folder / part).rglob("*.png")) for part in ("train", "test"))
    test[4].write_bytes(train[0].read_bytes())
    loaders = [Loader(ImageFiles(files), torch.arange(len(files)), data.test.transform) for files in (train, test)]
    check = mistakes.shares_no_image(*loaders)
    assert check.passed is False and check.found.startswith("1 of 5 test images")
    assert mistakes.shares_no_image(data.train, data.test).passed is True


def test_a_flip_is_looked_for_on_an_image_that_shows_it(data):
    images = torch.zeros(64, 3, 8, 8, dtype=torch.uint8)
    images[1:, :, :, 0] = 200
    transform = Compose(RandomHorizontalFlip(), Normalize(data.mean, data.std))
    (check,) = augmentation_checks(Loader(images, torch.zeros(64, dtype=torch.int64), transform))
    assert check.passed and "2 kinds of 64 copies of one" in check.found


class Forgets(nn.Module):
    """An augmentation whose result is thrown away, as in the ancestors' pipelines."""

    def forward(self, images, generator=None):
        images.flip(-1)
        return images


class DrawsOnce(nn.Module):
    """An augmentation that does the same to all images of a batch."""

    def forward(self, images, generator=None):
        return images.roll(int(torch.randint(1, 8, ())), -1)


class FlipsAll(nn.Module):
    """Mirrors the whole batch, or none of it."""

    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, images, generator=None):
        return images.flip(-1) if torch.rand((), generator=generator) < self.p else images


@pytest.mark.parametrize(
    "module, cause",
    [(Forgets(), "its result is not what is returned"), (DrawsOnce(), "it draws once for the whole batch")],
)
def test_an_augmentation_that_does_nothing_or_the_same_to_all(data, module, cause):
    transform = Compose(RandomCrop(padding=4), module, Normalize(data.mean, data.std))
    train = Loader(data.train.images, data.train.labels, transform, batch_size=64, shuffle=True)
    problems = {check.name: check.cause for check in augmentation_checks(train) if not check.passed}
    assert problems == {f"{type(module).__name__} changes pixels": cause}


def test_an_augmentation_that_never_draws_may_be_meant():
    grey = load_data("shapes", limit=70, recipe=v2.Grayscale(3))
    (check,) = augmentation_checks(grey.train)
    assert check.name == "Grayscale changes pixels" and check.passed is None
    assert check.found == (
        "100% of 64 images changed, 1 kind of 64 copies of one; the same for every image, which may be meant"
    )


def test_one_draw_for_the_whole_batch_is_told_from_none(data):
    """Also where the draw follows the generator, and two seeds may draw alike."""
    for p in (0.5, 1.0):
        transform = Compose(FlipsAll(p), Normalize(data.mean, data.std))
        (check,) = augmentation_checks(Loader(data.train.images, data.train.labels, transform))
        assert check.passed is (None if p == 1 else False), check


def test_a_flip_that_is_rarely_drawn_is_waited_for(data):
    found = set()
    for share in (0.005, 0.01, 0.02):
        transform = Compose(RandomHorizontalFlip(share), Normalize(data.mean, data.std))
        (check,) = augmentation_checks(Loader(data.train.images, data.train.labels, transform))
        assert check.passed is not False, check
        found.add(check.found)
    assert not any(line.startswith("0%") for line in found)


def test_labels_that_do_not_belong_to_the_images():
    """Sixteen copies of one image cannot be learnt as ten classes."""
    check, _ = mistakes.learns_by_heart(TinyNet(10), torch.randn(1, 3, 32, 32).repeat(16, 1, 1, 1), LABELS[:16])
    assert check.passed is False and "the labels do not belong to the images" in check.cause
