"""Deletion: how accuracy falls when the pixels that Grad-CAM marks highest are painted over (Petsiuk et al., 2018).

    make demo && python benchmarks/deletion.py --run runs/demo
    python benchmarks/deletion.py --run runs/speedrun-1 --data cifar10-images --model whitened_flip_resnet --standardize

Each test image loses a share of its pixels to the mean colour: those highest in its own map for the predicted
class; those highest in another image's map, which lie where objects often do; those of random noise as coarse as
the map; or as many random pixels. A map that says where the class is seen costs more accuracy than the other two
of its kind. Scattered pixels are no control for it: they disturb every receptive field. Once the object is gone,
18% of an image of shapes, what else goes tells nothing more. https://arxiv.org/abs/1806.07421
"""

import argparse
from pathlib import Path

import common  # first: it finds the package
import torch
import torch.nn.functional as F

import eva_utils as eva
from eva_utils.utils.gradcam import GradCAM
from eva_utils.utils.loader import Loader
from eva_utils.utils.splits import stratified

SHARES = (0.05, 0.1, 0.2, 0.4)


def without_highest(images, maps, share):
    """Return the images (N, 3, H, W) with that share of each one's pixels, highest in its map, set to 0: the mean.

    Of pixels as high as each other, as where a map is 0, any may go.
    """
    count = round(share * maps[0].numel())
    scattered = torch.rand(maps.shape, generator=torch.Generator().manual_seed(1)).flatten(1).argsort(dim=1)
    order = maps.flatten(1).gather(1, scattered).argsort(dim=1, descending=True, stable=True)
    highest = scattered.gather(1, order[:, :count])
    kept = torch.ones_like(maps.flatten(1)).scatter_(1, highest, 0.0)
    return images * kept.view_as(maps)[:, None]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=common.ROOT / "runs" / "demo", help="a finished run")
    parser.add_argument("--data", default="shapes", help="what it was trained on")
    parser.add_argument("--model", default="small_resnet")
    parser.add_argument("--standardize", action="store_true")
    parser.add_argument("--center-filters", action="store_true")
    parser.add_argument("--layer", help="the deepest with a map of at least 5x5 if left out")
    parser.add_argument("--images", type=int, default=2000)
    args = parser.parse_args()

    data = eva.load_data(args.data, device="cpu")  # all of it, so that it is normalized as in the run
    kept = stratified(data.test.labels, args.images, seed=0)
    test = Loader(data.test.images[kept], data.test.labels[kept], data.test.transform)
    options = {"standardize": True} if args.standardize else {}
    model = eva.create_model(args.model, num_classes=len(data.classes), **options)
    model = eva.load_weights(eva.center_filters(model) if args.center_filters else model, args.run)
    cam = GradCAM(model, args.layer and [args.layer])
    draw = torch.Generator().manual_seed(0)
    whole, blank, right = 0, 0, dict.fromkeys([(way, share) for share in SHARES for way in range(4)], 0)
    ((layer, coarse),) = cam.sizes(next(iter(test))[0]).items()
    with torch.inference_mode():
        for images, labels in test:
            maps = cam(images)[layer]
            whole += int((model.eval()(images).argmax(1) == labels).sum())
            blank += int((~maps.flatten(1).any(1)).sum())
            noise = torch.rand(len(maps), 1, *coarse, generator=draw)
            noise = F.interpolate(noise, maps.shape[1:], mode="bilinear")[:, 0]
            ways = (maps, maps.roll(1, dims=0), noise, torch.rand(maps.shape, generator=draw))
            for way, order in enumerate(ways):
                for share in SHARES:
                    painted = without_highest(images, order, share)
                    right[way, share] += int((model(painted).argmax(1) == labels).sum())
    total = len(test.labels)
    rows = []
    for share in SHARES:
        own, other, noise, scattered = (100 * right[way, share] / total for way in range(4))
        figure = f"{own:.1f}%; by another's map {other:.1f}%, coarse noise {noise:.1f}%, single pixels {scattered:.1f}%"
        goal = "below another's map and noise"
        rows.append(common.Row(f"{100 * share:.0f}% of the pixels gone", figure, goal, own < min(other, noise)))
    note = (
        f"{total:,} test images of {data.source}, {100 * whole / total:.2f}% right as they are; Grad-CAM at {layer}, "
        f"{100 * blank / total:.1f}% of the maps all zeros."
    )
    common.publish(f"Deletion by Grad-CAM, {args.model} on {Path(args.data).name}", rows, note)


if __name__ == "__main__":
    main()
