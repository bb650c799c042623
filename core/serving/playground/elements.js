// Elements by one function. Children that are strings become text nodes: nothing that a model says is ever markup.

/** An element. Attributes named on... are listeners; true sets an empty attribute, false and null leave it out. */
export function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** The same for drawings. */
export function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

/** A control with its name above and, if there is more to say, a hint below. */
export function field(name, control, hint = null) {
  return el("label", { class: "field" }, el("span", {}, name), control, hint && el("small", {}, hint));
}

/** A select over pairs of value and text. */
export function select(pairs, chosen = null) {
  const node = el("select", {}, pairs.map(([value, text]) => el("option", { value }, text)));
  if (chosen !== null) node.value = chosen;
  return node;
}

/** A number that may be left empty; `read` of it gives a number or undefined. */
export function number(value, { min, max, step = 1, placeholder = "" } = {}) {
  return el("input", { type: "number", value: value ?? "", min, max, step, placeholder, inputmode: "decimal" });
}

/** What a number field holds; undefined if nothing. */
export function read(input) {
  return input.value === "" ? undefined : Number(input.value);
}

/** Chooses among the models of a panel; without a choice it only shows the name. */
export function modelPicker(models) {
  const control = select(models.map((model) => [model.id, model.id]));
  const state = el("small", {});
  const node = el("label", { class: "field" }, el("span", {}, "Model"), control, state);
  const picker = {
    node,
    onchange: () => {},
    get model() {
      return models.find((model) => model.id === control.value) ?? models[0];
    },
    /** Takes over a new list and keeps the choice where it can. */
    update(found) {
      const before = control.value;
      if (found.map((each) => each.id).join() !== models.map((each) => each.id).join()) {
        control.replaceChildren(...found.map((model) => el("option", { value: model.id }, model.id)));
        if (found.some((model) => model.id === before)) control.value = before;
      }
      const known = JSON.stringify(picker.model.details);
      models = found;
      say();
      if (JSON.stringify(picker.model.details) !== known) picker.onchange(); // it was loaded and told more
    },
  };
  function say() {
    const states = { ready: "", unloaded: "Loads with the first request.", loading: "It is being loaded." };
    state.textContent = states[picker.model.state] ?? picker.model.state;
  }
  control.addEventListener("change", () => {
    say();
    picker.onchange();
  });
  say();
  return picker;
}

/** A place for an error; `show(error)` fills it, `clear()` empties it. */
export function problemBox() {
  const node = el("div", { class: "problem", role: "alert", hidden: true });
  return {
    node,
    clear() {
      node.hidden = true;
      node.replaceChildren();
    },
    show(error) {
      if (error.name === "AbortError") return;
      const about = [error.status, error.code, error.param && `field ${error.param}`, error.requestId].filter(Boolean);
      node.replaceChildren(el("p", {}, error.message), about.length ? el("small", {}, about.join(", ")) : "");
      node.hidden = false;
    },
  };
}

/** Bytes for people. */
export function bytes(count) {
  if (count === null || count === undefined) return "";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let power = 0;
  while (Math.abs(count) >= 1024 && power < units.length - 1) {
    count /= 1024;
    power += 1;
  }
  return `${count >= 100 || power === 0 ? Math.round(count) : count.toFixed(1)} ${units[power]}`;
}

/** Seconds for people. */
export function duration(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  return seconds < 60 ? `${seconds.toFixed(1)} s` : `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

/** Large numbers with thin gaps. */
export function count(value) {
  return Math.round(value).toLocaleString("en").replaceAll(",", "\u2009");
}
