// npm's openai: every modality.
import OpenAI, { toFile } from "openai";

const url = process.argv[2];
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0, timeout: 300_000 });
const capital = [{ role: "user", content: "What is the capital of France?" }];
const weather = {
  type: "function",
  function: {
    name: "get_weather",
    parameters: {
      type: "object",
      properties: { city: { type: "string", maxLength: 12 } },
      required: ["city"],
      additionalProperties: false,
    },
  },
};

const cells = {
  async chat() {
    const found = await client.chat.completions.create({ model: "chat", messages: capital, temperature: 0, max_tokens: 40 });
    return found.choices[0].message.content;
  },
  async stream() {
    const chunks = await client.chat.completions.create({
      model: "chat", messages: capital, temperature: 0, max_tokens: 40, stream: true,
    });
    let text = "";
    for await (const chunk of chunks) text += chunk.choices[0]?.delta?.content ?? "";
    return text;
  },
  async tools() {
    const found = await client.chat.completions.create({
      model: "chat", messages: [{ role: "user", content: "What is the weather in Paris?" }],
      tools: [weather], tool_choice: "required", max_tokens: 60, seed: 1,
    });
    return found.choices[0].message.tool_calls.map((call) => [call.function.name, call.function.arguments]);
  },
  async responses() {
    const found = await client.responses.create({
      model: "chat", input: "What is the capital of France?", temperature: 0, max_output_tokens: 40,
    });
    return found.output_text;
  },
  async embed() {
    // The client asks for base64 by itself.
    const found = await client.embeddings.create({ model: "embed", input: ["a meal", "a dinner", "an engine"] });
    return found.data.map((one) => one.embedding);
  },
  async speak_and_hear() {
    const sound = await client.audio.speech.create({
      model: "speak", voice: "alloy", input: "The patient has no known allergy to penicillin.",
    });
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
