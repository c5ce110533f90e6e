"use strict";
// Adds comfort only: without this script every link, picture and switch on the page still works.

/** Lets the arrow keys move along the points of each chart inside `root`, and shows their faces in `preview`. */
const attachCharts = (root, preview) => {
  const hide = () => { preview.hidden = true; };

  const show = (point) => {
    const figure = document.getElementById(point.dataset.preview);
    if (!figure) return;
    preview.replaceChildren(figure.querySelector(".crop").cloneNode(true), figure.querySelector("figcaption").cloneNode(true));
    preview.hidden = false;
    const at = point.getBoundingClientRect();
    const size = preview.getBoundingClientRect();
    const left = at.left + at.width / 2 - size.width / 2;
    const above = at.top - size.height - 10;
    preview.style.left = `${Math.max(8, Math.min(left, document.documentElement.clientWidth - size.width - 8)) + scrollX}px`;
    preview.style.top = `${(above > 8 ? above : at.bottom + 10) + scrollY}px`;
  };

  for (const group of root.querySelectorAll(".points")) {
    const points = [...group.querySelectorAll("a[href]")];
    // One stop of the tab key for each chart; the arrow keys move inside it.
    points.forEach((point, i) => {
      point.tabIndex = i ? -1 : 0;
      if (point.dataset.preview) {
        point.removeAttribute("title");
        point.addEventListener("mouseenter", () => show(point));
        point.addEventListener("focus", () => show(point));
        point.addEventListener("mouseleave", hide);
        point.addEventListener("blur", hide);
      }
      point.addEventListener("keydown", (event) => {
        const target = {
          ArrowRight: points[i + 1], ArrowLeft: points[i - 1], Home: points[0], End: points.at(-1),
        }[event.key];
        if (event.key === "Escape") hide();
        if (!target) return;
        event.preventDefault();
        point.tabIndex = -1;
        target.tabIndex = 0;
        target.focus();
      });
    });
  }
};

// The service's page, which shows an answer with the same charts, has none of its own.
const view = document.getElementById("json-view");
if (view) {
  attachCharts(document, document.getElementById("preview"));
  view.textContent = document.getElementById("verdict-json").textContent;
}
