"""The command line: arguments, data, model, fit, report.

python main.py --assignment eva6_s8 --out runs/eva6_s8
python main.py --data shapes --epochs 8 --lr 0.1 --out runs/shapes
python main.py --data cifar10 --model resnet18 --norm layer --recipe eva6_s8 --epochs 40 --out runs/s8
python main.py --evaluate runs/s8 --data cifar10
python main.py --preflight --data cifar10 --model resnet18
"""

import argparse
import difflib
import json
import re
import shlex
import sys
from pathlib import Path

from torch import nn

import eva_utils as eva
from eva_utils.models.norms import NORMS
from eva_utils.utils import processes
from eva_utils.utils.assignments import BRIEFS, adapt, find_brief
from eva_utils.utils.checkpoint import check_folder
from eva_utils.utils.checks import check_clip, check_decay, check_real, check_whole
from eva_utils.utils.data import Data
from eva_utils.utils.lock import locked
from eva_utils.utils.names import first_line, unknown_name
from eva_utils.utils.optim import OPTIMIZERS, SCHEDULERS, make_optimizer, make_plateau, one_cycle
from eva_utils.utils.runtime import PRECISIONS, can_fuse, pick_device, pick_precision
from eva_utils.utils.schedule_checks import check_warmup
from eva_utils.utils.sources import SOURCES
from eva_utils.utils.transforms import RECIPES, test_transform
from eva_utils.utils.verified import write_atomic

STOPPED = 130  # the exit status of a program that Ctrl-C has ended


class Parser(argparse.ArgumentParser):
    """A parser that answers a mistake in one sentence, with the nearest option there is."""

    def parse_args(self, args=None, namespace=None):
        namespace, unknown = self.parse_known_args(args, namespace)
        if namespace.assignment is not None and not unknown:
            try:
                options = find_brief(namespace.assignment).options
                begun = read_note(namespace.out) if namespace.resume else None
            except ValueError as error:
                self.error(str(error))
            self.set_defaults(**options)
            given = vars(self.parse_known_args(args)[0])
            if begun:  # a run that is made longer keeps the warmup it began with
                given["epochs"] = begun["options"]["epochs"]
            self.set_defaults(**adapt(options, given))
            namespace = self.parse_known_args(args)[0]
        if unknown:
            near = difflib.get_close_matches(unknown[0].split("=")[0], self._option_string_actions, n=1)
            hint = f"did you mean {near[0]}?" if near else "--help lists the options"
            self.error(f"unknown option {unknown[0]!r}; {hint}")
        return namespace

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="main.py",
        allow_abbrev=False,
        description="Train an image classifier, or score a finished run again.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    switch = argparse.BooleanOptionalAction
    parser.add_argument(
        "--assignment",
        help=f"set every option as this assignment asks and audit the run: {', '.join(BRIEFS)}; others given win",
    )
    data = parser.add_argument_group("data")
    layout = "train/CLASS/ with test/CLASS/ or val/CLASS/, or CLASS/ alone with --test-share"
    data.add_argument("--data", default="shapes", help=f"{', '.join(SOURCES)}, or a folder with {layout}")
    data.add_argument("--root", default="data", help="where datasets are downloaded to")
    data.add_argument("--recipe", default="none", help=f"augmentation of the training images: {', '.join(RECIPES)}")
    data.add_argument("--batch-size", type=int, default=128, help="images in a batch")
    data.add_argument("--validation", type=int, default=0, help="training images to hold out and test on")
    data.add_argument("--size", type=int, help="resize the images to this side")
    data.add_argument("--test-share", type=float, help="split training and test images anew, this share for testing")
    data.add_argument("--limit", type=int, help="keep only so many images of each split")
    data.add_argument("--workers", type=int, default=0, help="processes that decode what does not fit into memory")
    model = parser.add_argument_group("model")
    model.add_argument("--model", default="small_resnet", help=f"architecture: {', '.join(eva.list_models())}")
    model.add_argument("--norm", default="layer", help=f"normalization, the only one in it: {', '.join(NORMS)}")
    model.add_argument("--last-stride", type=int, help="stride of a ResNet's layer4, 1 or 2; 1 keeps 8x8 maps")
    model.add_argument(
        "--standardize", action=switch, default=False, help="standardize the weights of the convolutions"
    )
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=int, default=10, help="in all, those of a resumed run included")
    training.add_argument("--optimizer", default="sgd", help=f"one of {', '.join(OPTIMIZERS)}")
    training.add_argument("--lr", type=float, default=0.01, help="learning rate at the start")
    training.add_argument("--momentum", type=float, default=0.9, help="of SGD, and Adam's first beta")
    training.add_argument("--weight-decay", type=float, default=0.0, help="of weights, not of norms and biases")
    training.add_argument("--nesterov", action=switch, default=False, help="SGD with Nesterov's momentum")
    training.add_argument("--label-smoothing", type=float, default=0.0, help="of the cross entropy that is trained on")
    training.add_argument("--scheduler", default="plateau", help=f"one of {', '.join(SCHEDULERS)}")
    training.add_argument("--lr-min", type=float, help="rate at which one_cycle begins and ends; --lr / 10 if left out")
    training.add_argument(
        "--peak-epoch",
        type=float,
        help="epochs after which one_cycle reaches --lr; 5 or half of --epochs, the lower, if left out",
    )
    training.add_argument(
        "--annihilate", action=switch, default=False, help="let one_cycle end near 0 and not at --lr-min"
    )
    training.add_argument("--factor", type=float, default=0.1, help="by which the plateau schedule cuts the rate")
    training.add_argument("--patience", type=int, default=3, help="epochs without a lower test loss before a cut")
    training.add_argument("--threshold", type=float, default=1e-4, help="share by which the loss must be lower")
    training.add_argument("--warmup", type=int, default=0, help="first epochs in which the rate rises to --lr")
    training.add_argument("--ema", type=float, help="decay of averaged weights, as 0.999, which are then tested")
    training.add_argument("--clip", type=float, help="largest norm of the gradient")
    training.add_argument("--seed", type=int, default=1, help="of the weights, the order and the augmentation")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", help="cpu, cuda or mps; the best there is if left out")
    machine.add_argument("--compile", action="store_true", help="run the model through torch.compile")
    machine.add_argument("--precision", default="auto", help=f"auto, {', '.join(PRECISIONS)}")
    run = parser.add_argument_group("run")
    run.add_argument("--out", type=Path, default=Path("runs/latest"), help="folder for checkpoints and report")
    run.add_argument("--resume", action="store_true", help="continue the run in --out if there is one")
    run.add_argument("--mirror", type=Path, help="second folder, as on Google Drive, to which each epoch is copied")
    run.add_argument("--preflight", action="store_true", help="check data and model for a minute instead of training")
    run.add_argument("--evaluate", type=Path, metavar="RUN", help="score this run's weights on --data and stop")
    return parser.parse_args(arguments)


def load(args: argparse.Namespace) -> Data:
    return eva.load_data(
        args.data, args.root, args.batch_size, args.recipe, args.validation,
        args.size, args.limit, args.seed, args.device, args.workers, args.test_share,
    )  # fmt: skip


def build(chosen: dict, classes: int, side: int | None = None):
    """Build the model that the options ask for, for images of this side; those left out are the model's own."""
    options = {"last_stride": chosen["last_stride"], "standardize": chosen.get("standardize") or None}
    if chosen["model"] == "vit":  # the only one built for one size of image
        options["size"] = side
    options = {name: value for name, value in options.items() if value is not None}
    return eva.create_model(chosen["model"], num_classes=classes, norm=chosen["norm"], **options)


def make_parts(args: argparse.Namespace, data: Data | None = None):
    """Return model, optimizer, scheduler and criterion for the data, or refuse a wrong name or number before it."""
    eva.seed_everything(args.seed)
    batches = len(data.train) if data else 100  # any number will do to refuse what is wrong with every one
    model = build(vars(args), len(data.classes), image_side(data)) if data else build(vars(args), 10)
    if data and getattr(model, "whitening", None):
        model.whiten(next(iter(data.train))[0])
    place = pick_device(args.device)
    optimizer = make_optimizer(
        args.optimizer,
        model.to(place) if data else model,  # before the data each of several processes has no GPU of its own yet
        lr=args.lr,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        nesterov=args.nesterov,
        fused=can_fuse(place, pick_precision(args.precision, place)),
    )
    check_real("label_smoothing", args.label_smoothing, 0, 1)
    criterion = nn.CrossEntropyLoss(label_smoothing=args.label_smoothing)
    if args.scheduler not in SCHEDULERS:
        raise unknown_name("scheduler", args.scheduler, SCHEDULERS)
    if args.scheduler == "plateau":
        cuts = {"factor": args.factor, "patience": args.patience, "threshold": args.threshold}
        return model, optimizer, make_plateau(optimizer, **cuts), criterion
    lr_min = args.lr / 10 if args.lr_min is None else args.lr_min
    peak_epoch = min(5, args.epochs / 2) if args.peak_epoch is None else args.peak_epoch
    rates = {"lr_max": args.lr, "lr_min": lr_min, "peak_epoch": peak_epoch, "annihilate": args.annihilate}
    return model, optimizer, one_cycle(optimizer, args.epochs, batches, **rates), criterion


def train(args: argparse.Namespace) -> int:
    check_whole("epochs", args.epochs, 1)
    check_decay(args.ema)
    check_clip(args.clip)
    check_out(args.out, args.resume)
    model, _, scheduler, criterion = make_parts(args)  # refuses a wrong name or number before the data is read
    check_warmup(args.warmup, args.epochs, scheduler)
    with processes.process_group():
        processes.check_together(model, criterion, pick_device(args.device))
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
    before = max((int(path.stem[6:]) for path in args.out.glob("epoch-[0-9]*.pt")), default=0)
    with processes.first_before_others():  # it alone downloads what is missing
        data = load(args)
    model, optimizer, scheduler, criterion = make_parts(args, data)
    if processes.rank() == 0:
        print(eva.summary(model, tuple(data.train.images[0].shape)))
        with locked(args.out):
            write_command(args, data)
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
        note_continuation(args.out)
    return model, data, history


def report(args: argparse.Namespace, model: nn.Module, data: Data) -> None:
    notebook = Path(__file__).parent / "assignment" / str(args.assignment) / f"{args.assignment}.ipynb"
    print(
        eva.write_report(
            args.out,
            model,
            data,
            args.assignment,
            notebook=notebook if notebook.exists() else None,
            device=args.device,
        )
    )


def image_side(data: Data) -> int:
    return data.test.images[0].shape[-1]


def check_out(out: Path, resume: bool) -> None:
    """Refuse a folder of other files, so that a run never mixes with them."""
    check_folder(out, "auto" if resume else False)
    if out.is_dir():
        others = sorted(path.name for path in out.iterdir() if path.name not in (".lock", "command.json"))
        if others and "history.json" not in others:
            raise ValueError(f"--out {out} holds other files ({others[0]}) and no run; name a new or an empty folder")


def preflight(args: argparse.Namespace) -> int:
    make_parts(args)
    data = load(args)
    model, *_ = make_parts(args, data)
    report = eva.preflight(model, data)
    print(report)
    return 0 if report.passed else 1


def write_command(args: argparse.Namespace, data: Data) -> None:
    """Note beside a new run what --evaluate and the report need; a run that has begun keeps its options."""
    if not (args.out / "history.json").exists():
        options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        note = {"commands": [], "options": options, "classes": data.classes, "mean": data.mean, "std": data.std}
        write_note(args.out, note)


def note_continuation(out: Path) -> None:
    """Add this command to those that made the run."""
    note = read_note(out)
    if note:
        write_note(out, note)


def read_note(out: Path) -> dict | None:
    """Return what `write_command` noted beside a run, or None where there is nothing."""
    note_file = out / "command.json"
    if not note_file.exists():
        return None
    try:
        note = json.loads(note_file.read_text(encoding="utf-8"))
        if "epochs" not in note["options"]:
            raise KeyError("epochs")
        return note
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{note_file} is not what main.py wrote ({error!r}); restore or remove it") from None


def write_note(out: Path, note: dict) -> None:
    several = processes.count() > 1
    start = ["torchrun", f"--nproc-per-node={processes.count()}"] if several else ["python"]
    line = shlex.join([*start, "main.py", *sys.argv[1:]])
    note["commands"] = list(dict.fromkeys([*note["commands"], line]))
    write_atomic(out / "command.json", (json.dumps(note, indent=1) + "\n").encode())


def evaluate(args: argparse.Namespace) -> int:
    """Score a run's best and last weights on the test images and set the record beside it.

    A run of a notebook has no note of what it chose: --model, --norm, --last-stride, --standardize, --size and
    --test-share say it.
    """
    try:
        history = eva.History.from_json((args.evaluate / "history.json").read_text(encoding="utf-8"))
        best, last, precision = history.best, history.rows[-1], history.settings["precision"]
        note = read_note(args.evaluate)
        options = note["options"] if note else vars(args)
        args.size = args.size or options["size"]
        classes, mean, std = (note[key] for key in ("classes", "mean", "std")) if note else (None, None, None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{args.evaluate} holds no finished epoch of a run ({type(error).__name__}: {error}); "
            "give the folder that was its --out"
        ) from None
    if note:
        share = options.get("test_share")
        if args.test_share not in (None, share):
            raise ValueError(
                f"--test-share {args.test_share} would test on images that the run was trained on; its own is {share}: "
                "leave the option out"
            )
        args.test_share, args.seed = share, options["seed"]
    else:  # of a notebook: the seed of its load_data, which chose the images of --test-share and --limit
        args.seed = history.settings["test_loader"].get("seed", args.seed)
    data = load(args)
    if classes and data.classes != classes:
        raise ValueError(
            f"{args.evaluate} was trained on the classes {', '.join(classes)}, and --data {args.data} "
            f"has {', '.join(data.classes)}; give the data it was trained on"
        )
    if mean and std:
        data.test.transform = test_transform(mean, std)
    if args.precision == "auto" and precision != "float16":
        args.precision = precision
    model = build(options, len(data.classes), image_side(data))
    smoothing = history.settings["criterion"].get("label_smoothing", 0.0)  # so that the losses are of one kind
    criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)
    recorded_on = history.settings["test_loader"].get("fingerprint")
    where = "of the same images"
    if recorded_on != data.test.fingerprint:
        where = "of other images than these (another dataset, --limit or --validation)"
    for which, row in (("best", best), ("last", last)):
        eva.load_weights(model, args.evaluate, which)
        score = eva.test(model, data.test, criterion=criterion, device=args.device, precision=args.precision)
        print(
            f"{which}.pt, epoch {row['epoch']}: {score.correct}/{score.samples} ({score.accuracy:.2f}%), "
            f"loss {score.loss:.4f}; the record says {row['test_accuracy']:.2f}% {where}, loss {row['test_loss']:.4f}"
        )
    return 0


def as_options(message: str, args: argparse.Namespace) -> str:
    """Return a message of the package with its arguments, as size=, written as options, --size."""
    given = [str(value) for value in (args.out, args.data, args.mirror, args.evaluate)]
    if any("=" in value and value in message for value in given):
        return message
    known = {name for name, value in vars(args).items() if not isinstance(value, bool)}
    option = re.compile(r"(?<![^\s(])([a-z_]+)= ?")
    return option.sub(lambda found: f"--{found[1].replace('_', '-')} " if found[1] in known else found[0], message)


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
