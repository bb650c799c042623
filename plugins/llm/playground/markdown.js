// The little of Markdown that answers use, as elements: code, lists, headings, bold. Anything else stays text.

import { el } from "../elements.js";

const INLINE = /(`[^`\n]+`|\*\*[^*\n]+\*\*)/;

/** The elements of a text, which may end in the middle of anything. */
export function rendered(text) {
  return text.split(/^```/m).flatMap((part, index) => {
    if (index % 2 === 0) return blocks(part);
    const newline = part.indexOf("\n");
    return [el("pre", {}, el("code", {}, newline < 0 ? "" : part.slice(newline + 1)))];
  });
}

function blocks(text) {
  return text.split(/\n{2,}/).filter((each) => each.trim()).map((block) => {
    const lines = block.trim().split("\n");
    const numbered = lines.every((line) => /^\s*\d+[.)] /.test(line));
    if (numbered || lines.every((line) => /^\s*[-*] /.test(line))) {
      const items = lines.map((line) => el("li", {}, inline(line.replace(/^\s*(?:\d+[.)]|[-*]) /, ""))));
      return el(numbered ? "ol" : "ul", numbered ? { start: parseInt(lines[0], 10) } : {}, items);
    }
    const heading = /^#{1,6} (.*)$/.exec(block.trim());
    if (heading) return el("p", { class: "heading" }, inline(heading[1]));
    return el("p", {}, inline(block.trim()));
  });
}

function inline(text) {
  return text.split(INLINE).map((part) => {
    if (part.length > 2 && part.startsWith("`")) return el("code", {}, part.slice(1, -1));
    if (part.length > 4 && part.startsWith("**")) return el("strong", {}, part.slice(2, -2));
    return part;
  });
}
