// The tab for pictures: they appear out of the noise while they are drawn.

import { codeBox, pythonArguments } from "../code.js";
import { duration, el, field, modelPicker, number, problemBox, read, select } from "../elements.js";

export function mount(root, context) {
  const panel = new Draw(root, context);
  return { update: panel.picker.update };
}

class Draw {
  constructor(root, { api, models }) {
    this.api = api;
    this.running = null;
    this.build(root, models);
  }

  build(root, models) {
    this.picker = modelPicker(models);
    this.picker.onchange = () => this.adaptToModel();
    this.prompt = el("textarea", { rows: 2, "aria-label": "What to draw", onkeydown: (event) => this.onKey(event) });
    this.prompt.value = "a small red circle above a large blue square";
    this.num = number(2, { min: 1, max: 10, step: 1 });
    this.size = el("input", { placeholder: "auto", size: 10 });
    this.steps = number(undefined, { min: 1, step: 1, placeholder: "the model's" });
    this.seed = number(undefined, { min: 0, step: 1, placeholder: "random" });
    this.preview = select([["linear", "Rough, at no cost"], ["decode", "Exact, a decode each"]]);
    this.go = el("button", { class: "main" }, "Draw");
    this.gallery = el("div", { class: "gallery", "aria-live": "off" }, el("p", { class: "empty" }, "Pictures appear here while they are drawn."));
    this.figures = el("p", { class: "figures", role: "status" });
    this.problem = problemBox();
    this.code = codeBox(this.api);
    root.append(el("form", { class: "split", onsubmit: (event) => this.draw(event) },
      el("div", { class: "work" }, this.prompt, el("div", { class: "row" }, this.go), this.problem.node, this.figures, this.gallery),
      el("aside", { class: "side", "aria-label": "Settings" }, this.picker.node,
        el("div", { class: "pair" }, field("Pictures", this.num), field("Size", this.size)),
        el("div", { class: "pair" }, field("Steps", this.steps), field("Seed", this.seed)),
        field("Previews", this.preview), this.code.node)));
    this.adaptToModel();
  }

  adaptToModel() {
    const details = this.picker.model.details ?? {};
    this.size.placeholder = details.default_size ? `auto (${details.default_size})` : "auto";
    if (details.max_n) this.num.max = details.max_n;
  }

  onKey(event) {
    if (event.key === "Escape") this.running?.abort();
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.prompt.form.requestSubmit();
  }

  async draw(event) {
    event.preventDefault();
    if (this.running) {
      this.running.abort();
      return;
    }
    const body = {
      model: this.picker.model.id, prompt: this.prompt.value, n: read(this.num), size: this.size.value.trim() || undefined,
      num_inference_steps: read(this.steps), seed: read(this.seed),
    };
    this.showCode(body);
    this.problem.clear();
    this.running = new AbortController();
    this.go.textContent = "Stop";
    const frames = new Map();
    const row = el("div", { class: "pictures" });
    this.gallery.querySelector(".empty")?.remove();
    this.gallery.prepend(row);
    for (let index = 0; index < (body.n ?? 1); index += 1) {
      frames.set(index, new Frame(body.prompt));
      row.append(frames.get(index).node);
    }
    const streamed = { ...body, stream: true, partial_images: 3, progress: true, preview: this.preview.value };
    const began = performance.now();
    try {
      for await (const { data } of this.api.events("v1/images/generations", { json: streamed, signal: this.running.signal })) {
        frames.get(data.image_index ?? 0)?.take(data);
      }
      this.figures.textContent = `${frames.size} ${frames.size === 1 ? "picture" : "pictures"} in ${duration((performance.now() - began) / 1000)}`;
    } catch (error) {
      if (![...frames.values()].some((frame) => frame.hasPicture)) row.remove();
      this.problem.show(error);
    } finally {
      this.running = null;
      this.go.textContent = "Draw";
    }
  }

  showCode(body) {
    const { model, prompt, n, size, ...ours } = body;
    const further = Object.fromEntries(Object.entries(ours).filter(([, value]) => value !== undefined));
    const extra = Object.keys(further).length ? { extra_body: further } : {};
    this.code.set({
      path: "v1/images/generations", json: body,
      python: `import base64\n\nanswer = client.images.generate(\n${pythonArguments({ model, prompt, n, size, ...extra })}\n)\n` +
        `for number, picture in enumerate(answer.data):\n    open(f"picture-{number}.png", "wb").write(base64.b64decode(picture.b64_json))`,
    });
  }
}

/** One picture on its way. */
class Frame {
  constructor(prompt) {
    this.hasPicture = false;
    this.image = el("img", { alt: prompt, hidden: true });
    this.bar = el("progress", { max: 1, "aria-label": "Steps done" });
    this.caption = el("figcaption", {}, "waiting for a place in the batch");
    this.node = el("figure", { class: "picture" }, el("div", { class: "sheet" }, this.image), this.bar, this.caption);
  }

  take(data) {
    if (data.type.endsWith(".progress")) {
      this.bar.max = data.num_steps;
      this.bar.value = data.step;
      this.caption.textContent = `step ${data.step} of ${data.num_steps}`;
      return;
    }
    this.image.src = `data:image/${data.output_format ?? "png"};base64,${data.b64_json}`;
    this.image.hidden = false;
    this.hasPicture = true;
    if (data.type.endsWith(".completed")) {
      this.bar.remove();
      this.caption.textContent = `${data.size}, seed ${data.seed}`;
    }
  }
}
