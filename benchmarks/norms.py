"""The norm laboratory: batch, layer, channel and group normalization on one recipe.

Each trains the small residual network from the same seed for a few epochs on the same images; the speed is
that of the bare training step, the ways interleaved.
"""

from pathlib import Path

import common  # first: it finds the package
import torch
from fit_speed import bare_steps

import eva_utils as eva
from eva_utils.models.norms import NORMS
from eva_utils.utils.runtime import move_images, pick_device, pick_precision

AVERAGES = {
    "batch": "N, H, W of each channel",
    "layer": "C, H, W of each image",
    "channel": "C at each pixel",
    "group": "H, W and the channels of a group",
}


def trained_accuracy(norm, args):
    eva.seed_everything(args.seed)
    data = eva.load_data(args.data, recipe="eva6_s8", limit=args.images, validation=args.held_out, seed=args.seed)
    model = eva.small_resnet(num_classes=len(data.classes), norm=norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    history = eva.fit(model, data.train, data.validation, epochs=args.epochs, optimizer=optimizer, warmup=1, log=None)
    return history.rows[-1]["test_accuracy"]


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--data", default="shapes", help="shapes, cifar10 or a folder of 32x32 images")
    parser.add_argument("--images", type=int, default=5000, help="trained on")
    parser.add_argument("--held-out", type=int, default=1000, help="of the training images, scored")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    device = pick_device()
    dtype = pick_precision("auto", device)
    images = move_images(torch.randn(128, 3, 32, 32), device, last=dtype != torch.float32)
    labels = torch.arange(128, device=device) % 10

    def steps(norm):
        model = eva.small_resnet(norm=norm).to(device, memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, fused=True)
        return lambda: bare_steps(model, images, labels, optimizer, dtype, 5)

    taken = common.seconds({norm: steps(norm) for norm in NORMS}, args.rounds)
    source = eva.load_data(args.data, limit=10).source
    rows = []
    for norm in NORMS:
        parameters = sum(parameter.numel() for parameter in eva.small_resnet(norm=norm).parameters())
        accuracy = trained_accuracy(norm, args)
        figure = f"{AVERAGES[norm]}; {parameters:,}; {5 * 128 / taken[norm]:.0f} images/s; {accuracy:.1f}%"
        rows.append(common.Row(norm, figure))
    note = (
        f"Each line: what it averages over; parameters; speed of the training step; accuracy on {args.held_out} "
        f"held-out images ({source}) after {args.epochs} epochs of {args.images}; one seed."
    )
    common.publish(f"Norm laboratory, small_resnet on {Path(args.data).name}", rows, note)


if __name__ == "__main__":
    main()
