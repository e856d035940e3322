"""Makes a bare clone importable from the folder above it: the inner package takes this one's place."""

import importlib.util
import sys
from pathlib import Path

_inner = Path(__file__).resolve().parent / "eva_utils"
_spec = importlib.util.spec_from_file_location(
    __name__, _inner / "__init__.py", submodule_search_locations=[str(_inner)]
)
sys.modules[__name__] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules[__name__])
