"""The command line: arguments, data, model, fit, report.

python main.py --assignment eva6_s8 --out runs/eva6_s8
python main.py --data shapes --epochs 8 --lr 0.1 --out runs/shapes
python main.py --data cifar10 --model resnet18 --norm layer --recipe eva6_s8 --epochs 40 --out runs/s8
python main.py --evaluate runs/s8 --data cifar10
python main.py --preflight --data cifar10 --model resnet18
"""

import argparse
import sys
from pathlib import Path

from torch import nn

import eva_utils as eva
from eva_utils.utils import command_note, processes
from eva_utils.utils.checkpoint import check_folder, holds_run, last_epoch
from eva_utils.utils.checks import check_clip, check_decay, check_real, check_whole
from eva_utils.utils.compiling import check_compile
from eva_utils.utils.data import Data
from eva_utils.utils.finished import precision_of
from eva_utils.utils.lock import locked
from eva_utils.utils.mirror import check_mirror, check_mounted
from eva_utils.utils.names import first_line, unknown_name
from eva_utils.utils.optim import SCHEDULERS, make_optimizer, one_cycle
from eva_utils.utils.options import as_options, parse
from eva_utils.utils.plateau import make_plateau
from eva_utils.utils.runtime import can_fuse, pick_device, pick_precision
from eva_utils.utils.schedule_checks import check_warmup
from eva_utils.utils.transforms import test_transform

STOPPED = 130  # the exit status of a program that Ctrl-C has ended


def load(args: argparse.Namespace) -> Data:
    return eva.load_data(
        args.data, args.root, args.batch_size, args.recipe, args.validation,
        args.size, args.limit, args.seed, args.device, args.workers, args.test_share,
    )  # fmt: skip


def image_side(data: Data) -> int:
    return data.test.images[0].shape[-1]


def build(args: argparse.Namespace, classes: int, side: int | None = None) -> nn.Module:
    """Build the model that the options ask for, for images of this side; those left out are the model's own."""
    options = {"last_stride": args.last_stride, "standardize": args.standardize or None}
    if args.model == "vit":  # the only one built for one size of image
        options["size"] = side
    options = {name: value for name, value in options.items() if value is not None}
    model = eva.create_model(args.model, num_classes=classes, norm=args.norm, **options)
    return eva.center_filters(model) if args.center_filters else model


def make_parts(args: argparse.Namespace, data: Data):
    """Return model, optimizer, scheduler and criterion for the data."""
    eva.seed_everything(args.seed)
    model = build(args, len(data.classes), image_side(data))
    if getattr(model, "whitening", None):
        model.whiten(next(iter(data.train))[0])
    return model, *make_training(args, model.to(pick_device(args.device)), len(data.train))


def make_training(args: argparse.Namespace, model: nn.Module, batches: int):
    """Return optimizer, scheduler and criterion for epochs of so many batches."""
    device = pick_device(args.device)
    optimizer = make_optimizer(
        args.optimizer,
        model,
        lr=args.lr,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        nesterov=args.nesterov,
        fused=can_fuse(device, pick_precision(args.precision, device)),
    )
    check_real("label_smoothing", args.label_smoothing, 0, 1)
    criterion = nn.CrossEntropyLoss(label_smoothing=args.label_smoothing)
    if args.scheduler not in SCHEDULERS:
        raise unknown_name("scheduler", args.scheduler, SCHEDULERS)
    if args.scheduler == "plateau":
        cuts = {"factor": args.factor, "patience": args.patience, "threshold": args.threshold}
        return optimizer, make_plateau(optimizer, **cuts), criterion
    lr_min = args.lr / 10 if args.lr_min is None else args.lr_min
    peak_epoch = min(5, args.epochs / 2) if args.peak_epoch is None else args.peak_epoch
    rates = {"lr_max": args.lr, "lr_min": lr_min, "peak_epoch": peak_epoch, "annihilate": args.annihilate}
    return optimizer, one_cycle(optimizer, args.epochs, batches, **rates), criterion


def check_options(args: argparse.Namespace) -> None:
    """Refuse a wrong name or number before the data is read, by building everything for data of any size."""
    check_whole("epochs", args.epochs, 1)
    check_decay(args.ema)
    check_clip(args.clip)
    eva.seed_everything(args.seed)
    model = build(args, classes=10)
    _, scheduler, criterion = make_training(args, model, batches=100)
    check_warmup(args.warmup, args.epochs, scheduler)
    check_compile(args.compile, pick_device(args.device))
    processes.check_together(model, criterion, pick_device(args.device))


def check_out(out: Path, resume: bool, mirror: Path | None) -> None:
    """Refuse a folder of other files, so that a run never mixes with them, and a mirror that cannot be one."""
    for folder in filter(None, (out, mirror)):
        check_mounted(folder)
    if mirror and not resume:
        check_mirror(out, mirror, resume)
    if not (resume and mirror and out.is_dir()):  # the mirror may have what the folder lacks
        check_folder(out, "auto" if resume else False)
    if out.is_dir() and not holds_run(out):
        own = {".lock", command_note.NAME, *(path.name for path in out.glob(".*.tmp"))}  # the last as a kill leaves it
        others = sorted(path.name for path in out.iterdir() if path.name not in own)
        if others:
            raise ValueError(f"--out {out} holds other files ({others[0]}) and no run; name a new or an empty folder")
    command_note.read_note(out)  # a damaged one is refused before the training, after which it is written to


def train(args: argparse.Namespace) -> int:
    check_out(args.out, args.resume, args.mirror)
    with processes.process_group():
        check_options(args)
        model, data, history = run(args)
        first = processes.rank() == 0
    if len(history) < args.epochs:
        if first:
            print(f"Stopped after {len(history)} of {args.epochs} epochs; go on with --resume")
        return STOPPED
    if first:
        best = history.best
        print(f"Best: {best['test_accuracy']:.2f}% at epoch {best['epoch']}; {args.out}/ holds weights and record")
        report(args, model, data)
    return 0


def run(args: argparse.Namespace) -> tuple[nn.Module, Data, eva.History]:
    """Train, in several processes if there are, and return the model, its data and the record."""
    before = last_epoch(args.out)
    with processes.first_before_others():  # it alone downloads what is missing
        data = load(args)
    model, optimizer, scheduler, criterion = make_parts(args, data)
    if processes.rank() == 0:
        print(eva.summary(model, tuple(data.train.images[0].shape)))
        with locked(args.out):
            command_note.begin_note(args.out, vars(args), data)
    history = eva.fit(
        model,
        data.train,
        data.validation or data.test,
        epochs=args.epochs,
        optimizer=optimizer,
        scheduler=scheduler,
        criterion=criterion,
        device=args.device,
        precision=args.precision,
        checkpoint=args.out,
        resume="auto" if args.resume else False,
        mirror=args.mirror,
        warmup=args.warmup,
        ema=args.ema,
        clip=args.clip,
        compile=args.compile,
    )
    if processes.rank() == 0 and len(history) > before:
        command_note.add_command(args.out)
    return model, data, history


def report(args: argparse.Namespace, model: nn.Module, data: Data) -> None:
    notebook = None
    if args.assignment:
        notebook = Path(__file__).parent / "assignment" / args.assignment / f"{args.assignment}.ipynb"
        notebook = notebook if notebook.exists() else None
    print(eva.write_report(args.out, model, data, args.assignment, notebook=notebook, device=args.device))


def preflight(args: argparse.Namespace) -> int:
    check_options(args)
    data = load(args)
    model, optimizer, scheduler, criterion = make_parts(args, data)
    parts = {"optimizer": optimizer, "scheduler": scheduler, "criterion": criterion}
    report = eva.preflight(model, data, args.assignment, **parts)
    print(report)
    return 0 if report.passed else 1


def evaluate(args: argparse.Namespace) -> int:
    """Score a run's best and last weights on the test images and set the record beside it.

    A run of a notebook has no note of what it chose: --model, --norm, --last-stride, --standardize, --center-filters,
    --size and --test-share say it.
    """
    best, last, settings = read_record(args.evaluate)
    tested, note = settings["test_loader"], command_note.read_note(args.evaluate)
    if not note:
        args.seed = tested.get("seed", args.seed)  # it chose the images of --test-share and --limit
    data = load(args)
    if note:
        check_classes(args, data, note["classes"])
        data.test.transform = test_transform(note["mean"], note["std"])
    if args.precision == "auto":
        args.precision = precision_of(settings, pick_device(args.device))
    model = build(args, len(data.classes), image_side(data))
    smoothing = settings["criterion"].get("label_smoothing", 0.0)  # so that the losses are of one kind
    criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)
    same = tested.get("fingerprint") == data.test.fingerprint
    where = "of the same images" if same else "of other images than these (another dataset, --limit or --validation)"
    for which, row in (("best", best), ("last", last)):
        eva.load_weights(model, args.evaluate, which)
        score = eva.test(model, data.test, criterion=criterion, device=args.device, precision=args.precision)
        print(
            f"{which}.pt, epoch {row['epoch']}: {score.correct}/{score.samples} ({score.accuracy:.2f}%), "
            f"loss {score.loss:.4f}; the record says {row['test_accuracy']:.2f}% {where}, loss {row['test_loss']:.4f}"
        )
    return 0


def read_record(run: Path) -> tuple[dict, dict, dict]:
    """Return the best and the last row of a run's record, and those of its settings that a score depends on."""
    try:
        history = eva.History.load(run)
        settings = {name: history.settings[name] for name in ("precision", "test_loader", "criterion")}
        return history.best, history.rows[-1], settings
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{run} holds no finished epoch of a run ({type(error).__name__}: {error}); "
            "give the folder that was its --out"
        ) from None


def check_classes(args: argparse.Namespace, data: Data, classes: list[str]) -> None:
    if data.classes != classes:
        raise ValueError(
            f"{args.evaluate} was trained on the classes {', '.join(classes)}, and --data {args.data} has "
            f"{', '.join(data.classes)}; give the data it was trained on"
        )


def main() -> int:
    args = parse()
    command = evaluate if args.evaluate else preflight if args.preflight else train
    try:
        return command(args)
    except KeyboardInterrupt:
        print("main.py: stopped", file=sys.stderr)
        return STOPPED
    except Exception as error:
        print(f"main.py: {as_options(first_line(error), args)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
