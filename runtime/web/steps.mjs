// The step table's sampler, rounded as numpy rounds float32: pictures equal the Python runtime's.

const { fround } = Math;

/** Noise tensors one sample consumes: x_T, then one for each row with c != 0. */
export function draws(steps) {
  return 1 + steps.rows.filter((row) => row.c !== 0).length;
}

/**
 * Run f = net(scale * x, t); x <- a x + b f + c noise for each row.
 *
 * @param {(x: Float32Array, t: number) => Promise<Float32Array>} net
 * @param {{init_scale: number, rows: object[]}} steps the manifest's
 * @param {Float32Array} noise `draws(steps)` tensors, one after another
 * @returns {Promise<Float32Array>} x after the last row
 */
export async function sample(net, steps, noise) {
  const size = noise.length / draws(steps);
  let at = 0;
  const next = () => noise.subarray(at, (at += size));
  const x = scaled(next(), steps.init_scale);
  for (const row of steps.rows) {
    const f = await net(row.scale === 1 ? x : scaled(x, row.scale), row.t);
    const [a, b, c] = [row.a, row.b, row.c].map(fround);
    const fresh = row.c === 0 ? null : next();
    for (let i = 0; i < size; i++) {
      x[i] = fround(x[i] * a) + fround(f[i] * b);
      if (fresh) x[i] += fround(fresh[i] * c);
    }
  }
  return x;
}

function scaled(x, factor) {
  const k = fround(factor);
  return x.map((value) => value * k);
}
