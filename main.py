"""The command line: arguments, data, model, fit, figures.

python main.py --data shapes --epochs 8 --lr 0.1 --out runs/shapes
python main.py --data cifar10 --model resnet18 --norm layer --recipe eva6_s8 --epochs 40 --out runs/s8
python main.py --evaluate runs/s8 --data cifar10
"""

import argparse
import json
import sys
from pathlib import Path

import eva_utils as eva
from eva_utils.models.norms import NORMS
from eva_utils.utils.checkpoint import write_atomic
from eva_utils.utils.data import Data
from eva_utils.utils.optim import OPTIMIZERS, make_optimizer
from eva_utils.utils.runtime import PRECISIONS
from eva_utils.utils.transforms import RECIPES, test_transform


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="main.py",
        description="Train an image classifier, or score a finished run again.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    data = parser.add_argument_group("data")
    data.add_argument("--data", default="shapes", help="shapes, cifar10, or a folder with train/CLASS/ and test/CLASS/")
    data.add_argument("--root", default="data", help="where cifar10 is downloaded to")
    data.add_argument("--recipe", choices=RECIPES, default="none", help="augmentation of the training images")
    data.add_argument("--batch-size", type=int, default=128, help="images in a batch")
    data.add_argument("--validation", type=int, default=0, help="training images to hold out and test on")
    data.add_argument("--size", type=int, help="resize a folder's images to this side")
    data.add_argument("--limit", type=int, help="keep only so many images of each split")
    data.add_argument("--workers", type=int, default=0, help="processes that decode what does not fit into memory")
    model = parser.add_argument_group("model")
    model.add_argument("--model", choices=eva.list_models(), default="small_resnet", help="architecture")
    model.add_argument("--norm", choices=NORMS, default="layer", help="normalization, the only one in the model")
    model.add_argument("--last-stride", type=int, choices=(1, 2), help="stride of a ResNet's layer4; 1 keeps 8x8 maps")
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=int, default=10, help="in all, those of a resumed run included")
    training.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd")
    training.add_argument("--lr", type=float, default=0.01, help="learning rate at the start")
    training.add_argument("--momentum", type=float, default=0.9, help="of SGD, and Adam's first beta")
    training.add_argument("--weight-decay", type=float, default=0.0, help="of weights, not of norms and biases")
    training.add_argument("--factor", type=float, default=0.1, help="by which the plateau schedule cuts the rate")
    training.add_argument("--patience", type=int, default=3, help="epochs without a lower test loss before a cut")
    training.add_argument("--seed", type=int, default=1, help="of the weights, the order and the augmentation")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", help="cpu, cuda or mps; the best there is if left out")
    machine.add_argument("--precision", choices=("auto", *PRECISIONS), default="auto")
    run = parser.add_argument_group("run")
    run.add_argument("--out", type=Path, default=Path("runs/latest"), help="folder for checkpoints, record and curves")
    run.add_argument("--resume", action="store_true", help="continue the run in --out if there is one")
    run.add_argument("--evaluate", type=Path, metavar="RUN", help="score this run's weights on --data and stop")
    return parser.parse_args(arguments)


def load(args: argparse.Namespace) -> Data:
    return eva.load_data(
        args.data, args.root, args.batch_size, args.recipe, args.validation,
        args.size, args.limit, args.seed, args.device, args.workers,
    )  # fmt: skip


def build(name: str, norm: str, last_stride: int | None, classes: int):
    options = {} if last_stride is None else {"last_stride": last_stride}
    return eva.create_model(name, num_classes=classes, norm=norm, **options)


def train(args: argparse.Namespace) -> None:
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    data = load(args)
    eva.seed_everything(args.seed)
    model = build(args.model, args.norm, args.last_stride, len(data.classes))
    optimizer = make_optimizer(
        args.optimizer, model, lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay
    )
    print(eva.summary(model, tuple(data.train.images[0].shape)))
    write_command(args, data)
    history = eva.fit(
        model,
        data.train,
        data.validation or data.test,
        epochs=args.epochs,
        optimizer=optimizer,
        scheduler=ReduceLROnPlateau(optimizer, factor=args.factor, patience=args.patience),
        device=args.device,
        precision=args.precision,
        checkpoint=args.out,
        resume="auto" if args.resume else False,
    )
    if not history.rows:
        print(f"Stopped before the first epoch had finished; {args.out}/ holds no weights")
        return
    eva.plot_history(history).savefig(args.out / "curves.png", dpi=120)
    best = history.best
    print(f"Best: {best['test_accuracy']:.2f}% at epoch {best['epoch']}; {args.out}/ holds weights, record and curves")


def write_command(args: argparse.Namespace, data: Data) -> None:
    """Note beside a new run what --evaluate needs to build it again; a run that has begun keeps its note."""
    if not (args.out / "history.json").exists():
        args.out.mkdir(parents=True, exist_ok=True)
        options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        note = {"options": options, "classes": data.classes, "mean": data.mean, "std": data.std}
        write_atomic(args.out / "command.json", (json.dumps(note, indent=1) + "\n").encode())


def evaluate(args: argparse.Namespace) -> None:
    """Score a run's best and last weights on the test images and set the record beside it."""
    note = json.loads((args.evaluate / "command.json").read_text(encoding="utf-8"))
    history = eva.History.from_json((args.evaluate / "history.json").read_text(encoding="utf-8"))
    options = note["options"]
    args.size = args.size or options["size"]
    data = load(args)
    if data.classes != note["classes"]:
        raise ValueError(
            f"{args.evaluate} was trained on the classes {', '.join(note['classes'])}, and --data {args.data} "
            f"has {', '.join(data.classes)}; give the data it was trained on"
        )
    data.test.transform = test_transform(note["mean"], note["std"])
    model = build(options["model"], options["norm"], options["last_stride"], len(data.classes))
    where = "of the held-out images" if options["validation"] else "of the test images"
    for which, row in (("best", history.best), ("last", history.rows[-1])):
        eva.load_weights(model, args.evaluate, which)
        score = eva.test(model, data.test, device=args.device, precision=args.precision)
        print(
            f"{which}.pt, epoch {row['epoch']}: {score.correct}/{score.samples} ({score.accuracy:.2f}%), "
            f"loss {score.loss:.4f}; the record says {row['test_accuracy']:.2f}% {where}, loss {row['test_loss']:.4f}"
        )


def main() -> int:
    args = parse()
    try:
        evaluate(args) if args.evaluate else train(args)
    except (ValueError, TypeError, OSError, RuntimeError, FloatingPointError) as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
