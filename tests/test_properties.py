"""Properties that hold for any size, any split into batches, any text."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from eva_utils import main as engine
from eva_utils.utils.cutout import Cutout
from eva_utils.utils.history import History
from eva_utils.utils.transforms import RandomCrop, RandomHorizontalFlip, RandomRotate, denormalize, normalize

pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
QUICK = settings(deadline=None, max_examples=40, derandomize=True, database=None)
SIDES = st.integers(8, 70)


@QUICK
@given(
    module=st.sampled_from([RandomCrop(padding=4), RandomCrop(padding=0), RandomRotate(5), RandomRotate(180),
                            RandomHorizontalFlip(), Cutout(16), Cutout(3)]),
    height=SIDES, width=SIDES, count=st.integers(0, 5), channels=st.integers(1, 4),
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.float64]),
)  # fmt: skip
def test_transforms_keep_shape_dtype_and_range(module, height, width, count, channels, dtype):
    shape = (count, channels, height, width) if count else (channels, height, width)
    top = 255 if dtype == torch.uint8 else 1
    images = (top * torch.rand(shape)).to(dtype)
    before = images.clone()
    out = module(images)
    assert out.shape == images.shape and out.dtype == dtype
    assert out.min() >= 0 and out.max() <= top + (1e-5 if dtype != torch.uint8 else 0)
    assert torch.equal(images, before)


@QUICK
@given(height=SIDES, width=SIDES, mean=st.floats(0, 1), std=st.floats(0.05, 2))
def test_denormalize_undoes_normalize(height, width, mean, std):
    images = torch.rand(2, 3, height, width)
    back = denormalize(normalize(images, [mean] * 3, [std] * 3), [mean] * 3, [std] * 3)
    torch.testing.assert_close(back, images, rtol=0, atol=1e-5)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
NUMBERS = st.floats(allow_nan=False)


@QUICK
@given(
    rows=st.lists(st.fixed_dictionaries({"epoch": st.integers(1), "test_accuracy": NUMBERS, "lr": NUMBERS})),
    options=st.dictionaries(st.text(), st.recursive(PLAIN, st.lists, max_leaves=5)),
)
def test_a_history_survives_json(rows, options):
    history = History(rows=rows, settings=options)
    assert History.from_json(history.to_json()) == history


@QUICK
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_scores_equal_brute_force_for_any_split_into_batches(sizes):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    images, labels = torch.randn(sum(sizes), 3, 2, 2), torch.randint(4, (sum(sizes),))
    batches = list(zip(images.split(sizes), labels.split(sizes), strict=True))
    score = engine.test(model, batches, device="cpu", precision="float32")
    losses = [nn.functional.cross_entropy(model(x[None]), y[None]).item() for x, y in zip(images, labels, strict=True)]
    correct = sum(int(model(x[None]).argmax() == y) for x, y in zip(images, labels, strict=True))
    assert score.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert (score.correct, score.samples, score.accuracy) == (correct, len(labels), 100 * correct / len(labels))


# One process answers many command lines: a process each would take minutes. None of these may train.
ANSWERS = """
import contextlib, io, json, sys
sys.path.insert(0, {root!r})
import runpy
for line in sys.stdin:
    arguments, err = json.loads(line), io.StringIO()
    sys.argv = ["main.py", *arguments]
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            runpy.run_path({script!r}, run_name="__main__")
    except SystemExit as stop:
        print(json.dumps([stop.code, err.getvalue()]), flush=True)
    except BaseException as error:
        print(json.dumps(["traceback", repr(error)]), flush=True)
"""


@pytest.fixture(scope="module")
def command_line():
    code = ANSWERS.format(root=str(ROOT), script=str(ROOT / "main.py"))
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True, cwd=ROOT) as process:
        yield process
        process.stdin.close()


OPTIONS = ["--data", "--recipe", "--batch-size", "--validation", "--size", "--limit", "--model", "--norm",
           "--last-stride", "--epochs", "--optimizer", "--lr", "--momentum", "--weight-decay", "--factor",
           "--patience", "--seed",
           "--device", "--precision", "--evaluate"]  # fmt: skip
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)


@settings(QUICK, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(st.sampled_from(OPTIONS) | TEXTS, TEXTS), min_size=1, max_size=3))
def test_any_text_on_the_command_line_gets_a_sentence_and_no_traceback(pairs, command_line):
    import json

    # The data source that does not exist keeps a line that happens to be sound from training.
    arguments = [text for pair in pairs for text in pair] + ["--data", "no such folder"]
    command_line.stdin.write(json.dumps(arguments) + "\n")
    command_line.stdin.flush()
    code, printed = json.loads(command_line.stdout.readline())
    assert code in (0, 2), (arguments, code, printed)
    if code == 2:
        assert printed.startswith("main.py: ") and "Traceback" not in printed
        assert printed.count("\n") == 1, printed
