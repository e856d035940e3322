"""Execute an assignment's notebook on a folder of images and save its outputs in the notebook.

    python assignment/run_notebook.py eva8_s10 --data cifar10-images

The run and its report are left in runs/eva8_s10; after an interruption the same command goes on, and the log
in the notebook begins there. The cells keep their code, which downloads CIFAR-10, and a line above the outputs
says what they are of. Needs the `test` extra.
"""

import argparse
import copy
import os
import re
import warnings
from pathlib import Path

import nbformat

from eva_utils.utils.command_note import add_command

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own, of what it imports
    import papermill

ROOT = Path(__file__).resolve().parents[1]
NOTE = "outputs"  # tag of the line


def keep_outputs(notebook: nbformat.NotebookNode, executed: nbformat.NotebookNode, line: str) -> None:
    """Give each code cell what the same cell of the executed notebook shows, but for the installation's.

    Raises:
        ValueError: a cell was edited since.
    """
    notebook.cells = [cell for cell in notebook.cells if NOTE not in cell.metadata.get("tags", [])]
    mine = [cell for cell in notebook.cells if cell.cell_type == "code"]
    cells = [cell for cell in executed.cells if cell.cell_type == "code"]
    theirs = [cell for cell in cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for number, (cell, shown) in enumerate(zip(mine, theirs, strict=True)):
        if cell.source != shown.source:
            raise ValueError(f"code cell {number} was edited since: {shown.source!r} is now {cell.source!r}")
        cell.outputs = as_shown(shown.outputs) if number else []
        cell.execution_count = number + 1
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = cell.execution_count
    note = nbformat.v4.new_markdown_cell(line, metadata={"tags": [NOTE]})
    note.id = NOTE
    (parameters,) = [
        number for number, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])
    ]
    notebook.cells.insert(parameters, note)


def as_shown(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Return outputs with the pieces of a stream put together, and of a progress bar what is left to be seen."""
    merged: list[nbformat.NotebookNode] = []
    for output in outputs:
        if merged and output.output_type == "stream" and merged[-1].get("name") == output.name:
            merged[-1].text += output.text
        else:
            merged.append(copy.deepcopy(output))
    for output in merged:
        if output.output_type == "stream":
            output.text = "\n".join(line.rstrip("\r").split("\r")[-1] for line in output.text.split("\n"))
    return merged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(path.stem for path in ROOT.glob("assignment/*/*.ipynb")))
    parser.add_argument("--data", required=True, help="folder of images, see load_data")
    args = parser.parse_args()
    above = ROOT / "runs"  # stands for the folder above the clone
    if not Path(args.data).is_dir():
        parser.error(f"no such folder: {args.data}")
    if (above / args.name / "README.md").exists():
        parser.error(f"runs/{args.name} holds a finished run; remove it to run the notebook again")
    above.mkdir(exist_ok=True)
    if not (above / "eva_utils").is_symlink():
        (above / "eva_utils").symlink_to("..", target_is_directory=True)
    add_command(above / args.name, "assignment/run_notebook.py")  # of a run that the command line began
    path = ROOT / "assignment" / args.name / f"{args.name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    executed = papermill.execute_notebook(
        str(path),
        str(above / path.name),
        parameters={"source": os.path.relpath(args.data, above), "run": args.name},
        cwd=str(above),
        kernel_name="python3",
        progress_bar=False,
    )
    report = (above / args.name / "README.md").read_text(encoding="utf-8")
    (images,) = re.findall(r"^\| data \| (.*) \|$", report, re.MULTILINE)
    keep_outputs(notebook, executed, f"The outputs saved here are of {images}, in place of the `source` below.")
    nbformat.write(notebook, path)
    print(f"{path.relative_to(ROOT)} holds the outputs; the report is in runs/{args.name}")


if __name__ == "__main__":
    main()
