"""A page that hosts views without Jupyter: their own Python and JavaScript, joined by a websocket.

What a kernel and JupyterLab do for a widget (its model in the page, its messages both ways, its place) is done here by
a small server in a thread, so that a test of a view starts in a tenth of a second. What depends on Lab itself is tested
in Lab (`conftest.lab`).
"""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import tornado.httpserver
import tornado.netutil
import tornado.web
import tornado.websocket

PAGE = """<!doctype html><html><head><meta charset="utf-8"><link rel="icon" href="data:,"><style>
:root { --jp-ui-font-color1: rgba(0,0,0,.87); --jp-ui-font-color2: rgba(0,0,0,.54); --jp-layout-color0: #fff;
  --jp-layout-color1: #fff; --jp-layout-color2: #eee; --jp-border-color2: #e0e0e0; --jp-ui-font-family: system-ui,
  -apple-system, sans-serif; --jp-code-font-family: Menlo, Consolas, "DejaVu Sans Mono", monospace; }
:root[data-theme=dark] { --jp-ui-font-color1: #fff; --jp-ui-font-color2: rgba(255,255,255,.7); --jp-layout-color0: #111;
  --jp-layout-color1: #212121; --jp-layout-color2: #424242; --jp-border-color2: #616161; }
body { margin: 12px; background: var(--jp-layout-color0); }
</style></head><body><script type="module">
const socket = new WebSocket(`ws://${location.host}/socket`);
socket.binaryType = "arraybuffer";
const models = new Map();
let waiting = null;
class Model {
  constructor(id, state) { this.id = id; this.state = state; this.heard = new Map(); }
  get(name) { return this.state[name]; }
  set(name, value) { this.state[name] = value; }
  save_changes() {}
  on(name, act) { if (!this.heard.has(name)) this.heard.set(name, new Set()); this.heard.get(name).add(act); }
  off(name, act) { this.heard.get(name)?.delete(act); }
  tell(name, ...values) { for (const act of [...(this.heard.get(name) ?? [])]) act(...values); }
  send(content) { socket.send(JSON.stringify({ id: this.id, content })); }
}
async function open({ id, state, html }) {
  const style = document.createElement("style");
  style.textContent = state._css;
  document.head.append(style);
  const output = document.createElement("div");
  output.className = "output";
  output.id = `output-${id}`;
  output.innerHTML = html;
  document.body.append(output);
  const url = URL.createObjectURL(new Blob([state._esm], { type: "text/javascript" }));
  const model = new Model(id, state);
  models.set(id, model);
  model.cleanup = await (await import(url)).default.initialize({ model });
}
socket.onmessage = ({ data }) => {
  if (typeof data === "string") {
    waiting = { ...JSON.parse(data), buffers: [] };
  } else {
    waiting.buffers.push(new DataView(data));
  }
  if (waiting.buffers.length < waiting.n) return;
  const { kind, id, content, buffers } = waiting;
  if (kind === "open") open(content);
  if (kind === "msg") models.get(id)?.tell("msg:custom", content, buffers);
  if (kind === "trait") {
    Object.assign(models.get(id).state, content);
    for (const name in content) models.get(id).tell(`change:${name}`);
  }
  if (kind === "html") document.getElementById(`output-${id}`).innerHTML = content;
};
window.theme = (name) => { document.documentElement.dataset.theme = name; document.body.dataset.theme = name; };
</script></body></html>"""


class Host:
    """`host.open(page, view, ...)` shows views in a page; what they send and are asked goes through a websocket."""

    def __init__(self) -> None:
        self.views: dict[str, Any] = {}
        self.sockets: set[tornado.websocket.WebSocketHandler] = set()
        self.ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self.thread.start()
        self.ready.wait(10)

    async def _serve(self) -> None:
        host = self

        class Page(tornado.web.RequestHandler):
            def get(self) -> None:
                self.write(PAGE)

        class Socket(tornado.websocket.WebSocketHandler):
            def open(self) -> None:
                self.set_nodelay(True)
                host.sockets.add(self)
                for name, view in host.views.items():
                    host._open(name, view, self)

            def on_message(self, message: str) -> None:
                asked = json.loads(message)
                view = host.views.get(asked["id"])
                if view is not None:
                    view._receive(view, asked["content"], [])

            def on_close(self) -> None:
                host.sockets.discard(self)

        self.loop, self.end = asyncio.get_running_loop(), asyncio.Event()
        server = tornado.httpserver.HTTPServer(tornado.web.Application([("/", Page), ("/socket", Socket)]))
        sockets = tornado.netutil.bind_sockets(0, "127.0.0.1")
        server.add_sockets(sockets)
        self.url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}/"
        self.ready.set()
        await self.end.wait()
        server.stop()

    def open(self, page: Any, *views: Any) -> None:
        """Load a page that has these views, one below the other; wait for `page` to see what you need."""
        self.views = {view.place: view for view in views}
        for name, view in self.views.items():
            view.send = lambda content, buffers=None, name=name: self._send("msg", name, content, buffers or [])
            view._handle = _Handle(lambda html, name=name: self._send("html", name, html, []))
            view.observe(
                lambda change, name=name: self._send("trait", name, {change["name"]: change["new"]}, []),
                [n for n in view.trait_names(sync=True) if not n.startswith("_")],
            )
        page.goto(self.url)

    def _open(self, name: str, view: Any, socket: Any) -> None:
        state = {n: getattr(view, n) for n in view.trait_names(sync=True) if n in ("_esm", "_css") or n[0] != "_"}
        for skipped in ("layout", "comm", "keys", "tabbable", "tooltip"):
            state.pop(skipped, None)
        data, _ = view._bundle()
        view._kept = data
        content = {"id": name, "state": state, "html": data["text/html"]}
        socket.write_message(json.dumps({"kind": "open", "n": 0, "content": content}))

    def _send(self, kind: str, name: str, content: Any, buffers: list) -> None:
        frame = json.dumps({"kind": kind, "id": name, "n": len(buffers), "content": content}, allow_nan=False)

        def write() -> None:
            for socket in list(self.sockets):
                socket.write_message(frame)
                for buffer in buffers:
                    socket.write_message(bytes(buffer), binary=True)

        self.loop.call_soon_threadsafe(write)

    def close(self) -> None:
        for view in self.views.values():
            view.close()
        self.loop.call_soon_threadsafe(self.end.set)


class _Handle:
    """What `display(..., display_id=True)` returns."""

    def __init__(self, put: Any):
        self.put = put

    def update(self, data: dict, metadata: dict | None = None, raw: bool = True) -> None:
        self.put(data["text/html"])
