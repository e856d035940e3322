"""The three ways in, each in a process of its own on a real clone."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

CHECK = """
import sys
from eva_utils.main import fit
import eva_utils
import eva_utils.main
assert eva_utils.fit is fit
assert eva_utils.main.fit is fit and not hasattr(eva_utils.main, "argparse")
assert "fit" in dir(eva_utils) and eva_utils.create_model("small_resnet")
assert not {"matplotlib", "cv2", "torchvision", "torchsummary"} & set(sys.modules)
print(eva_utils.main.__file__)
"""


def python(code, folder, executable=sys.executable):
    # Without PYTHONPATH; -P would keep the current folder off the path, and being in it is what is tested.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_from_the_folder_above_a_bare_clone(clone):
    assert python(CHECK, clone) == str(clone / "eva_utils" / "eva_utils" / "main.py")


def test_from_inside_the_clone(clone):
    assert python(CHECK, clone / "eva_utils") == str(clone / "eva_utils" / "eva_utils" / "main.py")


def test_reloading_the_bare_clone_keeps_the_module_and_what_is_imported_of_it(clone):
    code = """
import importlib, sys
import eva_utils as first, eva_utils.utils.names
assert importlib.reload(first) is first is sys.modules["eva_utils"]
assert first.utils.names is sys.modules["eva_utils.utils.names"]
import eva_utils.utils.markdown
print(first.__file__, first.utils.markdown.__file__, sep="\\n")
"""
    inner = clone / "eva_utils" / "eva_utils"
    assert python(code, clone).splitlines() == [str(inner / "__init__.py"), str(inner / "utils" / "markdown.py")]


def install(clone, tmp_path, *options):
    """Install into a new environment that sees this one's packages, without the network."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    executable = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = subprocess.run(
        [executable, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    Path(site, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", *options)
    command = [sys.executable, "-m", "pip", "--python", executable, "install", *options, "./eva_utils"]
    subprocess.run(command, cwd=clone, check=True)
    return str(executable)


def test_installed(clone, tmp_path):
    executable = install(clone, tmp_path)
    assert str(tmp_path / "venv") in python(CHECK, tmp_path, executable)
    bare = python("import eva_utils; print(eva_utils.__file__)", clone, executable)
    assert bare == str(clone / "eva_utils" / "eva_utils" / "__init__.py")


def test_installed_editable(clone, tmp_path):
    executable = install(clone, tmp_path, "--editable")
    expected = str(clone / "eva_utils" / "eva_utils" / "main.py")
    assert python(CHECK, tmp_path, executable) == expected
    assert python(CHECK, clone, executable) == expected
