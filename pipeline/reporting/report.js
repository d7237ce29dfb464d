"use strict";
const columns = JSON.parse(document.getElementById("data").textContent);

function percent(part, whole) {
  if (!whole) return "–";
  const share = (100 * part) / whole, small = Math.min(share, 100 - share);
  return share.toFixed(small >= 1 || small === 0 ? 1 : small >= 0.1 ? 2 : 3) + " %";
}

function rate(figure) {
  if (!figure) return "–";
  const [value, low, high] = figure;
  const text = percent(value, 1);
  const all = low === null ? text : `${text} (${percent(low, 1)} to ${percent(high, 1)})`;
  return all.replaceAll(" %", "\u00a0%");  // no line begins with the sign
}

for (const section of document.querySelectorAll("section.column")) {
  const slider = section.querySelector("input");
  if (!slider) continue;
  const column = columns[section.dataset.index];
  const reset = section.querySelector(".reset"), command = section.querySelector(".command code");
  const copy = section.querySelector(".copy"), rates = section.querySelector(".rates");
  const bodyRows = [...section.querySelectorAll(".groups tbody tr")];

  function show() {
    const at = Number(slider.value), text = column.thresholds[at];
    for (const each of section.querySelectorAll(".value")) each.textContent = text;
    slider.setAttribute("aria-valuetext", text);
    for (const row of bodyRows) {
      column.groups[row.dataset.group].forEach((counts, index) => {
        row.cells[index + 1].textContent = percent(counts[at], counts[counts.length - 1]);
      });
    }
    const mark = section.querySelector(".mark");
    mark.setAttribute("x1", column.x[at]);
    mark.setAttribute("x2", column.x[at]);
    command.textContent = column.commands[at];
    copy.textContent = "Copy";
    reset.disabled = at === column.committed;
    if (!column.calibration) return;
    const { precision, recall, falseRate } = column.calibration;
    rates.textContent = `At ${text}: precision ${rate(precision[at])}, recall ${rate(recall[at])}, ` +
      `false positive rate ${rate(falseRate[at])}.`;
    const points = { precision: [recall[at], precision[at]], roc: [falseRate[at], recall[at]] };
    for (const square of section.querySelectorAll(".square")) {
      const side = square.querySelector(".frame").width.baseVal.value, [x, y] = points[square.dataset.kind];
      const dot = square.querySelector(".dot");
      dot.setAttribute("cx", y ? x[0] * side : -99);
      dot.setAttribute("cy", y ? (1 - y[0]) * side : -99);
    }
  }

  slider.addEventListener("input", show);
  reset.addEventListener("click", () => { slider.value = column.committed; show(); slider.focus(); });
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(command.textContent);
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(command);
      copy.textContent = "Selected";
    }
  });
  for (const row of bodyRows) {
    const line = section.querySelector(`path.group[data-group="${row.dataset.group}"]`);
    if (!line) continue;
    row.addEventListener("pointerenter", () => line.classList.add("lit"));
    row.addEventListener("pointerleave", () => line.classList.remove("lit"));
  }
  section.querySelector(".control").hidden = false;
  copy.hidden = false;
  show();
}
