// Node's fetch: URL ASKS.  ASKS is a JSON list of [method, path, body].  Prints a line of JSON for each answer.
import { createHash } from "node:crypto";

const [url, asks] = process.argv.slice(2);
for (const [method, path, body] of JSON.parse(asks)) {
  const answer = await fetch(url + path, { method, body: body || undefined, redirect: "manual" });
  const content = Buffer.from(await answer.arrayBuffer());
  const digest = createHash("sha256").update(content).digest("hex");
  console.log(JSON.stringify([answer.status, answer.statusText, [...answer.headers], content.length, digest]));
}
