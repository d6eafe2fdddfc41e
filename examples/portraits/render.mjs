// Reads DiceBear's options, one JSON object a line, and writes 64x64 pictures as raw RGB bytes.
import { createInterface } from 'node:readline';
import { once } from 'node:events';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

// The packages are in the folder that is given, not beside this file.
const from = createRequire(process.argv[2] + '/package.json');
const load = (name) => import(pathToFileURL(from.resolve(name)).href);
const { createAvatar } = await load('@dicebear/core');
const openPeeps = await load('@dicebear/open-peeps');
const { Resvg } = from('@resvg/resvg-js');

const SIZE = 64;
const GROUND = '#f4f1ea';

for await (const line of createInterface({ input: process.stdin })) {
  const svg = createAvatar(openPeeps, { seed: '', ...JSON.parse(line) }).toString();
  const fit = { mode: 'width', value: SIZE };
  const fonts = { loadSystemFonts: false };
  const drawn = new Resvg(svg, { fitTo: fit, background: GROUND, font: fonts }).render().pixels;
  const rgb = Buffer.alloc(SIZE * SIZE * 3);
  for (let i = 0, j = 0; i < drawn.length; i += 4, j += 3) drawn.copy(rgb, j, i, i + 3);
  if (!process.stdout.write(rgb)) await once(process.stdout, 'drain');
}
