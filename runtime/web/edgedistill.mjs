// Draws with an edgedistill bundle in a page or in node.

import * as ort from "onnxruntime-web";

import { BundleError, readBundle } from "./bundle.mjs";
import { normals } from "./noise.mjs";
import { tokenizers } from "./sense.mjs";
import { draws, sample, shapes } from "./steps.mjs";
import { Tokenizer } from "./tokenizer.mjs";

export { BundleError, Tokenizer, normals };

/** A loaded bundle. */
export class Pipeline {
  #sessions;
  #tokenizers;
  #last;

  /** Called by `load`. */
  constructor(manifest, sessions, tokenizers) {
    this.manifest = manifest;
    this.#sessions = sessions;
    this.#tokenizers = tokenizers;
  }

  /**
   * Load a bundle after checking its manifest and the hash of every file.
   *
   * @param {string | URL} place its folder: in node a path or URL, in a page a URL
   * @param {object} [options]
   * @param {number} [options.threads] threads inside an operator, for every bundle of the page and
   *   only before the first is loaded; more than one needs a cross-origin isolated page
   * @param {string[]} [options.providers] onnxruntime-web's execution providers by preference
   * @throws {BundleError} if the bundle is not what its manifest says
   */
  static async load(place, { threads, providers = ["wasm"] } = {}) {
    if (threads) ort.env.wasm.numThreads = threads;
    const { manifest, files } = await readBundle(place);
    const sessions = {};
    for (const [name, graph] of Object.entries(manifest.graphs)) {
      sessions[name] = await named(graph.file, () => open(graph, files, providers));
    }
    const opened = [];
    for (const entry of tokenizers(manifest)) {
      opened.push(await named(entry.file, () => openTokenizer(entry, files)));
    }
    return new Pipeline(manifest, sessions, opened);
  }

  /** Whether `draw` wants a prompt. */
  get takesPrompt() {
    return this.#tokenizers.length > 0;
  }

  /**
   * Draw one sample, the same that the Python runtime draws.
   *
   * @param {string | null} prompt null for a bundle that takes none
   * @param {object} [options]
   * @param {number | bigint} [options.seed] with index decides the noise
   * @param {number | bigint} [options.index] the picture's place among those of one call in Python
   * @returns {Promise<{sample: Float32Array, picture: {data: Uint8ClampedArray, width: number,
   *   height: number} | null, timings: Object<string, number>}>} x0, RGBA bytes as ImageData takes
   *   them (null without a decoder), and seconds by stage, which is a graph's name or "other",
   *   with their "total"
   */
  async draw(prompt, { seed = 0, index = 0 } = {}) {
    if (this.takesPrompt !== (typeof prompt === "string")) {
      throw new TypeError(`this bundle takes ${this.takesPrompt ? "a" : "no"} prompt`);
    }
    const clock = new Clock(Object.keys(this.#sessions));
    const { latent, steps, image } = this.manifest;
    const values = shapes(steps, latent.shape).map((shape) => shape.reduce((a, b) => a * b));
    const noise = normals(seed, index, values.reduce((a, b) => a + b));
    const drawn = this.#sessions.pipeline
      ? await this.#fused(prompt, noise, clock)
      : await this.#stepwise(prompt, noise, clock);
    if (![drawn.x0, drawn.image ?? []].every((values) => values.every(Number.isFinite))) {
      throw new BundleError(
        "this bundle draws numbers that are not finite: its weights or its step table are wrong, " +
          "or its precision is too low here",
      );
    }
    const picture = image && toPicture(drawn.image, image);
    return { sample: drawn.x0, picture, timings: clock.read() };
  }

  /** Free the memory of the graphs. */
  async release() {
    await Promise.all(Object.values(this.#sessions).map((session) => session.release()));
  }

  /** x0 and image by the one graph. */
  async #fused(prompt, noise, clock) {
    const { latent, steps } = this.manifest;
    const feeds = { noise: new ort.Tensor("float32", noise, [1, draws(steps), ...latent.shape]) };
    if (this.takesPrompt) Object.assign(feeds, this.#tokens(prompt));
    const outputs = await clock.run("pipeline", this.#sessions.pipeline, feeds);
    return { x0: outputs.x0.data, image: outputs.image?.data };
  }

  /** x0 and image by one graph after the other. */
  async #stepwise(prompt, noise, clock) {
    const { latent, steps, image } = this.manifest;
    const dims = [1, ...latent.shape];
    const cond = this.takesPrompt ? await this.#encode(prompt, clock) : {};
    const net = async (x, t, shape) => {
      const time = new ort.Tensor("float32", [t], [1]);
      const feeds = { x: new ort.Tensor("float32", x, [1, ...shape]), t: time, ...cond };
      return (await clock.run("denoiser", this.#sessions.denoiser, feeds)).f.data;
    };
    const x0 = await sample(net, steps, noise, latent.shape);
    return { x0, image: image && (await this.#decode(x0, dims, clock)) };
  }

  /** The text encoder's inputs by name. */
  #tokens(prompt) {
    const tensor = (row) => new ort.Tensor("int64", row, [1, row.length]);
    const inputs = {};
    for (const [entry, tokenizer] of this.#tokenizers) {
      const { ids, mask } = tokenizer.encode(prompt);
      inputs[entry.input ?? "input_ids"] = tensor(ids);
      if (entry.mask) inputs[entry.mask] = tensor(mask);
    }
    return inputs;
  }

  /** What the text encoder makes of a prompt; the last one is kept, as apps draw it again. */
  async #encode(prompt, clock) {
    let last = this.#last;
    if (last?.prompt !== prompt) {
      const feeds = this.#tokens(prompt);
      const cond = await clock.run("text_encoder", this.#sessions.text_encoder, feeds);
      last = { prompt, cond };
      this.#last = last;
    }
    return last.cond;
  }

  async #decode(x0, dims, clock) {
    const feeds = { x0: new ort.Tensor("float32", x0, dims) };
    return (await clock.run("decoder", this.#sessions.decoder, feeds)).image.data;
  }
}

/** What an engine raises becomes one line that names the file. */
async function named(file, work) {
  try {
    return await work();
  } catch (error) {
    throw new BundleError(`${file}: ${String(error?.message ?? error).split("\n")[0]}`);
  }
}

async function open(graph, files, providers) {
  const beside = Object.keys(graph.sha256).filter((name) => name !== graph.file);
  return ort.InferenceSession.create(files.get(graph.file), {
    executionProviders: providers,
    externalData: beside.map((name) => ({ path: name, data: files.get(name) })),
    logSeverityLevel: 3,
  });
}

function openTokenizer(entry, files) {
  const rules = JSON.parse(new TextDecoder().decode(files.get(entry.file)));
  return [entry, new Tokenizer(rules, entry.length, entry.pad_id)];
}

/** (3, H, W) in [-1, 1] -> RGBA bytes; the clamped array rounds as the Python runtime does. */
function toPicture(image, { height, width }) {
  const size = height * width;
  const data = new Uint8ClampedArray(4 * size).fill(255);
  for (let pixel = 0; pixel < size; pixel++) {
    for (let channel = 0; channel < 3; channel++) {
      const value = Math.fround(image[channel * size + pixel] * 127.5);
      data[4 * pixel + channel] = Math.fround(value + 127.5);
    }
  }
  return { data, width, height };
}

/** Seconds by stage. */
class Clock {
  #start = performance.now();
  #seconds;

  constructor(graphs) {
    this.#seconds = Object.fromEntries(graphs.map((graph) => [graph, 0]));
  }

  async run(stage, session, feeds) {
    const start = performance.now();
    const outputs = await session.run(feeds);
    this.#seconds[stage] += (performance.now() - start) / 1000;
    return outputs;
  }

  read() {
    const total = (performance.now() - this.#start) / 1000;
    const graphs = Object.values(this.#seconds).reduce((a, b) => a + b);
    return { ...this.#seconds, other: total - graphs, total };
  }
}
