"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, from = document) => Array.from(from.querySelectorAll(selector));

  // Theme: the system's, unless the reader or "#theme=dark" in the address says otherwise.
  const keep = (value) => { try { localStorage.setItem("microtome-theme", value); } catch { /* no storage */ } };
  const kept = () => { try { return localStorage.getItem("microtome-theme"); } catch { return null; } };
  const asked = /theme=(light|dark)/.exec(location.hash);
  const chosen = asked ? asked[1] : kept();
  const dark = () => root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;
  for (const button of all("[data-theme-switch]")) {
    const name = () => { button.textContent = dark() ? "Light" : "Dark"; };
    button.hidden = false;
    name();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
    button.addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      keep(root.dataset.theme);
      name();
    });
  }

  // Readouts: the title of a mark, shown at once on hover and on keyboard focus.
  const tip = document.createElement("div");
  tip.className = "mt-tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  document.body.append(tip);
  const readout = new WeakMap();
  for (const mark of all(".mt-token[title]")) {
    readout.set(mark, mark.title);
    mark.setAttribute("aria-label", mark.title);
    mark.removeAttribute("title");
  }
  for (const title of all(".mt-svg title")) {
    readout.set(title.parentNode, title.textContent);
    title.remove();
  }
  const show = (mark) => {
    pick(mark);
    tip.textContent = readout.get(mark);
    tip.hidden = false;
    const box = mark.getBoundingClientRect();
    const size = tip.getBoundingClientRect();
    const left = Math.min(Math.max(8, box.left + box.width / 2 - size.width / 2), innerWidth - size.width - 8);
    const above = box.top - size.height - 6;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 52 ? above : box.bottom + 6}px`;
  };
  // A node that is pointed at keeps its own edges and lets the others fade.
  const pick = (mark) => {
    for (const drawing of all(".mt-svg.picked")) drawing.classList.remove("picked");
    const node = mark && mark.closest("[data-node]");
    if (!node) return;
    for (const edge of all("[data-ends]", node.ownerSVGElement)) {
      edge.classList.toggle("lit", edge.dataset.ends.split(" ").includes(node.dataset.node));
    }
    node.ownerSVGElement.classList.add("picked");
  };
  const hide = () => { tip.hidden = true; pick(null); };
  const find = (target) => {
    for (let mark = target; mark && mark !== document; mark = mark.parentNode) if (readout.has(mark)) return mark;
    return null;
  };
  document.addEventListener("pointerover", (event) => {
    const mark = find(event.target);
    if (mark) show(mark); else hide();
  });
  document.addEventListener("focusin", (event) => {
    if (readout.has(event.target) && event.target.matches(":focus-visible")) show(event.target); else hide();
  });
  document.addEventListener("scroll", hide, { passive: true, capture: true });

  // One stop of the Tab key per picture; arrows move inside it.
  const hidden = (mark) => Boolean(mark && mark.closest(".off"));
  const rove = (marks, columns) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
    marks.forEach((mark, index) => {
      mark.setAttribute("tabindex", index ? "-1" : "0");
      if (mark.namespaceURI.endsWith("svg")) {
        mark.setAttribute("role", "img");
        mark.setAttribute("aria-label", readout.get(mark));
      }
      mark.addEventListener("keydown", (event) => {
        if (event.key === "Escape") hide();
        let to = event.key === "Home" ? 0 : event.key === "End" ? marks.length - 1 : index + step[event.key];
        const on = event.key === "Home" || step[event.key] > 0 ? 1 : -1;
        while (hidden(marks[to])) to += on;
        if (!(to >= 0 && to < marks.length)) return;
        event.preventDefault();
        mark.setAttribute("tabindex", "-1");
        marks[to].setAttribute("tabindex", "0");
        marks[to].focus({ focusVisible: true });
      });
    });
  };
  for (const group of all("[data-rove]")) {
    const marks = all(".mt-token", group);
    const rows = group.querySelector(".mt-col").children.length;
    const ordered = Array.from({ length: rows }, (_, row) => marks.filter((_, at) => at % rows === row)).flat();
    rove(ordered, marks.length / rows);
  }
  for (const grid of all("[data-grid]")) {
    const marks = all("*", grid).filter((mark) => readout.has(mark));
    if (!marks.length) continue;
    grid.closest("svg").setAttribute("role", "group");
    rove(marks, Number(grid.dataset.grid));
  }

  // A slider shows the parts of one stage: what lists the stage's number in data-steps.
  for (const slider of all("[data-slider]")) {
    const input = slider.querySelector("input");
    const parts = all("[data-steps]", slider).map((part) => [part, new Set(part.dataset.steps.split(" "))]);
    const now = slider.querySelector(".mt-slider-now");
    const set = () => {
      for (const [part, steps] of parts) part.classList.toggle("off", !steps.has(input.value));
      for (const grid of all("[data-grid]", slider)) {
        const marks = all("[tabindex]", grid);
        const first = marks.find((mark) => !hidden(mark));
        for (const mark of marks) mark.setAttribute("tabindex", mark === first ? "0" : "-1");
      }
      input.setAttribute("aria-valuetext", now.querySelector("[data-steps]:not(.off)").textContent);
    };
    slider.querySelector(".mt-slider-control").hidden = false;
    input.addEventListener("input", () => { hide(); set(); });
    set();
  }

  // Copy buttons appear only where the browser lets a page write to the clipboard.
  for (const button of all(".mt-copy")) {
    if (!navigator.clipboard) break;
    button.hidden = false;
    button.addEventListener("click", async () => {
      const text = button.parentNode.querySelector("code").textContent;
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "copied";
      } catch {
        button.textContent = "not allowed";
      }
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    });
  }

  // The table of contents marks the section being read.
  const links = new Map(all(".mt-top a").map((link) => [link.hash.slice(1), link]));
  const sections = all("section[id]");
  const mark = () => {
    const past = sections.filter((section) => section.getBoundingClientRect().top < 160);
    const current = past.length ? past[past.length - 1].id : null;
    for (const [id, link] of links) {
      if (id === current) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
    }
  };
  document.addEventListener("scroll", mark, { passive: true });
  mark();

  // Definitions are printed; tables behind figures are not.
  addEventListener("beforeprint", () => all(".mt-details").forEach((part) => { part.open = true; }));
})();
