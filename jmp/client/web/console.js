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

const socket = new WebSocket(address());
socket.binaryType = "arraybuffer";
socket.onopen = () => { show("connected" + (settings.watch ? ", read-only" : ""), "good"); terminal.focus(); };
socket.onmessage = (message) => terminal.write(new Uint8Array(message.data));
socket.onclose = (end) => show(end.reason || "the connection is closed", "bad");

const encoder = new TextEncoder();
const send = (bytes) => { if (socket.readyState === WebSocket.OPEN) socket.send(bytes); };
terminal.onData((text) => send(encoder.encode(text)));
terminal.onBinary((text) => send(Uint8Array.from(text, (character) => character.charCodeAt(0))));
globalThis.terminal = terminal;
