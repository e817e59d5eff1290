// Tables of claims and records: sorting by a click on a heading, filters above the ledger; and the origin of a number beside it.
// Without this script the tables are read as they stand, and a click on a number still shows its origin.

const wordOf = (row, column) => row.cells[column].innerText.trim();
const numberOf = text => { const found = text.replaceAll(",", "").match(/[-−]?\d+(\.\d+)?/); return found ? Number(found[0].replace("−", "-")) : NaN; };

function sortable(table) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows].map(row => ({ row, text: wordOf(row, column), value: numberOf(wordOf(row, column)) }));
      const numeric = rows.filter(({ value }) => !isNaN(value)).length > rows.length / 2 && column > 0;
      const order = numeric
        ? (a, b) => (isNaN(a.value) - isNaN(b.value)) || (up ? a.value - b.value : b.value - a.value)
        : (a, b) => (up ? 1 : -1) * a.text.localeCompare(b.text, undefined, { numeric: true });
      body.append(...rows.sort(order).map(({ row }) => row));
    });
  });
}

function labelled(form, label, control) {
  const wrap = document.createElement("label");
  wrap.append(label, control);
  form.append(wrap);
  return control;
}

function filterable(table) {
  const rows = [...table.tBodies[0].rows];
  const form = document.createElement("form");
  form.className = "ledger-filter";
  form.setAttribute("role", "search");
  const field = (label, control) => labelled(form, label, control);
  const select = (label, key, all) => {
    const control = field(label, document.createElement("select"));
    control.name = key;
    control.append(new Option(all, ""));
    for (const value of new Set(rows.map(row => row.dataset[key])))
      control.append(new Option(`${value} (${rows.filter(row => row.dataset[key] === value).length})`, value));
    return control;
  };
  const words = field("words", document.createElement("input"));
  words.type = "search";
  words.name = "words";
  const selects = [select("verdict", "verdict", "any"), select("level", "level", "any"), select("about", "aim", "everything"), select("where", "where", "anywhere"),
    select("whose", "source", "own, repeated, quoted")];
  const status = document.createElement("output");
  form.append(status);
  const texts = new Map(rows.map(row => [row, row.textContent.toLowerCase()]));
  const show = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      row.hidden = selects.some(({ name, value }) => value && row.dataset[name] !== value) || !wanted.every(word => texts.get(row).includes(word));
      shown += !row.hidden;
    }
    status.textContent = `${shown} of ${rows.length} claims`;
  };
  form.addEventListener("input", show);
  form.addEventListener("submit", event => event.preventDefault());
  // ?verdict=partly&words=CRP
  const asked = new URLSearchParams(location.search);
  for (const control of [words, ...selects]) if (asked.has(control.name)) control.value = asked.get(control.name);
  table.before(form);
  show();
}

function origins() {
  let waiting;
  for (const button of document.querySelectorAll("button.num")) {
    const origin = document.getElementById(button.getAttribute("popovertarget"));
    const after = origin.nextSibling, mark = after?.nodeType === 3 && after.data.match(/^[.,;:)%]+/)?.[0];
    if (mark) { // else a line may begin with it
      const whole = document.createElement("span");
      whole.className = "whole";
      after.data = after.data.slice(mark.length);
      button.replaceWith(whole);
      whole.append(button, mark, origin);
    }
    if (!origin.showPopover) return;
    const place = () => {
      const at = button.getBoundingClientRect(), size = origin.getBoundingClientRect(), edge = 8;
      const below = at.bottom + size.height + edge < innerHeight;
      origin.style.margin = 0;
      origin.style.left = `${Math.max(edge, Math.min(at.left, innerWidth - size.width - edge))}px`;
      origin.style.top = `${Math.max(edge, below ? at.bottom + 2 : at.top - size.height - 2)}px`;
    };
    // Placed at once: in the middle of the screen, where browsers put it, it could cover the number, which would be left and entered.
    const open = () => { clearTimeout(waiting); if (!origin.matches(":popover-open")) { origin.showPopover({ source: button }); place(); } };
    const close = () => { waiting = setTimeout(() => { if (!origin.dataset.kept && origin.matches(":popover-open")) origin.hidePopover(); }, 250); };
    origin.addEventListener("toggle", event => { if (event.newState === "closed") delete origin.dataset.kept; });
    for (const element of [button, origin]) {
      element.addEventListener("mouseenter", event => { clearTimeout(waiting); if (element === button) waiting = setTimeout(open, 150); });
      element.addEventListener("mouseleave", close);
    }
    // A click keeps open what hovering has opened, and closes what a click has opened.
    button.addEventListener("click", event => {
      event.preventDefault();
      clearTimeout(waiting);
      if (origin.matches(":popover-open") && origin.dataset.kept) return origin.hidePopover();
      open();
      origin.dataset.kept = "yes";
    });
  }
}

// Columns of numbers stand on the right, and cells bear the names of their columns.
function columns() {
  const number = /^([-−+±]?\d[\d,.]*(e[-+]?\d+)?( ± [\d,.]+)?( ?%)?( \[.*\])?\*?|–|none|not (said|stated|printed|measured|run yet)|)$/, long = 24; // letters
  const tables = [...document.querySelectorAll(".bd-content table.table:not(.ledger, .indextable)")].filter(table => table.tHead);
  for (const table of tables) {
    [...table.tHead.rows[0].cells].forEach((name, i) => {
      const cells = [...table.tBodies[0].rows].map(row => row.cells[i]).filter(Boolean), texts = cells.map(cell => cell.textContent.trim());
      for (const cell of cells) cell.dataset.label = name.textContent.trim();
      if (i && texts.every(text => number.test(text))) {
        for (const cell of [name, ...cells]) cell.classList.add("number");
        for (const cell of cells) cell.innerHTML = cell.innerHTML.replace(/ (\[.*\])$/, ' <span class="whole">$1</span>'); // an interval stays on its line
      } else if (i && texts.some(text => text.length > long)) table.dataset.wordy = "yes";
    });
  }
  return tables.filter(table => table.tHead.rows[0].cells.length > 2);
}

// On a phone each row of a table of long texts, or of one that is too wide, becomes a card.
function cards(tables) {
  for (const table of tables) {
    table.classList.remove("cards");
    table.classList.toggle("cards", "wordy" in table.dataset || table.offsetWidth > table.parentElement.clientWidth);
  }
}

// A long run of cards begins folded.
function fold(tables) {
  for (const table of tables) {
    const rows = table.tBodies[0].rows.length, more = document.createElement("button");
    if (rows <= 12) continue;
    more.className = "more";
    more.textContent = `Show all ${rows} rows`;
    more.addEventListener("click", () => { table.classList.remove("folded"); table.rows[7].tabIndex = -1; table.rows[7].focus(); more.remove(); });
    table.classList.add("folded");
    table.after(more);
  }
}

// An option of a command is not torn at its dashes.
function options() {
  for (const code of document.querySelectorAll("td code, #records td div"))
    code.innerHTML = code.innerHTML.replace(/(^|[\s>])(--?[a-z][\w-]*)/g, '$1<span class="whole">$2</span>');
}

// What scrolls sideways can be reached and scrolled by the keyboard.
function scrollable() {
  for (const box of document.querySelectorAll(".output.text_html, div.math, .bd-content pre, .pst-scrollable-table-container")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else if (box.tabIndex === 0) box.removeAttribute("tabindex");
  }
}

document.addEventListener("DOMContentLoaded", () => {
  options();
  const tables = columns();
  cards(tables);
  fold(tables);
  scrollable();
  addEventListener("load", scrollable);
  addEventListener("resize", () => { cards(tables); scrollable(); });
  document.querySelectorAll("table.ledger").forEach(sortable);
  const ledger = document.getElementById("ledger");
  if (ledger) filterable(ledger);
  origins();
});
