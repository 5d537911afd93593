// A crowd of Node's clients in one process: PORT COUNT.  What they do, and what is printed, stands in crowd.py.

"use strict";
const crypto = require("node:crypto");
const tls = require("node:tls");

const [port, count] = process.argv.slice(2).map(Number);
const HEADER = 8;
const TURNS = 4;
const LEAST = 200;
const MOST = 4000;
const AT_ONCE = 100;

let open = 0;
let begun = 0;
const starts = [];
const accounts = [];
const between = () => LEAST + crypto.randomInt(MOST - LEAST);

function takeTurns(socket, account) {
  let turns = TURNS;
  let left = 0;
  const next = () => {
    if (turns-- === 0) {
      socket.end();
      return;
    }
    const size = between();
    left = between();
    const content = Buffer.concat([Buffer.alloc(HEADER), crypto.randomBytes(size)]);
    content.writeUInt32BE(size, 0);
    content.writeUInt32BE(left, 4);
    const cut = crypto.randomInt(content.length);
    account.note(1, content);
    socket.write(content.subarray(0, cut));
    setImmediate(() => socket.write(content.subarray(cut)));
  };
  const soon = () => setTimeout(next, crypto.randomInt(100));
  socket.on("data", (piece) => {
    account.note(0, piece);
    left -= piece.length;
    if (left < 0) throw new Error("more came than was asked for");
    if (left === 0) soon();
  });
  socket.on("close", () => {
    if (turns >= 0) throw new Error("the server ended early");
    accounts.push(account.said());
    if (accounts.length === count) console.log(JSON.stringify(accounts));
  });
  soon();
}

class Account {
  constructor(socket) {
    this.ports = { local: socket.localPort, remote: socket.remotePort };
    this.sizes = [0, 0];
    this.hashes = [crypto.createHash("sha256"), crypto.createHash("sha256")];
  }

  note(direction, piece) {
    this.sizes[direction] += piece.length;
    this.hashes[direction].update(piece);
  }

  said() {
    const [received, sent] = this.hashes.map((hash, at) => [this.sizes[at], hash.digest("hex")]);
    return { ...this.ports, sent, received };
  }
}

function connect() {
  if (begun === count) return;
  begun++;
  const socket = tls.connect({ host: "127.0.0.1", port, servername: "localhost", rejectUnauthorized: false });
  socket.on("secureConnect", () => {
    starts.push(() => takeTurns(socket, new Account(socket)));
    open++;
    connect();
    if (open === count) for (const start of starts) start();
  });
}

for (let n = 0; n < AT_ONCE; n++) connect();
