"use strict";

// Rows in blocks: a row and those nested below it, which stay with it.
function blocksOf(table) {
  const blocks = [];
  for (const row of table.tBodies[0].rows) {
    if (row.dataset.nested === undefined || !blocks.length) blocks.push([row]);
    else blocks[blocks.length - 1].push(row);
  }
  return blocks;
}

// What readers sort a cell by: its number, else its words. A dash has neither.
function keyOf(cell) {
  if (cell.dataset.order !== undefined) return Number(cell.dataset.order);
  const text = cell.textContent.trim();
  return text === "–" || text === "" ? null : text;
}

function compare(first, second, direction) {
  if (first === null || second === null) return (first === null) - (second === null);  // without a figure: last
  const order = typeof first === "number" && typeof second === "number"
    ? first - second : String(first).localeCompare(String(second), "en", { numeric: true });
  return direction * order;
}

function makeSortable(table) {
  const original = blocksOf(table), headings = [...table.tHead.rows[0].cells];
  const keys = new Map([...table.tBodies[0].rows].map((row) => [row, [...row.cells].map(keyOf)]));
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" }[heading.ariaSort ?? "none"];
      for (const each of headings) each.removeAttribute("aria-sort");
      let blocks = original;
      if (next !== "none") {
        heading.ariaSort = next;
        const direction = next === "ascending" ? 1 : -1;
        const order = (one, other) => compare(keys.get(one)[column], keys.get(other)[column], direction);
        blocks = original.map(([first, ...nested]) => [first, ...nested.sort(order)]);
        blocks.sort((one, other) => order(one[0], other[0]));
      }
      table.tBodies[0].append(...blocks.flat());
    });
  });
}

// The script alone folds rows away: without it all are shown, and in print too.
function makeFoldable([first, ...nested]) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "fold";
  button.textContent = `${nested.length} seeds`;
  button.setAttribute("aria-controls", nested.map((row) => row.id).join(" "));
  function fold(folded) {
    button.ariaExpanded = String(!folded);
    for (const row of nested) row.classList.toggle("folded", folded);
  }
  button.addEventListener("click", () => fold(button.ariaExpanded === "true"));
  first.cells[0].append(" ", button);
  fold(true);
}

function filterBy(form) {
  const boxes = [...form.querySelectorAll("input")], status = form.querySelector("output");
  const reset = form.querySelector("button");
  const names = [...new Set(boxes.map((box) => box.name))];
  const concerned = names.map((name) => `[data-${name}]`).join();
  const filtered = [...document.querySelectorAll(concerned)];
  const tables = [...document.querySelectorAll("table")].filter((table) => table.querySelector(concerned));

  function show() {
    const wanted = {};
    for (const box of boxes) {
      wanted[box.name] ??= new Set();
      if (box.checked) wanted[box.name].add(box.value);
    }
    for (const each of filtered) {
      const hidden = Object.entries(wanted).some(
        ([name, values]) => each.dataset[name] !== undefined && !values.has(each.dataset[name]));
      each.classList.toggle("filtered", hidden);
    }
    for (const table of tables) {
      const blocks = blocksOf(table), hidden = (row) => row.classList.contains("filtered");
      const left = blocks.filter((block) => !hidden(block[0]));
      const seeds = left.flatMap((block) => block.slice(1));
      const gone = blocks.length - left.length, seedsGone = seeds.filter(hidden).length, notes = [];
      if (gone) notes.push(`The filter hides ${left.length ? `${gone} of` : "all"} ${blocks.length} rows.`);
      if (seedsGone) notes.push(`The filter hides ${seedsGone} of ${seeds.length} seeds; means are over all of them.`);
      const note = table.closest(".table").querySelector(".hidden-rows");
      note.hidden = !notes.length;
      note.textContent = notes.join(" ");
    }
    const off = boxes.filter((box) => !box.checked).length;
    reset.disabled = off === 0;
    status.textContent = off ? `Hidden: ${off} of ${boxes.length} choices.` : "Everything is shown.";
  }

  form.reset();  // a browser keeps the boxes of an earlier visit
  form.addEventListener("change", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  // The event comes before the boxes change; the button then loses its use, and with it the focus.
  form.addEventListener("reset", () => setTimeout(() => {
    show();
    boxes[0].focus();
  }));
  form.hidden = false;
  show();
}

// A blurred text is no text to a screen reader or to a search of the page.
function makeLiftable(box) {
  const texts = [...box.closest(".examples").querySelectorAll(".sample")];
  function show() {
    for (const text of texts) text.inert = !box.checked;
  }
  box.checked = false;
  box.addEventListener("change", show);
  box.closest(".examples").querySelector(".side").addEventListener("click", () => {
    if (box.checked) return;
    box.checked = true;
    show();
  });
  show();
}

for (const table of document.querySelectorAll("table[data-sortable]")) makeSortable(table);
for (const table of document.querySelectorAll("table")) {
  for (const block of blocksOf(table)) if (block.length > 1) makeFoldable(block);
}
for (const box of document.querySelectorAll(".lift")) makeLiftable(box);
const filters = document.querySelector("form.filters");
if (filters) filterBy(filters);
