"""Sharing: the model card and what it promises, the upload to a stand-in Hub, the script that makes the run again."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml

import workbench as wb
from tests.models import tiny_policy
from tests.runs import letters, make_run, rows_for
from workbench.errors import RunError, SettingError
from workbench.sharing import card, push

ROOT = Path(__file__).resolve().parents[1]


def metadata(text: str) -> dict:
    """The YAML between the first two lines of dashes."""
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def code_of(text: str) -> str:
    return re.search(r"```python\n(.*?)```", text, re.S)[1]


def eval_rows():
    return rows_for("sft", 4)


# -- the card --------------------------------------------------------------------------------------------------


def test_card_of_a_bare_policy_says_what_is_known_and_no_more(tmp_path):
    policy = tiny_policy(tmp_path / "model", lora=True)
    policy.save(tmp_path / "saved")
    text = (tmp_path / "saved" / "README.md").read_text()
    assert metadata(text) == {
        "library_name": "peft", "pipeline_tag": "text-generation", "tags": ["workbench", "lora"]
    }  # fmt: skip
    assert "is not known to this card" in text and "## Adapter" in text and "| r | 4 |" in text
    assert str(tmp_path) not in text.split("```")[0]  # the base is a folder here: its name only
    for missing in ("## Results", "## Curves", "## Settings", "license"):
        assert missing not in text
    assert not (tmp_path / "saved" / "curves.svg").exists() and not (tmp_path / "saved" / "train.py").exists()


def test_card_of_a_run_tells_all_and_its_code_loads_the_adapter(tmp_path, monkeypatch):
    run = make_run("sft", tmp_path, eval_dataset=eval_rows(), eval_steps=3, track=None)
    run.run(3)
    run.set(lr=5e-3)
    run.run()
    folder = run.save(tmp_path / "saved")
    text = (folder / "README.md").read_text()
    assert metadata(text)["tags"] == ["workbench", "lora", "sft"]
    settings = run.settings
    shown = text.split("<details>")
    assert "| lr | 0\\.005 |" in shown[0] and "| batch\\_size | 4 |" in shown[0] and "weight\\_decay" not in shown[0]
    assert all(f"| {name.replace('_', chr(92) + '_')} |" in shown[1] for name in settings)
    assert "| 4 | lr 0\\.01 → 0\\.005 |" in text and run.store.meta["data"]["digest"] in text
    held_out = run.metrics["eval/loss"].dropna()
    assert list(held_out.index) == [0, 3, 6]
    for step, value in held_out.items():
        assert re.search(
            rf"^\| {step} \|.* {re.escape(f'{value:.4g}').replace(re.escape('.'), re.escape(chr(92) + '.'))} \|",
            text,
            re.M,
        )
    assert "LoRA: Low-Rank Adaptation" in text and "2106.09685" in text and "```bibtex" in text
    picture = (folder / "curves.svg").read_text()
    import xml.etree.ElementTree as tree

    assert tree.fromstring(picture).tag.endswith("svg") and picture.count("<polyline") + picture.count("<path") > 0
    assert "](curves.svg)" in text
    # the code block, run as it stands in the folder, gives the policy's own log-probs
    monkeypatch.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()):
        space = {}
        exec(compile(code_of(text), "card", "exec"), space)
    policy, ids = run.engine.policy, list(range(40, 60))
    with torch.no_grad():
        theirs = torch.log_softmax(space["model"](torch.tensor([ids])).logits[0, :-1], -1)
    theirs = theirs[range(19), ids[1:]]
    ours = policy.score([ids[:1]], [ids[1:]]).logprob[0]
    assert torch.allclose(theirs, torch.tensor(ours), atol=1e-5)


def test_card_names_hub_models_and_data_sets(tmp_path):
    run = make_run("sft", tmp_path, steps=1)
    run.run()
    policy = run.store.meta["policy"] | {
        "base": "org/model-1B",
        "model": "org/model-1B",
        "commit": "abc",
        "quantize": "nf4",
    }
    run.engine.store.set_meta(data={"kind": "rows", "source": "org/rows (train)", "digest": "d" * 64})
    text = card.make(policy, run.store)
    assert metadata(text)["base_model"] == "org/model-1B" and metadata(text)["datasets"] == ["org/rows"]
    assert "revision='abc'" in code_of(text) and "QLoRA" in text
    paper = {"dpo": "2305.18290", "grpo": "2402.03300"}
    for method, number in paper.items():
        assert number in "".join(card.papers.bibtex(n) for n in card.papers.of(method, {}, policy))


def test_nothing_in_a_card_can_act(tmp_path):
    nasty = "</details><img src=x onerror=alert(1)> [x](javascript:y) ```\n---\nlicense: mit\n| a | `b`"
    run = make_run("grpo", tmp_path, steps=1)
    run.run()
    task = run.store.meta["data"]["task"] | {"name": nasty, "args": {nasty: nasty}}
    run.engine.store.set_meta(name=nasty, started_from=nasty, data={"kind": "task", "task": task})
    run.engine.store.query("INSERT INTO metrics VALUES (1, 0, ?, 1.0)", (nasty,))
    policy = run.store.meta["policy"] | {"base": f"/x/{nasty}", "model": nasty, "revision": nasty}
    text = card.make(policy, run.store, True)
    assert set(metadata(text)) == {"library_name", "pipeline_tag", "tags"}
    assert text.count("---\n") == 2 and text.count("```") == 4
    outside = re.sub(r"```python.*?```", "", text, flags=re.S)
    assert "<img" not in outside and "](javascript" not in outside and outside.count("</details>") == 1
    compile(code_of(text), "card", "exec")


def test_a_readme_of_the_author_is_kept(tmp_path, capsys):
    run = make_run("sft", tmp_path, steps=1)
    run.run()
    folder = run.save(tmp_path / "saved")
    first = (folder / "README.md").read_text()
    run.save(folder)  # its own card is replaced
    assert (folder / "README.md").read_text() == first
    (folder / "README.md").write_text("mine")
    for _ in range(2):
        run.save(folder)
        assert (folder / "README.md").read_text() == "mine" and (folder / "README.workbench.md").read_text() == first
    assert "changed by hand" in capsys.readouterr().out
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "README.md").write_text("mine")
    with pytest.raises(SettingError, match="README.md"):
        run.save(tmp_path / "other")


# -- the Hub ---------------------------------------------------------------------------------------------------


class Hub(ThreadingHTTPServer):
    """The few endpoints of the Hub that an upload uses; `fail` answers a path's beginning with a status."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, dict] = {}
        self.blobs: dict[str, bytes] = {}
        self.cards: list[str] = []
        self.fail: dict[str, int] = {}


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def send(self, value, status=200, **headers):
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, said in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), said)
        self.end_headers()
        self.wfile.write(body)

    def answer(self):
        hub, body = self.server, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.split("?")[0]
        for begin, status in hub.fail.items():
            if path.startswith(begin):
                return self.send({"error": f"no: {status}"}, status, X_Error_Message=f"said {status}")
        if self.headers.get("Authorization") != "Bearer good" and not path.startswith("/lfs"):
            return self.send({"error": "Invalid credentials"}, 401)
        if path == "/api/whoami-v2":
            return self.send({"name": "ann", "type": "user", "auth": {"accessToken": {"role": "write"}}})
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given.get('organization') or 'ann'}/{given['name']}"
            if name in hub.repos:
                return self.send({"error": "You already created this model repo", "url": f"{hub.url}/{name}"}, 409)
            private = given.get("visibility") == "private" or given.get("private") is True
            hub.repos[name] = {"private": private, "files": {}, "branches": ["main"]}
            return self.send({"url": f"{hub.url}/{name}", "name": name, "id": name})
        if path == "/api/validate-yaml":
            hub.cards.append(json.loads(body)["content"])
            return self.send({"errors": [], "warnings": []})
        if path.startswith("/lfs/"):
            hub.blobs[path.split("/")[2]] = body
            return self.send({})
        if match := re.fullmatch(r"/(\w+/[\w-]+)\.git/info/lfs/objects/batch", path):
            made = [
                {"oid": o["oid"], "size": o["size"], "actions": {"upload": {"href": f"{hub.url}/lfs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self.send({"transfer": "basic", "objects": made})
        match = re.fullmatch(r"/api/models/(\w+/[\w-]+)(/.*)?", path)
        if match is None or match[1] not in hub.repos:
            return self.send({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        return self.repo(hub, match[1], match[2] or "", body)

    def repo(self, hub, name, rest, body):
        repo = hub.repos[name]
        if rest.startswith("/branch/"):
            repo["branches"].append(rest.split("/")[2])
            return self.send({})
        if rest.startswith("/preupload/"):
            files = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(body)["files"]
            ]
            return self.send({"files": files})
        if rest.startswith("/commit/"):
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    repo["files"][item["value"]["path"]] = base64.b64decode(item["value"]["content"])
                elif item["key"] == "lfsFile":
                    repo["files"][item["value"]["path"]] = hub.blobs[item["value"]["oid"]]
                else:
                    repo["message"] = item["value"]["summary"]
            repo["branch"] = rest.split("/")[2]
            return self.send({"commitUrl": f"{hub.url}/{name}/commit/1", "commitOid": "1" * 40, "success": True})
        info = {
            "id": name,
            "sha": "1" * 40,
            "private": repo["private"],
            "siblings": [{"rfilename": f} for f in repo["files"]],
        }
        revision = rest.split("/")[2] if rest.startswith("/revision/") else "main"
        if revision not in repo["branches"]:
            return self.send({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
        if rest.startswith("/tree/"):
            return self.send(
                [{"type": "file", "path": f, "size": len(c), "oid": "0"} for f, c in repo["files"].items()]
            )
        return self.send(info)

    do_GET = do_POST = do_PUT = do_HEAD = answer


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in speaks git-lfs, not xet
    close_session()
    yield server
    close_session()
    server.shutdown()
    server.server_close()


@pytest.fixture
def saved(tmp_path):
    return tiny_policy(tmp_path / "model", lora=True)


def test_push_sends_every_file_as_it_is(hub, tmp_path, capsys):
    run = make_run("sft", tmp_path, steps=1)
    run.run()
    url = run.push("ann/sums", token="good", commit_message="first")
    assert url == f"{hub.url}/ann/sums"
    said = capsys.readouterr().out
    folder = run.save(tmp_path / "saved")
    want = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    repo = hub.repos["ann/sums"]
    assert repo["files"].keys() == want.keys() and repo["private"] is True and repo["message"] == "first"
    assert {n: hashlib.sha256(c).hexdigest() for n, c in repo["files"].items()} == {
        n: hashlib.sha256(c).hexdigest() for n, c in want.items()
    }
    assert "(new, private)" in said and f"Uploading {len(want)} files" in said and "adapter_model.safetensors" in said
    assert set(hub.cards) == {want["README.md"].decode()} and repo["branch"] == "main"


def test_push_of_a_policy_to_a_branch_and_again(hub, saved, capsys):
    url = saved.push("sums", private=False, revision="try", token="good")
    assert url == f"{hub.url}/ann/sums/tree/try" and hub.repos["ann/sums"]["private"] is False
    assert hub.repos["ann/sums"]["branch"] == "try" and "new, PUBLIC" in capsys.readouterr().out
    saved.push("ann/sums", token="good")
    assert hub.repos["ann/sums"]["branch"] == "main" and "that is there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("begin", "status", "kind", "said"),
    [
        ("/api/whoami", 401, SettingError, "does not know this token"),
        ("/api/repos/create", 403, SettingError, "may not write to ann/sums"),
        ("/api/models/ann/sums/commit", 403, SettingError, "may not write to ann/sums"),
        ("/api/models/ann/sums/commit", 409, SettingError, "taken by something else"),
        ("/api/repos/create", 400, RunError, "status 400"),
        ("/api/models/ann/sums/commit", 500, RunError, "status 500"),
    ],
)
def test_push_says_what_the_hub_said(hub, saved, begin, status, kind, said):
    hub.fail[begin] = status
    with pytest.raises(kind, match=said):
        saved.push("ann/sums", token="good")


def test_push_refuses_a_repository_of_another_kind(hub, saved):
    hub.repos["ann/sums"] = {"private": True, "files": {"config.json": b"{}"}, "branches": ["main"]}
    with pytest.raises(SettingError, match="holds a whole model, and this is an adapter"):
        saved.push("ann/sums", token="good")
    assert hub.repos["ann/sums"]["files"] == {"config.json": b"{}"}


def test_push_without_login_without_network_or_with_a_bad_name(hub, saved, monkeypatch):
    with pytest.raises(SettingError, match="hf auth login"):
        saved.push("ann/sums")
    with pytest.raises(SettingError, match="hf auth login"):
        saved.push("ann/sums", token="bad")
    for name in ("a b", "a/b/c", "", "a--b", 7):
        with pytest.raises(SettingError, match="is no name on the Hub"):
            saved.push(name)
    from huggingface_hub.utils import close_session

    hub.shutdown()
    hub.server_close()
    close_session()  # a connection that is kept alive would still be answered
    with pytest.raises(RunError, match="could not be reached"):
        saved.push("ann/sums", token="good")
    assert push._bytes(999) == "999 B" and push._bytes(1500) == "1.5 kB" and push._bytes(25e6) == "25 MB"


# -- the script ------------------------------------------------------------------------------------------------

BONUS = 2.0


def shifted(values):
    return [value + BONUS for value in values]


def by_length(completions, **kwargs):
    return shifted([float(len(text) % 5) for text in completions])


DRIVER = """
import runpy, sys
for script in sys.argv[1:]:
    sys.argv = [script, "--out", script.replace(".py", "_again")]
    runpy.run_path(script, run_name="__main__")
"""


def again(folder: Path, names: list[str]) -> str:
    """Run scripts, one after the other, in one process of their own; returns what they printed."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *(str(folder / f"{name}.py") for name in names)], capture_output=True, text=True,
        timeout=170, env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def fresh(folder: Path):
    """A policy that can be loaded again as it began: its adapter is as `attach` made it."""
    return tiny_policy(folder / "model").attach(wb.LoRA(r=4, alpha=8))


def assert_again(run, folder: Path) -> None:
    """The script's run has the run's metrics, bit by bit, at every step it has, and its last weights."""
    made = wb.open(folder)
    assert made.step == run.step
    for step in run.metrics.index:
        old, new = run.store.step_metrics(step), made.store.step_metrics(step)
        assert {k: repr(v) for k, v in old.items()} == {k: repr(v) for k, v in new.items()}, step
    ours, theirs = (r.engine.state.params for r in (run, wb.resume(folder, rewards=None, policy=run.engine.policy)))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours) and ours.keys() == theirs.keys()


def changed_run(method: str, tmp_path: Path):
    """Three steps, back to the first, two changes, and on."""
    run = make_run(method, tmp_path, policy=fresh(tmp_path), out=method, eval_dataset=rows_for(method, 4), steps=4)
    run.run(3)
    run.rewind(1)
    run.set(lr=3e-3)
    run.run(1)
    run.set(max_grad_norm=0.5, steps=5)
    return run.run()


def forked_run(tmp_path: Path):
    """A fork, with other rewards than its parent had, which themselves were changed."""
    run = make_run("grpo", tmp_path, policy=fresh(tmp_path), steps=4)
    run.set(rewards=[by_length])
    run.run(2)
    fork = run.fork(1, out=tmp_path / "fork", rewards=[by_length, letters], weights=[1.0, 0.5])
    fork.run(1)
    fork.set(group_size=2)
    return fork.run(1)


def notebook_run(tmp_path: Path):
    """A reward function of a notebook, edited under its own name."""
    first, second = notebook_functions("a+"), notebook_functions("b+")
    second["BONUS"] = first["BONUS"]
    task = wb.Task(rows_for("grpo"), rewards=[first["score"]])
    settings = dict(prompts_per_step=3, group_size=4, max_new_tokens=6, steps=3, lr=1e-2)
    run = wb.grpo(fresh(tmp_path), task, out=tmp_path / "notebook", **settings)
    run.run(1)
    run.set(rewards=[second["score"]])
    return run.run()


def test_scripts_make_their_runs_again_bit_by_bit(tmp_path):
    runs = {"sft": changed_run("sft", tmp_path), "dpo": changed_run("dpo", tmp_path)}
    runs |= {"fork": forked_run(tmp_path), "notebook": notebook_run(tmp_path)}
    texts = {name: run.script(tmp_path / f"{name}.py") for name, run in runs.items()}
    assert texts["sft"] == (tmp_path / "sft.py").read_text() and (tmp_path / "sft.rows.jsonl").exists()
    assert texts["sft"].count("run.set(") == texts["dpo"].count("run.set(") == 2
    assert "import tests.runs" in texts["fork"] and texts["fork"].count("run.set(") == 3
    assert "BONUS = 2.0" in texts["notebook"] and texts["notebook"].count("def score(") == 2
    assert not any("PUT YOUR FUNCTION" in text for text in texts.values())
    said = again(tmp_path, list(runs))
    assert len(re.findall(r"(\d+) of \1 metrics are exactly those of the record", said)) == 4
    for name, run in runs.items():
        if name != "notebook":
            assert_again(run, tmp_path / f"{name}_again")


def notebook_functions(pattern: str) -> dict:
    """Functions as a notebook has them: in a module that cannot be imported, with source."""
    import linecache

    source = (
        "import re\nBONUS = 2.0\n"
        "def shifted(values):\n    return [value + BONUS for value in values]\n"
        "def score(completions, **kwargs):\n"
        f"    found = [len(re.findall({pattern!r}, text)) for text in completions]\n"
        "    return shifted([float(len(text) % 5 + n) for text, n in zip(completions, found)])\n"
    )
    space, cell = {"__name__": "__main__"}, f"<cell {pattern}>"
    linecache.cache[cell] = (len(source), None, source.splitlines(True), cell)
    exec(compile(source, cell, "exec"), space)
    return space


def test_a_definition_takes_what_it_uses_and_refuses_what_it_cannot():
    from workbench.sharing.source import NoSource, definition

    imports, parts = definition(notebook_functions("a+")["score"])
    assert (
        imports == ["import re"] and list(parts) == ["BONUS", "shifted", "score"] and parts["BONUS"] == "BONUS = 2.0\n"
    )
    space = notebook_functions("a+")
    for value, said in ((object(), "BONUS, whose value"), (None, "")):
        space["BONUS"] = value
        if said:
            with pytest.raises(NoSource, match=said):
                definition(space["score"])
        else:
            assert definition(space["score"])[1]["BONUS"] == "BONUS = None\n"
    for fn in (lambda completions: [], print, wb.LoRA(), "".join):
        with pytest.raises(NoSource, match="not a plain function"):
            definition(fn)
    made: dict = {}
    exec("def nowhere(completions):\n    return []\n", made)
    with pytest.raises(NoSource, match="no source text"):
        definition(made["nowhere"])


def test_script_marks_what_it_cannot_know(tmp_path):
    secret = object()

    def closure(completions, **kwargs):
        return [0.0 if secret else 1.0 for _ in completions]

    task = wb.Task(rows_for("grpo"), rewards=[closure])
    run = wb.grpo(
        fresh(tmp_path), task, out=tmp_path / "run", steps=1, prompts_per_step=2, group_size=2, max_new_tokens=3
    )
    run.run()
    for text in (run.script(), wb.open(run.folder).script()):
        assert text.count("# PUT YOUR FUNCTION HERE") == 1
        space: dict = {}
        exec(compile(text.split("def main")[0], "script", "exec"), space)
        with pytest.raises(SystemExit, match="Put the reward function 'closure' here"):
            space["reward_1"]([], [])
    assert "of the function around it" in run.script()


def test_script_reads_ready_made_tasks_and_files_where_they_are(tmp_path):
    policy = wb.load("tiny").attach(wb.LoRA(r=4))
    task = wb.task("sums", size=16)
    run = wb.grpo(policy, task, out=tmp_path / "run", steps=1, prompts_per_step=2, group_size=2, max_new_tokens=3)
    run.run()
    text = run.script(tmp_path / "train.py")
    assert "'name': 'sums'" in text and not list(tmp_path.glob("*.jsonl"))
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows_for("sft")))
    policy.reset()
    other = wb.sft(policy, file, out=tmp_path / "other", steps=1, batch_size=2)
    other.run()
    text = other.script(tmp_path / "other.py")
    assert repr(str(file)) in text and not (tmp_path / "other.rows.jsonl").exists()
    file.write_text('{"prompt": "a", "completion": "b"}\n')  # changed since: the rows go with the script
    other.script(tmp_path / "other.py")
    assert wb.rows(tmp_path / "other.rows.jsonl").digest() == other.store.meta["data"]["digest"]
    (tmp_path / "other.rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    old = sys.argv
    try:
        sys.argv = ["other.py", "--out", str(tmp_path / "never")]
        with pytest.raises(SystemExit, match="These are not the rows of the run"):
            runpy.run_path(str(tmp_path / "other.py"), run_name="__main__")
    finally:
        sys.argv = old


def test_nothing_in_the_record_leaves_its_quotes(tmp_path):
    nasty = "\"\"\"'''\\\n\nimport os; os.abort()\n#\u2028\x00{x}"
    run = make_run("sft", tmp_path, steps=1)
    run.run()
    policy = run.store.meta["policy"] | {"model": nasty, "base": nasty, "revision": nasty, "device": nasty}
    run.engine.store.set_meta(name=nasty, started_from=nasty, policy=policy, versions={"torch": nasty})
    run.engine.store.set_meta(data={"kind": "rows", "source": nasty, "digest": nasty})
    import ast

    tree = ast.parse(run.script())
    assert "os" not in {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "abort"]
    assert "began with the weights of the run" in run.script()
