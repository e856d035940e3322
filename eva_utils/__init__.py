"""A shared PyTorch toolkit for image-classification assignments: data, models, the training loop, figures.

The names below are imported when they are first used, so that `import eva_utils` costs next to nothing.
"""

import difflib
import importlib

__version__ = "0.1.0"

_HOME = {
    "fit": "main",
    "train": "main",
    "test": "main",
    "create_model": "models",
    "center_filters": "models",
    "list_models": "models",
    "resnet18": "models",
    "resnet34": "models",
    "small_resnet": "models",
    "speed_resnet": "models",
    "flip_resnet": "models",
    "narrow_flip_resnet": "models",
    "speed_resnet4": "models",
    "whitened_flip_resnet": "models",
    "whitened_flip_resnet4": "models",
    "whitened_resnet": "models",
    "wide_whitened_flip_resnet4": "models",
    "davidnet": "models",
    "vit": "models",
    "load_data": "utils.data",
    "process_group": "utils.processes",
    "seed_everything": "utils.runtime",
    "load_weights": "utils.checkpoint",
    "History": "utils.history",
    "lr_find": "utils.lr_finder",
    "learning_rates": "utils.optim",
    "one_cycle": "utils.optim",
    "param_groups": "utils.optim",
    "plateau_rates": "utils.plateau",
    "predict": "utils.predictions",
    "GradCAM": "utils.gradcam",
    "overlay": "utils.gradcam",
    "plot_augmentations": "utils.plotting",
    "plot_confusion": "utils.plotting",
    "plot_gradcam": "utils.cam_figures",
    "plot_history": "utils.curves",
    "plot_images": "utils.plotting",
    "plot_lr_find": "utils.curves",
    "plot_schedule": "utils.curves",
    "preflight": "utils.preflight",
    "Brief": "utils.assignments",
    "audit": "utils.brief",
    "write_report": "utils.report",
    "check_report": "utils.handed_in",
    "summary": "utils.summary",
    "write_tensorboard": "utils.tensorboard",
}
_ELSEWHERE = {  # as other toolkits call it
    "accuracy": "test",
    "evaluate": "test",
    "find_lr": "lr_find",
    "load_model": "load_weights",
    "misclassified": "predict",
    "plot_curves": "plot_history",
    "plot_loss": "plot_history",
    "plot_misclassified": "plot_images",
    "set_seed": "seed_everything",
    "train_model": "fit",
}
_PARTS = ("main", "models", "utils")
__all__ = ["__version__", *_HOME]


def __getattr__(name: str):
    if name in _PARTS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        near = [_ELSEWHERE[name]] if name in _ELSEWHERE else difflib.get_close_matches(name.lower(), _HOME, 1, 0.7)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_PARTS])
