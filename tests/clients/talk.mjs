// What OpenAI's and Anthropic's own libraries make of a server:   node talk.mjs URL, the key on stdin. One JSON object on stdout.
import { readFileSync } from "node:fs";
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const url = process.argv[2];
const key = readFileSync(0, "utf8").trim();
const messages = [{ role: "user", content: "hello" }];
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });
const model = (await openai.models.list()).data[0].id;
const question = { model, messages, max_tokens: 8, temperature: 0 };

const whole = await openai.chat.completions.create(question);
let streamed = "";
for await (const piece of await openai.chat.completions.create({ ...question, stream: true })) {
  streamed += piece.choices[0]?.delta?.content ?? "";
}
// A body in chunks, without its length, as node's streams send it.
const piped = await fetch(`${url}/v1/completions`, {
  method: "POST", duplex: "half", headers: { "Content-Type": "application/json", Authorization: `Bearer ${key}` },
  body: new Blob([JSON.stringify({ model, prompt: "1", max_tokens: 2 })]).stream(),
});
const hungUp = await openai.chat.completions.create({ ...question, max_tokens: 1000, stream: true });
for await (const _ of hungUp) break;

const anthropic = new Anthropic({ baseURL: url, apiKey: key, maxRetries: 0 });
const message = await anthropic.messages.create({ model, max_tokens: 8, messages });
const final = await anthropic.messages.stream({ model, max_tokens: 8, messages }).finalMessage();

const refusal = async (asking) => {
  try { await asking(); return "none"; } catch (error) { return error.constructor.name; }
};
console.log(JSON.stringify({
  model, whole: whole.choices[0].message.content, streamed, piped: piped.status,
  anthropic: [message.usage.output_tokens, final.usage.output_tokens],
  refused: {
    "openai key": await refusal(() => new OpenAI({ baseURL: `${url}/v1`, apiKey: "sk-of-somebody-else", maxRetries: 0 }).models.list()),
    "openai value": await refusal(() => openai.chat.completions.create({ ...question, max_tokens: -1 })),
    "openai model": await refusal(() => openai.chat.completions.create({ ...question, model: "no-such-model" })),
    "anthropic key": await refusal(() => new Anthropic({ baseURL: url, apiKey: "sk-of-somebody-else", maxRetries: 0 })
      .messages.create({ model, max_tokens: 1, messages })),
    "anthropic value": await refusal(() => anthropic.messages.create({ model, max_tokens: -1, messages })),
  },
}));
