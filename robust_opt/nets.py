"""A user's network as the argument of a compiled program, and checks that it can be measured.

  net = nets.as_argument(logits_fn, x)             # jax.jit(program)(net, x): never stale weights
  reference = nets.checked_logits(logits_fn, net, x)
  ...                                              # attack `net`
  nets.check_unchanged(logits_fn, x, reference)

`jax.jit` compiles a function once for each function object. Weights that the function closes over
become constants, and replacing them later has no effect on the compiled program. `as_argument`
therefore identifies a network by what it computes now: its arrays are arguments, and everything
else, constants included, is part of the compilation key.
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

# Images that the checks of a network call it on.
NUM_CHECKED = 16
# Two float32 evaluations in different orders of summation differ by some 1e-6 of the largest
# logit; noise or other weights by 1e-2 and more.
ROUNDING = 1e-4
# In lower precision: units in the last place by which fused and unfused programs may differ.
_ULPS = 16

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
  """The mean probabilities of a network that answers at random, as log-probabilities.

    net(x)       the classifier that is measured: the mean over fixed draws
    net(x, key)  the mean over the draws of another key: an attack takes a fresh key at each step

  Expectation over transformation (Athalye et al. 2018, arXiv 1707.07397), as in the "rand" version
  of AutoAttack. A draw is shared by the examples of a batch, each of which is a batch of one to
  logits_fn, so that the answer for an image does not depend on its neighbors.

  Attributes:
    logits_fn: (x [B, *S], key) -> logits [B, C]; a `Partial` or a module passes its weights as
      arguments.
    key: of the fixed draws.
    num_draws: how many draws are averaged, by default as many as AutoAttack takes.
  """

  logits_fn: Callable[[Array, Array], Array]
  key: Array
  num_draws: int = 20

  def __call__(self, x: Array, key: Array | None = None) -> Array:
    """Log-probabilities [B, C]."""
    keys = jax.random.split(self.key if key is None else key, self.num_draws)

    def draw(key: Array) -> Array:
      # Each example as a batch of its own: its noise must not depend on its place in the batch.
      logits = jax.vmap(lambda one: self.logits_fn(one[None], key)[0])(x)
      return jax.nn.log_softmax(logits)

    logs = jax.lax.map(draw, keys)
    return jax.nn.logsumexp(logs, axis=0) - jnp.log(self.num_draws).astype(logs.dtype)


@dataclasses.dataclass(frozen=True)
class _Structure:
  """Everything about a network but its arrays: static, compared by value.

  Attributes:
    treedef: of the network as a pytree; of a plain function, that of a leaf.
    static: leaves that are no arrays, None in the place of each array.
    fingerprint: of the traced computation and its constants.
    low_precision: the least precise floating point type that it computes in.
  """

  treedef: Any
  static: tuple[Any, ...]
  fingerprint: str
  low_precision: np.dtype

  def __call__(self, arrays: list[Array], *args: Array) -> Array:
    rest = iter(arrays)
    leaves = [next(rest) if leaf is None else leaf for leaf in self.static]
    return jax.tree.unflatten(self.treedef, leaves)(*args)


def as_argument(logits_fn: LogitsFn, x: np.ndarray | Array) -> jax.tree_util.Partial:
  """The network as a pytree that jit takes as an argument.

  Arrays of a pytree (a `Partial`, a module of NNX or Equinox, a `Randomized`) are leaves, so that
  networks of one architecture share their compilations. A plain function is traced here, once; it
  shares compilations with earlier calls only if neither its code nor its constants have changed.

  Args:
    logits_fn: x [B, *S] -> logits [B, C].
    x: [N, *S], examples; only shape and dtype count.
  """
  if isinstance(logits_fn, jax.tree_util.Partial) and isinstance(logits_fn.func, _Structure):
    return logits_fn
  leaves, treedef = jax.tree.flatten(logits_fn)
  arrays = [leaf for leaf in leaves if _is_array(leaf)]
  static = tuple(None if _is_array(leaf) else _hashable(leaf) for leaf in leaves)
  structure = _Structure(treedef, static, "", np.dtype(np.float32))
  jaxpr = traced(structure, arrays, jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype))
  sha = hashlib.sha256(code(jaxpr).encode())
  for constant in constants(jaxpr):
    sha.update(np.ascontiguousarray(constant).tobytes())
  structure = dataclasses.replace(
    structure, fingerprint=sha.hexdigest(), low_precision=_low_precision(jaxpr)
  )
  return jax.tree_util.Partial(structure, arrays)


def traced(
  function: Callable[[PyTree, Array], Array], arrays: PyTree, x: Array | jax.ShapeDtypeStruct
) -> core.ClosedJaxpr:
  """The jaxpr of (arrays, x [B, *S]) -> logits [B, C] and of its gradient in x, if it has one."""

  # New functions in every call: JAX caches traces by function.
  def with_gradient(arrays: PyTree, x: Array) -> tuple[Array, Array]:
    logits, pullback = jax.vjp(lambda x: function(arrays, x), x)
    return logits, pullback(jnp.ones_like(logits))[0]

  try:
    return jax.make_jaxpr(with_gradient)(arrays, x)
  except Exception:  # a callback, say; whatever the user's function raises
    return jax.make_jaxpr(lambda arrays, x: function(arrays, x))(arrays, x)


def code(jaxpr: core.ClosedJaxpr) -> str:
  """The text of a traced computation, without the addresses of objects."""
  return re.sub("0x[0-9a-fA-F]+", "", str(jaxpr))


def constants(jaxpr: core.ClosedJaxpr) -> Iterator[Array | np.ndarray]:
  """Every array within a traced computation, in order; keys as their data."""
  for each in _closed_jaxprs(jaxpr):
    inputs = (atom for equation in each.jaxpr.eqns for atom in equation.invars)
    literals = (atom.val for atom in inputs if isinstance(atom, core.Literal))
    for array in (*each.consts, *literals):
      is_key = jnp.issubdtype(jnp.result_type(array), jax.dtypes.prng_key)
      yield jax.random.key_data(array) if is_key else array


def checked_logits(logits_fn: LogitsFn, net: LogitsFn, x: np.ndarray) -> np.ndarray:
  """The logits of the first images, [min(N, 16), C], if the network is a function of them alone.

  Args:
    logits_fn: as the caller gave it.
    net: from `as_argument`.
    x: [N, *S].

  Raises:
    InputError: two calls of logits_fn give different logits, or the compiled network gives others
      than logits_fn itself.
  """
  reference = _eager(logits_fn, x)
  if difference := _difference(reference, _eager(logits_fn, x), np.dtype(np.float32)):
    raise InputError(f"The network answers at random: {difference} between two calls. {RAND_HINT}")
  precision = getattr(getattr(net, "func", None), "low_precision", np.dtype(np.float32))
  if difference := _difference(reference, _compiled(net, jnp.asarray(x[:NUM_CHECKED])), precision):
    raise InputError(
      f"The network is not a pure function of the images: {difference} between a plain and a "
      f"compiled call, so that compiled attacks would measure another network. Noise drawn in "
      f"Python is frozen by jit, and so is state that is read outside of the arguments. {RAND_HINT}"
    )
  return reference


def check_unchanged(logits_fn: LogitsFn, x: np.ndarray, reference: np.ndarray) -> None:
  """Raises an InputError if the network no longer gives the logits of `checked_logits`."""
  if difference := _difference(reference, _eager(logits_fn, x), np.dtype(np.float32)):
    raise InputError(
      f"The network has changed during its evaluation: {difference} between its beginning and its "
      f"end. Evaluate a copy of weights that are still trained."
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


def _compiled(net: LogitsFn, x: Array) -> np.ndarray:
  with jax.default_matmul_precision("highest"):
    return np.asarray(_compiled_logits(net, x), np.float64)


def _eager(logits_fn: LogitsFn, x: np.ndarray) -> np.ndarray:
  with jax.default_matmul_precision("highest"):
    return np.asarray(logits_fn(jnp.asarray(x[:NUM_CHECKED])), np.float64)


def _difference(a: np.ndarray, b: np.ndarray, precision: np.dtype) -> str:
  """How two arrays of logits [B, C] differ, in words; empty if by rounding alone."""
  tolerance = max(ROUNDING, _ULPS * float(jnp.finfo(precision).eps))
  largest, worst = np.max(np.abs(a)), np.max(np.abs(a - b))
  if worst <= tolerance * largest:
    return ""
  changed = int(np.sum(np.argmax(a, axis=1) != np.argmax(b, axis=1)))
  return (
    f"logits of up to {largest:.4g} differ by up to {worst:.2g}, and {changed} of {len(a)} "
    f"predictions change,"
  )


def _low_precision(jaxpr: core.ClosedJaxpr) -> np.dtype:
  """The least precise floating point type of any intermediate value."""
  types = {
    var.aval.dtype
    for each in _closed_jaxprs(jaxpr)
    for equation in each.jaxpr.eqns
    for var in equation.outvars
    if jnp.issubdtype(getattr(var.aval, "dtype", np.int32), jnp.floating)
  }
  return max(types, key=lambda dtype: float(jnp.finfo(dtype).eps), default=np.dtype(np.float32))


def _closed_jaxprs(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> Iterator[core.ClosedJaxpr]:
  """The computation and all that it calls, such as the functions under an inner jit."""
  if isinstance(jaxpr, core.Jaxpr):
    jaxpr = core.ClosedJaxpr(jaxpr, ())
  yield jaxpr
  kinds = (core.ClosedJaxpr, core.Jaxpr)
  for equation in jaxpr.jaxpr.eqns:
    for value in jax.tree.leaves(equation.params, is_leaf=lambda leaf: isinstance(leaf, kinds)):
      if isinstance(value, kinds):
        yield from _closed_jaxprs(value)


def _is_array(leaf: PyTree) -> bool:
  return isinstance(leaf, (jax.Array, np.ndarray))


def _hashable(leaf: Any) -> Any:
  """The leaf, or if it has no hash, a function that calls it and is equal only to itself."""
  try:
    hash(leaf)
  except TypeError:
    return functools.partial(leaf)
  return leaf
