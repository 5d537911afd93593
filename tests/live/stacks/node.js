// Node's tls.connect; the contract stands in subject.h.

"use strict";
const fs = require("node:fs");
const tls = require("node:tls");

const [host, port, outFile, inFile, plan] = process.argv.slice(2);
const outgoing = fs.openSync(outFile, "r");
const incoming = fs.openSync(inFile, "w");
const steps = plan.split(",").flatMap((item) => {
  const [, repeat, out, back] = /^(?:(\d+)x)?(\d+):(\d+)$/.exec(item);
  return Array(Number(repeat ?? 1)).fill([Number(out), Number(back)]);
});
let left = 0; // bytes that the current step still waits for

const socket = tls.connect({
  host, port: Number(port), servername: "localhost", ALPNProtocols: ["tlscap-test"], rejectUnauthorized: false,
});
const addresses = {};

function next() {
  while (left === 0) {
    if (steps.length === 0) {
      socket.end();
      return;
    }
    const [out, back] = steps.shift();
    const content = Buffer.alloc(out);
    if (fs.readSync(outgoing, content) !== out) throw new Error("OUTFILE is too short");
    socket.write(content);
    left = back;
  }
}

socket.on("secureConnect", () => {
  addresses.local = [socket.localAddress, socket.localPort];
  addresses.remote = [socket.remoteAddress, socket.remotePort];
  next();
});
socket.on("data", (piece) => {
  if (piece.length > left) throw new Error("more came than was asked for");
  fs.writeSync(incoming, piece);
  left -= piece.length;
  next();
});
socket.on("close", () => {
  if (left !== 0 || steps.length !== 0) throw new Error("the peer ended early");
  console.log(JSON.stringify({ ...addresses, version: `node ${process.versions.node}, OpenSSL ${process.versions.openssl}` }));
});
