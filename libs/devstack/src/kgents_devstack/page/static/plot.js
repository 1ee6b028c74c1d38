// Line plots as SVG, with a key and a sentence for who cannot see them. Values in, elements out.

const NS = "http://www.w3.org/2000/svg";
const HEIGHT = 150, LEFT = 44, BOTTOM = 18, TOP = 8;

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  return furnished(made, attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return furnished(document.createElementNS(NS, name), attributes, children);
}

function furnished(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) if (value !== undefined) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const shortly = (value) => {
  if (value >= 1e6) return `${(value / 1e6).toFixed(1)}M`;
  if (value >= 1e4) return `${(value / 1e3).toFixed(1)}k`;
  return value >= 10 || Number.isInteger(value) ? Math.round(value).toLocaleString("en") : value.toFixed(1);
};

// series: [{name, points: [[x, y], …]}]; x in seconds.
export function plot(into, series, { from, to, what }) {
  const WIDTH = Math.max(260, into.clientWidth);
  const top = ceiling(Math.max(1, ...series.flatMap((one) => one.points.map((point) => point[1]))));
  const x = (value) => LEFT + ((value - from) / Math.max(1, to - from)) * (WIDTH - LEFT - 4);
  const y = (value) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);
  const said = series.map((one) => `${one.name} ${one.points.length ? shortly(one.points.at(-1)[1]) : "none"}`).join(", ");
  const drawn = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${what}. Now: ${said}.` });
  for (const share of [0, 0.5, 1]) {
    const at = y(top * share);
    drawn.append(svg("line", { class: "axis", x1: LEFT, x2: WIDTH - 4, y1: at, y2: at }),
      svg("text", { x: LEFT - 6, y: at + 4, "text-anchor": "end" }, shortly(top * share)));
  }
  for (const [at, anchor] of [[from, "start"], [to, "end"]]) {
    drawn.append(svg("text", { x: x(at), y: HEIGHT - 4, "text-anchor": anchor }, clock(at)));
  }
  series.forEach((one, index) => {
    if (!one.points.length) return;
    const d = one.points.map((point, n) => `${n ? "L" : "M"}${x(point[0]).toFixed(1)} ${y(point[1]).toFixed(1)}`).join("");
    drawn.append(svg("path", { d, class: `c${index % 5}` }));
  });
  const key = element("ul", { class: "key", "aria-hidden": "true" }, ...series.map((one, index) => element("li", {},
    svg("svg", { viewBox: "0 0 26 8" }, svg("path", { d: "M0 4H26", class: `c${index % 5}` })),
    `${one.name} ${one.points.length ? shortly(one.points.at(-1)[1]) : ""}`)));
  into.replaceChildren(drawn, key);
}

export function bar(from, length, whole) {
  const share = (value) => (100 * value) / Math.max(whole, 0.001);
  return element("div", { class: "bar", "aria-hidden": "true" }, svg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none" },
    svg("rect", { x: share(from), width: Math.max(share(length), 0.6), y: 1, height: 8 })));
}

export const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });

function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}
