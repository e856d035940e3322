"""A student's own pipeline: the same pixels as when it is called by hand, the same batches for the same seed."""

import random

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from eva_utils.utils.data import load_data
from eva_utils.utils.per_image import PerImage

IMAGES = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def pipelines():
    albumentations = pytest.importorskip("albumentations")
    steps = [albumentations.HorizontalFlip(p=0.5), albumentations.RandomBrightnessContrast(p=1.0)]
    return {
        "albumentations": albumentations.Compose(steps),
        "torchvision": v2.Compose([v2.RandomHorizontalFlip(), v2.ColorJitter(brightness=0.5)]),
    }


@pytest.mark.parametrize("package", ["albumentations", "torchvision"])
def test_batches_come_from_the_generator_alone(package):
    step = PerImage(pipelines()[package])
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first, again, other = (step(IMAGES, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.dtype == torch.uint8 and first.shape == IMAGES.shape
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert (
        len({tuple(image.flatten().tolist()) for image in step(IMAGES[:1].expand(6, -1, -1, -1), torch.Generator())})
        == 6
    )
    assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]


def test_albumentations_changes_the_pixels_it_says():
    albumentations = pytest.importorskip("albumentations")
    step = PerImage(albumentations.Compose([albumentations.HorizontalFlip(p=1.0), albumentations.InvertImg(p=1.0)]))
    assert torch.equal(step(IMAGES), 255 - IMAGES.flip(-1))


@pytest.mark.parametrize("package", ["albumentations", "torchvision"])
def test_load_data_takes_it_as_a_recipe(package):
    data = load_data("shapes", limit=40, batch_size=16, recipe=pipelines()[package], seed=4)
    images, labels = next(iter(data.train))
    order = data.train.order()[:16]
    assert images.dtype == torch.float32 and torch.equal(labels, data.train.labels[order])
    generator = torch.Generator().manual_seed(data.train._seeds()[1])
    changed = PerImage(pipelines()[package])(data.train.images[order], generator)
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    torch.testing.assert_close(images, (changed / 255 - mean) / std)
    test = (data.test.images[:16] / 255 - mean) / std
    torch.testing.assert_close(next(iter(data.test))[0], test)
    assert package != "albumentations" or "HorizontalFlip" in data.train.describe()["transform"]


def test_misuse_is_refused():
    from torchvision import transforms as v1

    for wrong, named in (
        (5, r"builtins\.int$"),
        (lambda image: image, r"builtins\.function$"),
        (v1.Compose([]), r"Compose; import torchvision\.transforms\.v2, which has the same names"),
        ([v2.RandomCrop(32)], r"list; put the parts into one, as v2\.Compose"),
    ):
        with pytest.raises(TypeError, match=rf"a recipe is a name, an albumentations.*v2, not .*{named}"):
            load_data("shapes", recipe=wrong)
    with pytest.raises(
        ValueError, match=r"the pipeline failed on a uint8 image of \(3, 32, 32\) \(Input tensor should be"
    ):
        load_data("shapes", limit=20, recipe=v2.Normalize([0.5] * 3, [0.5] * 3))
    normalizing = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)])
    with pytest.raises(ValueError, match=r"returned torch\.float32 \(3, 32, 32\) for a uint8 image; leave its normal"):
        PerImage(normalizing)(IMAGES)

    with pytest.raises(ValueError, match=r"made \(3, 24, 24\) of an image of \(3, 32, 32\), and the test images stay"):
        PerImage(v2.RandomCrop(24))(IMAGES)


def test_a_pipeline_that_works_in_place_leaves_the_images_as_they_are():
    plain = load_data("shapes", limit=20)
    erased = load_data("shapes", limit=20, recipe=v2.RandomErasing(p=1, inplace=True))
    assert not torch.equal(next(iter(erased.train))[0], next(iter(plain.train))[0])
    assert torch.equal(erased.train.images, plain.train.images)


def test_arrays_that_are_no_image_of_three_channels_are_named():
    albumentations = pytest.importorskip("albumentations")

    def returning(change):
        return albumentations.Compose([albumentations.Lambda(name="change", image=lambda image, **_: change(image))])

    with pytest.raises(ValueError, match=r"the pipeline made \(1, 32, 32\) of \(3, 32, 32\); keep three channels"):
        PerImage(returning(lambda image: image[..., 0]))(IMAGES)
    with pytest.raises(ValueError, match=r"the pipeline made \(1, 32, 32\) of \(3, 32, 32\); keep three channels"):
        PerImage(returning(lambda image: image[..., :1]))(IMAGES)


def test_a_class_is_no_pipeline():
    albumentations = pytest.importorskip("albumentations")
    for kind in (albumentations.HorizontalFlip, v2.RandomHorizontalFlip):
        with pytest.raises(TypeError, match=r"a recipe is a name, an albumentations\.Compose or a module of"):
            PerImage(kind)


def test_a_pipelines_description_is_the_same_in_every_process():
    albumentations = pytest.importorskip("albumentations")
    pipelines = [
        albumentations.Compose([albumentations.Lambda(name="same", image=lambda image, **_: image)]) for _ in range(2)
    ]
    first, second = (repr(PerImage(pipeline)) for pipeline in pipelines)
    assert first == second and "0x" not in first
