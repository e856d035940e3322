"""Each dataset in its own on-disk format, read to the pixel."""

import gzip
import pickle
import shutil
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from eva_utils.utils.data import load_data
from eva_utils.utils.images import ImageFiles
from eva_utils.utils.sources import describe_source, read_source
from eva_utils.utils.tiny_imagenet import read_tiny_imagenet


def write_idx(path, values):
    """MNIST's own format: two zeros, the type (8 is uint8), the number of axes, their lengths, the values."""
    path.write_bytes(struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes())


def make_mnist(root, name="MNIST"):
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    rng, made = np.random.default_rng(0), {}
    for part, count in (("train", 30), ("t10k", 20)):
        made[part] = rng.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count, dtype=np.uint8) % 10
        write_idx(folder / f"{part}-images-idx3-ubyte", made[part][0])
        write_idx(folder / f"{part}-labels-idx1-ubyte", made[part][1])
    return folder, made


@pytest.mark.parametrize("source, name", [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_becomes_three_equal_channels(source, name, tmp_path):
    _, made = make_mnist(tmp_path, name)
    data = load_data(source, root=tmp_path, batch_size=8)
    for loader, part in ((data.train, "train"), (data.test, "t10k")):
        images, labels = made[part]
        assert torch.equal(loader.images, torch.from_numpy(images)[:, None].expand(-1, 3, -1, -1))
        assert loader.labels.tolist() == labels.tolist() and loader.labels.dtype == torch.int64
    pixels = made["train"][0] / 255
    np.testing.assert_allclose((data.mean, data.std), [[pixels.mean()] * 3, [pixels.std()] * 3], rtol=1e-12)
    assert len(data.classes) == 10 and data.source == name
    assert next(iter(data.train))[0].shape == (8, 3, 28, 28)


def test_grey_images_are_resized_as_torchvision_does(tmp_path):
    from torchvision.transforms.v2.functional import resize

    _, made = make_mnist(tmp_path)
    data = load_data("mnist", root=tmp_path, size=32)
    expected = resize(torch.from_numpy(made["t10k"][0])[:, None], [32, 32], antialias=True)
    assert torch.equal(data.test.images, expected.expand(-1, 3, -1, -1))


@pytest.mark.parametrize("harm", ["cut", "zeros", "labels"])
def test_damaged_mnist_is_refused(harm, tmp_path):
    folder, _ = make_mnist(tmp_path)
    images = folder / "train-images-idx3-ubyte"
    if harm == "cut":
        images.write_bytes(images.read_bytes()[:-100])
    elif harm == "zeros":  # as a disk that was full leaves them
        images.write_bytes(bytes(images.stat().st_size))
    else:
        write_idx(folder / "t10k-labels-idx1-ubyte", np.zeros(19, np.uint8))
    with pytest.raises(ValueError, match=r"MNIST.raw is incomplete or damaged; remove it to download it again"):
        load_data("mnist", root=tmp_path)


def test_a_download_that_broke_off_is_made_again(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    folder, _ = make_mnist(tmp_path)
    missing = folder / "t10k-labels-idx1-ubyte"
    content = missing.read_bytes()
    missing.unlink()
    monkeypatch.setattr(MNIST, "download", lambda self: missing.write_bytes(content))
    assert len(load_data("mnist", root=tmp_path).test.labels) == 20


def test_a_set_split_anew_or_resized_says_so_and_has_statistics_of_its_own():
    data = load_data("shapes", size=16, test_share=0.25, limit=40, batch_size=40)
    assert data.source == "shapes, drawn, resized to 16x16, split anew with 25% for testing" and data.test_share == 0.25
    assert data.train.images.shape == (40, 3, 16, 16)
    pixels = data.train.images.double() / 255
    np.testing.assert_allclose(data.mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    whole = load_data("shapes", test_share=0.25)
    assert (len(whole.train.labels), len(whole.test.labels)) == (9000, 3000)
    assert whole.test.labels.bincount().tolist() == [300] * 10


def test_images_that_become_too_large_are_refused(monkeypatch):
    from eva_utils.utils import data as module

    monkeypatch.setattr(module, "memory_bytes", lambda device: 10_000_000)
    with pytest.raises(ValueError, match="size=224 makes more of the images than half of the memory holds; make it or"):
        load_data("shapes", size=224)


def test_absent_mnist_says_what_else_to_use(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    def offline(self):
        raise OSError("network is unreachable")

    monkeypatch.setattr(MNIST, "download", offline)
    with pytest.raises(RuntimeError, match=r"MNIST is not in .* \(network is unreachable\); use 'shapes'"):
        load_data("mnist", root=tmp_path)


def test_cifar100_has_its_fine_classes(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR100

    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    rng, labels = np.random.default_rng(0), list(range(100))
    content = {"data": rng.integers(0, 256, (100, 3072), np.uint8), "fine_labels": labels, "coarse_labels": [0] * 100}
    for part in ("train", "test"):
        (folder / part).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"fine {n}" for n in labels]}))
    monkeypatch.setattr(CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    data = load_data("cifar100", root=tmp_path)
    assert data.classes[7] == "fine 7" and data.test.labels.tolist() == labels and data.source == "CIFAR-100"
    assert torch.equal(data.test.images.flatten(1), torch.from_numpy(content["data"]))


def test_a_damaged_cifar100_archive_is_refused(tmp_path):
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(gzip.compress(b"another"))
    with pytest.raises(ValueError, match=r"cifar-100-python\.tar\.gz is damaged or holds another dataset"):
        load_data("cifar100", root=tmp_path)


KINDS = ["bmp", "gif", "jfif", "jpeg", "jpg", "png", "ppm", "tif", "tiff", "webp"]


def test_every_kind_of_image_file_is_found_in_either_layout(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for kind in KINDS:
            Image.new("RGB", (8, 8), "red").save(tmp_path / "images" / name / f"{kind}.{kind.upper()}")
    (train, labels), _, classes = read_source(tmp_path / "images", tmp_path)
    assert [path.stem for path in train.paths] == 2 * KINDS and labels.tolist() == [0] * 10 + [1] * 10
    assert classes == ["cat", "dog"]
    (tmp_path / "images").rename(tmp_path / "train")
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    train, test, _ = read_source(tmp_path, tmp_path)
    assert [path.stem for path in train[0].paths] == [path.stem for path in test[0].paths] == 2 * KINDS


def test_of_image_files_their_most_frequent_kinds_are_named():
    names = ["a.JPG", "b.jpeg", "c.jfif", "d.png", "e.PNG", "f.tif", "f.tif", "g.bmp"]
    files = ImageFiles([Path(name) for name in names])
    assert describe_source("runs/photographs", files) == "photographs, JPEG-coded, PNG, TIF image files"


NUMBERS = ["n01443537", "n01629819", "n02113023"]


@pytest.fixture
def tiny_imagenet(tmp_path):
    """Three classes of four training and two validation images, as tiny-imagenet-200.zip unpacks."""
    folder = tmp_path / "tiny-imagenet-200"
    rng = np.random.default_rng(0)

    def write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (64, 64, 3), np.uint8))

    annotations = []
    for place, number in enumerate(NUMBERS):
        names = [f"{number}_{n}.JPEG" for n in range(4)]
        for name in names:
            write(folder / "train" / number / "images" / name)
        boxes = "".join(f"{name}\t0\t0\t63\t63\n" for name in names)
        (folder / "train" / number / f"{number}_boxes.txt").write_text(boxes)
        annotations += [f"val_{2 * n + place % 2 * 7}.JPEG\t{number}\t0\t0\t63\t63\n" for n in (place, place + 3)]
    for line in annotations:
        write(folder / "val" / "images" / line.split("\t")[0])
    (folder / "val" / "val_annotations.txt").write_text("".join(annotations))
    write(folder / "test" / "images" / "test_0.JPEG")
    (folder / "wnids.txt").write_text("\n".join(reversed(NUMBERS)))
    words = {NUMBERS[0]: "goldfish, Carassius auratus", NUMBERS[1]: "crane", NUMBERS[2]: "crane, bird", "n0": "entity"}
    (folder / "words.txt").write_text("".join(f"{number}\t{text}\n" for number, text in words.items()))
    return folder


def test_tiny_imagenet_is_read_as_it_unpacks(tiny_imagenet):
    data = load_data(tiny_imagenet, batch_size=5)
    assert data.classes == ["goldfish", "crane n01629819", "crane n02113023"]
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    lines = (tiny_imagenet / "val" / "val_annotations.txt").read_text().splitlines()
    for image, label, line in zip(data.test.images, data.test.labels, lines, strict=True):
        name, number = line.split("\t")[:2]
        pixels = cv2.imread(str(tiny_imagenet / "val" / "images" / name))[..., ::-1].transpose(2, 0, 1)
        assert (image.numpy().astype(int) - pixels).__abs__().max() <= 2  # two decoders of JPEG
        assert NUMBERS[label] == number
    assert data.source == "tiny-imagenet-200, JPEG-coded image files"
    smaller = load_data(tiny_imagenet, size=16)
    assert smaller.train.images.shape[1:] == smaller.test.images.shape[1:] == (3, 16, 16)


def test_a_class_of_tiny_imagenet_without_words_has_its_number(tiny_imagenet):
    text = f"{NUMBERS[0]}\tcrème brûlée, dessert\na remark\n{NUMBERS[2]}\tcrane, bird\n"
    (tiny_imagenet / "words.txt").write_text(text, encoding="utf-8")
    assert load_data(tiny_imagenet).classes == ["crème brûlée", NUMBERS[1], "crane"]


def test_a_test_folder_without_labels_is_not_taken_where_val_has_them(image_folder):
    (image_folder / "test").rename(image_folder / "val")
    (image_folder / "test").mkdir()
    (image_folder / "val" / "cat" / "00.png").rename(image_folder / "test" / "1.png")
    with pytest.raises(ValueError, match=r"test has no class folder, so no labels; rename it, and .*val is tested on"):
        load_data(image_folder)
    (image_folder / "test").rename(image_folder / "unlabelled")
    assert len(load_data(image_folder).test.labels) == 4


def test_a_folder_is_looked_for_in_root_too(tiny_imagenet):
    data = load_data("tiny-imagenet-200", root=tiny_imagenet.parent)
    assert data.classes[0] == "goldfish" and data.source.startswith("tiny-imagenet-200")


def test_a_folder_here_goes_before_one_in_root(image_folder, tmp_path, monkeypatch):
    (tmp_path / "root").mkdir()
    shutil.copytree(image_folder, tmp_path / "root" / "images")
    (image_folder / "test" / "dog" / "00.png").unlink()
    monkeypatch.chdir(tmp_path)
    assert len(load_data("images", root="root").test.labels) == 4
    monkeypatch.chdir(image_folder)
    assert load_data(".").source == "images, PNG image files"


@pytest.mark.parametrize(
    "missing", ["wnids.txt", "words.txt", "val/val_annotations.txt", f"train/{NUMBERS[1]}/{NUMBERS[1]}_boxes.txt"]
)
def test_half_unpacked_tiny_imagenet_names_what_is_missing(missing, tiny_imagenet):
    (tiny_imagenet / missing).unlink()
    with pytest.raises(ValueError, match=rf"is half unpacked: {missing} missing; unpack tiny-imagenet-200\.zip again"):
        load_data(tiny_imagenet)


@pytest.mark.parametrize(
    "emptied", ["wnids.txt", "val/val_annotations.txt", f"train/{NUMBERS[1]}/{NUMBERS[1]}_boxes.txt"]
)
def test_an_empty_list_of_tiny_imagenet_is_named(emptied, tiny_imagenet):
    (tiny_imagenet / emptied).write_text(" \n\n")
    with pytest.raises(ValueError, match=rf"is half unpacked: {emptied} is empty; unpack"):
        load_data(tiny_imagenet)


@pytest.mark.parametrize(
    ("cut", "more"), [("val/val_annotations.txt", 4), (f"train/{NUMBERS[1]}/{NUMBERS[1]}_boxes.txt", 2)]
)
def test_a_list_of_tiny_imagenet_that_was_cut_is_noticed_by_the_images(cut, more, tiny_imagenet):
    (tiny_imagenet / cut).write_text((tiny_imagenet / cut).read_text().splitlines(keepends=True)[0])
    (tiny_imagenet / "val" / "images" / "._val_0.JPEG").touch()  # as macOS leaves them
    images = f"{cut.rsplit('/', 1)[0]}/images"
    with pytest.raises(ValueError, match=rf": {images}/\w+\.JPEG and {more} more images not in the list that"):
        load_data(tiny_imagenet)


@pytest.mark.parametrize("absent", ["val", "train"])
def test_a_tiny_imagenet_of_one_part_alone_is_half_unpacked(absent, tiny_imagenet):
    (tiny_imagenet / "wnids.txt").unlink()
    shutil.rmtree(tiny_imagenet / absent)
    with pytest.raises(ValueError, match=r"is half unpacked: wnids\.txt missing"):
        load_data(tiny_imagenet)


def test_a_damaged_list_of_tiny_imagenet_names_file_and_line(tiny_imagenet):
    with (tiny_imagenet / "val" / "val_annotations.txt").open("a") as file:
        file.write("val_99.JPEG\n")
    with pytest.raises(ValueError, match=r"val_annotations\.txt: no class of wnids\.txt is named in 'val_99\.JPEG'"):
        load_data(tiny_imagenet)


def test_a_rearranged_tiny_imagenet_is_a_folder_like_any(image_folder):
    (image_folder / "wnids.txt").write_text("cat\ndog\n")
    assert load_data(image_folder).classes == ["cat", "dog"]


def test_missing_images_of_tiny_imagenet_are_counted(tiny_imagenet):
    for name in (f"{NUMBERS[1]}_1.JPEG", f"{NUMBERS[1]}_3.JPEG"):
        (tiny_imagenet / "train" / NUMBERS[1] / "images" / name).unlink()
    with pytest.raises(ValueError, match=rf"{NUMBERS[1]}_1\.JPEG and 1 more images missing; unpack"):
        read_tiny_imagenet(tiny_imagenet)


def test_the_courses_split_of_seventy_to_thirty(tiny_imagenet):
    own = load_data(tiny_imagenet)
    data, again, other = (load_data(tiny_imagenet, test_share=0.3, seed=seed) for seed in (1, 1, 2))
    assert (len(data.train.labels), len(data.test.labels)) == (13, 5)

    def pairs(loader):
        return {
            (image.numpy().tobytes(), int(label)) for image, label in zip(loader.images, loader.labels, strict=True)
        }

    assert not pairs(data.train) & pairs(data.test)
    assert pairs(data.train) | pairs(data.test) == pairs(own.train) | pairs(own.test)
    assert pairs(data.test) == pairs(again.test) != pairs(other.test)
    counts = data.test.labels.bincount(minlength=3)
    assert counts.min() >= 1 and counts.max() <= 2  # of six images each
    with pytest.raises(ValueError, match="test_share is a number above 0 and below 1, not 1"):
        load_data(tiny_imagenet, test_share=1)
