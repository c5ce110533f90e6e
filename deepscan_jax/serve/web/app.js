"use strict";
// Sends a file to the API and shows the answer. The verdict itself, with its charts and words, is the report's
// own HTML, which the answer brings along; here it is joined to the file as the browser plays it.
(() => {
  const API = "api/v1/";
  const SUFFIXES = {
    video: ["mp4", "m4v", "mov", "3gp", "avi", "mkv", "webm", "mpg", "mpeg"],
    image: ["jpg", "jpeg", "png", "webp"],
    audio: ["wav", "mp3", "flac", "m4a", "ogg", "opus"],
  };
  const WORDS = {
    likely_authentic: "likely authentic", inconclusive: "inconclusive", likely_manipulated: "likely manipulated",
    not_applicable: "not judged",
  };
  const KINDS = { video: "Video", image: "Picture", audio: "Sound" };
  // What the browser would have to hold at once to draw a spectrogram.
  const MOST_SOUND_BYTES = 256e6;
  const MOST_SOUND_S = 1200;
  const SOUND_RATE_HZ = 16000;
  const CROP_PX = 224;
  // A longer file is sent as a job, whose state is asked for: no connection has to last until it is judged.
  const LATER_S = 120;
  const LATER_BYTES = 64e6;
  // At first, and at most: a key may ask so often in an hour.
  const ASK_EVERY_MS = [1000, 5000];
  // Answers in a row that may be missing, when a connection breaks off or a server is exchanged.
  const MOST_MISSING = 5;

  const $ = (id) => document.getElementById(id);
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const dark = matchMedia("(prefers-color-scheme: dark)");

  let file = null;
  let kind = null;
  let request = null;
  // The job under way: its address, and the key that it belongs to.
  let job = null;
  // How long the chosen file plays, as far as the browser can tell.
  let seconds = Promise.resolve(0);
  // Timers: how long a file has been judged, and when it may be tried again.
  let counting = 0;
  let ticking = 0;
  // What the shown answer holds on to: addresses of blobs, listeners.
  let release = [];

  // Small words ------------------------------------------------------------------------------------------

  const make = (name, attributes = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value !== null && value !== false) element.setAttribute(key, value === true ? "" : value);
    }
    element.append(...children);
    return element;
  };
  // As the report writes them.
  const percent = (p) => {
    const whole = Math.round(100 * p);
    return `${{ 0: "<1", 100: ">99" }[whole] ?? whole}\u00a0%`;
  };
  const minutes = (s) => {
    const tenths = Math.round(10 * s);
    return `${Math.floor(tenths / 600)}:${((tenths % 600) / 10).toFixed(1).padStart(4, "0")}`;
  };
  const clock = (s) => (s < 60 ? `${s.toFixed(2)}\u00a0s` : minutes(s));
  const span = (from, to) =>
    to < 60 ? `${from.toFixed(1)} to ${to.toFixed(1)}\u00a0s` : `${minutes(from)} to ${minutes(to)}`;
  const bytes = (n) => (n < 1e6 ? `${Math.max(1, Math.round(n / 1e3))}\u00a0kB` : `${(n / 1e6).toFixed(1)}\u00a0MB`);
  const wait = (s) => {
    if (s < 90) return `${s} second${s === 1 ? "" : "s"}`;
    return `${Math.round(s / 60)} minutes`;
  };
  const outcomeOf = (p, thresholds) => {
    if (p === null) return "not_applicable";
    if (p >= thresholds.manipulated) return "likely_manipulated";
    return p >= thresholds.inconclusive ? "inconclusive" : "likely_authentic";
  };
  const clamp = (x, low, high) => Math.max(low, Math.min(high, x));

  // Choosing a file --------------------------------------------------------------------------------------

  const kindOf = (candidate) => {
    const suffix = candidate.name.toLowerCase().split(".").pop();
    const known = Object.keys(SUFFIXES).find((name) => SUFFIXES[name].includes(suffix));
    if (known) return known;
    const type = candidate.type.split("/")[0];
    return type in SUFFIXES ? type : null;
  };

  const choose = (files) => {
    const [first, second] = files;
    if (!first) return;
    file = null;
    kind = kindOf(first);
    const chosen = $("chosen");
    chosen.classList.toggle("wrong", Boolean(second) || !kind);
    if (second) {
      chosen.textContent = "Several files were dropped; choose one.";
    } else if (!kind) {
      chosen.textContent = `${first.name} is neither a video, a picture nor a sound file of a known kind.`;
    } else {
      file = first;
      seconds = kind === "image" ? Promise.resolve(0) : playingTime(file);
      chosen.replaceChildren(make("bdi", {}, file.name), make("span", {}, ` ${KINDS[kind]}, ${bytes(file.size)}`));
      document.querySelector("#drop .cue").textContent = "Choose another file";
    }
    $("drop").classList.toggle("full", Boolean(file));
    hideProblem();
  };

  /** Seconds that a file plays; 0 where the browser cannot tell at once. */
  const playingTime = async (candidate) => {
    const url = URL.createObjectURL(candidate);
    const media = make(kind, { preload: "metadata", src: url });
    try {
      await event(media, "loadedmetadata", 3000);
      return Number.isFinite(media.duration) ? media.duration : 0;
    } catch (error) {
      if (!(error instanceof MissingEvent)) throw error;
      return 0;
    } finally {
      // What is still being read would fail aloud.
      media.removeAttribute("src");
      media.load();
      URL.revokeObjectURL(url);
    }
  };

  $("file").addEventListener("change", (event) => choose(event.target.files));
  $("file").addEventListener("keydown", (event) => {
    // Or else this key would send the form.
    if (event.key !== "Enter") return;
    event.preventDefault();
    $("file").click();
  });
  let over = 0;
  const mark = (change) => {
    over = Math.max(0, over + change);
    $("drop").classList.toggle("over", over > 0);
  };
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  // Anywhere on the page: a file that misses its target must not replace the page.
  addEventListener("dragenter", (event) => holdsFiles(event) && mark(1));
  addEventListener("dragleave", (event) => holdsFiles(event) && mark(-1));
  addEventListener("dragover", (event) => holdsFiles(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    mark(-over);
    if (request || job) return;
    if ($("ask").hidden) askAgain();
    choose(event.dataTransfer.files);
  });

  $("show").addEventListener("click", () => {
    const shown = $("key").type === "text";
    $("key").type = shown ? "password" : "text";
    $("show").setAttribute("aria-pressed", String(!shown));
  });

  const keyIsWrong = (words) => {
    $("key-wrong").textContent = words;
    $("key-wrong").hidden = !words;
    if (words) {
      $("key").setAttribute("aria-invalid", "true");
      $("key").focus();
    } else {
      $("key").removeAttribute("aria-invalid");
    }
  };
  $("key").addEventListener("input", () => keyIsWrong(""));

  // Sending it -------------------------------------------------------------------------------------------

  const only = (id) => {
    for (const name of ["ask", "work", "result"]) $(name).hidden = name !== id;
    $("preview").hidden = true;
  };

  /** later: as a job; null: if the file is long. */
  const send = async (later = null) => {
    if (request || job) return;
    if (!file) {
      $("chosen").classList.add("wrong");
      $("chosen").textContent = "Choose a file first.";
      $("file").focus();
      return;
    }
    const key = $("key").value.trim();
    // What an HTTP header can carry.
    if (!/^[\x21-\x7e]+$/.test(key)) {
      keyIsWrong(key ? "A key is made of letters, digits and signs without spaces." : "Enter the key of the service.");
      return;
    }
    hideProblem();
    only("work");
    $("work-title").replaceChildren(make("bdi", {}, file.name));
    $("work-title").focus();
    const bar = $("bar");
    bar.max = 1;
    bar.value = 0;
    $("phase").textContent = "Sending the file.";
    $("amount").textContent = `0 of ${bytes(file.size)}`;
    const form = new FormData();
    form.append(kind, file, file.name);
    // Of what fetch offers, nothing tells how much of a file was sent.
    request = new XMLHttpRequest();
    const mine = request;
    const long = kind !== "image" && (file.size > LATER_BYTES || (await seconds) > LATER_S);
    if (request !== mine) return;
    request.open("POST", `${API}detect/${kind}?explain=true${later ?? long ? "&async=true" : ""}`);
    request.setRequestHeader("Authorization", `Bearer ${key}`);
    request.setRequestHeader("Accept", "application/json, application/problem+json");
    request.upload.addEventListener("progress", (event) => {
      if (!event.lengthComputable) return;
      bar.max = event.total;
      bar.value = event.loaded;
      $("amount").textContent = `${bytes(Math.min(event.loaded, file.size))} of ${bytes(file.size)}`;
    });
    request.upload.addEventListener("load", () => {
      bar.removeAttribute("value");
      $("phase").textContent = "The file has arrived and is being judged.";
      const begun = Date.now();
      const tell = () => { $("amount").textContent = `${Math.round((Date.now() - begun) / 1000)}\u00a0s`; };
      tell();
      counting = setInterval(tell, 1000);
    });
    const over = (next) => () => {
      request = null;
      if (mine.status !== 202) clearInterval(counting);
      next();
    };
    request.addEventListener("load", over(() => answered(mine, key)));
    request.addEventListener("error", over(() => failed(mine)));
    request.addEventListener("abort", over(cancelled));
    request.send(form);
  };

  const cancelled = () => {
    only("ask");
    $("chosen").textContent = "Cancelled. The file is still chosen.";
    $("send").focus();
  };

  $("form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
  $("cancel").addEventListener("click", () => {
    if (job) {
      const { url, key } = job;
      endJob();
      // Whether it is heard or not, nobody waits for the answer any more.
      fetch(url, { method: "DELETE", headers: { Authorization: `Bearer ${key}` } }).catch(unheard);
      cancelled();
    } else if (request?.readyState === XMLHttpRequest.UNSENT) {
      request = null;
      cancelled();
    } else {
      request?.abort();
    }
  });
  $("again").addEventListener("click", () => send());

  /** What went wrong on the way to the service, as no answer; anything else is a defect of this page. */
  const unheard = (error) => {
    if (!(error instanceof TypeError || error instanceof SyntaxError)) throw error;
    return null;
  };

  const answered = (done, key) => {
    if (done.status === 202) {
      // By its id: where the service lies behind a proxy, its own addresses may begin otherwise.
      const id = /"id": ?"([0-9a-f]{32})"/.exec(done.responseText)?.[1];
      if (id) follow(`${API}batch/${id}`, key);
      else read(() => ({}), key, null);
      return;
    }
    if (done.status < 200 || done.status > 299) {
      const told = problemOf(done);
      // A service without jobs judges long files too, while the connection lasts.
      if (told.code === "no_jobs") send(false);
      else failed(done);
      return;
    }
    read(() => JSON.parse(done.responseText), key, leftOf(done.getResponseHeader("RateLimit")));
  };

  const leftOf = (header) => /;\s*r=(\d+)/.exec(header ?? "")?.[1] ?? null;

  /** Asks for a job until it has ended; then shows what was found. */
  const follow = async (url, key) => {
    const mine = { url, key };
    job = mine;
    let missing = 0;
    let [pause, most] = ASK_EVERY_MS;
    for (;;) {
      await new Promise((resume) => { setTimeout(resume, pause); });
      pause = Math.min(1.1 * pause, most);
      if (job !== mine) return;
      const answer = await fetch(`${url}?limit=1`, { headers: { Authorization: `Bearer ${key}` } }).catch(unheard);
      const told = answer?.ok ? await answer.json().catch(unheard) : null;
      if (job !== mine) return;
      if (answer && !answer.ok && answer.status < 500 && answer.status !== 429) {
        endJob();
        showProblem(inWords((await answer.json().catch(unheard)) ?? {}, answer.status, null), { again: true });
        return;
      }
      if (answer?.status === 429) most = pause = 4 * ASK_EVERY_MS[1];
      else missing = told ? 0 : missing + 1;
      if (missing > MOST_MISSING) {
        endJob();
        showProblem(wordsOf(0), { again: true });
        return;
      }
      if (!told) continue;
      const now = told.running ? "The file is being judged." : "The file has arrived and waits for its turn.";
      // Those who hear it are told once.
      if (!$("phase").textContent.startsWith(now)) $("phase").textContent = `${now} Keep this page open.`;
      if (told.state === "listing" || told.state === "running") continue;
      endJob();
      ended(told, key);
      return;
    }
  };

  const endJob = () => {
    job = null;
    clearInterval(counting);
  };

  const ended = (told, key) => {
    const [row] = told.results;
    const why = told.problem ?? row?.error;
    if (row?.verdict) {
      read(() => ({ ...row.verdict, result_id: row.result_id }), key, null);
    } else {
      showProblem({
        title: "The file was not judged", detail: why?.message ?? "The job was ended before it was.", remedy: "",
        fine: why ? `code ${why.code}` : "",
      }, { again: true });
    }
  };

  const read = (parse, key, left) => {
    let answer = null;
    try {
      answer = parse();
      if (!answer.report_html.includes("<article")) throw new SyntaxError("no report");
    } catch (error) {
      if (!(error instanceof SyntaxError || error instanceof TypeError)) throw error;
      showProblem({
        title: "The answer was not understood",
        detail: "What came back is not what this version of the page expects.",
        remedy: "Reload the page; if that does not help, tell whoever runs the service.",
      }, { again: true });
      return;
    }
    showResult(answer, key, left);
  };

  // Problems ---------------------------------------------------------------------------------------------

  // Where the answer comes from something in between, which knows no problem+json.
  const PROBLEMS = {
    0: ["The service cannot be reached", "Nothing came back.", "Check the connection, then try again."],
    401: ["The key was not accepted", "The service does not know this key, or it has expired.", "Check the key."],
    403: ["The key is not for this", "This key may not have files judged.", "Ask whoever runs the service for one that may."],
    413: ["The file is too large", "It is larger than the service takes.", "Send a shorter passage."],
    429: ["Too many requests", "This key has used up what it may ask for now.", ""],
    503: ["The service is busy", "It has more to do than it can take.", "Try again in a moment."],
    504: ["It took too long", "There was no answer in time.", "Send a shorter passage."],
  };

  const wordsOf = (status) => {
    const [title, detail, remedy] = PROBLEMS[status]
      ?? ["The file was not judged", `The service answered with status ${status}.`, ""];
    return { title, detail, remedy };
  };

  /** The problem+json of an answer; what it does not hold is missing. */
  const problemOf = (done) => {
    if (!/json/.test(done.getResponseHeader("Content-Type") ?? "")) return {};
    try {
      return JSON.parse(done.responseText) ?? {};
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
      return {}; // cut off on its way: the status still says what it is
    }
  };

  /** A problem as people read it. */
  const inWords = (told, status, id) => {
    const { title, detail, remedy } = wordsOf(status);
    const text = (value, other) => (typeof value === "string" && value ? value : other);
    const faults = Array.isArray(told.errors) ? told.errors.map((fault) => text(fault?.message, "")) : [];
    return {
      title: text(told.title, title),
      detail: [text(told.detail, detail), ...faults].join(" ").trim(),
      remedy: text(told.remedy, told.title ? "" : remedy),
      fine: [told.code, id ?? told.request_id ?? told.instance]
        .filter((part) => typeof part === "string" && part).join(", "),
    };
  };

  const failed = (done) => {
    const after = done.getResponseHeader("Retry-After");
    let at = null;
    if (after) at = /^\d+$/.test(after) ? Date.now() + 1000 * Number(after) : Date.parse(after) || null;
    const problem = inWords(problemOf(done), done.status, done.getResponseHeader("X-Request-ID"));
    showProblem(problem, { at, again: [0, 408, 429].includes(done.status) || done.status >= 500 });
    if (done.status === 401 || done.status === 403) keyIsWrong(problem.title + ".");
  };

  const hideProblem = () => {
    $("problem").hidden = true;
    clearInterval(ticking);
  };

  const showProblem = ({ title, detail, remedy, fine = "" }, { at = null, again }) => {
    only("ask");
    for (const [name, text] of Object.entries({ title, detail, remedy, fine })) {
      $(`problem-${name}`).textContent = name === "fine" && text ? `For whoever runs the service: ${text}` : text;
      $(`problem-${name}`).hidden = !text;
    }
    $("again").parentElement.hidden = !again;
    const tell = () => {
      const left = at === null ? 0 : Math.ceil((at - Date.now()) / 1000);
      $("again").disabled = left > 0;
      const time = new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
      $("problem-when").textContent = left > 0
        ? `You can try again at ${time}, in ${wait(left)}.` : "You can try again now.";
      if (left <= 0) clearInterval(ticking);
    };
    clearInterval(ticking);
    $("problem-when").hidden = at === null;
    tell();
    if (at !== null) ticking = setInterval(tell, 1000);
    $("problem").hidden = false;
    $("problem").focus();
    document.title = `deepscan: ${title}`;
  };

  // The answer -------------------------------------------------------------------------------------------

  const KEPT_ELEMENTS = new Set((
    "main article header section div figure figcaption h1 h2 p span strong b i em small bdi a svg path rect line polyline "
    + "img input label table thead tbody tr th td dl dt dd details summary ul li"
  ).split(" "));

  // Of the report only its middle. The page's policy forbids styles in attributes, but not setting them one by one.
  const middle = (html) =>
    html.slice(html.indexOf("<main"), html.lastIndexOf("</main>")).replaceAll(' style="', ' data-style="');
  const policy = window.trustedTypes?.createPolicy("deepscan-report", { createHTML: middle }) ?? { createHTML: middle };

  /** The article and the limits of a report, as elements of this page; nothing in them can run or ask for anything. */
  const readReport = (html) => {
    const parsed = new DOMParser().parseFromString(policy.createHTML(html), "text/html");
    for (const element of parsed.body.querySelectorAll("*")) {
      if (!KEPT_ELEMENTS.has(element.localName)) {
        element.remove();
        continue;
      }
      for (const { name, value } of [...element.attributes]) {
        const leads = { href: "#", src: "data:image/" }[name.split(":").pop()];
        if (name.startsWith("on") || (leads && !value.startsWith(leads))) element.removeAttribute(name);
      }
    }
    return ["article", "section.limits"].map((which) => {
      const element = document.importNode(parsed.querySelector(which), true);
      for (const styled of element.querySelectorAll("[data-style]")) {
        styled.style.cssText = styled.dataset.style;
        delete styled.dataset.style;
      }
      return element;
    });
  };

  const hold = (blob) => {
    const url = URL.createObjectURL(blob);
    release.push(() => URL.revokeObjectURL(url));
    return url;
  };
  const listen = (target, type, handler) => {
    target.addEventListener(type, handler);
    release.push(() => target.removeEventListener(type, handler));
  };

  const showResult = (answer, key, left) => {
    letGo();
    const [article, limits] = readReport(answer.report_html);
    const title = article.querySelector("h1");
    // The service may know the file by a name of its own making.
    title.replaceChildren(make("bdi", {}, file.name));
    title.tabIndex = -1;
    const player = makePlayer(answer);
    const band = article.querySelector(".band");
    arrange(band);
    band.after(saving(answer, left), player.element);
    article.classList.toggle("beside", kind !== "audio");
    for (const point of article.querySelectorAll(".point[data-time]")) {
      if (!point.hasAttribute("href")) point.setAttribute("href", "#player");
    }
    const of = answer.sound?.deepfake_probability == null ? null : article.querySelector("[id$='-sound']");
    if (kind !== "image" && (of || kind === "audio")) drawSound(answer, of ?? player.element, player);
    attachCharts(article, $("preview"));
    joinTimes(article, player);
    pictureEverybody(answer, article);
    $("result").replaceChildren(article, limits, ...(answer.result_id ? [feedback(answer, key)] : []));
    only("result");
    player.refresh();
    tellOfModel(answer, limits, key);
    scrollTo(0, 0);
    title.focus();
    const words = article.querySelector(".band .words").textContent.trim();
    document.title = `${words}: ${file.name}`;
  };

  /** What was found; why, and what to do; what the thresholds mean: beside each other where there is room. */
  const arrange = (band) => {
    const [heading, ...rest] = band.children;
    const parts = { found: [], why: [], meaning: [] };
    for (const child of rest) {
      const names = child.classList;
      const part = names.contains("fine") ? "meaning" : ["words", "figure", "scale"].some((n) => names.contains(n)) ? "found" : "why";
      parts[part].push(child);
    }
    band.replaceChildren(heading, ...Object.entries(parts).filter(([, inside]) => inside.length)
      .map(([name, inside]) => make("div", { class: name }, ...inside)));
  };

  const saving = (answer, left) => {
    const stem = file.name.replace(/\.[^.]*$/, "");
    const { report_html: html, evidence, ...facts } = answer;
    const again = make("button", { type: "button", class: "button" }, "Check another file");
    again.addEventListener("click", askAgain);
    const link = (words, text, type, suffix) =>
      make("a", { href: hold(new Blob([text], { type })), download: `${stem}.deepscan.${suffix}`, class: "button" }, words);
    const told = [
      answer.model_version && `Model ${answer.model_version}`,
      answer.request_id && `request ${answer.request_id}`,
      left !== null && `${left} more requests before the limit`,
    ].filter(Boolean);
    return make(
      "div", { class: "actions" },
      link("Save the report", html, "text/html", "html"),
      link("Save as JSON", JSON.stringify(facts, null, 2), "application/json", "json"),
      again,
      make("p", { class: "fine" }, told.join(" · ")),
    );
  };

  const LABELS = { authentic: "It is authentic", manipulated: "It was manipulated or generated", unsure: "I am not sure" };

  /** A form in which who knows better says so. */
  const feedback = (answer, key) => {
    const choices = Object.entries(LABELS).map(([value, words]) =>
      make("label", { class: "option" }, make("input", { type: "radio", name: "label", value }), words));
    const comment = make("textarea", { id: "comment", rows: "3", maxlength: "2000", "aria-describedby": "comment-hint" });
    const button = make("button", { type: "submit", class: "button" }, "Send feedback");
    const told = make("p", { id: "feedback-told", role: "status" });
    const form = make("form", { id: "feedback", novalidate: true },
      make("fieldset", { "aria-describedby": "feedback-told" },
        make("legend", {}, "What is this file really?"), make("div", { class: "choices" }, ...choices)),
      make("div", { class: "field" }, make("label", { for: "comment" }, "How do you know? (optional)"), comment,
        make("p", { id: "comment-hint", class: "fine" },
          "The service keeps this with the verdict, for review; it keeps nothing of the file for it.")),
      make("div", {}, button));
    const say = (words, wrong) => {
      told.textContent = words;
      told.classList.toggle("wrong", wrong);
    };
    form.addEventListener("submit", async (submitted) => {
      submitted.preventDefault();
      const label = form.querySelector("input:checked")?.value;
      if (!label) {
        say("Choose one of the three first.", true);
        form.querySelector("input").focus();
        return;
      }
      if (button.disabled) return;
      button.disabled = true;
      say("Sending \u2026", false);
      const answered = await fetch(`${API}feedback`, {
        method: "POST",
        headers: { Authorization: `Bearer ${key}`, "Content-Type": "application/json" },
        body: JSON.stringify({ result_id: answer.result_id, label, comment: comment.value }),
      }).catch(unheard);
      if (answered?.ok) {
        form.remove();
        say(`Thank you. It was kept for review: ${LABELS[label].toLowerCase()}.`, false);
        return;
      }
      button.disabled = false;
      const problem = inWords((await answered?.json().catch(unheard)) ?? {}, answered?.status ?? 0, null);
      say(`${problem.detail} ${problem.remedy}`.trim(), true);
    });
    return make("section", { class: "card feedback", "aria-labelledby": "feedback-title" },
      make("h2", { id: "feedback-title" }, "Do you know better?"), form, told);
  };

  const letGo = () => {
    for (const free of release) free();
    release = [];
  };

  const askAgain = () => {
    letGo();
    $("result").replaceChildren();
    $("file").value = "";
    file = null;
    $("chosen").textContent = "";
    $("drop").classList.remove("full");
    document.querySelector("#drop .cue").textContent = "Choose a file";
    document.title = "deepscan: check a file";
    hideProblem();
    only("ask");
    $("file").focus();
  };

  // The file, as the browser plays it ----------------------------------------------------------------------

  const TITLES = { video: "The video", image: "The picture", audio: "The recording" };

  const makePlayer = (answer) => {
    const ofFaces = (answer.faces ?? answer).thresholds;
    const media = kind === "image"
      ? make("img", { alt: `The picture that was judged: ${file.name}` })
      : make(kind, { controls: true, playsinline: true, preload: "auto", "aria-label": `${TITLES[kind]} ${file.name}` });
    media.src = hold(file);
    const canvas = make("canvas", { "aria-hidden": "true" });
    const screen = make("div", { class: `screen ${kind}` }, media, kind === "audio" ? "" : canvas);
    const charted = answer.sound?.deepfake_probability != null || answer.people.some((p) => p.boxes.length > 1);
    const moment = make("p", { class: "moment", role: "status" },
      charted ? "Choose a point of a chart or a marked moment to go there." : "");
    const element = make("section", { class: "card player", id: "player", "aria-labelledby": "player-title", tabindex: "-1" },
      make("h2", { id: "player-title" }, TITLES[kind]), screen);

    const maps = answer.evidence?.filter((e) => e.place).map((e) => {
      const picture = new Image();
      picture.addEventListener("load", () => refresh());
      picture.src = e.region_map;
      return { ...e, picture };
    }) ?? [];
    const option = (words) => {
      const box = make("input", { type: "checkbox", checked: true });
      box.addEventListener("change", () => refresh());
      return [box, make("label", { class: "option" }, box, words)];
    };
    const [boxes, boxesLabel] = option("Faces");
    const [shades, shadesLabel] = option("Region maps");
    const options = make("div", { class: "controls" });
    if (answer.people.length) options.append(boxesLabel);
    if (maps.length) options.append(shadesLabel);

    const heads = [];
    const player = {
      element, media, playable: true,
      /** Moves the player to a time and says what was judged there. */
      seek(time, words = describe(time)) {
        // A little inside of the frame: rounding must not show the one before.
        media.currentTime = time + 0.001;
        moment.textContent = words;
        const at = element.getBoundingClientRect();
        if (at.bottom < 80 || at.top > innerHeight - 80) {
          element.scrollIntoView({ block: "nearest", behavior: still.matches ? "auto" : "smooth" });
        }
      },
      /** A line on a chart that follows the player. */
      follow(plot, start, end) {
        const head = make("span", { class: "playhead", "aria-hidden": "true" });
        plot.append(head);
        heads.push({ head, start, end });
      },
      refresh: () => refresh(),
    };

    const describe = (time) => {
      const told = [];
      for (const person of answer.people) {
        const seen = person.boxes.find((s) => Math.abs(s.time_s - time) < 0.02);
        if (!seen || (seen.probability === null && !seen.reasons.length)) continue;
        const words = WORDS[outcomeOf(seen.probability, ofFaces)];
        told.push(`person ${person.id} ${seen.probability === null ? words : `${percent(seen.probability)}, ${words}`}`);
      }
      // Of those that overlap the one in whose middle the time is.
      const off = (s) => Math.abs((s.start_s + s.end_s) / 2 - time);
      const [heard] = [...(answer.sound?.moments ?? []), ...(answer.sound?.windows ?? [])]
        .filter((s) => s.start_s <= time && time < s.end_s).sort((a, b) => off(a) - off(b));
      if (heard) {
        const words = WORDS[outcomeOf(heard.probability, answer.sound.thresholds)];
        told.push(`sound ${percent(heard.probability)}, ${words}`);
      }
      return `At ${clock(time)}: ${told.join("; ") || "nothing was judged here"}.`;
    };

    const draw = () => {
      const width = canvas.clientWidth;
      const height = canvas.clientHeight;
      const across = media.videoWidth ?? media.naturalWidth;
      const down = media.videoHeight ?? media.naturalHeight;
      if (!width || !across) return;
      const fine = devicePixelRatio || 1;
      if (canvas.width !== Math.round(width * fine)) canvas.width = Math.round(width * fine);
      if (canvas.height !== Math.round(height * fine)) canvas.height = Math.round(height * fine);
      const pen = canvas.getContext("2d");
      pen.setTransform(1, 0, 0, 1, 0, 0);
      pen.clearRect(0, 0, canvas.width, canvas.height);
      const scale = Math.min(width / across, height / down);
      pen.setTransform(
        fine * scale, 0, 0, fine * scale, (fine * (width - scale * across)) / 2, (fine * (height - scale * down)) / 2,
      );
      const time = kind === "image" ? null : media.currentTime;
      if (shades.checked) {
        for (const map of maps) {
          // A map is of one frame, and of no other.
          if (time !== null && Math.abs(map.time_s - time) > 0.06) continue;
          const [[a, b, c], [d, e, f]] = map.place;
          pen.save();
          pen.transform(a, d, b, e, c, f);
          pen.drawImage(map.picture, 0, 0, CROP_PX, CROP_PX);
          pen.restore();
        }
      }
      if (!boxes.checked) return;
      const style = getComputedStyle(canvas);
      for (const person of answer.people) {
        const seen = whereIs(person, time);
        if (!seen) continue;
        const colour = style.getPropertyValue(`--film-${outcomeOf(seen.probability, ofFaces)}`);
        const words = `Person ${person.id}${seen.probability === null ? "" : `, ${percent(seen.probability)}`}`;
        frame(pen, seen, words, colour, { scale, across, down });
      }
    };

    let due = 0;
    const refresh = () => {
      cancelAnimationFrame(due);
      due = requestAnimationFrame(() => {
        if (kind !== "audio") draw();
        for (const { head, start, end } of heads) {
          const share = (media.currentTime - start) / (end - start);
          head.hidden = !(share >= 0 && share <= 1);
          head.style.left = `${100 * clamp(share, 0, 1)}%`;
        }
        if (media.paused === false) refresh();
      });
    };
    for (const type of ["loadeddata", "seeked", "play", "pause", "timeupdate", "load"]) media.addEventListener(type, refresh);
    listen(window, "resize", refresh);
    release.push(() => { cancelAnimationFrame(due); media.pause?.(); });
    media.addEventListener("error", () => {
      player.playable = false;
      element.classList.add("unplayable");
      screen.replaceChildren(make("p", {}, "This browser cannot show a file of this kind. The verdict does not depend on that."));
    });

    const times = [...new Set(answer.people.flatMap((p) => p.boxes.filter((s) => s.probability !== null).map((s) => s.time_s)))]
      .sort((a, b) => a - b);
    if (kind === "video" && times.length > 1) {
      const step = (words, find) => {
        const button = make("button", { type: "button", class: "button small" }, words);
        button.addEventListener("click", () => player.seek(find(media.currentTime - 0.001)));
        return button;
      };
      options.append(make("span", { class: "steps" },
        step("Earlier face", (now) => times.findLast((t) => t < now - 0.02) ?? times.at(-1)),
        step("Later face", (now) => times.find((t) => t > now + 0.02) ?? times[0])));
    }
    if (options.childElementCount) element.append(options);
    if (kind !== "image") element.append(lanes(answer, player), moment);
    if (kind !== "audio" && answer.people.length) {
      const told = ["Frames around faces are where the model looked", kind === "video" ? "; dashed: between two looks." : "."];
      if (maps.length) told.push(" Coloured maps are model attention, not proof.");
      element.append(make("p", { class: "fine" }, told.join("")));
    }
    return player;
  };

  /** Where a person is at a time, between two looks on the way from one to the other; null where not seen. */
  const whereIs = (person, time) => {
    const seen = person.boxes;
    if (time === null) return { ...seen[0], exact: true };
    const later = seen.findIndex((s) => s.time_s >= time - 0.03);
    const next = seen[later];
    if (next && Math.abs(next.time_s - time) <= 0.03) return { ...next, exact: true };
    const last = seen.at(later === -1 ? -1 : later - 1);
    if (later <= 0) return later === 0 || time - last.time_s > 0.5 ? null : { ...last, exact: false };
    const gap = next.time_s - last.time_s;
    const steps = seen.slice(1).map((s, i) => s.time_s - seen[i].time_s).sort((a, b) => a - b);
    if (gap > 2.5 * steps[steps.length >> 1]) return null;
    const share = (time - last.time_s) / gap;
    return {
      box: last.box.map((x, i) => x + share * (next.box[i] - x)),
      probability: share < 0.5 ? last.probability : next.probability,
      exact: false,
    };
  };

  const frame = (pen, { box, exact }, words, colour, { scale, across, down }) => {
    const [left, top, right, bottom] = box;
    const thin = 1 / scale;
    const path = () => {
      pen.beginPath();
      pen.roundRect(left, top, right - left, bottom - top, 6 * thin);
      pen.stroke();
    };
    pen.setLineDash([]);
    pen.lineWidth = 5 * thin;
    pen.strokeStyle = "rgb(0 0 0 / .55)";
    path();
    pen.setLineDash(exact ? [] : [7 * thin, 5 * thin]);
    pen.lineWidth = 2.5 * thin;
    pen.strokeStyle = colour;
    path();
    pen.setLineDash([]);
    pen.font = `600 ${13 * thin}px system-ui, sans-serif`;
    const wide = pen.measureText(words).width + 14 * thin;
    const x = clamp(left, 0, Math.max(0, across - wide));
    const high = 22 * thin;
    const above = top - high - 4 * thin;
    const y = above > 0 ? above : Math.min(bottom + 4 * thin, down - high);
    pen.fillStyle = "rgb(12 14 17 / .86)";
    pen.beginPath();
    pen.roundRect(x, y, wide, high, 4 * thin);
    pen.fill();
    pen.fillStyle = colour;
    pen.textBaseline = "middle";
    pen.fillText(words, x + 7 * thin, y + high / 2);
  };

  /** The whole file as one line for each person and for the sound, with a button for each marked moment. */
  const lanes = (answer, player) => {
    const rows = answer.people.filter((p) => p.boxes.length > 1).map((p) => ({
      name: `Person ${p.id}`, marked: p.marked, judged: p.deepfake_probability !== null,
      looked: p.boxes.filter((s) => s.probability !== null).map((s) => [s.time_s, s.time_s]),
    }));
    if (answer.sound?.deepfake_probability != null) {
      rows.push({
        name: "Sound", marked: answer.sound.marked, judged: true,
        looked: answer.sound.windows.map((w) => [w.start_s, w.end_s]),
      });
    }
    const length = Math.max(
      answer.file.media?.duration_s ?? 0, ...rows.flatMap((row) => row.looked.flat()), ...answer.timeline.map((t) => t.time_s),
    );
    const list = make("div", { class: "lanes" });
    if (!length || !rows.length) return list;
    list.append(make("h3", {}, "Marked as likely manipulated"));
    const percentOf = (time) => `${(100 * clamp(time / length, 0, 1)).toFixed(3)}%`;
    for (const row of rows) {
      const track = make("div", { class: "track", "aria-hidden": "true" });
      const put = (name, from, to) => {
        const mark = make("i", { class: name });
        mark.style.left = percentOf(from);
        mark.style.width = percentOf(to - from);
        track.append(mark);
      };
      for (const [from, to] of row.looked) put("looked", from, to);
      for (const { start_s: from, end_s: to } of row.marked) put("marked", from, to);
      player.follow(track, 0, length);
      track.addEventListener("click", (event) => {
        const at = track.getBoundingClientRect();
        if (player.playable) player.seek((length * (event.clientX - at.left)) / at.width);
      });
      const places = row.marked.map(({ start_s: from, end_s: to }) => {
        const button = make("button", { type: "button", class: "jump", "aria-label": `${row.name}, ${span(from, to)}: show this moment` },
          span(from, to));
        button.addEventListener("click", () => player.playable && player.seek(from));
        return button;
      });
      const none = make("span", { class: "fine" }, row.judged ? "nothing" : "not judged");
      list.append(make("div", { class: "lane" },
        make("span", { class: "whose" }, row.name), track,
        make("span", { class: "jumps" }, ...(places.length ? places : [none]))));
    }
    return list;
  };

  /** Joins the report's charts and faces to the player: a click on a moment goes there, and a line follows it. */
  const joinTimes = (root, player) => {
    const charts = root.matches("figure") ? [root] : root.querySelectorAll("figure.timeline");
    for (const chart of charts) {
      const plot = chart.querySelector(".plot");
      const [start, end] = [Number(chart.dataset.start), Number(chart.dataset.end)];
      player.follow(plot, start, end);
      plot.addEventListener("click", (event) => {
        if (event.target.closest("a") || !player.playable) return;
        const at = plot.getBoundingClientRect();
        player.seek(start + (end - start) * clamp((event.clientX - at.left) / at.width, 0, 1));
      });
    }
    for (const point of root.querySelectorAll("a[data-time]")) {
      const go = (event) => {
        // Without a player the link still leads to the face.
        if (!player.playable) return;
        event.preventDefault();
        const words = point.classList.contains("window") ? `${point.getAttribute("aria-label")}.` : undefined;
        player.seek(Number(point.dataset.time), words);
      };
      point.addEventListener("click", go);
      if (point.dataset.preview && kind === "video") {
        root.querySelector(`[id="${point.dataset.preview}"] .crop`)?.addEventListener("click", go);
      }
    }
  };

  /** Puts each person's face, cut from the file, beside their name. */
  const pictureEverybody = async (answer, article) => {
    const mine = release;
    if (kind === "audio" || !answer.people.length) return;
    const source = kind === "image" ? new Image() : make("video", { preload: "auto" });
    source.muted = true;
    source.src = hold(file);
    try {
      await event(source, kind === "image" ? "load" : "loadeddata");
      for (const person of answer.people) {
        const size = ([left, top, right, bottom]) => Math.max(right - left, bottom - top);
        const largest = (seen) => seen.reduce((a, b) => (size(b.box) > size(a.box) ? b : a));
        const judged = person.boxes.filter((s) => s.probability !== null);
        const { box, time_s: time } = largest(judged.length ? judged : person.boxes);
        if (kind === "video") {
          const arrived = event(source, "seeked");
          source.currentTime = time + 0.001;
          await arrived;
        }
        if (release !== mine) return;
        const side = 1.3 * size(box);
        const canvas = make("canvas", { class: "face", width: 96, height: 96, "aria-hidden": "true" });
        canvas.getContext("2d").drawImage(
          source, (box[0] + box[2] - side) / 2, (box[1] + box[3] - side) / 2, side, side, 0, 0, 96, 96,
        );
        article.querySelector(`section.person[id$="-p${person.id}"] h2`)?.prepend(canvas);
      }
    } catch (error) {
      // The player says already that the browser cannot show this file.
      if (!(error instanceof MissingEvent)) throw error;
    }
  };

  class MissingEvent extends Error {}

  const event = (target, type, most = 10000) => new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new MissingEvent(type)), most);
    const end = (done) => () => { clearTimeout(late); done(new MissingEvent(type)); };
    target.addEventListener(type, end(resolve), { once: true });
    target.addEventListener("error", end(reject), { once: true });
  });

  // The sound as a picture ---------------------------------------------------------------------------------

  const drawSound = async (answer, host, player) => {
    const mine = release;
    const chart = host.querySelector("figure.timeline[data-start]");
    const told = make("p", { class: "fine", role: "status" }, "Drawing the spectrogram \u2026");
    host.append(told);
    const known = answer.file.media?.duration_s ?? 0;
    if (file.size > MOST_SOUND_BYTES || known > MOST_SOUND_S) {
      told.textContent = "The file is too long for the browser to draw its spectrogram.";
      return;
    }
    let samples;
    try {
      const room = new OfflineAudioContext(1, 1, SOUND_RATE_HZ);
      const heard = await room.decodeAudioData(await file.arrayBuffer());
      samples = heard.getChannelData(0).slice();
      for (let channel = 1; channel < heard.numberOfChannels; channel += 1) {
        heard.getChannelData(channel).forEach((x, i) => { samples[i] += x; });
      }
    } catch (error) {
      if (!(error instanceof DOMException)) throw error;
      told.textContent = "This browser cannot decode the sound, so there is no spectrogram. The verdict does not depend on that.";
      return;
    }
    const start = chart ? Number(chart.dataset.start) : 0;
    const end = chart ? Number(chart.dataset.end) : samples.length / SOUND_RATE_HZ;
    const grid = await spectrogram(samples, start, end, 900);
    if (release !== mine) return;

    const canvas = make("canvas", {
      role: "img", width: grid.columns, height: grid.rows,
      "aria-label": `Spectrogram of the sound from ${clock(start)} to ${clock(end)}, 0 to 8 kHz`,
    });
    const windows = (answer.sound?.windows ?? []).map((w) => {
      const outcome = outcomeOf(w.probability, answer.sound.thresholds);
      const words = `${span(w.start_s, w.end_s)}: ${percent(w.probability)}, ${WORDS[outcome]}`;
      const link = make("a", { href: "#player", class: `window ${outcome}`, "data-time": String(w.start_s), title: words, "aria-label": words },
        make("span", { "aria-hidden": "true" }, percent(w.probability)));
      link.style.left = `${(100 * (w.start_s - start)) / (end - start)}%`;
      link.style.width = `${(100 * (w.end_s - w.start_s)) / (end - start)}%`;
      return link;
    });
    const level = (words, share) => {
      const label = make("span", { class: "level", "aria-hidden": "true" }, words);
      label.style.bottom = `${share}%`;
      return label;
    };
    const figure = make("figure", { class: "timeline spectrogram", "data-start": String(start), "data-end": String(end) },
      make("div", { class: "plot" }, canvas, level("0", 0), level("4 kHz", 50), level("8 kHz", 100),
        make("div", { class: "points" }, ...windows)),
      make("figcaption", {}, make("span", {}, "Spectrogram, computed in this browser."),
        windows.length ? make("span", { class: "key" }, "framed: a stretch and its probability") : "",
        windows.some((w) => w.classList.contains("likely_manipulated")) ? make("span", { class: "key" }, "shaded: marked") : ""));
    told.replaceWith(figure);
    attachCharts(figure, $("preview"));
    joinTimes(figure, player);
    const paint = () => shade(canvas, grid);
    paint();
    listen(dark, "change", paint);
    player.refresh();
  };

  /** Levels in 0..1 over 70 dB below the loudest, rows from 8 kHz down to 0. */
  const spectrogram = async (samples, start, end, most) => {
    const size = 512;
    const rows = size / 2;
    const first = Math.round(start * SOUND_RATE_HZ);
    const count = Math.max(1, Math.min(samples.length, Math.round(end * SOUND_RATE_HZ)) - first);
    const whole = Math.max(1, Math.round((end - start) * SOUND_RATE_HZ));
    const columns = clamp(Math.floor(whole / 64), 1, most);
    const hann = Float32Array.from({ length: size }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / size));
    const levels = new Float32Array(columns * rows);
    const real = new Float32Array(size);
    const imaginary = new Float32Array(size);
    let loudest = 1e-12;
    for (let column = 0; column < columns; column += 1) {
      const middle = first + ((column + 0.5) / columns) * whole;
      const from = Math.round(middle - size / 2);
      for (let i = 0; i < size; i += 1) {
        real[i] = from + i < first + count ? (samples[from + i] ?? 0) * hann[i] : 0;
      }
      imaginary.fill(0);
      transform(real, imaginary);
      for (let row = 0; row < rows; row += 1) {
        const power = real[row] ** 2 + imaginary[row] ** 2;
        levels[(rows - 1 - row) * columns + column] = power;
        loudest = Math.max(loudest, power);
      }
      // Now and then the page may do something else.
      if (column % 150 === 149) await new Promise((resume) => { setTimeout(resume); });
    }
    const values = levels.map((power) => clamp(1 + Math.log10(power / loudest + 1e-12) / 7, 0, 1));
    return { columns, rows, values };
  };

  /** Fourier transform in place, of a power of two (Cooley and Tukey 1965). */
  const transform = (real, imaginary) => {
    const size = real.length;
    for (let i = 1, j = 0; i < size; i += 1) {
      let bit = size >> 1;
      for (; j & bit; bit >>= 1) j ^= bit;
      j ^= bit;
      if (i < j) {
        [real[i], real[j]] = [real[j], real[i]];
        [imaginary[i], imaginary[j]] = [imaginary[j], imaginary[i]];
      }
    }
    for (let span = 2; span <= size; span *= 2) {
      for (let k = 0; k < span / 2; k += 1) {
        const angle = (-2 * Math.PI * k) / span;
        const cosine = Math.cos(angle);
        const sine = Math.sin(angle);
        for (let i = k; i < size; i += span) {
          const other = i + span / 2;
          const x = real[other] * cosine - imaginary[other] * sine;
          const y = real[other] * sine + imaginary[other] * cosine;
          real[other] = real[i] - x;
          imaginary[other] = imaginary[i] - y;
          real[i] += x;
          imaginary[i] += y;
        }
      }
    }
  };

  const shade = (canvas, { columns, rows, values }) => {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => [1, 3, 5].map((at) => parseInt(style.getPropertyValue(name).trim().slice(at, at + 2), 16));
    const [from, to] = [colour("--card"), colour("--ink")];
    const pen = canvas.getContext("2d");
    const picture = pen.createImageData(columns, rows);
    values.forEach((value, i) => {
      for (let part = 0; part < 3; part += 1) picture.data[4 * i + part] = from[part] + value * (to[part] - from[part]);
      picture.data[4 * i + 3] = 255;
    });
    pen.putImageData(picture, 0, 0);
  };

  // The model ----------------------------------------------------------------------------------------------

  const tellOfModel = async (answer, limits, key) => {
    const mine = release;
    const asked = await fetch(`${API}models`, { headers: { Authorization: `Bearer ${key}` } })
      .then((response) => (response.ok ? response.json() : null))
      .catch((error) => {
        if (!(error instanceof TypeError || error instanceof SyntaxError)) throw error;
        return null;
      });
    if (release !== mine) return;
    const models = asked?.models ?? asked;
    const used = Array.isArray(models) ? models.find((m) => m.sha256 === answer.model?.sha256) : null;
    if (!used?.card) {
      limits.append(make("p", { class: "fine" }, "The model's own card could not be loaded; ask whoever runs the service for it."));
      return;
    }
    const words = `The card of the model: ${used.name} ${used.version}`;
    limits.after(make("details", { class: "card model" }, make("summary", {}, words), ...readCard(used.card)));
  };

  /** A model's card, which is Markdown of a simple kind, as elements. */
  const readCard = (text) => text.replaceAll("\r", "").split(/\n\s*\n|\n(?=#)|(?<=^#[^\n]*)\n/m).filter((block) => block.trim()).map((block) => {
    const lines = block.trim().split("\n");
    const heading = /^(#+)\s+(.*)/.exec(lines[0]);
    if (heading) return make(heading[1].length > 1 ? "h3" : "h2", {}, ...phrases(heading[2]));
    if (lines[0].startsWith("|")) return make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Table" }, readTable(lines));
    if (/^[-*] /.test(lines[0])) {
      const items = block.trim().split(/\n(?=[-*] )/).map((item) => make("li", {}, ...phrases(item.replace(/^[-*] /, ""))));
      return make("ul", {}, ...items);
    }
    return make("p", {}, ...phrases(lines.join(" ")));
  });

  const readTable = (lines) => {
    const cells = (line) => line.replace(/^\||\|\s*$/g, "").split("|").map((cell) => cell.trim());
    const ruled = /^\|[\s:|-]+$/.test(lines[1] ?? "");
    const row = (line, name, scope) => make("tr", {}, ...cells(line).map((cell) => make(name, { scope }, ...phrases(cell))));
    const table = make("table", {});
    if (ruled) table.append(make("thead", {}, row(lines[0], "th", "col")));
    table.append(make("tbody", {}, ...lines.slice(ruled ? 2 : 0).map((line) => row(line, "td", null))));
    return table;
  };

  const phrases = (text) => text.split(/(\*\*[^*]+\*\*|\*[^*\s][^*]*\*|`[^`]+`)/).map((part) => {
    if (part.startsWith("**") && part.length > 4) return make("strong", {}, part.slice(2, -2));
    if (part.startsWith("`") && part.length > 2) return make("code", {}, part.slice(1, -1));
    if (part.startsWith("*") && part.length > 2) return make("em", {}, part.slice(1, -1));
    return part;
  });

  $("form").reset();
})();
