"""The augmented loader beside torchvision's transforms, image by image, in a `DataLoader` with two workers."""

import common  # first: it finds the package
from fit_speed import PlainDataset
from torch.utils.data import DataLoader

import eva_utils as eva


def main():
    parser = common.parser(__doc__, rounds=7)
    parser.add_argument("--images", type=int, default=10_000)
    args = parser.parse_args()
    data = eva.load_data("shapes", recipe="eva6_s8", limit=args.images)
    dataset = PlainDataset(data.train.images, data.train.labels, data.mean, data.std)
    loader = DataLoader(dataset, batch_size=128, shuffle=True, num_workers=2, persistent_workers=True)
    taken = common.seconds(
        {
            "per image, torchvision, 2 workers": lambda: sum(len(labels) for _, labels in loader),
            "per batch, ours": lambda: sum(len(labels) for _, labels in data.train),
        },
        args.rounds,
    )
    per_image, per_batch = taken.values()
    rows = [common.Row(name, f"{args.images / value:,.0f} images/s") for name, value in taken.items()]
    rows.append(common.at_least("ours against per image", per_image / per_batch, 6))
    common.publish("Augmentation: crop, rotation, normalization, CutOut", rows)


if __name__ == "__main__":
    main()
