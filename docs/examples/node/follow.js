// Follow the connections of one network namespace.
//
//   node follow.js RUNTIME_DIR NETNS     NETNS: the inode, as `sockscope namespaces` shows it
//
// Prints a JSON object for each connection that comes, changes or goes: {"what":"opened","row":{...}}. Messages may be
// lost, and the aggregator may be replaced: `prev`, `epoch` and the heartbeat tell, and the state is asked for again.

import { Subscriber } from "zeromq";
import { ask, json, objects, unpack } from "./sockscope.js";

// Columns that a delta leaves out follow from the namespace. `key` is the row's identity within it.
const FIELDS = ["key", "proto", "state", "local_addr", "local_port", "remote_addr", "remote_port", "owners"];
const TIMEOUT_MS = 3000;
const PAUSE_MS = 200;

class Lost extends Error {}

// The namespace's rows by key, again after each change. Throws Lost where what follows cannot be applied.
async function* states(runtimeDir, netns) {
  const topic = `delta.${netns}`;
  const feed = new Subscriber({ linger: 0, receiveTimeout: TIMEOUT_MS });
  try {
    // In this order: once a heartbeat comes, the subscription before it is in force.
    feed.subscribe(topic, "heartbeat");
    feed.connect(`ipc://${runtimeDir}/feed.ipc`);
    let first = await nextMessage(feed);
    while (first.topic !== "heartbeat") first = await nextMessage(feed);
    feed.receiveTimeout = 3000 * first.message.interval_s;
    const answer = await ask(runtimeDir, { op: "connections", where: { netns }, fields: FIELDS });
    const rows = new Map(objects(answer.columns, answer.rows).map((row) => [row.key, row]));
    let known = answer.seq;
    yield rows;
    for (;;) {
      const { topic: came, message } = await nextMessage(feed);
      if (message.epoch !== answer.epoch) throw new Lost("another aggregator");
      if (came === "heartbeat") {
        // It names the last message of each topic that spoke lately.
        if ((message.topics[topic] ?? 0) > known) throw new Lost("the last message");
      } else if (came === topic && message.seq > known) {
        if (message.prev > known) throw new Lost(`messages from ${known} to ${message.prev}`);
        known = message.seq;
        apply(rows, message);
        yield rows;
      }
    }
  } finally {
    feed.close();
  }
}

async function nextMessage(feed) {
  const [topic, body] = await feed.receive();
  return { topic: topic.toString(), message: unpack(body) };
}

function apply(rows, { columns, added, changed, removed }) {
  // Removed first: a key may be used again within one message.
  for (const row of objects(columns, removed)) rows.delete(row.key);
  for (const row of objects(columns, [...added, ...changed]))
    rows.set(row.key, Object.fromEntries(FIELDS.map((name) => [name, row[name]])));
}

// Prints what differs. Returns the rows as texts, to compare the next with.
function show(before, rows) {
  const now = new Map([...rows].map(([key, row]) => [key, json(row)]));
  for (const [key, text] of before) if (!now.has(key)) say("closed", text);
  for (const [key, text] of now)
    if (text !== before.get(key)) say(before.has(key) ? "changed" : "opened", text);
  return now;
}

const say = (what, rowText) => console.log(`{"what":"${what}","row":${rowText}}`);

const [runtimeDir, netns] = process.argv.slice(2);
let before = new Map();
for (;;) {
  try {
    for await (const rows of states(runtimeDir, Number(netns))) before = show(before, rows);
  } catch (error) {
    // EAGAIN: nothing came in time, not even a heartbeat.
    if (!(error instanceof Lost) && error.code !== "EAGAIN") throw error;
    console.error(`asking again: ${error.message}`);
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
  }
}
