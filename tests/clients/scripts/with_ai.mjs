// npm's ai with @ai-sdk/openai-compatible: text, streams, tools, objects, embeddings and pictures.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateImage, generateObject, generateText, jsonSchema, streamText, tool } from "ai";

const server = createOpenAICompatible({
  name: "sixfold", baseURL: `${process.argv[2]}/v1`, apiKey: "none", supportsStructuredOutputs: true,
});
const common = { model: server.chatModel("chat"), temperature: 0, maxOutputTokens: 60, maxRetries: 0 };
const city = jsonSchema({
  type: "object", properties: { city: { type: "string", maxLength: 12 } }, required: ["city"], additionalProperties: false,
});

const cells = {
  async chat() {
    return (await generateText({ ...common, prompt: "What is the capital of France?" })).text;
  },
  async stream() {
    let text = "";
    for await (const part of streamText({ ...common, prompt: "What is the capital of France?" }).textStream) text += part;
    return text;
  },
  async tools() {
    const weather = tool({ description: "The weather of a city.", inputSchema: city });
    const found = await generateText({
      ...common, prompt: "What is the weather in Paris?", tools: { get_weather: weather }, toolChoice: "required",
    });
    return found.toolCalls.map((call) => [call.toolName, JSON.stringify(call.input)]);
  },
  async form() {
    return JSON.stringify((await generateObject({ ...common, schema: city, prompt: "The capital of France" })).object);
  },
  async embed() {
    const model = server.textEmbeddingModel("embed");
    return (await embedMany({ model, values: ["a meal", "a dinner", "an engine"], maxRetries: 0 })).embeddings;
  },
  async draw() {
    const model = server.imageModel("draw");
    return (await generateImage({ model, prompt: "a red circle", size: "64x64", maxRetries: 0 })).image.base64;
  },
};

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
