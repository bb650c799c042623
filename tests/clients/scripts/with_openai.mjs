// npm's openai: every modality.
import OpenAI, { toFile } from "openai";
import { answer, capital, person, place, sentence, texts, weather } from "./cells.mjs";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0, timeout: 300_000 });
const asked = { model: "chat", messages: [{ role: "user", content: capital }], temperature: 0, max_tokens: 40 };

await answer({
  async chat() {
    return (await client.chat.completions.create(asked)).choices[0].message.content;
  },
  async stream() {
    let text = "";
    for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
      text += chunk.choices[0]?.delta?.content ?? "";
    }
    return text;
  },
  async tools() {
    const found = await client.chat.completions.create({
      model: "chat", messages: [{ role: "user", content: weather }], tool_choice: "required", max_tokens: 60, seed: 1,
      tools: [{ type: "function", function: { name: "get_weather", parameters: place } }],
    });
    return found.choices[0].message.tool_calls.map((call) => [call.function.name, call.function.arguments]);
  },
  async form() {
    const found = await client.chat.completions.create({
      model: "chat", messages: [{ role: "user", content: "Ann is 30 years old." }], max_tokens: 60,
      response_format: { type: "json_schema", json_schema: { name: "person", schema: person, strict: true } },
    });
    return found.choices[0].message.content;
  },
  async responses() {
    return (await client.responses.create({ model: "chat", input: capital, temperature: 0, max_output_tokens: 40 })).output_text;
  },
  async embed() {
    // The client asks for base64 by itself.
    const found = await client.embeddings.create({ model: "embed", input: texts });
    return found.data.map((one) => one.embedding);
  },
  async speak_and_hear() {
    const sound = await client.audio.speech.create({ model: "speak", voice: "alloy", input: sentence });
    const file = await toFile(Buffer.from(await sound.arrayBuffer()), "speech.mp3");
    return (await client.audio.transcriptions.create({ model: "hear", file, language: "en" })).text;
  },
  async draw() {
    const found = await client.images.generate({
      model: "draw", prompt: "a red circle", size: "64x64", response_format: "b64_json",
    });
    return found.data[0].b64_json;
  },
  async film() {
    let job = await client.videos.create({ model: "film", prompt: "a blue ball moving up" });
    while (job.status === "queued" || job.status === "in_progress") {
      await new Promise((resolve) => setTimeout(resolve, 500));
      job = await client.videos.retrieve(job.id);
    }
    const content = Buffer.from(await (await client.videos.downloadContent(job.id)).arrayBuffer());
    await client.videos.delete(job.id);
    return content.toString("base64");
  },
});
