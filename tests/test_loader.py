import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from eva_utils.utils.images import ImageFiles
from eva_utils.utils.loader import Loader, take_fingerprint
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
    second.set_epoch(2)
    assert not torch.equal(second.order(), make(seed=2).order())  # another seed is no later epoch


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
    default = Loader(IMAGES, LABELS, make().transform)
    assert [labels.tolist() for _, labels in default] == [list(range(10))]
    assert default.describe().items() >= {"batch_size": 128, "shuffle": False, "seed": 0}.items()
    changed = IMAGES.clone()
    changed[7, 1, 2, 3] ^= 1
    other = Loader(changed, LABELS, make().transform).describe()
    relabelled = Loader(IMAGES, LABELS.flip(0), make().transform).describe()
    reshaped = Loader(IMAGES.reshape(10, 3, 4, 16), LABELS, make().transform).describe()
    assert len({one["fingerprint"] for one in (described, other, relabelled, reshaped)}) == 4


def test_files_are_known_by_names_sizes_and_content(image_folder):
    paths = [image_folder / "train" / name / f"{number:02d}.png" for name in ("cat", "dog") for number in range(4)]
    seen = {take_fingerprint(ImageFiles(paths), LABELS[:8])}

    def known(files=paths, size=None, labels=LABELS[:8]):
        seen.add(take_fingerprint(ImageFiles(files, size), labels))
        return len(seen)

    assert known() == 1
    assert known(size=16) == 2 and known(labels=LABELS[:8].flip(0)) == 3
    content = paths[5].read_bytes()
    paths[5].write_bytes(content[:-1] + b"?")
    assert known() == 4
    paths[5].write_bytes(content)
    (image_folder / "train" / "dog").rename(image_folder / "train" / "wolf")
    wolves = [path.parent.parent / "wolf" / path.name for path in paths[4:]]
    assert known([*paths[:4], *wolves]) == 5
    wolves[0] = wolves[0].rename(wolves[0].with_stem("0"))
    assert known([*paths[:4], *wolves]) == 6


def test_classes_are_those_given_or_go_by_the_highest_label():
    transform = make().transform
    assert Loader(IMAGES, LABELS, transform).classes == 10
    assert Loader(IMAGES, LABELS, transform, classes=12).classes == 12
    assert Loader(IMAGES[:0], LABELS[:0], transform).classes == 0


def test_the_parts_of_a_loader_draw_augmentations_of_their_own():
    transform = train_transform("eva8_s10", (0.5,) * 3, (0.2,) * 3)
    loader = Loader(IMAGES[:1].expand(8, -1, -1, -1), torch.arange(8), transform, batch_size=8)
    first, second = (next(iter(loader.shard(part, 2)))[0] for part in range(2))
    assert first.shape == second.shape == (4, 3, 8, 8) and not torch.equal(first, second)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_batches_are_made_on_the_device():
    images, labels = next(iter(make(device=torch.device("cuda"))))
    expected, numbers = next(iter(make()))
    assert images.is_cuda and labels.is_cuda and labels.tolist() == numbers.tolist()
    torch.testing.assert_close(images.cpu(), expected)
    assert next(iter(make(device=torch.device("cuda"), recipe="eva6_s8")))[0].is_cuda


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
