"""What ends a run with one sentence instead of a traceback; main prints it and exits with the code.

The sentence names what was given and what is allowed, or what happened and what was kept.
"""


class RunError(Exception):
  """Ends a run; the message is one sentence for a terminal."""

  exit_code = 1


class InputError(RunError, ValueError):
  """Input that the user can mend."""

  exit_code = 2


class WriteError(RunError, OSError):
  """A file could not be written: a full disk, say."""


class DivergedError(RunError, ArithmeticError):
  """The loss is no longer finite."""


class PreemptedError(RunError):
  """SIGTERM came and the state was saved; 128 + 15, as the shell reports that signal."""

  exit_code = 143
