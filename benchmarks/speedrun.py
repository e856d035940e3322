"""Time to what the EVA6 S8 team reached at epoch 39, with LayerNorm only: read from the records of three runs.

The runs are made by `python main.py --assignment speedrun --data cifar10-images --seed N --out runs/NAME-N` and further
options, on a machine left alone; their records are kept as benchmarks/records/NAME-N.
"""

import json
import shutil
from statistics import mean

import common  # first: it finds the package

from eva_utils.utils.history import History
from eva_utils.utils.sections import plus_minus

GOAL, MINUTES = 89.17, 15


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--name", default="speedrun", help="of the records, without the seed")
    parser.add_argument("--runs", help="folder of finished runs, to be recorded first")
    args = parser.parse_args()
    rows, lasts, minutes, machines, recipes = [], [], [], set(), set()
    for seed in args.seeds:
        record = common.ROOT / "benchmarks" / "records" / f"{args.name}-{seed}"
        if args.runs:
            record.mkdir(parents=True, exist_ok=True)
            for name in ("history.json", "command.json"):
                shutil.copy(f"{args.runs}/{args.name}-{seed}/{name}", record)
        history = History.load(record)
        note = json.loads((record / "command.json").read_text(encoding="utf-8"))
        command, network = note["commands"][0], note["options"]["model"]
        parts = [history.settings[key] for key in ("model", "criterion", "optimizer", "scheduler")]
        recipes.add(str([*parts, history.settings["train_loader"] | {"seed": None}]))
        lasts.append(history.rows[-1]["test_accuracy"])
        minutes.append(sum(row["seconds"] for row in history.rows) / 60)
        machines.add(f"{history.settings['machine']}, {history.settings['threads']} threads")
        figure = f"{lasts[-1]:.2f}% ± {plus_minus(lasts[-1], 10_000):.2f} after {minutes[-1]:.1f} minutes"
        rows.append(common.Row(f"seed {seed}: `{command}`", figure))
    if len(recipes) > 1:
        raise SystemExit(f"the records are of {len(recipes)} recipes, which have no mean")
    rows += [
        common.Row("mean accuracy of the last epoch", f"{mean(lasts):.2f}%", f"≥ {GOAL}%", mean(lasts) >= GOAL),
        common.Row(
            "mean time, the test after each epoch included",
            f"{mean(minutes):.1f} minutes",
            f"≤ {MINUTES} minutes",
            mean(minutes) <= MINUTES,
        ),
    ]
    settings = history.settings
    note = (
        f"{network} ({settings['parameters']:,} parameters, LayerNorm only, "
        f"standardized weights) by {settings['optimizer']['class']} in {settings['precision']} on "
        f"{', '.join(machines)}; JPEG-coded images, no test-time averaging. The machine above only read "
        "the records. What was tried is in assignment/speedrun/EXPERIMENTS.md."
    )
    common.publish(f"Speedrun, {len(history)} epochs", rows, note)


if __name__ == "__main__":
    main()
