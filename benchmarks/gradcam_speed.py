"""Grad-CAM of a batch at the last layer beside a forward pass, `grad-cam` and `torchcam`; peak memory of each.

All run in float32 on the same ResNet18(layer) in evaluation mode and return the maps at the images' size.
Peak memory is that of a process which does nothing else, beyond one that has made the forward pass.
"""

import subprocess
import sys

import common  # first: it finds the package
import torch

import eva_utils as eva
from eva_utils.utils.runtime import pick_device

LAYER = "layer4"


def make_ways(batch):
    device = pick_device()
    eva.seed_everything(1)
    model = eva.resnet18(norm="layer").to(device).eval()
    images = torch.randn(batch, 3, 32, 32, device=device)

    def forward():
        with torch.no_grad():
            model(images)

    def ours():
        return eva.GradCAM(model, [LAYER])(images)

    def grad_cam():
        from pytorch_grad_cam import GradCAM

        with GradCAM(model, [model.layer4]) as cam:
            return cam(images, None)

    def torchcam():
        from torch.nn.functional import interpolate
        from torchcam.methods import GradCAM

        with GradCAM(model, target_layer=LAYER) as cam:
            scores = model(images)
            (maps,) = cam(scores.argmax(1).tolist(), scores)
        return interpolate(maps[:, None], images.shape[-2:], mode="bilinear")

    return {"forward": forward, "ours": ours, "grad-cam": grad_cam, "torchcam": torchcam}


def peak_megabytes(way, batch):
    """Return the peak resident memory of a process that runs the forward pass and then this way."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import common, gradcam_speed\n"
        "ways = gradcam_speed.make_ways(int(sys.argv[3])); ways['forward'](); ways[sys.argv[2]]()\n"
        "print(common.own_memory('VmHWM'))"
    )
    folder = str(common.ROOT / "benchmarks")
    command = [sys.executable, "-c", code, folder, way, str(batch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_args()
    taken = common.seconds(make_ways(args.batch), args.rounds)
    rows = [
        common.Row("no-grad forward pass", f"{args.batch / taken['forward']:.0f} images/s"),
        common.at_most("ours, in forward passes", taken["ours"] / taken["forward"], 1.10),
        common.Row("grad-cam, in forward passes", f"{taken['grad-cam'] / taken['forward']:.2f}x"),
        common.Row("torchcam, in forward passes", f"{taken['torchcam'] / taken['forward']:.2f}x"),
        common.at_least("speed against grad-cam", taken["grad-cam"] / taken["ours"], 3),
        common.at_least("speed against torchcam", taken["torchcam"] / taken["ours"], 1),
    ]
    if pick_device().type == "cpu":
        base = peak_megabytes("forward", args.batch)
        more = {way: peak_megabytes(way, args.batch) - base for way in ("ours", "grad-cam", "torchcam")}
        rows += [
            common.Row(f"peak memory beyond the forward pass, {way}", f"{value:.0f} MB") for way, value in more.items()
        ]
        rows.append(
            common.Row("ours below torchcam", f"{more['ours']:.0f} MB", "lower", more["ours"] < more["torchcam"])
        )
    common.publish(f"Grad-CAM of {args.batch} images at {LAYER} of ResNet18(layer), float32", rows)


if __name__ == "__main__":
    main()
