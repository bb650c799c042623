// Two tools that a model may call and this page runs: enough to see a call go out and its answer come back.

export const SAMPLE_TOOLS = [
  {
    type: "function",
    function: {
      name: "current_time",
      description: "Tells the date and the time of day, now.",
      parameters: { type: "object", properties: {}, additionalProperties: false },
    },
  },
  {
    type: "function",
    function: {
      name: "roll_die",
      description: "Rolls a die and tells what it shows.",
      parameters: {
        type: "object",
        properties: { sides: { type: "integer", minimum: 2, maximum: 100, description: "How many sides it has" } },
        required: ["sides"],
        additionalProperties: false,
      },
    },
  },
];

/** What a call gives, as text for the model; a call that makes no sense is told so. */
export function run(name, given) {
  let values;
  try {
    values = JSON.parse(given || "{}");
  } catch {
    return "error: the arguments are no JSON";
  }
  if (name === "current_time") return new Date().toString();
  if (name === "roll_die") {
    const sides = Number(values.sides);
    return sides >= 2 ? String(1 + Math.floor(Math.random() * sides)) : "error: sides must be at least 2";
  }
  return `error: there is no tool ${name}`;
}
