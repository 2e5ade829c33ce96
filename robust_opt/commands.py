"""Shared parts of commands: flags of networks and studies, errors in one sentence, programs kept.

commands.run_study(Options, PRESETS, run)      # below `if __name__` of a study's module
"""

import contextlib
import dataclasses
import hashlib
import platform
import signal
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from logging import WARNING, LogRecord
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging

from robust_opt.data import datasets
from robust_opt.errors import InputError, RunError
from robust_opt.sets import radii
from robust_opt.studies import archive, sizing
from robust_opt.training import sharding

# The flags of experiments.target.load.
SOURCE = (
  *("workdir", "model", "data", "image_size", "draws"),
  *("data_dir", "cache_dir", "train_files", "checkpoint"),
  *("architecture", "robustbench", "weights", "mean", "std"),
)


def source() -> dict[str, Any]:
  """The values of the flags of `define_source_flags`, for experiments.target.load."""
  return {name: flags.FLAGS[name].value or "" for name in SOURCE}


def define_source_flags() -> None:
  """The flags of the network and the data to evaluate."""
  flags.DEFINE_string("workdir", "", "Of a finished run of robust_opt.main; or --model and --data.")
  flags.DEFINE_string("model", "", "module:function, x [B, ...] in [0, 1] -> logits [B, C].")
  words = (
    "An .npz file with x [N, ...] in [0, 1] (or integers to 255) and y [N], "
    "FILE.npz:images,labels, IMAGES.npy,LABELS.npy, a folder of class folders of images, or a data "
    "set's name, such as cifar100, for its test set. With --workdir: instead of the run's test set."
  )
  flags.DEFINE_string("data", "", words)
  words = "Of a folder: height and width to resize to. 0: the images have one size."
  flags.DEFINE_integer("image_size", 0, words, lower_bound=0)
  words = "If --model is random, (x, key) -> logits: the number of draws to average. 0: it is not."
  flags.DEFINE_integer("draws", 0, words, lower_bound=0)
  words = "Of --weights, with --data: such as PreActResNet18, or JSON with name and attributes."
  flags.DEFINE_string("architecture", "", words)
  words = "Of --weights: the ID of a network of RobustBench, or DATASET/THREAT_MODEL/ID."
  flags.DEFINE_string("robustbench", "", words)
  words = "A file of the network's weights: .safetensors, or PyTorch's .pth, .pt, .model or .bin."
  flags.DEFINE_string("weights", "", words)
  words = "Of pixels in [0, 1], with --weights: the mean of every channel, as 0.5,0.5,0.5."
  flags.DEFINE_string("mean", "", words)
  flags.DEFINE_string("std", "", words.replace("mean", "standard deviation"))
  flags.DEFINE_string("data_dir", "", "Where prepared data sets are; empty: as in the run.")
  flags.DEFINE_string("cache_dir", "", "Where arrays are cached; empty: as in the run.")
  words = "The constructed data set that a run was trained on; empty: as in the run."
  flags.DEFINE_string("train_files", "", words)
  words = "Which checkpoint of the run; not given: the one that its config names."
  flags.DEFINE_enum("checkpoint", None, ["last", "best"], words)


def define_process_flags() -> None:
  """The flags of a command that runs in several processes, for `connect`."""
  words = "host:port of process 0, or 'auto' to read the cluster's environment."
  flags.DEFINE_string("coordinator", "", words)
  flags.DEFINE_integer("num_processes", None, "With --coordinator=host:port.")
  flags.DEFINE_integer("process_id", None, "With --coordinator=host:port, from 0.")


def connect(shared: bool, flag: str = "--workdir") -> None:
  """Joins the processes of the flags of `define_process_flags`; as `sharding.connect`."""
  values = flags.FLAGS
  sharding.connect(
    *(values.coordinator, values.num_processes, values.process_id), shared=shared, flag=flag
  )


class _NumberParser(flags.FloatParser):
  """Of flags whose value is a number or a fraction."""

  def convert(self, argument: Any) -> float:
    return radii.number(argument)


def define_number(
  name: str, help: str, default: float | None = None, low: float | None = None
) -> None:
  """A flag of a number >= low, which may be typed as a fraction: --radius=8/255."""
  flags.DEFINE(_NumberParser(low), name, default, help, serializer=flags.ArgumentSerializer())


def run_study(
  options: type[Any], presets: Mapping[tuple[str, str], Any], run: Callable[[Any], Any]
) -> None:
  """The command of a study; call it only if its module is the program.

  Args:
    options: studies.options.Options or a subclass; its fields become flags.
    presets: (preset, data set) -> the preset, a dataclass whose fields become flags too.
    run: the study.
  """
  preset_fields = dataclasses.fields(next(iter(presets.values())))
  of_options = dataclasses.fields(typing.get_origin(options) or options)
  own = [field for field in of_options if "help" in field.metadata]
  datasets = sorted({dataset for _, dataset in presets})
  flags.DEFINE_enum("dataset", "digits", datasets, "What the networks learn.")
  flags.DEFINE_enum("preset", "quick", ["quick", "paper"], "Minutes, or hours.")
  flags.DEFINE_string("workdir", None, "New, or that of the same study.", required=True)
  flags.DEFINE_string("data_dir", "", "Where prepared data sets are; empty: TFDS' default.")
  flags.DEFINE_string("cache_dir", "", "Where arrays are cached; empty: the user's.")
  flags.DEFINE_string("archive", "", "A .zip file to write results and JSON values to.")
  if any(field.name == "epochs" for field in preset_fields):
    words = "Wall seconds: as many epochs as fit, from dry runs, --epochs or the preset's at most."
    define_number("budget_s", words, low=0.0)
  for field in preset_fields:
    _define(field, None)
  for field in own:
    _define(field, field.default)

  def main(argv: list[str]) -> None:
    refuse_positional(argv)
    given: dict[str, Any] = {name: flags.FLAGS[name].value for name in flags.FLAGS}
    preset = presets.get((given["preset"], given["dataset"]))
    if preset is None:
      raise InputError(f"There is no --preset={given['preset']} for --dataset={given['dataset']}.")
    changed = {f.name: given[f.name] for f in preset_fields if given[f.name] is not None}
    values = {name: given[name] for name in ("dataset", "data_dir", "cache_dir")}
    for field in own:
      value = given[field.name]
      values[field.name] = tuple(value) if isinstance(value, list) else value
    preset = dataclasses.replace(preset, **changed)
    study = options(workdir=Path(given["workdir"]), preset=preset, **values)
    run_sized(study, run, given.get("budget_s"), given["archive"])

  app.run(with_sentences(main), flags_parser=parse)


def run_sized(
  options: Any, run: Callable[[Any], Any], budget_s: float | None = None, archive_file: str = ""
) -> None:
  """Runs a study, sized for the budget if there is one, and archives it if there is a file."""
  if archive_file:
    archive.check_path(Path(archive_file))
  if budget_s is not None:
    options = sizing.sized(options, run, budget_s)
  run(options)
  if not archive_file:
    return
  written = archive.write(options.workdir, Path(archive_file))
  print(f"{len(written.names)} files of it are in {archive_file}")
  if written.left_out:
    print(f"Larger than {archive.LARGEST} bytes and left out: {', '.join(written.left_out)}")


def run_to_folder(run: Callable[[Path], Any]) -> None:
  """The command of a computation whose only flag is --output, the folder of its results."""
  flags.DEFINE_string("output", None, "Folder for the tables and figures.", required=True)

  def main(argv: list[str]) -> None:
    refuse_positional(argv)
    run(Path(flags.FLAGS.output))

  app.run(with_sentences(main), flags_parser=parse)


def _define(field: "dataclasses.Field[Any]", default: Any) -> None:
  """The flag of a field, by its annotation and the help and bounds in its metadata."""
  # X | None counts as X.
  union = isinstance(field.type, types.UnionType)
  kind: Any = typing.get_args(field.type)[0] if union else field.type
  kind = typing.get_origin(kind) or kind
  words, low, choices = (field.metadata[name] for name in ("help", "low", "choices"))
  if choices:
    flags.DEFINE_enum(field.name, default, choices, words)
  elif kind is bool:
    flags.DEFINE_boolean(field.name, default, words)
  elif kind is int:
    flags.DEFINE_integer(field.name, default, words, lower_bound=low)
  elif kind is float:
    define_number(field.name, words, default, low)
  elif kind is Sequence:  # one flag, separated by commas
    flags.DEFINE_list(field.name, list(default), words)
  else:  # a tuple: values may hold commas, and the flag is repeated
    flags.DEFINE_multi_string(field.name, list(default), words)


def refuse_positional(argv: Sequence[str]) -> None:
  """InputError for an argument that is not a flag."""
  if len(argv) > 1:
    raise InputError(f"Every argument must be a --flag=value, but one was {argv[1]!r}.")


def with_sentences(
  main: Callable[[list[str]], None],
  is_shown: Callable[[LogRecord], bool] = lambda record: record.levelno >= WARNING,
) -> Callable[[list[str]], None]:
  """`main`, where a RunError, OSError or Ctrl-C ends with one sentence and an exit code.

  Log records are filtered by `is_shown`: Orbax and JAX inform of files and missing backends.
  """

  def wrapped(argv: list[str]) -> None:
    logging.get_absl_handler().addFilter(is_shown)
    keep_programs()
    try:
      main(argv)
    except (RunError, OSError) as error:
      print(f"robust_opt: {error}", file=sys.stderr)
      sys.exit(error.exit_code if isinstance(error, RunError) else 1)
    except KeyboardInterrupt:
      print("robust_opt: Ctrl-C: stopped; the same command goes on.", file=sys.stderr)
      sys.exit(128 + signal.SIGINT)

  return wrapped


def keep_programs() -> None:
  """Makes JAX keep compiled programs on disk, so that the next run of a command need not wait.

  They lie beside the cached data, apart for every kind of CPU, since another one may not have the
  instructions that they use. JAX_COMPILATION_CACHE_DIR names another folder, and
  JAX_ENABLE_COMPILATION_CACHE=false turns it off. The folder is printed when it is made.
  """
  if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
    return
  folder = datasets.cache_root() / "programs" / _cpu()
  if not folder.exists():
    try:
      folder.mkdir(parents=True)
    except OSError:  # a home that cannot be written is no reason to stop
      return
    print(f"Compiled programs are kept in {folder}", file=sys.stderr)
  jax.config.update("jax_compilation_cache_dir", str(folder))


def _cpu() -> str:
  """A short name of the kind of CPU."""
  described = [platform.machine(), platform.processor()]
  with contextlib.suppress(OSError):  # of Linux
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    described += sorted({line for line in lines if line.startswith(("flags", "Features"))})
  return hashlib.sha256("\n".join(described).encode()).hexdigest()[:12]


def parse(argv: Sequence[str]) -> list[str]:
  """Parses absl's flags; an unknown flag or a bad value ends with one sentence."""
  # absl's help lists only flags of the program's own file.
  for module, defined in flags.FLAGS.flags_by_module_dict().items():
    for flag in defined if module.startswith("robust_opt.") else ():
      flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
  try:
    return flags.FLAGS(list(argv))
  except flags.Error as error:
    print(f"robust_opt: {str(error).splitlines()[0]}", file=sys.stderr)
    sys.exit(InputError.exit_code)
  except SystemExit:  # absl has printed the requested help, which it treats as a failure
    sys.exit(0)
