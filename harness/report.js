// The filters: a rollout is shown if each menu is on "all" or on the rollout's own word.
const menus = [...document.querySelectorAll(".filters select")];
const rollouts = [...document.querySelectorAll("#rollouts .rollout")];
function filter() {
  let shown = 0;
  for (const rollout of rollouts) {
    rollout.hidden = menus.some((menu) => menu.value && rollout.dataset[menu.name] !== menu.value);
    shown += rollout.hidden ? 0 : 1;
  }
  document.querySelector("#shown").textContent = `${shown} of ${rollouts.length}`;
}
menus.forEach((menu) => menu.addEventListener("change", filter));
if (menus.length) filter(); // a browser keeps the menus when a page is loaded again

// The curves: under the pointer, the step and each curve's value.
for (const figure of document.querySelectorAll(".curve")) {
  const series = Object.entries(JSON.parse(figure.dataset.series)).filter(([, points]) => points.length);
  const svg = figure.querySelector("svg"), { width, height } = svg.viewBox.baseVal;
  const left = 36, right = 10, top = 10, bottom = 24; // margins, as in harness/svg.py
  if (!series.length) continue;
  const steps = series.flatMap(([, points]) => points.map(([x]) => x));
  const first = Math.min(...steps), last = Math.max(...steps);
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
  cursor.setAttribute("class", "cursor");
  cursor.setAttribute("y1", top);
  cursor.setAttribute("y2", height - bottom);
  const readout = document.createElement("div");
  readout.className = "readout";
  figure.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const across = (((event.clientX - box.left) / box.width) * width - left) / (width - left - right);
    const wanted = Math.min(last, Math.max(first, first + across * (last - first)));
    const nearest = (points) => points.reduce((a, b) => (Math.abs(b[0] - wanted) < Math.abs(a[0] - wanted) ? b : a));
    const step = nearest(series[0][1])[0];
    readout.textContent = `step ${step}: ` + series.map(([name, points]) => `${name} ${nearest(points)[1].toFixed(2)}`).join(", ");
    const x = left + ((step - first) / Math.max(1, last - first)) * (width - left - right);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    svg.append(cursor);
    figure.append(readout);
  });
  figure.addEventListener("pointerleave", () => { cursor.remove(); readout.remove(); });
}
