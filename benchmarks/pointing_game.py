"""The pointing game: how often the peak of a Grad-CAM map lies on the drawn object (Zhang et al., 2018).

    make demo && python benchmarks/pointing_game.py --run runs/demo

On the test images of `shapes`, whose objects' pixels are known, for the predicted class: the trained network, the
same network untrained, and three that do not look at the image: a point drawn anywhere, the peak of another image's
map, and the one pixel that is best for all, since objects are drawn around the middle. https://arxiv.org/abs/1608.00507
"""

import argparse
from pathlib import Path

import common  # first: it finds the package
import torch

import eva_utils as eva
from eva_utils.utils.gradcam import GradCAM
from eva_utils.utils.shapes import make_shapes


def hits(model, loader, masks, layer):
    """Return the share of maps whose peak lies on the object, and on the next image's, and of those all zeros."""
    cam = GradCAM(model, [layer])
    maps = torch.cat([cam(images)[layer].flatten(1) for images, _ in loader])
    peaks, blank, masks = maps.argmax(1), ~maps.any(1), masks.flatten(1)
    on_own, on_next = (
        (masks.roll(shift, 0).gather(1, peaks[:, None])[:, 0] & ~blank).float().mean().item() for shift in (0, -1)
    )
    return on_own, on_next, blank.float().mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--run", type=Path, default=common.ROOT / "runs" / "demo", help="a finished run of small_resnet on shapes"
    )
    parser.add_argument("--layers", nargs="+", default=["layer2", "layer3.0", "layer3"])
    args = parser.parse_args()

    data, masks = eva.load_data("shapes"), make_shapes("test").masks
    eva.seed_everything(1)
    untrained = eva.small_resnet()
    trained = eva.load_weights(eva.small_resnet(), args.run)
    accuracy = eva.test(trained, data.test).accuracy
    rows = []
    for layer in args.layers:
        for name, model in (("trained", trained), ("untrained", untrained)):
            own, following, empty = hits(model, data.test, masks, layer)
            figure = f"{100 * own:.1f}% on the object, {100 * following:.1f}% on the next image's, "
            rows.append(common.Row(f"{layer}, {name}", f"{figure}{100 * empty:.1f}% all zeros"))
    note = (
        f"2,000 test images, small_resnet of {accuracy:.2f}% accuracy from `make demo`; a point drawn anywhere is "
        f"on the object in {100 * masks.float().mean():.1f}%, the best one pixel for all in "
        f"{100 * masks.float().mean(0).max():.1f}%: objects are drawn around the middle."
    )
    common.publish("Pointing game of Grad-CAM on shapes", rows, note)


if __name__ == "__main__":
    main()
