"""The training loop: `train` one epoch, `test` one pass, `fit` a run."""

import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from .utils import processes
from .utils.averaging import MovingAverage, averaged, check_average
from .utils.batches import check_batch, check_outputs
from .utils.checks import (
    check_clip,
    check_criterion,
    check_decay,
    check_fit,
    check_loader,
    check_log,
    check_model,
    check_optimizer,
    check_seed,
    check_trainable,
    warn_of_loaders,
    warn_of_trained,
)
from .utils.compiling import check_compile, compiled, unwrap
from .utils.failures import explain_end, free_memory, is_device_lost
from .utils.forward import all_ignored, count_outputs, forward_batch, loss_of, use_channels_last, weight_of
from .utils.history import History, describe_run
from .utils.kept import keep_modes
from .utils.meter import FirstBad, Meter, Score, make_row
from .utils.names import plural
from .utils.optim import clear_gradients, prepare_fused
from .utils.parts import held_parameters, parameters_left_out, trainable_parameters
from .utils.progress import ProgressBar, describe_test, describe_training
from .utils.run_folder import RunFolder
from .utils.runtime import (
    can_fuse,
    hardware,
    keep_freed_memory,
    pick_device,
    pick_precision,
    precision_name,
    seed_everything,
    warn_of_emulation,
)
from .utils.schedule import Warmup, check_per_batch, ignoring_order, per_batch_scheduler, set_rates, step_epoch
from .utils.schedule_checks import (
    check_rate,
    check_scheduler,
    check_steps_left,
    check_unscheduled,
    check_warmup,
    warn_of_schedule,
)
from .utils.state import RunState, check_resumable, recorded_precision
from .utils.stop import Stop, Stoppable
from .utils.trained import is_trained, note_trained

Log = Callable[[str], Any]
Criterion = Callable[[Tensor, Tensor], Tensor]


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

    Gradients are cleared before each batch and at the end.

    Args:
        model: returns logits (N, C); it is moved to the device and left in the mode it was in.
        loader: any iterable of (images, labels) with a length. One of `load_data` repeats its batches
            unless `set_epoch` is called between epochs.
        optimizer: stepped once a batch.
        scheduler: is stepped after every batch, as OneCycleLR and CyclicLR are made for; others are yours to step.
        criterion: mean loss of a batch; cross entropy if None.
        device: see `eva_utils.utils.runtime.pick_device`.
        precision: "auto", "float32", "bfloat16" or "float16".
        scaler: of the gradients, in float16; a new one each time if None, which begins at a scale that is too high, so
            a loop of your own passes one `torch.amp.GradScaler` to every call.
        clip: largest norm of the gradient of the optimizer's parameters together; None sets no limit.
        ema: the average that takes in the weights after every batch.
        progress: whether to show the bar: live in a terminal or a notebook, else its last line.
        log: takes one line; None is silent.

    Raises:
        FloatingPointError: the loss is NaN or infinite, naming the batch.
        ValueError: a batch, the logits, the loss or a number is not what it should be, or before any step: the
            scheduler is of another optimizer, or a OneCycleLR with fewer steps left than the loader has batches.
        TypeError: likewise, or the scheduler follows a metric.
    """
    check_trainable(model)
    check_loader("loader", loader)
    check_optimizer(optimizer, model)
    check_criterion(criterion)
    check_clip(clip)
    check_average(ema)
    check_log(log)
    check_per_batch(scheduler, optimizer, len(loader))
    device, dtype, criterion = _choose(criterion, device, precision)
    _move(model, criterion, device)
    use_channels_last(model, device, dtype)
    scaler = scaler or torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    meter, first_bad, shared = Meter(device), FirstBad(device, dtype), processes.is_shard(loader)
    held, left_out = held_parameters(optimizer), parameters_left_out(model, optimizer).values()
    number, rate = 0, float(optimizer.param_groups[0]["lr"])
    with keep_modes(model), ProgressBar(len(loader), log if progress else None) as bar:
        model.train()
        for number, batch in enumerate(loader):
            images, labels = check_batch(batch, f"batch {number}", unlabelled=shared)
            clear_gradients(optimizer, left_out)
            logits, labels = forward_batch(model, images, labels, device, dtype, number)
            # One process's part of a small batch may have no label, and takes part in the step all the same.
            loss = loss_of(criterion, logits, labels, first=not number) if len(labels) else 0 * logits.float().sum()
            weight = weight_of(criterion, labels)
            first_bad.update(loss, number, weight, all_ignored(criterion, labels))
            if device.type == "cpu":
                first_bad.check()
            scaler.scale(loss * processes.weight(len(labels)) if shared else loss).backward()
            if not number:
                prepare_fused(optimizer)
            if clip is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(held, clip)
            scaler.step(optimizer)
            scaler.update()
            if ema is not None:
                ema.update_parameters(model)
            rate = float(optimizer.param_groups[0]["lr"])
            if scheduler is not None:
                with ignoring_order() if scaler.is_enabled() and not number else nullcontext():
                    scheduler.step()
            meter.update(loss, logits[: len(labels)], labels, weight)
            if bar.is_due and meter.samples:
                first_bad.check()
                bar.describe(describe_training(meter.score(), number, rate))
            bar.advance()
        first_bad.check()
        score = meter.total() if shared else meter.score()
        bar.describe(describe_training(score, number, rate))
    clear_gradients(optimizer, left_out)
    return score._replace(lr=rate)


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

    Raises:
        ValueError: a batch, the logits or the loss is not what it should be.
        TypeError: likewise.
    """
    check_model(model)
    check_loader("loader", loader)
    check_criterion(criterion)
    device, dtype, criterion = _choose(criterion, device, precision)
    _move(model, criterion, device)
    use_channels_last(model, device, dtype)
    meter, shared = Meter(device), processes.is_shard(loader)
    with keep_modes(model), torch.no_grad():
        model.eval()
        for number, batch in enumerate(loader):
            images, labels = check_batch(batch, f"batch {number}", unlabelled=shared)
            if not len(labels):
                continue
            logits, labels = forward_batch(model, images, labels, device, dtype, number)
            loss = loss_of(criterion, logits, labels, first=not number)
            meter.update(loss, logits, labels, weight_of(criterion, labels))
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
        test_loader: likewise, but told no epoch; pass the held-out split here while choosing anything.
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
            back as it was, and on the CPU the run ends as if it had never stopped, bit for bit; only what
            a part, or a worker kept by `persistent_workers`, has to itself cannot be seen: a generator of a dataset's
            or a model's own, a counter in a plain attribute.
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
        ValueError: an argument does not fit the others, or the run to resume, and nothing has been trained; or model
            or criterion fail on the first batch of an epoch.
        TypeError: an argument is not what its name says, or a part of the run cannot be saved.
        OSError: the folder cannot be written to.
        FloatingPointError: a loss is NaN or infinite, naming the epoch and of training the batch.
        torch.OutOfMemoryError: a batch does not fit, naming its size and a smaller one.

    An error that ends a run carries the record of its finished epochs as `error.history`.
    """
    check_fit(model, train_loader, test_loader, epochs, optimizer, scheduler, criterion)
    check_scheduler(scheduler, optimizer, epochs, len(train_loader))
    epochs, warmup = int(epochs), check_warmup(warmup, epochs, scheduler)
    ema, clip = check_decay(ema), check_clip(clip)
    check_log(log)
    seed = None if seed is None else check_seed(seed)
    device, dtype, criterion = _choose(criterion, device, precision)
    check_compile(compile, device)
    processes.check_together(model, criterion, device)
    if processes.rank():
        log, progress = None, False
    say: Log = log or (lambda line: None)
    run = RunFolder(checkpoint, mirror, resume, say)
    _move(model, criterion, device)
    # Before the folder is made, so that what does not fit leaves nothing behind.
    check_outputs(count_outputs(model, test_loader, device, dtype), train_loader, test_loader)
    stop = Stop()
    train_part, test_part = (Stoppable(processes.shard(loader), stop) for loader in (train_loader, test_loader))

    with ExitStack() as stack:
        saved = stack.enter_context(run.opened())

        # The parts of the run, and its record.
        if saved and precision == "auto":
            dtype = recorded_precision(saved, device, epochs)
        elif not saved or saved["epoch"] < epochs:
            warn_of_emulation(dtype, device)
        use_channels_last(model, device, dtype)
        optimizer, scheduler = _complete(model, optimizer, scheduler, device, dtype)
        warn_of_schedule(scheduler, epochs, warmup, len(train_loader))
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        plain_model = unwrap(model)
        parts = (plain_model, optimizer, scheduler, criterion, train_loader, test_loader)
        asked = {"epochs": epochs, "warmup": warmup, "ema": ema, "clip": clip, "compile": compile, "seed": seed}
        history = History(settings=_describe(parts, asked, device, dtype))
        # After the average is in, and not where the weights cannot be read any more.
        stack.push(
            lambda _, error, __: note_trained(plain_model) if history.rows and not is_device_lost(error) else None
        )
        average = stack.enter_context(averaged(model, ema))
        tested_model = model if average is None else average.module
        state = RunState(
            (train_loader, test_loader),
            criterion,
            model=plain_model,
            optimizer=optimizer,
            scheduler=scheduler,
            scaler=scaler,
            ema=average,
        )

        # A new run, or the one in the folder: what does not fit is refused before anything is changed.
        if saved:
            check_resumable(saved, state, history.settings)
        else:
            check_steps_left(scheduler, epochs * len(train_loader))
            warn_of_trained(history.settings["trained_before"])
            run.check_savable(state, history)
        warn_of_loaders(train_loader, test_loader)
        trained_model = stack.enter_context(processes.parallel(model))
        for module in (model,) if average is None else (model, tested_model):
            stack.enter_context(compiled(module, compile))
        if seed is not None:
            seed_everything((seed + processes.rank()) % 2**32)
        if saved:
            state.restore(saved)
            history.take_up(saved["history"], epochs)
            run.take_up(saved, history, epochs)
            if len(history) < epochs:
                history.note_machine(hardware(device))

        # The epochs; after an error or a stop all is as the last finished one left it.
        options: dict[str, Any] = {"criterion": criterion, "device": device, "precision": precision_name(dtype)}
        train_options = {"scaler": scaler, "clip": clip, "ema": average, "progress": progress, "log": log, **options}
        epoch, loader = len(history), train_loader
        state.keep()
        stack.enter_context(stop.on_signals())
        try:
            for epoch in range(len(history) + 1, epochs + 1):
                say(f"EPOCH: {epoch}")
                train_part.set_epoch(epoch)
                per_batch = per_batch_scheduler(scheduler, optimizer, history, epoch, warmup, len(train_loader))
                start, loader = time.perf_counter(), train_loader
                trained = train(trained_model, train_part, optimizer, scheduler=per_batch, **train_options)
                if epoch == warmup:
                    set_rates(optimizer, history.start_rates)  # the full ones, also after fewer batches than said
                processes.share_buffers(plain_model, average and average.module)
                loader = test_loader
                tested = test(tested_model, test_part, **options)
                row = make_row(epoch, trained, tested, time.perf_counter() - start, dtype)
                say(describe_test(tested))
                if per_batch is None:
                    step_epoch(scheduler, row)
                state.keep()
                history.rows.append(row)
                run.save(state, history)
        except BaseException as error:
            free_memory(error)
            if not is_device_lost(error):
                state.roll_back()
                clear_gradients(optimizer, parameters_left_out(model, optimizer).values())
            if not stop.caused(error):
                error.history = history  # type: ignore[attr-defined]
                explain_end(error, f"epoch {epoch}", loader)
                raise
            kept = plural(len(history), "finished epoch")
            say(f"Stopped in epoch {epoch}: weights and history are those of the {kept}")
        return history


def _choose(
    criterion: Criterion | None, device: str | torch.device | None, precision: str
) -> tuple[torch.device, torch.dtype, Criterion]:
    """Return the device, the precision and the loss that are meant."""
    device = pick_device(device)
    return device, pick_precision(precision, device), nn.CrossEntropyLoss() if criterion is None else criterion


def _move(model: nn.Module, criterion: Criterion, device: torch.device) -> None:
    """Bring the model and the loss to the device."""
    if device.type == "cpu":
        keep_freed_memory()
    for part in (model, criterion):
        if isinstance(part, nn.Module):
            part.to(device)


def _complete(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    scheduler: LRScheduler | None,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """Return the optimizer and the scheduler, those of the assignments where none is given, if their rate is one."""
    if optimizer is None:
        fused = can_fuse(device, dtype)
        optimizer = torch.optim.SGD(trainable_parameters(model), lr=0.01, momentum=0.9, fused=fused)
    if scheduler is None:
        check_unscheduled(optimizer)
        scheduler = ReduceLROnPlateau(optimizer, patience=3)
    check_rate(optimizer, scheduler)
    return optimizer, scheduler


def _describe(parts: tuple, asked: dict[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return the settings of a run: those of its parts, the model first, those asked for, and where it trains."""
    return {
        **describe_run(*parts),
        **asked,
        "torch_seed": torch.initial_seed(),
        "precision": precision_name(dtype),
        "processes": processes.count(),
        "trained_before": is_trained(parts[0]),
        **hardware(device),
    }
