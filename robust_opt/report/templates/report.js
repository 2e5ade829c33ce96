"use strict";
const sets = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);

// --- Color scheme: the system's, until the reader chooses one ---

const system = matchMedia("(prefers-color-scheme: dark)");
let chosen = null;
try { chosen = localStorage.getItem("robust_opt-theme"); } catch (error) { /* not available for some files */ }

const theme = () => chosen || (system.matches ? "dark" : "light");

function applyTheme() {
  if (chosen) document.documentElement.dataset.theme = chosen;
  element("theme").textContent = theme() === "dark" ? "Light colors" : "Dark colors";
}

element("theme").hidden = false;
element("theme").addEventListener("click", () => {
  chosen = theme() === "dark" ? "light" : "dark";
  try { localStorage.setItem("robust_opt-theme", chosen); } catch (error) { /* as above */ }
  applyTheme();
});
system.addEventListener("change", applyTheme);

// --- Runs can be hidden in all charts ---

const switches = [...document.querySelectorAll("input[data-run]")];
for (const box of switches) {
  box.addEventListener("change", () => {
    for (const other of switches) {
      if (other.dataset.run === box.dataset.run) other.checked = box.checked;
    }
    for (const mark of document.querySelectorAll(`.chart .run-${box.dataset.run}`)) {
      mark.style.display = box.checked ? "" : "none";
    }
  });
}

// --- Adversarial examples, one at a time ---

const viewer = element("viewer");
let shown = [];
let index = 0;

function fill(select, everything, values, words) {
  const kept = select.value;
  select.replaceChildren(new Option(everything, ""));
  for (const value of values) select.add(new Option(words(value), value));
  select.value = values.map(String).includes(kept) ? kept : "";
}

const unique = (values) => [...new Set(values)];

function chooseSet() {
  const select = element("set");
  const examples = sets[select ? Number(select.value) : 0].examples;
  const labels = unique(examples.map((example) => example.label)).sort((a, b) => a - b);
  fill(element("label"), "all classes", labels, (label) => `class ${label}`);
  fill(element("attack"), "any attack", unique(examples.map((e) => e.attack)), (name) => name);
  filter();
}

function filter() {
  const select = element("set");
  const [label, attack] = [element("label").value, element("attack").value];
  shown = sets[select ? Number(select.value) : 0].examples.filter(
    (example) =>
      (label === "" || example.label === Number(label)) &&
      (attack === "" || example.attack === attack),
  );
  index = 0;
  show();
}

function step(by) {
  if (shown.length < 2) return;
  index = (index + by + shown.length) % shown.length;
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
  const example = shown[index];
  element("previous").disabled = shown.length < 2;
  element("next").disabled = shown.length < 2;
  element("position").textContent = example ? `${index + 1} of ${shown.length}` : "none";
  viewer.querySelector(".stage").hidden = !example;
  if (!example) {
    element("words").textContent = "No example matches both filters.";
    return;
  }
  const predicted =
    example.perturbed_prediction === null ? "another class" : example.perturbed_prediction;
  picture("clean", example.clean, `Clean test image ${example.test_index}, of class ${example.label}`);
  picture("delta", example.delta, "Its perturbation, scaled around gray");
  picture("perturbed", example.perturbed, `Perturbed image, predicted class ${predicted}`);
  element("clean-words").textContent = `predicted ${example.prediction}${share(example.confidence)}`;
  element("delta-words").textContent =
    example.max_change === null ? "" : `\u00b1\u2009${example.max_change.toPrecision(2)}`;
  element("perturbed-words").textContent = `predicted ${predicted}${share(example.perturbed_confidence)}`;
  element("words").textContent =
    `Test image ${example.test_index}, class ${example.label}: ` +
    `misclassified under ${example.attack}, by a perturbation of size ${example.size.toPrecision(3)}.`;
}

if (viewer) {
  if (element("set")) element("set").addEventListener("change", chooseSet);
  for (const id of ["label", "attack"]) element(id).addEventListener("change", filter);
  viewer.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  element("previous").addEventListener("click", () => step(-1));
  element("next").addEventListener("click", () => step(1));
  document.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    // Arrow keys keep their own meaning in these elements.
    const taken = event.target.closest("select, input, .scroll, pre");
    if (!by || taken || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    step(by);
  });
  chooseSet();
}

applyTheme();
