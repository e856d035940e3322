"""The record of a run as TensorBoard shows it."""

from pathlib import Path

from .history import History


def write_tensorboard(history: History, folder: str | Path) -> Path:
    """Write every column of a run's record as a TensorBoard scalar by epoch, and return the folder.

    `loss/train`, `loss/test`, `accuracy/train`, `accuracy/test`, `learning_rate` and `seconds`; losses are means
    over samples, accuracies percentages. Look at it with `tensorboard --logdir FOLDER`, or in a notebook with
    `%load_ext tensorboard` and `%tensorboard --logdir FOLDER`.

    Args:
        history: what `fit` returned.
        folder: a new or an empty one; its name is the run's in TensorBoard.

    Raises:
        ModuleNotFoundError: the tensorboard package is missing.
        ValueError: the folder holds files already, or no epoch has finished.
        TypeError: it is no history.
    """
    if not isinstance(history, History):
        raise TypeError(f"write_tensorboard takes what fit returned, not {type(history).__name__}")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"TensorBoard is not installed ({error}); pip install tensorboard, or './eva_utils[tensorboard]'"
        ) from error
    folder = Path(folder)
    if not history.rows:
        raise ValueError("no epoch has finished, so there is nothing to write")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} holds files already, and TensorBoard would mix two runs; name a new folder")
    columns = {
        "loss/train": "train_loss",
        "loss/test": "test_loss",
        "accuracy/train": "train_accuracy",
        "accuracy/test": "test_accuracy",
        "learning_rate": "lr",
        "seconds": "seconds",
    }
    with SummaryWriter(str(folder)) as writer:
        for row in history.rows:
            for tag, column in columns.items():
                writer.add_scalar(tag, row[column], row["epoch"])
    return folder
