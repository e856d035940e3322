import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from eva_utils.utils.loader import Loader
from eva_utils.utils.transforms import train_transform

IMAGES = torch.arange(10 * 3 * 8 * 8).reshape(10, 3, 8, 8).remainder(251).to(torch.uint8)
LABELS = torch.arange(10)


def make(**options):
    transform = train_transform(options.pop("recipe", "none"), (0.5,) * 3, (0.2,) * 3)
    return Loader(IMAGES, LABELS, transform, **{"batch_size": 4, "shuffle": True, "seed": 1, **options})


def content(loader):
    return [(images.numpy().tobytes(), labels.tolist()) for images, labels in loader]


def test_an_epoch_is_a_function_of_seed_and_epoch():
    first, second = make(recipe="eva6_s8"), make(recipe="eva6_s8")
    once = content(first)
    assert content(first) == once == content(second)
    second.set_epoch(2)
    assert content(second) != once
    second.set_epoch(1)
    assert content(second) == once
    assert content(make(recipe="eva6_s8", seed=2)) != once


def test_every_sample_once_with_its_own_label():
    loader = make()
    seen = [(image, label) for images, labels in loader for image, label in zip(images, labels, strict=True)]
    assert sorted(int(label) for _, label in seen) == list(range(10))
    for image, label in seen:
        torch.testing.assert_close(image, (IMAGES[label].float() / 255 - 0.5) / 0.2)
    assert [int(label) for labels in (labels for _, labels in make(shuffle=False)) for label in labels] == list(
        range(10)
    )
    assert len(loader) == 3


def test_torchs_generator_is_left_alone():
    before = torch.get_rng_state()
    content(make(recipe="eva6_s8"))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_description_names_what_decides_the_batches():
    described = make().describe()
    assert described["images"] == 10 and described["seed"] == 1 and described["batch_size"] == 4
    assert described["transform"] == "Normalize(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))"
    changed = IMAGES.clone()
    changed[7, 1, 2, 3] ^= 1
    other = Loader(changed, LABELS, make().transform).describe()
    relabelled = Loader(IMAGES, LABELS.flip(0), make().transform).describe()
    assert len({described["fingerprint"], other["fingerprint"], relabelled["fingerprint"]}) == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_batches_are_made_on_the_device():
    images, labels = next(iter(make(device=torch.device("cuda"), recipe="eva6_s8")))
    assert images.is_cuda and labels.is_cuda


class CountOperations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recipe", ["eva6_s8", "eva6_s9"])
def test_a_batch_takes_as_many_operations_however_many_images_it_has(recipe):
    counts = []
    for size in (2, 2, 10):  # the first time torch has more to do
        loader = make(recipe=recipe, batch_size=size)
        with CountOperations() as counted:
            next(iter(loader))
        counts.append(counted.count)
    assert counts[1] == counts[2]


def test_images_in_another_layout_are_the_same_and_labels_must_be_as_many():
    images, labels = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8), torch.arange(6)
    transform = train_transform("none", (0.5,) * 3, (0.2,) * 3)
    last = images.to(memory_format=torch.channels_last)
    plain, other = Loader(images, labels, transform), Loader(last, labels, transform)
    assert other.fingerprint == plain.fingerprint and torch.equal(next(iter(other))[0], next(iter(plain))[0])
    with pytest.raises(ValueError, match="there are 6 images and 5 labels; give one label an image"):
        Loader(images, labels[:5], transform)
