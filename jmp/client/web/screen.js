// A screen in noVNC. Binary messages are the VNC server's bytes, both ways; a close says why it has ended.
import RFB from "./vendor/novnc/core/rfb.js";
import { show, settings, address } from "./page.js";

const socket = new WebSocket(address());
socket.binaryType = "arraybuffer";
let reason = "";
socket.addEventListener("close", (end) => { reason = end.reason; });

const rfb = new RFB(document.getElementById("view"), socket, { shared: true });
rfb.scaleViewport = true;
rfb.viewOnly = settings.watch;
rfb.addEventListener("connect", () => { show("connected" + (settings.watch ? ", read-only" : ""), "good"); rfb.focus(); });
rfb.addEventListener("disconnect", () => show(reason || "the connection is closed", "bad"));
rfb.addEventListener("securityfailure", (event) => { reason = event.detail.reason || "the server lets nobody in with this password"; });
rfb.addEventListener("credentialsrequired", () => {
  const password = prompt("The screen's password");
  if (password === null) rfb.disconnect(); else rfb.sendCredentials({ password });
});
const button = document.getElementById("cad");
button.hidden = settings.watch;
button.onclick = () => { rfb.sendCtrlAltDel(); rfb.focus(); };
globalThis.rfb = rfb;
