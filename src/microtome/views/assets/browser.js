"use strict";
(() => {
  const ROW = 32;
  const make = (name, classes, text) => {
    const element = document.createElement(name);
    if (classes) element.className = classes;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  // Running text: what stands in backticks is set as code.
  const prose = (element, text) => {
    text.split("`").forEach((part, at) => { if (part) element.append(at % 2 ? make("code", "", part) : part); });
    return element;
  };
  const three = (value) => {
    const size = Math.abs(value);
    const plain = size >= 1e-3 && size < 1000 ? value.toPrecision(3) : String(Number(value.toPrecision(3)));
    return plain.replace("-", "−");
  };
  const written = (value, kind) => {
    if (value === null) return "–";
    return (kind === "percent" ? `${(100 * value).toFixed(2)} %` : value.toFixed(2)).replace("-", "−");
  };
  const unpacked = async (text) => {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  };

  const browse = (root, data) => {
    const { name, columns, words, inks } = data;
    const items = data.items.map(([number, text, cells, facts, largest, excerpts, counts, span, rankings]) => (
      { number, text, cells, facts, largest, excerpts, counts, span, rankings, found: `${number} ${text}`.toLowerCase() }));
    const byNumber = new Map(items.map((item) => [item.number, item]));
    let shown = items;
    let chosen = items[0];
    let order = { key: -1, down: true };

    const search = make("input");
    Object.assign(search, { type: "search", placeholder: `Search ${name}s ( / )` });
    search.setAttribute("aria-label", `Search ${name}s`);
    search.dataset.testid = "browser-search";
    const count = make("span", "soft");
    count.setAttribute("role", "status");
    const bar = make("div", "mt-browser-bar");
    bar.append(search, count);

    const head = make("div", "mt-browser-head");
    const rows = make("div", "mt-browser-rows");
    rows.tabIndex = 0;
    rows.setAttribute("role", "listbox");
    rows.setAttribute("aria-label", `${name}s`);
    const tall = make("div");
    rows.append(tall);
    const list = make("div", "mt-browser-list");
    list.append(head, rows);
    const card = make("div", "mt-browser-card");
    card.setAttribute("aria-live", "polite");
    const wide = (at) => (at >= 2 ? " wide" : "");
    const fit = () => {
      const narrow = matchMedia("(max-width: 640px)").matches;
      const numbers = columns.filter((_, at) => !(narrow && wide(at))).map(({ 0: text }) => `${Math.max(60, 8 * text.length + 4)}px`);
      list.style.setProperty("--mt-columns", ["60px", ...numbers, "minmax(0,1fr)"].join(" "));
    };

    const heads = [[-2, name, ""], ...columns.map(([text, meaning], at) => [at, text, meaning]), [-3, data.says, ""]];
    for (const [key, text, meaning] of heads) {
      const button = make("button", key === -3 ? "words" : `num${key >= 0 ? wide(key) : ""}`, text);
      button.type = "button";
      button.title = meaning || `Sort by ${text}`;
      button.dataset.key = key;
      button.addEventListener("click", () => {
        order = { key, down: order.key === key ? !order.down : key >= 0 };
        arrange();
      });
      head.append(button);
    }

    const value = (item) => {
      if (order.key === -2) return item.number;
      if (order.key === -3) return item.text;
      return item.cells[order.key];
    };
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      const way = x < y ? -1 : x > y ? 1 : 0;
      return order.down ? -way : way;
    };
    const arrange = () => {
      const asked = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      shown = items.filter((item) => asked.every((word) => item.found.includes(word)));
      if (order.key !== -1) shown = [...shown].sort(compare);
      for (const button of head.children) {
        const sorted = Number(button.dataset.key) === order.key && (order.down ? "descending" : "ascending");
        button.dataset.sort = sorted || "";
        button.setAttribute("aria-label", `${button.textContent}, ${sorted ? `sorted ${sorted}` : "sort"}`);
      }
      count.textContent = `${shown.length.toLocaleString("en").replaceAll(",", " ")} of ${items.length.toLocaleString("en").replaceAll(",", " ")} ${name}s`;
      rows.scrollTop = 0;
      draw();
      if (shown.length && !shown.includes(chosen)) choose(shown[0]);
    };

    // Only the rows in sight are drawn: tens of thousands of items stay quick.
    const draw = () => {
      tall.style.height = `${shown.length * ROW}px`;
      const first = Math.max(0, Math.floor(rows.scrollTop / ROW) - 4);
      const last = Math.min(shown.length, Math.ceil((rows.scrollTop + rows.clientHeight) / ROW) + 4);
      const drawn = [];
      for (let at = first; at < last; at += 1) {
        const item = shown[at];
        const row = make("div", "mt-browser-row");
        row.style.top = `${at * ROW}px`;
        row.id = `mt-${name}-${item.number}`;
        row.setAttribute("role", "option");
        row.setAttribute("aria-selected", String(item === chosen));
        row.setAttribute("aria-posinset", String(at + 1));
        row.setAttribute("aria-setsize", String(shown.length));
        row.append(make("span", "num", item.number));
        item.cells.forEach((cell, column) => row.append(make("span", `num${wide(column)}`, written(cell, columns[column][2]))));
        const text = prose(make("span"), item.text);
        text.title = item.text.replaceAll("`", "");
        row.append(text);
        row.addEventListener("click", () => choose(item));
        drawn.push(row);
      }
      if (!drawn.length) drawn.push(make("p", "mt-browser-none", `No ${name} has this in its number or words.`));
      tall.replaceChildren(...drawn);
      rows.setAttribute("aria-activedescendant", `mt-${name}-${chosen.number}`);
    };

    const choose = (item, quiet) => {
      chosen = item;
      const at = shown.indexOf(item);
      if (at >= 0) {
        if (at * ROW < rows.scrollTop) rows.scrollTop = at * ROW;
        else if ((at + 1) * ROW > rows.scrollTop + rows.clientHeight) rows.scrollTop = (at + 1) * ROW - rows.clientHeight;
      }
      draw();
      fill();
      if (!quiet) history.replaceState(null, "", `#${name}=${item.number}`);
    };
    const step = (by) => {
      if (!shown.length) return;
      const at = shown.indexOf(chosen);
      choose(shown[Math.min(shown.length - 1, Math.max(0, at < 0 ? 0 : at + by))]);
    };

    const excerpt = (item, [note, flat]) => {
      const box = make("div", "mt-browser-excerpt");
      let line = make("div", "mt-line");
      box.append(line);
      for (let at = 0; at < flat.length; at += 2) {
        const percent = flat[at + 1];
        const text = words[flat[at]];
        const sign = percent > 0 ? "pos" : percent < 0 ? "neg" : "zero";
        const amount = Math.min(100, Math.abs(percent));
        const ink = percent ? inks[sign][amount] : inks.pos[0];
        const token = make("bdi", `mt-token ${sign} ${ink}${amount >= 6 ? " seen" : ""}`, text.replace(/·{5,}/g, (run) => `·×${run.length}`));
        if (percent) token.style.setProperty("--v", `${amount}%`);
        token.title = percent ? `${text}  ${three(percent * item.largest / 100)} ${data.unit}` : `${text}  not active`;
        line.append(token);
        if (text.includes("⏎") && at + 2 < flat.length) { line = make("div", "mt-line"); box.append(line); }
      }
      box.append(prose(make("p", "mt-note"), note));
      return box;
    };
    const ranking = ([title, measure, ranked]) => {
      const box = make("div");
      const heading = make("h4", "", `${title} `);
      heading.append(make("span", "", measure));
      box.append(heading);
      for (const [what, number] of ranked) {
        const row = make("div", "mt-browser-rank");
        const other = byNumber.get(what);
        if (other) {
          const link = prose(make("button"), other.text ? `${other.number} ${other.text}` : String(other.number));
          link.type = "button";
          link.title = other.text.replaceAll("`", "");
          link.addEventListener("click", () => choose(other));
          row.append(link);
        } else row.append(prose(make("span"), typeof what === "number" ? `${name} ${what}` : what));
        row.append(make("span", "num", three(number)));
        box.append(row);
      }
      return box;
    };
    const histogram = (item) => {
      const most = Math.max(...item.counts);
      const bars = make("div", "mt-browser-bars");
      bars.setAttribute("role", "img");
      bars.setAttribute("aria-label", `histogram of ${data.unit}, from ${three(item.span[0])} to ${three(item.span[1])}`);
      const width = (item.span[1] - item.span[0]) / item.counts.length;
      item.counts.forEach((n, at) => {
        const mark = make("i");
        mark.style.height = `${n ? Math.max(2, 100 * n / most) : 0}%`;
        mark.title = `${three(item.span[0] + at * width)} to ${three(item.span[0] + (at + 1) * width)}: ${n}`;
        bars.append(mark);
      });
      const ends = make("div", "mt-browser-ends");
      ends.append(make("span", "", item.span[0] ? three(item.span[0]) : "0"), make("span", "", data.unit), make("span", "", three(item.span[1])));
      return [bars, ends];
    };
    const fill = () => {
      const item = chosen;
      const steps = make("div", "mt-browser-step");
      for (const [by, sign, label] of [[-1, "↑", "previous (k)"], [1, "↓", "next (j)"]]) {
        const button = make("button", "", sign);
        button.type = "button";
        button.setAttribute("aria-label", label);
        button.title = label;
        button.addEventListener("click", () => step(by));
        steps.append(button);
      }
      const title = make("h3", "", `${name[0].toUpperCase()}${name.slice(1)} ${item.number}`);
      const facts = make("dl", "mt-browser-facts");
      for (const [term, text] of item.facts) {
        const pair = make("div");
        pair.append(make("dt", "", term), make("dd", "", text));
        facts.append(pair);
      }
      const parts = [steps, title, prose(make("p"), item.text)];
      if (item.facts.length) parts.push(facts);
      if (item.excerpts.length) parts.push(make("h4", "", data.heading), ...item.excerpts.map((one) => excerpt(item, one)));
      if (item.counts.length) parts.push(make("h4", "", `How often each ${data.unit}`), ...histogram(item));
      const ranked = make("div", "mt-browser-rankings");
      ranked.append(...item.rankings.map(ranking));
      card.replaceChildren(...parts, ranked);
    };

    const keys = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1, PageDown: 16, PageUp: -16, Home: -1e9, End: 1e9 };
    rows.addEventListener("keydown", (event) => {
      if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      step(keys[event.key]);
    });
    search.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { search.value = ""; arrange(); rows.focus(); }
      if (event.key === "Enter" || event.key === "ArrowDown") { event.preventDefault(); rows.focus(); }
    });
    document.addEventListener("keydown", (event) => {
      if (event.target.matches?.("input,textarea,select") || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "/") { event.preventDefault(); search.focus(); search.select(); }
      if ((event.key === "j" || event.key === "k") && !rows.contains(event.target)) step(keys[event.key]);
    });
    search.addEventListener("input", arrange);
    rows.addEventListener("scroll", draw, { passive: true });
    addEventListener("resize", () => { fit(); draw(); });
    const follow = () => {
      const asked = new RegExp(`[#&]${name}=(\\d+)`).exec(location.hash);
      const item = asked && byNumber.get(Number(asked[1]));
      if (item) { choose(item, true); root.scrollIntoView(); }
    };
    addEventListener("hashchange", follow);

    root.classList.add("live");
    root.replaceChildren(bar, list, card);
    fit();
    arrange();
    choose(chosen, true);
    follow();
  };

  for (const root of document.querySelectorAll("[data-browser]")) {
    if (typeof DecompressionStream === "undefined") break;
    // The plain table keeps its place, unseen, until the list stands there: nothing flashes.
    root.classList.add("waiting");
    unpacked(root.querySelector(".mt-browser-data").textContent)
      .then((data) => browse(root, data))
      .finally(() => root.classList.remove("waiting"));
  }
})();
