"""Checkpoints that are whole or absent, verified when they are read (Orbax underneath).

  checkpoints = Checkpoints(workdir / "checkpoints", keep=2)
  state = checkpoints.restore(template)       # the newest good one, or None
  checkpoints.save(state, heldout_robust=0.93)

With every checkpoint lies the SHA-256 of its arrays and its accuracy: one that is truncated or has
a flipped bit is set aside with a warning, and the one before it is used.
"""

import errno
import json
import os
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from robust_opt.arrays import digest
from robust_opt.errors import RunError
from robust_opt.files import name_in_errors
from robust_opt.training import TrainState

# The metric of a checkpoint that was saved between two evaluations: it is never the best.
_UNKNOWN = -1.0
# The size of a checkpoint without its arrays: some twenty small files.
_OVERHEAD_BYTES = 2**18


class Checkpoints:
  """The checkpoints of one run, by step. In several processes every one calls every method."""

  def __init__(self, directory: Path, keep: int, read_only: bool = False) -> None:
    """Opens the folder of a run.

    Args:
      directory: its checkpoints.
      keep: how many of the newest to keep, in addition to the best by held-out robust accuracy.
      read_only: for who never saves: leaves the unfinished save of another process.
    """
    self._directory, self._damaged = directory.absolute(), False
    kept = [policies.LatestN(keep), policies.BestN(get_metric_fn=_accuracy, n=1)]
    options = ocp.CheckpointManagerOptions(
      best_fn=_accuracy,
      preservation_policy=policies.AnyPreservationPolicy(kept),
      enable_async_checkpointing=False,
      step_format_fixed_length=8,
      create=not read_only,
    )
    with name_in_errors(self._directory):
      if not read_only and jax.process_index() == 0:
        # Of saves that were killed; Orbax' own cleaning runs on a thread that nobody waits for.
        for left_over in self._directory.glob("*.orbax-checkpoint-tmp*"):
          shutil.rmtree(left_over, ignore_errors=True)
      self._set_aside_unreadable()
      self._manager = ocp.CheckpointManager(self._directory, options=options)

  def save(self, state: TrainState, heldout_robust: float | None = None) -> None:
    """Saves the state and its held-out robust accuracy, if measured, unless its step is there.

    Raises:
      RunError: it could not be written (a full disk, say); earlier checkpoints are kept.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    metrics = {"heldout_robust": _UNKNOWN if heldout_robust is None else float(heldout_robust)}
    note = {"sha256": digest(state), **metrics}
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), note=ocp.args.JsonSave(note))
    try:
      # Before the first byte: Orbax is untidy about a disk that fills while it writes.
      needed = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _OVERHEAD_BYTES
      if shutil.disk_usage(self._directory).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      self._manager.save(step, args=args, metrics=metrics)
      self._manager.wait_until_finished()
    except Exception as error:
      self._remove_unfinished(step)
      self._manager.reload()
      raise RunError(
        f"The checkpoint of step {step} could not be written to {self._directory} "
        f"({_reason(error)}); {self.last_words()}."
      ) from error

  def _remove_unfinished(self, step: int) -> None:
    """Orbax gives up at the first array that fails, while others are still being written."""
    for _ in range(5):
      for unfinished in self._directory.glob(f"{step:08d}*"):
        shutil.rmtree(unfinished, ignore_errors=True)
      time.sleep(0.1)

  def restore(self, template: TrainState, which: str = "last") -> TrainState | None:
    """The newest ("last") or the "best" state that is whole, or None if there is none.

    Damaged ones met on the way are moved to `damaged/` and said in the log.

    Args:
      template: a state of the same shapes, types and placement.
      which: "last" or "best".
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), note=ocp.args.JsonRestore())
    newest = self._manager.best_step if which == "best" else self._manager.latest_step
    while (step := newest()) is not None:
      try:
        return self._restore_whole(step, args)
      except Exception as error:  # whatever the damage, the one before may be whole
        self._set_aside(step, _reason(error))
        self._manager.reload()
    if self._damaged:
      logging.warning("No checkpoint in %s is whole: starting from the beginning.", self._directory)
    return None

  def _restore_whole(self, step: int, args: ocp.args.Composite) -> TrainState:
    """The state of a step; raises if anything about it is not as it was saved."""
    with warnings.catch_warnings():
      # Orbax gives up on a damaged array with the reads of the others still to be started.
      warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
      restored = self._manager.restore(step, args=args)
    if digest(restored.state) != restored.note["sha256"]:
      raise ValueError("its arrays do not match their SHA-256")
    if _accuracy(self._manager.metrics(step)) != _accuracy(restored.note):
      raise ValueError("its accuracy is not the one that was noted")
    return restored.state

  def best_step(self) -> int | None:
    """The step of the best by held-out robust accuracy, or None if none was measured."""
    return self._manager.best_step() if self.best_accuracy() > _UNKNOWN else None

  def best_accuracy(self) -> float:
    """The best held-out robust accuracy, or -1 if none was measured."""
    step = self._manager.best_step()
    return _UNKNOWN if step is None else _accuracy(self._manager.metrics(step))

  def close(self) -> None:
    """Closes the folder."""
    self._manager.close()

  def last_words(self) -> str:
    """Says which checkpoint a stopped run goes on from."""
    step = self._manager.latest_step()
    if step is None:
      return "no checkpoint was saved before it"
    return f"the last good checkpoint is that of step {step}"

  def _set_aside_unreadable(self) -> None:
    """Orbax reads every metric when it opens the folder; one that is damaged would stop it."""
    for path in sorted(self._directory.glob("[0-9]" * 8)):
      try:
        float(_accuracy(json.loads((path / "metrics" / "metrics").read_text())))
      except (OSError, ValueError, KeyError, TypeError) as error:
        self._set_aside(int(path.name), _reason(error))

  def _set_aside(self, step: int, reason: str) -> None:
    self._damaged = True
    aside = self._directory.with_name("damaged") / f"{step:08d}"
    logging.warning(
      f"The checkpoint of step {step} is damaged ({reason}): it is moved to {aside} and the one "
      f"before it is used."
    )
    multihost_utils.sync_global_devices(f"found damage in {step}")  # before it goes, all have seen
    if jax.process_index() == 0:
      shutil.rmtree(aside, ignore_errors=True)
      aside.parent.mkdir(parents=True, exist_ok=True)
      shutil.move(self._directory / aside.name, aside)
    multihost_utils.sync_global_devices(f"set aside {step}")


def _accuracy(metrics: Mapping[str, Any]) -> float:
  return metrics["heldout_robust"]


def _reason(error: BaseException) -> str:
  """One line for a sentence; of a failed write the operating system's own word."""
  text, full = str(error), os.strerror(errno.ENOSPC)
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return full if full in text else (text.strip() or type(error).__name__).splitlines()[0][:120]
