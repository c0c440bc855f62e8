"use strict";
// Filters and sorts what is on the page already; makes no markup of any text.
const byId = (id) => document.getElementById(id);
const [search, bot, kind, shown] = ["search", "bot", "kind", "shown"].map(byId);
const sections = [...document.querySelectorAll("section[data-kind]")];
const rows = [...document.querySelectorAll("tr[data-row]")];
const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
const heat = JSON.parse(byId("heat-data").textContent);
const cells = [...document.querySelectorAll("#heat td")];

function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const section of sections) {
    section.hidden = kind.value !== "" && section.dataset.kind !== kind.value;
  }
  let count = 0;
  for (const row of rows) {
    const named = bot.value === "" || row.dataset.row.split("\n").includes(bot.value);
    row.hidden = !named || !words.every((word) => texts.get(row).includes(word));
    if (!row.hidden && !row.closest("section").hidden) count += 1;
  }
  shown.textContent = `${count} of ${rows.length} rows`;
  shade();
}

function shade() {
  const sums = new Array(cells.length).fill(0);
  for (const [name, hours] of Object.entries(heat)) {
    if (bot.value === "" || bot.value === name) hours.forEach((count, at) => (sums[at] += count));
  }
  const most = Math.max(...sums);
  cells.forEach((cell, at) => {
    cell.className = `s${most === 0 ? 0 : Math.ceil((sums[at] * 5) / most)}`;
    cell.textContent = sums[at];
  });
}

function sort(button) {
  const head = button.closest("th");
  const table = head.closest("table");
  const column = [...head.parentNode.children].indexOf(head);
  const up = head.getAttribute("aria-sort") !== "ascending";
  table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = (row) => row.children[column].textContent;
  const compare = (a, b) => key(a).localeCompare(key(b), undefined, { numeric: true });
  const body = table.tBodies[0];
  [...body.rows].sort((a, b) => (up ? compare(a, b) : compare(b, a))).forEach((row) => body.append(row));
}

byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("filters").addEventListener("reset", () => setTimeout(filter));
for (const event of ["input", "change"]) byId("filters").addEventListener(event, filter);
document.querySelectorAll("th button").forEach((button) => button.addEventListener("click", () => sort(button)));
byId("filters").hidden = false;
filter();
