// A bundle, in a folder or behind a URL, checked before it is used.

import { findSizeProblem } from "./steps.mjs";

const SCHEMA_VERSION = 2;
const BACKEND = "ort";
const GRAPHS = ["text_encoder", "denoiser", "decoder"];
const FUSED = "pipeline";
const NEEDED = ["steps", "latent", "graphs"];

/** A bundle that cannot be trusted; one line naming the file and the key. */
export class BundleError extends Error {
  name = "BundleError";
}

/**
 * Read a bundle's manifest and every file it names.
 *
 * @param {string | URL} place in node a path or URL, in a page a URL, relative or not
 * @returns {Promise<{manifest: object, files: Map<string, Uint8Array>}>}
 * @throws {BundleError} if it is not what its manifest says
 */
export async function readBundle(place) {
  const base = await locate(place);
  const manifest = parse(await read(base, "manifest.json"), `${base}manifest.json`);
  const files = new Map();
  for (const [key, part] of parts(manifest)) {
    for (const [name, expected] of Object.entries(part.sha256)) {
      const bytes = await read(base, name);
      if ((await sha256(bytes)) !== expected) {
        throw new BundleError(`${base}${name}: does not match ${key}.sha256`);
      }
      files.set(name, bytes);
    }
  }
  return { manifest, files };
}

/** The folder's URL, with a slash at the end. */
async function locate(place) {
  let url;
  if (place instanceof URL || /^[a-z][a-z0-9+.-]+:/i.test(place)) {
    url = new URL(place);
  } else if (globalThis.location) {
    url = new URL(place, globalThis.document?.baseURI ?? globalThis.location.href);
  } else {
    url = (await import("node:url")).pathToFileURL(place);
  }
  if (!url.pathname.endsWith("/")) url.pathname += "/";
  return url;
}

async function read(base, name) {
  const url = new URL(name.split("/").map(encodeURIComponent).join("/"), base);
  try {
    if (url.protocol === "file:") {
      return await (await import("node:fs/promises")).readFile(url);
    }
    const response = await fetch(url);
    if (!response.ok) throw new Error(`status ${response.status}`);
    return new Uint8Array(await response.arrayBuffer());
  } catch (error) {
    throw new BundleError(`${url}: cannot be read: ${error.message}`);
  }
}

async function sha256(bytes) {
  if (!globalThis.crypto?.subtle) {
    throw new BundleError("files can be checked in a secure context only: https or localhost");
  }
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function parse(bytes, path) {
  let manifest;
  try {
    manifest = JSON.parse(new TextDecoder().decode(bytes));
  } catch (error) {
    throw new BundleError(`${path}: not JSON: ${error.message}`);
  }
  const problem = findProblem(manifest);
  if (problem) throw new BundleError(`${path}: ${problem}`);
  return manifest;
}

/** What is wrong with a manifest, in words; undefined if nothing is. */
function findProblem(manifest) {
  const version = manifest?.schema_version;
  if (version !== SCHEMA_VERSION) {
    return `schema_version: ${version} is unknown; this runtime reads ${SCHEMA_VERSION}`;
  }
  if (manifest.backend !== BACKEND) {
    return `backend: unknown ${manifest.backend}; this runtime runs ${BACKEND}`;
  }
  const missing = NEEDED.find((key) => typeof manifest[key] !== "object");
  if (missing) return `${missing}: missing`;
  const sizes = findSizeProblem(manifest.steps, manifest.latent.shape);
  if (sizes) return `steps.rows: ${sizes}`;
  const problem = findGraphProblem(manifest);
  if (problem) return problem;
  return parts(manifest)
    .map(([key, part]) => findFileProblem(key, part))
    .find(Boolean);
}

/** The networks that a picture needs, or the one that is all of them. */
function findGraphProblem({ graphs, tokenizer, image }) {
  const names = Object.keys(graphs);
  const known = [...GRAPHS, FUSED];
  const stranger = names.find((name) => !known.includes(name));
  if (stranger) return `graphs: unknown ${stranger}; choose from ${known.join(", ")}`;
  const fused = graphs[FUSED];
  if (fused && names.length > 1) return `graphs: ${FUSED} stands alone, found ${names.join(", ")}`;
  if (!fused && !graphs.denoiser) return "graphs.denoiser: missing";
  const has = (ports, name) => ports.some((port) => port.name === name);
  const tokens = (ports) => ports.some((port) => port.name !== "noise");
  const text = fused ? tokens(fused.inputs) : Boolean(graphs.text_encoder);
  const picture = fused ? has(fused.outputs, "image") : Boolean(graphs.decoder);
  if (text !== Boolean(tokenizer)) {
    const where = fused ? `an input of tokens of graphs.${FUSED}` : "graphs.text_encoder";
    return `tokenizer: must be there exactly when ${where} is`;
  }
  if (picture !== Boolean(image)) {
    const where = fused ? `the output image of graphs.${FUSED}` : "graphs.decoder";
    return `image: must be there exactly when ${where} is`;
  }
}

function findFileProblem(key, part) {
  const outside = [part.file, ...Object.keys(part.sha256)].find(
    (name) => name.startsWith("/") || name.includes("\\") || name.split("/").includes(".."),
  );
  if (outside) return `${key}.file: ${outside} leaves the bundle`;
  return part.file in part.sha256 ? undefined : `${key}.sha256: no entry for ${part.file}`;
}

/** All tokenizers, in the text encoder's order. */
export function tokenizers({ tokenizer, more_tokenizers: more = [] }) {
  return tokenizer ? [tokenizer, ...more] : [];
}

function parts(manifest) {
  return [
    ...Object.entries(manifest.graphs).map(([name, graph]) => [`graphs.${name}`, graph]),
    ...tokenizers(manifest).map((entry) => [`tokenizer (${entry.input ?? "input_ids"})`, entry]),
  ];
}
