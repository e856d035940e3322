import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from eva_utils.utils import transforms as T
from eva_utils.utils.cutout import Cutout
from eva_utils.utils.loader import Loader

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
MODULES = [
    T.RandomCrop(padding=4),
    T.RandomRotate(5),
    T.RandomHorizontalFlip(),
    T.Normalize(MEAN, STD),
    Cutout(16),
]


@pytest.mark.parametrize("degrees", [5.0, -5.0, 37.0, 90.0, -180.0])
@pytest.mark.parametrize("shape", [(32, 32), (17, 24)])
def test_rotate_agrees_with_torchvision(degrees, shape):
    images = torch.rand(3, 3, *shape)
    bilinear = v2.InterpolationMode.BILINEAR
    expected = v2.functional.rotate(images, degrees, interpolation=bilinear)
    angles = torch.full((3,), degrees)
    torch.testing.assert_close(T.rotate(images, angles), expected, rtol=0, atol=1e-5)
    levels = (255 * images).to(torch.uint8)
    expected = v2.functional.rotate(levels, degrees, interpolation=bilinear)
    assert (T.rotate(levels, angles).int() - expected.int()).abs().max() <= 1
    exact = v2.functional.rotate(levels.float(), degrees, interpolation=bilinear)
    assert (T.rotate(levels, angles) - exact).abs().max() <= 0.5 + 1e-2  # the nearest level


def test_rotate_is_counter_clockwise_and_each_image_its_own():
    images = torch.rand(2, 3, 8, 8)
    turned = T.rotate(images, torch.tensor([90.0, -90.0]))
    torch.testing.assert_close(turned[0], images[0].rot90(1, (1, 2)), rtol=0, atol=1e-5)
    torch.testing.assert_close(turned[1], images[1].rot90(-1, (1, 2)), rtol=0, atol=1e-5)
    torch.testing.assert_close(T.rotate(images[0], torch.tensor(90.0)), turned[0])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_agrees_with_torchvision_for_every_image(dtype):
    images = (255 * torch.rand(9, 3, 11, 14)).to(dtype)
    top, left = torch.arange(9), torch.arange(8, -1, -1)
    cropped = T.crop(images, top, left, padding=4)
    for n in range(9):
        expected = v2.functional.crop(v2.functional.pad(images[n], [4]), int(top[n]), int(left[n]), 11, 14)
        assert torch.equal(cropped[n], expected)
        assert torch.equal(T.crop(images[n], top[n], left[n], padding=4), expected)


def test_random_crop_draws_every_place_evenly():
    image = torch.arange(64.0).reshape(1, 8, 8) + 1
    batch = image.expand(8100, 1, 8, 8)
    places = T.RandomCrop(padding=4)(batch)[:, 0, 4, 4]
    # The value at (4, 4) is the image's at (top, left), and 0 where that is 8, outside: 81 places, 17 of them black.
    seen, counts = places.unique(return_counts=True)
    assert len(seen) == 65 and seen[0] == 0
    assert counts[1:].float().mean().item() == pytest.approx(100, rel=0.05)
    assert counts[1:].min() > 60 and counts[1:].max() < 140


def test_random_rotate_stays_within_its_degrees(monkeypatch):
    drawn = {}
    monkeypatch.setattr(T, "rotate", lambda images, degrees: drawn.update(degrees=degrees))
    T.RandomRotate(5)(torch.zeros(2000, 3, 8, 8))
    assert drawn["degrees"].min() < -4.9 and drawn["degrees"].max() > 4.9
    assert drawn["degrees"].abs().max() <= 5 and abs(drawn["degrees"].mean()) < 0.3
    T.RandomRotate(0)(torch.zeros(2, 3, 8, 8))
    assert not drawn["degrees"].any()


def test_flip_mirrors_the_chosen_images():
    images = torch.rand(1000, 3, 4, 4)
    flipped = T.RandomHorizontalFlip(0.25)(images)
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    kept = (flipped == images).flatten(1).all(1)
    assert (mirrored ^ kept).all() and 200 < mirrored.sum() < 300
    assert torch.equal(T.flip(images[0], torch.tensor(True)), images[0].flip(-1))
    assert torch.equal(T.RandomHorizontalFlip(1)(images), images.flip(-1))
    assert torch.equal(T.RandomHorizontalFlip(0)(images), images)


def test_normalize_agrees_with_torchvision_and_is_undone():
    levels = (255 * torch.rand(4, 3, 6, 6)).to(torch.uint8)
    scaled = v2.functional.to_dtype(levels, torch.float32, scale=True)
    expected = v2.functional.normalize(scaled, list(MEAN), list(STD))
    torch.testing.assert_close(T.normalize(levels, MEAN, STD), expected)
    torch.testing.assert_close(T.normalize(scaled, MEAN, STD), expected)
    torch.testing.assert_close(T.denormalize(expected, MEAN, STD), scaled)
    torch.testing.assert_close(T.denormalize(expected[0], MEAN, STD), scaled[0])
    beyond = torch.tensor([-9.0, 9.0]).expand(3, 1, 2)
    assert T.denormalize(beyond, MEAN, STD).tolist() == [[[0, 1]]] * 3
    precise = v2.functional.normalize(scaled.double(), list(MEAN), list(STD))
    torch.testing.assert_close(T.normalize(scaled.double(), MEAN, STD), precise, rtol=1e-12, atol=0)
    assert T.normalize(scaled.half(), MEAN, STD).dtype == torch.float16


@pytest.mark.parametrize("module", MODULES, ids=lambda module: type(module).__name__)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_one_image_a_batch_and_compose(module, dtype):
    batch = (255 * torch.rand(5, 3, 32, 32)).to(dtype)
    for images in (batch, batch[0]):
        first, second = (module(images, torch.Generator().manual_seed(4)) for _ in range(2))
        assert first.shape == images.shape and torch.equal(first, second)
        assert first.dtype == (torch.float32 if isinstance(module, T.Normalize) else dtype)
    pixels = batch[0].permute(1, 2, 0).to(torch.uint8).numpy()
    torch.manual_seed(6)
    composed = v2.Compose([v2.ToImage(), module])(pixels)
    torch.manual_seed(6)
    torch.testing.assert_close(composed.as_subclass(torch.Tensor), module(batch[0].to(torch.uint8)))


def test_images_of_a_batch_differ():
    batch = torch.rand(1, 3, 32, 32).expand(16, 3, 32, 32)
    for module in (T.RandomCrop(padding=4), T.RandomRotate(5), Cutout(16)):
        assert len({image.numpy().tobytes() for image in module(batch)}) > 8


class Recorder(nn.Module):
    """A model that keeps the batches it is shown."""

    def __init__(self):
        super().__init__()
        self.fc, self.seen = nn.Linear(1, 2), []

    def forward(self, x):
        self.seen.append(x.clone())
        return self.fc(x.mean(dim=(1, 2, 3))[:, None])


def seen_by_a_model(recipe):
    """What a model is shown of 64 white images, through `fit`: white is 2, black -2, the mean 0."""
    from eva_utils.main import fit

    images, labels = torch.full((64, 3, 32, 32), 255, dtype=torch.uint8), torch.arange(64) % 2
    transform = T.train_transform(recipe, (0.5,) * 3, (0.25,) * 3)
    model = Recorder()
    loader = Loader(images, labels, transform, batch_size=32, shuffle=True)
    fit(model, loader, [(torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]))], epochs=1, precision="float32", log=None)
    return torch.cat([batch for batch in model.seen if len(batch) == 32])


def share_with(seen, value):
    """Share of images in which at least one pixel has this value."""
    return ((seen - value).abs() < 1e-5).flatten(1).any(1).float().mean().item()


def test_each_transform_of_a_recipe_reaches_the_pixels_the_model_sees():
    plain, seed_recipe, rotated = map(seen_by_a_model, ("none", "eva8_s7", "eva6_s8"))
    assert (plain == 2).all()
    between = {
        name: ((seen.abs() < 1.99) & (seen.abs() > 0.01)).flatten(1).any(1).float().mean().item()
        for name, seen in (("eva8_s7", seed_recipe), ("eva6_s8", rotated))
    }
    for seen in (seed_recipe, rotated):
        assert share_with(seen, 0) == 1  # Cutout: the mean colour
        assert share_with(seen, -2) > 0.8  # RandomCrop: the black border, but for the unshifted
    assert between["eva8_s7"] == 0 and between["eva6_s8"] > 0.8  # RandomRotate: interpolated pixels


def test_recipes_are_in_the_stated_order():
    assert repr(T.train_transform("eva6_s8", MEAN, STD)) == (
        "RandomCrop(padding=4) -> RandomRotate(5) -> "
        "Normalize(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)) -> Cutout(16, fill=0)"
    )
    assert repr(T.train_transform("speedrun", MEAN, STD)) == (
        "RandomCrop(padding=4) -> RandomHorizontalFlip(p=0.5) -> "
        "Normalize(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)) -> Cutout(12, fill=0)"
    )
    assert [type(part) for part in T.train_transform("eva8_s7", MEAN, STD)] == [T.RandomCrop, T.Normalize, Cutout]
    assert [type(part) for part in T.test_transform(MEAN, STD)] == [T.Normalize]
    before, normalized = "RandomCrop(padding=4) -> RandomHorizontalFlip(p=0.5)", repr(T.test_transform(MEAN, STD))
    assert repr(T.train_transform("eva6_s9", MEAN, STD)) == f"{before} -> {normalized} -> Cutout(8, fill=0)"
    assert repr(T.train_transform("eva8_s10", MEAN, STD)) == f"{before} -> {normalized}"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: T.train_transform("eva7_s8", MEAN, STD), r"unknown recipe 'eva7_s8'.*did you mean 'eva6_s8'\?"),
        (lambda: T.RandomCrop(padding=-1), "padding is a whole number from 0 up, not -1"),
        (lambda: T.RandomCrop(32)(torch.zeros(3, 28, 28)), "keeps the size of 32x32 images, got 28x28"),
        (lambda: T.RandomCrop(32)(torch.zeros(3, 28, 32)), "keeps the size of 32x32 images, got 28x32"),
        (lambda: T.RandomRotate(270), "degrees is the largest turn, from 0 to 180, not 270"),
        (lambda: T.RandomRotate("5"), "degrees is the largest turn, from 0 to 180, not '5'"),
        (lambda: T.RandomRotate(True), "degrees is the largest turn, from 0 to 180, not True"),
        (lambda: T.RandomHorizontalFlip("0.5"), "p is a probability from 0 to 1, not '0.5'"),
        (lambda: T.RandomHorizontalFlip(2), "p is a probability from 0 to 1, not 2"),
        (lambda: T.Normalize(MEAN, (0.2, 0, 0.2)), "every standard deviation must be above 0"),
        (lambda: T.Normalize(MEAN, (0.2, float("nan"), 0.2)), "every standard deviation must be above 0"),
        (lambda: T.normalize(torch.zeros(1, 8, 8), MEAN, STD), "got 3 values for images of 1 channels"),
        (lambda: T.normalize(torch.zeros(3, 8, 8).int(), MEAN, STD), r"to be normalized, not torch\.int32"),
        (lambda: T.denormalize(torch.zeros(3, 8, 8, dtype=torch.uint8), MEAN, STD), r"normalized, not torch\.uint8"),
        (lambda: T.rotate(torch.zeros(8, 8), torch.tensor(5.0)), r"got shape \(8, 8\)"),
    ],
)
def test_misuse_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_first_normalized_in_inference_mode_is_differentiable_later():
    mean, std = (0.125, 0.25, 0.375), (0.5, 0.25, 0.125)  # of no other test: the columns are kept
    with torch.inference_mode():
        T.normalize(torch.zeros(3, 4, 4), mean, std)
    images = torch.zeros(3, 4, 4, requires_grad=True)
    T.normalize(images, mean, std).sum().backward()
    torch.testing.assert_close(images.grad, (1 / torch.tensor(std))[:, None, None].expand(3, 4, 4))


def test_numpys_whole_numbers_are_sizes_too():
    images = torch.rand(4, 3, 8, 8)
    for module in (T.RandomCrop(np.int64(8), padding=np.int64(2)), Cutout(np.int64(4))):
        assert module(images).shape == images.shape
