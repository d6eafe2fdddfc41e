// The noise of a picture, from integers alone: the same as edgedistill_runtime/noise.py, whose
// documentation has the formulas. Philox4x64-10 (Salmon et al. 2011) with key (seed, index), then
// Box-Muller in float64, rounded to float32.
//
// 64-bit words are pairs of 32-bit ones, the low one first: BigInt is twenty times slower.

const MULTIPLIERS = [0xca5a826395121157n, 0xd2e7470ee14c6c93n].map(halves);
const WEYL = [0x9e3779b97f4a7c15n, 0xbb67ae8584caa73bn].map(halves);
const ROUNDS = 10;

/** Fill `words` with the four 64-bit words of the block at counter (counter, 0, 0, 0). */
function philox(words, key, counter) {
  const [k0, k1] = key.map((half) => half.slice());
  words.fill(0);
  words[0] = counter;
  for (let round = 0; round < ROUNDS; round++) {
    const [c0, c1, c2, c3, c4, c5, c6, c7] = words;
    multiply(words, 0, MULTIPLIERS[0], c4, c5);
    multiply(words, 4, MULTIPLIERS[1], c0, c1);
    // Each product's high half goes first, mixed with the odd word and the key.
    const [l0, l1, h0, h1, l2, l3, h2, h3] = words;
    words.set([h0 ^ c2 ^ k0[0], h1 ^ c3 ^ k0[1], l0, l1, h2 ^ c6 ^ k1[0], h3 ^ c7 ^ k1[1], l2, l3]);
    add(k0, WEYL[0]);
    add(k1, WEYL[1]);
  }
}

/** words[at .. at + 3] = the 128 bits of m * (low, high). */
function multiply(words, at, [m0, m1], low, high) {
  const middle = highHalf(m0, low) + lowHalf(m0, high) + lowHalf(m1, low);
  const upper = highHalf(m0, high) + highHalf(m1, low) + lowHalf(m1, high) + carry(middle);
  words[at] = lowHalf(m0, low);
  words[at + 1] = middle;
  words[at + 2] = upper;
  words[at + 3] = highHalf(m1, high) + carry(upper);
}

const lowHalf = (a, b) => Math.imul(a, b) >>> 0;
const carry = (sum) => Math.floor(sum / 2 ** 32);

/** The upper 32 bits of a * b; numbers hold the 48 bits of each part exactly. */
function highHalf(a, b) {
  const lower = a * (b & 0xffff);
  const upper = a * (b >>> 16);
  return Math.floor((upper + Math.floor(lower / 2 ** 16)) / 2 ** 16);
}

function add(k, w) {
  const low = k[0] + w[0];
  k[1] = k[1] + w[1] + carry(low);
  k[0] = low;
}

function halves(word) {
  return Uint32Array.of(Number(word & 0xffffffffn), Number(word >> 32n));
}

const uniform = (low, high) => (high * 2 ** 21 + (low >>> 11) + 0.5) * 2 ** -53;

function check(name, value) {
  const whole = typeof value === "bigint" || Number.isSafeInteger(value);
  if (!whole || value < 0 || value >= 2n ** 64n) {
    throw new RangeError(`${name} must be a whole number in [0, 2**64), not ${value}`);
  }
  return halves(BigInt(value));
}

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
  const key = [check("seed", seed), check("index", index)];
  const words = new Uint32Array(8);
  const z = new Float32Array(Math.ceil(count / 4) * 4);
  for (let at = 0; at < count; at += 4) {
    philox(words, key, at / 4 + 1);
    for (const pair of [0, 2]) {
      const radius = Math.sqrt(-2 * Math.log(uniform(words[2 * pair], words[2 * pair + 1])));
      const angle = 2 * Math.PI * uniform(words[2 * pair + 2], words[2 * pair + 3]);
      z[at + pair] = radius * Math.cos(angle);
      z[at + pair + 1] = radius * Math.sin(angle);
    }
  }
  return z.subarray(0, count);
}
