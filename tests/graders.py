"""A stand-in for a judge's server that misbehaves on demand, and `judge_all`, one call of a judge."""

from __future__ import annotations

import json
import re
import socket
import time
import warnings
from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace

from workbench import rewards
from workbench.rewards import chat

SLOW = 1.0
"""seconds that a slow answer takes"""


def chat_completion(text, reason="stop") -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": reason}]}).encode()


class Handler(BaseHTTPRequestHandler):
    """Does what the completion says, `do: ...`; else grades it 7."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Quiet."""

    def send(self, data: bytes, code: int = 200, length: int | None = None) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.seen.append(SimpleNamespace(path=self.path, headers=dict(self.headers), **request))
            server.now += 1
            self.counted = True
            server.most = max(server.most, server.now)
            again = sum(r.messages == request["messages"] for r in server.seen) > 1
        asked = re.search(r"do: (.*)", request["messages"][0]["content"])
        try:
            self.act(asked[1].strip() if asked else "say Score: 7", again)
        except OSError:  # the judge has gone
            self.close_connection = True
        finally:
            with server.lock:
                server.now -= self.counted

    def act(self, what: str, again: bool) -> None:
        verb, _, rest = what.partition(" ")
        if verb == "say":
            self.send(chat_completion(rest.replace("|", "\n")))
        elif verb == "cut":
            self.send(chat_completion(rest, "length"))
        elif verb == "raw":
            self.send(rest.encode())
        elif verb == "code":
            self.send(f"no {self.headers.get('Authorization')}".encode(), int(rest))
        elif verb == "first":  # only the first attempt fails
            self.act("say Score: 9" if again else rest, again)
        elif verb == "slow":
            time.sleep(SLOW)
            with self.server.lock:  # whoever has the answer may ask again before this handler ends
                self.server.now -= 1
                self.counted = False
            self.send(chat_completion(rest))
        elif verb == "hang":
            self.server.over.wait(30)
        elif verb == "drip":  # never silent for long, never done
            self.send(b"", length=10**6)
            while not self.server.over.wait(0.05):
                self.wfile.write(b" ")
        elif verb == "half":
            self.send(chat_completion(rest)[:-20], length=500)
            self.close_connection = True
        elif verb == "huge":
            self.send(b'{"a": "' + b"x" * (chat.MOST_BYTES + 10) + b'"}')
        elif verb == "move":
            self.send_response(307)
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif verb == "deep":
            self.send(b"[" * 100_000)
        else:  # "drop"
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


def judge_all(judge, completions, prompts=None, **columns):
    """(rewards, metrics, warnings) of one call through `rewards.score`."""
    prompts = prompts or [f"q{i}" for i in range(len(completions))]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = rewards.score([judge], None, prompts, completions, None, columns)
    return table.total, table.logged_metrics, [str(warning.message) for warning in caught]
