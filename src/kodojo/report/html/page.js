"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const number = new Intl.NumberFormat("en");
  const collator = new Intl.Collator("en", {numeric: true});
  const CHUNK = 100; // rows that are put into the table at a time
  const CAUSES = 3; // of a module, in its row
  const PRINTED = 300; // modules whose details are printed
  const LISTED = 12; // things of a list that are shown at once; the others are one click away
  const LISTED_ON_PAPER = 4;

  /* -- statuses: those that are known have words of their own, others their name ------------------------- */

  const STATUSES = {
    refused: {tone: "bad", mark: "✗", words: "would not load", plural: "would not load", weight: 1e8},
    "not-built": {tone: "other", mark: "✗", words: "does not build", plural: "do not build", weight: 1e4},
    unchecked: {tone: "doubt", mark: "?", words: "could not be checked", plural: "could not be checked", weight: 1},
    ok: {tone: "good", mark: "✓", words: "loads", plural: "load", weight: 0},
  };
  function statusOf(name) {
    const words = name.replaceAll(/[-_]/g, " ");
    return STATUSES[name] ||= {tone: "other", mark: "!", words, plural: words, weight: 1e4};
  }
  const wordsFor = (name, count) => (count === 1 ? statusOf(name).words : statusOf(name).plural);
  const byWeight = (one, other) => statusOf(other).weight - statusOf(one).weight;

  /* -- text: what modules and kernels call themselves becomes text here, never markup -------------------- */

  const clean = (text) => String(text).replaceAll(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, (each) => {
    if (each === "\n" || each === "\t") return each;
    const digits = each.codePointAt(0).toString(16);
    return digits.length > 2 ? `\\u${digits.padStart(4, "0")}` : `\\x${digits.padStart(2, "0")}`;
  });
  function make(tag, className, ...content) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    element.append(...content.map((each) => (each instanceof Node ? each : clean(each))));
    return element;
  }
  const many = (count, what) => `${number.format(count)} ${what}${count === 1 ? "" : "s"}`;
  const fileName = (label) => label.slice(label.lastIndexOf("/") + 1);

  /* -- rows ---------------------------------------------------------------------------------------------- */

  const kernels = data.kernels;
  const titles = (() => { // short names of kernels that tell them apart; the cards have the whole ones
    const forms = [
      ({release, kind}) => release && release + (kind && kind !== "kernel" ? ` (${kind})` : ""),
      ({name}) => name.replaceAll(/[^\s()]*\/(?=[^/\s()])/g, ""), // of paths the last part
      ({name}) => name,
    ];
    const tells = (form, kernel) => form(kernel) && kernels.filter((other) => form(other) === form(kernel)).length === 1;
    const title = (kernel) => (forms.find((form) => tells(form, kernel)) || forms[2])(kernel);
    return new Map(kernels.map((kernel) => [kernel.name, title(kernel)]));
  })();
  const rows = (() => {
    const columns = new Map(kernels.map((kernel, place) => [kernel.name, place]));
    const found = new Map(data.modules.map((label, index) => {
      return [label, {index, label, base: fileName(label), results: kernels.map(() => null), seen: [], text: ""}];
    }));
    for (const result of data.results) found.get(result.module).results[columns.get(result.kernel)] = result;
    const paths = data.modules.map((label) => label.split("/").slice(0, -1));
    let common = 0; // directories that all modules are in
    const isCommon = (path) => common < path.length && path[common] === paths[0][common];
    while (paths.length > 1 && paths.every(isCommon)) common += 1;
    const made = [...found.values()];
    for (const row of made) row.path = paths[row.index].slice(paths.length > 1 ? common : Infinity).join("/");
    return made;
  })();

  const state = {words: [], status: "", reason: "", kernels: new Set(), order: "trouble", down: true, printing: false};
  const opened = new Set(); // rows whose details are shown
  let shown = [];
  let drawn = 0;

  let places = []; // of the kernels that are looked at; a row's `seen` are its results there
  function look() {
    places = kernels.map((_, place) => place).filter((place) => !state.kernels.size || state.kernels.has(place));
    for (const row of rows) {
      row.seen = places.map((place) => row.results[place]).filter(Boolean);
      row.text = "";
    }
  }
  const isTrouble = (result) => result.status !== "ok";

  function textOf(row) {
    const texts = (result) => [
      statusOf(result.status).words, result.errno_name, result.slug, result.why,
      ...remarks(result), ...result.unmade_checks,
      ...result.log.map((record) => record.text),
      ...result.problems.flatMap((problem) => [
        problem.slug, problem.errno_name, problem.why, ...problem.log.map((record) => record.text),
        ...problem.details.flatMap((detail) => [detail.subject, detail.text]),
      ]),
    ];
    row.text ||= [row.label, ...row.seen.flatMap(texts)].join("\n").toLowerCase();
    return row.text;
  }
  function hasStatus(row, status) {
    if (status === "ok") return row.seen.length > 0 && !row.seen.some(isTrouble);
    return row.seen.some((result) => result.status === status);
  }
  function fits(row) {
    return row.seen.length > 0
      && (!state.status || hasStatus(row, state.status))
      && (!state.reason || row.seen.some((result) => result.slug === state.reason && isTrouble(result)))
      && state.words.every((word) => textOf(row).includes(word));
  }

  /* -- order --------------------------------------------------------------------------------------------- */

  /* The place of each in their order, so that a comparison is one of numbers. */
  const ranks = (texts) => new Map([...new Set(texts)].sort(collator.compare).map((text, place) => [text, place]));
  const slugRanks = ranks(data.results.filter(isTrouble).map((result) => result.slug));
  let baseRanks; // made when it is wanted
  const rankOf = (result) => (result && isTrouble(result) ? slugRanks.get(result.slug) : Infinity);
  function keyOf(row) {
    if (state.order === "trouble") {
      const weight = row.seen.reduce((sum, result) => sum + statusOf(result.status).weight, 0);
      return [-weight, rankOf(row.seen.find(isTrouble))];
    }
    if (state.order === "name") {
      baseRanks ||= ranks(rows.map((each) => each.base));
      return [baseRanks.get(row.base), 0];
    }
    const result = row.results[Number(state.order)];
    return [result ? -statusOf(result.status).weight : 1, rankOf(result)];
  }
  function sorted(list) {
    const sign = state.down ? 1 : -1;
    const keyed = list.map((row) => [...keyOf(row), row]);
    keyed.sort(([a, b, one], [c, d, other]) => {
      return a !== c ? sign * (a - c) : b !== d ? sign * (b < d ? -1 : 1) : one.index - other.index;
    });
    return keyed.map(([, , row]) => row);
  }

  /* -- the table: a part of the rows at first, more as one comes near its end ---------------------------- */

  function update() {
    shown = sorted(rows.filter(fits));
    drawn = 0;
    $("rows").replaceChildren();
    heads();
    draw();
    const filtered = state.words.length || state.status || state.reason || state.kernels.size;
    const all = many(rows.length, "module");
    $("shown").textContent = filtered ? `${number.format(shown.length)} of ${all}` : all;
    $("all").hidden = !filtered;
    $("nothing").hidden = shown.length > 0;
    for (const chip of $("statuses").children) {
      chip.setAttribute("aria-pressed", chip.value === state.status);
      const count = rows.filter((row) => hasStatus(row, chip.value)).length;
      const everywhere = chip.value === "ok" && places.length > 1 ? " everywhere" : "";
      chip.querySelector("b").textContent = number.format(count);
      chip.querySelector("span").textContent = ` ${wordsFor(chip.value, count)}${everywhere}`;
    }
    for (const {firstChild: button} of $("kernels").children) {
      button.setAttribute("aria-pressed", state.kernels.has(Number(button.value)));
    }
    $("reason").value = state.reason;
    $("order").value = state.order;
  }
  function draw() {
    const next = shown.slice(drawn, state.printing ? Infinity : drawn + CHUNK);
    const parts = next.flatMap((row, place) => {
      const line = rowLine(row);
      const wanted = opened.has(row) || (state.printing && drawn + place < PRINTED && row.seen.some(isTrouble));
      if (!wanted) return [line];
      line.querySelector(".toggle").setAttribute("aria-expanded", "true");
      return [line, detailsLine(row)];
    });
    drawn += next.length;
    $("rows").append(...parts);
    $("more").hidden = drawn >= shown.length;
    $("more").textContent = `Show more: ${many(shown.length - drawn, "module")}`;
  }
  function cell(tag, role, className, ...content) {
    const element = make(tag, className, ...content);
    element.setAttribute("role", role);
    return element;
  }
  function rowLine(row) {
    const worst = row.seen.map((result) => result.status).sort(byWeight)[0];
    const toggle = make("button", "toggle", make("span", "name", row.base));
    toggle.type = "button";
    toggle.setAttribute("aria-expanded", "false");
    const name = cell("th", "rowheader", "of-module", toggle);
    name.scope = "row";
    if (row.path) name.append(make("span", "path", row.path));
    const why = cell("td", "cell", "of-why", ...causes(row.seen), ...asides(row.seen));
    const line = cell("tr", "row", `row is-${statusOf(worst).tone}`, name, why);
    line.append(...places.map((place) => mark(row.results[place], kernels[place])));
    line.id = `row-${row.index}`;
    return line;
  }
  function mark(result, kernel) {
    const status = result && statusOf(result.status);
    const words = status ? status.words : "not in its tree";
    const text = !result || result.status === "ok" ? words : result.errno_name;
    const {mark: sign, tone} = status || {mark: "–", tone: "none"};
    const box = make("span", `mark ${tone}`, `${sign} `, make("b", "", text));
    box.title = clean(`${kernel.name}: ${words}`);
    const element = cell("td", "cell", "of-kernel", box);
    if (result && isTrouble(result)) element.append(make("span", "unseen", words));
    element.dataset.kernel = clean(titles.get(kernel.name));
    return element;
  }

  /* -- why, without a click ------------------------------------------------------------------------------ */

  function causes(results) {
    const same = ({status, slug, errno, why}) => JSON.stringify([status, slug, errno, why]);
    const groups = Map.groupBy(results.filter(isTrouble), same);
    const ordered = [...groups.values()].sort(([one], [other]) => byWeight(one.status, other.status));
    const made = ordered.slice(0, CAUSES).map((group) => cause(group, ordered.length > 1));
    if (ordered.length > CAUSES) made.push(make("p", "aside", `and ${many(ordered.length - CAUSES, "other cause")}`));
    return made;
  }
  function cause(group, oneOfSeveral) {
    const [result] = group, status = statusOf(result.status);
    const errno = make("span", `errno ${status.tone}`, result.errno_name || status.words);
    const head = make("p", "head", errno, reasonLink(result.slug));
    if (oneOfSeveral) {
      const names = group.slice(0, 2).map((each) => titles.get(each.kernel)).join(", ");
      head.append(make("span", "at", group.length > 2 ? `${names} and ${group.length - 2} more` : names));
    }
    return make("div", "cause", head, make("p", "why", result.why));
  }
  function reasonLink(slug) {
    if (!$(`reason-${slug}`)) return make("span", "", slug);
    const link = make("a", "", slug);
    link.href = `#reason-${slug}`;
    return link;
  }
  function asides(results) {
    const texts = new Set(results.flatMap(remarks));
    const unmade = new Set(results.flatMap((result) => result.unmade_checks));
    const unknown = new Set(results.flatMap((result) => result.unchecked_parameters));
    const lines = [...texts].slice(0, 2).map((text) => `note: ${text}`);
    if (texts.size > 2) lines.push(`and ${many(texts.size - 2, "other note")}`);
    if (unmade.size) lines.push(`${many(unmade.size, "check")} could not be made`);
    if (unknown.size) lines.push(`only the module's own code can judge: ${[...unknown].join(", ")}`);
    return lines.map((line) => make("p", "aside", line));
  }

  /* -- the details of a module --------------------------------------------------------------------------- */

  function detailsLine(row) {
    // Kernels with the same answer have it once.
    const same = ({kernel, ...others}) => JSON.stringify(others);
    const groups = [...Map.groupBy(row.seen, same).values()];
    groups.sort(([one], [other]) => byWeight(one.status, other.status));
    const box = cell("td", "cell", "", ...groups.map(answer));
    box.colSpan = places.length + 2;
    const line = cell("tr", "row", "details", box);
    line.id = `details-${row.index}`;
    return line;
  }
  function answer(group) {
    const [result] = group, status = statusOf(result.status);
    const element = make("section", "answer");
    const names = group.map((each) => titles.get(each.kernel)).join(", ");
    const words = make("span", `mark ${status.tone}`, `${status.mark} ${status.words}`);
    element.append(make("h3", "", words, make("span", "name", names)));
    const [first, ...others] = result.problems;
    element.append(...problem(first || result));
    if (others.length) {
      element.append(make("h4", "", "What else is wrong, and would be next"));
      const item = (each) => make("li", "", ...problem(each));
      element.append(...folded(others, (some) => make("ul", "", ...some.map(item))));
    }
    element.append(facts(result));
    return element;
  }
  function problem({errno_name, step, slug, why, hint, log, details = []}) {
    const parts = [];
    if (why) {
      const head = make("p", "head");
      if (errno_name) head.append(make("b", "", errno_name));
      if (step) head.append(make("span", "at", "from ", make("code", "", step)));
      if (slug) head.append(reasonLink(slug));
      parts.push(head, make("p", "", why));
    }
    if (details.length) {
      parts.push(...folded(details, (some) => make("ul", "", ...some.map(detailItem))));
    }
    if (hint) parts.push(make("h4", "", "What to do"), make("p", "hint", hint));
    if (log.length) parts.push(make("h4", "", "The kernel's log"), ...folded(log.map((record) => record.text), lines));
    return parts;
  }
  const lines = (texts) => make("pre", "", texts.join("\n"));
  function detailItem({subject, text, more}) {
    return make("li", "", make("code", "", subject), text ? `: ${text}` : "", ...folded(more, lines));
  }
  /* The first of a long list, and the others folded up; they are made when they are wanted. */
  function folded(list, draw) {
    if (!list.length) return [];
    const limit = state.printing ? LISTED_ON_PAPER : LISTED;
    if (list.length <= limit + 1) return [draw(list)];
    const rest = make("details", "", make("summary", "", `${number.format(list.length - limit)} more`));
    rest.addEventListener("toggle", () => rest.append(draw(list.slice(limit))), {once: true});
    return [draw(list.slice(0, limit)), rest];
  }
  const remarks = (result) => [...(result.warnings || []), ...result.notes];
  /* Names of a result that have their places; others are shown as they are. */
  const SHOWN = new Set([
    "module", "kernel", "status", "ok", "errno", "errno_name", "step", "slug", "why", "hint", "log", "problems",
    "warnings", "notes", "unmade_checks", "unchecked_parameters", "loaded_first", "suitable_kernels", "size", "sha256",
  ]);
  function flat(name, value) {
    if (value === null || value === "") return [];
    if (typeof value !== "object") return [[name, [value]]];
    const written = (each) => (typeof each === "object" ? JSON.stringify(each) : each);
    if (Array.isArray(value)) return [[name, value.map(written)]];
    return Object.entries(value).flatMap(([part, content]) => flat(`${name}, ${part}`, content));
  }
  function facts(result) {
    const list = make("dl");
    const facts = [
      ["Note", remarks(result)],
      ["Not checked", result.unmade_checks],
      ["For its code to judge", result.unchecked_parameters],
      ["Loaded first", result.loaded_first.map(fileName)],
      ["Is for", result.suitable_kernels],
      ["Kernel", titles.get(result.kernel) === result.kernel ? [] : [result.kernel]],
      ["Module", [result.module]],
      ["Size", result.sha256 ? [`${many(result.size, "byte")}, decompressed`] : []],
      ["SHA-256", result.sha256 ? [result.sha256] : []],
    ];
    facts.push(...Object.keys(result).filter((name) => !SHOWN.has(name)).flatMap((name) => flat(name, result[name])));
    for (const [name, values] of facts) {
      const items = (some) => make("div", "", ...some.map((value) => make("div", "", value)));
      if (values.length) list.append(make("dt", "", name), make("dd", "", ...folded(values, items)));
    }
    return list;
  }
  function toggle(line) {
    const row = rows[Number(line.id.slice("row-".length))];
    const open = !opened.delete(row);
    line.querySelector(".toggle").setAttribute("aria-expanded", open);
    if (open) {
      opened.add(row);
      line.after(detailsLine(row));
    } else {
      line.nextSibling.remove();
    }
  }

  /* -- heads, filters, kernels --------------------------------------------------------------------------- */

  function heads() {
    const columns = [["name", "Module", "of-module"], ["trouble", "Findings", "of-why"]];
    columns.push(...places.map((place) => [String(place), titles.get(kernels[place].name), "of-kernel"]));
    const focused = document.activeElement?.dataset.order;
    const breakable = (text) => clean(text).split(/(?<=[-+_.])/).flatMap((part) => [part, make("wbr")]);
    $("heads").replaceChildren(...columns.map(([order, text, className]) => {
      const button = make("button", "", ...breakable(text));
      button.type = "button";
      button.dataset.order = order;
      const head = cell("th", "columnheader", className, button);
      head.scope = "col";
      // Names go from a to z, answers from the worst to the best.
      const rising = state.down === (order === "name") ? "ascending" : "descending";
      head.setAttribute("aria-sort", state.order === order ? rising : "none");
      return head;
    }));
    if (focused) $("heads").querySelector(`[data-order="${focused}"]`)?.focus();
    fit();
  }
  function fit() {
    const columns = places.length;
    const room = ($("answers").clientWidth - 560) / columns;
    const wide = room >= 98 ? "" : room >= 40 ? "dense" : "dense scrolled";
    const form = columns === 1 ? "one few" : columns < 4 ? "few" : wide;
    $("answers").className = form;
    $("answers").firstElementChild.style.width = form.includes("scrolled") ? `${600 + 40 * columns}px` : "";
    const height = getComputedStyle($("bar")).position === "sticky" ? $("bar").offsetHeight : 0;
    document.documentElement.style.setProperty("--bar", `${height}px`);
  }
  function fill(select, options) {
    select.append(...options.map(([value, text]) => {
      const option = make("option", "", text);
      option.value = value;
      return option;
    }));
  }
  function kernelCard(kernel, place) {
    const counts = new Map();
    for (const {results: {[place]: result}} of rows) {
      if (result) counts.set(result.status, (counts.get(result.status) || 0) + 1);
    }
    const bar = make("span", "share"), tally = make("span", "tally");
    bar.setAttribute("aria-hidden", "true");
    for (const [status, count] of [...counts].sort(([one], [other]) => byWeight(one, other))) {
      const part = make("i", statusOf(status).tone);
      part.style.flexGrow = count;
      bar.append(part);
      const words = make("span", "words", wordsFor(status, count));
      tally.append(make("span", "", `${statusOf(status).mark} ${number.format(count)} `, words));
    }
    const title = titles.get(kernel.name);
    const button = make("button", "", make("span", "name", title), " ", make("span", "kind", kernel.architecture));
    if (title !== kernel.name) button.append(make("span", "kind whole", kernel.name));
    button.append(bar, tally);
    button.type = "button";
    button.value = place;
    button.title = clean(`Show only ${kernel.name}`);
    const card = make("li", "kernel", button);
    if (kernel.problem) card.append(make("p", "bad", kernel.problem));
    card.append(...kernel.warnings.map((text) => make("p", "doubt", text)));
    return card;
  }
  function statusChip(status) {
    const chip = make("button", statusOf(status).tone, `${statusOf(status).mark} `, make("b"), make("span"));
    chip.type = "button";
    chip.value = status;
    return chip;
  }
  function build() {
    $("kernels").append(...kernels.map(kernelCard));
    $("kernels").classList.toggle("crowd", kernels.length > 8);
    const statuses = [...new Set(data.results.map((result) => result.status))].sort(byWeight);
    $("statuses").append(...statuses.map(statusChip));
    const reasons = new Map();
    for (const {slug, module} of data.results.filter(isTrouble)) {
      reasons.set(slug, (reasons.get(slug) || new Set()).add(module));
    }
    const options = [...reasons].sort(([, one], [, other]) => other.size - one.size);
    const counted = options.map(([slug, modules]) => [slug, `${slug} (${number.format(modules.size)})`]);
    fill($("reason"), [["", "Any reason"], ...counted]);
    $("reason").hidden = !options.length;
    const byKernel = kernels.map((kernel, place) => [String(place), `By ${titles.get(kernel.name)}`]);
    fill($("order"), [["trouble", "Worst first"], ["name", "By name"], ...byKernel]);
    $("bar").hidden = $("answers").hidden = false;
  }

  /* -- what people do ------------------------------------------------------------------------------------ */

  function listen(element, event, action) {
    element.addEventListener(event, (each) => {
      action(each);
      update();
      // Whatever was read far below, the answers begin anew.
      const past = $("answers").getBoundingClientRect().top - $("bar").offsetHeight;
      if (past < 0 && element !== $("kernels")) scrollBy({top: past, behavior: "instant"});
    });
  }
  listen($("text"), "input", () => { state.words = $("text").value.toLowerCase().split(/\s+/).filter(Boolean); });
  listen($("reason"), "change", () => { state.reason = $("reason").value; });
  listen($("order"), "change", () => Object.assign(state, {order: $("order").value, down: true}));
  listen($("all"), "click", () => {
    Object.assign(state, {words: [], status: "", reason: ""});
    state.kernels.clear();
    look();
    $("text").value = "";
    $("text").focus();
  });
  listen($("statuses"), "click", ({target}) => {
    const chip = target.closest("button");
    if (chip) state.status = state.status === chip.value ? "" : chip.value;
  });
  listen($("kernels"), "click", ({target}) => {
    const place = Number(target.closest("button")?.value ?? NaN);
    if (kernels[place] && !state.kernels.delete(place)) state.kernels.add(place);
    look();
    if (state.order in kernels && !places.includes(Number(state.order))) state.order = "trouble";
  });
  listen($("heads"), "click", ({target}) => {
    const order = target.closest("button")?.dataset.order;
    if (order) Object.assign(state, {order, down: state.order === order ? !state.down : true});
  });
  $("more").addEventListener("click", draw);
  // Only from above: rows that appeared above a reason would push it away from under one's eyes.
  const nearEnd = new IntersectionObserver(([seen]) => {
    if (seen.isIntersecting && seen.boundingClientRect.top > innerHeight / 2) draw();
  }, {rootMargin: "0px 0px 800px 0px"});
  nearEnd.observe($("more"));
  addEventListener("resize", fit);

  $("rows").addEventListener("click", (event) => {
    const line = event.target.closest(".row");
    const selecting = String(getSelection()) && !event.target.closest("button");
    if (line && !event.target.closest("a") && !selecting) toggle(line);
  });
  addEventListener("keydown", (event) => {
    const {key, target} = event;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (key === "/" && !target.matches("input, select")) {
      $("text").focus();
    } else if (key === "Escape" && target === $("text")) {
      target.value = "";
      target.dispatchEvent(new Event("input"));
    } else if ((key === "ArrowDown" || key === "ArrowUp") && (target === $("text") || target.matches(".toggle"))) {
      const stops = [$("text"), ...$("rows").querySelectorAll(".toggle")];
      stops[stops.indexOf(target) + (key === "ArrowDown" ? 1 : -1)]?.focus();
    } else {
      return;
    }
    event.preventDefault();
  });

  /* Paper has all rows, and the details of what does not load. */
  function print(printing) {
    if (state.printing === printing) return;
    state.printing = printing;
    update();
  }
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
  matchMedia("print").addEventListener("change", ({matches}) => print(matches));

  build();
  look();
  update();
})();
