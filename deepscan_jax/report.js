"use strict";
// Adds comfort only: without this script every link, picture and switch on the page still works.
(() => {
  const preview = document.getElementById("preview");
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

  for (const group of document.querySelectorAll(".points")) {
    const points = [...group.querySelectorAll("a[data-preview]")];
    // One stop of the tab key for each chart; the arrow keys move inside it.
    points.forEach((point, i) => {
      point.removeAttribute("title");
      point.tabIndex = i ? -1 : 0;
      point.addEventListener("mouseenter", () => show(point));
      point.addEventListener("focus", () => show(point));
      point.addEventListener("mouseleave", hide);
      point.addEventListener("blur", hide);
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

  document.getElementById("json-view").textContent = document.getElementById("verdict-json").textContent;
})();
