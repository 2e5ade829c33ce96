"""What a user can mend: raise InputError with one sentence; main prints it and exits with 2.

The sentence names the option, what was given, and what is allowed.
"""


class InputError(ValueError):
  """Input that the user can mend; the message is one sentence for a terminal."""
