// A student that optimum exported, drawn by onnxruntime-web as programs over transformers.js do:
// one session a network, a tensor made anew for every call, the scheduler in JavaScript.
//   node peers_web.mjs FOLDER --steps N [--runs N] [--threads N] [--json FILE]
//
// The scheduler is DDIM over the folder's trained levels. Prompts are given as token ids, so that
// no time of a tokenizer counts.

import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { parseArgs } from "node:util";

const WARM_UP = 3;

const home = new URL("../runtime/web/package.json", import.meta.url);
const ort = createRequire(home)("onnxruntime-web");

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    steps: { type: "string" },
    runs: { type: "string", default: "20" },
    threads: { type: "string", default: "1" },
    json: { type: "string" },
  },
});
const [folder] = positionals;
const [steps, runs, threads] = [values.steps, values.runs, values.threads].map(Number);

const read = (...parts) => JSON.parse(readFileSync(join(folder, ...parts), "utf8"));
ort.env.wasm.numThreads = threads;

const open = (name) =>
  ort.InferenceSession.create(readFileSync(join(folder, name, "model.onnx")), {
    executionProviders: ["wasm"],
    logSeverityLevel: 3,
  });

/** alpha and sigma of x_t = alpha x0 + sigma eps at the scheduler's trained steps. */
function levels({ num_train_timesteps: count, beta_schedule, beta_start, beta_end }) {
  let product = 1;
  return Array.from({ length: count }, (_, i) => {
    const share = i / (count - 1);
    if (beta_schedule === "squaredcos_cap_v2") {
      const bar = (t) => Math.cos((((t + 0.008) / 1.008) * Math.PI) / 2) ** 2;
      product *= 1 - Math.min(1 - bar((i + 1) / count) / bar(i / count), 0.999);
    } else {
      const root = Math.sqrt(beta_start) + share * (Math.sqrt(beta_end) - Math.sqrt(beta_start));
      const linear = beta_start + share * (beta_end - beta_start);
      product *= 1 - (beta_schedule === "scaled_linear" ? root ** 2 : linear);
    }
    return { alpha: Math.sqrt(product), sigma: Math.sqrt(1 - product) };
  });
}

const start = performance.now();
const [encoder, unet, decoder] = [
  await open("text_encoder"),
  await open("unet"),
  await open("vae_decoder"),
];
const loadSeconds = (performance.now() - start) / 1000;
const scheduler = read("scheduler", "scheduler_config.json");
const { sample_size: side, in_channels: channels } = read("unet", "config.json");
const { max_position_embeddings: context } = read("text_encoder", "config.json");
const factor = read("vae_decoder", "config.json").scaling_factor ?? 1;
const timeShape = unet.inputMetadata.find(({ name }) => name === "timestep").shape.map(() => 1);
const trained = levels(scheduler);
const times = Array.from({ length: steps }, (_, i) =>
  Math.round(trained.length - (i * trained.length) / steps - 1),
);

/** An input of whole numbers, in the type that the graph has for it. */
function whole(session, name, numbers, dims) {
  const { type } = session.inputMetadata.find((input) => input.name === name);
  const values = {
    int32: () => Int32Array.from(numbers),
    int64: () => BigInt64Array.from(numbers, BigInt),
    float32: () => Float32Array.from(numbers),
  };
  return new ort.Tensor(type, values[type](), dims);
}

async function draw(seed) {
  const ids = Array.from({ length: context }, (_, i) => (i < 4 ? i + seed % 4 : 1));
  const [input] = encoder.inputNames;
  const encoded = await encoder.run({ [input]: whole(encoder, input, ids, [1, context]) });
  const hidden = encoded.last_hidden_state ?? Object.values(encoded)[0];
  let x = Float32Array.from({ length: channels * side * side }, gaussian);
  const dims = [1, channels, side, side];
  for (const [i, time] of times.entries()) {
    const feeds = { sample: new ort.Tensor("float32", x, dims), encoder_hidden_states: hidden };
    feeds.timestep = whole(unet, "timestep", [time], timeShape);
    const { alpha, sigma } = trained[time];
    const next = i + 1 < steps ? trained[times[i + 1]] : { alpha: 1, sigma: 0 };
    const f = Object.values(await unet.run(feeds))[0].data;
    x = x.map((value, j) => {
      const x0 = alpha * value - sigma * f[j];
      return next.alpha * x0 + next.sigma * (alpha * f[j] + sigma * value);
    });
  }
  const latent = new ort.Tensor("float32", x.map((value) => value / factor), dims);
  const image = Object.values(await decoder.run({ latent_sample: latent }))[0].data;
  return Uint8ClampedArray.from(image, (value) => 127.5 * value + 127.5);
}

const gaussian = () =>
  Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());

async function timed(seed) {
  const before = performance.now();
  await draw(seed);
  return (performance.now() - before) / 1000;
}

const first = await timed(0);
for (let i = 0; i < WARM_UP; i++) await timed(i);
const taken = [];
for (let i = 0; i < runs; i++) taken.push(await timed(i));
taken.sort((a, b) => a - b);
const middle = (runs - 1) / 2;
const p50 = (taken[Math.floor(middle)] + taken[Math.ceil(middle)]) / 2;
const figures = { load_s: loadSeconds, first_s: first, p50_s: p50, picture_s: p50 };
const text = JSON.stringify(figures, null, 2);
if (values.json) writeFileSync(values.json, text);
else console.log(text);
