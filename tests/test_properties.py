"""Properties that hold for any size, any split into batches, any text."""

import runpy
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from conftest import ROOT
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


# One reading of main.py answers many command lines. None of them may train.
@pytest.fixture(scope="module")
def answer():
    """Return its status, what it printed as an error, and the errors it turned into a sentence."""
    main, errors = runpy.run_path(str(ROOT / "main.py"))["main"], []
    first_line = main.__globals__["first_line"]
    main.__globals__["first_line"] = lambda error: errors.append(error) or first_line(error)

    def run(arguments):
        errors.clear()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()), redirect_stderr(StringIO()) as said:
            patch.setattr(sys, "argv", ["main.py", *arguments])
            try:
                code = main()
            except SystemExit as stop:  # of the parser
                code = stop.code
        return code, said.getvalue(), list(errors)

    return run


OPTIONS = {
    ("--data", "--recipe", "--model", "--norm", "--optimizer", "--scheduler", "--device", "--precision", "--assignment",
     "--evaluate"): ["vit", "resnet18", "layer", "batch", "adam", "muon", "one_cycle", "eva8_s7", "meta", "float16"],
    ("--batch-size", "--validation", "--size", "--limit", "--last-stride", "--epochs", "--patience", "--warmup",
     "--workers", "--seed"): ["-1", "0", "1", "2", "3", "99999999999"],
    ("--lr", "--lr-min", "--peak-epoch", "--momentum", "--weight-decay", "--factor", "--threshold", "--ema", "--clip",
     "--label-smoothing", "--test-share"): ["-1", "0", "1e-9", "0.5", "1", "1e400", "nan"],
}  # fmt: skip
NAMES = [name for names in OPTIONS for name in names]
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)
LIKELY = st.sampled_from([(name, value) for names, values in OPTIONS.items() for name in names for value in values])


def is_meant(error):
    """Whether an error is a sentence that this repository raised, and no slip in its code."""
    *_, last = traceback.extract_tb(error.__traceback__)
    ours = last.filename == str(ROOT / "main.py") or Path(last.filename).is_relative_to(ROOT / "eva_utils")
    return ours and isinstance(error, ValueError | TypeError | OSError) and last.line.startswith("raise")


@settings(QUICK, max_examples=150)
@given(
    pairs=st.lists(st.tuples(st.sampled_from(NAMES) | TEXTS, TEXTS), min_size=1, max_size=3)
    | st.lists(LIKELY, min_size=1, max_size=2)
)
def test_any_text_on_the_command_line_gets_a_sentence_that_was_meant(pairs, answer):
    # The data source that does not exist keeps a line that happens to be sound from training.
    arguments = [text for pair in pairs for text in pair] + ["--data", "no such folder"]
    code, printed, errors = answer(arguments)
    assert code in (0, 2), (arguments, code, printed)
    assert all(map(is_meant, errors)), (arguments, errors)
    if code == 2:
        assert printed.startswith("main.py: ") and "Traceback" not in printed
        assert printed.count("\n") == 1, printed
