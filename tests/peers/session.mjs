// A usual session of the `ollama` package: node session.mjs URL WEIGHTS-FILE REGISTRY-NAME
// Prints one JSON document of what each step gave; ../test_peer_npm.py says what it has to be.
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { Ollama } from 'ollama';

const [url, weights, pushed] = process.argv.slice(2);
const ollama = new Ollama({ host: url });
const CHAT = 'llama3.2:1b';
const SCHEMA = {
  type: 'object',
  properties: { name: { type: 'string' }, age: { type: 'integer' } },
  required: ['name', 'age'],
};
const TOOL = {
  type: 'function',
  function: {
    name: 'weather_in',
    description: 'The weather in a city',
    parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
  },
};

async function all(stream) {
  const parts = [];
  for await (const part of await stream) parts.push(part);
  return parts;
}

// The package has no call for blobs: a file is sent as the API guide says.
async function sendBlob(path) {
  const body = await readFile(path);
  const digest = `sha256:${createHash('sha256').update(body).digest('hex')}`;
  const answer = await fetch(`${url}/api/blobs/${digest}`, { method: 'POST', body });
  return { digest, status: answer.status };
}

async function failureOf(call) {
  try {
    await call();
    return null;
  } catch (error) {
    return { name: error.name, status: error.status_code ?? null, text: error.message };
  }
}

const names = async () => (await ollama.list()).models.map((model) => model.name).sort();
const seen = {};

seen.version = (await ollama.version()).version;
const blob = await sendBlob(weights);
seen.blob = blob.status;
seen.created = (await ollama.create({ model: 'mine', files: { 'tiny.gguf': blob.digest }, system: 'Be brief.' })).status;
seen.pulled = (await all(ollama.pull({ model: CHAT, stream: true }))).map((line) => line.status);
seen.derived = (
  await all(ollama.create({
    model: 'bot', from: CHAT, system: 'You are a bot.', license: ['MIT'], parameters: { temperature: 0.5 },
    messages: [{ role: 'user', content: 'hi' }], stream: true,
  }))
).at(-1).status;
const shown = await ollama.show({ model: 'bot' });
seen.shown = {
  system: shown.system, family: shown.details.family, license: shown.license, messages: shown.messages,
  architecture: shown.model_info['general.architecture'], capabilities: shown.capabilities,
};
seen.copied = (await ollama.copy({ source: 'mine', destination: pushed })).status;
seen.listed = await names();
seen.pushed = (await all(ollama.push({ model: pushed, insecure: true, stream: true }))).at(-1).status;
seen.deleted = (await ollama.delete({ model: pushed })).status;
seen.pulledAgain = (await ollama.pull({ model: pushed, insecure: true })).status;
seen.listedAgain = await names();

seen.loaded = (await ollama.generate({ model: CHAT, prompt: '', keep_alive: '10m' })).done_reason;
seen.running = (await ollama.ps()).models.map((model) => model.name);
const asked = { model: CHAT, prompt: 'Why is the sky blue?', options: { seed: 7 } };
seen.generated = (await ollama.generate(asked)).response;
seen.generatedInPieces = (await all(ollama.generate({ ...asked, stream: true }))).map((part) => part.response).join('');
seen.json = (await ollama.generate({ ...asked, format: 'json' })).response;
seen.bound = (await ollama.chat({ model: CHAT, messages: [{ role: 'user', content: 'a person' }], format: SCHEMA })).message.content;
const history = [{ role: 'system', content: 'Be brief.' }, { role: 'user', content: 'Who are you?' }];
seen.chatted = (await ollama.chat({ model: CHAT, messages: history, options: { seed: 1 } })).message;
seen.chattedInPieces = (await all(ollama.chat({ model: CHAT, messages: history, options: { seed: 1 }, stream: true })))
  .map((part) => part.message.content).join('');
seen.toolCall = (await ollama.chat({
  model: CHAT, messages: [{ role: 'user', content: 'What is the weather in Paris?' }], tools: [TOOL],
})).message.tool_calls[0].function;
await ollama.pull({ model: 'all-minilm' });
seen.vectors = (await ollama.embed({ model: 'all-minilm', input: ['hello', 'world'] })).embeddings.map((row) => row.length);
seen.unloaded = (await ollama.generate({ model: CHAT, prompt: '', keep_alive: 0 })).done_reason;

seen.aborted = await failureOf(async () => {
  const stream = await ollama.generate({ ...asked, stream: true });
  stream.abort();
  for await (const part of stream) void part;
});
seen.missing = await failureOf(() => ollama.show({ model: 'nobody' }));
seen.missingPull = await failureOf(() => ollama.pull({ model: 'nobody' }));

process.stdout.write(JSON.stringify(seen));
