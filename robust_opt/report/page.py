"""One HTML page about one run or several: what was trained, how robust, how far to believe it.

  python -m robust_opt.report --workdir=runs/mnist_linf
  python -m robust_opt.report --workdir=runs/mnist_linf runs/mnist_standard --output=compared.html

reads finished runs of robust_opt.main with what `python -m robust_opt.evaluate` left in them, asks
their nets for their answers to the adversarial images, and writes a page that holds all it shows:
it opens from a file, without a network. Without --output it lies in the first run, report.html.
"""

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
from absl import flags
from markupsafe import Markup

from robust_opt.errors import InputError
from robust_opt.files import atomic_write
from robust_opt.report import examples, words
from robust_opt.report import plots as report_plots
from robust_opt.report.data import Run, evaluation_command, read_all, training_command
from robust_opt.report.examples import Attacked

# Adversarial examples of a run that the page shows: a few megabytes of photographs at most.
EXAMPLES = 60
_TEMPLATES = Path(__file__).parent / "templates"


def run(workdirs: Sequence[Path], output: Path | None, places: Mapping[str, str]) -> Path:
  """Writes the page, whole or not at all.

  Args:
    workdirs: of finished runs.
    output: the page; None: report.html in the first run.
    places: data_dir and cache_dir, where they are not the runs' own.

  Returns:
    Where it is.

  Raises:
    InputError: a sentence for each run that cannot be reported on; what was at `output` is kept.
    WriteError: the page could not be written.
  """
  if output is not None and output.suffix.lower() not in (".html", ".htm"):
    raise InputError(f"--output must be the name of an .html file, but was {output}.")
  runs = read_all(workdirs)
  text = page(runs, places)
  path = output or runs[0].workdir / "report.html"
  with atomic_write(path) as file:
    file.write(text.encode())
  return path


def page(runs: Sequence[Run], places: Mapping[str, str]) -> str:
  """The page; the same runs give the same text."""
  shown = [_evaluations(one, places) for one in runs]
  plots: dict[str, Any] = {}

  def numbered(found: Sequence[report_plots.Plot]) -> list[tuple[str, report_plots.Plot]]:
    named = [(f"plot{len(plots) + place}", plot) for place, plot in enumerate(found)]
    plots.update({name: plot.figure for name, plot in named})
    return named

  view: dict[str, Any] = {
    "runs": runs,
    "verdicts": [words.verdict(one) for one in runs],
    "marks": [report_plots.MARKS[i % len(report_plots.MARKS)] for i in range(len(runs))],
    "colours": [i % len(report_plots.THEMES["light"]["series"]) for i in range(len(runs))],
    "themes": report_plots.THEMES,
    "table": words.result_table(runs),
    "seeds": words.are_seeds(runs),
    "radius_plots": numbered(report_plots.radius_plots(runs)),
    "radius_tables": words.radius_tables(runs),
    "training_plots": numbered(report_plots.training_plots(runs)),
    "overfitting": [(one.name, words.overfitting(one)) for one in runs if words.overfitting(one)],
    "evaluations": [entry for entries in shown for entry in entries],
    "confusion_plots": numbered(
      [entry["confusion"] for entries in shown for entry in entries if entry["confusion"]]
    ),
    "config": words.config_rows(runs),
    "provenance": words.provenance_rows(runs),
    "training_commands": [training_command(one) for one in runs],
    "evaluate_commands": [words.evaluate_command(one) for one in runs],
    "limit": EXAMPLES,
    "pictures": [one.picture and examples.data_address(one.picture) for one in runs],
    "version": metadata.version("robust_opt"),
    "plotly": Markup(report_plots.javascript()),
  }
  sets = [
    {
      "title": f"{entry['run']}: {entry['title']}" if len(runs) > 1 else entry["title"],
      "examples": [example._asdict() for example in entry["attacked"].examples],
    }
    for entry in view["evaluations"]
    if entry["attacked"].examples
  ]
  view["sets"] = sets
  view["payload"] = {"themes": report_plots.THEMES, "plots": plots, "sets": sets}
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_TEMPLATES),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  filters = {
    "percent": words.percent,
    "breakable": words.breakable,
  }
  environment.filters |= filters
  return environment.get_template("report.html").render(view)


def _evaluations(one: Run, places: Mapping[str, str]) -> list[dict[str, Any]]:
  """What the page shows of the evaluations of a run, which share the number of examples."""
  found = []
  for evaluation in one.evaluations:
    share = max(1, EXAMPLES // len(one.evaluations))
    attacked: Attacked = examples.ask(one, evaluation, share, places)
    title, confusion = words.evaluation_title(evaluation), None
    if attacked.confusion is not None:
      confusion = report_plots.confusion_plot(f"{one.name}: {title}", attacked.confusion)
    found.append(
      {
        "run": one.name,
        "title": title,
        "evaluation": evaluation,
        "attacked": attacked,
        "confusion": confusion,
        "command": evaluation_command(one, evaluation),
      }
    )
  return found


def main(argv: list[str]) -> None:
  """Flags, and further runs without one, to the page."""
  given = flags.FLAGS
  path = run(
    [Path(name) for name in (*given.workdir, *argv[1:])],
    Path(given.output) if given.output else None,
    {"data_dir": given.data_dir, "cache_dir": given.cache_dir},
  )
  print(f"The report is {path}")


def define_flags() -> None:
  """Only where this file is the program, so that importing it defines none."""
  flags.FLAGS.set_gnu_getopt(True)  # --workdir=A B --output=C: flags behind a further run count too
  flags.DEFINE_multi_string("workdir", [], "Of a finished run; more of them, or again the flag.")
  flags.DEFINE_string("output", "", "The page, an .html file; by default in the first run.")
  flags.DEFINE_string("data_dir", "", "Where prepared sets lie; empty: the runs' own.")
  flags.DEFINE_string("cache_dir", "", "Where arrays are cached; empty: the runs' own.")
