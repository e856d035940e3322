"""Makes a bare clone importable from the folder above it: this module becomes the inner package."""

import importlib.util
import sys
from pathlib import Path

_inner = Path(__file__).resolve().parent / "eva_utils"
__spec__ = importlib.util.spec_from_file_location(
    __name__, _inner / "__init__.py", submodule_search_locations=[str(_inner)]
)
__file__, __path__, __loader__ = __spec__.origin, __spec__.submodule_search_locations, __spec__.loader
__loader__.exec_module(sys.modules[__name__])
