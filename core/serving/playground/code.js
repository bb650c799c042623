// "Copy as code": the call that a panel made, as a command and as a Python program. The key is never written into it.

import { el } from "./elements.js";

const KEY_VARIABLE = "SIXFOLD_KEY";

/** The box. `set(call)` takes {path, json | form, output, python}; see `curl` and `python` below. */
export function codeBox(api) {
  const texts = { curl: "", Python: "" };
  let shown = "curl";
  const code = el("code", {});
  const copy = el("button", { type: "button", class: "quiet", onclick: copyNow }, "Copy");
  const choices = Object.keys(texts).map((name) =>
    el("button", { type: "button", class: "quiet", "aria-pressed": String(name === shown), onclick: () => show(name) }, name),
  );
  const pre = el("pre", { tabindex: "0", "aria-label": "The call as code" }, code);
  const node = el("details", { class: "code", hidden: true }, el("summary", {}, "Copy as code"),
    el("div", { class: "row" }, choices, copy), pre);

  function show(name) {
    shown = name;
    for (const button of choices) button.setAttribute("aria-pressed", String(button.textContent === name));
    code.textContent = texts[name];
  }

  async function copyNow() {
    try {
      await navigator.clipboard.writeText(texts[shown]);
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      copy.textContent = "Selected";
    }
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  }

  return {
    node,
    set(call) {
      texts.curl = curl(api, call);
      texts.Python = python(api, call.python);
      show(shown);
      node.hidden = false;
    },
  };
}

/** A shell command: `form` is a list of -F values, `json` a body, `output` a file for the answer. */
function curl(api, { path, json, form, output, stream }) {
  const lines = [`curl ${stream ? "-N " : "-s "}${api.url(path)}`];
  if (api.key) lines.push(`-H "authorization: Bearer $${KEY_VARIABLE}"`);
  for (const part of form ?? []) lines.push(`-F ${quoted(part)}`);
  if (json !== undefined) {
    lines.push("-H 'content-type: application/json'", `-d ${quoted(JSON.stringify(shortened(json), null, 2))}`);
  }
  if (output) lines.push(`-o ${output}`);
  return lines.join(" \\\n  ");
}

/** A program with OpenAI's client; `body` is what stands below its first lines. */
function python(api, body) {
  const key = api.key ? `os.environ["${KEY_VARIABLE}"]` : '"none"';
  const head = [...(api.key ? ["import os", ""] : []), "from openai import OpenAI", ""];
  return [...head, `client = OpenAI(base_url="${api.url("v1")}", api_key=${key})`, body].join("\n");
}

/** Arguments of a Python call, one a line. */
export function pythonArguments(values) {
  return Object.entries(values)
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => `    ${name}=${literal(shortened(value))},`)
    .join("\n");
}

/** A value as Python writes it. */
export function literal(value) {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([key, each]) => `${JSON.stringify(key)}: ${literal(each)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}

/** Long data: URLs would bury the call. */
function shortened(value) {
  if (typeof value === "string" && value.startsWith("data:") && value.length > 200) return `${value.slice(0, 60)}...`;
  if (Array.isArray(value)) return value.map(shortened);
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, shortened(each)]));
  }
  return value;
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
