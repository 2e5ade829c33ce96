"""Runs the notebooks and saves them with their outputs: each is a pair, NAME.py and NAME.ipynb.

  python colab/execute.py                       # all of them, as they are
  python colab/execute.py 3_two_papers          # one of them

The .py (jupytext, percent format) is what is written, reviewed and linted; the .ipynb is made from
it here, by a fresh kernel of the Python that runs this. Needs pip install ".[notebooks]".
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
# Where the badges lead and what Colab installs; the notebooks must say the same.
REPOSITORY = "github.com/robust-opt/robust_opt"
METADATA = {
  "accelerator": "GPU",  # what Colab starts with; a TPU or a CPU does as well
  "colab": {"provenance": []},
  "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
  "language_info": {"name": "python"},
}


def badge(name: str) -> str:
  """The Markdown of the button that opens a notebook in Colab."""
  owner = REPOSITORY.removeprefix("github.com/")
  page = f"https://colab.research.google.com/github/{owner}/blob/main/colab/{name}.ipynb"
  return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({page})"


def read(name: str) -> Any:
  """The notebook that the .py stands for, without outputs."""
  notebook = jupytext.read(FOLDER / f"{name}.py", fmt="py:percent")
  notebook.metadata = nbformat.from_dict(METADATA)
  for place, cell in enumerate(notebook.cells):
    cell.id = f"cell-{place}"  # random ones would change at every save
  return notebook


def with_parameters(notebook: Any, values: Mapping[str, Any]) -> Any:
  """The same notebook with other values in the cell that is tagged `parameters`.

  Raises:
    ValueError: the cell assigns no such name.
  """
  (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
  for key, value in values.items():
    line = f"{key} = {value!r}".replace("\\", r"\\")
    cell.source, count = re.subn(rf"^{key} = .*$", line, cell.source, flags=re.MULTILINE)
    if count != 1:
      raise ValueError(
        f"The parameter cell must have one line that assigns {key}, but has {count}."
      )
  return notebook


def run(notebook: Any, timeout: int = 1800) -> Any:
  """The notebook with its outputs, run in a temporary directory.

  Args:
    notebook: is changed, and returned.
    timeout: seconds a cell.
  """
  with tempfile.TemporaryDirectory() as folder:
    client = NotebookClient(
      notebook,
      timeout=timeout,
      kernel_name="python3",
      resources={"metadata": {"path": folder}},
      record_timing=False,
    )
    # The library is that of this repository, installed or not.
    paths = [str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]
    client.execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))})
  for cell in notebook.cells:
    if cell.cell_type == "code":
      cell.outputs = [_lighter(out) for out in _joined(cell.outputs)]
  notebook.metadata = nbformat.from_dict(METADATA)
  return notebook


def _joined(outputs: list[Any]) -> list[Any]:
  """Printed lines that follow each other as one output: how a kernel cuts them varies."""
  joined: list[Any] = []
  for out in outputs:
    streams = [o for o in (*joined[-1:], out) if o.output_type == "stream"]
    if len(streams) == 2 and streams[0].name == out.name:
      joined[-1].text += out.text
    else:
      joined.append(out)
  return joined


def _lighter(out: Any) -> Any:
  """A figure in 128 colours, a third of the size; what is no figure, as it is."""
  if "image/png" in out.get("data", {}):
    figure = Image.open(io.BytesIO(base64.b64decode(out.data["image/png"])))
    file = io.BytesIO()
    figure.convert("RGB").quantize(128).save(file, "PNG", optimize=True)
    out.data["image/png"] = base64.b64encode(file.getvalue()).decode()
  return out


def main(names: list[str]) -> None:
  """Runs and saves these notebooks, or all."""
  for name in names or NAMES:
    notebook = run(read(name))
    nbformat.validate(notebook)
    nbformat.write(notebook, FOLDER / f"{name}.ipynb")
    print(f"{name}.ipynb is saved, {(FOLDER / f'{name}.ipynb').stat().st_size / 1000:.0f} kB.")


if __name__ == "__main__":
  main(sys.argv[1:])
