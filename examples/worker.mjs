// A whole worker for Node.js 18 and later, with nothing but its standard library: see docs/protocol.md.
//
// In the configuration:  [workers.pages]
//                        command = ["node", "examples/worker.mjs"]
//
// What is the protocol's is above; what a scraper of your own replaces, `keys` and `scrape`, is at the end.

import net from "node:net";
import { performance } from "node:perf_hooks";
import { setTimeout as sleep } from "node:timers/promises";

const { SCRAPER_WORKER_SOCKET: SOCKET, SCRAPER_WORKER_NAME: NAME, SCRAPER_WORKER_TOKEN: TOKEN } = process.env;
const ALONE = 300_000; // milliseconds without a supervisor, after which a worker ends itself
const DROPPED = new Error("the item is not ours any more");
const STOPPED = new Error("the worker was told to stop");

const calls = new Map(); // id → what is not answered yet, over any number of connections
const held = new Map(); // claim → {key, abort}: what is in our hands
let socket = null; // the connection that said hello; null while there is none
let welcome = null; // what the latest hello was answered
let lastId = 0;
let over = false;

function log(...words) {
  console.log(NAME, ...words); // what a worker prints is kept for it: one line is one record
}

function exit(code) {
  over = true;
  process.exit(code);
}

// ---- calls

function send(message) {
  socket?.write(JSON.stringify({ jsonrpc: "2.0", ...message }) + "\n");
}

// Ask, and wait for the answer, however often the connection breaks meanwhile. All calls may be repeated without harm.
async function call(method, params = {}) {
  for (;;) {
    const id = ++lastId;
    const answer = new Promise((resolve, reject) => calls.set(id, { method, params, resolve, reject }));
    send({ id, method, params });
    try {
      return await answer;
    } catch (error) {
      if (error.code !== -32001) throw error;
      await sleep(1000 * error.data.retry_after); // its disk refuses: the same call again, later
    }
  }
}

function received(message, peer) {
  if (message.method !== undefined) return asked(message);
  if (message.id === "hello") return greeted(message, peer);
  const open = calls.get(message.id);
  if (open === undefined) return log("the supervisor complains:", message.error?.message);
  calls.delete(message.id);
  if (message.error) open.reject(Object.assign(new Error(message.error.message), message.error));
  else open.resolve(message.result);
}

// What the supervisor wants of us. What it notifies of has no id, and is not answered.
function asked({ id, method, params }) {
  if (method === "item.cancel") held.get(params.claim)?.abort.abort(new Error(`cancelled: ${params.reason}`));
  else if (method === "drain") log(`draining: ${params.reason}`); // item.next says so too, and that is enough
  else if (method === "browser.recycle") send({ id, result: {} }); // we have no browser to replace
  else if (id !== undefined) send({ id, error: { code: -32601, message: `there is no method ${method}` } });
}

// ---- the connection

function connect(pause, since) {
  const peer = net.connect(SOCKET);
  let rest = Buffer.alloc(0); // of a line that is not whole yet: bytes, since a character may be cut in two
  peer.on("connect", () => {
    const params = { protocol: 1, worker: NAME, token: TOKEN, client: "node-example/1" };
    if (welcome) params.in_flight = [...held].map(([claim, { key }]) => ({ key, claim }));
    peer.write(JSON.stringify({ jsonrpc: "2.0", id: "hello", method: "hello", params }) + "\n");
  });
  peer.on("data", (chunk) => {
    rest = Buffer.concat([rest, chunk]);
    for (let end; (end = rest.indexOf("\n")) >= 0; rest = rest.subarray(end + 1)) {
      if (end > 0) received(JSON.parse(rest.subarray(0, end).toString()), peer);
    }
  });
  peer.on("error", () => {}); // "close" comes after it
  peer.on("close", () => {
    if (over) return;
    if (socket === peer) {
      socket = null;
      [pause, since] = [50, Date.now()];
    }
    if (Date.now() - since > ALONE) {
      log("there is no supervisor any more");
      exit(1);
    }
    setTimeout(connect, pause, Math.min(2 * pause, 2000), since);
  });
}

function greeted({ result, error }, peer) {
  if (error?.code === -32001) return setTimeout(() => peer.destroy(), 1000 * error.data.retry_after);
  if (error) {
    log("refused:", error.message); // the token is an older one's, say: nobody waits for us
    exit(1);
  }
  const first = welcome === null;
  [welcome, socket] = [result, peer];
  const ours = new Set(result.in_flight.map(({ claim }) => claim));
  for (const [claim, { abort }] of held) if (!ours.has(claim)) abort.abort(DROPPED);
  beat(0);
  for (const [id, { method, params }] of calls) send({ id, method, params });
  if (first) work().catch((failure) => (log(failure.stack), exit(1)));
}

function beat(lag) {
  send({ method: "heartbeat", params: { lag_ms: lag, pages: {} } });
}

async function beats() {
  for (;;) {
    const [interval, begin] = [1000 * welcome.heartbeat_interval, performance.now()];
    await sleep(interval, undefined, { ref: false });
    beat(Math.max(0, performance.now() - begin - interval)); // how late a timer is tells how blocked we are
  }
}

// ---- items

async function pull() {
  for (;;) {
    const item = await call("item.next"); // waits until there is something for us to do
    if (item.end) return item.end;
    const abort = new AbortController();
    held.set(item.claim, { key: item.key, abort });
    await conclude(item, abort.signal);
    held.delete(item.claim);
  }
}

async function conclude(item, signal) {
  const [mine, begin] = [{ key: item.key, claim: item.claim }, performance.now()];
  const seconds = () => (performance.now() - begin) / 1000;
  try {
    let outcome;
    try {
      outcome = await scrape(item, signal);
      signal.throwIfAborted();
    } catch (error) {
      if (signal.reason === DROPPED) return; // it went back: nobody wants to hear of it
      if (signal.reason === STOPPED) await call("item.release", { ...mine, reason: STOPPED.message });
      else await call("item.failed", { ...mine, seconds: seconds(), failure: failureOf(error) });
      return;
    }
    const { result, target, offers } = outcome;
    await call("item.done", { ...mine, seconds: seconds(), result, target, offers });
    await progressed();
  } catch (error) {
    if (error.code !== -32007) throw error;
    log(`${item.key} is not ours any more`); // somebody else does it: no reason to end
  }
}

function failureOf(error) {
  return {
    kind: error.kind ?? "transient",
    category: error.category ?? "application",
    signature: error.signature ?? error.name, // failures of one signature are counted together
    message: String(error.message),
    traceback: error.stack,
  };
}

// ---- a state of our own, over the ends of the process

let state = null;
let sinceSave = 0;

async function progressed() {
  state.done += 1;
  if (++sinceSave < 5) return;
  sinceSave = 0;
  await call("checkpoint.save", { schema: "example/1", state });
}

// ---- from hello to goodbye

async function work() {
  beats();
  state = welcome.checkpoint?.state ?? { done: 0 };
  if (!welcome.offered) {
    const all = keys();
    for (let from = 0; from < all.length; from += 20) {
      await call("items.offer", { items: all.slice(from, from + 20), more: from + 20 < all.length });
    }
  }
  const ends = await Promise.all(Array.from({ length: Number(process.env.CONCURRENCY ?? 2) }, pull));
  await goodbye(ends.includes("draining") ? "drained" : "complete");
}

async function goodbye(reason) {
  await call("checkpoint.save", { schema: "example/1", state });
  await call("goodbye", { reason }); // answered last; then an exit with 0 is a good end
  exit(0);
}

process.on("SIGTERM", async () => {
  if (welcome === null) exit(0);
  for (const { abort } of held.values()) abort.abort(STOPPED); // each is given back, at no cost
  await goodbye("drained");
});

connect(50, Date.now());

// ---- what a scraper of your own replaces

function keys() {
  return Array.from({ length: Number(process.env.ITEMS ?? 40) }, (_, number) => `page-${number}`);
}

// One item: `item.key`, `item.target`, `item.data`, `item.attempt`, `item.last`. It is aborted by `signal`.
async function scrape(item, signal) {
  send({ method: "item.progress", params: { key: item.key, claim: item.claim, message: "reading", done: 0, total: 1 } });
  await sleep(1000 * Number(process.env.SECONDS ?? 0.05), undefined, { signal });
  if (item.key === "page-3" && item.attempt === 1) {
    throw Object.assign(new Error("503 Service Unavailable"), { category: "external", signature: "http-503" });
  }
  const offers = item.key === "page-0" ? ["page-0/more", { key: "page-0/late", priority: -1 }] : [];
  return { result: { length: item.key.length }, target: "example.com", offers };
}
