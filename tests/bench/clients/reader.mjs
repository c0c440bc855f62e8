// Reads one secret on and on, in the way that is its argument: how many reads a second, and how long one takes.
//
// A line with seconds comes in, a line with reads a second and the median in microseconds goes out.

import { createInterface } from "node:readline";

const [, , way, name] = process.argv;
// So many reads before the clock is looked at.
const BURST = 16;

async function reader() {
  const { Client } = await import(process.env.KEYHATCH_LIBRARY);
  const client = new Client();
  const cache = way === "node-cached";
  return async () => (await client.get(name, { cache })).reveal();
}

async function rate(read, milliseconds) {
  const begin = performance.now();
  let count = 0;
  let now = begin;
  while (now < begin + milliseconds) {
    for (let done = 0; done < BURST; done += 1) await read();
    count += BURST;
    now = performance.now();
  }
  return (1000 * count) / (now - begin);
}

async function median(read, milliseconds) {
  const times = [];
  const end = performance.now() + milliseconds;
  for (let begin = performance.now(); begin < end; begin = performance.now()) {
    await read();
    times.push(performance.now() - begin);
  }
  return 1000 * times.sort((one, other) => one - other)[times.length >> 1];
}

const read = await reader();
for await (const line of createInterface({ input: process.stdin })) {
  const half = Number(line) * 500;
  console.log(await rate(read, half), await median(read, half));
}
process.exit(0);
