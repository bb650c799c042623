// What one replica's batch has done lately, as the feed tells it: lanes of sequences, steps, and who came and went.

const NUM_STEPS = 600;
const NUM_LOGGED = 200;
const MAX_UNSEEN_STEPS = 50; // for a sequence whose end may be among the events that were dropped

/** The history of one replica. `take` is given its part of each message. */
export class BatchHistory {
  constructor() {
    this.steps = []; // {number, at, seconds, units, budget, waiting, gap, cells: [[lane, request, units, joined]]}
    this.sequences = new Map(); // those that run, by their number
    this.lanes = []; // sequence number or null
    this.log = []; // newest first
    this.numLanes = 0; // most that were in use in the steps that are kept
    this.numAdded = 0; // steps, ever
    this.numDropped = 0;
    this.watch = 0;
  }

  /** Sequences are numbered anew: another process, or another connection. */
  restart() {
    this.sequences.clear();
    this.lanes = [];
  }

  take(part) {
    if (part.watch !== this.watch) this.restart();
    this.watch = part.watch;
    for (const event of part.events) this[event.kind](event);
    if (part.num_dropped > this.numDropped) {
      for (const sequence of this.sequences.values()) sequence.numUnseen = 0;
    }
    this.numDropped = part.num_dropped;
  }

  joined(event) {
    if (this.sequences.has(event.sequence)) return;
    let lane = this.lanes.indexOf(null);
    if (lane < 0) lane = this.lanes.push(null) - 1;
    this.lanes[lane] = event.sequence;
    const sequence = { ...event, lane, step: null, numSteps: 0, done: 0, isNew: true, numUnseen: null };
    this.sequences.set(event.sequence, sequence);
    this.write({ kind: "joined", sequence });
  }

  stepped(event) {
    const before = this.steps.at(-1);
    const granted = new Map(event.rows);
    const cells = [];
    for (const [number, sequence] of this.sequences) {
      const units = granted.get(number) ?? 0;
      sequence.step ??= event.number;
      sequence.numSteps += units > 0;
      sequence.done += units;
      cells.push([sequence.lane, sequence.request, units, sequence.isNew, number]);
      sequence.isNew = false;
      if (units > 0) sequence.numUnseen = null; // it runs: its end was not dropped
      else if (sequence.numUnseen !== null && ++sequence.numUnseen > MAX_UNSEEN_STEPS) this.forget(sequence);
    }
    const gap = before ? Math.max(0, event.at_s - event.seconds - before.at) : 0;
    this.steps.push({
      number: event.number, at: event.at_s, seconds: event.seconds, units: event.units, budget: event.budget_units,
      waiting: event.num_waiting, gap, cells,
    });
    this.numAdded += 1;
    if (this.steps.length > NUM_STEPS) this.steps.splice(0, this.steps.length - NUM_STEPS);
    this.numLanes = Math.max(...this.steps.slice(-200).map((step) => 1 + Math.max(-1, ...step.cells.map(([lane]) => lane))));
  }

  left(event) {
    const sequence = this.sequences.get(event.sequence);
    if (!sequence) return;
    this.forget(sequence);
    this.write({ kind: "left", sequence, reason: event.reason, step: event.step });
    const cell = this.steps.at(-1)?.cells.find((each) => each[4] === event.sequence);
    if (cell) cell[5] = event.reason;
  }

  forget(sequence) {
    this.sequences.delete(sequence.sequence);
    this.lanes[sequence.lane] = null;
  }

  write(row) {
    this.log.unshift(row);
    if (this.log.length > NUM_LOGGED) this.log.pop();
  }

  /** Share of the budget that recent steps used, 0 to 1; null where the model has none. */
  get budgetUse() {
    const recent = this.steps.slice(-50).filter((step) => step.budget);
    if (!recent.length) return null;
    return recent.reduce((sum, step) => sum + Math.min(1, step.units / step.budget), 0) / recent.length;
  }

  /** Mean time of recent steps. */
  get stepSeconds() {
    const recent = this.steps.slice(-50);
    return recent.length ? recent.reduce((sum, step) => sum + step.seconds, 0) / recent.length : null;
  }
}

/** How a sequence is called: by the request's own id where the key may see it. */
export function nameOf(sequence) {
  return sequence.request_id ?? `request ${sequence.request} of another key`;
}
