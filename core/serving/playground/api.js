// Talks to the server that the page came from, under whatever path it came from, with the key of this tab.

const KEY = "sixfold-key";

/** What the server says when it refuses; the fields of OpenAI's error object. */
export class ApiError extends Error {
  constructor(status, error, requestId) {
    super(error?.message ?? `The server answered ${status}.`);
    this.name = "ApiError";
    this.status = status;
    this.code = error?.code ?? null;
    this.param = error?.param ?? null;
    this.requestId = requestId;
  }
}

/** Calls of one server. `onunauthorized` is called when a key is missing or wrong. */
export class Api {
  constructor(base) {
    this.base = base;
    this.onunauthorized = () => {};
  }

  get key() {
    return sessionStorage.getItem(KEY) ?? "";
  }

  set key(value) {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  }

  url(path) {
    return new URL(path.replace(/^\//, ""), this.base).href;
  }

  /** One request. `json` or `form` is the body. Raises ApiError for whatever is no success. */
  async request(path, { method, json, form, signal, accept } = {}) {
    const headers = {};
    if (this.key) headers.authorization = `Bearer ${this.key}`;
    if (json !== undefined) headers["content-type"] = "application/json";
    if (accept) headers.accept = accept;
    const body = json !== undefined ? JSON.stringify(json) : form;
    const response = await fetch(this.url(path), {
      method: method ?? (body === undefined ? "GET" : "POST"),
      headers,
      body,
      signal,
    });
    if (response.ok) return response;
    const error = await readError(response);
    if (response.status === 401) this.onunauthorized(error);
    throw error;
  }

  async json(path, options) {
    return (await this.request(path, options)).json();
  }

  /** The events of a stream as {event, data}; ends at its end or at [DONE]. An error inside becomes an ApiError. */
  async *events(path, options) {
    const response = await this.request(path, { accept: "text/event-stream", ...options });
    for await (const { event, data } of frames(response.body)) {
      if (data.startsWith("[DONE]")) return;
      const parsed = JSON.parse(data);
      if (parsed.error) throw new ApiError(response.status, parsed.error, response.headers.get("x-request-id"));
      yield { event, data: parsed };
    }
  }
}

async function readError(response) {
  let error = null;
  try {
    error = (await response.json()).error;
  } catch {
    // not ours: a proxy in between
  }
  return new ApiError(response.status, error, response.headers.get("x-request-id"));
}

/** Cuts a body into server-sent events. */
async function* frames(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += value;
      let end;
      while ((end = rest.indexOf("\n\n")) >= 0) {
        const lines = rest.slice(0, end).split("\n");
        rest = rest.slice(end + 2);
        const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
        const event = lines.find((line) => line.startsWith("event:"))?.slice(6).trim() ?? "message";
        if (data.length) yield { event, data: data.join("\n") };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
