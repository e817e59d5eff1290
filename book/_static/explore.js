// The slider between two pictures (bold words of the caption name them), and the table of counts for other sizes, classes and conventions. Without this script the two
// pictures follow each other and the table shows the counts on record. `labelled` is ledger.js's, which is loaded before.

function slide(figure) {
  const slider = document.createElement("div"), range = document.createElement("input");
  const pictures = [...figure.querySelectorAll("img")];
  const names = [...figure.querySelectorAll("figcaption p strong")].map(({ textContent }) => {
    const name = document.createElement("div");
    name.append(Object.assign(document.createElement("b"), { textContent }));
    return name;
  });
  for (const parts of [pictures, names]) parts.forEach((part, i) => part.classList.add(["before", "after"][i]));
  slider.className = "stacked";
  range.setAttribute("aria-label", "how much of the first picture the second covers, percent");
  Object.assign(range, { type: "range", min: 0, max: 100, value: 50 });
  slider.append(...pictures, ...names, range);
  figure.prepend(slider);
  const move = () => slider.style.setProperty("--at", `${100 - range.value}%`);
  range.addEventListener("input", move);
  move();
}

// Counts at sizes that 32 divides follow from one: every map's area grows with the image's. Classes enter through the classifier
// alone, a 3x3 convolution of 256 channels with bias at stride 4.
const HEAD = 9 * 256;

function counted(row, { height, width, classes, kinds }) {
  const area = (height * width) / (row.size[0] * row.size[1]);
  const more = classes - row.classes;
  const macs = Object.fromEntries(kinds.map(kind => [kind, row.macs[kind] * area]));
  if ("conv" in macs) macs.conv += (height / 4) * (width / 4) * HEAD * more;
  const params = row.params + more * (HEAD + 1);
  return {
    params, macs: Object.values(macs).reduce((sum, value) => sum + value, 0), decoder: (row.decoder + more * (HEAD + 1)) / params,
  };
}

function explorer(table, rows) {
  const form = document.createElement("form");
  form.className = "ledger-filter";
  form.setAttribute("aria-label", "what is counted");
  const number = (label, name, value, least, most, step) => {
    const control = labelled(form, label, document.createElement("input"));
    Object.assign(control, { type: "number", name, min: least, max: most, step, required: true });
    control.value = value;
    return control;
  };
  const [first] = rows;
  const width = number("width", "width", first.size[1], 32, 4096, 32);
  const height = number("height", "height", first.size[0], 32, 4096, 32);
  const classes = number("classes", "classes", first.classes, 1, 1000, 1);
  const set = document.createElement("fieldset");
  set.innerHTML = "<legend>multiply-adds of</legend>";
  const boxes = Object.keys(first.macs).filter(kind => kind !== "total").map(kind => {
    const box = Object.assign(document.createElement("input"), { type: "checkbox", name: kind, checked: kind === "conv" || kind === "pool" });
    const label = document.createElement("label");
    label.append(box, ` ${kind}`);
    set.append(label);
    return box;
  });
  const status = document.createElement("output");
  form.append(set, status);
  const caption = table.closest("figure").querySelector(".caption-text");
  const show = () => {
    const wrong = [width, height, classes].find(control => !control.checkValidity());
    status.textContent = wrong ? `${wrong.name}: ${wrong.validationMessage}` : "";
    if (wrong) return;
    const asked = {
      height: Number(height.value), width: Number(width.value), classes: Number(classes.value),
      kinds: boxes.filter(box => box.checked).map(box => box.name),
    };
    const found = rows.map(row => counted(row, asked));
    const most = Math.max(...found.map(({ macs }) => macs), 1);
    rows.forEach((row, i) => {
      const { cells } = table.tBodies[0].querySelector(`tr[data-model="${row.model}"]`);
      cells[1].textContent = (found[i].params / 1e6).toFixed(2);
      cells[2].textContent = (found[i].macs / 1e9).toFixed(2);
      cells[3].textContent = (100 * found[i].decoder).toFixed(0);
      cells[4].firstElementChild.style.width = `${(100 * found[i].macs) / most}%`;
    });
    caption.textContent = `Parameters and multiply-adds at ${asked.width}x${asked.height} pixels with ${asked.classes} classes; counted: ${asked.kinds.join(", ") || "nothing"}.`;
  };
  form.addEventListener("input", show);
  form.addEventListener("submit", event => event.preventDefault());
  table.before(form);
  show();
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("figure.slider").forEach(slide);
  const table = document.getElementById("explorer");
  if (table) explorer(table, [...table.tBodies[0].rows].map(({ dataset }) => ({ model: dataset.model, ...JSON.parse(dataset.counts) })));
});
