"""A shared PyTorch toolkit for image-classification assignments: data, models, the training loop, figures.

The names below are imported when they are first used, so that `import eva_utils` costs next to nothing.
"""

import difflib
import importlib

__version__ = "0.1.0"

_NAMES = {
    "main": ("fit", "train", "test"),
    "models": (
        "create_model",
        "center_filters",
        "list_models",
        "resnet18",
        "resnet34",
        "small_resnet",
        "speed_resnet",
        "flip_resnet",
        "narrow_flip_resnet",
        "speed_resnet4",
        "whitened_flip_resnet",
        "whitened_flip_resnet4",
        "whitened_resnet",
        "wide_whitened_flip_resnet4",
        "davidnet",
        "vit",
    ),
    "utils.data": ("load_data",),
    "utils.processes": ("process_group",),
    "utils.runtime": ("seed_everything",),
    "utils.checkpoint": ("load_weights",),
    "utils.history": ("History",),
    "utils.lr_finder": ("lr_find",),
    "utils.optim": ("learning_rates", "one_cycle", "param_groups"),
    "utils.plateau": ("plateau_rates",),
    "utils.predictions": ("predict",),
    "utils.gradcam": ("GradCAM", "overlay"),
    "utils.plotting": ("plot_augmentations", "plot_confusion", "plot_images"),
    "utils.cam_figures": ("plot_gradcam",),
    "utils.curves": ("plot_history", "plot_lr_find", "plot_schedule"),
    "utils.preflight": ("preflight",),
    "utils.assignments": ("Brief",),
    "utils.brief": ("audit",),
    "utils.report": ("write_report",),
    "utils.handed_in": ("check_report",),
    "utils.summary": ("summary",),
    "utils.tensorboard": ("write_tensorboard",),
}
_HOME = {name: home for home, names in _NAMES.items() for name in names}
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
