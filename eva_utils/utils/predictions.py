"""One pass over a test set, and every later question answered from it: the same images by construction."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .batches import check_batch, check_labels
from .checks import check_model, check_seed, check_whole
from .failures import overflow_advice
from .forward import logits_of, use_channels_last
from .kept import keep_modes, keep_rng
from .parts import is_shuffled, keep_loaders, own_generators
from .runtime import pick_device, pick_precision, rng_state, set_rng_state

MISTAKES, HITS = "misclassified", "correctly classified"


@dataclass(frozen=True)
class Record:
    """One test image and what the model said of it.

    Attributes:
        index: its position in the loader, from 0.
        image: float32 (3, H, W) as the model saw it, on the CPU.
        target: its class.
        predicted: the class of the highest logit.
        confidence: the probability of that class, 0 to 1.
    """

    index: int
    image: Tensor = field(repr=False)
    target: int
    predicted: int
    confidence: float


class Records(list[Record]):
    """Records in order, and what they were chosen by.

    Attributes:
        kind: `MISTAKES` or `HITS`.
        asked: how many were asked for.
        total: how many there are of the kind, whatever their classes.
        target, predicted: the classes they were chosen by, None where any would do.
    """

    def __init__(
        self, records: list[Record], kind: str, asked: int, total: int, target: int | None = None,
        predicted: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(records)
        self.kind, self.asked, self.total = kind, asked, total
        self.target, self.predicted = target, predicted


class Draws:
    """What a pass over a loader draws from, as it stood before: the random generators and the loader's own."""

    def __init__(self, loader: Any) -> None:
        self.rng, self.own = rng_state(), [generator.get_state() for generator in own_generators(loader)]

    def repeat(self, loader: Any) -> None:
        """Have the next pass over the loader draw the same."""
        set_rng_state(self.rng)
        for generator, state in zip(own_generators(loader), self.own, strict=True):
            generator.set_state(state)


class Predictions:
    """What a model said of every image of a loader, by position.

    Attributes:
        probabilities: float32 (N, C), softmax of the logits, on the CPU.
        predicted: int64 (N,), the class of the highest logit.
        target: int64 (N,).
    """

    def __init__(
        self, loader: Any, probabilities: Tensor, predicted: Tensor, target: Tensor, draws: Draws | None = None
    ) -> None:
        self.probabilities, self.predicted, self.target = probabilities, predicted, target
        self._loader, self._draws = loader, draws

    def __repr__(self) -> str:
        return f"Predictions({len(self)} images, {self.accuracy:.2f}% correct)"

    def __len__(self) -> int:
        return len(self.target)

    @property
    def accuracy(self) -> float:
        """Percentage of images predicted correctly, 0 to 100."""
        return 100 * int((self.predicted == self.target).sum()) / len(self)

    def wrong(
        self, n: int = 20, *, order: str = "confident", seed: int = 0, target: int | None = None,
        predicted: int | None = None,
    ) -> Records:  # fmt: skip
        """Return up to n misclassified images, the most confident mistakes first.

        Args:
            n: how many; fewer are returned where there are fewer.
            order: "confident", or "random" by the seed.
            seed: of the random order.
            target: keep only images of this class, by its number: data.classes.index("cat").
            predicted: keep only images taken for this class, likewise.

        Raises:
            ValueError: n is below 1, the order is neither, a class does not exist, or both are the same one; or the
                loader yields other labels than before.
        """
        return self._select(self.predicted != self.target, MISTAKES, n, order, seed, target, predicted)

    def correct(self, n: int = 20, *, order: str = "confident", seed: int = 0, target: int | None = None) -> Records:
        """Return up to n correctly classified images; arguments and errors are those of `wrong`."""
        return self._select(self.predicted == self.target, HITS, n, order, seed, target, None)

    def confusion(self) -> Tensor:
        """Return the counts as int64 (C, C): a row for each true class, a column for each predicted one."""
        classes = self.probabilities.shape[1]
        return torch.bincount(self.target * classes + self.predicted, minlength=classes**2).reshape(classes, classes)

    def class_accuracy(self) -> Tensor:
        """Return each class's accuracy in percent, float64 (C,); NaN for a class without images."""
        counts = self.confusion().double()
        return 100 * counts.diag() / counts.sum(dim=1)

    def most_confused(self, n: int = 5) -> list[tuple[int, int, int]]:
        """Return up to n pairs (true class, predicted class, images) with the most mistakes, most first.

        Raises:
            ValueError: n is no whole number from 1 up.
        """
        check_whole("n", n, 1)
        counts = self.confusion().fill_diagonal_(0)
        order = counts.flatten().argsort(descending=True, stable=True)[:n].tolist()
        pairs = [(place // len(counts), place % len(counts)) for place in order]
        return [(*pair, int(counts[pair])) for pair in pairs if counts[pair] > 0]

    def _select(
        self, mask: Tensor, kind: str, n: int, order: str, seed: int, target: int | None, predicted: int | None
    ) -> Records:
        check_whole("n", n, 1)
        if order not in ("confident", "random"):
            raise ValueError(f"order is 'confident' or 'random', not {order!r}")
        total = int(mask.sum())
        for name, value, found in (("target", target, self.target), ("predicted", predicted, self.predicted)):
            if value is not None:
                classes = self.probabilities.shape[1]
                if value not in range(classes):
                    hint = "; data.classes.index(...) is the number of a name" if isinstance(value, str) else ""
                    raise ValueError(f"{name} is a class from 0 to {classes - 1}, not {value!r}{hint}")
                mask = mask & (found == value)
        if target is not None and target == predicted:
            raise ValueError(
                f"images of class {target} taken for class {target} are no mistakes; correct(target={target}) has them"
            )
        positions = mask.nonzero().flatten()
        if order == "random":
            shuffled = torch.randperm(len(positions), generator=torch.Generator().manual_seed(check_seed(seed)))
            positions = positions[shuffled]
        else:
            # By what the other classes have together, which tells apart what rounds to a confidence of 1.
            others = self.probabilities[positions].double().scatter(1, self.predicted[positions, None], 0)
            positions = positions[others.sum(dim=1).argsort(stable=True)]
        with keep_rng(), keep_loaders(self._loader):
            if self._draws:  # so that a loader which draws yields the very images that were predicted
                self._draws.repeat(self._loader)
            return Records(self._records(positions[:n].tolist()), kind, n, total, target, predicted)

    def _records(self, positions: list[int]) -> list[Record]:
        """Fetch the images at these positions by passing over the loader again, as far as needed."""
        wanted, images, start = set(positions), {}, 0
        for batch, labels in self._loader:
            if not torch.equal(labels.cpu(), self.target[start : start + len(labels)]):
                raise ValueError("the loader yields another order at each pass, so positions in it mean nothing")
            for position in wanted & set(range(start, start + len(batch))):
                images[position] = batch[position - start].detach().cpu().clone()
            start += len(batch)
            if len(images) == len(wanted):
                break
        if len(images) < len(wanted):
            raise ValueError("the loader ended early on its second pass; it must yield its batches anew at each pass")
        return [
            Record(
                index=position,
                image=images[position],
                target=int(self.target[position]),
                predicted=int(self.predicted[position]),
                confidence=float(self.probabilities[position, self.predicted[position]]),
            )
            for position in positions
        ]


def predict(
    model: nn.Module, loader: Any, *, device: str | torch.device | None = None, precision: str = "auto"
) -> Predictions:
    """Run a model once over a loader in evaluation mode; its accuracy equals that of `eva_utils.main.test`.

    Random generators are left as they were, so a second call repeats the draws of the first.

    Args:
        model: returns logits (N, C); it is moved to the device and left in the mode it was in.
        loader: yields (images, labels) in the same order each time; positions in it are the indices.
        device: see `eva_utils.utils.runtime.pick_device`.
        precision: "auto", "float32", "bfloat16" or "float16".

    Raises:
        TypeError: the arguments are no model and no loader.
        ValueError: the loader shuffles, so that positions mean nothing, or it is empty; a batch, its labels or the
            logits are not what they should be; or the device or the precision is unknown or not there.
        FloatingPointError: logits are NaN or infinite, which no class follows from.
    """
    check_model(model)
    if not hasattr(loader, "__iter__"):
        raise TypeError(f"predict takes a loader, as predict(model, data.test), not {type(loader).__name__}")
    if is_shuffled(loader):
        raise ValueError("the loader shuffles, so positions in it mean nothing; pass the test loader, or shuffle=False")
    device = pick_device(device)
    dtype = pick_precision(precision, device)
    model.to(device)
    use_channels_last(model, device, dtype)  # as in `test`, whose accuracy is to be the same
    outputs, targets, draws = [], [], Draws(loader)
    with keep_modes(model), keep_rng(), keep_loaders(loader), torch.no_grad():
        model.eval()
        for number, batch in enumerate(loader):
            images, labels = check_batch(batch, f"batch {number}")
            logits = logits_of(model, images, device, dtype, first=number == 0)
            outputs.append(logits.float().clone())  # a CUDA graph writes over its own
            targets.append(labels.clone())  # a worker's own holds a file open
    if not outputs:
        raise ValueError("the loader is empty; it must yield at least one batch of (images, labels)")
    logits, target = torch.cat(outputs).cpu(), torch.cat(targets).cpu()
    check_labels(target, logits.shape[1], "the loader")
    probabilities = logits.softmax(dim=1)
    bad = probabilities.isnan().any(dim=1).nonzero()
    if len(bad):
        raise FloatingPointError(
            f"the logits of {len(bad)} of {len(logits)} images are NaN or infinite, image {int(bad[0])} the first; "
            "look at the weights and the images" + overflow_advice(dtype)
        )
    return Predictions(loader, probabilities, logits.argmax(dim=1), target, draws)
