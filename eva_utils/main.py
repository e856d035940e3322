"""The training loop: `train` one epoch, `test` one pass, `fit` a run."""

import io
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau
from tqdm import tqdm

from .utils import checkpoint as disk
from .utils.history import History, describe_run
from .utils.meter import FirstBad, Meter, Score
from .utils.runtime import (
    autocast,
    hardware,
    keep_modes,
    pick_device,
    pick_precision,
    precision_name,
    rng_state,
    seed_everything,
    set_rng_state,
)

Log = Callable[[str], Any]
Criterion = Callable[[Tensor, Tensor], Tensor]

PER_BATCH_SCHEDULERS = (OneCycleLR, CyclicLR)
REFRESH_SECONDS = 0.5


def train(
    model: nn.Module,
    loader: Any,
    optimizer: torch.optim.Optimizer,
    *,
    scheduler: LRScheduler | None = None,
    criterion: Criterion | None = None,
    device: str | torch.device | None = None,
    precision: str = "auto",
    scaler: torch.amp.GradScaler | None = None,
    progress: bool = True,
    log: Log | None = print,
) -> Score:
    """Train for one epoch and return its score, measured on the batches as they were trained on.

    Args:
        model: returns logits (N, C); it is moved to the device and left in the mode it was in.
        loader: any iterable of (images, labels) with a length. One of `load_data` repeats its batches
            unless `set_epoch` is called between epochs.
        optimizer: stepped once a batch.
        scheduler: one that steps once a batch, as OneCycleLR and CyclicLR do.
        criterion: mean loss of a batch; cross entropy if None.
        device: see `eva_utils.utils.runtime.pick_device`.
        precision: "auto", "float32", "bfloat16" or "float16".
        scaler: of the gradients, in float16.
        progress: whether to show the bar: live in a terminal or a notebook, else its last line.
        log: takes one line; None is silent.

    Raises:
        FloatingPointError: the loss is NaN or infinite, naming the batch.
    """
    place = pick_device(device)
    dtype = pick_precision(precision, place)
    criterion = criterion or nn.CrossEntropyLoss()
    scaler = scaler or torch.amp.GradScaler(place.type, enabled=dtype == torch.float16)
    meter, first_bad = Meter(place), FirstBad(place)
    model.to(place)
    with keep_modes(model), _Bar(len(loader), log if progress else None) as bar:
        model.train()
        for batch, (images, labels) in enumerate(loader):
            images, labels = _move(images, place, dtype), labels.to(place, non_blocking=True)
            optimizer.zero_grad()
            with autocast(place, dtype):
                logits = model(images)
            loss = criterion(logits.float(), labels)
            first_bad.update(loss, batch)
            if place.type == "cpu":
                first_bad.check()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            rate = optimizer.param_groups[0]["lr"]
            if scheduler is not None:
                scheduler.step()
            meter.update(loss, logits, labels)
            if bar.is_due(batch):
                first_bad.check()
                score = meter.score()
                bar.describe(f"Loss={score.loss:.4f} Batch_id={batch} LR={rate:.5f} Accuracy={score.accuracy:.2f}")
            bar.advance()
        first_bad.check()
    optimizer.zero_grad()
    return meter.score()


def test(
    model: nn.Module,
    loader: Any,
    *,
    criterion: Criterion | None = None,
    device: str | torch.device | None = None,
    precision: str = "auto",
) -> Score:
    """Score the model on a loader in evaluation mode, each sample counted once; nothing of the model changes.

    Args are those of `train`. A loss that is NaN is returned as it is.
    """
    place = pick_device(device)
    dtype = pick_precision(precision, place)
    criterion = criterion or nn.CrossEntropyLoss()
    meter = Meter(place)
    model.to(place)
    with keep_modes(model), torch.no_grad():
        model.eval()
        for images, labels in loader:
            images, labels = _move(images, place, dtype), labels.to(place, non_blocking=True)
            with autocast(place, dtype):
                logits = model(images)
            meter.update(criterion(logits.float(), labels), logits, labels)
    return meter.score()


def fit(
    model: nn.Module,
    train_loader: Any,
    test_loader: Any,
    *,
    epochs: int,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: LRScheduler | None = None,
    criterion: Criterion | None = None,
    device: str | torch.device | None = None,
    precision: str = "auto",
    seed: int | None = None,
    checkpoint: str | Path | None = None,
    resume: bool | str = False,
    progress: bool = True,
    log: Log | None = print,
) -> History:
    """Train and test for so many epochs and return the record of the run.

    In float32 the weights follow a plain PyTorch loop bit for bit. Ctrl-C and a notebook's stop button
    return the record of the finished epochs; so that it fits them, the weights go back to the last
    finished epoch, as they do after an error.

    Args:
        model: returns logits (N, C); it is moved to the device and left in the mode it was in.
        train_loader: any iterable of (images, labels) with a length; one that has `set_epoch` is told each epoch.
        test_loader: likewise; pass the held-out split here while choosing anything.
        epochs: how many in all, those of a resumed run included.
        optimizer: SGD(lr=0.01, momentum=0.9) if None.
        scheduler: stepped after every batch (OneCycleLR, CyclicLR), after every epoch, or on the test
            metric (ReduceLROnPlateau: the loss, with mode="max" the accuracy); if None
            ReduceLROnPlateau(patience=3). ConstantLR(factor=1) keeps the rate.
        criterion: mean loss of a batch; cross entropy if None.
        device: see `eva_utils.utils.runtime.pick_device`.
        precision: "auto", "float32", "bfloat16" or "float16"; a resumed run keeps its own.
        seed: seeds python, numpy and torch before the first epoch; the loaders have their own seed.
        checkpoint: folder in which every finished epoch is put before the next begins.
        resume: True continues the run in the folder, "auto" does so if there is one. Optimizer and
            scheduler are then put back as they were, learning rate included.
        progress: whether to show a bar each epoch.
        log: takes one line; None is silent.

    Raises:
        ValueError: an argument does not fit the others, or the run to resume; nothing has been done.
        FloatingPointError: a loss is NaN or infinite, naming epoch and batch.
    """
    _check_arguments(model, train_loader, test_loader, epochs, optimizer, scheduler, criterion)
    place = pick_device(device)
    dtype = pick_precision(precision, place)
    say: Log = log or (lambda line: None)
    saved = None
    if checkpoint is not None:
        folder = Path(checkpoint)
        disk.prepare_folder(folder, resume)
        saved = disk.latest_state(folder, say)
    elif resume:
        raise ValueError("resume needs the folder of the run: give checkpoint= as well")
    if saved and precision == "auto":
        dtype = pick_precision(saved["history"]["settings"]["precision"], place)
    precision = precision_name(dtype)

    model.to(place)
    if optimizer is None:
        fused = dtype != torch.float32 and place.type in ("cpu", "cuda")
        optimizer = torch.optim.SGD(_trainable(model), lr=0.01, momentum=0.9, fused=fused or None)
    if scheduler is None:
        scheduler = ReduceLROnPlateau(optimizer, patience=3)
    if criterion is None:
        criterion = nn.CrossEntropyLoss()
    if isinstance(criterion, nn.Module):
        criterion.to(place)
    scaler = torch.amp.GradScaler(place.type, enabled=dtype == torch.float16)
    settings = describe_run(model, optimizer, scheduler, criterion, train_loader, test_loader)
    settings |= {"epochs": epochs, "seed": seed, "precision": precision, "device": place.type, **hardware()}
    history = History(settings=settings)
    if seed is not None:
        seed_everything(seed)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    generator = getattr(train_loader, "generator", None)
    if saved:
        disk.check_resumable(saved, model, settings)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        set_rng_state(saved["rng"])
        if generator is not None and saved["generator"] is not None:
            generator.set_state(saved["generator"])
        history.rows = saved["history"]["rows"]
        disk.write_derived(folder, saved, history.to_json(), history.best["epoch"])
        say(f"Resuming after epoch {len(history)} of {epochs} in {folder}")

    for epoch in range(len(history) + 1, epochs + 1):
        finished = {name: value.clone() for name, value in model.state_dict().items()}
        say(f"EPOCH: {epoch}")
        if hasattr(train_loader, "set_epoch"):
            train_loader.set_epoch(epoch)
        start = time.perf_counter()
        shared: dict[str, Any] = {"criterion": criterion, "device": place, "precision": precision}
        per_batch = scheduler if isinstance(scheduler, PER_BATCH_SCHEDULERS) else None
        try:
            trained = train(
                model, train_loader, optimizer, scheduler=per_batch, scaler=scaler, progress=progress, log=log, **shared
            )
            tested = test(model, test_loader, **shared)
            if not math.isfinite(tested.loss):
                raise FloatingPointError(f"the test loss is {tested.loss}: lower the learning rate")
            row = {
                "epoch": epoch,
                "train_loss": trained.loss,
                "train_accuracy": trained.accuracy,
                "test_loss": tested.loss,
                "test_accuracy": tested.accuracy,
                "lr": optimizer.param_groups[0]["lr"],
                "seconds": time.perf_counter() - start,
            }
            _step(scheduler, row)
            history.rows.append(row)
            say(
                f"Test set: Average loss: {tested.loss:.4f}, "
                f"Accuracy: {tested.correct}/{tested.samples} ({tested.accuracy:.2f}%)"
            )
            if checkpoint is not None:
                state = {name: part.state_dict() for name, part in parts.items()}
                state |= {
                    "epoch": epoch,
                    "history": {"settings": settings, "rows": history.rows},
                    "rng": rng_state(),
                    "generator": None if generator is None else generator.get_state(),
                }
                disk.save_epoch(folder, state, history.to_json(), history.best["epoch"])
        except BaseException as error:
            if len(history) < epoch:
                model.load_state_dict(finished)
                optimizer.zero_grad()
            if isinstance(error, KeyboardInterrupt):
                say(f"Stopped: the weights and the history are those of {len(history)} finished epochs")
                break
            if isinstance(error, FloatingPointError):
                raise FloatingPointError(f"epoch {epoch}: {error}") from None
            raise
    return history


class _Bar:
    """An epoch's progress: a live bar where someone watches, otherwise its last line; nothing without a log."""

    def __init__(self, batches: int, log: Log | None) -> None:
        self.live = log is print and _is_watched(sys.stdout)
        self.log, self.batches, self.refreshed = log, batches, time.monotonic()
        file = sys.stdout if self.live else io.StringIO()
        self.bar = None if log is None else tqdm(total=batches, file=file, mininterval=REFRESH_SECONDS, ascii=False)

    def __enter__(self) -> "_Bar":
        return self

    def is_due(self, batch: int) -> bool:
        """Whether to read the score now: at the last batch, and where the bar is live every half second."""
        if self.bar is None:
            return False
        due = self.live and time.monotonic() - self.refreshed >= REFRESH_SECONDS
        return due or batch == self.batches - 1

    def describe(self, text: str) -> None:
        self.refreshed = time.monotonic()
        if self.bar is not None:
            self.bar.set_description_str(text, refresh=False)

    def advance(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def __exit__(self, kind: object, *_: object) -> None:
        if self.bar is None:
            return
        line = str(self.bar)
        self.bar.close()
        if not self.live and self.log is not None and kind is None:
            self.log(line)


def _is_watched(stream: Any) -> bool:
    return stream.isatty() or type(stream).__module__.startswith("ipykernel")


def _move(images: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Bring a batch to the device, channels last where it will be computed in half precision."""
    if dtype != torch.float32 and images.ndim == 4:
        return images.to(device, non_blocking=True, memory_format=torch.channels_last)
    return images.to(device, non_blocking=True)


def _step(scheduler: LRScheduler, row: dict) -> None:
    """Step a scheduler at the end of an epoch, unless it has stepped after every batch."""
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(row["test_loss"] if scheduler.mode == "min" else row["test_accuracy"])
    elif not isinstance(scheduler, PER_BATCH_SCHEDULERS):
        scheduler.step()


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _check_arguments(
    model: nn.Module,
    train_loader: Any,
    test_loader: Any,
    epochs: int,
    optimizer: torch.optim.Optimizer | None,
    scheduler: LRScheduler | None,
    criterion: Criterion | None,
) -> None:
    """Refuse what cannot train, before any work."""
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
        raise ValueError(f"epochs is a whole number from 1 up, not {epochs!r}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a torch.nn.Module, not {type(model).__name__}; pass the model itself")
    if not _trainable(model):
        raise ValueError("the model has no trainable parameter; set requires_grad_(True) on those to train")
    for name, loader in (("train_loader", train_loader), ("test_loader", test_loader)):
        if not hasattr(loader, "__len__"):
            raise TypeError(f"{name} has no length; pass a DataLoader or one of load_data's loaders")
        if len(loader) == 0:
            raise ValueError(f"{name} is empty; it must yield at least one batch of (images, labels)")
    if optimizer is not None:
        own = {id(parameter) for parameter in model.parameters()}
        if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
            raise ValueError("the optimizer holds no parameter of this model; build it from model.parameters()")
    if scheduler is not None and scheduler.optimizer is not optimizer:
        raise ValueError("the scheduler belongs to another optimizer; pass the optimizer it was built with")
    if isinstance(scheduler, OneCycleLR) and scheduler.total_steps < epochs * len(train_loader):
        raise ValueError(
            f"OneCycleLR was built for {scheduler.total_steps} steps and the run takes {epochs} epochs of "
            f"{len(train_loader)} batches; build it with epochs={epochs}, steps_per_epoch={len(train_loader)}"
        )
    if getattr(criterion, "reduction", "mean") != "mean":
        raise ValueError(f"the criterion must average over the batch, not reduction={criterion.reduction!r}")
