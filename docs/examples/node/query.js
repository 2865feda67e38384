// Ask a running sockscope for connections.
//
//   node query.js RUNTIME_DIR [FILTER=VALUE]...     node query.js /run/sockscope local_port=443 state=ESTABLISHED
//
// Prints the rows that `sockscope connections --format jsonl` prints with the same filters.

import { ask, json, objects } from "./sockscope.js";

const [runtimeDir, ...filters] = process.argv.slice(2);
const flags = { true: true, false: false };
const where = Object.fromEntries(
  filters.map((one) => {
    const [name, ...rest] = one.split("=");
    const value = rest.join("=");
    return [name, flags[value] ?? value];
  }),
);
try {
  const answer = await ask(runtimeDir, { id: 1, op: "connections", where });
  for (const row of objects(answer.columns, answer.rows)) console.log(json(row));
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
