"""The service's page in a real browser: what a person does with it, and what it must never do."""

import io
import json
import re
import shutil
import time

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")

import fastapi.testclient
import numpy as np
import scipy.io.wavfile
import serve_fakes
import web_service

from deepscan_jax import report
from deepscan_jax.serve import evidence, routes_web

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--no-first-run",
]
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")


# What is served -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client():
  return fastapi.testclient.TestClient(web_service.make_app())


def test_every_answer_is_under_the_strict_policy(client):
  for path in ("/", *(f"/web/{name}" for name in routes_web.ASSETS)):
    answer = client.get(path)
    assert answer.status_code == 200, path
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert not any(word in str(policy) for word in ("unsafe", "http:", "https:", "*"))
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert "camera=()" in answer.headers["Permissions-Policy"]
    assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"


def test_the_page_has_no_code_of_its_own_and_names_no_other_server(client):
  page = client.get("/").text
  assert "<style" not in page and " style=" not in page
  scripts = [part.split(">", 1) for part in page.split("<script")[1:]]
  assert len(scripts) == 2
  assert all(" src=" in tag and inside.startswith("</script>") for tag, inside in scripts)
  assert "//" not in page.replace("<!doctype html>", "") and "{{" not in page
  for name, (path, _) in routes_web.ASSETS.items():
    text = path.read_text(encoding="utf-8")
    assert "https://" not in text and "http://" not in text.replace("http://www.w3.org/2000/svg", ""), name
  code = routes_web.ASSETS["app.js"][0].read_text(encoding="utf-8")
  for word in ("localStorage", "sessionStorage", "indexedDB", "document.cookie", "innerHTML", "eval("):
    assert word not in code


def test_files_are_kept_for_ever_under_the_address_of_their_content_only(client):
  page = client.get("/")
  address = page.text.split('src="web/app.js?v=')[1].split('"')[0]
  kept = client.get(f"/web/app.js?v={address}")
  assert "immutable" in kept.headers["Cache-Control"]
  for query in ("", "?v=0123"):
    assert client.get(f"/web/app.js{query}").headers["Cache-Control"] == "no-cache"
  assert page.headers["Cache-Control"] == "no-cache"
  for path in ("/", "/web/app.js"):
    tag = client.get(path).headers["ETag"]
    again = client.get(path, headers={"If-None-Match": f'"other", W/{tag}'})
    assert again.status_code == 304 and again.content == b""
    assert client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
  assert client.head("/").status_code == 200
  for name in ("nothing.js", "..%2froutes_web.py", "index.html"):
    assert client.get(f"/web/{name}").status_code == 404


def test_the_page_says_whether_files_are_kept():
  assert "deleted as soon as it is judged" in routes_web.page_html(keeps_files=False)
  kept = routes_web.page_html(keeps_files=True)
  assert "set to keep the files" in kept and "deleted" not in kept
  assert all(text in kept for text in report.LIMITS)


def test_evidence_as_json_is_what_the_model_saw_and_where():
  import base64

  import cv2
  import numpy as np

  answer = web_service.of_video()
  found = evidence.evidence_json(answer)
  assert json.loads(json.dumps(found, allow_nan=False)) == found
  assert len(found) == len(answer.evidence) == 15
  first, seen = found[0], answer.evidence[0]
  assert (first["person"], first["time_s"], first["probability"]) == (1, 0.2, 0.18)
  assert first["box"] == list(answer.people[0].sightings[0].box)
  np.testing.assert_allclose(first["place"], seen.place, atol=1e-6)

  def decoded(address):
    data = base64.b64decode(address.partition(";base64,")[2])
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)

  assert np.abs(decoded(first["crop"])[..., ::-1].astype(float) - seen.crop).mean() < 6
  shades = decoded(first["region_map"])
  np.testing.assert_allclose(shades[..., 3], 0.85 * 255 * seen.region_map, atol=1.01)
  # What does not say where it is has no place.
  loose = web_service.dataclasses.replace(seen, place=None, time_s=99.0)
  alone = evidence.evidence_json(web_service.dataclasses.replace(answer, evidence=(loose,)))
  assert alone[0]["place"] is None and alone[0]["box"] is None


def test_the_whole_service_serves_the_page_and_what_it_asks_for(tmp_path):
  with serve_fakes.service(tmp_path) as client:
    page = client.get("/", headers={"Authorization": ""})
    assert page.status_code == 200 and page.headers["Content-Security-Policy"] == routes_web.POLICY
    addresses = re.findall(r'(?:src|href)="(web/[^"]+)"', page.text)
    assert len(addresses) >= 5
    for address in addresses:
      answer = client.get(f"/{address}", headers={"Authorization": ""})
      assert answer.status_code == 200 and "immutable" in answer.headers["Cache-Control"], address
    files = {"image": ("a.png", serve_fakes.png())}
    told = client.post("/api/v1/detect/image?explain=true", files=files).json()
    plain = client.post("/api/v1/detect/image", files=files).json()
  assert told["report_html"].startswith("<!doctype html>") and told["evidence"][0]["crop"].startswith("data:")
  assert plain["report_html"] is plain["evidence"] is None


# What a person does -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def media(tmp_path_factory):
  return web_service.write_media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def service():
  app = web_service.make_app()
  with web_service.serving(app) as address:
    yield app, address


@pytest.fixture(scope="module")
def browser():
  sync_api = pytest.importorskip("playwright.sync_api")
  with sync_api.sync_playwright() as playwright:
    found = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
    yield found
    found.close()


@pytest.fixture
def visit(browser, service):
  """Opens the page; at the end nothing may have gone wrong in it, or have been asked of anybody else."""
  contexts, wrong, asked = [], [], []

  def opened(*, scheme="light", width=1280, height=900, blocked=None):
    context = browser.new_context(
      color_scheme=scheme, viewport={"width": width, "height": height}, reduced_motion="reduce"
    )
    contexts.append(context)
    page = context.new_page()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    # The browser itself notes refusals of the API, and what the page's policy has blocked.
    expected = ["the server responded with", *([blocked] if blocked else [])]

    def noted(message) -> None:
      if message.type == "error" and not any(words in message.text for words in expected):
        wrong.append(message.text)

    page.on("console", noted)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(service[1])
    return page

  yield opened
  for context in contexts:
    context.close()
  assert wrong == []
  assert all(url.startswith((service[1], "blob:", "data:")) for url in asked)


def until(page, expression):
  """Waits until an expression is true. What playwright has for that evaluates text in the page: forbidden."""
  late = time.monotonic() + 60
  while not page.evaluate(expression):
    assert time.monotonic() < late, f"never true: {expression}"
    page.wait_for_timeout(20)


def send(page, path, key=web_service.KEY):
  page.set_input_files("#file", path)
  page.fill("#key", key)
  page.click("#send")


def judged(page, path):
  send(page, path)
  page.wait_for_selector("#result h1")
  return page.inner_text("#result")


def named(stem):
  return {"name": f"{stem}.mp4", "mimeType": "video/mp4", "buffer": b"x" * 3000}


def violations(page):
  """What axe finds, in words."""
  axe = pytest.importorskip("axe_playwright_python.sync_playwright")
  found = axe.Axe().run(page).response["violations"]
  return [(v["id"], [node["html"][:120] for node in v["nodes"]]) for v in found]


def fits(page):
  """Whether nothing sticks out to the side."""
  return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@needs_browser
def test_a_video_is_shown_with_its_people_moments_and_maps(visit, media, service, tmp_path):
  page = visit()
  text = judged(page, media["interview.mp4"])
  answer = web_service.of_video()
  for words in (
    "Likely manipulated",
    "83\u00a0%",
    "at most 5\u00a0% of authentic validation pictures",
    "Person 1 shows traces of blending",
    answer.recommendation,
    "What this can and cannot tell",
    "97 more requests",
    "Lavf62.3.100",
  ):
    assert words in text, words
  assert service[0].state.received[-1] == (
    "video",
    "interview.mp4",
    media["interview.mp4"].stat().st_size,
    True,
  )
  assert page.title() == "Likely manipulated: interview.mp4"
  assert page.evaluate("document.activeElement.tagName") == "H1"
  # Both people, cut from the film by the browser; the spectrogram of its sound.
  until(page, "document.querySelectorAll('canvas.face').length === 2")
  page.wait_for_selector(".spectrogram canvas")
  assert len(page.query_selector_all(".spectrogram .window")) == 2
  levels = (
    "[...document.querySelector('.spectrogram canvas').getContext('2d').getImageData(0, 0, 900, 256).data]"
  )
  assert page.evaluate(f"new Set({levels}).size") > 50
  # A point leads the film to its moment; the face is framed there and the map lies on it.
  page.click(".point[data-time='4.200']")
  until(page, "Math.abs(document.querySelector('video').currentTime - 4.2) < 0.01")
  assert "At 4.20 s: person 1 94 %, likely manipulated" in page.inner_text(".moment").replace("\u00a0", " ")
  until(page, "document.querySelector('video').seeking === false")
  box, mouth = web_service.large_box(4.2), answer.evidence[7].place @ [112, 149, 1]
  seen = """([x, y]) => {
    const canvas = document.querySelector('.screen canvas');
    const scale = canvas.width / 640;
    return [...canvas.getContext('2d').getImageData(Math.round(x * scale), Math.round(y * scale), 1, 1).data];
  }"""
  until(page, f"({seen})([{mouth[0]}, {mouth[1]}])[3] > 120")
  assert page.evaluate(seen, [box[0], (box[1] + box[3]) / 2])[3] > 200
  assert page.evaluate(seen, [20, 300])[3] == 0
  page.click("text=Region maps")
  until(page, f"({seen})([{mouth[0]}, {mouth[1]}])[3] === 0")
  # Between two looks there is no map; marked moments and steps lead along.
  page.click("button.jump >> nth=0")
  until(page, "Math.abs(document.querySelector('video').currentTime - 2.95) < 0.01")
  page.click("text=Later face")
  until(page, "Math.abs(document.querySelector('video').currentTime - 3.2) < 0.01")
  # A click on the chart itself goes to that time.
  plot = page.locator("#f1-p1 .plot").bounding_box()
  page.mouse.click(plot["x"] + 0.5 * plot["width"], plot["y"] + 0.85 * plot["height"])
  until(page, "Math.abs(document.querySelector('video').currentTime - 4) < 0.05")
  # Both forms can be saved.
  for words, suffix in (("Save the report", "html"), ("Save as JSON", "json")):
    with page.expect_download() as download:
      page.click(f"text={words}")
    assert download.value.suggested_filename == f"interview.deepscan.{suffix}"
    download.value.save_as(tmp_path / suffix)
  assert (tmp_path / "html").read_text().startswith("<!doctype html>")
  saved = json.loads((tmp_path / "json").read_text())
  assert saved["people"] == answer.to_dict()["people"] and "report_html" not in saved
  page.click("text=The card of the model")
  assert "self-blended images" in page.inner_text(".model") and page.query_selector(".model td")


@needs_browser
def test_a_picture_goes_through_the_whole_service(browser, tmp_path):
  picture = io.BytesIO()
  web_service.Image.fromarray(web_service.scene(0.0)).save(picture, "png")
  sent = {"name": "portrait.png", "mimeType": "image/png", "buffer": picture.getvalue()}
  engine = serve_fakes.FakeEngine()
  app = serve_fakes.make_app(serve_fakes.make_settings(tmp_path), engine)
  with serve_fakes.real_server(app) as (host, port):
    context = browser.new_context(reduced_motion="reduce")
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda m: m.type == "error" and wrong.append(m.text))
    page.goto(f"http://{host}:{port}/")
    send(page, sent, serve_fakes.API_KEY)
    page.wait_for_selector("#result h1")
    page.wait_for_selector("canvas.face")
    assert "portrait.png" in page.inner_text("#result") and page.query_selector("#f1-p1")
    context.close()
  assert wrong == [] and len(engine.calls) == 1 and serve_fakes.received_files(tmp_path) == []


@needs_browser
def test_a_recording_is_shown_with_its_stretches(visit, media, service):
  page = visit()
  text = judged(page, media["call.wav"])
  assert service[0].state.received[-1][0] == "audio"
  assert "89\u00a0%" in text and "The voice shows traces of synthesis" in text and "Person 1" not in text
  page.wait_for_selector(".spectrogram .window.likely_manipulated")
  page.click(".window >> nth=2")
  until(page, "Math.abs(document.querySelector('audio').currentTime - 8) < 0.01")
  assert page.inner_text(".moment").replace("\u00a0", " ") == "8.0 to 12.0 s: 66 %, inconclusive."
  page.click("#f1-sound .point[data-time='9.000']")
  assert page.inner_text(".moment").replace("\u00a0", " ") == "At 9.00 s: sound 58 %, inconclusive."
  # Chart and spectrogram have one axis.
  spans = page.eval_on_selector_all("#f1-sound .plot", "all => all.map((e) => e.getBoundingClientRect())")
  assert len(spans) == 2 and spans[0]["left"] == spans[1]["left"] and spans[0]["width"] == spans[1]["width"]
  assert violations(page) == []


@needs_browser
def test_a_picture_is_shown_and_another_file_can_be_dropped(visit, media, service):
  page = visit()
  text = judged(page, media["portrait.jpg"])
  assert service[0].state.received[-1][0] == "image"
  assert "Likely authentic" in text and "That is not proof of authenticity" in text
  page.wait_for_selector("canvas.face")
  assert page.query_selector(".screen img") and not page.query_selector(".spectrogram")
  assert violations(page) == []
  drop = """([name, type]) => {
    const held = new DataTransfer();
    held.items.add(new File(['x'], name, { type }));
    for (const kind of ['dragenter', 'dragover', 'drop']) {
      const options = { dataTransfer: held, bubbles: true, cancelable: true };
      document.body.dispatchEvent(new DragEvent(kind, options));
    }
  }"""
  page.evaluate(drop, ["notes.pdf", "application/pdf"])
  assert page.is_visible("#form") and not page.is_visible("#result")
  assert "neither a video, a picture nor a sound file" in page.inner_text("#chosen")
  page.evaluate(drop, ["next.MOV", ""])
  assert page.inner_text("#chosen") == "next.MOV Video, 1\u00a0kB"
  # The key is still there, and was stored nowhere.
  assert page.input_value("#key") == web_service.KEY
  stored = (
    "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href, history.state])"
  )
  assert web_service.KEY not in page.evaluate(stored) and page.context.cookies() == []
  page.reload()
  assert page.input_value("#key") == ""


@needs_browser
def test_a_file_with_nothing_to_judge_says_why_and_what_to_do(visit, media):
  page = visit(scheme="dark")
  text = judged(page, media["empty.mp4"])
  for words in ("Not applicable", "No face was found. Give one that shows", "Use a copy that has its sound."):
    assert words in text, words
  assert "calibrated probability" not in text and not page.query_selector(".lanes button")
  assert violations(page) == []


@needs_browser
def test_what_went_wrong_is_said_and_what_to_do(visit):
  page = visit()
  # Nothing is sent without a file and a key.
  page.click("#send")
  assert page.inner_text("#chosen") == "Choose a file first."
  page.set_input_files("#file", named("damaged"))
  page.click("#send")
  assert page.inner_text("#key-wrong") == "Enter the key of the service."
  page.fill("#key", "dfk_wrong")
  page.click("#send")
  page.wait_for_selector("#problem:not([hidden])")
  assert "The key was not accepted" in page.inner_text("#problem") and "0f3a9c1e" in page.inner_text(
    "#problem"
  )
  assert page.evaluate("document.activeElement.id") == "key" and not page.is_visible("#again")
  assert page.get_attribute("#key", "aria-invalid") == "true"
  assert violations(page) == []
  send(page, named("damaged"))
  until(page, "document.querySelector('#problem').innerText.includes('It ends early.')")
  told = page.inner_text("#problem")
  assert "The file cannot be read" in told and "Copy it again." in told and "truncated" in told
  assert page.evaluate("document.activeElement.id") == "problem" and not page.is_visible("#again")
  assert page.get_attribute("#key", "aria-invalid") is None
  # An answer that is not the service's own is not shown as it is.
  send(page, named("between"))
  until(page, "document.querySelector('#problem').innerText.includes('502')")
  assert "Bad Gateway" not in page.inner_text("#problem") and page.is_visible("#again")


@needs_browser
def test_a_spent_limit_tells_when_to_come_again(visit, service):
  page = visit(scheme="dark", width=360, height=740)
  send(page, named("limited"))
  page.wait_for_selector("#problem:not([hidden])")
  told = page.inner_text("#problem")
  assert "Too many requests" in told and "100 files judged in an hour" in told
  assert "You can try again at" in told and page.is_disabled("#again")
  assert violations(page) == [] and fits(page)
  page.wait_for_selector("#again:not([disabled])")
  assert "You can try again now." in page.inner_text("#problem")
  count = len(service[0].state.received)
  page.click("#again")
  page.wait_for_selector("#again:disabled")
  assert len(service[0].state.received) == count + 1


@needs_browser
def test_a_file_under_way_can_be_stopped(visit):
  page = visit()
  send(page, named("slow"))
  until(page, "document.querySelector('#phase').innerText.includes('being judged')")
  assert page.inner_text("#work h1") == "slow.mp4"
  assert violations(page) == []
  page.click("#cancel")
  page.wait_for_selector("#form")
  assert "Cancelled" in page.inner_text("#chosen")
  assert page.evaluate("document.activeElement.id") == "send"


@needs_browser
def test_a_long_file_is_judged_as_a_job(visit, service, tmp_path):
  app, page = service[0], visit()
  for name in ("call.wav", "lost.wav", "waits.wav", "jobless.wav"):
    scipy.io.wavfile.write(tmp_path / name, 4000, np.zeros(500_000, np.int16))
  send(page, tmp_path / "call.wav")
  until(page, "document.querySelector('#phase').innerText.includes('waits for its turn')")
  page.wait_for_selector("#result h1")
  assert app.state.asked == 3 and "call.wav" in page.inner_text("#result")
  page.click("text=Check another file")
  send(page, tmp_path / "lost.wav")
  page.wait_for_selector("#problem:not([hidden])")
  assert "lost.wav is damaged." in page.inner_text("#problem")
  send(page, tmp_path / "waits.wav")
  until(page, "document.querySelector('#phase').innerText.includes('being judged')")
  assert violations(page) == []
  page.click("#cancel")
  page.wait_for_selector("#form")
  late = time.monotonic() + 30
  while app.state.cancelled != [web_service.JOB]:
    assert time.monotonic() < late
    page.wait_for_timeout(20)
  before = app.state.asked
  # Where there are no jobs it is sent again, to be judged at once.
  judged(page, tmp_path / "jobless.wav")
  assert (
    app.state.asked == before and [name for _, name, *_ in app.state.received][-2:] == ["jobless.wav"] * 2
  )


@needs_browser
def test_who_knows_better_can_say_so(visit, service, media):
  app, page = service[0], visit(scheme="dark", width=360)
  app.state.feedback.clear()
  judged(page, media["portrait.jpg"])
  assert violations(page) == [] and fits(page)
  page.focus("#feedback button")
  page.keyboard.press("Enter")
  assert "Choose one" in page.inner_text("#feedback-told") and app.state.feedback == []
  page.keyboard.press("Space")
  page.fill("#comment", "too late")
  page.click("#feedback button")
  until(page, "document.querySelector('#feedback-told').innerText.includes('It is forgotten. Send the file')")
  page.fill("#comment", "I took it.")
  page.click("#feedback button")
  until(page, "document.querySelector('#feedback-told').innerText.includes('Thank you')")
  assert not page.query_selector("#feedback") and violations(page) == [] and fits(page)
  sent = {"result_id": "r" * 22, "label": "authentic"}
  assert app.state.feedback == [sent | {"comment": "too late"}, sent | {"comment": "I took it."}]


@needs_browser
def test_all_can_be_done_with_keys(visit, media):
  page, choosers = visit(), []
  # From the start: on a busy machine the key is faster than what looks for its dialog.
  page.on("filechooser", lambda chooser: choosers.append(chooser))
  keys = page.keyboard

  def tab_to(selector, most=40):
    for _ in range(most):
      keys.press("Tab")
      if page.evaluate("(s) => document.activeElement.matches(s)", selector):
        return
    raise AssertionError(f"the tab key does not reach {selector}")

  tab_to("a.skip")
  tab_to("#file")
  keys.press("Enter")
  late = time.monotonic() + 60
  while not choosers:
    assert time.monotonic() < late, "no dialog for a file was opened"
    page.wait_for_timeout(20)
  choosers[0].set_files(media["interview.mp4"])
  tab_to("#key")
  keys.type(web_service.KEY)
  keys.press("Enter")
  page.wait_for_selector("#result h1")
  page.wait_for_selector(".spectrogram .window")
  tab_to(".jump")
  keys.press("Enter")
  until(page, "Math.abs(document.querySelector('video').currentTime - 2.95) < 0.01")
  tab_to("#f1-p1 .point")
  for _ in range(3):
    keys.press("ArrowRight")
  assert page.is_visible("#preview img")
  keys.press("Enter")
  until(page, "Math.abs(document.querySelector('video').currentTime - 2.2) < 0.01")
  tab_to("#f1-sound .spectrogram .window")
  keys.press("End")
  keys.press("Enter")
  until(page, "Math.abs(document.querySelector('video').currentTime - 4) < 0.01")


@needs_browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 360)])
def test_page_and_verdict_pass_axe(visit, media, scheme, width):
  page = visit(scheme=scheme, width=width)
  assert fits(page) and (scheme == "light" or violations(page) == [])
  judged(page, media["interview.mp4"])
  page.wait_for_selector(".spectrogram .window")
  page.wait_for_selector(".model")
  page.click(".model summary")
  assert violations(page) == [] and fits(page)


@needs_browser
def test_a_report_cannot_bring_code_into_the_page(visit, service, monkeypatch):
  """Should the service ever be made to answer with somebody else's HTML."""
  hostile = (
    '<img src="/x" onerror="window.owned = 1"><iframe srcdoc="x"></iframe><a href="javascript:owned=2">b</a>'
    '<form action="/y"><button>c</button></form><svg><a xlink:href="javascript:owned=3"><rect/></a></svg>'
    "</article>"
  )
  honest = web_service.answer_json

  def tampered(answer):
    told = honest(answer)
    return {**told, "report_html": told["report_html"].replace("</article>", hostile, 1)}

  monkeypatch.setattr(web_service, "answer_json", tampered)
  # Newer browsers say so when they read the report, before the page has removed it.
  page = visit(blocked="Executing inline event handler violates")
  judged(page, {"name": "empty.mp4", "mimeType": "video/mp4", "buffer": b"x"})
  assert page.evaluate("window.owned") is None
  assert not page.query_selector(
    "#result iframe, #result article form, #result [onerror], #result img[src='/x']"
  )
  assert "javascript:" not in page.inner_html("#result")
