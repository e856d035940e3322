import cv2
import numpy as np
import pytest
import torch
from torch import nn

from eva_utils.utils import sources
from eva_utils.utils.shapes import CLASSES, make_shapes


@pytest.fixture(scope="module")
def test_split():
    return make_shapes("test")


def test_the_same_seed_draws_the_same(test_split):
    again, other = make_shapes("test"), make_shapes("test", seed=1)
    for part, same in zip(test_split, again, strict=True):
        assert torch.equal(part, same)
    assert not torch.equal(test_split.images, other.images)


def test_counts_types_and_balance(test_split):
    assert test_split.images.shape == (2000, 3, 32, 32) and test_split.images.dtype == torch.uint8
    assert test_split.masks.shape == (2000, 32, 32) and test_split.masks.dtype == torch.bool
    assert test_split.labels.bincount().tolist() == [200] * len(CLASSES)
    assert len({image.numpy().tobytes() for image in test_split.images}) == 2000


def test_masks_cover_the_object(test_split):
    """Inside the mask and outside it, the colours of an image differ by more than they do within either."""
    images, masks = test_split.images.double(), test_split.masks[:, None]
    inside = (images * masks).sum((2, 3)) / masks.sum((2, 3))
    outside = (images * ~masks).sum((2, 3)) / (~masks).sum((2, 3))
    assert (inside - outside).abs().amax(1).quantile(0.05) > 50
    # A circle's mask is a disc: its area follows from its width.
    circles = test_split.masks[test_split.labels == CLASSES.index("circle")]
    disc = torch.pi * (circles.any(1).sum(1) / 2) ** 2
    assert (circles.sum((1, 2)) / disc).mean().item() == pytest.approx(1, abs=0.03)


def test_each_class_has_the_outline_of_its_name_at_any_turn(test_split):
    """Rings and crescents are open in the middle, and of the others' hulls crosses, stars and arrows leave parts."""
    middle, share, turns = ({name: [] for name in CLASSES} for _ in range(3))
    for mask, label in zip(test_split.masks.numpy(), test_split.labels.tolist(), strict=True):
        points = np.argwhere(mask)[:, ::-1].astype(np.float32)
        (x, y), _ = cv2.minEnclosingCircle(points)
        hull = cv2.convexHull(points)
        middle[CLASSES[label]].append(mask[round(y), round(x)])
        pixels = cv2.contourArea(hull) + cv2.arcLength(hull, closed=True) / 2 + 1  # of a whole hull (Pick's theorem)
        share[CLASSES[label]].append(len(points) / pixels)
        angle = np.linalg.eigh(np.cov(points.T))[1][:, 1]  # of the longest axis
        turns[CLASSES[label]].append(complex(*angle) ** 2)
    assert {name for name, open_ in middle.items() if np.mean(open_) < 0.5} == {"ring", "crescent"}
    full = {name for name, shares in share.items() if np.mean(shares) > 0.85}
    assert full == {"circle", "triangle", "square", "bar", "heart"}
    assert np.mean(share["crescent"]) < 0.6 < np.mean(share["ring"])
    assert abs(np.mean(turns["bar"])) < 0.2 and abs(np.mean(turns["arrow"])) < 0.2


def test_a_linear_model_stays_below_60_percent(test_split):
    train = sources.shapes.make_shapes("train")
    x, x_test = (split.images.flatten(1).float() / 255 - 0.5 for split in (train, test_split))
    model = nn.Linear(x.shape[1], 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(5):
        for batch in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), train.labels[batch]).backward()
            optimizer.step()
    accuracy = (model(x_test).argmax(1) == test_split.labels).float().mean().item()
    learnt = (model(x).argmax(1) == train.labels).float().mean().item()
    assert accuracy < 0.60 and learnt > 0.13  # of what it was trained on


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split is 'train' or 'test', not 'validation'"):
        make_shapes("validation")
