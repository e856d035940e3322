"""Who may import whom, read from the source."""

import ast

import pytest

from conftest import ROOT

PACKAGE = ROOT / "eva_utils"
# These import nothing of the package but each other, so every file may use them.
LEAVES = {"utils.batches", "utils.checks", "utils.failures", "utils.names", "utils.parts", "utils.schedule_checks"}
ALLOWED = {
    "__init__": set(),
    "main": {
        "utils.averaging",
        "utils.compiling",
        "utils.forward",
        "utils.history",
        "utils.kept",
        "utils.meter",
        "utils.optim",
        "utils.processes",
        "utils.progress",
        "utils.run_folder",
        "utils.runtime",
        "utils.schedule",
        "utils.state",
        "utils.stop",
        "utils.trained",
    },
    "models.__init__": {
        "models.centering",
        "models.davidnet",
        "models.resnet",
        "models.small_resnet",
        "models.speed_resnet",
        "models.vit",
    },
    "models.davidnet": {"models.norms", "models.resnet"},
    "models.centering": set(),
    "models.conv": set(),
    "models.flip": {"models.conv", "models.norms", "models.resnet"},
    "models.norms": set(),
    "models.resnet": {"models.conv", "models.norms"},
    "models.small_resnet": {"models.conv", "models.norms", "models.resnet"},
    "models.speed_resnet": {"models.conv", "models.flip", "models.norms", "models.resnet"},
    "models.vit": set(),
    "utils.__init__": set(),
    "utils.checkpoint": {"utils.compiling", "utils.history", "utils.trained", "utils.verified"},
    "utils.trained": set(),
    "utils.verified": set(),
    "utils.batches": set(),
    "utils.averaging": {"utils.compiling"},
    "utils.checks": {"utils.parts"},
    "utils.failures": {"utils.names"},
    "utils.parts": set(),
    "utils.schedule_checks": {"utils.checks", "utils.parts"},
    "utils.assignments": {"utils.norm_rules"},
    "utils.augmentation": {"utils.loader", "utils.transforms"},
    "utils.brief": {
        "utils.assignments",
        "utils.compiling",
        "utils.depth_rule",
        "utils.gradcam",
        "utils.history",
        "utils.kept",
        "utils.norm_rules",
        "utils.notebook",
        "utils.predictions",
        "utils.rules",
    },
    "utils.depth_rule": {"utils.compiling", "utils.rules"},
    "utils.norm_rules": {"utils.compiling", "utils.kept", "utils.rules", "utils.runtime"},
    "utils.notebook": set(),
    "utils.seal": set(),
    "utils.command_note": {"utils.checkpoint", "utils.processes", "utils.verified"},
    "utils.options": {
        "models",
        "models.norms",
        "utils.assignments",
        "utils.command_note",
        "utils.optim",
        "utils.runtime",
        "utils.sources",
        "utils.transforms",
    },
    "utils.cutout": set(),
    "utils.data": {
        "utils.images",
        "utils.loader",
        "utils.pixels",
        "utils.runtime",
        "utils.sources",
        "utils.splits",
        "utils.transforms",
    },
    "utils.pixels": {"utils.images"},
    "utils.splits": {"utils.images", "utils.sources"},
    "utils.history": set(),
    "utils.images": set(),
    "utils.loader": {"utils.images", "utils.transforms"},
    "utils.lock": set(),
    "utils.lr_finder": {"utils.forward", "utils.kept", "utils.optim", "utils.runtime"},
    "utils.cam_layer": set(),
    "utils.gradcam": {"utils.cam_layer", "utils.compiling", "utils.kept"},
    "utils.mirror": {"utils.checkpoint", "utils.history", "utils.lock", "utils.verified"},
    "utils.names": set(),
    "utils.meter": {"utils.processes"},
    "utils.muon": {"utils.runtime"},
    "utils.optim": {"utils.muon"},
    "utils.handed_in": {
        "utils.history",
        "utils.page",
        "utils.report",
        "utils.rules",
        "utils.seal",
        "utils.verified",
    },
    "utils.markdown": set(),
    "utils.page": {
        "utils.figures",
        "utils.history",
        "utils.hyperparameters",
        "utils.markdown",
        "utils.plotting",
        "utils.predictions",
        "utils.seal",
        "utils.sections",
        "utils.verified",
    },
    "utils.hyperparameters": {"utils.markdown", "utils.rules"},
    "utils.sections": {"utils.cam_layer", "utils.markdown", "utils.predictions", "utils.rules"},
    "utils.finished": {
        "utils.brief",
        "utils.checkpoint",
        "utils.history",
        "utils.predictions",
        "utils.runtime",
    },
    "utils.report": {
        "utils.assignments",
        "utils.brief",
        "utils.checkpoint",
        "utils.command_note",
        "utils.compiling",
        "utils.finished",
        "utils.gradcam",
        "utils.kept",
        "utils.lock",
        "utils.notebook",
        "utils.page",
        "utils.predictions",
        "utils.runtime",
        "utils.summary",
        "utils.verified",
    },
    "utils.per_image": {"utils.kept", "utils.runtime"},
    "utils.plateau": {"utils.history", "utils.schedule"},
    "utils.curves": {"utils.figures", "utils.history"},
    "utils.figures": set(),
    "utils.forward": {"utils.compiling", "utils.kept", "utils.runtime"},
    "utils.cam_figures": {"utils.figures", "utils.gradcam", "utils.panels", "utils.transforms"},
    "utils.panels": {"utils.figures", "utils.transforms"},
    "utils.plotting": {
        "utils.cam_figures",
        "utils.curves",
        "utils.figures",
        "utils.panels",
        "utils.predictions",
        "utils.transforms",
    },
    "utils.predictions": {"utils.forward", "utils.kept", "utils.runtime"},
    "utils.preflight": {
        "utils.assignments",
        "utils.augmentation",
        "utils.brief",
        "utils.compiling",
        "utils.forward",
        "utils.kept",
        "utils.loader",
        "utils.mistakes",
        "utils.rules",
    },
    "utils.mistakes": {"utils.augmentation", "utils.images", "utils.loader"},
    "utils.progress": {"utils.meter"},
    "utils.run_folder": {
        "utils.checkpoint",
        "utils.history",
        "utils.lock",
        "utils.mirror",
        "utils.processes",
        "utils.state",
        "utils.verified",
    },
    "utils.rules": {"utils.augmentation", "utils.notebook", "utils.per_image", "utils.plateau", "utils.predictions"},
    "utils.processes": set(),
    "utils.runtime": set(),
    "utils.kept": {"utils.runtime"},
    "utils.compiling": set(),
    "utils.schedule": {"utils.history"},
    "utils.shapes": set(),
    "utils.sources": {"utils.images", "utils.shapes", "utils.tiny_imagenet"},
    "utils.state": {"utils.checkpoint", "utils.history", "utils.processes", "utils.runtime"},
    "utils.stop": {"utils.processes"},
    "utils.summary": {"utils.compiling", "utils.kept"},
    "utils.tensorboard": {"utils.history"},
    "utils.tiny_imagenet": set(),
    "utils.transforms": {"utils.cutout", "utils.per_image"},
}
ONLY_IN = {
    "matplotlib": {"utils.cam_figures", "utils.curves", "utils.figures", "utils.panels", "utils.plotting"},
    "cv2": {"utils.gradcam", "utils.shapes"},
    "PIL": {"utils.images"},
    "tqdm": {"utils.progress"},
}
WHEN_USED = {"matplotlib", "cv2", "PIL", "torchvision", "torchsummary"}


def module_name(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


FILES = sorted(PACKAGE.rglob("*.py"))


def runs_at_import(node):
    """Yield what is below a node and runs as the module is imported: all but functions and what is for types alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            child = ast.Module(child.orelse, [])
        yield child
        yield from runs_at_import(child)


def imports(path):
    """Yield (own module or None, outside package or None, whether it is imported as the module is)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, runs_at_import(tree)))
    package = module_name(path).split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield None, name.name.split(".")[0], id(node) in top
        elif isinstance(node, ast.ImportFrom):
            if not node.level:
                yield None, node.module.split(".")[0], id(node) in top
                continue
            base = package[: len(package) - node.level + 1] + ([node.module] if node.module else [])
            for name in node.names:
                # `from . import shapes` names a module, `from .loader import Loader` a thing in one.
                own = [*base, name.name] if (PACKAGE.joinpath(*base) / f"{name.name}.py").exists() else base
                yield ".".join(own), None, id(node) in top


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_import_directions(path):
    name = module_name(path)
    assert name in ALLOWED, f"say in ALLOWED what {name} may import"
    own = {target for target, _, _ in imports(path) if target}
    assert own - (LEAVES if name not in LEAVES else set()) == ALLOWED[name]
    for _, outside, at_top in imports(path):
        assert outside != "eva_utils", "import inside the package is relative, so that a bare clone works"
        assert name in ONLY_IN.get(outside, {name})
        assert not (outside in WHEN_USED and at_top), f"{outside} is imported when first used"


def test_the_lists_name_no_file_that_is_gone_and_none_that_imports_otherwise():
    assert set(ALLOWED) == set(map(module_name, FILES)) and set(ALLOWED) > LEAVES
    found = {(outside, module_name(path)) for path in FILES for _, outside, _ in imports(path) if outside in ONLY_IN}
    assert found == {(package, name) for package, names in ONLY_IN.items() for name in names}


def test_an_import_counts_wherever_it_runs_with_the_module():
    code = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import a
else:
    import b
try:
    import c
except ImportError:
    pass
class Lazy:
    import d
    def look(self):
        import e
with open("x"):
    import f
"""
    top = set(map(id, runs_at_import(tree := ast.parse(code))))
    found = {node.names[0].name for node in ast.walk(tree) if isinstance(node, ast.Import) and id(node) in top}
    assert found == {"b", "c", "d", "f"}


def test_models_need_no_package_but_torch():
    outside = {name for path in (PACKAGE / "models").glob("*.py") for _, name, _ in imports(path) if name}
    assert outside <= {"torch", "collections", "functools", "inspect", "itertools", "math"}
