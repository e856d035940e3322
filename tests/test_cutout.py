import pytest
import torch

from eva_utils.utils.cutout import Cutout, cutout


def by_hand(images, y, x, size, fill):
    out = images.clone()
    for n in range(len(images)):
        top, left = int(y[n]) - size // 2, int(x[n]) - size // 2
        for row in range(top, top + size):
            for column in range(left, left + size):
                if 0 <= row < images.shape[2] and 0 <= column < images.shape[3]:
                    out[n, :, row, column] = fill
    return out


@pytest.mark.parametrize("size, shape", [(16, (32, 32)), (5, (9, 14)), (1, (8, 8)), (40, (8, 8))])
def test_equals_a_loop_over_pixels(size, shape):
    images = torch.randn(6, 3, *shape)
    y, x = torch.randint(shape[0], (6,)), torch.randint(shape[1], (6,))
    torch.testing.assert_close(cutout(images, y, x, size, 0.5), by_hand(images, y, x, size, 0.5), rtol=0, atol=0)
    torch.testing.assert_close(cutout(images[0], y[0], x[0], size), by_hand(images[:1], y, x, size, 0.0)[0])


def test_size_is_the_side():
    image = cutout(torch.ones(3, 32, 32), torch.tensor(16), torch.tensor(16), 16)
    assert (image == 0).sum() == 3 * 16 * 16


def test_draws_a_square_for_each_image_from_the_whole_image():
    zeros = Cutout(16)(torch.ones(4000, 1, 32, 32)) == 0
    areas = zeros.sum(dim=(1, 2, 3))
    # Centres are even over 32x32: the mean side inside is (17 * 16 + 2 * sum(8..15) - 8) / 32 by enumeration.
    side = sum(min(c + 8, 32) - max(c - 8, 0) for c in range(32)) / 32
    assert areas.max() == 256 and areas.min() == 64
    assert areas.float().mean().item() == pytest.approx(side**2, rel=0.02)
    assert zeros.any(0).all()


def test_every_pixel_of_an_oblong_image_is_a_centre():
    drawn = Cutout(1)(torch.ones(2000, 1, 4, 12))
    assert (drawn == 0).sum(dim=(1, 2, 3)).unique().tolist() == [1]  # none falls outside
    counts = (drawn == 0).sum(dim=(0, 1))
    assert counts.min() > 15 and counts.max() < 75  # about 42 for each pixel


def test_the_generator_decides_and_torchs_own_is_left_alone():
    images = torch.randn(5, 3, 16, 16)
    before = torch.get_rng_state()
    first, second = (Cutout(4)(images, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, Cutout(4)(images, torch.Generator().manual_seed(8)))


def test_the_square_has_the_colour_that_is_asked_for():
    images = torch.zeros(20, 3, 16, 16)
    grey, black = (Cutout(4, fill)(images, torch.Generator().manual_seed(7)) for fill in (0.5, 0.0))
    assert grey.unique().tolist() == [0, 0.5] and torch.equal(black, images)
    holes = Cutout(4)(images + 1, torch.Generator().manual_seed(7)) == 0
    assert torch.equal(grey == 0.5, holes) and repr(Cutout(4, 0.5)) == "Cutout(4, fill=0.5)"


@pytest.mark.parametrize("size", [0, -1, 2.5, "16", True])
def test_refuses_a_size_that_is_no_side(size):
    with pytest.raises(ValueError, match="Cutout's size, its side in pixels, is a whole number from 1 up"):
        Cutout(size)
