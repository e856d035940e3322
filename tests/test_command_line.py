"""The command line, within this process, which has torch imported; Ctrl-C in one of its own."""

import json
import runpy
import shutil
import signal
import subprocess
import sys

import pytest

import eva_utils
from command import parse, run
from conftest import ROOT
from eva_utils.models import create_model, list_models
from eva_utils.utils.assignments import BRIEFS
from eva_utils.utils.history import History
from eva_utils.utils.sources import SOURCES
from eva_utils.utils.transforms import RECIPES


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("give size= to resize all (test_share=0.2)", "give --size to resize all (--test-share 0.2)"),
        ("continue it with resume='auto' (--resume)", "continue it with resume='auto' (--resume)"),
        ("runs/lr=0.1 already holds a run", "runs/lr=0.1 already holds a run"),
        ("nesterov=True wants momentum", "nesterov=True wants momentum"),
    ],
)
def test_messages_name_options_as_one_types_them(message, shown):
    main = runpy.run_path(str(ROOT / "main.py"))
    assert main["as_options"](message, main["parse"](["--out", "runs/lr=0.1"])) == shown


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of one epoch, continued for a second; returns its folder and what was printed."""
    out = tmp_path_factory.mktemp("runs") / "demo"
    options = ["--data", "shapes", "--limit", 24, "--recipe", "eva6_s8", "--norm", "group", "--out", out]
    options += ["--seed", 3, "--test-share", 0.25, "--label-smoothing", 0.1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eva_utils.utils.page._figures", lambda record: {})  # which take seconds to draw
        printed = run(*options, "--epochs", 1), run(*options, "--epochs", 2, "--resume")
    return out, printed


def test_a_run_writes_its_record_weights_and_curves(finished):
    out, (first, second) = finished
    assert "Total params: 1,923,914" in first and "EPOCH: 1" in first and "Resuming after epoch 1 of 2" in second
    assert {"best.pt", "command.json", "history.json", "last.pt", "report.pt"} < {path.name for path in out.iterdir()}
    history = History.from_json((out / "history.json").read_text())
    assert [row["epoch"] for row in history.rows] == [1, 2]
    assert f"Best: {history.best['test_accuracy']:.2f}% at epoch {history.best['epoch']}" in second
    note = json.loads((out / "command.json").read_text())
    assert note["options"]["norm"] == "group" and note["classes"][0] == "circle"
    report = (out / "README.md").read_text(encoding="utf-8")
    assert f"| best epoch, {history.best['epoch']} | {history.best['test_accuracy']:.2f}% (" in report
    line = f"python main.py --data shapes --limit 24 --recipe eva6_s8 --norm group --out {out}"
    line += " --seed 3 --test-share 0.25 --label-smoothing 0.1 --epochs"
    assert f"{line} 1\n{line} 2 --resume\n" in report
    assert f"{out}/README.md is written" in first and f"{out}/README.md is written" in second


def test_a_finished_run_is_scored_again_as_recorded(finished):
    out, _ = finished
    history = History.from_json((out / "history.json").read_text())
    printed = run("--evaluate", out, "--data", "shapes", "--limit", 24)
    for which, row in (("best", history.best), ("last", history.rows[-1])):
        assert f"{which}.pt, epoch {row['epoch']}: " in printed
        score = f"({row['test_accuracy']:.2f}%), loss {row['test_loss']:.4f}; "
        assert score + f"the record says {row['test_accuracy']:.2f}% of the same images" in printed


def test_other_images_than_the_records_are_said_to_be_so(finished):
    said = run("--evaluate", finished[0], "--data", "shapes", "--limit", 16)
    assert "% of other images than these (another dataset, --limit or --validation), loss" in said


def test_other_data_than_the_runs_is_refused(finished, image_folder):
    printed = run("--evaluate", finished[0], "--data", image_folder, code=2)
    assert "was trained on the classes circle, ring" in printed and "has cat, dog; give the data" in printed
    printed = run("--evaluate", finished[0], "--data", "shapes", "--test-share", 0.5, code=2)
    assert f"--test-share 0.5 is not what {finished[0]} was trained with, --test-share 0.25; leave it out" in printed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "resnet18"], "--model resnet18 is not what {} was trained with, --model small_resnet; leave it"),
        (["--norm", "layer"], "--norm layer is not what {} was trained with, --norm group; leave it out"),
        (["--last-stride", "1"], "--last-stride 1 is not what {} was trained with, no --last-stride; leave it out"),
        (["--standardize"], "--standardize is not what {} was trained with, --no-standardize; leave it out"),
        (["--center-filters"], "--center-filters is not what {} was trained with, "),
        (["--seed", "4"], "--seed 4 is not what {} was trained with, --seed 3; leave it out"),
        (["--preflight"], "--preflight checks before a run and --evaluate scores one; give one of them"),
    ],
)
def test_what_would_change_nothing_of_a_run_that_is_scored_is_refused(finished, capsys, options, said):
    with pytest.raises(SystemExit):
        parse(["--evaluate", str(finished[0]), *options])
    assert capsys.readouterr().err.startswith("main.py: " + said.format(finished[0]))


def test_a_run_is_scored_by_its_own_options_also_beside_an_assignment(finished):
    for options in ([], ["--model", "small_resnet", "--norm", "group", "--seed", "3"], ["--assignment", "eva8_s7"]):
        args = parse(["--evaluate", str(finished[0]), *options])
        assert (args.model, args.norm, args.seed, args.test_share, args.size) == (
            "small_resnet",
            "group",
            3,
            0.25,
            None,
        )
    assert args.data == "cifar10"


def test_images_are_resized_as_the_run_that_is_scored_had_them_or_at_will(finished, tmp_path, capsys):
    assert parse(["--evaluate", str(finished[0]), "--size", "32"]).size == 32
    note = json.loads((finished[0] / "command.json").read_text())
    note["options"]["size"] = 64
    (tmp_path / "command.json").write_text(json.dumps(note))
    (tmp_path / "history.json").touch()
    assert parse(["--evaluate", str(tmp_path)]).size == 64
    with pytest.raises(SystemExit):
        parse(["--evaluate", str(tmp_path), "--size", "32"])
    assert f"--size 32 is not what {tmp_path} was trained with, --size 64; leave it out" in capsys.readouterr().err


def test_a_folder_that_holds_a_run_is_refused(finished):
    out, _ = finished
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert "already holds a run" in run("--out", out, "--limit", 24, code=2)
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_a_run_without_its_command_is_scored_on_the_images_of_its_own_seed(finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "run")
    (out / "command.json").unlink()  # as of a run made in a notebook
    printed = run("--evaluate", out, "--data", "shapes", "--limit", 24, "--norm", "group", "--test-share", 0.25)
    assert "of the same images" in printed and "other images" not in printed


def test_help_lists_titled_groups_with_defaults():
    printed = run("--help")
    for title in ("data:", "model:", "training:", "machine:", "run:"):
        assert f"\n{title}\n" in printed
    recipes = f"images: {', '.join(RECIPES)} (default: none)"
    assert "(default: 128)" in printed and recipes in " ".join(printed.split())


def test_an_assignment_sets_the_options_and_what_is_given_wins(tmp_path, monkeypatch):
    monkeypatch.setattr("eva_utils.utils.page._figures", lambda record: {})
    small = ("--data", "shapes", "--limit", 10, "--model", "small_resnet", "--epochs", 4, "--out", tmp_path / "run")
    printed = run("--assignment", "eva8_s7", *small, "--no-annihilate")
    options = json.loads((tmp_path / "run" / "command.json").read_text())["options"]
    assert (options["recipe"], options["norm"], options["batch_size"]) == ("eva8_s7", "batch", 128)
    assert (options["nesterov"], options["annihilate"]) == (True, False)
    assert (options["data"], options["model"], options["epochs"]) == ("shapes", "small_resnet", 4)
    rates = [row["lr"] for row in History.from_json((tmp_path / "run" / "history.json").read_text()).rows]
    assert rates.index(max(rates)) + 1 == 2 and max(rates) == options["lr"]  # the peak after half of four epochs
    assert "pass         notebook" in printed and "FAIL         epochs" in printed


@pytest.mark.parametrize(
    ("options", "warmup"),
    [
        ([], 2),
        (["--epochs", "2"], 1),
        (["--epochs", "1"], 0),
        (["--scheduler", "one_cycle"], 0),
        (["--warmup", "5"], 5),
    ],
)
def test_an_assignments_warmup_fits_what_is_given(options, warmup):
    assert parse(["--assignment", "eva6_s8", *options]).warmup == warmup


def test_a_run_that_is_made_longer_keeps_its_warmup(tmp_path, capsys):
    note = {"commands": [], "options": {"epochs": 1}, "classes": [], "mean": [], "std": []}
    (tmp_path / "command.json").write_text(json.dumps(note))
    longer = ["--assignment", "eva6_s8", "--epochs", "2", "--out", str(tmp_path)]
    assert (parse(longer).warmup, parse([*longer, "--resume"]).warmup) == (1, 1)  # stopped before its first epoch
    (tmp_path / "history.json").touch()
    assert (parse(longer).warmup, parse([*longer, "--resume"]).warmup) == (1, 0)
    (tmp_path / "command.json").write_text("{}")
    with pytest.raises(SystemExit):
        parse([*longer, "--resume"])
    assert (
        "command.json is not what main.py wrote (KeyError('options')); restore or remove it" in capsys.readouterr().err
    )


@pytest.mark.parametrize("name", BRIEFS)
def test_an_assignments_own_options_are_never_refused(name):
    for options in ([], ["--optimizer", "adam"], ["--scheduler", "plateau"], ["--scheduler", "one_cycle"]):
        parse(["--assignment", name, "--epochs", "1", *options, "--no-nesterov", "--no-annihilate"])
    assert parse(["--assignment", name, "--scheduler", "one_cycle", "--peak-epoch", "2"]).peak_epoch == 2


def test_a_damaged_note_is_refused_before_the_training(finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "run")
    check_out = runpy.run_path(str(ROOT / "main.py"))["check_out"]
    check_out(out, True, None)
    (out / "command.json").write_text('{"a": 1}')
    with pytest.raises(
        ValueError, match=r"command\.json is not what main\.py wrote \(KeyError\('options'\)\); restore"
    ):
        check_out(out, True, None)


@pytest.mark.parametrize(
    ("left", "mirror"),
    [
        ([".epoch-0001.pt.123.tmp"], False),
        (["epoch-0001.pt", ".best.pt.123.tmp"], False),
        (["epoch-0001.pt", "best.pt", "last.pt"], False),
        (["last.pt", ".best.pt.123.tmp"], True),
        (["epoch-0001.pt", "epoch-0001 (1).pt", "history.json"], False),
    ],
)
def test_a_folder_that_a_kill_left_is_resumed(left, mirror, tmp_path):
    for name in left:
        (tmp_path / name).touch()
    main = runpy.run_path(str(ROOT / "main.py"))
    main["check_out"](tmp_path, True, tmp_path / "mirror" if mirror else None)
    assert main["last_epoch"](tmp_path) == ("epoch-0001.pt" in left)
    (tmp_path / "notes.txt").touch()  # beside a run there may be other files
    if left[0].startswith("epoch") or mirror:
        main["check_out"](tmp_path, True, tmp_path / "mirror" if mirror else None)
    else:
        with pytest.raises(ValueError, match=r"holds other files \(notes\.txt\) and no run"):
            main["check_out"](tmp_path, True, None)


def test_a_report_is_of_the_assignments_notebook_if_there_is_an_assignment(monkeypatch):
    reported = []
    monkeypatch.setattr(eva_utils, "write_report", lambda *args, **options: reported.append(options["notebook"]))
    main = runpy.run_path(str(ROOT / "main.py"))
    for options in ([], ["--assignment", "eva8_s7"], ["--assignment", "speedrun"]):
        main["report"](main["parse"](options), None, None)
    assert reported == [None, ROOT / "assignment" / "eva8_s7" / "eva8_s7.ipynb", None]


def test_the_speedrun_is_the_published_run():
    """But for where its data and its folder were."""
    told = json.loads((ROOT / "assignment" / "speedrun" / "command.json").read_text(encoding="utf-8"))["options"]
    options = vars(parse(["--assignment", "speedrun"]))
    assert {option for option in told if str(told[option]) != str(options[option])} == {"data", "out"}


def test_eva6_s8_is_the_run_of_the_published_notebook():
    told = History.from_json((ROOT / "assignment" / "eva6_s8" / "history.json").read_text(encoding="utf-8")).settings
    options = parse(["--assignment", "eva6_s8"])
    model = create_model(options.model, norm=options.norm)
    assert told["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    group, plateau = told["optimizer"]["group 0"], told["scheduler"]
    assert told["optimizer"]["class"].lower() == options.optimizer
    for of_run, names in (
        (told, ("epochs", "warmup", "ema", "clip")),
        (group, ("momentum", "weight_decay", "nesterov")),
        (plateau, ("factor", "patience", "threshold")),
        (told["train_loader"], ("batch_size", "seed")),
        (told["criterion"], ("label_smoothing",)),
    ):
        assert {name: of_run[name] for name in names} == {name: getattr(options, name) for name in names}
    assert group["lr"] == options.lr and "Plateau" in plateau["class"]


def test_ctrl_c_ends_a_run_with_its_own_status(tmp_path):
    options = ["--data", "shapes", "--limit", "10", "--out", str(tmp_path / "run")]
    command = [sys.executable, str(ROOT / "main.py"), *options, "--epochs", "500"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if line == "EPOCH: 3\n":
            process.send_signal(signal.SIGINT)
            break
    rest = process.stdout.read()
    process.stdout.close()
    assert process.wait() == 130 and "Traceback" not in rest
    stopped = len(History.from_json((tmp_path / "run" / "history.json").read_text()).rows)
    assert rest.endswith(f"Stopped after {stopped} of 500 epochs; go on with --resume\n")


WRONG = [
    (
        ["--assignment", "eva6_s"],
        "unknown brief 'eva6_s': choose one of eva6_s8, eva8_s7, eva6_s9, eva8_s10, speedrun; did you mean 'eva6_s",
    ),
    (["--scheduler", "onecycle"], "unknown scheduler 'onecycle': choose one of plateau, one_cycle; did you mean"),
    (["--peak-epoch", "12", "--scheduler", "one_cycle"], "--peak-epoch 12 is not before the end of --epochs 10"),
    (["--peak-epoch", "0", "--scheduler", "one_cycle"], "peak_epoch is a number above 0 and below 10, not 0.0"),
    (
        ["--nesterov", "--optimizer", "adam"],
        "--nesterov does nothing with --optimizer adam; leave it out, or give --optimizer sgd",
    ),
    (
        ["--peak-epoch", "3"],
        "--peak-epoch 3 does nothing with --scheduler plateau; leave it out, or give --scheduler o",
    ),
    (["--lr-min", "0.001"], "--lr-min 0.001 does nothing with --scheduler plateau; leave it out"),
    (["--annihilate", "--assignment", "eva6_s8"], "--annihilate does nothing with --scheduler plateau; leave it out"),
    (["--factor", "0.5", "--assignment", "eva8_s7"], "--factor 0.5 does nothing with --scheduler one_cycle; leave"),
    (["--patience", "3", "--scheduler", "one_cycle"], "--patience 3 does nothing with --scheduler one_cycle; leave"),
    (["--threshold", "0", "--scheduler", "one_cycle"], "--threshold 0 does nothing with --scheduler one_cycle; leave"),
    (["--peak-epoch", "3", "--scheduler", "onecycle"], "unknown scheduler 'onecycle': choose one of plateau, one_cyc"),
    (["--evaluate", "nowhere", "--preflight"], "--preflight checks before a run and --evaluate scores one; give one"),
    (["--label-smoothing", "1"], "label_smoothing is a number from 0 and below 1, not 1.0"),
    (["--warmup", "-1"], "warmup is a whole number from 0 up, not -1"),
    (["--warmup", "10"], "--warmup 10 leaves none of --epochs 10 at the full rate; make it shorter or train longer"),
    (["--warmup", "2", "--scheduler", "one_cycle"], "OneCycleLR sets the rate of every batch; leave warmup out"),
    (["--threshold", "1"], "threshold is a number from 0 and below 1, not 1.0"),
    (["--ema", "1"], "ema is a number from 0 and below 1, not 1.0"),
    (["--clip", "0"], "clip is a number above 0, not 0.0"),
    (["--epcohs", "3"], "unknown option '--epcohs'; did you mean --epochs?"),
    (["--epoch=3"], "unknown option '--epoch=3'; did you mean --epochs?"),
    (["--epochs", "three"], "argument --epochs: invalid int value: 'three'"),
    (["--epochs", "0"], "epochs is a whole number from 1 up, not 0"),
    (
        ["--model", "resnet81"],
        f"unknown model 'resnet81': choose one of {', '.join(list_models()[:10])}, …; did you mean 'resnet18'?",
    ),
    (["--norm", "layr"], "unknown norm 'layr': choose one of batch, layer, channel, group; did you mean 'layer'?"),
    (["--recipe", "eva6"], f"unknown recipe 'eva6': choose one of {', '.join(RECIPES)}; did you mean 'eva6_s"),
    (["--test-share", "1"], "test_share is a number above 0 and below 1, not 1.0"),
    (["--lr-min", "1", "--scheduler", "one_cycle"], "lr_min is a number above 0 and below 0.01, not 1.0"),
    (["--model", "vit", "--norm", "batch"], "a vision transformer has LayerNorm only, not --norm 'batch'"),
    (["--optimizer", "adm"], "unknown optimizer 'adm': choose one of sgd, adam, adamw, muon; did you mean 'adam'?"),
    (
        ["--data", "shape"],
        f"unknown data source 'shape': choose one of {', '.join(SOURCES)}; did you mean 'shapes'? There is no folder",
    ),
    (["--last-stride", "3", "--model", "resnet18"], "last_stride is 1 or 2, not 3"),
    (["--lr", "0"], "lr is a number above 0, not 0.0"),
    (["--lr", "nan"], "lr is a number above 0, not nan"),
    (["--momentum", "1"], "momentum is a number from 0 and below 1, not 1.0"),
    (["--weight-decay", "-1"], "weight_decay is a number from 0 up, not -1.0"),
    (["--factor", "1"], "factor is a number above 0 and below 1, not 1.0"),
    (["--patience", "-1"], "patience is a whole number from 0 up, not -1"),
    (["--batch-size", "-8"], "batch_size is a whole number from 1 up, not -8"),
    (["--validation", "20000"], "--validation 20000 would hold out all of the 10000 training images"),
    (["--limit", "0"], "limit is a whole number from 1 up, not 0"),
    (["--size", "4"], "size is a whole number from 8 up, not 4"),
    (["--workers", "-1"], "workers is a whole number from 0 up, not -1"),
    (["--seed", "-1"], "a seed is a whole number from 0 to 2**32 - 1, not -1"),
    (["--device", "tpu"], "device 'tpu' is not usable here"),
    (
        ["--precision", "bf16", "--limit", "20"],
        "unknown precision 'bf16': choose one of auto, float32, bfloat16, float16",
    ),
    (["--mirror", str(ROOT / "setup.py")], f"mirror {ROOT / 'setup.py'} is a file; name a folder"),
    (["--evaluate", "nowhere"], "nowhere holds no finished epoch of a run"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=lambda value: " ".join(value)[:60])
def test_every_wrong_turn_gets_one_sentence_and_writes_nothing(arguments, message, tmp_path):
    said = run(*arguments, "--out", tmp_path / "run", code=2)
    assert said.startswith(f"main.py: {message}") and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_out_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").touch()
    assert "is a file; name a folder" in run("--out", tmp_path / "file", code=2)
    assert "is a file; name a folder" in run("--out", tmp_path / "file", "--resume", "--mirror", tmp_path / "m", code=2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert "holds other files (thesis.txt) and no run" in run("--out", tmp_path / "full", code=2)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_preflight_prints_its_table():
    printed = run("--preflight", "--limit", 200, "--recipe", "eva8_s7")
    assert printed.count("pass  ") == 11 and "pass  Cutout changes pixels" in printed
