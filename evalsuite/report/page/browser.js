
"use strict";
// The sample browser. Texts of prompts and models reach the page through textContent alone, never as markup.
(async () => {
  const PAGE = 50;
  const get = (id) => document.getElementById(id);
  const make = (tag, text, more = {}) => Object.assign(document.createElement(tag), { textContent: text, ...more });
  const unpack = async (element) => {
    const bytes = Uint8Array.from(atob(element.textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  };
  if (typeof DecompressionStream === "undefined") {
    get("found").textContent = "This browser cannot unpack the samples (it lacks DecompressionStream); any of 2023 or later can.";
    return;
  }
  const data = await unpack(get("index"));
  const packed = [...document.querySelectorAll("script.texts")];
  const blocks = packed.map(() => null);
  const block = (i) => (blocks[i] ??= unpack(packed[i]));
  const size = data.id.length, runs = data.runs, several = runs.length > 1;
  const failed = data.error.map((list) => new Set(list));
  const score = (run, i) => data.score[run][i];
  const told = (value) => (value === null ? "not asked" : value < 0 ? "no number" : value.toFixed(2));
  const flipped = (i) => several && score(0, i) !== null && runs.some((_, r) => score(r, i) !== null && score(r, i) !== score(0, i));

  // Filters: tasks, outcomes, and each facet of the cells that has several values.
  const option = (select, value, text) => select.append(make("option", text, { value }));
  data.tasks.forEach((name, i) => option(get("by-task"), i, name));
  const outcomes = { errors: ["unanswered (an error)", (i) => failed.some((set) => set.has(i))] };
  if (several) {
    outcomes.flips = [`scored otherwise than in ${runs[0]}`, flipped];
    outcomes.worse = [`scored lower than in ${runs[0]}`, (i) => score(0, i) !== null && runs.some((_, r) => score(r, i) !== null && score(r, i) < score(0, i))];
    outcomes.better = [`scored higher than in ${runs[0]}`, (i) => score(0, i) !== null && runs.some((_, r) => score(r, i) !== null && score(r, i) > score(0, i))];
    outcomes.alone = ["not asked of all in these words", (i) => runs.some((_, r) => score(r, i) === null)];
  }
  runs.forEach((name, r) => {
    outcomes[`wrong${r}`] = [`${name}: not fully right`, (i) => score(r, i) !== null && score(r, i) < 1];
    outcomes[`right${r}`] = [`${name}: right`, (i) => score(r, i) === 1];
  });
  Object.entries(outcomes).forEach(([value, [text]]) => option(get("by-outcome"), value, text));
  const values = new Map();
  data.cells.forEach((cell) => Object.entries(cell).forEach(([key, value]) => {
    if (!values.has(key)) values.set(key, new Set());
    values.get(key).add(value);
  }));
  const facets = new Map();
  for (const [key, found] of values) {
    if (found.size < 2 || found.size > 60) continue;
    const select = make("select", "");
    option(select, "", "all");
    [...found].sort((a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a) < String(b) ? -1 : 1))
      .forEach((value) => option(select, JSON.stringify(value), String(value)));
    const label = make("label", `${key} `);
    label.append(select);
    get("by-facets").append(label);
    facets.set(key, select);
  }

  const flat = (text) => (typeof text === "string" ? text : text.filter((part) => typeof part === "string").join(" "));
  const searched = async () => {
    const all = await Promise.all(packed.map((_, b) => block(b)));
    return data.id.map((id, i) => {
      const [prompt, prefix, targets, choices, , , answers] = all[data.block[i]][data.place[i]];
      const parts = [id, ...prompt.map((p) => (typeof p === "number" ? " " : p[0])), flat(prefix), ...targets.map(flat), ...choices.map(flat)];
      answers.forEach((a) => a && parts.push(flat(a[0]), a[1] ? flat(a[1]) : "", flat(a[3])));
      return parts.join("\n").toLowerCase();
    });
  };
  let texts = null;
  let passing = [];
  let first = 0;
  let asked = 0;
  const filter = async () => {
    const mine = ++asked;
    const words = get("by-text").value.trim().toLowerCase();
    if (words && !texts) {
      get("found").textContent = "Reading texts …";
      texts = searched();
    }
    const hay = words ? await texts : null;
    if (mine !== asked) return;
    const task = get("by-task").value, outcome = get("by-outcome").value;
    const chosen = [...facets].filter(([, select]) => select.value);
    const cells = data.cells.map((cell) => chosen.every(([key, select]) => JSON.stringify(cell[key]) === select.value));
    passing = [];
    for (let i = 0; i < size; i++) {
      if (task !== "" && data.task[i] !== Number(task)) continue;
      if (!cells[data.cell[i]] || (outcome && !outcomes[outcome][1](i)) || (hay && !hay[i].includes(words))) continue;
      passing.push(i);
    }
    first = 0;
    list();
  };

  const list = () => {
    const last = Math.min(first + PAGE, passing.length);
    get("found").textContent = passing.length
      ? `${passing.length.toLocaleString("en")} of ${size.toLocaleString("en")} samples; ${first + 1} to ${last} are listed.`
      : `None of ${size.toLocaleString("en")} samples passes these filters.`;
    get("listed").hidden = !passing.length;
    get("list").replaceChildren(...passing.slice(first, last).map((i, n) => {
      const row = make("tr", ""), head = make("th", "", { scope: "row" });
      const open = make("button", data.id[i], { type: "button" });
      open.addEventListener("click", () => show(first + n));
      head.append(open);
      row.append(head, make("td", data.tasks[data.task[i]]));
      runs.forEach((_, r) => {
        const value = score(r, i);
        row.append(make("td", failed[r].has(i) ? "error" : told(value), { className: value === 1 ? "right" : value === 0 ? "wrong" : "" }));
      });
      return row;
    }));
    get("before").hidden = get("after").hidden = passing.length <= PAGE;
    get("before").disabled = first === 0;
    get("after").disabled = last >= passing.length;
  };

  const gap = (count) => make("span", ` [${count.toLocaleString("en")} characters left out] `, { className: "gap" });
  const fill = (parent, text) => {
    if (typeof text === "string") parent.append(text || "(empty)");
    else text.forEach((part) => parent.append(typeof part === "number" ? gap(part) : part));
    return parent;
  };
  const promptOf = (pieces) => {
    const pre = make("pre", "", { tabIndex: 0 });
    for (const piece of pieces) {
      if (typeof piece === "number") {
        pre.append(gap(piece));
        continue;
      }
      let at = 0;
      for (const [begin, end, kind] of piece[1]) {
        pre.append(piece[0].slice(at, begin), make("mark", piece[0].slice(begin, end), { className: kind ? "step" : "answer" }));
        at = end;
      }
      pre.append(piece[0].slice(at));
    }
    return pre;
  };
  let shown = 0;
  const show = async (position) => {
    const i = passing[position];
    shown = position;
    const [prompt, prefix, targets, choices, own, cluster, answers] = (await block(data.block[i]))[data.place[i]];
    if (shown !== position) return;
    const body = get("sample-body");
    body.replaceChildren();
    get("sample-title").textContent = data.id[i];
    const facts = { task: data.tasks[data.task[i]], ...data.cells[data.cell[i]], ...own, cluster };
    body.append(make("p", Object.entries(facts).filter(([, value]) => value !== "").map(([key, value]) => `${key} ${value}`).join(" · "), { className: "note" }));
    const titled = (text, element) => body.append(make("h4", text), element);
    titled("Prompt", promptOf(prompt));
    if (!prompt.some((piece) => typeof piece !== "number" && piece[1].length)) body.append(make("p", "Nothing in it is highlighted: no accepted answer stands in what is kept of it as whole words.", { className: "note" }));
    if (prefix.length) titled("Beginning of the answer, given", fill(make("pre", "", { tabIndex: 0 }), prefix));
    if (choices.length) titled("Choices", fill(make("pre", "", { tabIndex: 0 }), choices.flatMap((c) => ["\n", ...(typeof c === "string" ? [c] : c)]).slice(1)));
    titled("Accepted answers", fill(make("pre", "", { tabIndex: 0 }), targets.flatMap((t) => ["\n", ...(typeof t === "string" ? [t] : t)]).slice(1)));
    answers.forEach((answer, r) => {
      const value = score(r, i);
      if (!answer) {
        body.append(make("h4", `${runs[r]}: not asked this in these words`));
        return;
      }
      const [text, read, finish, error, before, after, detail] = answer;
      titled(`${runs[r]}: ${told(value)}`, fill(make("pre", "", { tabIndex: 0 }), text));
      const more = [];
      if (read) more.push(`read as: ${flat(read) || "(nothing)"}`);
      more.push(`finish: ${finish}`);
      if (before != null) more.push(`${before} tokens of prompt, ${after ?? 0} of answer`);
      if (detail) Object.entries(detail).forEach(([key, each]) => more.push(`${key} ${each}`));
      body.append(make("p", more.join(" · "), { className: "note" }));
      if (error && error.length) body.append(fill(make("p", "error: ", { className: "warnings" }), error));
    });
    get("previous").disabled = position === 0;
    get("next").disabled = position === passing.length - 1;
    if (!get("sample").open) get("sample").showModal();
    get("sample").scrollTop = 0;
    get("sample-title").focus({ preventScroll: true });
  };

  const turn = (by) => {
    first = Math.max(0, first + by);
    list();
    get("listed").focus();
  };
  get("list-head").append(make("th", "sample", { scope: "col" }), make("th", "task", { scope: "col" }), ...runs.map((name) => make("th", name, { scope: "col" })));
  get("before").addEventListener("click", () => turn(-PAGE));
  get("after").addEventListener("click", () => turn(PAGE));
  get("previous").addEventListener("click", () => show(shown - 1));
  get("next").addEventListener("click", () => show(shown + 1));
  get("close").addEventListener("click", () => get("sample").close());
  get("filters").addEventListener("submit", (event) => event.preventDefault());
  get("filters").addEventListener("change", (event) => {
    if (event.target.id !== "by-text") filter(); // leaving the text field must not make the list anew under a click
  });
  let waiting = 0;
  get("by-text").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(filter, 200);
  });
  get("filters").hidden = false;
  await filter();
})().catch((error) => {
  document.getElementById("found").textContent = `The samples cannot be read: ${error}`;
});
