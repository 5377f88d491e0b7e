"""A stand-in tracker for the tests, and trackers without a login."""


from __future__ import annotations

import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from workbench.tracking import Tracker, feed

WAIT = 60


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(feed, "DELAYS", (0.01, 0.01))
    for name in ("WANDB_DIR", "WANDB_PROJECT", "WANDB_API_KEY", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)


@dataclass
class Notebook(Tracker):
    """A stand-in: keeps what it is sent, in lists, and can fail or hang where it is told to."""

    lines: list = field(default_factory=list)
    fails: dict = field(default_factory=dict)
    """method -> how many more times it raises"""
    hang: threading.Event | None = None
    remember: dict | None = None

    label = "notebook"
    table_steps = 2

    def _call(self, kind, *what):
        if self.hang is not None and kind == "log":
            self.hang.wait(60)
        if self.fails.get(kind, 0) > 0:
            self.fails[kind] -= 1
            raise OSError(f"no network in {kind}")
        self.lines.append((kind, *what))

    def start(self, begin):
        self._call("start", begin)
        return self.remember

    def log(self, step):
        self._call("log", step)

    def event(self, step, kind, text, payload):
        self._call("event", step, kind, text)

    def rollouts(self, step, columns, rows):
        self._call("rollouts", step, columns, rows)

    def finish(self, status):
        self._call("finish", status)

    def of(self, kind):
        return [line[1:] for line in self.lines if line[0] == kind]

    def steps(self):
        return [logged.step for (logged,) in self.of("log")]


def wandb_records(path: Path) -> list:
    """The records of a .wandb file: blocks of 32 KiB after a header of 7 bytes; chunks of checksum, length, kind."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole, records = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            records.append(record)
            whole = b""
    return records
