// Draws a batch's history: a column a step, a lane a sequence, and below it how much of its budget each step used.

import { count, duration } from "./elements.js";
import { nameOf } from "./batch_history.js";

const CELL = 7;
const WIDE_CELL = 14; // while there are few steps
const LANES_HEIGHT = 176;
const USE_HEIGHT = 50;
const USE_SCALES = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]; // of the budget, where less would be a row of dots
const AXIS_HEIGHT = 18;
const GAP = 8;
const SCROLL_MS = 240;
const IDLE_S = 0.5; // a longer pause between two steps is marked
const COLOURS = {
  light: ["#1f7a86", "#b9652f", "#5c7f3a", "#8a5a9e", "#94801d", "#3f6fae", "#a34d63", "#6b6f78"],
  dark: ["#63c1cc", "#e39a68", "#9cc177", "#c39ad6", "#d1bd5c", "#8db4e6", "#e08fa2", "#aeb4be"],
};

/** How high a step's use is drawn: against a round share of its budget, or against the largest step where there is none. */
function useScale(steps) {
  const most = Math.max(1, ...steps.map((step) => step.units));
  const budget = steps.at(-1)?.budget;
  if (!budget) return { unitsOf: () => most, text: `${most} units` };
  const use = Math.max(...steps.map((step) => step.units / (step.budget ?? budget)));
  const share = USE_SCALES.find((each) => use <= each) ?? 1;
  const text = share === 1 ? `budget of ${count(budget)} units` : `${100 * share}% of the budget of ${count(budget)} units`;
  return { unitsOf: (step) => share * (step.budget ?? budget), text };
}

/** A canvas that follows one BatchHistory. `update` after each message; `say(text)` gets what the keyboard inspects. */
export class Timeline {
  constructor(history, say) {
    this.history = history;
    this.say = say;
    this.canvas = document.createElement("canvas");
    this.canvas.className = "timeline";
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    this.tip = document.createElement("div");
    this.tip.className = "tip";
    this.tip.hidden = true;
    this.node = document.createElement("div");
    this.node.className = "timeline-box";
    this.node.append(this.canvas, this.tip);
    this.seen = history.numAdded;
    this.cell = CELL;
    this.offset = 0; // columns that still have to scroll in
    this.inspected = null; // columns from the right
    this.frame = 0;
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.unpoint());
    this.canvas.addEventListener("keydown", (event) => this.onKey(event));
    this.canvas.addEventListener("blur", () => this.unpoint());
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  update() {
    const added = this.history.numAdded - this.seen;
    this.seen = this.history.numAdded;
    const step = this.history.steps.at(-1);
    if (step) {
      const use = step.budget ? `, ${Math.round((100 * step.units) / step.budget)}% of the budget` : "";
      this.canvas.setAttribute("aria-label",
        `Running batch at step ${step.number}: ${step.cells.length} sequences, ${step.waiting} requests wait${use}. Arrow keys inspect steps.`);
    }
    if (this.still.matches || document.hidden || added > 200) {
      this.draw();
    } else if (added) {
      this.scroll(this.offset + added);
    }
  }

  scroll(from) {
    cancelAnimationFrame(this.frame);
    const began = performance.now();
    const turn = (now) => {
      this.offset = from * Math.max(0, 1 - (now - began) / SCROLL_MS);
      this.draw();
      if (this.offset > 0) this.frame = requestAnimationFrame(turn);
    };
    this.frame = requestAnimationFrame(turn);
  }

  draw() {
    const width = this.canvas.clientWidth;
    const height = LANES_HEIGHT + GAP + USE_HEIGHT + AXIS_HEIGHT;
    if (!width) return;
    const ratio = devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
    }
    const pen = this.canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const style = getComputedStyle(this.canvas);
    const theme = {
      colours: COLOURS[style.getPropertyValue("--theme").trim() === "dark" ? "dark" : "light"],
      ink: style.getPropertyValue("--ink"), line: style.getPropertyValue("--line"), muted: style.getPropertyValue("--muted"),
      accent: style.getPropertyValue("--accent"), bad: style.getPropertyValue("--bad"), font: style.fontFamily,
    };
    this.cell = this.history.steps.length * WIDE_CELL <= width ? WIDE_CELL : CELL;
    const shown = this.history.steps.slice(-Math.ceil(width / this.cell + this.offset) - 1);
    const laneHeight = Math.max(1, Math.min(16, LANES_HEIGHT / Math.max(8, this.history.numLanes)));
    pen.font = `11px ${theme.font}`;
    const scale = useScale(shown);
    this.drawFloor(pen, width, scale, theme);
    shown.forEach((step, index) => {
      const x = width - (shown.length - index - this.offset) * this.cell;
      this.drawStep(pen, step, x, laneHeight, scale, theme);
    });
    if (this.inspected !== null) this.drawMark(pen, width, height, theme);
  }

  drawFloor(pen, width, scale, theme) {
    pen.fillStyle = theme.muted;
    pen.fillText(scale.text, 0, LANES_HEIGHT + GAP + 13);
    pen.fillStyle = theme.line;
    pen.fillRect(0, LANES_HEIGHT + GAP, width, 1);
    pen.fillRect(0, LANES_HEIGHT + GAP + USE_HEIGHT, width, 1);
  }

  drawStep(pen, step, x, laneHeight, scale, theme) {
    const thick = Math.max(1, laneHeight - (laneHeight > 4 ? 2 : 0));
    for (const [lane, request, units, isNew, , reason] of step.cells) {
      const y = lane * laneHeight;
      pen.fillStyle = theme.colours[request % theme.colours.length];
      pen.globalAlpha = units ? 1 : 0.3; // it ran, but this step was for others
      pen.fillRect(x, y, this.cell - (reason ? 3 : 0), units ? thick : Math.max(1, thick / 3));
      if (isNew) {
        pen.fillStyle = theme.ink;
        pen.globalAlpha = 1;
        pen.fillRect(x, y, 2, thick);
      }
      if (reason && reason !== "done") {
        pen.fillStyle = theme.bad;
        pen.globalAlpha = 1;
        pen.fillRect(x + this.cell - 3, y, 3, thick);
      }
    }
    pen.globalAlpha = 1;
    const used = Math.min(1, step.units / scale.unitsOf(step));
    const base = LANES_HEIGHT + GAP + USE_HEIGHT;
    pen.fillStyle = theme.accent;
    pen.fillRect(x, base - used * USE_HEIGHT, this.cell - 1, used * USE_HEIGHT);
    pen.fillStyle = theme.muted;
    if (step.number % 20 === 0) pen.fillText(String(step.number), x, base + 13);
    if (step.gap > IDLE_S) {
      pen.fillRect(x - 1, 0, 1, base);
      pen.fillText(`idle ${duration(step.gap)}`, Math.max(2, x - 62), 10);
    }
  }

  drawMark(pen, width, height, theme) {
    pen.strokeStyle = theme.muted;
    pen.strokeRect(width - (this.inspected + 1) * this.cell - 0.5, 0.5, this.cell, height - AXIS_HEIGHT);
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    this.inspect(Math.floor((box.right - event.clientX) / this.cell), event.clientY - box.top);
  }

  unpoint() {
    this.inspected = null;
    this.tip.hidden = true;
    this.draw();
  }

  onKey(event) {
    const move = { ArrowLeft: 1, ArrowRight: -1 }[event.key];
    if (!move) return;
    event.preventDefault();
    this.inspect(Math.max(0, (this.inspected ?? (move > 0 ? -1 : 1)) + move), null);
  }

  inspect(column, y) {
    const step = this.history.steps.at(-1 - column);
    if (!step || column < 0) return;
    this.inspected = column;
    const laneHeight = Math.max(1, Math.min(16, LANES_HEIGHT / Math.max(8, this.history.numLanes)));
    const lines = [`Step ${step.number}, ${duration(step.seconds)}`,
      `${step.units} units${step.budget ? ` of ${step.budget}` : ""}, ${step.cells.filter((cell) => cell[2]).length} sequences, ${step.waiting} wait`];
    const cell = y === null ? null : step.cells.find((each) => each[0] === Math.floor(y / laneHeight));
    if (cell) {
      const sequence = this.history.sequences.get(cell[4]);
      lines.push(`${sequence ? nameOf(sequence) : `request ${cell[1]}`}: ${cell[2]} units${cell[5] ? `, ${cell[5]}` : ""}`);
    }
    this.tip.replaceChildren(...lines.map((text) => Object.assign(document.createElement("div"), { textContent: text })));
    this.tip.hidden = false;
    const x = this.canvas.clientWidth - (column + 0.5) * this.cell;
    this.tip.style.left = `${Math.max(0, Math.min(x + 10, this.canvas.clientWidth - this.tip.offsetWidth))}px`;
    if (y === null) this.say(lines.join(". "));
    this.draw();
  }
}
