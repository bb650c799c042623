// The tab for recordings: a file or the microphone becomes words by time and speaker; a click on a word plays from there.

import { codeBox } from "../code.js";
import { duration, el, field, modelPicker, problemBox } from "../elements.js";
import { record } from "./recorder.js";

const NOTHING_CHOSEN = "Drop a recording here, or choose one.";

export function mount(root, context) {
  const panel = new Transcribe(root, context);
  return { update: panel.picker.update, show: () => (panel.isShown = true), hide: () => panel.leave() };
}

class Transcribe {
  constructor(root, { api, models, announce }) {
    this.api = api;
    this.announce = announce;
    this.file = null;
    this.recording = null;
    this.isShown = true;
    this.running = null;
    this.words = []; // {start, end, node}
    this.build(root, models);
  }

  build(root, models) {
    this.picker = modelPicker(models);
    this.picker.onchange = () => this.adaptToModel();
    this.language = el("input", { placeholder: "found by itself", autocomplete: "off", size: 12 });
    this.speakers = el("input", { type: "checkbox", checked: true });
    this.speakersField = el("label", { class: "check" }, this.speakers, " Tell speakers apart");
    this.choice = el("input", { type: "file", accept: "audio/*,video/*", hidden: true, onchange: () => this.take(this.choice.files[0]) });
    this.mic = el("button", { type: "button", onclick: () => this.toggleMic() }, "Record");
    this.go = el("button", { type: "button", class: "main", disabled: true, onclick: () => this.transcribe() }, "Transcribe");
    this.chosen = el("span", { class: "hint" }, NOTHING_CHOSEN);
    this.player = el("audio", { controls: true, hidden: true, ontimeupdate: () => this.follow() });
    this.text = el("div", { class: "transcript" });
    this.figures = el("p", { class: "figures" });
    this.problem = problemBox();
    this.code = codeBox(this.api);
    const drop = el("div", { class: "drop", ondragover: (event) => event.preventDefault(), ondrop: (event) => this.onDrop(event) },
      el("div", { class: "row" }, el("button", { type: "button", onclick: () => this.choice.click() }, "Choose a file"),
        this.mic, this.choice, this.chosen, this.go), this.player);
    root.append(el("div", { class: "split" },
      el("div", { class: "work" }, drop, this.problem.node, this.text, this.figures),
      el("aside", { class: "side", "aria-label": "Settings" }, this.picker.node, field("Language", this.language, "A code such as en or de."),
        this.speakersField, this.code.node)));
    this.adaptToModel();
  }

  adaptToModel() {
    this.speakersField.hidden = this.picker.model.details?.diarization !== true;
  }

  onDrop(event) {
    event.preventDefault();
    if (event.dataTransfer.files.length) this.take(event.dataTransfer.files[0]);
  }

  take(file) {
    if (!file) return;
    this.file = file;
    this.chosen.textContent = file.name;
    this.go.disabled = false;
    URL.revokeObjectURL(this.player.src);
    this.player.src = URL.createObjectURL(file);
    this.player.hidden = false;
    this.text.replaceChildren();
    this.figures.textContent = "";
    this.problem.clear();
  }

  async toggleMic() {
    const recording = this.recording;
    this.mic.disabled = true; // a second click must not start a second recording, which nobody would stop
    try {
      if (recording) await this.endRecording();
      else await this.beginRecording();
    } catch (error) {
      this.problem.show(error);
      return;
    } finally {
      this.mic.disabled = false;
    }
    if (recording) await this.transcribe();
  }

  async beginRecording() {
    const recording = await record((seconds) => (this.chosen.textContent = `Recording: ${duration(seconds)}`));
    if (!this.isShown) { // the tab was left while the browser asked: nobody wanted what came since
      await recording.discard();
      return;
    }
    this.problem.clear();
    this.recording = recording;
    this.mic.textContent = "Stop recording";
    this.announce("Recording.");
  }

  async endRecording() {
    const recording = this.recording;
    this.recording = null;
    this.mic.textContent = "Record";
    try {
      this.take(await recording.stop());
    } finally {
      this.chosen.textContent = this.file?.name ?? NOTHING_CHOSEN;
    }
  }

  /** Nothing sounds and nothing listens in a tab that is not shown; what was recorded stays, to be transcribed. */
  async leave() {
    this.isShown = false;
    this.player.pause();
    try {
      if (this.recording) await this.endRecording();
    } catch (error) {
      this.problem.show(error);
    }
  }

  form(format) {
    const form = new FormData();
    form.append("model", this.picker.model.id);
    form.append("file", this.file);
    form.append("response_format", format);
    if (format === "verbose_json") form.append("timestamp_granularities[]", "word");
    if (this.language.value.trim()) form.append("language", this.language.value.trim());
    return form;
  }

  async transcribe() {
    if (this.running) {
      this.running.abort();
      return;
    }
    this.problem.clear();
    this.showCode();
    this.running = new AbortController();
    this.go.textContent = "Stop";
    this.figures.textContent = "listening";
    const began = performance.now();
    const ask = (format) => this.api.json("v1/audio/transcriptions", { form: this.form(format), signal: this.running.signal });
    try {
      // Words and speakers are two answers; their windows share the same steps.
      const wantsSpeakers = !this.speakersField.hidden && this.speakers.checked;
      const [spoken, turns] = await Promise.all([ask("verbose_json"), wantsSpeakers ? ask("diarized_json") : null]);
      this.show(spoken, turns?.segments ?? []);
      const seconds = (performance.now() - began) / 1000;
      this.figures.textContent = [`${duration(spoken.duration)} of sound in ${duration(seconds)}`,
        `${(spoken.duration / seconds).toFixed(1)} times as fast as spoken`, `language ${spoken.language}`].join("  \u00b7  ");
      this.announce(spoken.text);
    } catch (error) {
      this.figures.textContent = "";
      this.problem.show(error);
    } finally {
      this.running = null;
      this.go.textContent = "Transcribe";
    }
  }

  show(spoken, turns) {
    const names = [...new Set(turns.map((turn) => turn.speaker))];
    const words = spoken.words?.length ? spoken.words : (spoken.segments ?? []).map(({ text, start, end }) => ({ word: text, start, end }));
    this.words = [];
    const lines = [];
    let line = null;
    for (const word of words) {
      const speaker = speakerAt(turns, (word.start + word.end) / 2);
      if (!line || line.speaker !== speaker) {
        line = { speaker, node: el("p", { class: "turn" }) };
        if (speaker !== null) {
          line.node.dataset.speaker = names.indexOf(speaker) % 6;
          line.node.append(el("span", { class: "speaker" }, `Speaker ${speaker}`));
        }
        lines.push(line.node);
      }
      const node = el("button", { type: "button", class: "word", title: clock(word.start), onclick: () => this.seek(word.start) }, word.word.trim());
      line.node.append(node, " ");
      this.words.push({ ...word, node });
    }
    this.text.replaceChildren(...(lines.length ? lines : [el("p", { class: "empty" }, "No speech was found.")]));
  }

  seek(seconds) {
    this.player.currentTime = seconds;
    this.player.play().catch(() => {});
  }

  follow() {
    const now = this.player.currentTime;
    for (const word of this.words) word.node.classList.toggle("now", now >= word.start && now < word.end);
  }

  showCode() {
    const language = this.language.value.trim();
    const name = this.file.name.replaceAll('"', "");
    this.code.set({
      path: "v1/audio/transcriptions",
      form: [`model=${this.picker.model.id}`, `file=@${name}`, "response_format=verbose_json", "timestamp_granularities[]=word",
        ...(language ? [`language=${language}`] : [])],
      python: `with open(${JSON.stringify(name)}, "rb") as sound:\n    answer = client.audio.transcriptions.create(\n` +
        `        model=${JSON.stringify(this.picker.model.id)}, file=sound, response_format="verbose_json",\n` +
        `        timestamp_granularities=["word"],${language ? ` language=${JSON.stringify(language)},` : ""}\n    )\nprint(answer.text)`,
    });
  }
}

function speakerAt(turns, seconds) {
  if (!turns.length) return null;
  const away = (turn) => Math.max(0, turn.start - seconds, seconds - turn.end);
  return turns.reduce((best, turn) => (away(turn) < away(best) ? turn : best)).speaker;
}

function clock(seconds) {
  return `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(1).padStart(4, "0")}`;
}
