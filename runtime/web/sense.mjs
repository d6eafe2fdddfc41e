// What a manifest may say: the bounds and agreements of edgedistill_runtime/sense.py.

import { draws, findRowsProblem } from "./steps.mjs";

const GRAPHS = ["text_encoder", "denoiser", "decoder"];
const FUSED = "pipeline";
const NEEDED = ["steps", "latent", "graphs"];
const DTYPES = ["float32", "int64", "int32", "bool"];

const MAX_SIDE = 2 ** 16;
const MAX_VALUES = 2 ** 28;
const MAX_AXES = 8;
const MAX_BATCH = 4096;
const MAX_ROWS = 1000;
const MAX_TOKENS = 2 ** 16;
const MAX_ID = 2 ** 31;
const MAX_NAME = 255;
const LARGEST = 3.4028234663852886e38;

class Problem extends Error {}

function need(condition, problem) {
  if (!condition) throw new Problem(problem);
}

/** What is wrong with a manifest, in one line that begins with its key; undefined if nothing. */
export function findProblem(manifest) {
  try {
    check(manifest);
  } catch (error) {
    if (error instanceof Problem) return error.message;
    // A key of another type than the schema's, which no check below asked for by name.
    if (error instanceof TypeError) return `not as the schema says: ${error.message}`;
    throw error;
  }
}

/** All tokenizers, in the text encoder's order. */
export function tokenizers({ tokenizer, more_tokenizers: more = [] }) {
  return tokenizer ? [tokenizer, ...more] : [];
}

function check(manifest) {
  const missing = NEEDED.find((key) => typeof manifest[key] !== "object" || !manifest[key]);
  need(!missing, `${missing}: missing`);
  checkNumbers(manifest);
  checkParts(manifest);
  for (const [name, graph] of Object.entries(manifest.graphs)) {
    checkFiles(`graphs.${name}`, graph);
    checkPorts(`graphs.${name}`, graph);
  }
  checkTokenizers(manifest);
  if (manifest.graphs[FUSED]) checkFused(manifest);
  else checkChain(manifest);
}

function checkShape(shape, key) {
  need(Array.isArray(shape) && shape.length, `${key}: at least one axis expected`);
  need(shape.length <= MAX_AXES, `${key}: 1 to ${MAX_AXES} axes expected`);
  for (const side of shape) {
    const fits = Number.isInteger(side) && side > 0 && side <= MAX_SIDE;
    need(fits, `${key}: ${short(side)} is no size from 1 to ${MAX_SIDE}`);
  }
  const values = shape.reduce((a, b) => a * b, 1);
  need(values <= MAX_VALUES, `${key}: more than ${MAX_VALUES} values`);
}

function checkNumbers({ steps, latent, image }) {
  checkShape(latent.shape, "latent.shape");
  if (image) checkShape([image.height, image.width], "image");
  const { rows } = steps;
  need(Array.isArray(rows) && rows.length, "steps.rows: at least one row expected");
  need(rows.length <= MAX_ROWS, `steps.rows: more than ${MAX_ROWS} rows`);
  const finite = (number, key) =>
    need(
      typeof number === "number" && Math.abs(number) <= LARGEST,
      `${key}: ${short(number)} is no finite float32 number`,
    );
  finite(steps.init_scale, "steps.init_scale");
  need(steps.init_scale > 0, `steps.init_scale: ${steps.init_scale} is not above 0`);
  rows.forEach((row, i) => {
    for (const key of ["t", "scale", "a", "b", "c"]) finite(row[key], `steps.rows[${i}].${key}`);
    finite(row.size ?? 1, `steps.rows[${i}].size`);
    for (const number of (row.past === undefined ? [] : row.past).flat()) finite(number, `steps.rows[${i}].past`);
  });
  const problem = findRowsProblem(steps, latent.shape);
  need(!problem, `steps.rows: ${problem}`);
}

/** The networks that a picture needs are there, or the one that is all of them. */
function checkParts({ graphs, tokenizer, more_tokenizers: more = [], image }) {
  const names = Object.keys(graphs);
  const known = [...GRAPHS, FUSED];
  const stranger = names.find((name) => !known.includes(name));
  need(!stranger, `graphs: unknown ${short(stranger)}; choose from ${known.join(", ")}`);
  const fused = graphs[FUSED];
  need(!fused || names.length === 1, `graphs: ${FUSED} stands alone, found ${names.join(", ")}`);
  need(fused || graphs.denoiser, "graphs.denoiser: missing");
  const text = fused ? fused.inputs.some((p) => p.name !== "noise") : Boolean(graphs.text_encoder);
  const picture = fused
    ? fused.outputs.some((port) => port.name === "image")
    : Boolean(graphs.decoder);
  let where = fused ? `an input of tokens of graphs.${FUSED}` : "graphs.text_encoder";
  need(text === Boolean(tokenizer), `tokenizer: must be there exactly when ${where} is`);
  need(tokenizer || !more.length, "more_tokenizers: there is no first one");
  where = fused ? `the output image of graphs.${FUSED}` : "graphs.decoder";
  need(picture === Boolean(image), `image: must be there exactly when ${where} is`);
}

function checkFiles(key, part) {
  for (const name of [part.file, ...Object.keys(part.sha256)]) {
    need(staysInside(name), `${key}.file: ${short(name)} leaves the bundle`);
  }
  need(part.file in part.sha256, `${key}.sha256: no entry for ${short(part.file)}`);
}

function staysInside(name) {
  const pieces = name.split("/");
  if (/[\\:\u0000-\u001f\u007f-\u009f]/.test(name) || pieces.includes("..")) return false;
  const inside = !name.startsWith("/") && pieces.some((piece) => piece && piece !== ".");
  return inside && pieces.every((piece) => new TextEncoder().encode(piece).length <= MAX_NAME);
}

function checkPorts(key, graph) {
  for (const side of ["inputs", "outputs"]) {
    const ports = graph[side];
    need(ports.length, `${key}.${side}: at least one expected`);
    const names = new Set(ports.map((port) => port.name));
    need(names.size === ports.length, `${key}.${side}: a name is there twice`);
    for (const { name, shape, dtype } of ports) {
      const place = `${key}.${side}.${short(name)}`;
      need(DTYPES.includes(dtype), `${place}.dtype: one of ${DTYPES.join(", ")} expected`);
      need(shape.length && shape.length <= MAX_AXES, `${place}.shape: 1 to ${MAX_AXES} axes expected`);
      const fixed = shape.filter((size) => typeof size !== "string");
      if (fixed.length) checkShape(fixed, `${place}.shape`);
      const batch = graph.inputs[0].shape[0];
      need(shape[0] === batch, `${place}.shape: batch ${short(shape[0])}, elsewhere ${batch}`);
      const fits = typeof batch === "string" || batch <= MAX_BATCH;
      need(fits, `${place}.shape: batch ${batch} is above ${MAX_BATCH}`);
    }
  }
}

const byName = (ports) => Object.fromEntries(ports.map((port) => [port.name, port]));

function checkNames(found, wanted, key) {
  const [a, b] = [found, wanted].map((names) => [...names].sort().join(", "));
  need(a === b, `${key}: ${b || "none"} expected, found ${short(a)}`);
}

/** A port takes rows of `shape`, in which a word is an axis of any size. */
function checkFit(port, shape, dtype, key) {
  need(port, `${key}: missing`);
  const place = `${key}.${port.name}`;
  need(port.dtype === dtype, `${place}.dtype: ${dtype} expected, found ${port.dtype}`);
  const own = port.shape.slice(1);
  const fits =
    own.length === shape.length &&
    own.every((size, i) => [size, shape[i]].some((n) => typeof n === "string") || size === shape[i]);
  need(fits, `${place}.shape: [${shape}] expected after the batch, found [${own}]`);
}

function checkTokenizers(manifest) {
  const all = tokenizers(manifest);
  if (!all.length) return;
  const name = manifest.graphs[FUSED] ? FUSED : "text_encoder";
  const [ports, key] = [byName(manifest.graphs[name].inputs), `graphs.${name}.inputs`];
  const fed = all.map(({ input = "input_ids", mask }) => [input, mask].filter(Boolean));
  checkNames(Object.keys(ports).filter((port) => port !== "noise"), fed.flat(), key);
  all.forEach((entry, i) => {
    checkFiles("tokenizer", entry);
    const place = `tokenizer (${fed[i][0]})`;
    const { length, pad_id: pad } = entry;
    const fits = Number.isInteger(length) && length > 0 && length <= MAX_TOKENS;
    need(fits, `${place}.length: ${short(length)} is not from 1 to ${MAX_TOKENS}`);
    need(Number.isInteger(pad) && pad >= 0 && pad < MAX_ID, `${place}.pad_id: ${short(pad)} is no id`);
    for (const port of fed[i]) checkFit(ports[port], [length], "int64", key);
  });
}

function checkFused({ graphs, steps, latent, image }) {
  const [inputs, outputs] = [byName(graphs[FUSED].inputs), byName(graphs[FUSED].outputs)];
  const key = `graphs.${FUSED}`;
  checkFit(inputs.noise, [draws(steps), ...latent.shape], "float32", `${key}.inputs`);
  checkNames(Object.keys(outputs), ["x0", ...(image ? ["image"] : [])], `${key}.outputs`);
  checkFit(outputs.x0, latent.shape, "float32", `${key}.outputs`);
  checkPicture(image, outputs, `${key}.outputs`);
  const whole = steps.rows.every((row) => (row.size ?? 1) === 1);
  need(whole, `steps.rows: sizes below 1, which graphs.${FUSED} does not run`);
}

function checkChain({ graphs, steps, latent, image }) {
  const cond = graphs.text_encoder?.outputs ?? [];
  const key = "graphs.denoiser";
  const [inputs, outputs] = [byName(graphs.denoiser.inputs), byName(graphs.denoiser.outputs)];
  checkNames(Object.keys(inputs), ["x", "t", ...cond.map((port) => port.name)], `${key}.inputs`);
  checkFit(inputs.x, latent.shape, "float32", `${key}.inputs`);
  checkFit(inputs.t, [], "float32", `${key}.inputs`);
  for (const { name, shape, dtype } of cond) {
    checkFit(inputs[name], shape.slice(1), dtype, `${key}.inputs`);
  }
  checkFit(outputs.f, latent.shape, "float32", `${key}.outputs`);
  if (steps.rows.some((row) => (row.size ?? 1) !== 1)) {
    const free = inputs.x.shape.slice(-2).every((side) => typeof side === "string");
    need(free, `${key}.inputs.x.shape: height and width are fixed, and steps.rows grow`);
  }
  if (!graphs.decoder) return;
  const [x0, made] = [byName(graphs.decoder.inputs), byName(graphs.decoder.outputs)];
  checkNames(Object.keys(x0), ["x0"], "graphs.decoder.inputs");
  checkFit(x0.x0, latent.shape, "float32", "graphs.decoder.inputs");
  checkPicture(image, made, "graphs.decoder.outputs");
}

function checkPicture(image, outputs, key) {
  if (image) checkFit(outputs.image, ["channels", image.height, image.width], "float32", key);
}

/** A value for a message, its middle left out where it is long. */
export function short(value, limit = 60) {
  const text = String(JSON.stringify(value) ?? value);
  return text.length <= limit ? text : `${text.slice(0, 40)}...${text.slice(-20)}`;
}
