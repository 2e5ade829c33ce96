"""One HTML page: accuracies under attack, training, adversarial examples, trust, config.

  python -m robust_opt.report runs/mnist_linf runs/mnist_standard --output=compared.html
  python -m robust_opt.report runs/mine/verdict.npz

Reads finished runs of robust_opt.main with their evaluations, and evaluations of any network by
robust_opt.evaluate (--output, or a verdict.npz), as many of both as are named. Predicts the
adversarial images again, and writes a single file that needs no network. Without --output it is
report.html in the directory of the first.
"""

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
from absl import flags

from robust_opt.errors import InputError
from robust_opt.evaluation.headline import by_importance
from robust_opt.files import atomic_write
from robust_opt.report import charts, examples, words
from robust_opt.report.data import Evaluation, Run, read_runs
from robust_opt.tables import Rate

MAX_EXAMPLES = 60  # adversarial examples per run: under a megabyte of small photographs
_TEMPLATES = Path(__file__).parent / "templates"


def run(paths: Sequence[Path], output: Path | None, locations: Mapping[str, str]) -> Path:
  """Writes the page about runs and evaluations, whole or not at all, and returns its path.

  Args:
    paths: directories of runs and of evaluations, and verdict files.
    output: the page; None: report.html in the directory of the first.
    locations: data_dir and cache_dir, where they are not the runs' own.

  Raises:
    InputError: one sentence for each path that cannot be read; an earlier page is kept.
    WriteError: the page could not be written.
  """
  if output is not None and output.suffix.lower() not in (".html", ".htm"):
    raise InputError(f"--output must be the name of an .html file, but was {output}.")
  runs = read_runs(paths)
  text = page(runs, locations)
  path = output or runs[0].workdir / "report.html"
  with atomic_write(path) as file:
    file.write(text.encode())
  return path


def page(runs: Sequence[Run], locations: Mapping[str, str]) -> str:
  """The page; the same runs give the same text."""
  views = [_run_view(index, one, locations) for index, one in enumerate(runs)]
  evaluations = [evaluation for view in views for evaluation in view["evaluations"]]
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_TEMPLATES),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters |= {f.__name__: f for f in (words.percent, words.unbroken, words.breakable)}
  trained = [run for run in runs if run.results]
  return environment.get_template("report.html").render(
    runs=views,
    trained=[view for view in views if view["run"].results],
    evaluations=evaluations,
    table=words.result_table(runs),
    seeds=words.are_seeds(runs),
    boxes=words.boxes_of_training(runs),
    radius_charts=charts.radius_charts(runs),
    radius_tables=words.radius_tables(runs),
    training_charts=charts.training_charts(runs),
    confusion_charts=[view["confusion"] for view in evaluations if view["confusion"]],
    config=words.fact_rows([run.config for run in trained]),
    provenance=words.fact_rows([words.facts(run.summary) for run in trained]),
    max_examples=MAX_EXAMPLES,
    example_sets=[
      _example_set(view, len(runs)) for view in evaluations if view["examples"].examples
    ],
    version=metadata.version("robust_opt"),
  )


def _example_set(view: dict[str, Any], num_runs: int) -> dict[str, Any]:
  """For the script of the page."""
  title = f"{view['run']}: {view['title']}" if num_runs > 1 else view["title"]
  return {"title": title, "examples": [one._asdict() for one in view["examples"].examples]}


def _run_view(index: int, one: Run, locations: Mapping[str, str]) -> dict[str, Any]:
  """What the page shows of a run."""
  return {
    "run": one,
    "index": index,
    "headline": words.headline(one),
    "measured": words.measured(one),
    "mark": charts.MARKS[index % len(charts.MARKS)],
    "series": index % charts.SERIES,
    "overfitting": words.overfitting(one),
    "picture": examples.data_url(one.picture) if one.picture else None,
    "training_command": words.training_command(one) if one.results else None,
    "first_evaluation_command": words.first_evaluation_command(one) if one.results else None,
    "evaluations": [
      _evaluation_view(f"confusion-{index}-{k}", one, evaluation, locations)
      for k, evaluation in enumerate(one.evaluations)
    ],
  }


def _evaluation_view(
  name: str, one: Run, evaluation: Evaluation, locations: Mapping[str, str]
) -> dict[str, Any]:
  """What the page shows of an evaluation; those of a run share its number of examples."""
  limit = max(1, MAX_EXAMPLES // len(one.evaluations))
  shown = examples.load_examples(one, evaluation, limit, locations)
  title, confusion = words.evaluation_title(evaluation), None
  rates = [Rate(row["standing"], evaluation.robust.total) for row in evaluation.attacks]
  if shown.confusion is not None:
    confusion = charts.confusion_chart(name, f"{one.name}: {title}", shown.confusion)
  return {
    "run": one.name,
    "title": title,
    "evaluation": evaluation,
    "attacks": list(zip(evaluation.attacks, rates, strict=True)),
    "checks": by_importance(evaluation.checks),
    "examples": shown,
    "confusion": confusion,
    "command": words.evaluation_command(one, evaluation),
    "verification": words.verification_command(evaluation),
  }


def main(argv: list[str]) -> None:
  """Writes the page of the flags; arguments without a flag are paths too."""
  values = flags.FLAGS
  path = run(
    [Path(name) for name in (*values.workdir, *argv[1:])],
    Path(values.output) if values.output else None,
    {"data_dir": values.data_dir, "cache_dir": values.cache_dir},
  )
  print(f"The report is {path}")


def define_flags() -> None:
  """Defines the flags; not at import."""
  flags.FLAGS.set_gnu_getopt(True)  # flags may follow the runs: --workdir=A B --output=C
  meaning = "A finished run, or an evaluation; more may follow. The flag may be left out."
  flags.DEFINE_multi_string("workdir", [], meaning)
  flags.DEFINE_string("output", "", "The page, an .html file; default: beside the first.")
  flags.DEFINE_string("data_dir", "", "Directory of prepared data sets; default: the runs' own.")
  flags.DEFINE_string("cache_dir", "", "Directory of cached arrays; default: the runs' own.")
