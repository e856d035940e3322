"""The pointing game: how often the peak of a Grad-CAM map lies on the drawn object (Zhang et al., 2018).

    make demo && python benchmarks/pointing_game.py --run runs/demo

On the test images of `shapes`, whose objects' pixels are known, for the predicted class: the trained
network, the same network untrained, and a point drawn anywhere. https://arxiv.org/abs/1608.00507
"""

import argparse
from pathlib import Path

import common  # first: it finds the package

import eva_utils as eva
from eva_utils.utils.gradcam import GradCAM
from eva_utils.utils.shapes import make_shapes


def hits(model, loader, masks, layer):
    """Return the share of maps whose peak lies on the object, and the share of maps that are all zeros."""
    on_object, empty, start = 0, 0, 0
    cam = GradCAM(model, [layer])
    for images, _ in loader:
        maps = cam(images)[layer].flatten(1)
        peaks = masks[start : start + len(maps)].flatten(1).gather(1, maps.argmax(1, keepdim=True))[:, 0]
        blank = ~maps.any(1)
        on_object += int((peaks & ~blank).sum())
        empty += int(blank.sum())
        start += len(maps)
    return on_object / start, empty / start


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
            share, empty = hits(model, data.test, masks, layer)
            rows.append(
                common.Row(f"{layer}, {name}", f"{100 * share:.1f}% on the object, {100 * empty:.1f}% all zeros")
            )
    note = (
        f"2,000 test images, small_resnet of {accuracy:.2f}% accuracy from `make demo`; a point drawn anywhere is "
        f"on the object in {100 * masks.float().mean():.1f}%."
    )
    common.publish("Pointing game of Grad-CAM on shapes", rows, note)


if __name__ == "__main__":
    main()
