"""A user's network as the argument of a compiled program, and checks that it can be measured.

  net = network.as_argument(logits_fn, x)          # jax.jit(program)(net, x): never stale weights
  reference = network.checked_logits(logits_fn, net, x)
  ...                                              # attack `net`
  network.check_unchanged(logits_fn, x, reference)

`jax.jit` compiles a function once per function object. Weights that the function closes over become
constants, and replacing them later has no effect on the compiled program. `as_argument` therefore
identifies a network by what it computes now: its arrays are arguments, and everything else,
constants included, is part of the compilation key.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from robust_opt.errors import InputError
from robust_opt.types import Array, LogitsFn, PyTree

# The number of images that a network is checked on.
NUM_CHECKED = 16
# Reordered float32 sums differ by about 1e-6 of the largest logit; noise, other weights and the
# statistics of another batch make differences of 1e-2 and more.
ROUNDING = 1e-4
# Allowed difference of programs in fewer bits than float32, in units in the last place: rounding of
# intermediate results depends on fusion and on the batch size.
ULPS = 8
# Logits are compared down to this far below the largest of the example: masked classes have -1e9.
RANGE = 50.0

RAND_HINT = (
  "Put it into evaluation mode (dropout off, running statistics, model.eval() in NNX). If the "
  "noise is the defense, write it as a function of (x, key), wrap it in ro.Randomized and attack "
  'it with version="rand" (--version=rand --draws=20).'
)


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["logits_fn", "key"],
  meta_fields=["num_draws"],
)
@dataclasses.dataclass(frozen=True)
class Randomized:
  """The mean probabilities of a random network, as log-probabilities.

    net(x)       the classifier that is evaluated: the mean over fixed draws
    net(x, key)  the mean over the draws of another key: attacks use a new key at each step

  Expectation over transformation (Athalye et al. 2018, arXiv 1707.07397), as in the "rand" version
  of AutoAttack. The examples of a batch share their draws, and each is passed to logits_fn as a
  batch of one, so that the output for an image does not depend on the others.

  Attributes:
    logits_fn: (x [B, *S], key) -> logits [B, C]; a `Partial` or a module passes its weights as
      arguments.
    key: of the fixed draws.
    num_draws: the number of averaged draws; the default is that of AutoAttack.
  """

  logits_fn: Callable[[Array, Array], Array]
  key: Array
  num_draws: int = 20

  def __call__(self, x: Array, key: Array | None = None) -> Array:
    """Log-probabilities [B, C]."""
    keys = jax.random.split(self.key if key is None else key, self.num_draws)

    def draw(key: Array) -> Array:
      # Each example as a batch of one: its noise must not depend on its index in the batch.
      logits = jax.vmap(lambda one: self.logits_fn(one[None], key)[0])(x)
      return jax.nn.log_softmax(logits)

    logs = jax.lax.map(draw, keys)
    return jax.nn.logsumexp(logs, axis=0) - jnp.log(self.num_draws).astype(logs.dtype)


@dataclasses.dataclass(frozen=True)
class _Structure:
  """Everything about a network except its arrays: static, compared by value.

  Attributes:
    treedef: of the network as a pytree; of a plain function, that of a leaf.
    static: the leaves that are not arrays, None in place of each array.
    fingerprint: of the traced computation and its constants.
    low_precision: the least precise floating-point dtype that it computes in.
  """

  treedef: Any
  static: tuple[Any, ...]
  fingerprint: str
  low_precision: np.dtype

  def __call__(self, arrays: list[Array], *args: Array) -> Array:
    rest = iter(arrays)
    leaves = [next(rest) if leaf is None else leaf for leaf in self.static]
    leaves = [leaf.leaf if isinstance(leaf, _ById) else leaf for leaf in leaves]
    return jax.tree.unflatten(self.treedef, leaves)(*args)


def as_argument(logits_fn: LogitsFn, x: np.ndarray | Array) -> jax.tree_util.Partial:
  """The network as a pytree that jit takes as an argument.

  The arrays of a pytree (a `Partial`, a module of NNX or Equinox, a `Randomized`) are leaves, so
  that networks of one architecture share their compilations. A plain function is traced here, once;
  it shares compilations with earlier calls only if neither its code nor its constants have changed.

  Args:
    logits_fn: x [B, *S] -> logits [B, C].
    x: [N, *S], examples, of which only shape and dtype are used.
  """
  if isinstance(logits_fn, jax.tree_util.Partial) and isinstance(logits_fn.func, _Structure):
    return logits_fn
  leaves, treedef = jax.tree.flatten(logits_fn)
  arrays = [leaf for leaf in leaves if _is_array(leaf)]
  static = tuple(None if _is_array(leaf) else _hashable(leaf) for leaf in leaves)
  structure = _Structure(treedef, static, "", np.dtype(np.float32))
  jaxpr = traced(structure, arrays, jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype))
  sha = hashlib.sha256((code(jaxpr) + callbacks(jaxpr)).encode())
  for constant in constants(jaxpr):
    sha.update(np.ascontiguousarray(constant).tobytes())
  structure = dataclasses.replace(
    structure, fingerprint=sha.hexdigest(), low_precision=_low_precision(jaxpr)
  )
  return jax.tree_util.Partial(structure, arrays)


def traced(
  function: Callable[[PyTree, Array], Array], arrays: PyTree, x: Array | jax.ShapeDtypeStruct
) -> core.ClosedJaxpr:
  """The jaxpr of (arrays, x [B, *S]) -> logits [B, C] and of its gradient in x, if there is one."""

  # New functions in every call, since JAX caches traces by function.
  def with_gradient(arrays: PyTree, x: Array) -> tuple[Array, Array]:
    logits, pullback = jax.vjp(lambda x: function(arrays, x), x)
    return logits, pullback(jnp.ones_like(logits))[0]

  try:
    return jax.make_jaxpr(with_gradient)(arrays, x)
  except Exception:  # whatever the user's function raises, for example because of a callback
    return jax.make_jaxpr(lambda arrays, x: function(arrays, x))(arrays, x)


def code(jaxpr: core.ClosedJaxpr) -> str:
  """The text of a traced computation, without the addresses of objects."""
  return re.sub("0x[0-9a-fA-F]+", "", str(jaxpr))


def callbacks(jaxpr: core.ClosedJaxpr) -> str:
  """The Python functions that a traced computation calls, with their addresses."""
  equations = (equation for each in _closed_jaxprs(jaxpr) for equation in each.jaxpr.eqns)
  called = (e.params.get("callback") for e in equations if "callback" in str(e.primitive))
  return "".join(map(repr, called))


def constants(jaxpr: core.ClosedJaxpr) -> Iterator[Array | np.ndarray]:
  """The arrays within a traced computation, in order; keys as their data."""
  for each in _closed_jaxprs(jaxpr):
    inputs = (atom for equation in each.jaxpr.eqns for atom in equation.invars)
    literals = (atom.val for atom in inputs if isinstance(atom, core.Literal))
    for array in (*each.consts, *literals):
      is_key = jnp.issubdtype(jnp.result_type(array), jax.dtypes.prng_key)
      yield jax.random.key_data(array) if is_key else array


def checked_logits(logits_fn: LogitsFn, net: LogitsFn, x: np.ndarray) -> np.ndarray:
  """The logits of the first images, [min(N, 16), C], if the network is a pure function of them.

  `net` is logits_fn after `as_argument`; x is [N, *S].

  Raises:
    InputError: two calls of logits_fn give different logits, or the logits of the compiled network
      differ from those of logits_fn.
  """
  reference = _plain(logits_fn, x)
  same, difference = compared(reference, _plain(logits_fn, x))
  if not same:
    raise InputError(f"The network is random: between two calls {difference}. {RAND_HINT}")
  check_compiled(net, x, reference)
  return reference


def check_compiled(net: LogitsFn, x: np.ndarray, reference: np.ndarray) -> None:
  """Raises an InputError if the logits of `as_argument`'s net differ from those of plain calls.

  The reference [n, C], from `checked_logits`, is that of the first n of the images x [N, *S].
  """
  with jax.default_matmul_precision("highest"):
    logits = np.asarray(_compiled_logits(net, jnp.asarray(x[: len(reference)])))
  precision = getattr(getattr(net, "func", None), "low_precision", logits.dtype)
  same, difference = compared(reference, logits, precision)
  if not same:
    raise InputError(
      f"The network is not a pure function of the images: between a plain and a compiled call "
      f"{difference}, so that compiled attacks would attack another network. jit freezes noise "
      f"that is drawn in Python, state outside of the arguments, and the weights that a jitted "
      f"function closed over at its first call: pass them as arguments. {RAND_HINT}"
    )


def check_unchanged(logits_fn: LogitsFn, x: np.ndarray, reference: np.ndarray) -> None:
  """Raises an InputError if the network no longer gives the logits of `checked_logits`."""
  same, difference = compared(reference, _plain(logits_fn, x))
  if not same:
    raise InputError(
      f"The network has changed during its evaluation: between start and end {difference}. "
      f"Evaluate a copy of weights that are still being trained."
    )


def compared(a: np.ndarray, b: np.ndarray, precision: Any = np.float32) -> tuple[bool, str]:
  """Whether two arrays of logits [N, C] agree up to rounding, and how they differ.

  A constant added to all logits of an example is ignored, and logits more than 50 below the largest
  of their example count as 50 below it.

  Args:
    a, b: logits of any floating-point dtype.
    precision: the least precise dtype that they were computed in.
  """
  types = (a.dtype, b.dtype, np.dtype(precision))
  eps = max(float(jnp.finfo(dtype).eps) for dtype in types)
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  below_a, below_b = (np.maximum(z - np.max(z, axis=1, keepdims=True), -RANGE) for z in (a, b))
  size = np.max(np.abs(a), where=below_a > -RANGE, initial=0.0)
  allowed = max(ROUNDING, ULPS * eps) * np.max(np.abs(below_a)) + ULPS * eps * size
  difference = np.max(np.abs(below_a - below_b))
  changed = int(np.sum(np.argmax(a, axis=1) != np.argmax(b, axis=1)))
  same = bool(difference <= allowed)  # False for NaN
  return same, (
    f"{changed} of {len(a)} predictions change, and logits of up to {size:.4g} by up to "
    f"{difference:.2g}"
  )


def check_differentiable(logits_fn: LogitsFn, x: np.ndarray) -> None:
  """Raises an InputError if JAX cannot trace the gradient of the logits in x."""
  try:
    example = jax.ShapeDtypeStruct(x.shape, x.dtype)
    jax.eval_shape(jax.grad(lambda x: jnp.sum(logits_fn(x))), example)
  except Exception as error:
    reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    raise InputError(
      f"The network can be called, but JAX cannot trace its gradient ({reason}). Write it with "
      f"jax.numpy instead of NumPy, wrap a PyTorch module as recipes/torch_bridge.py does, and put "
      f"an NNX module into evaluation mode by model.eval()."
    ) from error


@jax.jit
def _compiled_logits(net: LogitsFn, x: Array) -> Array:
  return net(x)


def _plain(logits_fn: LogitsFn, x: np.ndarray) -> np.ndarray:
  """The logits of the first images without any jit, including the caller's own."""
  images = jnp.asarray(x[:NUM_CHECKED])
  with jax.default_matmul_precision("highest"):
    try:
      with jax.disable_jit():
        return np.asarray(logits_fn(images))
    except Exception:  # some primitives exist only under jit
      return np.asarray(logits_fn(images))


def _low_precision(jaxpr: core.ClosedJaxpr) -> np.dtype:
  """The least precise floating-point dtype of any intermediate value."""
  types = {
    var.aval.dtype
    for each in _closed_jaxprs(jaxpr)
    for equation in each.jaxpr.eqns
    for var in equation.outvars
    if jnp.issubdtype(getattr(var.aval, "dtype", np.int32), jnp.floating)
  }
  return max(types, key=lambda dtype: float(jnp.finfo(dtype).eps), default=np.dtype(np.float32))


def _closed_jaxprs(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> Iterator[core.ClosedJaxpr]:
  """The computation and all that it calls, such as functions under an inner jit."""
  if not isinstance(jaxpr, core.ClosedJaxpr):  # one class from jax 0.11 on
    jaxpr = core.ClosedJaxpr(jaxpr, ())
  yield jaxpr
  kinds = (core.ClosedJaxpr, core.Jaxpr)
  for equation in jaxpr.jaxpr.eqns:
    for value in jax.tree.leaves(equation.params, is_leaf=lambda leaf: isinstance(leaf, kinds)):
      if isinstance(value, kinds):
        yield from _closed_jaxprs(value)


def _is_array(leaf: PyTree) -> bool:
  return isinstance(leaf, (jax.Array, np.ndarray))


@dataclasses.dataclass(frozen=True, eq=False)
class _ById:
  """A leaf without a hash, equal only to itself."""

  leaf: Any


def _hashable(leaf: Any) -> Any:
  try:
    hash(leaf)
  except TypeError:
    return _ById(leaf)
  return leaf
