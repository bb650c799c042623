// The tab for speech: a text is heard while the rest of it is still being made.

import { codeBox, literal } from "../code.js";
import { duration, el, field, modelPicker, number, problemBox, read, select } from "../elements.js";
import { PcmPlayer } from "./pcm_player.js";

const SAMPLE = "The patient is awake. Her temperature is 37.2 degrees, and she would like a cup of tea. Dr. Lee will see her at half past four.";

export function mount(root, context) {
  const panel = new Speak(root, context);
  return { update: panel.picker.update, show: () => panel.listVoices(), hide: () => panel.stop() };
}

class Speak {
  constructor(root, { api, models, announce }) {
    this.api = api;
    this.announce = announce;
    this.player = null;
    this.running = null;
    this.build(root, models);
  }

  build(root, models) {
    this.picker = modelPicker(models);
    this.picker.onchange = () => this.listVoices();
    this.text = el("textarea", { rows: 6, "aria-label": "Text" });
    this.text.value = SAMPLE;
    this.voice = select([["", "the model's own"]]);
    this.speed = number(1, { min: 0.25, max: 4, step: 0.05 });
    this.go = el("button", { class: "main" }, "Speak");
    this.replay = el("audio", { controls: true, hidden: true });
    this.progress = el("p", { class: "figures", role: "status" });
    this.problem = problemBox();
    this.code = codeBox(this.api);
    root.append(el("form", { class: "split", onsubmit: (event) => this.speak(event) },
      el("div", { class: "work" }, this.text, el("div", { class: "row" }, this.go), this.problem.node, this.progress, this.replay),
      el("aside", { class: "side", "aria-label": "Settings" }, this.picker.node, field("Voice", this.voice),
        field("Speed", this.speed), this.code.node)));
  }

  /** Asks only where the model is in memory: asking would load it. */
  async listVoices() {
    if (this.picker.model.state !== "ready") {
      this.voice.replaceChildren(el("option", { value: "" }, "the model's own"));
      return;
    }
    try {
      const found = await this.api.json(`v1/audio/voices?model=${encodeURIComponent(this.picker.model.id)}`);
      const before = this.voice.value;
      const names = found.voices.map((voice) => voice.id);
      const options = [["", "the model's own"], ...names.map((name) => [name, name])].map(([value, text]) => el("option", { value }, text));
      this.voice.replaceChildren(...options);
      if (names.includes(before)) this.voice.value = before;
    } catch (error) {
      this.problem.show(error);
    }
  }

  stop() {
    this.running?.abort();
    this.player?.stop();
  }

  async speak(event) {
    event.preventDefault();
    if (this.running) {
      this.stop();
      return;
    }
    this.problem.clear();
    this.player?.stop();
    this.replay.hidden = true;
    const body = {
      model: this.picker.model.id, input: this.text.value, voice: this.voice.value || undefined,
      speed: read(this.speed), response_format: "pcm",
    };
    this.showCode({ ...body, response_format: "mp3" });
    this.running = new AbortController();
    this.go.textContent = "Stop";
    this.progress.textContent = "waiting for the first sentence";
    const player = (this.player = new PcmPlayer());
    const began = performance.now();
    let first = null;
    try {
      const response = await this.api.request("v1/audio/speech", { json: body, signal: this.running.signal });
      const reader = response.body.getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        first ??= performance.now();
        player.add(value);
        this.say(began, first, player.seconds, false);
      }
      this.say(began, first, player.seconds, true);
      this.announce("The speech is complete.");
    } catch (error) {
      player.stop();
      this.progress.textContent = error.name === "AbortError" ? "stopped" : "";
      this.problem.show(error);
    } finally {
      this.running = null;
      this.go.textContent = "Speak";
      if (player.pieces.length) {
        URL.revokeObjectURL(this.replay.src);
        this.replay.src = URL.createObjectURL(player.file());
        this.replay.hidden = false;
      }
    }
  }

  say(began, first, seconds, complete) {
    const taken = (performance.now() - began) / 1000;
    const parts = [first === null ? null : `first sound after ${duration((first - began) / 1000)}`,
      `${duration(seconds)} of sound${complete ? ` in ${duration(taken)}` : " so far"}`];
    this.progress.textContent = parts.filter(Boolean).join("  \u00b7  ");
  }

  showCode(body) {
    const named = Object.entries(body).filter(([, value]) => value !== undefined);
    this.code.set({
      path: "v1/audio/speech", json: body, output: "speech.mp3",
      python: `sound = client.audio.speech.create(\n${named.map(([name, value]) => `    ${name}=${literal(value)},`).join("\n")}\n)\n` +
        `sound.write_to_file("speech.mp3")`,
    });
  }
}
