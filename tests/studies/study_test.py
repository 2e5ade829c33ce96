"""A study's directory: what it keeps, what it says of its progress and of how it came about."""

import json
import shlex

import pytest

from robust_opt import tables
from robust_opt.errors import InputError
from robust_opt.studies.study import REVISION, Study, command


@pytest.mark.parametrize(
  ("given", "typed"),
  [
    (["--preset=quick", "--workdir=a"], "--preset=quick"),
    (["--workdir", "a", "--preset", "quick"], "--preset quick"),
    (["-data_dir", "a", "--cache_dir=b", "--known", "c,d", "--seeds=2"], "--seeds=2"),
    (["--seeds=2", "--workdir"], "--seeds=2"),
    (["--override=evaluation.sweep=(0.0, 1.0)"], "'--override=evaluation.sweep=(0.0, 1.0)'"),
  ],
)
def test_a_command_can_be_typed_and_says_no_places(given, typed):
  assert command("robust_opt.papers.family", given) == f"python -m robust_opt.papers.family {typed}"
  kept = shlex.split(typed)
  assert shlex.split(command("m", kept))[3:] == kept


def test_the_time_left_is_estimated_when_enough_is_done(tmp_path, capsys):
  study = Study(tmp_path, {"a": 1}, work=100.0)
  for work, words in ((2.0, "compiled"), (2.0, "next"), (2.0, "enough")):
    study.progress(work, words)
  study.close()
  first, second, third = capsys.readouterr().out.splitlines()
  assert "left" not in first + second
  assert "left" in third
  assert third.startswith("[  6.0 %] enough")


def test_work_of_an_earlier_run_gives_no_estimate(tmp_path, capsys):
  study = Study(tmp_path, {"a": 1}, work=100.0)
  study.progress(50.0, "done before", skipped=True)
  study.progress(2.0, "fresh")
  study.close()
  assert "left" not in capsys.readouterr().out


def test_results_and_how_they_were_made(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr("sys.argv", ["it", "--seeds=2", f"--workdir={tmp_path}"])
  with Study(tmp_path, {"a": 1}, work=1.0) as study, study.timed("part"):
    pass
  manifest = study.manifest("robust_opt.papers.family", {"seeds": 2})
  assert manifest["command"] == "python -m robust_opt.papers.family --seeds=2"
  assert manifest["numbers"] == {"seeds": 2}
  assert manifest["wall_seconds"].keys() == {"part"}
  assert str(tmp_path) not in json.dumps(manifest)
  table = tables.Table("Nets", ["net"], [{"net": "a"}])
  capsys.readouterr()
  study.publish({"first": table, "second": table, "counts": {"n": 1}}, manifest, shown=["first"])
  names = {path.name for path in (tmp_path / "results").iterdir()}
  assert names == {
    *(f"{name}.{suffix}" for name in ("first", "second") for suffix in ("md", "csv", "json")),
    "counts.json",
    "manifest.json",
  }
  assert capsys.readouterr().out.count("**Nets**") == 1


def test_a_value_is_computed_once_for_what_it_is_made_from(tmp_path):
  study = Study(tmp_path / "study", {"a": 1}, work=1.0)
  path, made = tmp_path / "study" / "value.json", []

  def compute():
    made.append(len(made))
    return made[-1]

  given = {"path": path, "compute": compute, "work": 0.0}
  assert [study.once("v", made_from=of, **given) for of in ("x", "x", "y")] == [0, 0, 1]
  path.write_text("{")
  assert study.once("v", made_from="y", **given) == 2
  study.close()


def test_another_study_is_refused(tmp_path):
  Study(tmp_path / "study", {"seeds": 1}, work=1.0).close()
  with pytest.raises(InputError, match="holds another study"):
    Study(tmp_path / "study", {"seeds": 2}, work=1.0)
  for content in ("{", "[]"):
    (tmp_path / "study" / "study.json").write_text(content)
    with pytest.raises(InputError, match=r"--output=.*study\.json cannot be read"):
      Study(tmp_path / "study", {"seeds": 1}, work=1.0, flag="--output")


def test_a_directory_is_claimed_again_after_a_kill_while_it_was(tmp_path):
  (tmp_path / ".study.json.1a.part").write_text("{")
  Study(tmp_path, {"seeds": 1}, work=1.0).close()
  assert json.loads((tmp_path / "study.json").read_text()) == {"seeds": 1, "revision": REVISION}
  (tmp_path / "foreign").mkdir()
  (tmp_path / "foreign" / "a.txt").write_text("a")
  with pytest.raises(InputError, match="it holds something else"):
    Study(tmp_path / "foreign", {"seeds": 1}, work=1.0)
