"""A run on disk: what its folder holds, and what to resume from.

A run's folder holds the full state of its last two epochs (`epoch-0007.pt`), the weights of the best and
of the last epoch as plain state_dicts (`best.pt`, `last.pt`), and the record (`history.json`).
"""

import re
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .compiling import unwrap
from .history import History
from .trained import note_trained
from .verified import DamagedFileError, load_verified, save_verified, write_atomic

_RESULTS = ("best.pt", "last.pt", "history.json")


def load_weights(model: nn.Module, run: str | Path, which: str = "best") -> nn.Module:
    """Load a run's weights into a model, in place, and return the model.

    Args:
        model: of the architecture that was trained, on any device.
        run: the run's folder.
        which: "best" (the epoch of the highest test accuracy) or "last".

    Raises:
        FileNotFoundError: the folder holds no such weights.
        ValueError: `which` is neither, the file is damaged, or the weights are of another model.
        TypeError: `model` is no model.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is a torch.nn.Module, not {type(model).__name__}; pass the model itself, as load_weights(model, "
            "'runs/s8')"
        )
    if which not in ("best", "last"):
        raise ValueError(f"which is 'best' or 'last', not {which!r}")
    if Path(run).is_file():
        raise ValueError(f"{run} is a file; give its folder, and which='best' or 'last'")
    path = Path(run) / f"{which}.pt"
    if not path.is_file() and path.with_name("last.pt").is_file():
        raise FileNotFoundError(
            f"{path} was lost with a damaged epoch; take which='last', or train on until a better epoch writes it anew"
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; give the folder that fit(checkpoint=...) wrote, with an epoch finished"
        )
    weights, model_itself = load_verified(path), unwrap(model)
    problem = weights_differ(weights, model_itself)
    if problem:
        raise ValueError(
            f"{path} does not fit this {type(model_itself).__name__}: {problem}; build the model that was trained"
        )
    load_into(model_itself, weights)
    note_trained(model_itself)
    return model


def load_into(module: nn.Module, weights: dict[str, Any]) -> None:
    """Load a state_dict; one that was saved without the versions of its modules is taken for one of the module's."""
    if not hasattr(weights, "_metadata"):
        weights = OrderedDict(weights)
        weights._metadata = getattr(module.state_dict(), "_metadata", None)  # type: ignore[attr-defined]
    module.load_state_dict(weights)


def weights_differ(weights: dict[str, Tensor], model: nn.Module) -> str | None:
    """Say where a state_dict and a model differ in names or shapes, or None."""
    own = model.state_dict()
    for name in own | weights:
        if name not in weights or name not in own:
            batch = ", as with another normalization" if ".running_" in name else ""
            return f"{name!r} is only in the {'model' if name in own else 'file'}{batch}"
        if not isinstance(own[name], Tensor) or not isinstance(weights[name], Tensor):  # of get_extra_state
            continue
        if own[name].shape != weights[name].shape:
            return f"{name!r} is {tuple(weights[name].shape)} in the file and {tuple(own[name].shape)} in the model"
    return None


def save_epoch(folder: Path, state: dict, history_json: str, best_epoch: int) -> None:
    """Put a finished epoch on disk: its full state first, then what can be made from it again."""
    save_verified(folder / f"epoch-{state['epoch']:04d}.pt", state)
    write_derived(folder, state, history_json, best_epoch)
    for number, path in _epoch_files(folder):
        if number <= state["epoch"] - 2:
            with suppress(PermissionError):  # as while a scanner holds it on Windows; the next epoch removes it
                path.unlink()


def write_derived(folder: Path, state: dict, history_json: str, best_epoch: int) -> None:
    """Write the plain weights and the record of an epoch that is on disk."""
    weights = state["model"]
    if "ema" in state:  # the average is what was tested
        weights = _inside(state["ema"])
        if hasattr(state["ema"], "_metadata"):
            weights._metadata = _inside(state["ema"]._metadata)  # type: ignore[attr-defined]
    if best_epoch == state["epoch"]:
        save_verified(folder / "best.pt", weights)
    save_verified(folder / "last.pt", weights)
    write_atomic(folder / "history.json", history_json.encode())


def rewrite_derived(folder: Path, state: dict, history_json: str, best_epoch: int, log: Callable[[str], None]) -> None:
    """Do so for the epoch that a run goes on from; what is of a later epoch, which was damaged, goes."""
    dropped = [(number, path) for number, path in _epoch_files(folder) if number > state["epoch"]]
    best = folder / "best.pt"
    if dropped and best_epoch < state["epoch"] and best.exists() and not _is_best(folder, best_epoch, max(dropped)[0]):
        best.unlink()
        log(
            f"{best} is removed, since it may be of a damaged epoch; the weights of epoch {best_epoch}, the best one "
            "left, are gone, and a better epoch writes it anew"
        )
    write_derived(folder, state, history_json, best_epoch)
    for _, path in dropped:
        path.unlink()


def _is_best(folder: Path, epoch: int, newest: int) -> bool:
    """Whether best.pt is of an epoch, by the record that was written with the newest one."""
    try:
        record = History.load(folder)
        return len(record) >= newest and record.best["epoch"] == epoch
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _inside(named: dict[str, Any]) -> OrderedDict[str, Any]:
    """Return what is named as of the module that an average holds, by the names of that module."""
    prefix = "module."
    return OrderedDict((name[len(prefix) :], value) for name, value in named.items() if f"{name}.".startswith(prefix))


def latest_state(folder: Path, log: Callable[[str], None]) -> dict | None:
    """Return the state of the last finished epoch on disk, or None where there is no run.

    A damaged file is never loaded: the epoch before it is used, and `log` is told.

    Raises:
        DamagedFileError: there is a run, and no state of it is whole.
    """
    for unfinished in folder.glob(".*.tmp"):  # what a kill left of a save
        unfinished.unlink()
    found = sorted(_epoch_files(folder), reverse=True)
    for number, path in found:
        try:
            return load_verified(path)
        except DamagedFileError as error:
            log(f"{error}; looking for epoch {number - 1}")
    if found:
        raise DamagedFileError(f"every checkpoint in {folder} is damaged; choose another folder to start anew")
    return None


def check_folder(folder: Path, resume: bool | str) -> None:
    """Refuse a folder that holds a run unless that run is to be resumed; nothing is written.

    Raises:
        ValueError: the folder holds a run and `resume` is False, or holds none and it is True.
    """
    if not isinstance(resume, bool) and resume != "auto":
        raise ValueError(f"resume is True, False or 'auto', not {resume!r}")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"checkpoint {folder} is a file; name a folder")
    results = [name for name in _RESULTS if (folder / name).exists()]
    if results and not last_epoch(folder) and resume:
        raise ValueError(
            f"{folder} holds {results[0]} and no epoch-*.pt to resume from; put those back, or choose another folder"
        )
    if holds_run(folder) and not resume:
        raise ValueError(
            f"{folder} already holds a run; continue it with resume='auto' (--resume), or choose another folder"
        )
    if not holds_run(folder) and resume is True:
        raise ValueError(f"{folder} holds no run to resume; resume='auto' starts one where there is none")


def holds_run(folder: Path) -> bool:
    """Whether a folder holds a file of a run, be it one that was killed while it saved its first epoch."""
    return bool(last_epoch(folder)) or any((folder / name).exists() for name in _RESULTS)


def last_epoch(folder: Path) -> int:
    """Return the number of the last epoch whose state a folder holds, 0 if it holds none."""
    return max((number for number, _ in _epoch_files(folder)), default=0) if folder.is_dir() else 0


def _epoch_files(folder: Path) -> list[tuple[int, Path]]:
    named = ((re.fullmatch(r"epoch-(\d+)\.pt", path.name), path) for path in folder.iterdir())
    return [(int(match[1]), path) for match, path in named if match]
