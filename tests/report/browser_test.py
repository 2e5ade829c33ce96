"""The report in a browser: charts, browsing by keys, the width of a phone, dark colors.

Needs Chromium and its driver (Debian: chromium, chromium-driver); skipped without them.
"""

import json

import pytest

from robust_opt.report import page

pytestmark = pytest.mark.slow

PHONE, DESKTOP = (360, 800), (1280, 900)


@pytest.fixture(scope="module")
def address(trained, second, alone, tmp_path_factory):
  """The page of two runs, the second of them evaluated, and of an evaluation alone, as a file."""
  output = tmp_path_factory.mktemp("page") / "page.html"
  return page.run([second, trained, alone], output, {}).as_uri()


def opened(browser, address, size=DESKTOP, scheme="light"):
  """The page at a size in CSS pixels and a color scheme, as if never visited before."""
  width, height = size
  metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
  browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
  emulate(browser, scheme, "reduce")  # moving elements cannot be clicked
  browser.get(address)
  browser.execute_script("localStorage.clear()")
  browser.get(address)
  return browser


def emulate(browser, scheme, motion):
  wanted = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
  features = [{"name": name, "value": value} for name, value in wanted.items()]
  browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def value(browser, expression):
  return browser.execute_script(f"return {expression}")


def press(browser, *keys):
  from selenium.webdriver import ActionChains

  ActionChains(browser).send_keys(*keys).perform()


def select(browser, name, option):
  event = "select.dispatchEvent(new Event('change', {bubbles: true}))"
  browser.execute_script(
    f"const select = document.getElementById({name!r}); select.value = arguments[0]; {event}",
    option,
  )


def brightness(browser, expression):
  """Of a CSS color rgb(r, g, b), in [0, 255]."""
  numbers = value(browser, expression).partition("(")[2].rstrip(")").split(",")[:3]
  return sum(map(float, numbers)) / 3


BODY = "getComputedStyle(document.body)"
TICKS = "getComputedStyle(document.querySelector('.chart svg text')).fill"


def test_it_opens_without_errors_and_without_a_network(browser, address):
  opened(browser, address)
  assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []
  assert value(browser, "performance.getEntriesByType('resource').length") == 0
  # Norms, curves of training, and the confusion matrices of the evaluations.
  assert value(browser, "document.querySelectorAll('.chart svg').length") == 3 + 4 + 2


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_nothing_is_wider_than_the_window(browser, address, size):
  opened(browser, address, size)
  assert value(browser, "innerWidth") == size[0]
  assert value(browser, "document.documentElement.scrollWidth") <= size[0]
  browser.execute_script("document.querySelectorAll('details').forEach((d) => (d.open = true))")
  assert value(browser, "document.documentElement.scrollWidth") <= size[0]
  widths = value(browser, "[...document.querySelectorAll('svg')].map((svg) => svg.clientWidth)")
  assert all(250 < width < size[0] for width in widths)


def test_keys_and_buttons_browse_the_examples(browser, address):
  from selenium.webdriver.common.by import By
  from selenium.webdriver.common.keys import Keys

  opened(browser, address)
  total = value(browser, "sets[0].examples.length")
  assert total > 3
  words = "document.getElementById('words').textContent"
  source = "document.getElementById('perturbed').src"
  position = "document.getElementById('position').textContent"
  first = value(browser, f"[{words}, {source}]")
  assert value(browser, position) == f"1 of {total}"
  press(browser, Keys.ARROW_RIGHT)
  assert value(browser, position) == f"2 of {total}"
  second = value(browser, f"[{words}, {source}]")
  assert second[0] != first[0]
  assert second[1] != first[1]
  press(browser, Keys.ARROW_LEFT)
  assert value(browser, f"[{words}, {source}]") == first
  browser.find_element(By.ID, "previous").click()
  assert value(browser, position) == f"{total} of {total}"
  browser.find_element(By.ID, "next").click()
  assert value(browser, f"[{words}, {source}]") == first
  naturals = "[...document.querySelectorAll('.stage img')].map((image) => image.naturalWidth)"
  assert value(browser, naturals) == [8, 8, 8]


def test_filters_keep_matching_examples(browser, address):
  opened(browser, address)
  examples = value(browser, "sets[0].examples")
  attack = examples[-1]["attack"]
  label = examples[-1]["label"]
  of_attack = [e for e in examples if e["attack"] == attack]
  both = [e for e in of_attack if e["label"] == label]
  assert len(both) < len(of_attack)
  select(browser, "attack", attack)
  assert value(browser, "shown") == of_attack
  select(browser, "label", str(label))
  assert value(browser, "shown") == both
  assert f"class {label}: misclassified under {attack}" in value(
    browser, "document.getElementById('words').textContent"
  )
  options = "[...document.getElementById('label').options].map((option) => option.value)"
  labels = value(browser, options)[1:]
  assert labels == [str(label) for label in sorted({e["label"] for e in examples})]
  # Arrow keys in a list of choices belong to that list.
  before = value(browser, "index")
  browser.execute_script(
    "document.getElementById('label').dispatchEvent("
    "new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}))"
  )
  assert value(browser, "index") == before


def test_the_color_scheme_of_the_system_then_of_the_reader(browser, address):
  from selenium.webdriver.common.by import By

  opened(browser, address, scheme="light")
  assert brightness(browser, f"{BODY}.backgroundColor") > 200
  assert brightness(browser, TICKS) < 80
  opened(browser, address, scheme="dark")
  assert brightness(browser, f"{BODY}.backgroundColor") < 50
  assert brightness(browser, f"{BODY}.color") > 200
  assert brightness(browser, TICKS) > 200
  button = browser.find_element(By.ID, "theme")
  assert button.text == "Light colors"
  button.click()
  assert brightness(browser, f"{BODY}.backgroundColor") > 200
  assert brightness(browser, TICKS) < 80
  browser.get(address)  # the choice is remembered
  assert brightness(browser, f"{BODY}.backgroundColor") > 200


def test_a_run_can_be_hidden_in_all_charts(browser, address):
  from selenium.webdriver.common.by import By

  opened(browser, address)
  box = browser.find_element(By.CSS_SELECTOR, "#radius input[data-run='0']")
  visible = """[0, 1].map((run) => [...document.querySelectorAll(`#training .run-${run}`)]
    .some((mark) => getComputedStyle(mark).display !== 'none'))"""
  assert value(browser, visible) == [True, True]
  box.click()
  assert value(browser, visible) == [False, True]
  assert not browser.find_element(By.CSS_SELECTOR, "#training input[data-run='0']").is_selected()
  box.click()
  assert value(browser, visible) == [True, True]


def test_everything_has_a_name_and_the_keyboard_reaches_it(browser, address):
  from selenium.webdriver.common.keys import Keys

  opened(browser, address)
  unnamed = "[...document.images].filter((image) => !image.alt.trim()).map((image) => image.id)"
  assert value(browser, unnamed) == []
  tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
  for role in ("button", "combobox", "checkbox", "link", "image", "region"):
    nodes = [node for node in tree if node.get("role", {}).get("value") == role]
    assert nodes, role
    assert all(node["name"]["value"].strip() for node in nodes if not node["ignored"]), role

  reached = []
  for _ in range(80):
    press(browser, Keys.TAB)
    active = value(
      browser, "[document.activeElement.id, document.activeElement.getAttribute('href') || '']"
    )
    reached.append(active[0] or active[1])
    if reached[-1] == "next":
      break
  wanted = ["#results", "theme", "#examples", "label", "attack", "previous", "next"]
  places = [reached.index(name) for name in wanted]
  assert places == sorted(places), json.dumps(reached)


def test_motion_is_reduced_on_request(browser, address):
  opened(browser, address)
  scroll = "getComputedStyle(document.documentElement).scrollBehavior"
  assert value(browser, scroll) == "auto"
  emulate(browser, "light", "no-preference")
  assert value(browser, scroll) == "smooth"
