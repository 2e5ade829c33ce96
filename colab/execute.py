"""Runs the notebooks and saves them with their outputs.

  python colab/execute.py                       # all notebooks
  python colab/execute.py 3_two_papers          # one of them

Each notebook is a pair: NAME.py (jupytext, percent format) is the source; this script runs it in a
new kernel of the current Python and writes NAME.ipynb. Needs python -m pip install ".[notebooks]".
"""

import base64
import io
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
NAMES = (
  "1_robust_optimization_in_an_hour",
  "2_evaluate_your_own_network",
  "3_two_papers",
)
# The repository in the badges and installation cells of the notebooks.
REPOSITORY = "github.com/robust-opt/robust_opt"
METADATA = {
  "accelerator": "GPU",  # Colab's default for these notebooks; TPU and CPU work too
  "colab": {"provenance": []},
  "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
  "language_info": {"name": "python"},
}


def badge(name: str) -> str:
  """Markdown for the button that opens a notebook in Colab."""
  owner = REPOSITORY.removeprefix("github.com/")
  page = f"https://colab.research.google.com/github/{owner}/blob/main/colab/{name}.ipynb"
  return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({page})"


def read(name: str) -> Any:
  """The notebook NAME.py, without outputs."""
  notebook = jupytext.read(FOLDER / f"{name}.py", fmt="py:percent")
  notebook.metadata = nbformat.from_dict(METADATA)
  for index, cell in enumerate(notebook.cells):
    cell.id = f"cell-{index}"  # random ids would change with every save
  return notebook


def with_parameters(notebook: Any, values: Mapping[str, Any]) -> Any:
  """Sets variables in the cell with the tag `parameters`, and returns the notebook.

  Raises:
    ValueError: the cell does not assign a variable in exactly one line.
  """
  (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
  for key, value in values.items():
    line = f"{key} = {value!r}".replace("\\", r"\\")
    cell.source, count = re.subn(rf"^{key} = .*$", line, cell.source, flags=re.MULTILINE)
    if count != 1:
      raise ValueError(
        f"The parameter cell must assign {key} in exactly one line, but {count} lines do."
      )
  return notebook


def run(notebook: Any, timeout: int = 1800) -> Any:
  """Runs the notebook in place, in a temporary directory, and returns it.

  Args:
    notebook: from `read`.
    timeout: seconds per cell.
  """
  with tempfile.TemporaryDirectory() as folder:
    client = NotebookClient(
      notebook,
      timeout=timeout,
      kernel_name="python3",
      resources={"metadata": {"path": folder}},
      record_timing=False,
    )
    # Use the library of this repository, whether it is installed or not.
    paths = [str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]
    client.execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))})
  for cell in notebook.cells:
    if cell.cell_type == "code":
      cell.outputs = [_compressed(out) for out in _merged(cell.outputs)]
  notebook.metadata = nbformat.from_dict(METADATA)
  return notebook


def _merged(outputs: list[Any]) -> list[Any]:
  """Merges consecutive printed outputs, which kernels split at arbitrary points."""
  merged: list[Any] = []
  for out in outputs:
    streams = [o for o in (*merged[-1:], out) if o.output_type == "stream"]
    if len(streams) == 2 and streams[0].name == out.name:
      merged[-1].text += out.text
    else:
      merged.append(out)
  return merged


def _compressed(out: Any) -> Any:
  """Reduces figures to 128 colors, a third of the size; leaves other outputs unchanged."""
  if "image/png" in out.get("data", {}):
    figure = Image.open(io.BytesIO(base64.b64decode(out.data["image/png"])))
    file = io.BytesIO()
    figure.convert("RGB").quantize(128).save(file, "PNG", optimize=True)
    out.data["image/png"] = base64.b64encode(file.getvalue()).decode()
  return out


def main(names: list[str]) -> None:
  """Runs and saves the named notebooks, or all of them."""
  for name in names or NAMES:
    notebook = run(read(name))
    nbformat.validate(notebook)
    nbformat.write(notebook, FOLDER / f"{name}.ipynb")
    size = (FOLDER / f"{name}.ipynb").stat().st_size
    print(f"Saved {name}.ipynb, {size / 1000:.0f} kB.")


if __name__ == "__main__":
  main(sys.argv[1:])
