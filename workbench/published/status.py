"""Whether a method works: what the tests found, for the source as it is now.

`status.json` holds, for each method whose example and checks passed, a digest of its record and of the module that has
it. A method whose source changed since is "changed" until the tests have seen it again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from workbench import methods
from workbench.published.entry import Entry

FILE = Path(__file__).with_name("status.json")
WORKS, CHANGED, UNTESTED = "works", "changed", "untested"


def of(entry: Entry) -> str:
    """WORKS, CHANGED or UNTESTED."""
    found = recorded().get(entry.name)
    return UNTESTED if found is None else WORKS if found == digest(entry) else CHANGED


def recorded() -> dict[str, str]:
    """What is on file: name -> digest."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


def record(found: dict[str, str]) -> None:
    """Write the digests of the methods that passed."""
    FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def digest(entry: Entry) -> str:
    """Of the record and of the source of its module."""
    module = (methods.names()[entry.call] if entry.trains else entry.call).partition(":")[0]
    source = Path(find_spec(module).origin).read_bytes()
    record = json.dumps(asdict(entry), sort_keys=True, default=str).encode()
    return hashlib.sha256(record + source).hexdigest()[:16]
