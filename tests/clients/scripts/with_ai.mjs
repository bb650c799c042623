// npm's ai with @ai-sdk/openai-compatible: text, streams, tools, objects, embeddings and pictures.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateImage, generateObject, generateText, jsonSchema, streamText, tool } from "ai";
import { answer, capital, person, place, texts, weather } from "./cells.mjs";

const server = createOpenAICompatible({
  name: "sixfold", baseURL: `${process.argv[2]}/v1`, apiKey: "none", supportsStructuredOutputs: true,
});
const common = { model: server.chatModel("chat"), temperature: 0, maxOutputTokens: 60, maxRetries: 0 };

await answer({
  async chat() {
    return (await generateText({ ...common, prompt: capital })).text;
  },
  async stream() {
    let text = "";
    for await (const part of streamText({ ...common, prompt: capital }).textStream) text += part;
    return text;
  },
  async tools() {
    const get_weather = tool({ description: "The weather of a city.", inputSchema: jsonSchema(place) });
    const found = await generateText({ ...common, prompt: weather, tools: { get_weather }, toolChoice: "required" });
    return found.toolCalls.map((call) => [call.toolName, JSON.stringify(call.input)]);
  },
  async form() {
    return (await generateObject({ ...common, schema: jsonSchema(person), prompt: "Ann is 30 years old." })).object;
  },
  async embed() {
    return (await embedMany({ model: server.textEmbeddingModel("embed"), values: texts, maxRetries: 0 })).embeddings;
  },
  async draw() {
    const model = server.imageModel("draw");
    return (await generateImage({ model, prompt: "a red circle", size: "64x64", maxRetries: 0 })).image.base64;
  },
});
