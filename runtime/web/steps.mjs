// The step table's sampler, rounded as numpy rounds float32: pictures equal the Python runtime's.

const { fround } = Math;

/** Largest number of earlier rows that a row uses. */
const MAX_PAST = 8;

/** Noise tensors one sample consumes: x_T, then one for each row with c != 0. */
export function draws(steps) {
  return 1 + steps.rows.filter((row) => row.c !== 0).length;
}

/** Shape of each of those tensors for one sample of `shape`, which may grow from row to row. */
export function shapes(steps, shape) {
  const [first, ...rest] = steps.rows.map(sizeOf);
  const landings = [...rest, 1].filter((_, i) => steps.rows[i].c !== 0);
  return [first, ...landings].map((size) => shapeAt(shape, size));
}

/** Number of earlier rows whose x and f are kept. */
const reach = (steps) => Math.max(...steps.rows.map((row) => pastOf(row).length));

/** What does not fit between the rows for samples of `shape`, in words; undefined if all does. */
export function findRowsProblem(steps, shape) {
  const sizes = steps.rows.map(sizeOf);
  for (const [i, row] of steps.rows.entries()) {
    const past = pastOf(row);
    if (past.length > Math.min(i, MAX_PAST) || past.some((pair) => pair.length !== 2)) {
      return `past of row ${i}: pairs of at most ${MAX_PAST} rows before it expected`;
    }
    if (sizes.slice(i - past.length, i).some((size) => size !== sizes[i])) {
      return `past of row ${i}: a row before it has another size`;
    }
  }
  if (sizes.every((size) => size === 1)) return undefined;
  if (sizes.some((size, i) => !(size > 0) || size > (sizes[i + 1] ?? 1)) || sizes.at(-1) !== 1) {
    return "sizes must be above 0, not decrease, and end at 1";
  }
  const sides = sizes.flatMap((size) => shape.slice(-2).map((side) => side * size));
  if (shape.length < 3 || sides.some((side) => Math.abs(side - Math.round(side)) > 1e-6 * side)) {
    return `sizes do not divide latent.shape ${JSON.stringify(shape)} into whole numbers`;
  }
  if (steps.rows.some((row, i) => row.c === 0 && sizes[i] !== (sizes[i + 1] ?? 1))) {
    return "a row that grows must draw noise";
  }
}

/**
 * Run f = net(scale * x, t); x <- a x + b f + past, grown to the next row's size, + c noise for
 * each row. Past is the sum of k x + m f of rows before it, the nearest first.
 *
 * @param {(x: Float32Array, t: number, shape: number[]) => Promise<Float32Array>} net
 * @param {{init_scale: number, rows: object[]}} steps the manifest's
 * @param {Float32Array} noise tensors of `shapes(steps, shape)`, one after another
 * @param {number[]} shape of the sample
 * @returns {Promise<Float32Array>} x after the last row
 */
export async function sample(net, steps, noise, shape) {
  let at = 0;
  const next = (size) => noise.subarray(at, (at += size));
  let here = shapeAt(shape, sizeOf(steps.rows[0]));
  let x = scaled(next(count(here)), steps.init_scale);
  let past = [];
  for (const [i, row] of steps.rows.entries()) {
    const f = await net(row.scale === 1 ? x : scaled(x, row.scale), row.t, here);
    const [a, b] = [row.a, row.b].map(fround);
    const start = reach(steps) ? x.slice() : x;
    for (let k = 0; k < x.length; k++) x[k] = fround(x[k] * a) + fround(f[k] * b);
    for (const [j, pair] of pastOf(row).entries()) {
      for (const [side, earlier] of past[j].entries()) add(x, earlier, pair[side]);
    }
    past = [[start, f], ...past].slice(0, reach(steps));
    const there = i + 1 < steps.rows.length ? shapeAt(shape, sizeOf(steps.rows[i + 1])) : shape;
    if (count(there) !== count(here)) x = resized(x, here, there);
    here = there;
    if (row.c === 0) continue;
    add(x, next(x.length), row.c);
  }
  return x;
}

/** Make x larger, bicubic as torch's: in float64, and rounded once. */
export function resized(x, from, to) {
  const [[h, w], [height, width]] = [from.slice(-2), to.slice(-2)];
  const [down, across] = [cubic(h, height), cubic(w, width)];
  const planes = x.length / (h * w);
  const grown = new Float32Array(planes * height * width);
  const column = new Float64Array(w);
  for (let plane = 0; plane < planes; plane++) {
    for (let row = 0; row < height; row++) {
      column.fill(0);
      for (const [i, weight] of down[row]) {
        for (let j = 0; j < w; j++) column[j] += weight * x[(plane * h + i) * w + j];
      }
      for (let k = 0; k < width; k++) {
        let sum = 0;
        for (const [j, weight] of across[k]) sum += weight * column[j];
        grown[(plane * height + row) * width + k] = sum;
      }
    }
  }
  return grown;
}

/** For each of `larger` places the [index, weight] of four among `size`: A = -0.75, ends held. */
function cubic(size, larger) {
  return Array.from({ length: larger }, (_, row) => {
    const place = (row + 0.5) * (size / larger) - 0.5;
    return [-1, 0, 1, 2].map((offset) => {
      const tap = Math.floor(place) + offset;
      const x = Math.abs(place - tap);
      const near = (1.25 * x - 2.25) * x * x + 1;
      const far = ((-0.75 * x + 3.75) * x - 6) * x + 3;
      return [Math.min(Math.max(tap, 0), size - 1), x <= 1 ? near : far];
    });
  });
}

/** Add a multiple of y to x, each product and sum rounded. */
function add(x, y, factor) {
  const c = fround(factor);
  for (let k = 0; k < x.length; k++) x[k] += fround(y[k] * c);
}

function scaled(x, factor) {
  const k = fround(factor);
  return x.map((value) => value * k);
}

const sizeOf = (row) => row.size ?? 1;
const pastOf = ({ past = [] }) => past;
const count = (shape) => shape.reduce((a, b) => a * b, 1);

/** `shape` with height and width at the fraction `size`. */
function shapeAt(shape, size) {
  if (size === 1) return shape;
  return [...shape.slice(0, -2), ...shape.slice(-2).map((side) => Math.round(side * size))];
}
