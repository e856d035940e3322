"""The assignments' rules as data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .checks import check_real, check_whole
from .names import unknown_name
from .norm_rules import NORMALIZATIONS


@dataclass(frozen=True)
class Brief:
    """What an assignment asks for. None means that the assignment has no such rule.

    Attributes:
        title, objective: of the report.
        options: what the command line's `--assignment` sets, by the names of its options.
        classes: of the data, in order.
        images: numbers of training and of test images.
        epochs, batch_size: exact numbers.
        accuracy: the least test accuracy of the best epoch, in percent.
        optimizer, criterion: class names, as "SGD".
        scheduler: class name; "ReduceLROnPlateau" must have made every change of the rate after the warmup.
        peak_epoch: of a one-cycle schedule, the epoch that ends at its highest rate; annihilation is then forbidden.
        norm: "LayerNorm", "GroupNorm" or "BatchNorm": no other normalization may be in the model or run in it.
        model: class name of the network.
        depth: convolutions and linear layers, without the 1x1 convolutions of shortcuts: 18 for a ResNet-18.
        transforms: of the training images, each as it prints, in order, without Normalize.
        misclassified: how many mistakes are to be shown at least, and explained by Grad-CAM of the same images.
        correct: how many correctly classified images are to be shown at least.
        layers: those Grad-CAM is asked of; None is its own choice.
        least_map: smallest side in pixels of a Grad-CAM map before it is enlarged.
        plain_notebook: whether the notebook may define neither function nor class.

    Raises:
        ValueError: there is no title or no objective, a number is out of range, or a norm or class has another name.
        TypeError: a rule is not of its type.
    """

    title: str
    objective: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    classes: tuple[str, ...] | None = None
    images: tuple[int, int] | None = None
    epochs: int | None = None
    batch_size: int | None = None
    accuracy: float | None = None
    optimizer: str | None = None
    criterion: str | None = None
    scheduler: str | None = None
    peak_epoch: int | None = None
    norm: str | None = None
    model: str | None = None
    depth: int | None = None
    transforms: tuple[str, ...] | None = None
    misclassified: int | None = None
    correct: int | None = None
    layers: tuple[str, ...] | None = None
    least_map: int | None = None
    plain_notebook: bool = False

    def __post_init__(self) -> None:
        for name in ("title", "objective"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise TypeError(f"{name} of a brief is a text, not {value!r}")
            if not value.strip():
                raise ValueError("a brief needs a title and an objective: they head the report")
        for name in _TUPLES:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _as_tuple(name, getattr(self, name)))
        for name in ("epochs", "batch_size", "peak_epoch", "depth", "misclassified", "correct", "least_map"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1)
        if self.accuracy is not None:
            check_real("accuracy in percent", self.accuracy, 1, 100)
        if self.model is not None and not isinstance(self.model, str):
            raise TypeError(f"model of a brief is the name of a class, as 'ResNet', not {self.model!r}")
        for name, (place, kind) in _CLASSES.items():
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, str):
                raise TypeError(f"{name} of a brief is the name of a class, as 'SGD', not {value!r}")
            known = [found for found, part in vars(place).items() if isinstance(part, type) and issubclass(part, kind)]
            near = {_shortened(found): found for found in known}.get(_shortened(value))
            if near and value not in known:
                raise ValueError(f"{name} {value!r} of a brief: torch's class is called {near!r}")
        if self.norm is not None and self.norm not in NORMALIZATIONS:
            raise unknown_name("normalization", self.norm, NORMALIZATIONS)


_TUPLES: dict[str, tuple] = {
    "classes": ("cat", "dog"),
    "images": (50_000, 10_000),
    "transforms": ("Cutout(16, fill=0)",),
    "layers": ("layer4",),
}
_CLASSES = {
    "optimizer": (torch.optim, torch.optim.Optimizer),
    "scheduler": (torch.optim.lr_scheduler, torch.optim.lr_scheduler.LRScheduler),
    "criterion": (nn, nn.modules.loss._Loss),
}


def _as_tuple(name: str, value: Any) -> tuple:
    """Return a rule of several parts as a tuple, or raise if they are not what they should be."""
    example = _TUPLES[name]
    if isinstance(value, str) and isinstance(example[0], str):
        raise ValueError(f"{name} of a brief is a tuple, as ({value!r},), not a text")
    parts = tuple(value) if isinstance(value, Iterable) else (None,)
    if not all(isinstance(part, type(example[0])) for part in parts) or (name == "images" and len(parts) != 2):
        raise TypeError(f"{name} of a brief is a tuple, as {example!r}, not {value!r}")
    return parts


def _shortened(name: str) -> str:
    """Return what is left of a class's name in other spellings of it: "onecycle" of OneCycleLR and of one_cycle."""
    letters = "".join(filter(str.isalnum, name.split(".")[-1].lower()))
    return letters.removesuffix("lr").removesuffix("loss")


CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

BRIEFS = {
    "eva6_s8": Brief(
        title="EVA6 S8: CIFAR-10 with LayerNorm and Grad-CAM",
        objective="Train a LayerNorm-only network on CIFAR-10 for 40 epochs with random crop, rotation and CutOut, "
        "the learning rate driven by ReduceLROnPlateau, and explain 20 correct and 20 wrong predictions with Grad-CAM "
        "at four depths.",
        options={
            "data": "cifar10", "recipe": "eva6_s8", "model": "whitened_flip_resnet4", "norm": "layer",
            "center_filters": True, "epochs": 40, "batch_size": 128, "optimizer": "sgd", "lr": 0.1, "momentum": 0.9,
            "nesterov": True, "weight_decay": 1e-3, "label_smoothing": 0.1, "factor": 0.6, "patience": 2,
            "threshold": 0.05, "warmup": 2, "ema": 0.999,
        },
        classes=CIFAR10,
        images=(50_000, 10_000),
        epochs=40,
        batch_size=128,
        optimizer="SGD",
        criterion="CrossEntropyLoss",
        scheduler="ReduceLROnPlateau",
        norm="LayerNorm",
        transforms=("RandomCrop(padding=4)", "RandomRotate(5)", "Cutout(16, fill=0)"),
        misclassified=20,
        correct=20,
        layers=("layer1", "layer2", "layer3", "layer4"),
    ),
    "eva8_s7": Brief(
        title="EVA8 S7: ResNet-18 on CIFAR-10 with Grad-CAM",
        objective="Train a ResNet-18 on CIFAR-10 for 20 epochs with random crop and CutOut from a shared repository, "
        "in a notebook that defines no function and no class, and explain its mistakes with Grad-CAM on maps of at "
        "least 5x5 pixels.",
        options={
            "data": "cifar10", "recipe": "eva8_s7", "model": "resnet18", "norm": "batch", "epochs": 20,
            "batch_size": 128, "optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4,
            "label_smoothing": 0.1, "scheduler": "one_cycle", "peak_epoch": 5, "annihilate": True,
        },
        classes=CIFAR10,
        images=(50_000, 10_000),
        epochs=20,
        depth=18,
        transforms=("RandomCrop(padding=4)", "Cutout(16, fill=0)"),
        misclassified=10,
        least_map=5,
        plain_notebook=True,
    ),
    "eva6_s9": Brief(
        title="EVA6 S9: a custom ResNet on CIFAR-10 with the one-cycle policy",
        objective="Train the custom ResNet on CIFAR-10 for 24 epochs at batch size 512 with random crop, flip and "
        "CutOut 8, the learning rate rising to its highest at epoch 5 and falling without annihilation, to 90% at "
        "least.",
        options={
            "data": "cifar10", "recipe": "eva6_s9", "model": "davidnet", "norm": "batch", "epochs": 24,
            "batch_size": 512, "optimizer": "sgd", "lr": 0.4, "lr_min": 0.004, "momentum": 0.9, "nesterov": True,
            "weight_decay": 5e-4, "scheduler": "one_cycle", "peak_epoch": 5,
        },
        classes=CIFAR10,
        images=(50_000, 10_000),
        epochs=24,
        batch_size=512,
        accuracy=90,
        criterion="CrossEntropyLoss",
        scheduler="OneCycleLR",
        peak_epoch=5,
        model="DavidNet",
        depth=9,
        transforms=("RandomCrop(padding=4)", "RandomHorizontalFlip(p=0.5)", "Cutout(8, fill=0)"),
        misclassified=20,
    ),
    "eva8_s10": Brief(
        title="EVA8 S10: a vision transformer on CIFAR-10 with Grad-CAM",
        objective="Train a small vision transformer on CIFAR-10 from its own pixels alone, and explain 10 of its "
        "mistakes with Grad-CAM.",
        options={
            "data": "cifar10", "recipe": "eva8_s10", "model": "vit", "norm": "layer", "epochs": 24, "batch_size": 128,
            "optimizer": "adamw", "lr": 1e-3, "momentum": 0.9, "weight_decay": 0.05, "label_smoothing": 0.1,
            "scheduler": "one_cycle", "peak_epoch": 5, "annihilate": True,
        },
        classes=CIFAR10,
        images=(50_000, 10_000),
        epochs=24,
        model="ViT",
        norm="LayerNorm",
        misclassified=10,
        least_map=5,
    ),
    "speedrun": Brief(
        title="Speedrun: CIFAR-10 with LayerNorm in a quarter of an hour",
        objective="Reach 89.17% on CIFAR-10, what the EVA6 S8 team had at epoch 39, with LayerNorm only and as fast as "
        "possible on two CPU cores; any schedule, flips, no test-time averaging.",
        options={
            "data": "cifar10", "recipe": "speedrun", "model": "whitened_flip_resnet", "norm": "layer",
            "standardize": True, "epochs": 19, "batch_size": 256, "optimizer": "muon", "lr": 0.08, "momentum": 0.9,
            "weight_decay": 5e-4, "label_smoothing": 0.2, "scheduler": "one_cycle", "peak_epoch": 4, "annihilate": True,
        },
        classes=CIFAR10,
        images=(50_000, 10_000),
        accuracy=89.17,
        norm="LayerNorm",
        misclassified=20,
    ),
}  # fmt: skip


def find_brief(brief: str | Brief) -> Brief:
    """Return the brief of this name, or a brief as it is.

    Raises:
        ValueError: the name is unknown; the nearest known one is named.
        TypeError: it is neither a name nor a brief.
    """
    if isinstance(brief, Brief):
        return brief
    if not isinstance(brief, str):
        raise TypeError(f"brief is the name of an assignment, as 'eva6_s8', or a Brief, not {type(brief).__name__}")
    if brief not in BRIEFS:
        raise unknown_name("brief", brief, BRIEFS)
    return BRIEFS[brief]


def adapt(options: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a brief's options, changed where options given on the command line make them unfit.

    Args:
        options: of a brief.
        given: what the command line has, the brief's options included.
    """
    adapted = dict(options)
    if given["model"] in ("davidnet", "vit"):  # which standardize no weights
        adapted["standardize"] = False
    if given["model"] == "vit":  # which has LayerNorm only
        adapted["norm"] = "layer"
    if given["lr"] != options["lr"]:
        adapted["lr_min"] = None
    if given["scheduler"] == "one_cycle":  # which takes no warmup
        adapted["warmup"] = 0
    elif given["epochs"] != options["epochs"]:
        adapted["warmup"] = min(options.get("warmup", 0), max(given["epochs"] - 1, 0))
    if given["epochs"] != options["epochs"] and "peak_epoch" in options:
        adapted["peak_epoch"] = min(options["peak_epoch"], given["epochs"] / 2)
    return adapted
