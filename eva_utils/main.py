"""The training loop: `train` one epoch, `test` one pass, `fit` a run."""

import math
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from .utils import processes
from .utils.batches import check_batch, check_labels, check_outputs
from .utils.checkpoint import check_resumable
from .utils.checks import (
    check_averaging,
    check_fit,
    check_rate,
    check_seed,
    check_steps_left,
    check_unscheduled,
    check_warmup,
    loss_parameters,
    trainable_parameters,
    warn_of_cosine,
    warn_of_loaders,
    warn_of_trained,
)
from .utils.forward import logits_of, loss_of
from .utils.history import History, describe_run
from .utils.meter import FirstBad, Meter, Score
from .utils.names import first_line, plural
from .utils.optim import MovingAverage, Warmup, fill_momentum
from .utils.progress import ProgressBar
from .utils.run_folder import RunFolder
from .utils.runtime import (
    can_fuse,
    check_compile,
    compiled,
    hardware,
    keep_freed_memory,
    keep_modes,
    pick_device,
    pick_precision,
    precision_name,
    rng_state,
    seed_everything,
    set_rng_state,
    unwrap,
)
from .utils.state import RunState, own_generators, recorded_precision
from .utils.stop import Stop
from .utils.trained import is_trained, note_trained

Log = Callable[[str], Any]
Criterion = Callable[[Tensor, Tensor], Tensor]

PER_BATCH_SCHEDULERS = (OneCycleLR, CyclicLR)


def train(
    model: nn.Module,
    loader: Any,
    optimizer: torch.optim.Optimizer,
    *,
    scheduler: LRScheduler | Warmup | None = None,
    criterion: Criterion | None = None,
    device: str | torch.device | None = None,
    precision: str = "auto",
    scaler: torch.amp.GradScaler | None = None,
    clip: float | None = None,
    ema: MovingAverage | None = None,
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
        clip: largest norm of the gradient of the optimizer's parameters together; None sets no limit.
        ema: the average that takes in the weights after every batch.
        progress: whether to show the bar: live in a terminal or a notebook, else its last line.
        log: takes one line; None is silent.

    Raises:
        FloatingPointError: the loss is NaN or infinite, naming the batch.
    """
    place, dtype, criterion = _prepare(model, criterion, device, precision)
    scaler = scaler or torch.amp.GradScaler(place.type, enabled=dtype == torch.float16)
    check_averaging(None, clip)
    if scaler.is_enabled():
        fill_momentum(optimizer)
    meter, first_bad, shared = Meter(place), FirstBad(place), processes.is_shard(loader)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    with keep_modes(model), ProgressBar(len(loader), log if progress else None) as bar:

        def describe(score: Score) -> None:
            bar.describe(f"Loss={score.loss:.4f} Batch_id={number} LR={rate:.5f} Accuracy={score.accuracy:.2f}")

        model.train()
        number, rate = 0, float(optimizer.param_groups[0]["lr"])
        for number, batch in enumerate(loader):
            images, labels = check_batch(batch, f"batch {number}", unlabelled=shared)
            optimizer.zero_grad()
            logits = _forward(model, images, labels, place, dtype, number)
            labels = labels.to(place, non_blocking=place.type == "cuda")
            first = number == 0
            loss = loss_of(criterion, logits, labels, first=first) if len(labels) else 0 * logits.float().sum()
            first_bad.update(loss, number)
            if place.type == "cpu":
                first_bad.check()
            scaler.scale(loss * processes.weight(len(labels)) if shared else loss).backward()
            if clip is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(held, clip)
            scaler.step(optimizer)
            scaler.update()
            if ema is not None:
                ema.update_parameters(model)
            rate = float(optimizer.param_groups[0]["lr"])
            if scheduler is not None:
                scheduler.step()
            meter.update(loss, logits[: len(labels)], labels)
            if bar.is_due and meter.samples:
                first_bad.check()
                describe(meter.score())
            bar.advance()
        first_bad.check()
        score = meter.total() if shared else meter.score()
        describe(score)
    optimizer.zero_grad()
    return score._replace(lr=rate)


def _forward(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    device: torch.device,
    dtype: torch.dtype,
    number: int,
    kind: str = "batch",
) -> Tensor:
    """Return the logits of a batch, and say what does not fit: the images, the output or the labels."""
    logits = logits_of(model, images, device, dtype, first=number == 0)
    if not len(labels):
        return logits
    # Labels already on a device are checked once a pass, since reading them waits for it.
    if number == 0 or labels.device.type == "cpu":
        check_labels(labels, logits.shape[1], f"{kind} {number}")
    return logits


def test(
    model: nn.Module,
    loader: Any,
    *,
    criterion: Criterion | None = None,
    device: str | torch.device | None = None,
    precision: str = "auto",
) -> Score:
    """Score the model on a loader in evaluation mode, each sample counted once.

    The model is moved to the device and left in the mode it was in. Args are those of `train`. A loss
    that is NaN is returned as it is.
    """
    place, dtype, criterion = _prepare(model, criterion, device, precision)
    meter, shared = Meter(place), processes.is_shard(loader)
    with keep_modes(model), torch.no_grad():
        model.eval()
        for number, batch in enumerate(loader):
            images, labels = check_batch(batch, f"batch {number}", unlabelled=shared)
            if not len(labels):
                continue
            logits = _forward(model, images, labels, place, dtype, number)
            labels = labels.to(place, non_blocking=place.type == "cuda")
            loss = loss_of(criterion, logits, labels, first=number == 0)
            meter.update(loss, logits, labels)
    return meter.total() if shared else meter.score()


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
    mirror: str | Path | None = None,
    warmup: int = 0,
    ema: float | None = None,
    clip: float | None = None,
    compile: bool | str = False,
    progress: bool = True,
    log: Log | None = print,
) -> History:
    """Train and test for so many epochs and return the record of the run.

    In float32 the weights follow a plain PyTorch loop bit for bit. Loaders that seem swapped or hold the same
    images, and a model that has the weights of an earlier run, are warned of. Ctrl-C and a notebook's stop button
    return the record of the finished epochs; so that they fit it, model, optimizer and scheduler go back
    to the last finished epoch, as they do after an error.

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
        resume: True continues the run in the folder, "auto" does so if there is one. Everything is put
            back as it was, and on the CPU the run ends as if it had never stopped, bit for bit.
        mirror: second folder, on Google Drive for one, to which each finished epoch is copied. A mirror that
            fails is warned of and stops nothing; a run whose own folder is lost is resumed from it.
        warmup: first epochs in which the rate rises linearly, batch by batch; the scheduler starts after them.
        ema: decay, as 0.999, of an exponential moving average of the weights over the steps. The average is what
            is tested, saved as best.pt and last.pt, and in the model at the end.
        clip: largest norm of the gradient of the optimizer's parameters together; None sets no limit.
        compile: True runs the model through `torch.compile`, a string names its mode, as "reduce-overhead"
            (CUDA graphs). Compiling takes a minute before the first epoch, and need not pay.
        progress: whether to show a bar each epoch.
        log: takes one line; None is silent.

    Raises:
        ValueError: an argument does not fit the others, or the run to resume; nothing has been trained.
        FloatingPointError: a loss is NaN or infinite, naming epoch and batch.
        torch.OutOfMemoryError: a batch does not fit, naming its size and a smaller one.
        An error that ends a run carries the record of its finished epochs as `error.history`.
    """
    check_fit(model, train_loader, test_loader, epochs, optimizer, scheduler, criterion)
    check_warmup(warmup, epochs, scheduler)
    check_averaging(ema, clip)
    epochs, warmup = int(epochs), int(warmup)
    ema, clip = (None if value is None else float(value) for value in (ema, clip))
    if seed is not None:
        check_seed(seed)
        seed = int(seed)
    place, dtype, criterion = _prepare(model, criterion, device, precision)
    check_compile(compile, place)
    processes.check_together(model, criterion, place)
    if processes.rank():
        log, progress = None, False
    say: Log = log or (lambda line: None)
    run = RunFolder(checkpoint, mirror, resume, say)
    # Before the folder is made, so that what does not fit leaves nothing behind.
    check_outputs(_check_test_batch(model, test_loader, place, dtype), train_loader, test_loader)
    stop = Stop()
    train_part, test_part = (stop.after_batches(processes.shard(loader)) for loader in (train_loader, test_loader))
    with ExitStack() as stack:
        saved = processes.first_does(lambda: stack.enter_context(run.opened()))
        if saved and precision == "auto":
            dtype = recorded_precision(saved, place, epochs)
        if optimizer is None:
            fused = can_fuse(place, dtype)
            optimizer = torch.optim.SGD(trainable_parameters(model), lr=0.01, momentum=0.9, fused=fused)
        if scheduler is None:
            check_unscheduled(optimizer)
            scheduler = ReduceLROnPlateau(optimizer, patience=3)
        check_rate(optimizer, scheduler)
        warn_of_cosine(scheduler, epochs, warmup, len(train_loader))
        use_scaler = dtype == torch.float16 and (saved is None or bool(saved["scaler"]))
        scaler = torch.amp.GradScaler(place.type, enabled=use_scaler)
        plain_model = unwrap(model)
        settings = {
            **describe_run(plain_model, optimizer, scheduler, criterion, train_loader, test_loader),
            "epochs": epochs,
            "warmup": warmup,
            "ema": ema,
            "clip": clip,
            "compile": compile,
            "seed": seed,
            "torch_seed": torch.initial_seed(),
            "precision": precision_name(dtype),
            "processes": processes.count(),
            "trained_before": is_trained(plain_model),
            **hardware(place),
        }
        history = History(settings=settings)
        stack.callback(lambda: note_trained(plain_model) if history.rows else None)  # after the average is in
        average, tested_model = None, model
        if ema is not None:
            average = MovingAverage(model, ema)
            tested_model = average.module
            stack.callback(lambda: plain_model.load_state_dict(tested_model.state_dict()))
        state = RunState(
            train_loader,
            model=plain_model,
            optimizer=optimizer,
            scheduler=scheduler,
            scaler=scaler,
            ema=average,
            criterion=criterion if loss_parameters(criterion) else None,
        )
        if saved:
            rates = [group["lr"] for group in saved["optimizer"]["param_groups"]]
            as_left = rates == [float(group["lr"]) for group in optimizer.param_groups]
            check_resumable(saved, plain_model, settings, fresh_optimizer=not (optimizer.state or as_left))
        else:
            check_steps_left(scheduler, epochs * len(train_loader))
            warn_of_trained(settings["trained_before"])
        warn_of_loaders(train_loader, test_loader)
        trained_model = stack.enter_context(processes.parallel(model))
        for module in {id(model): model, id(tested_model): tested_model}.values():
            stack.enter_context(compiled(module, compile))
        if seed is not None:
            seed_everything((seed + processes.rank()) % 2**32)
        if saved:
            state.restore(saved)
            history = History(**saved["history"])
            history.settings["epochs"] = max(epochs, len(history))
            run.rewrite_derived(saved, history)
            if len(history) < epochs:
                history.note_machine(hardware(place))
                say(f"Resuming after epoch {len(history)} of {epochs} in {run}")
            else:
                finished = plural(len(history), "epoch")
                say(f"The run in {run} has finished its {finished}: its weights and history are loaded")

        options: dict[str, Any] = {"criterion": criterion, "device": place, "precision": precision_name(dtype)}
        train_options = {"scaler": scaler, "clip": clip, "ema": average, "progress": progress, "log": log, **options}
        epoch = len(history)
        state.keep()
        stack.enter_context(stop.on_signals())
        try:
            while epoch < epochs:
                epoch += 1
                say(f"EPOCH: {epoch}")
                train_part.set_epoch(epoch)
                batch_scheduler: LRScheduler | Warmup | None = None
                if isinstance(scheduler, PER_BATCH_SCHEDULERS):
                    batch_scheduler = scheduler
                elif epoch <= warmup:
                    batches = len(train_loader)
                    batch_scheduler = Warmup(optimizer, history.start_rates, warmup * batches, (epoch - 1) * batches)
                start = time.perf_counter()
                trained = train(trained_model, train_part, optimizer, scheduler=batch_scheduler, **train_options)
                if epoch == warmup:
                    Warmup(optimizer, history.start_rates, steps=1)  # the full rate, also after fewer batches than said
                tested = test(tested_model, test_part, **options)
                row = _make_row(epoch, trained, tested, time.perf_counter() - start)
                say(_describe_test(tested))
                if batch_scheduler is None:
                    _step(scheduler, row)
                state.keep()
                history.rows.append(row)
                if checkpoint is not None:
                    run.save(state.collect(epoch, history), history)
        except BaseException as error:
            if _is_lack_of_memory(error):  # a notebook keeps the error, and with it the batch's tensors
                traceback.clear_frames(error.__traceback__)
            state.roll_back()
            optimizer.zero_grad()
            if not stop.caused(error):
                error.history = history  # type: ignore[attr-defined]
                _explain(error, epoch, train_loader)
                raise
            kept = plural(len(history), "finished epoch")
            say(f"Stopped in epoch {epoch}: weights and history are those of the {kept}")
        return history


def _is_lack_of_memory(error: BaseException) -> bool:
    said = ("can't allocate memory", "out of memory") if isinstance(error, RuntimeError) else ()  # CPU, MPS
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in said)


def _explain(error: BaseException, epoch: int, loader: Any) -> None:
    """Put the epoch into the message of a loss that is not finite, and a smaller batch into one of lack of memory."""
    if isinstance(error, FloatingPointError):
        error.args = (f"epoch {epoch}: {error}",)
    elif _is_lack_of_memory(error):
        size = getattr(loader, "batch_size", None)
        advice = "this large; try smaller images"
        if isinstance(size, int) and size > 1:
            advice = f"of {size} images; try batch_size={size // 2}"
        error.args = (f"epoch {epoch}: out of memory with a batch {advice} ({first_line(error)})",)


def _check_test_batch(model: nn.Module, loader: Any, device: torch.device, dtype: torch.dtype) -> int:
    """Refuse a test loader that does not fit the model now, and not after the first epoch; return the outputs' count.

    Nothing is left changed.
    """
    state, generators = rng_state(), [(part, part.get_state()) for part in own_generators(loader)]
    try:
        with keep_modes(model), torch.no_grad():
            model.eval()
            for batch in loader:
                return _forward(model, *check_batch(batch, "test batch 0"), device, dtype, 0, "test batch").shape[1]
            raise ValueError("test_loader yields nothing; it must yield at least one batch of (images, labels)")
    finally:
        set_rng_state(state)
        for part, before in generators:
            part.set_state(before)


def _make_row(epoch: int, trained: Score, tested: Score, seconds: float) -> dict:
    """Return the row of the record, or refuse a test loss that says nothing."""
    if not math.isfinite(tested.loss):
        raise FloatingPointError(
            f"the test loss is {tested.loss}; lower the learning rate, or look for NaN in the test images"
        )
    return {
        "epoch": epoch,
        "train_loss": trained.loss,
        "train_accuracy": trained.accuracy,
        "test_loss": tested.loss,
        "test_accuracy": tested.accuracy,
        "lr": trained.lr,
        "seconds": seconds,
    }


def _describe_test(tested: Score) -> str:
    share = f"{tested.correct}/{tested.samples} ({tested.accuracy:.2f}%)"
    return f"Test set: Average loss: {tested.loss:.4f}, Accuracy: {share}"


def _step(scheduler: LRScheduler, row: dict) -> None:
    """Step a scheduler at the end of an epoch."""
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(row["test_loss"] if scheduler.mode == "min" else row["test_accuracy"])
    else:
        scheduler.step()


def _prepare(
    model: nn.Module, criterion: Criterion | None, device: str | torch.device | None, precision: str
) -> tuple[torch.device, torch.dtype, Criterion]:
    """Choose device, precision and criterion, and move the model and the criterion to the device."""
    place = pick_device(device)
    dtype = pick_precision(precision, place)
    if place.type == "cpu":
        keep_freed_memory()
    criterion = nn.CrossEntropyLoss() if criterion is None else criterion
    for part in (model, criterion):
        if isinstance(part, nn.Module):
            part.to(place)
    if dtype != torch.float32 and all(parameter.ndim < 5 for parameter in model.parameters()):
        model.to(memory_format=torch.channels_last)
    return place, dtype, criterion
