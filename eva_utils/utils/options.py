"""The options of the command line: those given, those an assignment or a recorded run brings, and the defaults."""

import argparse
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..models import list_models
from ..models.norms import NORMS
from .assignments import BRIEFS, adapt, find_brief
from .command_note import read_note
from .optim import OPTIMIZERS, SCHEDULERS
from .runtime import PRECISIONS
from .sources import SOURCES
from .transforms import RECIPES

# Options that only one optimizer or schedule knows.
_ONLY_WITH = {
    "nesterov": ("optimizer", "sgd"),
    "lr_min": ("scheduler", "one_cycle"),
    "peak_epoch": ("scheduler", "one_cycle"),
    "annihilate": ("scheduler", "one_cycle"),
    "factor": ("scheduler", "plateau"),
    "patience": ("scheduler", "plateau"),
    "threshold": ("scheduler", "plateau"),
}
# What --evaluate takes from the note of the run: its network, and which images it was tested on.
_RECORDED = ("model", "norm", "last_stride", "standardize", "center_filters", "size", "test_share", "seed")


class Parser(argparse.ArgumentParser):
    """A parser that answers a mistake in one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return every option, as given or else as the assignment, the run to score or the defaults have it."""
    parser = make_parser()
    defaults = vars(parser.parse_args([]))
    given = _given(parser, arguments, defaults)
    options = defaults | given
    try:
        if options["assignment"] is not None:
            options = defaults | _assigned(options, given) | given
        if options["evaluate"] is not None:
            options |= _recorded(options, given)
        _check_given(options, given)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return argparse.Namespace(**options)


def _given(parser: Parser, arguments: Sequence[str] | None, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are on the command line; of an unknown one the nearest there is is named."""
    absent = object()
    found, unknown = parser.parse_known_args(arguments, argparse.Namespace(**dict.fromkeys(defaults, absent)))
    if unknown:
        near = difflib.get_close_matches(unknown[0].split("=")[0], parser._option_string_actions, n=1)
        hint = f"did you mean {near[0]}?" if near else "--help lists the options"
        parser.error(f"unknown option {unknown[0]!r}; {hint}")
    return {name: value for name, value in vars(found).items() if value is not absent}


def _assigned(options: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the assignment sets, as it fits what is given."""
    brief = find_brief(options["assignment"]).options
    wanted = {**options, **brief, **given}
    note = read_note(wanted["out"]) if wanted["resume"] else None
    if note:  # a run that is made longer keeps the warmup it began with
        wanted["epochs"] = note["options"]["epochs"]
    return adapt(brief, wanted)


def _recorded(options: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the note of the run to score has, if it has one; refuse what is given and is something else."""
    note = read_note(options["evaluate"])
    recorded = {name: note["options"].get(name) for name in _RECORDED} if note else {}
    if "size" in recorded and recorded["size"] is None:  # other images may be resized to the side of its own
        del recorded["size"]
    for name, own in recorded.items():
        if name in given and given[name] != own:
            raise ValueError(
                f"{_typed(name, given[name])} is not what {options['evaluate']} was trained with, "
                f"{_typed(name, own)}; leave it out"
            )
    return recorded


def _check_given(options: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse options that are given and would do nothing."""
    if options["evaluate"] is not None and options["preflight"]:
        raise ValueError("--preflight checks before a run and --evaluate scores one; give one of them")
    for name, (chooser, choice) in _ONLY_WITH.items():
        if given.get(name, False) is not False and options[chooser] in {*OPTIMIZERS, *SCHEDULERS} - {choice}:
            raise ValueError(
                f"{_typed(name, given[name])} does nothing with --{chooser} {options[chooser]}; leave it out, or give "
                f"--{chooser} {choice}"
            )
    peak, epochs = given.get("peak_epoch"), options["epochs"]
    if peak is not None and peak >= epochs >= 1:
        raise ValueError(f"--peak-epoch {peak:g} is not before the end of --epochs {epochs}; make it lower")


def _typed(name: str, value: Any) -> str:
    """Return an option with its value as one types it."""
    option = name.replace("_", "-")
    if value is None:
        return f"no --{option}"
    if isinstance(value, bool):
        return f"--{option}" if value else f"--no-{option}"
    return f"--{option} {value:g}" if isinstance(value, float) else f"--{option} {value}"


def as_options(message: str, args: argparse.Namespace) -> str:
    """Return a message of the package with its arguments, as size=, written as options, --size."""
    given = [str(value) for value in (args.out, args.data, args.mirror, args.evaluate)]
    if any("=" in value and value in message for value in given):
        return message
    known = {name for name, value in vars(args).items() if not isinstance(value, bool)}
    option = re.compile(r"(?<![^\s(])([a-z_]+)= ?")
    return option.sub(lambda found: f"--{found[1].replace('_', '-')} " if found[1] in known else found[0], message)


def make_parser() -> Parser:
    """Return the parser of every option, with what it is by default."""
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
    model.add_argument("--model", default="small_resnet", help=f"architecture: {', '.join(list_models())}")
    model.add_argument("--norm", default="layer", help=f"normalization, the only one in it: {', '.join(NORMS)}")
    model.add_argument("--last-stride", type=int, help="stride of a ResNet's layer4, 1 or 2; 1 keeps 8x8 maps")
    model.add_argument(
        "--standardize", action=switch, default=False, help="standardize the weights of the convolutions"
    )
    model.add_argument("--center-filters", action=switch, default=False, help="keep the mean of each filter at 0")
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
    training.add_argument("--patience", type=int, default=3, help="epochs without a lower test loss; one more cuts")
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
    return parser
