// The tab for clips: jobs with their progress, and a player when the file is there.

import { codeBox, pythonArguments } from "../code.js";
import { el, field, modelPicker, number, problemBox, read } from "../elements.js";

const POLL_MS = 700;
const RETRY_MS = 3000;
const NUM_SHOWN = 12;

export function mount(root, context) {
  const panel = new Film(root, context);
  return { update: panel.picker.update, show: () => panel.watch(), hide: () => panel.rest() };
}

class Film {
  constructor(root, { api, models, announce }) {
    this.api = api;
    this.announce = announce;
    this.cards = new Map(); // by job id
    this.timer = 0;
    this.visible = false;
    this.isFailing = false; // the last look
    this.build(root, models);
  }

  build(root, models) {
    this.picker = modelPicker(models);
    this.picker.onchange = () => this.adaptToModel();
    this.prompt = el("textarea", { rows: 2, "aria-label": "What to film" });
    this.prompt.value = "a red ball moving right";
    this.seconds = number(undefined, { min: 0.1, step: 0.1, placeholder: "the model's" });
    this.size = el("input", { placeholder: "the model's", size: 10 });
    this.steps = number(undefined, { min: 1, step: 1, placeholder: "the model's" });
    this.seed = number(undefined, { min: 0, step: 1, placeholder: "random" });
    this.go = el("button", { class: "main" }, "Film");
    this.list = el("div", { class: "pictures" });
    this.problem = problemBox();
    this.code = codeBox(this.api);
    root.append(el("form", { class: "split", onsubmit: (event) => this.film(event) },
      el("div", { class: "work" }, this.prompt, el("div", { class: "row" }, this.go), this.problem.node, this.list),
      el("aside", { class: "side", "aria-label": "Settings" }, this.picker.node,
        el("div", { class: "pair" }, field("Seconds", this.seconds), field("Size", this.size)),
        el("div", { class: "pair" }, field("Steps", this.steps), field("Seed", this.seed)), this.code.node)));
    this.adaptToModel();
  }

  adaptToModel() {
    const { width, height, num_frames: frames, fps } = this.picker.model.details ?? {};
    if (width) this.size.placeholder = `${width}x${height}`;
    if (frames && fps) this.seconds.placeholder = (frames / fps).toFixed(1);
  }

  async film(event) {
    event.preventDefault();
    this.problem.clear();
    const seconds = read(this.seconds);
    const body = {
      model: this.picker.model.id, prompt: this.prompt.value, seconds: seconds === undefined ? undefined : String(seconds),
      size: this.size.value.trim() || undefined, num_inference_steps: read(this.steps), seed: read(this.seed),
    };
    this.showCode(body);
    try {
      this.place(await this.api.json("v1/videos", { json: body }));
      this.schedule(0);
    } catch (error) {
      this.problem.show(error);
    }
  }

  showCode(body) {
    const { num_inference_steps: steps, seed, ...plain } = body;
    const ours = Object.fromEntries(Object.entries({ num_inference_steps: steps, seed }).filter(([, value]) => value !== undefined));
    const extra = Object.keys(ours).length ? { extra_body: ours } : {};
    this.code.set({
      path: "v1/videos", json: body,
      python: `clip = client.videos.create_and_poll(\n${pythonArguments({ ...plain, ...extra })}\n)\n` +
        `client.videos.download_content(clip.id).write_to_file("clip.mp4")`,
    });
  }

  watch() {
    this.visible = true;
    this.schedule(0);
  }

  rest() {
    this.visible = false;
    clearTimeout(this.timer);
  }

  schedule(inMs) {
    clearTimeout(this.timer);
    if (this.visible) this.timer = setTimeout(() => this.look(), inMs);
  }

  async look() {
    let isBusy = true;
    try {
      const found = await this.api.json(`v1/videos?limit=${NUM_SHOWN}`);
      for (const job of found.data.reverse()) this.place(job);
      isBusy = found.data.some((job) => job.status === "queued" || job.status === "in_progress");
      if (this.isFailing) this.problem.clear();
      this.isFailing = false;
    } catch (error) {
      this.problem.show(error);
      this.isFailing = true;
      // A server that restarts or is busy answers again; a key that is refused stays so until it is changed.
      if (!error.status || error.status === 429 || error.status >= 500) this.schedule(RETRY_MS);
      return;
    }
    if (isBusy) this.schedule(POLL_MS);
  }

  place(job) {
    let card = this.cards.get(job.id);
    if (!card) {
      card = new Card(job, this);
      this.cards.set(job.id, card);
      this.list.prepend(card.node);
    }
    card.take(job);
  }

  async remove(card) {
    try {
      await this.api.request(`v1/videos/${card.id}`, { method: "DELETE" });
      this.cards.delete(card.id);
      card.node.remove();
      card.free();
    } catch (error) {
      this.problem.show(error);
    }
  }
}

/** One job. */
class Card {
  constructor(job, film) {
    this.id = job.id;
    this.film = film;
    this.status = null;
    this.url = null; // of the clip, in the browser's memory
    this.sheet = el("div", { class: "sheet" });
    this.bar = el("progress", { max: 100, value: 0, "aria-label": "Progress" });
    this.caption = el("figcaption", {});
    this.node = el("figure", { class: "picture" }, this.sheet, this.bar, this.caption,
      el("div", { class: "row" }, el("button", { type: "button", class: "quiet", onclick: () => film.remove(this) }, "Remove")));
  }

  take(job) {
    this.bar.value = job.progress;
    const done = job.status === "completed";
    this.bar.hidden = done || job.status === "failed";
    const state = { queued: "waits", in_progress: `${job.progress}%`, failed: job.error?.message ?? "failed" }[job.status];
    this.caption.textContent = [job.prompt, state ?? `${job.size}, ${Number(job.seconds).toFixed(1)} s`].filter(Boolean).join(": ");
    if (done && this.status !== "completed") this.load(this.status !== null);
    this.status = job.status;
  }

  /** Gives the clip's memory back. */
  free() {
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = null;
  }

  async load(isNew) {
    try {
      const response = await this.film.api.request(`v1/videos/${this.id}/content`);
      const video = el("video", { controls: true, loop: true, playsinline: true, "aria-label": this.caption.textContent });
      video.muted = true;
      const clip = await response.blob();
      if (!this.node.isConnected) return; // removed meanwhile
      this.free();
      video.src = this.url = URL.createObjectURL(clip);
      this.sheet.replaceChildren(video);
      if (isNew && !matchMedia("(prefers-reduced-motion: reduce)").matches) video.play().catch(() => {});
      if (isNew) this.film.announce("The clip is ready.");
    } catch (error) {
      this.film.problem.show(error);
    }
  }
}
