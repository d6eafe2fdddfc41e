// The noise of a picture, from integers alone: the same as edgedistill_runtime/noise.py, whose
// documentation has the formulas. Philox4x64-10 (Salmon et al. 2011) with key (seed, index), then
// Box-Muller in float64, rounded to float32.

const MASK = (1n << 64n) - 1n;
const ROUNDS = 10;

/** Write the four 64-bit words of the block at counter (counter, 0, 0, 0). */
function philox(words, seed, index, counter) {
  let k0 = seed;
  let k1 = index;
  let c0 = counter;
  let c1 = 0n;
  let c2 = 0n;
  let c3 = 0n;
  for (let round = 0; round < ROUNDS; round++) {
    const p0 = 0xd2e7470ee14c6c93n * c0;
    const p1 = 0xca5a826395121157n * c2;
    c0 = (p1 >> 64n) ^ c1 ^ k0;
    c1 = p1 & MASK;
    c2 = (p0 >> 64n) ^ c3 ^ k1;
    c3 = p0 & MASK;
    k0 = (k0 + 0x9e3779b97f4a7c15n) & MASK;
    k1 = (k1 + 0xbb67ae8584caa73bn) & MASK;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

const uniform = (word) => (Number(word >> 11n) + 0.5) * 2 ** -53;

/**
 * The first `count` normals of picture `index` of `seed`.
 *
 * @param {number | bigint} seed whole, in [0, 2^64); from 2^53 on a BigInt
 * @param {number | bigint} index likewise
 * @param {number} count
 * @returns {Float32Array}
 * @throws {RangeError} for a seed or index out of range
 */
export function normals(seed, index, count) {
  const k0 = check("seed", seed);
  const k1 = check("index", index);
  const words = new BigUint64Array(4);
  const z = new Float32Array(Math.ceil(count / 4) * 4);
  for (let at = 0, counter = 1n; at < count; at += 4, counter++) {
    philox(words, k0, k1, counter);
    for (let pair = 0; pair < 4; pair += 2) {
      const radius = Math.sqrt(-2 * Math.log(uniform(words[pair])));
      const angle = 2 * Math.PI * uniform(words[pair + 1]);
      z[at + pair] = radius * Math.cos(angle);
      z[at + pair + 1] = radius * Math.sin(angle);
    }
  }
  return z.subarray(0, count);
}

function check(name, value) {
  const whole = typeof value === "bigint" || Number.isSafeInteger(value);
  if (!whole || value < 0 || value > MASK) {
    throw new RangeError(`${name} must be a whole number in [0, 2**64), not ${value}`);
  }
  return BigInt(value);
}
