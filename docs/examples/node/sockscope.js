// What both examples share: one question to the query socket, msgpack, rows as objects.

import { decode, encode } from "@msgpack/msgpack";
import { Request } from "zeromq";

const TIMEOUT_MS = 3000;

export async function ask(runtimeDir, request) {
  const socket = new Request({ linger: 0, sendTimeout: TIMEOUT_MS, receiveTimeout: TIMEOUT_MS });
  try {
    socket.connect(`ipc://${runtimeDir}/query.ipc`);
    await socket.send(encode(request));
    const [body] = await socket.receive();
    const answer = unpack(body);
    if (!answer.ok) throw new Error(answer.error.message);
    return answer;
  } finally {
    socket.close();
  }
}

// Numbers over 2^53 (socket cookies may become so large) come as BigInt, all others as Number.
export const unpack = (body) => smaller(decode(body, { useBigInt64: true }));

function smaller(value) {
  if (typeof value === "bigint") return Number.isSafeInteger(Number(value)) ? Number(value) : value;
  if (Array.isArray(value)) return value.map(smaller);
  if (value === null || typeof value !== "object" || value instanceof Uint8Array) return value;
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, smaller(item)]));
}

export const objects = (columns, rows) =>
  rows.map((row) => Object.fromEntries(columns.map((name, index) => [name, row[index]])));

// JSON has no BigInt: the few that are left become texts.
export const json = (value) => JSON.stringify(value, (_, item) => (typeof item === "bigint" ? String(item) : item));
