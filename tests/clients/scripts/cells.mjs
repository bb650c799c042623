// What every client's script needs: the questions, and a way to answer a cell with what went wrong.
const city = { city: { type: "string", maxLength: 12 } };

export const capital = "Name the capital of France.";
export const weather = "What is the weather in Paris?";
export const sentence = "The patient has no known allergy to penicillin.";
export const texts = ["a meal", "a dinner", "an engine"];
export const place = { type: "object", properties: city, required: ["city"], additionalProperties: false };
export const person = {
  type: "object",
  properties: { name: { type: "string", maxLength: 12 }, age: { type: "integer", minimum: 0, maximum: 130 } },
  required: ["name", "age"],
  additionalProperties: false,
};

// Runs each cell's function and prints what they return.
export async function answer(cells) {
  const found = {};
  for (const [name, cell] of Object.entries(cells)) {
    try {
      found[name] = await cell();
    } catch (error) {
      console.error(error);
      found[name] = `error: ${error}`;
    }
  }
  console.log(JSON.stringify(found));
}
