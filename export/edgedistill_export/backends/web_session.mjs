// One ONNX graph in onnxruntime-web, driven over standard input and output:
//   node web_session.mjs HOME THREADS GRAPH [DATA]
// HOME is a folder with node_modules, DATA the weights that lie beside the graph.
//
// A message is the length of a JSON header (uint32, little endian), the header, then the values of
// its tensors, in order. Headers: {tensors: [{name, dtype, shape}]} both ways, or {error} back. One
// answer follows the start, and one each message; the end of the input ends the process.

import { readFileSync, readSync, writeSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, join } from "node:path";

const ARRAYS = { float32: Float32Array, int64: BigInt64Array };
const [IN, OUT] = [0, 1];

// Only messages may reach standard output.
console.log = console.error;

const [home, threads, graph, ...beside] = process.argv.slice(2);
const ort = createRequire(join(home, "package.json"))("onnxruntime-web");

/** Read `count` bytes; null at the end of the input. */
function read(count) {
  const bytes = Buffer.from(new ArrayBuffer(count));
  for (let at = 0; at < count;) {
    const got = readSync(IN, bytes, at, count - at, null);
    if (got === 0) return null;
    at += got;
  }
  return bytes;
}

function write(bytes) {
  for (let at = 0; at < bytes.length;) at += writeSync(OUT, bytes, at);
}

/** The next message's tensors by name; null at the end of the input. */
function receive() {
  const length = read(4);
  if (length === null) return null;
  const header = JSON.parse(read(length.readUInt32LE()).toString());
  const tensors = header.tensors.map(({ name, dtype, shape }) => {
    const size = shape.reduce((a, b) => a * b, 1);
    const kind = ARRAYS[dtype];
    const values = new kind(read(size * kind.BYTES_PER_ELEMENT).buffer);
    return [name, new ort.Tensor(dtype, values, shape)];
  });
  return Object.fromEntries(tensors);
}

function send(header, values = []) {
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(4);
  length.writeUInt32LE(text.length);
  write(Buffer.concat([length, text]));
  values.forEach((value) => write(Buffer.from(value.buffer, value.byteOffset, value.byteLength)));
}

async function answer(work) {
  try {
    const tensors = Object.entries(await work());
    const header = tensors.map(([name, { type, dims }]) => ({ name, dtype: type, shape: dims }));
    send(
      { tensors: header },
      tensors.map(([, tensor]) => tensor.data),
    );
  } catch (error) {
    send({ error: String(error.message ?? error).split("\n")[0] });
  }
}

let session;
await answer(async () => {
  if (threads !== "0") ort.env.wasm.numThreads = Number(threads);
  session = await ort.InferenceSession.create(readFileSync(graph), {
    executionProviders: ["wasm"],
    externalData: beside.map((file) => ({ path: basename(file), data: readFileSync(file) })),
    logSeverityLevel: 3,
  });
  return {};
});
for (let feeds = receive(); feeds; feeds = receive()) {
  await answer(() => session.run(feeds));
}
// Idle worker threads would keep it alive.
process.exit(0);
