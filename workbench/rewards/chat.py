"""Many requests to an OpenAI-compatible chat endpoint, side by side, within a bounded time. Standard library only.

A server that hangs, drips bytes or talks nonsense costs a request its time and nothing else. What is still open
when the time of the batch is up, or when the caller is interrupted, is closed. The threads are daemons, so none of
them can keep a process from ending. Redirects are not followed and proxies not used: a key goes to the host that
was named and to no other.
"""

from __future__ import annotations

import http.client
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from workbench.errors import SettingError
from workbench.rewards.signature import short

LOOK = 0.1
"""seconds between looks at the clock and at the caller's wish to stop"""
PAUSE = 0.5
"""seconds before the first repeat of a request that failed; each further one waits twice as long"""
MOST_BYTES = 1 << 20
"""longest answer that is read; a score is short"""
PASSING = (408, 429, 500, 502, 503, 504)
"""HTTP codes after which the same request may succeed"""


@dataclass(frozen=True)
class Reply:
    """What became of one request."""

    kind: str
    """"ok", or "timeouts", "refused" (nobody listens there), "errors" (HTTP codes, broken connections, no JSON)"""
    text: str
    """what the model said, or what went wrong"""
    cut: bool = False
    """the model ran into its length limit"""


@dataclass(frozen=True)
class Endpoint:
    """Where the requests go."""

    secure: bool
    host: str
    port: int | None
    path: str

    @classmethod
    def of(cls, url: str) -> Endpoint:
        """From a server's address, with or without /v1, or the whole one (.../v1/chat/completions).

        SettingError for what is no http(s) address, or holds a user name or password.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except (ValueError, TypeError, AttributeError):
            parts = host = port = None
        if parts is None or parts.scheme not in ("http", "https") or not host:
            raise SettingError(f"url={short(url)} is not an address such as 'http://localhost:8000/v1'.")
        if parts.username is not None or parts.password is not None:
            raise SettingError("url holds a user name or password, which would be stored. Use api_key_env.")
        if not url.isascii() or any(character <= " " for character in url):
            raise SettingError(f"url={short(url)} holds spaces or characters that an address cannot have.")
        path = parts.path.rstrip("/")
        if not path.endswith("/chat/completions"):
            path = f"{path or '/v1'}/chat/completions"
        return cls(parts.scheme == "https", host, port, path + (f"?{parts.query}" if parts.query else ""))

    def connection(self, timeout: float) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self.secure else http.client.HTTPConnection
        return kind(self.host, self.port, timeout=timeout)


def ask(
    endpoint: Endpoint,
    bodies: Sequence[bytes],
    *,
    key: str | None,
    timeout: float,
    retries: int,
    concurrency: int,
    deadline: float,
    check: Callable[[], None],
) -> list[Reply]:
    """The reply to each request body (JSON), `concurrency` at a time; it takes about `deadline` seconds at most.

    `timeout`: seconds for one request, all of it. `retries`: further attempts where the first did not get through.
    `key`: sent as a bearer token. `check()` is called ten times a second; what it raises ends the batch.
    """
    replies = [Reply("timeouts", f"not answered within the {deadline:g} s of the batch")] * len(bodies)
    batch = _Batch(endpoint, bodies, key, timeout, retries)
    ends, left = time.monotonic() + deadline, len(bodies)
    try:
        for _ in range(min(concurrency, len(bodies))):
            threading.Thread(target=batch.work, name="workbench-judge", daemon=True).start()
        while left and (rest := ends - time.monotonic()) > 0:
            check()
            batch.cut_late()
            try:
                i, reply = batch.done.get(timeout=min(LOOK, rest))
            except queue.Empty:
                continue
            if isinstance(reply, Exception):
                raise reply
            replies[i], left = reply, left - 1
    finally:
        batch.close()
    return replies


class _Call:
    """A request in flight."""

    def __init__(self, connection: http.client.HTTPConnection, timeout: float):
        self.connection = connection
        self.ends = time.monotonic() + timeout
        self.late = False

    def cut(self) -> None:
        """End the thread's wait for the other side. (The socket's own time-out starts anew with every byte.)"""
        self.late = True
        sock = self.connection.sock
        if sock is not None:
            try:
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # of TLS sockets too, the plain shutdown
            except OSError:  # closed already
                pass


class _Batch:
    """The requests of one call of `ask`, and the threads' common state."""

    def __init__(self, endpoint: Endpoint, bodies: Sequence[bytes], key: str | None, timeout: float, retries: int):
        self.endpoint, self.bodies, self.key, self.timeout, self.retries = endpoint, bodies, key, timeout, retries
        self.waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for i in range(len(bodies)):
            self.waiting.put(i)
        self.done: queue.SimpleQueue[tuple[int, Reply | Exception]] = queue.SimpleQueue()
        self.stop = threading.Event()
        self.calls: set[_Call] = set()
        self.lock = threading.Lock()

    def work(self) -> None:
        """A thread: answer requests until none is left."""
        while not self.stop.is_set():
            try:
                i = self.waiting.get_nowait()
            except queue.Empty:
                return
            try:
                self.done.put((i, self.answer(self.bodies[i])))
            except Exception as error:  # for the caller to raise
                self.done.put((i, error))

    def answer(self, body: bytes) -> Reply:
        for attempt in range(self.retries + 1):
            reply, again = self.attempt(body)
            if not again or attempt == self.retries or self.stop.wait(PAUSE * 2**attempt):
                break
        return reply

    def attempt(self, body: bytes) -> tuple[Reply, bool]:
        """The reply, and whether to ask again."""
        call = _Call(self.endpoint.connection(self.timeout), self.timeout)
        late = Reply("timeouts", f"no answer within {self.timeout:g} s")
        with self.lock:
            if self.stop.is_set():  # nobody would cut it
                return late, False
            self.calls.add(call)
        try:
            status, data = self.exchange(call.connection, body)
        except TimeoutError:
            return late, True
        except (ConnectionRefusedError, socket.gaierror) as error:
            return Reply("refused", str(error)), True
        except (OSError, http.client.HTTPException) as error:
            return (late if call.late else Reply("errors", f"{type(error).__name__}: {str(error)[:200]}")), True
        finally:
            with self.lock:
                self.calls.discard(call)
            call.connection.close()
        if call.late:  # what was read is not all
            return late, True
        if status != 200:
            said = data.decode("utf-8", "replace").replace(self.key or "\0", "***")
            return Reply("errors", f"HTTP {status}: {short(said, 200)}"), status in PASSING
        return _content(data), False

    def exchange(self, connection: http.client.HTTPConnection, body: bytes) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        connection.request("POST", self.endpoint.path, body, headers)
        response = connection.getresponse()
        return response.status, response.read(MOST_BYTES + 1)

    def cut_late(self) -> None:
        now = time.monotonic()
        with self.lock:
            for call in self.calls:
                if now > call.ends:
                    call.cut()

    def close(self) -> None:
        """Let no thread start another request, and end those in flight."""
        self.stop.set()
        with self.lock:
            for call in self.calls:
                call.cut()


def _content(data: bytes) -> Reply:
    """What the model said, from the JSON of a chat completion."""
    if len(data) > MOST_BYTES:
        return Reply("errors", f"the answer is longer than {MOST_BYTES} bytes")
    try:
        choice = json.loads(data)["choices"][0]
        text, reason = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Reply("errors", f"the answer is not a chat completion: {short(data[:200], 120)}")
    if text is not None and not isinstance(text, str):
        return Reply("errors", f"the answer's content is not text: {short(text, 120)}")
    return Reply("ok", text or "", cut=reason == "length")
