// The frame of the page: theme, key, the list of models, and one tab for each panel that some model can serve.

import { Api } from "./api.js";
import { el } from "./elements.js";
import * as live from "./live.js";

const POLL_MS = 4000;
const USABLE = ["ready", "unloaded", "loading"]; // a model that loads for a request must not lose its tab
const api = new Api(new URL(".", location.href.split("#")[0]));
const stage = document.getElementById("stage");
const tablist = document.querySelector("[role=tablist]");
let tellsDecisions = false;
let hasServers = false; // a gateway's page: the live view is that of one server
const tabs = new Map(); // id -> {button, section, module, panel, models}

start();

async function start() {
  setUpTheme();
  setUpKey();
  let known;
  try {
    known = await (await fetch(api.url("playground/page.json"))).json();
  } catch (error) {
    document.getElementById("start").textContent = `The server does not answer: ${error.message}`;
    return;
  }
  tablist.addEventListener("keydown", moveBetweenTabs);
  addEventListener("hashchange", () => open(location.hash.slice(1)));
  tellsDecisions = known.tells_decisions;
  hasServers = Boolean(known.has_servers);
  await refresh(known);
  setInterval(() => document.visibilityState === "visible" && refresh(known), POLL_MS);
}

/** Asks for the models and makes tabs true to them; a tab that is open stays as it is. */
async function refresh(known) {
  let models;
  try {
    models = (await api.json("v1/models")).data;
  } catch (error) {
    if (error.status !== 401) document.getElementById("models").textContent = `The server does not answer: ${error.message}`;
    return;
  }
  // Aliases are further names of the same; adapters and their like have answers of their own.
  const usable = models.filter((model) => USABLE.includes(model.state) && (model.id === model.root || model.parent));
  for (const panel of known.panels) {
    const its = usable.filter((model) => model.modality === panel.modality && model.capabilities.includes(panel.operation));
    const tab = tabs.get(panel.id);
    if (tab) {
      tab.models = its;
      tab.button.hidden = its.length === 0;
      if (its.length) tab.panel?.update?.(its);
    } else if (its.length) {
      addTab(panel.id, panel.title, () => import(api.url(panel.script)), its, panel.order);
    }
  }
  if (!tabs.has("live")) addTab("live", "Live", async () => live, models, Infinity);
  tabs.get("live").models = models;
  sayModels(models);
  if (![...tabs.values()].some((tab) => tab.section && !tab.section.hidden)) {
    const wanted = location.hash.slice(1);
    open(tabs.has(wanted) ? wanted : firstTab());
  }
}

function firstTab() {
  return [...tablist.children].find((button) => !button.hidden).dataset.tab;
}

function sayModels(models) {
  const names = models.filter((model) => model.id === model.root);
  const states = names.map((model) => (model.state === "ready" ? model.id : `${model.id} (${model.state})`));
  document.getElementById("models").textContent = states.length ? `Serving ${states.join(", ")}.` : "No model is configured yet.";
}

function addTab(id, title, load, models, order) {
  const button = el("button", {
    type: "button", role: "tab", id: `tab-${id}`, "data-tab": id, "data-order": order,
    "aria-selected": "false", "aria-controls": `panel-${id}`, tabindex: "-1", onclick: () => (location.hash = id),
  }, title);
  const after = [...tablist.children].find((other) => Number(other.dataset.order) > order);
  tablist.insertBefore(button, after ?? null);
  const section = el("section", { id: `panel-${id}`, role: "tabpanel", "aria-labelledby": `tab-${id}`, hidden: true });
  stage.append(section);
  tabs.set(id, { button, section, load, models, panel: null });
}

async function open(id) {
  const tab = tabs.get(id);
  if (!tab || !tab.section.hidden) return;
  document.getElementById("start").hidden = true;
  for (const [other, each] of tabs) {
    const chosen = other === id;
    each.button.setAttribute("aria-selected", String(chosen));
    each.button.tabIndex = chosen ? 0 : -1;
    if (!chosen && !each.section.hidden) {
      each.section.hidden = true;
      each.panel?.hide?.();
    }
  }
  tab.section.hidden = false;
  document.title = `${tab.button.textContent}: Sixfold`;
  tab.button.scrollIntoView({ block: "nearest", inline: "nearest" });
  if (!tab.panel) {
    try {
      const module = await tab.load();
      tab.panel ??= module.mount(tab.section, { api, models: tab.models, announce, tellsDecisions, hasServers }) ?? {};
    } catch (error) {
      tab.section.replaceChildren(el("p", { class: "problem", role: "alert" }, `This tab could not be loaded: ${error.message}`));
      return;
    }
  }
  if (!tab.section.hidden) tab.panel.show?.();
}

function moveBetweenTabs(event) {
  const shown = [...tablist.children].filter((button) => !button.hidden);
  const at = shown.indexOf(document.activeElement);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: shown.length - 1 }[event.key];
  if (to === undefined || at < 0) return;
  event.preventDefault();
  const button = shown[(to + shown.length) % shown.length];
  button.focus();
  location.hash = button.dataset.tab;
}

/** Tells people who do not see the page what has happened. */
function announce(text) {
  document.getElementById("news").textContent = text;
}

function setUpTheme() {
  const button = document.getElementById("theme");
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
  const say = () => {
    button.setAttribute("aria-pressed", String(isDark()));
    dispatchEvent(new Event("themechange"));
  };
  button.addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem("sixfold-theme", theme);
    } catch {
      // storage is off: the choice lasts as long as the page
    }
    say();
  });
  prefersDark.addEventListener("change", say);
  say();
}

function setUpKey() {
  const dialog = document.getElementById("ask-key");
  const value = document.getElementById("key-value");
  const problem = document.getElementById("key-problem");
  const button = document.getElementById("key");
  const ask = (error) => {
    button.hidden = false;
    problem.hidden = !(error && api.key);
    problem.textContent = error?.message ?? "";
    if (!dialog.open) dialog.showModal();
  };
  api.onunauthorized = ask;
  button.hidden = !api.key;
  button.addEventListener("click", () => ask(null));
  dialog.addEventListener("close", () => {
    if (dialog.returnValue === "use") api.key = value.value.trim();
    else if (dialog.returnValue === "forget") api.key = "";
    value.value = "";
    if (dialog.returnValue) location.reload(); // whatever the page holds belongs to the other key
  });
}
