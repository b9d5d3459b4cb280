// The official `openai` package for JavaScript, unchanged: prints what it found, as JSON.
import OpenAI from "openai";

const [baseURL, apiKey, limitedKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "Grüße, 🦜!" }];
const found = {};

const answer = await client.chat.completions.create({ model: "parrot", messages, temperature: 0 });
found.chat = answer.choices[0].message.content;

found.stream = "";
const stream = await client.chat.completions.create({
  model: "parrot", messages, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  found.stream += chunk.choices[0]?.delta?.content ?? "";
  found.usage = chunk.usage ?? found.usage;
}

const runner = client.chat.completions.stream({ model: "parrot", messages });
found.final = await runner.finalContent();

const left = await client.chat.completions.create({ model: "parrot", messages, stream: true });
for await (const _ of left) break; // closes the connection

found.completion = (await client.completions.create({ model: "parrot", prompt: "a\nyes" })).choices[0].text;
found.response = (await client.responses.create({ model: "parrot", input: "hello" })).output_text;
found.vectors = (await client.embeddings.create({ model: "vectors", input: ["a", "b"] })).data.map((each) => each.embedding);
found.models = [];
for await (const model of client.models.list()) found.models.push(model.id);

async function raised(call) {
  try {
    await call();
    return "nothing";
  } catch (error) {
    return [error.constructor.name, error.status, error.code];
  }
}
const limited = new OpenAI({ baseURL, apiKey: limitedKey, maxRetries: 0 });
const ask = (there, body) => () => there.chat.completions.create({ model: "parrot", messages, ...body });
found.errors = {
  model: await raised(ask(client, { model: "nobody" })),
  key: await raised(ask(new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 }), {})),
  long: await raised(ask(client, { messages: [{ role: "user", content: "x".repeat(300) }] })),
  rate: [await raised(ask(limited, {})), await raised(ask(limited, {}))].at(-1),
};
console.log(JSON.stringify(found));
