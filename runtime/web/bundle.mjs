// A bundle, in a folder or behind a URL, checked before it is used.

import { findProblem, short, tokenizers } from "./sense.mjs";
import * as strictJson from "./strict_json.mjs";

const READABLE = [2, 3, 4, 5];
/** Version from which on manifest.sha256 lies beside manifest.json. */
const HASHED_SINCE = 3;
const BACKEND = "ort";

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
  const bytes = await read(base, "manifest.json");
  const manifest = parse(bytes, `${base}manifest.json`);
  if (manifest.schema_version >= HASHED_SINCE) {
    const [expected] = new TextDecoder().decode(await read(base, "manifest.sha256")).split(/\s/);
    if ((await sha256(bytes)) !== expected) {
      throw new BundleError(`${base}manifest.json: damaged or changed: its SHA-256 is not that in manifest.sha256`);
    }
  } else {
    console.warn(
      `${base}manifest.json: schema_version ${manifest.schema_version} of an older edgedistill, ` +
        "whose step table is under no hash; export again to have one",
    );
  }
  const files = new Map();
  for (const [key, part] of parts(manifest)) {
    for (const [name, expected] of Object.entries(part.sha256)) {
      const bytes = await read(base, name);
      if ((await sha256(bytes)) !== expected) {
        throw new BundleError(`${base}${name}: damaged or changed: its SHA-256 is not that in manifest.json`);
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
    manifest = strictJson.parse(bytes);
  } catch (error) {
    throw new BundleError(`${path}: not JSON: ${error.message}`);
  }
  const problem = findVersionProblem(manifest) ?? findProblem(manifest);
  if (problem) throw new BundleError(`${path}: ${problem}`);
  return manifest;
}

function findVersionProblem(manifest) {
  const version = manifest?.schema_version;
  if (!READABLE.includes(version)) {
    const known = READABLE.join(", ");
    return `schema_version: ${short(version)} is unknown; this runtime reads ${known}`;
  }
  if (manifest.backend !== BACKEND) {
    return `backend: unknown ${short(manifest.backend)}; this runtime runs ${BACKEND}`;
  }
}

function parts(manifest) {
  return [
    ...Object.entries(manifest.graphs).map(([name, graph]) => [`graphs.${name}`, graph]),
    ...tokenizers(manifest).map((entry) => [`tokenizer (${entry.input ?? "input_ids"})`, entry]),
  ];
}
