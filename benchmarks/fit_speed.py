"""`fit` beside a plain PyTorch loop, beside the bare training step, and evaluation beside the bare forward pass.

The plain loop is what a careful student writes: torchvision's transforms for each image in a `DataLoader`
with two workers, float32, one `loss.item()` a batch. The bare step trains again and again on one batch that
is in place, in the precision and the memory format that `fit` chooses, with nothing measured.
"""

import common  # first: it finds the package
import torch
from torch import nn
from torch.optim.lr_scheduler import ConstantLR
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

import eva_utils as eva
from eva_utils.utils.runtime import (
    autocast,
    hardware,
    keep_freed_memory,
    move_images,
    pick_device,
    pick_precision,
    precision_name,
)


class PlainDataset(Dataset):
    """The images as PIL, each through torchvision's transforms."""

    def __init__(self, images, labels, mean, std):
        self.pictures = [v2.functional.to_pil_image(image) for image in images.cpu()]
        self.labels = labels.tolist()
        self.transform = v2.Compose(
            [
                v2.RandomCrop(32, padding=4),
                v2.RandomRotation(5, interpolation=v2.InterpolationMode.BILINEAR),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(mean), list(std)),
                v2.RandomErasing(p=1, scale=(0.25, 0.25), ratio=(1, 1), value=0),  # 16x16 of 32x32
            ]
        )

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(self.pictures[index]), self.labels[index]


def plain_epoch(model, loader, optimizer, device):
    model.train()
    loss_sum, correct, count = 0.0, 0, 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        logits = model(images)
        loss = nn.functional.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(labels)
        correct += (logits.argmax(1) == labels).sum().item()
        count += len(labels)
    return loss_sum / count, 100 * correct / count


def bare_steps(model, images, labels, optimizer, dtype, steps):
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        with autocast(images.device, dtype):
            logits = model(images)
        nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()


def bare_forward(model, batches, dtype):
    model.eval()
    with torch.no_grad():
        for images in batches:
            with autocast(images.device, dtype):
                model(images)


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--model", choices=eva.list_models(), default="resnet18")
    parser.add_argument("--images", type=int, default=640, help="in each timed epoch of the plain loop and its rivals")
    parser.add_argument("--steps", type=int, default=30, help="of 128 images, against the bare step")
    args = parser.parse_args()
    device = pick_device()
    if device.type == "cpu":
        keep_freed_memory()  # as fit does, so that its rivals have the same
    dtype = pick_precision("auto", device)
    auto = precision_name(dtype)

    def new_model():
        model = eva.create_model(args.model, norm="layer").to(device)
        return model, torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, fused=True)

    def fit(data, precision):
        model, optimizer = new_model()
        few = [tuple(part[:8] for part in next(iter(data.test)))]  # fit tests after its epoch: little here
        once = {"epochs": 1, "optimizer": optimizer, "scheduler": ConstantLR(optimizer, factor=1), "log": None}
        return lambda: eva.fit(model, data.train, few, precision=precision, **once)

    data = eva.load_data("shapes", recipe="eva6_s8", limit=args.images, device=device)
    dataset = PlainDataset(data.train.images, data.train.labels, data.mean, data.std)
    plain_loader = DataLoader(dataset, batch_size=128, shuffle=True, num_workers=2, persistent_workers=True)
    plain_model, plain_optimizer = new_model()
    ways = {
        "plain loop, float32": lambda: plain_epoch(plain_model, plain_loader, plain_optimizer, device),
        "fit, float32": fit(data, "float32"),
        f"fit, {auto} (auto)": fit(data, "auto"),
    }
    taken = common.seconds(ways, args.rounds)
    plain, _, best = taken.values()
    rows = [common.Row(name, f"{args.images / value:.0f} images/s") for name, value in taken.items()]
    rows.append(common.at_least("fit (auto) against the plain loop", plain / best, 2.4))

    count = 128 * args.steps
    data = eva.load_data("shapes", recipe="eva6_s8", limit=count, device=device)
    bare_model, bare_optimizer = new_model()
    images, labels = next(iter(data.train))
    images = move_images(images, device, last=dtype != torch.float32)
    if dtype != torch.float32:
        bare_model.to(memory_format=torch.channels_last)
    every = eva.load_data("shapes", device=device).train  # 10,000 images, as CIFAR-10 has to test on
    batches = [move_images(batch, device, last=dtype != torch.float32) for batch, _ in every]
    tested_model, _ = new_model()
    eva.test(tested_model, every)
    taken = common.seconds(
        {
            "bare step": lambda: bare_steps(bare_model, images, labels, bare_optimizer, dtype, args.steps),
            "fit": fit(data, "auto"),
            "bare forward": lambda: bare_forward(tested_model, batches, dtype),
            "test": lambda: eva.test(tested_model, every),
        },
        args.rounds,
    )
    tested = len(every.labels)
    rows += [
        common.Row(f"bare step, {auto}", f"{count / taken['bare step']:.0f} images/s"),
        common.at_least(
            "fit against the bare step",
            taken["bare step"] / taken["fit"],
            0.97 if device.type == "cpu" else 0.90,
        ),
        common.Row(f"bare forward pass, {auto}", f"{tested / taken['bare forward']:.0f} images/s"),
        common.at_least("evaluation against the bare forward pass", taken["bare forward"] / taken["test"], 0.95),
    ]
    machine = hardware(device)["machine"]  # in the title, since on several the first ratio is the machine's
    common.publish(f"Training speed on {machine}, {args.model} with LayerNorm, recipe eva6_s8, batch 128", rows)


if __name__ == "__main__":
    main()
