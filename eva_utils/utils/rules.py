"""One function for each kind of rule an assignment has: what was found in a run, and the verdict."""

import ast
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .preflight import augmentation_checks
from .runtime import keep_modes, rng_state, set_rng_state

PASS, FAIL, UNCHECKED = "pass", "FAIL", "not checked"


@dataclass(frozen=True)
class Finding:
    """One rule: what is required, what was found, and the verdict "pass", "FAIL" or "not checked"."""

    rule: str
    required: str
    found: str
    verdict: str


def _finding(rule: str, required: str, found: str, passed: bool) -> Finding:
    return Finding(rule, required, found, PASS if passed else FAIL)


def equal(rule: str, required: object, found: object, more: str = "") -> list[Finding]:
    """Compare a value with the required one, which may be None: then there is no rule."""
    if required is None:
        return []
    if found is None:
        return [Finding(rule, _listed(required), "nothing on record", UNCHECKED)]
    return [_finding(rule, _listed(required), _listed(found) + more, found == required)]


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def options(optimizer: dict) -> str:
    """Return the first group's options in parentheses."""
    group = optimizer["group 0"]
    kept = {name: group[name] for name in ("lr", "momentum", "weight_decay", "nesterov") if name in group}
    return "(" + ", ".join(f"{name}={value}" for name, value in kept.items()) + ")"


def smoothing(criterion: dict) -> str:
    """Return a loss's label smoothing in parentheses, or nothing."""
    smoothing = criterion.get("label_smoothing")
    return f"(label_smoothing={smoothing})" if smoothing else ""


def learning_rate(required: str, settings: dict, rows: list[dict]) -> Finding:
    """Replay the recorded schedule on the recorded test results: it must give every recorded rate."""
    rule, scheduler = "learning rate", settings["scheduler"]
    asked = f"{required} makes every change of it"
    if scheduler["class"] != required:
        return _finding(rule, asked, scheduler["class"], False)
    warmup = settings.get("warmup", 0)
    cuts = []
    for before, row, expected in zip(rows, rows[1:], replay_plateau(settings, rows), strict=False):
        if before["epoch"] < warmup:
            continue
        if abs(row["lr"] - expected) > 1e-9 * expected:
            found = f"epoch {row['epoch']} ran at {row['lr']:g}; {required} says {expected:g}"
            return _finding(rule, asked, found, False)
        if row["lr"] != before["lr"]:
            cuts.append(row["epoch"])
    made = f"{len(cuts)} changes, from epoch {', '.join(map(str, cuts))} on" if cuts else "no change"
    rates = f"{rows[0]['lr'] if not warmup else rows[min(warmup, len(rows)) - 1]['lr']:g} to {rows[-1]['lr']:g}"
    after = f" after a warmup of {warmup} epochs" if warmup else ""
    return _finding(rule, asked, f"{made}, {rates}{after}, each as {required} gives it on the record", True)


def replay_plateau(settings: dict, rows: list[dict]) -> list[float]:
    """Return the rate that ReduceLROnPlateau gives after each epoch, from its options and the recorded test results.

    Args:
        settings: of a history whose scheduler is a ReduceLROnPlateau.
        rows: of that history.
    """
    scheduler, start = settings["scheduler"], settings["optimizer"]["group 0"]["lr"]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=start)
    options = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "eps")
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, min_lr=scheduler["min_lrs"][0], **{name: scheduler[name] for name in options}
    )
    rates = []
    for row in rows:
        if row["epoch"] > settings.get("warmup", 0):
            plateau.step(row["test_loss"] if scheduler["mode"] == "min" else row["test_accuracy"])
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def depth(required: int, model: nn.Module) -> Finding:
    """Count the layers with weights, convolutions of 1x1 apart."""
    layers = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1)
    ]
    found = f"{len(layers)} in {type(model).__name__}"
    return _finding("convolutions and linear layers", f"{required}, shortcuts apart", found, len(layers) == required)


_NORMS = (
    nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.CrossMapLRN2d, nn.RMSNorm,
)  # fmt: skip
_NORM_CALLS = {"batch_norm", "instance_norm", "group_norm", "layer_norm", "local_response_norm", "rms_norm"}


class _NormCalls(TorchFunctionMode):
    """Counts the normalizations that run, those of no module included."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in _NORM_CALLS:
            groups = (
                f" of {kwargs.get('num_groups', args[1] if len(args) > 1 else '?')}" if name == "group_norm" else ""
            )
            self.calls[name + groups] += 1
        return func(*args, **kwargs)


def normalization(model: nn.Module, images: Tensor) -> Finding:
    """Look at every module, and at every normalization that runs in a forward pass."""
    kinds: Counter[str] = Counter()
    others = []
    for name, module in model.named_modules():
        known = isinstance(module, _NORMS)
        leaf_by_name = "norm" in type(module).__name__.lower() and not list(module.children())
        if not (known or leaf_by_name) or ".parametrizations." in f".{name}.":
            continue
        one_group = isinstance(module, nn.GroupNorm) and module.num_groups == 1
        kinds["GroupNorm of one group" if one_group else type(module).__name__] += 1
        if not one_group and not isinstance(module, nn.LayerNorm):
            others.append(name)
    with keep_modes(model), torch.no_grad(), _NormCalls() as counted:
        model.eval()
        getattr(model, "_orig_mod", model)(images.to(next(model.parameters()).device))
    hidden = [call for call in counted.calls if call not in ("layer_norm", "group_norm of 1")]
    found = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "no normalization module"
    if others:
        found += f"; not LayerNorm: {', '.join(others[:4])}" + (" …" if len(others) > 4 else "")
    elif hidden:
        found += f"; forward() calls {', '.join(hidden)}"
    return _finding("normalization", "LayerNorm only, shortcuts included", found, bool(kinds) and not others + hidden)


def transforms(required: tuple[str, ...], recorded: str | None, loader: Any) -> Finding:
    """Compare the recorded steps with the required ones, and see on real images what each of them changes."""
    rule, asked = "training transforms", ", ".join(required) + ", and nothing else"
    if recorded is None or not hasattr(loader, "transform"):
        return Finding(rule, asked, "the training loader keeps no record of its transforms", UNCHECKED)
    steps = [step for step in recorded.split(" -> ") if not step.startswith("Normalize(")]
    found = ", ".join(steps) or "none"
    if repr(loader.transform) != recorded:
        return _finding(rule, asked, f"{found}; data.train now has {loader.transform!r}", False)
    state = rng_state()
    try:
        checks = augmentation_checks(loader)
    finally:
        set_rng_state(state)
    idle = [check for check in checks if not check.passed]
    for check in idle or checks:
        found += f"; {check.name.removesuffix(' changes pixels')}: {check.found}"
    return _finding(rule, asked, found, tuple(steps) == required and not idle)


def gallery(
    kind: str, required: int, shown: Mapping[str, Sequence[Any]] | None, explained: Mapping[str, Sequence[Any]] | None
) -> Finding:
    """Compare how many records are shown with how many are required, and their indices with those explained."""
    rule, asked = f"{kind} images", f"{required}, and Grad-CAM of the same"
    if shown is None or explained is None or kind not in shown or kind not in explained:
        return Finding(rule, asked, "no gallery was given", UNCHECKED)
    if not shown[kind]:
        return Finding(rule, asked, "there is none to show", UNCHECKED)
    count, same = len(shown[kind]), _indices(shown[kind]) == _indices(explained[kind])
    all_there_are = count < required <= getattr(shown[kind], "asked", count)
    found = f"{count}{', all there are' * all_there_are}; Grad-CAM of {'the same' if same else 'other'} indices"
    return _finding(rule, asked, found, same and (count >= required or all_there_are))


def _indices(records: Sequence[Any]) -> list[int]:
    return [record.index for record in records]


def map_sizes(least: int, maps: Mapping[str, tuple[int, int]] | None) -> Finding:
    """Compare the sides of the Grad-CAM maps with the least one allowed."""
    rule, asked = "Grad-CAM maps", f"at least {least}x{least} pixels"
    if maps is None:
        return Finding(rule, asked, "no map was given", UNCHECKED)
    found = ", ".join(f"{layer} {height}x{width}" for layer, (height, width) in maps.items())
    return _finding(rule, asked, found, all(min(size) >= least for size in maps.values()))


def plain_notebook(notebook: str | Path | None) -> Finding:
    """Look for definitions of functions and classes in a notebook's cells."""
    rule, asked = "notebook", "defines no function and no class"
    cells = _cells_run_here() if notebook is None else _cells_of(Path(notebook))
    if cells is None:
        return Finding(rule, asked, "the run was not made in a notebook, and none was given", UNCHECKED)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    trees = [ast.walk(ast.parse(cell)) for cell in cells]
    defined = [node.name for tree in trees for node in tree if isinstance(node, kinds)]
    found = f"defines {', '.join(defined)}" if defined else f"{len(cells)} code cells, none defines any"
    return _finding(rule, asked, found, not defined)


def _cells_run_here() -> list[str] | None:
    """Return the code of the cells that have run in this notebook, or None outside one."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return None if shell is None else [cell for cell in shell.user_ns.get("In", []) if cell.strip()]


def _cells_of(path: Path) -> list[str]:
    """Return the code cells of a notebook file, without the lines that are commands of the shell or of IPython."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        return ["\n".join(_python_lines(source.splitlines())) for source in sources]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as a notebook ({type(error).__name__}: {error})") from None


def _python_lines(lines: Iterable[str]) -> list[str]:
    return [line for line in lines if not line.lstrip().startswith(("!", "%"))]
