"use strict";
// Copy buttons: hidden in the markup, so that a page without scripts offers nothing that does not work.
for (const button of document.querySelectorAll("[data-copy]")) {
  const source = document.getElementById(button.dataset.copy);
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(source.textContent + "\n");
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(source);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}

// Values under the pointer. All texts enter through textContent.
function nearest(xs, x) {
  let best = 0;
  for (let k = 1; k < xs.length; k += 1) if (Math.abs(xs[k] - x) < Math.abs(xs[best] - x)) best = k;
  return best;
}
function written(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2).replace("-", "\u2212");
  return value.toLocaleString("en", { maximumSignificantDigits: size >= 1000 ? 6 : 4 });
}
for (const plot of document.querySelectorAll("[data-plot]")) {
  const data = JSON.parse(plot.dataset.plot);
  const svg = plot.querySelector("svg");
  const cursor = svg.querySelector(".cursor");
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  plot.append(tip);
  const forward = data.log ? Math.log10 : (v) => v;
  const [low, high] = [forward(data.low), forward(data.high)];
  const hide = () => { tip.hidden = true; cursor.classList.remove("on"); };
  const show = (event) => {
    const box = svg.getBoundingClientRect();
    const unit = box.width / data.width;
    const share = ((event.clientX - box.left) / unit - data.left) / (data.right - data.left);
    if (share < -0.03 || share > 1.03) { hide(); return; }
    const at = low + Math.min(1, Math.max(0, share)) * (high - low);
    const found = data.series.map((one) => [one, nearest(one.x.map(forward), at)]);
    if (found.length === 0) return;
    const x = found[0][0].x[found[0][1]];
    const place = data.left + (forward(x) - low) / (high - low) * (data.right - data.left);
    cursor.setAttribute("x1", place);
    cursor.setAttribute("x2", place);
    cursor.classList.add("on");
    tip.replaceChildren();
    for (const text of [`${data.label} ${written(x)}`, ...found.map(([one, k]) => `${one.name} ${written(one.y[k])}`)]) {
      const line = document.createElement("div");
      line.textContent = text;
      tip.append(line);
    }
    tip.hidden = false;
    const left = place * unit + (share > 0.55 ? -tip.offsetWidth - 10 : 10);
    const top = box.top - plot.getBoundingClientRect().top + 4;
    tip.style.transform = `translate(${Math.max(0, left)}px, ${top}px)`;
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
}

// The part in view is marked in the navigation.
const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    for (const link of links.values()) link.removeAttribute("aria-current");
    links.get(entry.target.id).setAttribute("aria-current", "true");
  }
}, { rootMargin: "-15% 0px -75% 0px" });
for (const id of links.keys()) seen.observe(document.getElementById(id));

// Paper has no folds.
addEventListener("beforeprint", () => { for (const fold of document.querySelectorAll("details")) fold.open = true; });
