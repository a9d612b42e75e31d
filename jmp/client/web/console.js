// A console in xterm.js. Binary messages are the console's bytes, both ways; a close says why it has ended.
import { Terminal } from "./vendor/xterm/xterm.mjs";
import { FitAddon } from "./vendor/xterm/addon-fit.mjs";
import { show, settings, address } from "./page.js";

const terminal = new Terminal({ scrollback: 10000, cursorBlink: true, disableStdin: settings.watch, convertEol: false });
const fit = new FitAddon();
terminal.loadAddon(fit);
terminal.open(document.getElementById("view"));
fit.fit();
addEventListener("resize", () => fit.fit());

const BUSY = 4075; // how the stream ends for one who writes while another client does
const button = document.getElementById("write");
let socket;

// Begin, or begin again in another way: one who may not write, or no longer, watches, and has a button to write again.
function join(way) {
  const joined = socket = new WebSocket(address(way));
  const watches = settings.watch || way === "watch";
  joined.binaryType = "arraybuffer";
  joined.onopen = () => {
    terminal.options.disableStdin = watches;
    button.hidden = way !== "watch";
    show("connected" + (settings.watch ? ", read-only" : watches ? ", another client writes" : ""), "good");
    terminal.focus();
  };
  joined.onmessage = (message) => terminal.write(new Uint8Array(message.data));
  joined.onclose = (end) => {
    if (joined !== socket) return;
    if (end.code === BUSY && settings.ways.includes("watch")) again("watch");
    else show(end.reason || "the connection is closed", "bad");
  };
}

function again(way) {
  const before = socket;
  join(way);
  before.close();
  terminal.reset(); // what came before is sent again
}

button.onclick = () => again("write");
join("");

const encoder = new TextEncoder();
const send = (bytes) => { if (socket.readyState === WebSocket.OPEN) socket.send(bytes); };
terminal.onData((text) => send(encoder.encode(text)));
terminal.onBinary((text) => send(Uint8Array.from(text, (character) => character.charCodeAt(0))));
globalThis.terminal = terminal;
