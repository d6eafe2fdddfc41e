// JSON as edgedistill_runtime/strict_json.py reads it: not too large or too deep, finite, each key once.

import { short } from "./sense.mjs";

const MAX_BYTES = 16 * 2 ** 20;
const MAX_DEPTH = 64;
/** Of an integer; none of any format is larger. */
const MAX_INTEGER = 2 ** 64;

/** Strings, brackets, colons and commas, and whatever stands between them: numbers and words. */
const TOKEN = /"(?:[^"\\]|\\.)*"|[{}[\]:,]|[^\s{}[\]:,"]+/g;

/**
 * @param {Uint8Array} bytes UTF-8, with or without a byte order mark
 * @returns {any} what they say
 * @throws {Error} in one line, if they are no such JSON
 */
export function parse(bytes) {
  if (bytes.length > MAX_BYTES) {
    throw new Error(`has ${bytes.length} bytes; at most ${MAX_BYTES} expected`);
  }
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new Error("not UTF-8");
  }
  const found = JSON.parse(text); // which takes the last of equal keys, and 1e999 for infinity
  check(text);
  return found;
}

/** Throws what `JSON.parse` lets pass in a text that it has parsed. */
function check(text) {
  const open = []; // of every object that is open its keys, of every array null
  let before;
  for (const [token] of text.matchAll(TOKEN)) {
    if (token === "{" || token === "[") open.push(token === "{" ? new Set() : null);
    else if (token === "}" || token === "]") open.pop();
    else if (token === ":") addKey(open.at(-1), JSON.parse(before));
    else if (/^[-\d]/.test(token)) checkNumber(token);
    if (open.length > MAX_DEPTH) throw new Error(`nested deeper than ${MAX_DEPTH} levels`);
    before = token;
  }
}

function addKey(keys, key) {
  if (keys.has(key)) throw new Error(`key ${short(key)} twice`);
  keys.add(key);
}

function checkNumber(token) {
  const number = Math.abs(Number(token));
  if (!Number.isFinite(number)) throw new Error(`${token.slice(0, 60)} is no finite number`);
  if (/^-?\d+$/.test(token) && number >= MAX_INTEGER) {
    throw new Error(`${token.slice(0, 60)} is no integer below 2^64`);
  }
}
