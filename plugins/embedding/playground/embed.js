// The tab for embeddings: several texts as points of a map, and how alike they are.

import { codeBox, pythonArguments } from "../code.js";
import { duration, el, field, modelPicker, problemBox, svg } from "../elements.js";
import { cosine, project } from "./projection.js";

const SAMPLE = [
  "The patient has a high temperature.", "Fever was noted on admission.", "Blood pressure is within the normal range.",
  "A cat sleeps on the sofa.", "Two dogs play in the park.", "The kitten is napping.",
  "Interest rates rose again this quarter.", "The central bank tightened its policy.",
];
const WIDTH = 640;
const HEIGHT = 420;
const MAX_TEXTS = 60;

export function mount(root, { api, models, announce }) {
  const picker = modelPicker(models);
  const texts = el("textarea", { rows: 10, spellcheck: "false" });
  texts.value = SAMPLE.join("\n");
  const problem = problemBox();
  const code = codeBox(api);
  const figures = el("p", { class: "figures" });
  const map = el("div", { class: "map" }, el("p", { class: "empty" }, "Each line becomes a point. Alike texts lie near each other."));
  const list = el("ol", { class: "alike", "aria-live": "polite" });
  const button = el("button", { class: "main" }, "Embed");

  async function embed(event) {
    event.preventDefault();
    problem.clear();
    const input = texts.value.split("\n").map((line) => line.trim()).filter(Boolean).slice(0, MAX_TEXTS);
    if (!input.length) return;
    const body = { model: picker.model.id, input };
    code.set({
      path: "v1/embeddings", json: body,
      python: `answer = client.embeddings.create(\n${pythonArguments(body)}\n)\nprint(len(answer.data), "vectors")`,
    });
    button.disabled = true;
    const began = performance.now();
    try {
      const answer = await api.json("v1/embeddings", { json: { ...body, encoding_format: "base64" } });
      const vectors = answer.data.sort((a, b) => a.index - b.index).map((each) => floats(each.embedding));
      const parts = [`${vectors.length} vectors of ${vectors[0].length} numbers`, `${answer.usage.prompt_tokens} tokens`,
        duration((performance.now() - began) / 1000)];
      figures.textContent = parts.join("  \u00b7  ");
      draw(input, vectors);
      announce(`The map shows ${input.length} texts.`);
    } catch (error) {
      problem.show(error);
    } finally {
      button.disabled = false;
    }
  }

  function draw(input, vectors) {
    const alike = vectors.map((a) => vectors.map((b) => cosine(a, b)));
    const places = scaled(project(vectors));
    const lines = svg("g", { class: "links" });
    const points = places.map(([x, y], index) => {
      const point = svg("g", {
        class: "point", tabindex: "0", role: "button", "aria-label": input[index],
        transform: `translate(${x} ${y})`, onmouseenter: () => choose(index), onfocus: () => choose(index),
      });
      const right = x < WIDTH * 0.6;
      const label = svg("text", { x: right ? 10 : -10, y: 4, "text-anchor": right ? "start" : "end" });
      label.textContent = input[index].length > 38 ? `${input[index].slice(0, 36)}...` : input[index];
      point.append(svg("circle", { r: 14, class: "reach" }), svg("circle", { r: 5 }), label);
      return point;
    });

    function choose(index) {
      lines.replaceChildren();
      const order = input.map((_, other) => other).filter((other) => other !== index)
        .sort((a, b) => alike[index][b] - alike[index][a]);
      for (const [other, point] of points.entries()) {
        point.classList.toggle("chosen", other === index);
        point.style.opacity = other === index ? 1 : 0.55 + 0.45 * Math.max(0, alike[index][other]);
        const [x1, y1] = places[index];
        const [x2, y2] = places[other];
        const line = svg("line", { x1, y1, x2, y2 });
        line.style.opacity = Math.max(0, alike[index][other]) ** 1.5;
        lines.append(line);
      }
      list.replaceChildren(...order.slice(0, 8).map((other) => {
        const share = el("span", { class: "share" }, alike[index][other].toFixed(2));
        share.style.setProperty("--share", Math.max(0, alike[index][other]));
        return el("li", {}, share, input[other]);
      }));
      list.dataset.of = input[index];
      declutter([index, ...order], places, points);
    }

    const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": "Map of the texts" }, lines, ...points);
    map.replaceChildren(drawing);
    choose(0);
  }

  root.append(el("div", { class: "split" },
    el("div", { class: "work" }, map, figures, problem.node, el("h2", {}, "Most alike"), list),
    el("form", { class: "side", onsubmit: embed, "aria-label": "Texts" }, picker.node,
      field("Texts", texts, `One a line, up to ${MAX_TEXTS}.`), el("div", { class: "row" }, button), code.node)));
  return { update: picker.update };
}

/** Shows the labels that find room, the most alike first; the others come when their points are chosen. */
function declutter(order, places, points) {
  const taken = [];
  for (const index of order) {
    const label = points[index].querySelector("text");
    const width = 6.4 * label.textContent.length + 12;
    const [x, y] = places[index];
    const left = label.getAttribute("text-anchor") === "start" ? x : x - width;
    const hides = taken.some((box) => Math.abs(box.y - y) < 15 && left < box.left + box.width && box.left < left + width);
    label.style.display = hides ? "none" : "";
    if (!hides) taken.push({ left, width, y });
  }
}

function floats(base64) {
  const raw = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Float32Array(raw.buffer);
}

/** Places within the drawing, with a margin; the scale is the same in both directions. */
function scaled(places) {
  const xs = places.map(([x]) => x);
  const ys = places.map(([, y]) => y);
  const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const scale = Math.min((WIDTH - 160) / (right - left || 1), (HEIGHT - 80) / (bottom - top || 1));
  return places.map(([x, y]) => [
    WIDTH / 2 + (x - (left + right) / 2) * scale,
    HEIGHT / 2 + (y - (top + bottom) / 2) * scale,
  ]);
}
