// The tab for conversations: streamed answers with their speed, a tool that runs in this page, images, folded reasoning.

import { codeBox, pythonArguments } from "../code.js";
import { duration, el, field, modelPicker, number, problemBox, read, select } from "../elements.js";
import { rendered } from "./markdown.js";
import { run, SAMPLE_TOOLS } from "./tools.js";

const MAX_ROUNDS = 4; // of tool calls after one question

export function mount(root, context) {
  new Chat(root, context);
  return root.panel;
}

class Chat {
  constructor(root, { api, models, announce }) {
    this.api = api;
    this.announce = announce;
    this.messages = []; // as they are sent
    this.images = []; // data: URLs of the next question
    this.running = null; // AbortController
    this.build(root, models);
    root.panel = { update: (found) => this.picker.update(found) };
  }

  build(root, models) {
    this.picker = modelPicker(models);
    this.picker.onchange = () => this.adaptToModel();
    this.system = el("textarea", { rows: 2, placeholder: "How it shall answer" });
    this.temperature = number(0, { min: 0, max: 2, step: 0.1 });
    this.maxTokens = number(256, { min: 1, step: 1 });
    this.tools = select([["none", "None"], ["auto", "If it wants to"], ["required", "It must call one"]]);
    this.log = el("div", { class: "chat", role: "log", "aria-label": "Conversation", tabindex: "0" },
      el("p", { class: "empty" }, "Ask something. The answer appears word by word, as the steps of the batch deliver it."));
    this.input = el("textarea", {
      rows: 2, placeholder: "Name the capital of France.", "aria-label": "Your question",
      onkeydown: (event) => this.onKey(event),
    });
    this.attach = el("button", { type: "button", onclick: () => this.file.click() }, "Add image");
    this.file = el("input", { type: "file", accept: "image/*", multiple: true, hidden: true, onchange: () => this.takeImages() });
    this.thumbs = el("div", { class: "thumbs" });
    this.send = el("button", { class: "main" }, "Send");
    this.problem = problemBox();
    this.code = codeBox(this.api);
    const form = el("form", { class: "compose", onsubmit: (event) => this.onSubmit(event) }, this.thumbs, this.input,
      el("div", { class: "row" }, this.send, this.attach, this.file,
        el("button", { type: "button", class: "quiet", onclick: () => this.clear() }, "New conversation"),
        el("small", { class: "push" }, "Enter sends, Shift+Enter breaks the line, Esc stops")));
    root.append(el("div", { class: "split" },
      el("div", { class: "work" }, this.log, this.problem.node, form),
      el("aside", { class: "side", "aria-label": "Settings" }, this.picker.node, field("System prompt", this.system),
        el("div", { class: "pair" }, field("Temperature", this.temperature), field("Most tokens", this.maxTokens)),
        field("Tools", this.tools, "Two samples, a clock and a die; this page runs them."), this.code.node)));
    this.adaptToModel();
  }

  adaptToModel() {
    const details = this.picker.model.details ?? {};
    this.attach.hidden = details.images !== true;
    this.tools.closest("label").hidden = details.tool_call_parser === "none";
  }

  onKey(event) {
    if (event.key === "Escape") this.running?.abort();
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.input.form.requestSubmit();
  }

  onSubmit(event) {
    event.preventDefault();
    if (this.running) {
      this.running.abort();
      return;
    }
    const text = this.input.value.trim() || (this.images.length ? "" : this.input.placeholder);
    this.input.value = "";
    const parts = this.images.map((url) => ({ type: "image_url", image_url: { url } }));
    this.messages.push({ role: "user", content: parts.length ? [...parts, { type: "text", text }] : text });
    this.log.querySelector(".empty")?.remove();
    this.show("you", el("p", {}, text), this.images.map((src) => el("img", { src, alt: "attached image" })));
    this.images = [];
    this.thumbs.replaceChildren();
    this.answer();
  }

  clear() {
    this.running?.abort();
    this.running = null;
    this.send.textContent = "Send";
    this.messages = [];
    this.log.replaceChildren(el("p", { class: "empty" }, "Ask something."));
    this.problem.clear();
    this.input.focus();
  }

  async takeImages() {
    for (const file of this.file.files) {
      const url = await new Promise((resolve) => {
        const reader = new FileReader();
        reader.onload = () => resolve(reader.result);
        reader.readAsDataURL(file);
      });
      this.images.push(url);
      this.thumbs.append(el("img", { src: url, alt: file.name }));
    }
    this.file.value = "";
    this.input.focus();
  }

  body() {
    const wanted = this.tools.closest("label").hidden ? "none" : this.tools.value;
    const system = this.system.value.trim();
    return {
      model: this.picker.model.id,
      messages: [...(system ? [{ role: "system", content: system }] : []), ...this.messages],
      temperature: read(this.temperature),
      max_tokens: read(this.maxTokens),
      // After a call it may answer in words, or it would call for ever.
      ...(wanted === "none" ? {} : {
        tools: SAMPLE_TOOLS,
        tool_choice: this.messages.at(-1)?.role === "tool" ? "auto" : wanted,
      }),
      stream: true,
      stream_options: { include_usage: true },
    };
  }

  /** Answers the last message, and goes on after tool calls. */
  async answer() {
    this.problem.clear();
    const messages = this.messages; // a new conversation has others, and must not get the end of this one
    const running = (this.running = new AbortController());
    this.send.textContent = "Stop";
    try {
      for (let round = 0; round < MAX_ROUNDS; round += 1) {
        const calls = await this.answerOnce(this.body(), messages, running.signal);
        if (!calls.length || messages !== this.messages) break;
        for (const call of calls) this.runTool(call);
      }
    } catch (error) {
      if (messages === this.messages) this.problem.show(error);
      if (error.name === "AbortError") this.announce("Stopped.");
    } finally {
      if (this.running === running) {
        this.running = null;
        this.send.textContent = "Send";
      }
    }
  }

  async answerOnce(body, messages, signal) {
    this.code.set({
      path: "v1/chat/completions", json: body, stream: true,
      python: `stream = client.chat.completions.create(\n${pythonArguments(body)}\n)\nfor chunk in stream:\n` +
        `    for choice in chunk.choices:\n        print(choice.delta.content or "", end="", flush=True)`,
    });
    const turn = new Turn(this);
    try {
      for await (const { data } of this.api.events("v1/chat/completions", { json: body, signal })) turn.take(data);
    } finally {
      if (!turn.isWhole) turn.calls = []; // half a call has no result, and no server takes it back without one
      turn.end();
      if (turn.text || turn.calls.length) messages.push(turn.message());
      if (signal.aborted) turn.say("stopped");
    }
    this.announce(turn.text || "The model called a tool.");
    return turn.calls;
  }

  runTool(call) {
    const result = run(call.function.name, call.function.arguments);
    this.messages.push({ role: "tool", tool_call_id: call.id, content: result });
    this.show("tool", el("p", {}, el("code", {}, `${call.function.name}(${call.function.arguments})`), " gave ", el("code", {}, result)));
  }

  /** Adds a message; keeps the end in view only for who is there. */
  show(who, ...content) {
    const atEnd = this.isAtEnd();
    const node = el("div", { class: `said ${who}` }, content);
    this.log.append(node);
    if (atEnd || who === "you") this.log.scrollTop = this.log.scrollHeight;
    return node;
  }

  isAtEnd() {
    return this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 60;
  }
}

/** One answer while it streams. */
class Turn {
  constructor(chat) {
    this.chat = chat;
    this.text = "";
    this.reasoning = "";
    this.calls = [];
    this.isWhole = false; // its end was told
    this.usage = null;
    this.began = performance.now();
    this.first = null;
    this.thought = el("p", { class: "thought" });
    this.folded = el("details", { hidden: true }, el("summary", {}, "Reasoning"), this.thought);
    this.words = el("div", { class: "words" });
    this.figures = el("p", { class: "figures" }, "waiting for the first token");
    this.node = chat.show("model", this.folded, this.words, this.figures);
    this.drawing = 0;
  }

  take(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    if (chunk.choices?.[0]?.finish_reason) this.isWhole = true;
    const delta = chunk.choices?.[0]?.delta;
    if (!delta) return;
    if (delta.content || delta.tool_calls || delta.reasoning_content) this.first ??= performance.now();
    this.text += delta.content ?? "";
    this.reasoning += delta.reasoning_content ?? "";
    for (const part of delta.tool_calls ?? []) {
      const call = (this.calls[part.index] ??= { id: part.id, type: "function", function: { name: "", arguments: "" } });
      call.function.name += part.function?.name ?? "";
      call.function.arguments += part.function?.arguments ?? "";
    }
    this.drawing ||= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.drawing = 0;
    const atEnd = this.chat.isAtEnd();
    this.words.replaceChildren(...rendered(this.text));
    this.folded.hidden = !this.reasoning;
    this.thought.textContent = this.reasoning;
    if (atEnd) this.chat.log.scrollTop = this.chat.log.scrollHeight;
  }

  end() {
    cancelAnimationFrame(this.drawing);
    this.draw();
    const seconds = (performance.now() - (this.first ?? this.began)) / 1000;
    const made = this.usage?.completion_tokens;
    const cached = this.usage?.prompt_tokens_details?.cached_tokens;
    const parts = [];
    if (this.first) parts.push(`first token after ${duration((this.first - this.began) / 1000)}`);
    if (made) parts.push(`${made} tokens`, made > 1 ? `${((made - 1) / Math.max(seconds, 0.001)).toFixed(1)} tokens/s` : null);
    if (this.usage) parts.push(`prompt ${this.usage.prompt_tokens}${cached ? `, ${cached} of them cached` : ""}`);
    this.figures.textContent = parts.filter(Boolean).join("  \u00b7  ");
  }

  say(word) {
    this.figures.textContent = [this.figures.textContent, word].filter(Boolean).join("  \u00b7  ");
  }

  message() {
    return { role: "assistant", content: this.text || null, ...(this.calls.length ? { tool_calls: this.calls } : {}) };
  }
}
