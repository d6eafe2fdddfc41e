// Measures a bundle in node as `python -m edgedistill_runtime.bench` does:
//   node bench.mjs BUNDLE [--runs N] [--threads N] [--json FILE]

import { readFileSync, writeFileSync } from "node:fs";
import { parseArgs } from "node:util";

import { BundleError, Pipeline } from "./edgedistill.mjs";

const PROMPTS = ["red apple", "a cat with heart eyes", "rocket", "birthday cake"];
const WARM_UP = 3;
const PERCENTILES = { p50_s: 0.5, p90_s: 0.9, p99_s: 0.99 };

async function measure(bundle, runs, threads) {
  const start = performance.now();
  const pipe = await Pipeline.load(bundle, { threads });
  const loadSeconds = (performance.now() - start) / 1000;
  const draw = async (i) => {
    const prompt = pipe.takesPrompt ? PROMPTS[i % PROMPTS.length] : null;
    return (await pipe.draw(prompt, { seed: i })).timings;
  };
  const figures = await summary(draw, runs);
  const { target, precision } = pipe.manifest;
  return { load_s: loadSeconds, ...figures, peak_rss_mb: peakRss(), target, precision };
}

async function summary(draw, runs) {
  const { total: first } = await draw(0);
  for (let i = 0; i < WARM_UP; i++) await draw(i);
  const timings = [];
  for (let i = 0; i < runs; i++) timings.push(await draw(i));
  const { total, ...stages } = Object.fromEntries(
    Object.keys(timings[0]).map((stage) => [stage, percentiles(timings.map((t) => t[stage]))]),
  );
  return { first_s: first, ...total, stages };
}

/** With linear interpolation between the nearest, as numpy's. */
function percentiles(seconds) {
  const sorted = [...seconds].sort((a, b) => a - b);
  const at = (share) => {
    const place = share * (sorted.length - 1);
    const [low, high] = [sorted[Math.floor(place)], sorted[Math.ceil(place)]];
    return low + (high - low) * (place % 1);
  };
  return Object.fromEntries(Object.entries(PERCENTILES).map(([key, share]) => [key, at(share)]));
}

/** Peak resident memory of this process in MiB. */
function peakRss() {
  if (process.platform !== "linux") return process.resourceUsage().maxRSS / 1024;
  // Not getrusage: there a child's maximum begins at its parent's.
  const [, kilobytes] = /^VmHWM:\s+(\d+)/m.exec(readFileSync("/proc/self/status", "utf8"));
  return kilobytes / 1024;
}

function readArguments() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      runs: { type: "string", default: "50" },
      threads: { type: "string" },
      json: { type: "string" },
    },
  });
  if (positionals.length !== 1) throw new TypeError("name one bundle folder");
  const [runs, threads] = [values.runs, values.threads ?? "1"].map((text) => {
    if (!/^[1-9]\d*$/.test(text)) throw new TypeError(`${text} is no number above 0`);
    return Number(text);
  });
  return { bundle: positionals[0], runs, threads, file: values.json };
}

function refuse(error) {
  process.stderr.write(`${error.message}\n`);
  process.exit(2);
}

let wanted;
try {
  wanted = readArguments();
} catch (error) {
  refuse(error);
}
const figures = await measure(wanted.bundle, wanted.runs, wanted.threads).catch((error) => {
  if (!(error instanceof BundleError)) throw error;
  refuse(error);
});
const text = `${JSON.stringify(figures, null, 2)}\n`;
if (wanted.file) writeFileSync(wanted.file, text);
else process.stdout.write(text);
