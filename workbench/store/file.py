"""The store: one SQLite file in the run's folder, the only thing views read.

Tables (all times in seconds, log-probs and entropies in nats):

    meta      (key, value)                       JSON: method, settings, policy, task, status, parent, ...
    branches  (id, parent, fork_step)            a rewind opens a branch; branch 0 is the first
    steps     (step, branch, seconds, created, state, plan, threads)   one row a committed step; step 0 is the start
    metrics   (step, branch, name, value)        NaN is kept as NULL
    rollouts  (id, step, branch, group_id, sample, row, prompt, completion, reward, advantage,
               finish_reason, n_tokens, rewards, columns)              `rewards`, `columns`: JSON by name
    tokens    (rollout_id, prompt_ids, ids, logprob, entropy)          little-endian int32 and float32 blobs
    pieces    (id, text, special)                what token ids stand for: see `store.tokens`
    events    (id, created, step, branch, kind, payload)               settings changed, rewinds, warnings, errors
    rows      (name, i, row)                     the rows a run trains and evaluates on, as JSON

A step is committed in one transaction, so a reader sees whole steps only. One process writes (it holds
`lock` in the folder); any number read. Rows are never deleted: steps given up by a rewind stay on their
branch, and `path` says which steps make up the line that leads to a branch.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import StoreError, did_you_mean
from workbench.store.tokens import add_pieces
from workbench.text import clean

if TYPE_CHECKING:
    import pandas as pd

    from workbench.sampling.rollouts import Rollouts

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE branches (id INTEGER PRIMARY KEY, parent INTEGER, fork_step INTEGER, created REAL NOT NULL);
CREATE TABLE steps (step INTEGER NOT NULL, branch INTEGER NOT NULL, seconds REAL NOT NULL, created REAL NOT NULL,
    state TEXT NOT NULL, plan TEXT NOT NULL, threads INTEGER NOT NULL, PRIMARY KEY (branch, step)) WITHOUT ROWID;
CREATE TABLE metrics (step INTEGER NOT NULL, branch INTEGER NOT NULL, name TEXT NOT NULL, value REAL,
    PRIMARY KEY (branch, step, name)) WITHOUT ROWID;
CREATE TABLE rollouts (id INTEGER PRIMARY KEY, step INTEGER NOT NULL, branch INTEGER NOT NULL,
    group_id INTEGER NOT NULL, sample INTEGER NOT NULL, row INTEGER NOT NULL, prompt TEXT NOT NULL,
    completion TEXT NOT NULL, reward REAL, advantage REAL, finish_reason TEXT NOT NULL, n_tokens INTEGER NOT NULL,
    rewards TEXT NOT NULL, columns TEXT NOT NULL);
CREATE INDEX rollouts_by_step ON rollouts (branch, step);
CREATE TABLE tokens (rollout_id INTEGER PRIMARY KEY REFERENCES rollouts (id), prompt_ids BLOB NOT NULL,
    ids BLOB NOT NULL, logprob BLOB NOT NULL, entropy BLOB NOT NULL);
CREATE TABLE events (id INTEGER PRIMARY KEY, created REAL NOT NULL, step INTEGER NOT NULL, branch INTEGER NOT NULL,
    kind TEXT NOT NULL, payload TEXT NOT NULL);
CREATE TABLE rows (name TEXT NOT NULL, i INTEGER NOT NULL, row TEXT NOT NULL, PRIMARY KEY (name, i)) WITHOUT ROWID;
"""

ROLLOUT_COLUMNS = (
    "id", "step", "branch", "group_id", "sample", "row", "prompt", "completion", "reward", "advantage",
    "finish_reason", "n_tokens", "rewards", "columns",
)  # fmt: skip


def to_json(value: Any) -> str:
    """JSON with numpy scalars and paths understood; NaN stays NaN (Python reads it back)."""

    def plain(item: Any) -> Any:
        if isinstance(item, np.generic):
            return item.item()
        if isinstance(item, np.ndarray):
            return item.tolist()
        if isinstance(item, (set, frozenset)):
            return sorted(item)
        return str(item)

    return clean(json.dumps(value, default=plain, ensure_ascii=False))


class Store:
    """A run's record. `Store(folder)` reads; `Store(folder, write=True)` also writes.

    Raises StoreError when there is no run in the folder, or the file is not a run's store.
    """

    def __init__(self, folder: str | os.PathLike, *, write: bool = False, file: str = "run.db"):
        self.folder = Path(folder)
        self.path = self.folder / file
        self.write = write
        self._lock = threading.RLock()
        self._db = self._connect()

    def _connect(self) -> sqlite3.Connection:
        if not self.path.exists():
            raise StoreError(_nothing_at(self.folder))
        try:
            mode = "rw" if self.write else "ro"
            uri = f"{self.path.absolute().as_uri()}?mode={mode}"
            db = sqlite3.connect(uri, uri=True, check_same_thread=False, timeout=30, isolation_level=None)
            db.execute("SELECT value FROM meta LIMIT 1").fetchone()
            if self.write:
                db.execute("PRAGMA synchronous=NORMAL" if _use_wal(db, self.folder) else "PRAGMA synchronous=FULL")
            return db
        except sqlite3.Error as error:
            raise StoreError(f"{self.path} is not a readable run ({error}).") from error

    @classmethod
    def create(cls, folder: str | os.PathLike, meta: dict[str, Any]) -> Store:
        """A new store under a temporary name; `publish` gives it its own once step 0 is in it."""
        path = Path(folder) / "run.db.new"
        path.unlink(missing_ok=True)
        db = sqlite3.connect(path, isolation_level=None)
        with db:
            db.executescript(SCHEMA)
            db.execute("INSERT INTO branches VALUES (0, NULL, NULL, ?)", (time.time(),))
        db.close()
        store = cls(folder, write=True, file=path.name)
        store.set_meta(**meta)
        return store

    def publish(self) -> None:
        """Give the file its name. From here on the run can be opened and resumed."""
        with self._lock:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._db.close()
            for suffix in ("-wal", "-shm"):
                Path(f"{self.path}{suffix}").unlink(missing_ok=True)
            target = self.folder / "run.db"
            os.replace(self.path, target)
            self.path = target
            self._db = self._connect()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    # -- writing ---------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self):
        """All or nothing; a full disk or a broken file raises StoreError and leaves the last step whole."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except BaseException as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise StoreError(
                        f"Writing to {self.path} failed: {error}. The last whole step is intact."
                    ) from error
                raise

    def set_meta(self, **values: Any) -> None:
        with self.transaction() as db:
            db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", [(k, to_json(v)) for k, v in values.items()])

    def add_rows(self, name: str, rows: Iterable[dict]) -> None:
        with self.transaction() as db:
            db.executemany("INSERT INTO rows VALUES (?, ?, ?)", ((name, i, to_json(row)) for i, row in enumerate(rows)))

    def add_event(self, step: int, branch: int, kind: str, **payload: Any) -> None:
        with self.transaction() as db:
            db.execute(
                "INSERT INTO events (created, step, branch, kind, payload) VALUES (?, ?, ?, ?, ?)",
                (time.time(), step, branch, kind, to_json(payload)),
            )

    def add_branch(self, parent: int, fork_step: int) -> int:
        """Open a branch that goes on from `fork_step` of `parent`; returns its id."""
        with self.transaction() as db:
            cursor = db.execute(
                "INSERT INTO branches (parent, fork_step, created) VALUES (?, ?, ?)", (parent, fork_step, time.time())
            )
            db.execute("INSERT OR REPLACE INTO meta VALUES ('branch', ?)", (to_json(cursor.lastrowid),))
            return cursor.lastrowid

    def commit_step(
        self,
        step: int,
        branch: int,
        *,
        seconds: float,
        metrics: dict[str, float],
        state: dict[str, Any],
        plan: dict[str, Any],
        threads: int,
        rollouts: Rollouts | None = None,
    ) -> None:
        """One whole step in one transaction."""
        with self.transaction() as db:
            db.execute(
                "INSERT INTO steps VALUES (?, ?, ?, ?, ?, ?, ?)",
                (step, branch, seconds, time.time(), to_json(state), to_json(plan), threads),
            )
            db.executemany(
                "INSERT INTO metrics VALUES (?, ?, ?, ?)",
                [(step, branch, clean(name), float(value)) for name, value in metrics.items()],
            )
            if rollouts is not None:
                self._insert_rollouts(db, step, branch, rollouts)
                add_pieces(db, rollouts.pieces)

    @staticmethod
    def _insert_rollouts(db: sqlite3.Connection, step: int, branch: int, rollouts: Rollouts) -> None:
        first = db.execute("SELECT COALESCE(MAX(id), 0) + 1 FROM rollouts").fetchone()[0]
        records, tokens = [], []
        for i in range(len(rollouts)):
            record = rollouts.record(i)
            columns = {name: values[i] for name, values in rollouts.columns.items()}
            parts = {name: float(values[i]) for name, values in rollouts.rewards.items()}
            records.append((
                first + i, step, branch, record["group_id"], record["sample"], record["row"], clean(record["prompt"]),
                clean(record["completion"]), record["reward"], record["advantage"], record["finish_reason"],
                record["n_tokens"], to_json(parts), to_json(columns),
            ))  # fmt: skip
            tokens.append((
                first + i, _blob(rollouts.prompt_ids[i], "<i4"), _blob(rollouts.ids[i], "<i4"),
                _blob(rollouts.logprob[i], "<f4"), _blob(rollouts.entropy[i], "<f4"),
            ))  # fmt: skip
        marks = ", ".join("?" * len(ROLLOUT_COLUMNS))
        db.executemany(f"INSERT INTO rollouts ({', '.join(ROLLOUT_COLUMNS)}) VALUES ({marks})", records)
        db.executemany("INSERT INTO tokens VALUES (?, ?, ?, ?, ?)", tokens)

    # -- reading ---------------------------------------------------------------------------------------------

    def query(self, sql: str, values: Sequence = ()) -> list[tuple]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def frame(self, sql: str, values: Sequence = ()) -> pd.DataFrame:
        import pandas as pd

        with self._lock:
            cursor = self._db.execute(sql, values)
            names = [column[0] for column in cursor.description]
            return pd.DataFrame(cursor.fetchall(), columns=names)

    @property
    def meta(self) -> dict[str, Any]:
        return {key: json.loads(value) for key, value in self.query("SELECT key, value FROM meta")}

    def get(self, key: str, default: Any = None) -> Any:
        found = self.query("SELECT value FROM meta WHERE key = ?", (key,))
        return json.loads(found[0][0]) if found else default

    @property
    def branch(self) -> int:
        """The branch that is being written."""
        return self.get("branch", 0)

    @property
    def alive(self) -> bool:
        """Whether the process that writes this run still exists (on this machine)."""
        writer = self.get("writer") or {}
        if writer.get("host") != os.uname().nodename or not writer.get("pid"):
            return False
        try:
            os.kill(writer["pid"], 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True

    @property
    def status(self) -> str:
        """'new', 'running', 'paused', 'finished', 'failed', or 'killed' when a running writer is gone."""
        status = self.get("status", "new")
        return "killed" if status == "running" and not self.alive else status

    def path_to(self, branch: int | None = None) -> list[tuple[int, int]]:
        """The line that leads to `branch`: [(branch, last step of it that counts), ...], newest first."""
        branch = self.branch if branch is None else branch
        parents = {b: (p, s) for b, p, s in self.query("SELECT id, parent, fork_step FROM branches")}
        if branch not in parents:
            raise StoreError(f"{self.folder} has no branch {branch}; it has {sorted(parents)}.")
        line, limit = [], 2**62
        while branch is not None:
            line.append((branch, limit))
            parent, fork_step = parents[branch]
            limit = min(limit, fork_step) if fork_step is not None else limit
            branch = parent
        return line

    def _on_path(self, branch: int | str | None) -> tuple[str, list]:
        """SQL that keeps the steps of the line to `branch`; 'all' keeps every branch."""
        if branch == "all":
            return "1", []
        line = self.path_to(branch)
        return "(" + " OR ".join(["(branch = ? AND step <= ?)"] * len(line)) + ")", [v for pair in line for v in pair]

    def last_step(self, branch: int | None = None) -> int:
        """The last committed step of the line to `branch`; -1 when even step 0 is missing."""
        where, values = self._on_path(branch)
        return self.query(f"SELECT COALESCE(MAX(step), -1) FROM steps WHERE {where}", values)[0][0]

    def home(self, step: int, branch: int | None = None) -> int:
        """The branch that step `step` of the line to `branch` was written on."""
        for b, limit in self.path_to(branch):
            if step <= limit and self.query("SELECT 1 FROM steps WHERE branch = ? AND step = ?", (b, step)):
                return b
        raise StoreError(f"{self.folder} has no step {step} on this branch; the last one is {self.last_step(branch)}.")

    def step_row(self, step: int, branch: int | None = None) -> dict[str, Any]:
        """The step's own record: seconds, state (small values), plan (micro-batches), threads."""
        home = self.home(step, branch)
        found = self.query(
            "SELECT seconds, state, plan, threads FROM steps WHERE branch = ? AND step = ?", (home, step)
        )[0]
        return {"seconds": found[0], "state": json.loads(found[1]), "plan": json.loads(found[2]), "threads": found[3]}

    def steps(self, branch: int | str | None = None) -> pd.DataFrame:
        where, values = self._on_path(branch)
        return self.frame(
            f"SELECT step, branch, seconds, created FROM steps WHERE {where} ORDER BY step, branch", values
        )

    def metrics_long(
        self, names: Sequence[str] | None = None, branch: int | str | None = None, since: int = -1
    ) -> pd.DataFrame:
        """Columns step, branch, name, value; only steps after `since`, only `names` where given."""
        where, values = self._on_path(branch)
        if names is not None:
            where += f" AND name IN ({', '.join('?' * len(names))})"
            values += list(names)
        sql = f"SELECT step, branch, name, value FROM metrics WHERE {where} AND step > ? ORDER BY step, branch, name"
        frame = self.frame(sql, [*values, since])
        frame["value"] = frame["value"].astype("float64")
        return frame

    def metrics(self, branch: int | None = None) -> pd.DataFrame:
        """One row a step (index `step`), one column a metric; NaN where a step lacks a metric."""
        long = self.metrics_long(branch=branch)
        wide = long.pivot(index="step", columns="name", values="value")
        wide.columns.name = None
        order = list(dict.fromkeys(long["name"]))
        steps = self.steps(branch)
        wide = wide.reindex(steps["step"]).reindex(columns=order)
        wide.index.name = "step"
        return wide

    def step_metrics(self, step: int, branch: int | None = None) -> dict[str, float]:
        home = self.home(step, branch)
        found = self.query("SELECT name, value FROM metrics WHERE branch = ? AND step = ?", (home, step))
        return {name: math.nan if value is None else value for name, value in found}

    def events(self, branch: int | str | None = "all") -> pd.DataFrame:
        where, values = self._on_path(branch)
        frame = self.frame(
            f"SELECT id, created, step, branch, kind, payload FROM events WHERE {where} ORDER BY id", values
        )
        frame["payload"] = [json.loads(text) for text in frame["payload"]]
        return frame

    def settings(self, step: int | None = None, branch: int | None = None) -> dict[str, Any]:
        """The settings that step `step` of the line to `branch` runs with (default: the next step)."""
        settings = dict(self.get("settings") or {})
        step = self.last_step(branch) + 1 if step is None else step
        where, values = self._on_path(branch)
        sql = f"SELECT payload FROM events WHERE kind = 'set' AND {where} AND step <= ? ORDER BY step, id"
        for (payload,) in self.query(sql, [*values, step]):
            settings |= {name: new for name, (_, new) in json.loads(payload).get("settings", {}).items()}
        return settings

    def rollouts(
        self,
        step: int | None = None,
        where: str | None = None,
        branch: int | str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> pd.DataFrame:
        """Stored completions, one row each; each reward part is a column `rewards/<name>`.

        `where`: an SQL condition over the columns of the table, such as "reward < 0.5 and n_tokens > 200".
        Raises StoreError when the condition cannot be read.
        """
        on_path, values = self._on_path(branch)
        condition = on_path + (f" AND ({where})" if where else "")
        if step is not None:
            condition += " AND step = ?"
            values.append(step)
        sql = f"SELECT {', '.join(ROLLOUT_COLUMNS)} FROM rollouts WHERE {condition} ORDER BY id LIMIT ? OFFSET ?"
        try:
            frame = self.frame(sql, [*values, -1 if limit is None else limit, offset])
        except sqlite3.Error as error:
            hint = did_you_mean(str(error).rsplit(": ", 1)[-1], ROLLOUT_COLUMNS)
            raise StoreError(
                f"rollouts(where={where!r}): {error}.{hint} Columns: {', '.join(ROLLOUT_COLUMNS)}."
            ) from error
        parts = [json.loads(text) for text in frame.pop("rewards")]
        columns = [json.loads(text) for text in frame.pop("columns")]
        for name in dict.fromkeys(name for part in parts for name in part):
            frame[f"rewards/{name}"] = [part.get(name, math.nan) for part in parts]
        for name in dict.fromkeys(name for column in columns for name in column):
            if name not in frame:
                frame[name] = [column.get(name) for column in columns]
        frame[["reward", "advantage"]] = frame[["reward", "advantage"]].astype("float64")
        return frame

    def tokens(self, rollout_id: int) -> dict[str, np.ndarray]:
        """`prompt_ids`, `ids` int32 and `logprob`, `entropy` float32 of one stored completion."""
        found = self.query("SELECT prompt_ids, ids, logprob, entropy FROM tokens WHERE rollout_id = ?", (rollout_id,))
        if not found:
            raise StoreError(f"{self.folder} has no rollout {rollout_id}.")
        kinds = {"prompt_ids": "<i4", "ids": "<i4", "logprob": "<f4", "entropy": "<f4"}
        return {name: np.frombuffer(blob, kind) for (name, kind), blob in zip(kinds.items(), found[0], strict=True)}

    def load_rollouts(self, step: int, branch: int | None = None) -> Rollouts:
        """The rollouts of a step as they were made: what a replay trains on."""
        from workbench.sampling.rollouts import Rollouts

        home = self.home(step, branch)
        found = self.query(
            "SELECT r.prompt, completion, group_id, row, sample, finish_reason, reward, advantage, rewards, columns,"
            " prompt_ids, ids, logprob, entropy FROM rollouts r JOIN tokens t ON t.rollout_id = r.id"
            " WHERE branch = ? AND step = ? ORDER BY r.id",
            (home, step),
        )
        cols = list(zip(*found, strict=True)) if found else [()] * 14
        parts = [json.loads(text) for text in cols[8]]
        columns = [json.loads(text) for text in cols[9]]

        def numbers(values):
            return np.array([math.nan if v is None else v for v in values], dtype=np.float64)

        return Rollouts(
            prompt=list(cols[0]), prompt_text=list(cols[0]), text=list(cols[1]), group=list(cols[2]), row=list(cols[3]),
            sample=list(cols[4]), finish_reason=list(cols[5]), reward=numbers(cols[6]), advantage=numbers(cols[7]),
            rewards={name: numbers([part.get(name) for part in parts]) for name in (parts[0] if parts else ())},
            columns={name: [column.get(name) for column in columns] for name in (columns[0] if columns else ())},
            prompt_ids=[np.frombuffer(blob, "<i4").tolist() for blob in cols[10]],
            ids=[np.frombuffer(blob, "<i4").tolist() for blob in cols[11]],
            logprob=[np.frombuffer(blob, "<f4") for blob in cols[12]],
            entropy=[np.frombuffer(blob, "<f4") for blob in cols[13]],
        )  # fmt: skip

    def rows(self, name: str) -> list[dict]:
        """The stored rows `name` ('train', 'eval'); an empty list when the run has none."""
        return [json.loads(row) for (row,) in self.query("SELECT row FROM rows WHERE name = ? ORDER BY i", (name,))]


def _blob(values: Sequence, kind: str) -> bytes:
    return np.asarray(values, dtype=kind).tobytes()


def _nothing_at(folder: Path) -> str:
    if not folder.exists():
        siblings = (
            [p.name for p in folder.parent.iterdir() if (p / "run.db").exists()] if folder.parent.is_dir() else []
        )
        return f"There is no run at {folder}.{did_you_mean(folder.name, siblings)}"
    if (folder / "run.db.new").exists():
        return f"The run at {folder} ended before its step 0 was whole, so there is nothing to open. Start it again."
    return f"{folder} holds no run (no run.db in it)."


_NETWORK = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "glusterfs", "fuse.sshfs", "fuse.gcsfuse",
    "drvfs",
}  # fmt: skip


def _use_wal(db: sqlite3.Connection, folder: Path) -> bool:
    """Write-ahead logging lets readers go on during a write; it needs shared memory, so not on network drives."""
    mode = "DELETE" if _filesystem(folder) in _NETWORK else "WAL"
    try:
        got = db.execute(f"PRAGMA journal_mode={mode}").fetchone()[0]
    except sqlite3.OperationalError:
        got = db.execute("PRAGMA journal_mode=DELETE").fetchone()[0]
    return got == "wal"


def _filesystem(folder: Path) -> str:
    """The file system type `folder` is on, from /proc/mounts; '' where that cannot be told."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    folder = folder.absolute()
    inside = [(len(point), kind) for point, kind in mounts if folder.is_relative_to(point)]
    return max(inside)[1] if inside else ""
