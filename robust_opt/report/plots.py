"""The plots of the report as figures of plotly, for both colour schemes.

  plots = radius_plots(runs)                # each Plot(title, alt, figure)
  json.dumps(plots[0].figure)

A run has the same colour, dash and marker in every plot. Colours belong to the scheme, which the
page knows and Python does not: each trace says in `meta` whose it is, and the page paints it.
"""

import html
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
import plotly.offline

from robust_opt.report.data import Rate, Run
from robust_opt.tables import NORM_NAMES

# Told apart by colour-blind readers, on white and on black; dash and marker tell them apart too.
THEMES: dict[str, dict[str, Any]] = {
  "light": {
    "text": "#22262b",
    "grid": "#e4e7eb",
    "axis": "#9aa2ac",
    "series": ["#0068a8", "#c14f00", "#00795a", "#a8467f", "#7a5c00", "#4b4bb5"],
    "scale": [[0.0, "#f4f7fa"], [1.0, "#8cc0e4"]],
  },
  "dark": {
    "text": "#e6e8eb",
    "grid": "#2c323a",
    "axis": "#6d7681",
    "series": ["#5cb8ee", "#f2914a", "#35c79c", "#e59ac6", "#dfbd5a", "#a9a9f5"],
    "scale": [[0.0, "#1c2229"], [1.0, "#24689b"]],
  },
}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MARKERS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x")
# The same as characters, for the legend.
MARKS = ("\u25cf", "\u25a0", "\u25c6", "\u25b2", "\u25bc", "\u271a", "\u2716")
# Beyond so many classes the numbers of a confusion would overlap.
NUMBERED_CLASSES = 20


class Plot(NamedTuple):
  """A plot of the page.

  Attributes:
    title: above it.
    alt: what a reader who does not see it is told.
    figure: {"data", "layout"}, JSON.
  """

  title: str
  alt: str
  figure: dict[str, Any]


def javascript() -> str:
  """plotly.js, whole: what the Python package bundles."""
  return plotly.offline.get_plotlyjs().replace("</script", "<\\/script")


def radius_plots(runs: Sequence[Run]) -> list[Plot]:
  """Accuracy against the radius, a plot for each norm, the evaluations as larger open markers."""
  norms = list(dict.fromkeys(sweep.norm for run in runs for sweep in run.sweeps))
  return [plot for norm in norms if (plot := _radius_plot(runs, norm))]


def _radius_plot(runs: Sequence[Run], norm: str) -> Plot:
  figure, words = _figure(f"radius in {NORM_NAMES[norm].sign} (pixels in [0, 1])"), []
  for place, run in enumerate(runs):
    for sweep in (s for s in run.sweeps if s.norm == norm):
      figure.add_trace(_line(place, run.name, sweep.radii, sweep.rates, "radius"))
      ends = [
        f"{100 * sweep.rates[k].accuracy:.1f} % at radius {sweep.radii[k]:.4g}" for k in (0, -1)
      ]
      words.append(f"{run.name}: from {ends[0]} to {ends[1]}")
    ours = [e for e in run.evaluations if e.stored.claim.norm == norm]
    if ours:
      radii = [evaluation.stored.claim.radius for evaluation in ours]
      trace = _line(place, run.name, radii, [e.robust for e in ours], "radius")
      marker = f"{MARKERS[place % len(MARKERS)]}-open"
      notes = [f"{evaluation.stored.claim.version} ensemble" for evaluation in ours]
      trace.update(
        mode="markers", customdata=[f"{a}<br>{b}" for a, b in zip(trace.customdata, notes)]
      )
      trace.update(marker={"symbol": marker, "size": 15, "line": {"width": 2.5}})
      figure.add_trace(trace)
  figure.update_yaxes(range=[0, 100], title_text="test accuracy (%)")
  # Room on the left, or a marker at 0 lies on the axis' words.
  furthest = max(max(trace.x) for trace in figure.data) or 1.0
  figure.update_xaxes(range=[-0.03 * furthest, 1.03 * furthest])
  alt = f"Line plot of test accuracy against the radius of the attack in {NORM_NAMES[norm].sign}. "
  return Plot(f"Over {NORM_NAMES[norm].sign}", alt + "; ".join(words) + ".", _json(figure))


# key of metrics.jsonl -> (title, factor of its values, title of the axis)
_CURVES = {
  "train/loss": ("Training loss", 1.0, "loss"),
  "heldout/clean_accuracy": ("Held-out accuracy, clean", 100.0, "accuracy (%)"),
  "heldout/robust_accuracy": ("Held-out accuracy, own attack", 100.0, "accuracy (%)"),
  "heldout/pgd_accuracy": ("Held-out accuracy, PGD", 100.0, "accuracy (%)"),
}


def training_plots(runs: Sequence[Run]) -> list[Plot]:
  """Loss and held-out accuracies against the epoch, a plot for each that any run has logged."""
  plots = []
  for key, (title, factor, axis) in _CURVES.items():
    figure, words = _figure("epoch"), []
    for place, run in enumerate(runs):
      points = [
        (r["epoch"], r[key]) for r in run.records if r.get(key) is not None and "epoch" in r
      ]
      if not points:
        continue
      epochs, values = (np.array(column, float) for column in zip(*points))
      trace = _trace(place, run.name, epochs.tolist(), (factor * values).tolist())
      trace.mode = "lines+markers" if len(points) <= 30 else "lines"
      unit = " %" if factor == 100 else ""
      trace.hovertemplate = (
        f"<b>{_safe(run.name)}</b><br>epoch %{{x:.4g}}: %{{y:.4g}}{unit}<extra></extra>"
      )
      figure.add_trace(trace)
      words.append(f"{run.name}: {factor * values[-1]:.4g}{unit} after epoch {epochs[-1]:.4g}")
    if words:
      figure.update_yaxes(title_text=axis)
      figure.update_yaxes(range=[0, 100]) if factor == 100 else figure.update_yaxes(
        rangemode="tozero"
      )
      alt = f"Line plot of {title[0].lower()}{title[1:]} against the epoch. {'; '.join(words)}."
      plots.append(Plot(title, alt, _json(figure)))
  return plots


def confusion_plot(title: str, confusion: np.ndarray) -> Plot:
  """A heat map of counts [C, C], true class by answer; colours are shares of the true class."""
  counts = confusion.sum(axis=1, keepdims=True)
  shares = np.divide(confusion, counts, out=np.zeros(confusion.shape), where=counts > 0)
  numbered = len(confusion) <= NUMBERED_CLASSES
  classes = [str(place) for place in range(len(confusion))]
  trace = go.Heatmap(
    x=classes,
    y=classes,
    z=shares.tolist(),
    text=[[str(count) if count else "" for count in row] for row in confusion.tolist()],
    customdata=confusion.tolist(),
    zmin=0.0,
    zmax=1.0,
    xgap=1,
    ygap=1,
    showscale=False,
    hovertemplate="class %{y}, taken for %{x}: %{customdata} (%{z:.1%})<extra></extra>",
  )
  if numbered:
    trace.update(texttemplate="%{text}")
  figure = _figure("answer under attack")
  figure.add_trace(trace)
  figure.update_xaxes(type="category", showgrid=False, ticks="", showline=False)
  figure.update_yaxes(
    type="category", showgrid=False, showline=False, autorange="reversed", title_text="true class"
  )
  figure.update_layout(height=380)
  if numbered:
    figure.update_xaxes(dtick=1)
    figure.update_yaxes(dtick=1)
  right = int(np.trace(confusion))
  wrong = confusion - np.diag(np.diag(confusion))
  label, answer = np.unravel_index(np.argmax(wrong), wrong.shape)
  alt = f"Heat map of true class by answer under attack: {right} of {confusion.sum()} are right"
  if wrong.any():
    alt += f"; most often, {wrong[label, answer]} times, class {label} is taken for {answer}"
  return Plot(title, f"{alt}.", _json(figure))


def _figure(axis: str) -> go.Figure:
  figure = go.Figure(layout={"template": None})
  figure.update_layout(
    height=300,
    margin={"l": 52, "r": 10, "t": 10, "b": 44},
    showlegend=False,
    dragmode=False,
    hovermode="closest",
    paper_bgcolor="rgba(0,0,0,0)",
    plot_bgcolor="rgba(0,0,0,0)",
    font={"family": "system-ui, sans-serif", "size": 12},
  )
  figure.update_xaxes(title_text=axis, zeroline=False, showline=True, fixedrange=True)
  figure.update_yaxes(zeroline=False, showline=False, fixedrange=True)
  return figure


def _trace(place: int, name: str, x: Sequence[float], y: Sequence[float]) -> go.Scatter:
  return go.Scatter(
    x=list(x),
    y=list(y),
    name=_safe(name),
    meta={"run": place},
    mode="lines+markers",
    cliponaxis=False,
    line={"dash": DASHES[place % len(DASHES)], "width": 2},
    marker={"symbol": MARKERS[place % len(MARKERS)], "size": 7},
  )


def _line(
  place: int, name: str, x: Sequence[float], rates: Sequence[Rate], axis: str
) -> go.Scatter:
  """Accuracies in % with their intervals."""
  trace = _trace(place, name, x, [100 * rate.accuracy for rate in rates])
  low, high = np.array([rate.interval for rate in rates]).T
  accuracy = np.array([rate.accuracy for rate in rates])
  trace.error_y = {
    "type": "data",
    "symmetric": False,
    "array": (100 * np.maximum(0.0, high - accuracy)).tolist(),
    "arrayminus": (100 * np.maximum(0.0, accuracy - low)).tolist(),
    "thickness": 1.2,
    "width": 3,
  }
  trace.customdata = [
    f"{rate.correct} of {rate.total}, 95 % interval {100 * a:.1f} to {100 * b:.1f} %"
    for rate, a, b in zip(rates, low, high)
  ]
  trace.hovertemplate = (
    f"<b>{_safe(name)}</b><br>{axis} %{{x:.4g}}: %{{y:.2f}} %<br>%{{customdata}}<extra></extra>"
  )
  return trace


def _safe(name: str) -> str:
  """plotly takes its texts for a subset of HTML, and %{...} for a place to fill."""
  return html.escape(name).replace("%{", "%&#123;")


def _json(figure: go.Figure) -> dict[str, Any]:
  return json.loads(figure.to_json())
