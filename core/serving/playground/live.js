// The live view: the running batch of every model, its memory, and what was decided; the feed runs only while it is shown.

import { BatchHistory, nameOf } from "./batch_history.js";
import { bytes, count, duration, el, problemBox } from "./elements.js";
import { Timeline } from "./timeline.js";

const RETRY_MS = 2000;
const DECISIONS_MS = 3000;
const NUM_ROWS = 12;
const MAY_PASS = [429, 503]; // refusals after which the feed is asked for again

export function mount(root, context) {
  return new LiveView(root, context);
}

class LiveView {
  constructor(root, { api, announce, tellsDecisions, hasServers }) {
    this.api = api;
    this.announce = announce;
    this.tellsDecisions = tellsDecisions;
    this.hasServers = hasServers;
    this.server = el("select", { id: "live-server", onchange: () => this.changeServer() });
    this.serverPart = el("span", { class: "row", hidden: !hasServers }, el("label", { for: "live-server" }, "Server"), this.server);
    this.cards = new Map(); // by model and replica
    this.feed = null;
    this.isPaused = false;
    this.isShown = false;
    this.pause = el("button", { type: "button", "aria-pressed": "false", onclick: () => this.togglePause() }, "Pause");
    this.state = el("span", { class: "hint", role: "status" }, "connecting");
    this.problem = problemBox();
    this.models = el("div", { class: "batches" });
    this.memory = el("div", { class: "memory" });
    this.decisions = el("ol", { class: "decisions" });
    this.decisionsPart = el("section", { hidden: true }, el("h2", {}, "Decisions"), this.decisions);
    root.append(
      el("div", { class: "row head" }, el("h2", {}, "The running batch"), this.state, el("span", { class: "push" }), this.serverPart, this.pause),
      el("p", { class: "hint" }, "A column is a step, a lane a sequence, a colour a request; below, how much of its budget each step used. ",
        "Only ids, lengths and costs are shown, never what anybody wrote."),
      this.problem.node, this.models, el("section", {}, el("h2", {}, "Memory"), this.memory), this.decisionsPart);
    document.addEventListener("visibilitychange", () => (document.hidden ? this.rest() : this.isShown && this.follow()));
    addEventListener("themechange", () => this.cards.forEach((card) => card.timeline.draw()));
  }

  show() {
    this.isShown = true;
    this.follow();
  }

  hide() {
    this.isShown = false;
    this.rest();
  }

  rest() {
    this.feed?.abort();
    this.feed = null;
    clearInterval(this.asking);
  }

  /** Another server's batches: nothing of the last one's stays. */
  changeServer() {
    this.rest();
    this.cards.forEach((card) => card.node.remove());
    this.cards.clear();
    this.memory.replaceChildren();
    this.follow();
  }

  /** Behind a gateway: who can be watched. Whoever is chosen stays so as long as it is there. */
  async findServers(signal) {
    const found = (await this.api.json("live/servers", { signal })).data;
    const chosen = this.server.value;
    this.server.replaceChildren(...found.map((each) => el("option", { value: each.id }, `${each.models.join(", ")} (${each.id})`)));
    if (found.some((each) => each.id === chosen)) this.server.value = chosen;
  }

  async feedPath(signal) {
    if (!this.hasServers) return "live";
    await this.findServers(signal);
    return this.server.value ? `live?server=${encodeURIComponent(this.server.value)}` : "live";
  }

  togglePause() {
    this.isPaused = !this.isPaused;
    this.pause.setAttribute("aria-pressed", String(this.isPaused));
    this.pause.textContent = this.isPaused ? "Go on" : "Pause";
    if (!this.isPaused) this.cards.forEach((card) => card.draw());
  }

  /** Reads the feed until the tab is left; comes back when the server does. */
  async follow() {
    if (this.feed) return;
    const feed = (this.feed = new AbortController());
    this.askForDecisions();
    this.asking = setInterval(() => this.askForDecisions(), DECISIONS_MS);
    while (!feed.signal.aborted) {
      this.cards.forEach((card) => card.history.restart());
      try {
        for await (const { event, data } of this.api.events(await this.feedPath(feed.signal), { signal: feed.signal })) {
          if (event === "live") this.take(data);
        }
        this.state.textContent = "the server ended the feed";
      } catch (error) {
        if (feed.signal.aborted) return;
        if (error.status && !MAY_PASS.includes(error.status)) {
          this.problem.show(error);
          this.state.textContent = "stopped";
          this.rest();
          return;
        }
        this.state.textContent = error.status === 429 ? "too many live views are open; waiting for one to close" : "no connection";
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }

  take(message) {
    this.problem.clear();
    this.state.textContent = this.isPaused ? "paused" : "live";
    const seen = new Set();
    for (const model of message.models) {
      for (const replica of model.replicas.length ? model.replicas : [null]) {
        const id = `${model.name}/${replica?.replica ?? "none"}`;
        seen.add(id);
        let card = this.cards.get(id);
        if (!card) {
          card = new Card(model, this.announce);
          this.cards.set(id, card);
        }
        card.take(model, replica);
        if (!this.isPaused) card.draw();
      }
    }
    for (const [id, card] of this.cards) {
      if (!seen.has(id)) {
        card.node.remove();
        this.cards.delete(id);
      }
    }
    const nodes = [...this.cards.values()].map((card) => card.node);
    if (nodes.some((node, index) => this.models.children[index] !== node)) this.models.replaceChildren(...nodes);
    if (!this.isPaused) this.showMemory(message.memory);
  }

  showMemory(devices) {
    this.memory.replaceChildren(...devices.map((device) => {
      const parts = device.holdings.filter((holding) => holding.num_bytes > 0);
      const bar = el("div", { class: "ledger", role: "img", "aria-label": `${device.device}: ${bytes(device.free_bytes)} free of ${bytes(device.capacity_bytes)}` });
      parts.forEach((holding, index) => {
        const part = el("span", { class: `part part-${index % 8}`, title: `${holding.holder} ${bytes(holding.num_bytes)}` });
        part.style.flexGrow = holding.num_bytes;
        bar.append(part);
      });
      const free = el("span", { class: "free" });
      free.style.flexGrow = Math.max(0, device.free_bytes);
      bar.append(free);
      const names = parts.map((holding, index) => el("li", {}, el("i", { class: `part-${index % 8}` }),
        `${holding.holder} ${bytes(holding.num_bytes)}${holding.rests ? ", rests" : ""}`));
      return el("div", {}, el("p", { class: "row" }, el("strong", {}, device.device),
        el("span", { class: "hint" }, `${bytes(device.free_bytes)} free of ${bytes(device.capacity_bytes)}`)), bar, el("ul", { class: "legend" }, names));
    }));
  }

  /** What the server has changed about itself, and why; hidden while it has changed nothing. */
  async askForDecisions() {
    if (!this.tellsDecisions) return;
    try {
      const found = await this.api.json("decisions");
      const rows = found.data;
      this.decisionsPart.hidden = rows.length === 0;
      this.decisions.replaceChildren(...rows.slice(-20).reverse().map((row) => el("li", {},
        el("time", {}, new Date(row.time * 1000).toLocaleTimeString()), `${row.source} `, el("strong", {}, row.what), ` ${row.from} to ${row.to}`,
        el("span", { class: "reason" }, row.reason), row.objective ? el("small", {}, row.objective) : null)));
    } catch (error) {
      if (error.status === 403) this.tellsDecisions = false; // this key will never see them
      // of all else, the feed says what is wrong with the connection
    }
  }
}

/** One replica, or a model that has none now. */
class Card {
  constructor(model, announce) {
    this.history = new BatchHistory();
    this.timeline = new Timeline(this.history, announce);
    this.title = el("h3", {}, model.name);
    this.state = el("span", { class: "hint" });
    this.figures = el("dl", { class: "dials" });
    this.rows = el("tbody", {});
    this.log = el("ol", { class: "log" });
    this.tables = el("div", { class: "tables" },
      el("table", {}, el("caption", {}, "Running now"),
        el("thead", {}, el("tr", {}, ["Request", "Since step", "Steps", "Units", "Waited"].map((name) => el("th", { scope: "col" }, name)))), this.rows),
      el("div", {}, el("h4", {}, "Came and went"), this.log));
    this.node = el("article", { class: "batch", "aria-label": `Batch of ${model.name}` },
      el("div", { class: "row" }, this.title, this.state), this.figures, this.timeline.node, this.tables);
  }

  take(model, replica) {
    this.model = model;
    this.replica = replica;
    if (replica) this.history.take(replica);
  }

  draw() {
    const { model, replica, history } = this;
    const several = model.replicas.length > 1;
    this.title.textContent = several ? `${model.name}, replica ${replica.replica}` : model.name;
    this.state.textContent = [model.modality, model.state === "ready" ? null : model.state,
      history.numDropped ? `${history.numDropped} events were dropped` : null].filter(Boolean).join(", ");
    const isIdle = history.steps.length === 0;
    this.timeline.node.hidden = isIdle;
    this.tables.hidden = isIdle;
    this.node.classList.toggle("idle", isIdle);
    this.figures.replaceChildren(...dials(replica, history));
    if (isIdle) return;
    this.timeline.update();
    const running = [...history.sequences.values()];
    this.rows.replaceChildren(...running.slice(0, NUM_ROWS).map((sequence) => el("tr", {},
      el("td", { class: "id" }, el("i", { class: `part-${sequence.request % 8}` }), nameOf(sequence)), el("td", {}, sequence.step ?? ""), el("td", {}, sequence.numSteps),
      el("td", {}, `${count(sequence.done)} of ~${count(sequence.units)}`), el("td", {}, duration(sequence.waited_s)))));
    if (!running.length) this.rows.append(el("tr", {}, el("td", { colspan: 5, class: "hint" }, "nobody")));
    if (running.length > NUM_ROWS) this.rows.append(el("tr", {}, el("td", { colspan: 5, class: "hint" }, `and ${running.length - NUM_ROWS} more`)));
    this.log.replaceChildren(...history.log.slice(0, NUM_ROWS).map(({ kind, sequence, reason, step }) => el("li", { class: kind },
      el("span", { class: "id" }, nameOf(sequence)),
      kind === "joined" ? ` joined at step ${sequence.step ?? "..."}` : ` left at step ${step}: ${reason}, ${sequence.numSteps} steps`)));
  }
}

/** The figures of a replica; pairs of its family's own metrics that belong together become shares. */
function dials(replica, history) {
  if (!replica) return [dial("Replicas", "none")];
  const metrics = replica.metrics;
  const found = [
    dial("Running", count(replica.num_running)), dial("Waiting", count(replica.num_waiting)),
    dial("Queued work", `${count(replica.queued_units)} units`), dial("Rate", `${count(replica.units_per_s)} units/s`),
  ];
  if (history.stepSeconds !== null) found.push(dial("Step", duration(history.stepSeconds)));
  if (history.budgetUse !== null) found.push(dial("Budget used", `${Math.round(100 * history.budgetUse)}%`, history.budgetUse));
  for (const [name, value] of Object.entries(metrics)) {
    const total = metrics[name.replace(/_used$/, "_total")];
    const queries = metrics[name.replace(/_hits_total$/, "_queries_total")];
    if (name.endsWith("_used") && total) found.push(dial(words(name, "_used"), `${count(value)} of ${count(total)}`, value / total));
    if (name.endsWith("_hits_total") && queries) found.push(dial(`${words(name, "_hits_total")} hits`, `${Math.round((100 * value) / queries)}%`, value / queries));
  }
  if (metrics.num_preemptions_total) found.push(dial("Preempted", count(metrics.num_preemptions_total)));
  return found;
}

function dial(name, text, share = null) {
  const said = el("dd", {}, text);
  if (share !== null) {
    const bar = el("span", { class: "gauge" });
    bar.style.setProperty("--share", Math.max(0, Math.min(1, share)));
    said.append(bar);
  }
  return el("div", {}, el("dt", {}, name), said);
}

function words(name, ending) {
  const text = name.slice(0, -ending.length).replaceAll("_", " ");
  return text.startsWith("kv ") ? `KV ${text.slice(3)}` : text[0].toUpperCase() + text.slice(1);
}
