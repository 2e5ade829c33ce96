"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);

// --- Colour scheme: the system's, until the reader chooses ---

const system = matchMedia("(prefers-color-scheme: dark)");
let chosen = null;
try { chosen = localStorage.getItem("robust_opt-theme"); } catch (error) { /* a file may have none */ }

const theme = () => chosen || (system.matches ? "dark" : "light");

function applyTheme() {
  if (chosen) document.documentElement.dataset.theme = chosen;
  element("theme").textContent = theme() === "dark" ? "Light colours" : "Dark colours";
  draw();
}

element("theme").hidden = false;
element("theme").addEventListener("click", () => {
  chosen = theme() === "dark" ? "light" : "dark";
  try { localStorage.setItem("robust_opt-theme", chosen); } catch (error) { /* as above */ }
  applyTheme();
});
system.addEventListener("change", applyTheme);

// --- Plots: painted in the colours of the scheme, without the runs that are switched off ---

const hiddenRuns = new Set();

function painted(figure) {
  const colours = data.themes[theme()];
  const { data: traces, layout } = structuredClone(figure);
  for (const trace of traces) {
    if (trace.type === "heatmap") {
      trace.colorscale = colours.scale;
      trace.textfont = { color: colours.text };
      continue;
    }
    const run = trace.meta.run;
    const colour = colours.series[run % colours.series.length];
    trace.visible = !hiddenRuns.has(run);
    trace.line.color = colour;
    trace.marker.color = colour;
    if (trace.marker.line) trace.marker.line.color = colour;
    if (trace.error_y) trace.error_y.color = colour;
  }
  layout.font.color = colours.text;
  for (const axis of [layout.xaxis, layout.yaxis]) {
    axis.gridcolor = colours.grid;
    axis.linecolor = colours.axis;
  }
  return { traces, layout };
}

function draw() {
  for (const [id, figure] of Object.entries(data.plots)) {
    const { traces, layout } = painted(figure);
    Plotly.react(id, traces, layout, { displayModeBar: false, responsive: true });
  }
  // What plotly measures texts in says nothing to anyone.
  element("js-plotly-tester")?.setAttribute("aria-hidden", "true");
}

const switches = [...document.querySelectorAll("input[data-run]")];
for (const box of switches) {
  box.addEventListener("change", () => {
    const run = Number(box.dataset.run);
    if (box.checked) hiddenRuns.delete(run);
    else hiddenRuns.add(run);
    for (const other of switches) {
      if (other.dataset.run === box.dataset.run) other.checked = box.checked;
    }
    draw();
  });
}

// --- Adversarial examples, one at a time ---

const viewer = element("viewer");
let shown = [];
let place = 0;

function fill(select, everything, values, words) {
  const kept = select.value;
  select.replaceChildren(new Option(everything, ""));
  for (const value of values) select.add(new Option(words(value), value));
  select.value = values.map(String).includes(kept) ? kept : "";
}

const unique = (values) => [...new Set(values)];

function chooseSet() {
  const select = element("set");
  const examples = data.sets[select ? Number(select.value) : 0].examples;
  const labels = unique(examples.map((example) => example.label)).sort((a, b) => a - b);
  fill(element("label"), "all classes", labels, (label) => `class ${label}`);
  fill(element("attack"), "any attack", unique(examples.map((e) => e.attack)), (name) => name);
  filter();
}

function filter() {
  const select = element("set");
  const [label, attack] = [element("label").value, element("attack").value];
  shown = data.sets[select ? Number(select.value) : 0].examples.filter(
    (example) =>
      (label === "" || example.label === Number(label)) &&
      (attack === "" || example.attack === attack),
  );
  place = 0;
  show();
}

function step(by) {
  if (shown.length < 2) return;
  place = (place + by + shown.length) % shown.length;
  show();
}

function picture(id, address, alt) {
  const image = element(id);
  image.closest("figure").hidden = !address;
  if (address) image.src = address;
  else image.removeAttribute("src");
  image.alt = alt;
}

const share = (value) => (value === null ? "" : `, ${(100 * value).toFixed(1)} %`);

function show() {
  const example = shown[place];
  element("previous").disabled = shown.length < 2;
  element("next").disabled = shown.length < 2;
  element("position").textContent = example ? `${place + 1} of ${shown.length}` : "none";
  viewer.querySelector(".stage").hidden = !example;
  if (!example) {
    element("words").textContent = "No example fits both filters.";
    return;
  }
  const answer = example.fooled_into === null ? "another class" : example.fooled_into;
  picture("clean", example.clean, `Clean test image ${example.place}, of class ${example.label}`);
  picture("delta", example.delta, "Its perturbation, stretched around grey");
  picture("perturbed", example.perturbed, `Perturbed image, taken for ${answer}`);
  element("clean-words").textContent = `taken for ${example.taken_for}${share(example.confidence)}`;
  element("delta-words").textContent =
    example.span === null ? "" : `\u00b1\u2009${example.span.toPrecision(2)}`;
  element("perturbed-words").textContent = `taken for ${answer}${share(example.fooled_confidence)}`;
  element("words").textContent =
    `Test image ${example.place}, class ${example.label}: ` +
    `broken by ${example.attack}, which moved it by ${example.length.toPrecision(3)}.`;
}

if (viewer) {
  if (element("set")) element("set").addEventListener("change", chooseSet);
  for (const id of ["label", "attack"]) element(id).addEventListener("change", filter);
  viewer.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  element("previous").addEventListener("click", () => step(-1));
  element("next").addEventListener("click", () => step(1));
  document.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    // Where arrows have a meaning of their own, they keep it.
    const taken = event.target.closest("select, input, .scroll, pre");
    if (!by || taken || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    step(by);
  });
  chooseSet();
}

applyTheme();
