// What both pages share.
export const settings = await (await fetch("settings.json")).json();

document.title = settings.name;
document.getElementById("name").textContent = settings.name;

export function show(text, kind) {
  const state = document.getElementById("state");
  state.textContent = text;
  state.className = kind;
}

// Of the stream; "way" is one of settings.ways.
export function address(way = "") {
  const url = new URL(way ? `stream/${way}` : "stream", location.href);
  url.protocol = "ws:";
  return url.href;
}
