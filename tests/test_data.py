import pickle
import re
import shutil
import warnings
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from eva_utils.utils import data as D
from eva_utils.utils.images import ImageFiles
from eva_utils.utils.splits import split_anew, stratified
from eva_utils.utils.transforms import denormalize


def all_batches(loader):
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def read_pixels(folder, name, number):
    return cv2.imread(str(folder / name / f"{number:02d}.png"))[..., ::-1].transpose(2, 0, 1).copy()


def test_a_folder_becomes_normalized_batches(image_folder):
    data = D.load_data(image_folder, batch_size=4)
    assert data.classes == ["cat", "dog"] and data.validation is None
    images, labels = all_batches(data.test)
    expected = [
        read_pixels(image_folder / "test", name, n) for name, count in (("cat", 3), ("dog", 2)) for n in range(count)
    ]
    pixels = (255 * denormalize(images, data.mean, data.std)).round().to(torch.uint8)
    assert torch.equal(pixels, torch.from_numpy(np.stack(expected)))
    assert labels.tolist() == [0, 0, 0, 1, 1] and labels.dtype == torch.int64 and images.dtype == torch.float32
    assert len(data.train) == 3 and [len(batch) for _, batch in data.train] == [4, 4, 2]


def test_mean_and_std_are_those_of_the_training_images(image_folder):
    data = D.load_data(image_folder)
    pixels = np.stack(
        [read_pixels(image_folder / "train", name, n) for name, c in (("cat", 6), ("dog", 4)) for n in range(c)]
    )
    np.testing.assert_allclose(data.mean, pixels.mean((0, 2, 3)) / 255, rtol=1e-12)
    np.testing.assert_allclose(data.std, pixels.std((0, 2, 3)) / 255, rtol=1e-12)


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_batches_equal_those_in_memory(image_folder, monkeypatch, workers):
    options = {"batch_size": 4, "recipe": "eva8_s7", "seed": 5, "validation": 2}
    in_memory = D.load_data(image_folder, **options)
    monkeypatch.setattr(D, "memory_bytes", lambda device: 0)
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match=r"the images take 4.5e-06 GB and do not fit .*; workers=2 shares the work"):
        streamed = D.load_data(image_folder, workers=workers, **options)
    assert not isinstance(streamed.train.images, torch.Tensor)
    assert (streamed.mean, streamed.std) == (in_memory.mean, in_memory.std)
    for name in ("train", "validation", "test"):
        # By which a run is known, so that it can go on on a machine of another size.
        assert getattr(streamed, name).describe() == getattr(in_memory, name).describe()
        for first, second in zip(getattr(in_memory, name), getattr(streamed, name), strict=True):
            assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_data_prints_as_a_few_lines(image_folder):
    data = D.load_data(image_folder, recipe="eva8_s7", batch_size=4)
    first, train, test, classes, numbers = repr(data).splitlines()
    assert first == "Data of images, PNG image files"
    assert train.startswith("  train: Loader(10 images in memory on cpu, batches of 4, RandomCrop(padding=4) -> ")
    assert train.endswith("-> Normalize -> Cutout(16, fill=0))")
    assert test.startswith("  test: Loader(5 images") and classes == "  2 classes: cat, dog"
    assert re.fullmatch(r"  mean 0\.\d{4}, 0\.\d{4}, 0\.\d{4}; standard deviation (0\.\d{4}(, )?){3}", numbers)


def test_other_files_of_the_same_names_and_sizes_are_other_data(tmp_path):
    for part, level in (("train", 0), ("test", 255)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / part / name / "0.bmp"), np.full((10, 10, 3), level, np.uint8))
    data, larger = D.load_data(tmp_path), D.load_data(tmp_path, size=16)
    assert len({loader.fingerprint for loader in (data.train, data.test, larger.train, larger.test)}) == 4


def test_a_held_out_split_is_stratified_seeded_and_disjoint():
    options = {"validation": 500, "batch_size": 1000}
    data, again, other = (D.load_data("shapes", seed=seed, **options) for seed in (1, 1, 2))
    assert data.validation.labels.bincount().tolist() == [50] * 10
    assert data.train.labels.bincount().tolist() == [950] * 10
    assert torch.equal(data.validation.images, again.validation.images)
    assert not torch.equal(data.validation.images, other.validation.images)
    held, kept = ({image.numpy().tobytes() for image in loader.images} for loader in (data.validation, data.train))
    assert len(held) == 500 and len(kept) == 9500 and not held & kept


def test_stratified_keeps_proportions():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    chosen = stratified(labels, 20, seed=3)
    assert labels[chosen].bincount().tolist() == [12, 6, 2]
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert not torch.equal(chosen, stratified(labels, 20, seed=4))


def test_limit_keeps_so_many_of_each_split():
    data = D.load_data("shapes", limit=30, validation=100)
    assert [len(loader.labels) for loader in (data.train, data.validation, data.test)] == [30, 30, 30]
    assert data.test.labels.bincount().tolist() == [3] * 10


def test_the_seed_chooses_which_images_a_limit_keeps(image_folder):
    first, again, other = (D.load_data(image_folder, limit=4, seed=seed) for seed in (1, 1, 2))
    assert first.train.labels.tolist() == other.train.labels.tolist() == [0, 0, 1, 1]
    for part in ("train", "test"):
        kept, kept_again, kept_other = (getattr(data, part).images for data in (first, again, other))
        assert torch.equal(kept, kept_again) and not torch.equal(kept, kept_other)


@pytest.mark.parametrize(("memory", "kept"), [(9000, torch.Tensor), (8999, ImageFiles)])
def test_images_that_take_up_to_half_of_the_memory_are_kept_in_it(memory, kept, image_folder, monkeypatch):
    """These are 15 of 3x10x10 bytes each, 4,500 in all."""
    monkeypatch.setattr(D, "memory_bytes", lambda device: memory)
    with (
        nullcontext() if kept is torch.Tensor else pytest.warns(UserWarning, match="do not fit into half of the memory")
    ):
        data = D.load_data(image_folder)
    assert isinstance(data.train.images, kept) and isinstance(data.test.images, kept)


@pytest.mark.parametrize("memory", [0, 9000])
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_damaged_image_is_named_before_any_training(part, memory, image_folder, monkeypatch):
    monkeypatch.setattr(D, "memory_bytes", lambda device: memory)
    path = image_folder / part / "dog" / "01.png"
    path.write_bytes(path.read_bytes()[:60])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of images that do not fit
        with pytest.raises(ValueError, match=r"dog.01\.png cannot be read as an image"):
            D.load_data(image_folder)


def test_numpys_numbers_and_paths_are_taken_as_pythons():
    counts = {"batch_size": 8, "limit": 20, "validation": 10, "size": 16}
    data = D.load_data(Path("shapes"), **{name: np.int64(count) for name, count in counts.items()})
    images, labels = next(iter(data.train))
    assert images.shape == (8, 3, 16, 16) and labels.shape == (8,)
    assert type(data.train.describe()["batch_size"]) is int


def test_loaders_know_their_classes_though_a_few_images_show_fewer():
    with pytest.warns(UserWarning, match="classes have no training image"):
        data = D.load_data("shapes", limit=1)
    assert data.train.classes == data.test.classes == 10


@pytest.mark.parametrize(("images", "share", "tested"), [(10, 0.01, 1), (10, 0.99, 9), (9, 0.3, 3), (9, 0.25, 2)])
def test_a_share_is_the_nearest_whole_number_and_neither_none_nor_all(images, share, tested):
    splits = [(torch.arange(n)[:, None, None, None], torch.zeros(n).long()) for n in (images - 4, 4)]
    train, test = split_anew(*splits, share, seed=0)
    assert (len(train[1]), len(test[1])) == (images - tested, tested)


def test_size_resizes_a_folder(image_folder):
    cv2.imwrite(str(image_folder / "train" / "cat" / "00.png"), np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(ValueError, match=r"01\.png is 10x10 pixels and .*00\.png is 30x20; give size= to resize"):
        D.load_data(image_folder)
    assert D.load_data(image_folder, size=16).train.images.shape == (10, 3, 16, 16)
    divided = D.load_data(image_folder, size=16, test_share=0.2)
    assert divided.train.images.shape == (12, 3, 16, 16) and divided.test.images.shape == (3, 3, 16, 16)


def test_grey_images_are_repeated_to_three_channels(image_folder):
    grey = np.arange(100, dtype=np.uint8).reshape(10, 10)
    cv2.imwrite(str(image_folder / "test" / "cat" / "00.png"), grey)
    first = D.load_data(image_folder).test.images[0]
    assert torch.equal(first, torch.from_numpy(grey).expand(3, 10, 10))


def make_cifar10(root, archive=False):
    """CIFAR-10's own on-disk format, five images a batch file."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    for name in names:
        content = {"data": rng.integers(0, 256, (5, 3072), np.uint8), "labels": rng.integers(0, 10, 5).tolist()}
        (folder / name).write_bytes(pickle.dumps(content))
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": classes}))
    return folder


@pytest.mark.filterwarnings("ignore:. of 10 classes")
def test_cifar10_is_read_from_its_own_format(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    folder = make_cifar10(tmp_path)
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    data = D.load_data("cifar10", root=tmp_path, batch_size=4)
    assert data.mean == D.CIFAR10_MEAN and data.std == D.CIFAR10_STD and data.classes[3] == "cat"
    assert data.train.images.shape == (25, 3, 32, 32)
    batches = [pickle.loads((folder / f"data_batch_{number}").read_bytes()) for number in range(1, 6)]
    pixels = np.concatenate([batch["data"] for batch in batches])
    assert torch.equal(data.train.images.flatten(1), torch.from_numpy(pixels))
    assert data.train.labels.tolist() == [label for batch in batches for label in batch["labels"]]
    expected = pickle.loads((folder / "test_batch").read_bytes())
    assert torch.equal(data.test.images.flatten(1), torch.from_numpy(expected["data"]))
    assert data.test.labels.tolist() == expected["labels"]


@pytest.mark.filterwarnings("ignore:. of 10 classes")
@pytest.mark.parametrize("changed", [{"size": 16}, {"test_share": 0.4}])
def test_cifar10_of_other_images_has_statistics_of_its_own(changed, tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    make_cifar10(tmp_path)
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    data = D.load_data("cifar10", root=tmp_path, **changed)
    pixels = data.train.images.double() / 255
    np.testing.assert_allclose(data.mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.std, pixels.std((0, 2, 3), correction=0), rtol=1e-12)
    same = D.load_data("cifar10", root=tmp_path, size=32)
    assert (same.mean, same.std) == (D.CIFAR10_MEAN, D.CIFAR10_STD)


@pytest.mark.filterwarnings("ignore:. of 10 classes")
def test_an_archive_beside_the_unpacked_folder_does_not_matter(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    make_cifar10(tmp_path)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"the beginning of a download")
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    assert len(D.load_data("cifar10", root=tmp_path).train.labels) == 25


def test_damaged_cifar10_is_refused(tmp_path):
    folder = make_cifar10(tmp_path)
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"cifar-10-batches-py is incomplete or damaged; remove it to download"):
        D.load_data("cifar10", root=tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == content


def test_absent_cifar10_says_what_else_to_use(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    def offline(self):
        raise OSError("network is unreachable")

    monkeypatch.setattr(CIFAR10, "download", offline)
    with pytest.raises(RuntimeError, match=r"could not be downloaded \(network is unreachable\); use 'shapes'"):
        D.load_data("cifar10", root=tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(RuntimeError, match=r"\); .* seems to hold images of its own: load_data\('.*'\) loads them"):
        D.load_data("cifar10", root=tmp_path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"source": "shape"}, r"unknown data source .*'shape': .*did you mean 'shapes'\?"),
        ({"source": "shapes", "batch_size": 0}, "batch_size is a whole number from 1 up, not 0"),
        ({"source": "shapes", "validation": 10_000}, "would hold out all of the 10000 training images"),
        ({"source": "shapes", "limit": 0}, "limit is a whole number from 1 up, not 0"),
        ({"source": "shapes", "size": 7}, "size is a whole number from 8 up, not 7"),
        ({"source": "shapes", "recipe": "eva6"}, r"unknown recipe 'eva6'.*did you mean 'eva6_s[89]'\?"),
        ({"source": "shapes", "device": "cuda:99"}, "device 'cuda:99' is not usable here"),
    ],
)
def test_misuse_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        D.load_data(**arguments)


def test_a_folder_laid_out_otherwise_is_refused(image_folder):
    (image_folder / "train" / "owl").mkdir()
    with pytest.raises(ValueError, match="must hold the same classes; only one has owl"):
        D.load_data(image_folder)
    (image_folder / "test" / "owl").mkdir()
    with pytest.raises(ValueError, match=r"train.owl has no image; add some or remove the folder"):
        D.load_data(image_folder)
    (image_folder / "train" / "owl" / "broken.png").write_bytes(b"\x89PNG")
    (image_folder / "test" / "owl" / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"broken\.png cannot be read as an image; restore or remove it"):
        D.load_data(image_folder)


def test_a_folder_without_its_parts_is_told_what_it_lacks(image_folder):
    (image_folder.parent / "runs").mkdir()
    with pytest.raises(
        ValueError, match=r"has no train/ folder and holds images/, runs/; give .*images, which has train/$"
    ):
        D.load_data(image_folder.parent)
    with pytest.raises(
        ValueError, match=r"runs has no train/ folder; it takes train/<class>/ with test/<class>/ or val"
    ):
        D.load_data(image_folder.parent / "runs")
    (image_folder / "test").rename(image_folder / "valid")
    advice = r"has no test/ folder and holds train/, valid/; rename the folder .* or give .*train with test_share=0\.2"
    with pytest.raises(ValueError, match=advice):
        D.load_data(image_folder)
    for part in ("train", "valid"):  # images of no class
        for path in list((image_folder / part).rglob("*.png")):
            path.rename(image_folder / part / f"{path.parent.name}-{path.name}")
    with pytest.raises(ValueError, match="is taken for a part, of classes, and not for a class"):
        D.load_data(image_folder, test_share=0.5)


def test_a_validation_folder_is_tested_on_where_there_is_no_other(image_folder):
    whole = D.load_data(image_folder)
    shutil.copytree(image_folder / "train", image_folder / "val")
    assert torch.equal(D.load_data(image_folder).test.images, whole.test.images)
    shutil.rmtree(image_folder / "val")
    (image_folder / "test").rename(image_folder / "val")
    data = D.load_data(image_folder)
    assert torch.equal(data.test.images, whole.test.images) and torch.equal(data.test.labels, whole.test.labels)
    (image_folder / "val" / "owl").mkdir()
    with pytest.raises(ValueError, match=r"train/ and val/ of .* must hold the same classes; only one has owl"):
        D.load_data(image_folder)


def test_classes_without_parts_are_divided_by_a_share(image_folder):
    classes = image_folder / "train"
    with pytest.raises(ValueError, match=r"train holds its classes without train/ and test/; give test_share=0\.2"):
        D.load_data(classes)
    data = D.load_data(classes, test_share=0.2)
    assert data.classes == ["cat", "dog"] and data.test.labels.tolist() == [0, 1]
    assert data.train.labels.bincount().tolist() == [5, 3]
    stored = D.load_data(image_folder).train.images
    found = torch.cat([data.train.images, data.test.images])
    assert {image.numpy().tobytes() for image in found} == {image.numpy().tobytes() for image in stored}
    (classes / "__MACOSX").mkdir()
    (classes / ".cache").mkdir()
    assert D.load_data(classes, test_share=0.2).classes == ["cat", "dog"]
    (classes / "owl").mkdir()
    with pytest.raises(ValueError, match=r"train.owl has no image; add some or remove the folder"):
        D.load_data(classes, test_share=0.2)
    (classes / "owl").rename(classes / "test")
    shutil.copy(classes / "cat" / "00.png", classes / "test")
    with pytest.raises(
        ValueError, match="holds cat/, dog/, test/; a folder named train/, test/ or val/ is taken for a part"
    ):
        D.load_data(classes, test_share=0.2)
    (classes / "test").rename(classes / "train")
    with pytest.raises(
        ValueError, match=r"holds cat/, dog/, train/; a folder named train/, test/ or val/ is taken for"
    ):
        D.load_data(classes, test_share=0.2)
    shutil.rmtree(classes / "train")
    shutil.rmtree(classes / "dog")
    with pytest.raises(ValueError, match="train has only the class 'cat'; put the images of each of two classes"):
        D.load_data(classes, test_share=0.2)


def test_files_of_a_kind_that_is_not_read_are_warned_of(image_folder):
    cats = image_folder / "test" / "cat"
    for name in ("a.heic", "b.HEIC", "c", "notes.txt", ".DS_Store", "Thumbs.db"):
        (cats / name).touch()
    (cats / "empty").mkdir()
    with pytest.warns(
        UserWarning, match=r"test are left out: 2 \.heic, 1 without a suffix; make \.jpg or \.png"
    ) as caught:
        assert len(D.load_data(image_folder).test.labels) == 5
    assert [warning.filename for warning in caught] == [__file__]


def test_images_in_a_folder_inside_a_classs_are_warned_of(image_folder):
    cats = image_folder / "train" / "cat"
    (cats / "more").mkdir()
    shutil.copy(next(cats.glob("*.png")), cats / "more" / "one.png")
    with pytest.warns(
        UserWarning, match=r"as .*train/cat/more, are left out; move them up into .*train/cat$"
    ) as caught:
        D.load_data(image_folder)
    assert [warning.filename for warning in caught] == [__file__]


def test_classes_without_an_image_are_warned_of(image_folder):
    with pytest.warns(
        UserWarning,
        match="1 of 2 classes have no test image, 'dog' for one: too few are there, limit= is too small, or test",
    ):
        assert D.load_data(image_folder, test_share=0.07).test.labels.tolist() == [0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        D.load_data(image_folder, test_share=0.2)


def test_a_damaged_archive_or_one_of_another_dataset_is_refused_and_kept(tmp_path):
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(b"the archive of another dataset")
    with pytest.raises(
        ValueError, match=r"cifar-10-python\.tar\.gz is damaged or holds another dataset \(MD5 .*remove it"
    ):
        D.load_data("cifar10", root=tmp_path)
    assert archive.read_bytes() == b"the archive of another dataset"
    with pytest.raises(
        ValueError, match="is a file; unpack it and give the folder, which holds train/<class>/ with test"
    ):
        D.load_data(archive)
    (tmp_path / "cat.JPG").touch()
    with pytest.raises(ValueError, match=r'cat\.JPG is an image; load_data takes a folder .* "A picture of your own"'):
        D.load_data(tmp_path / "cat.JPG")


def test_batches_are_made_on_the_cpu_where_the_best_device_is_mps(image_folder, monkeypatch):
    monkeypatch.setattr(D, "pick_device", lambda device: torch.device("mps"))
    data = D.load_data(image_folder)
    assert {loader.device.type for loader in (data.train, data.test)} == {"cpu"}
