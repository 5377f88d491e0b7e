"""Sharing: the model card and what it promises, the upload to a stand-in Hub."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml

from tests.models import tiny_policy
from tests.runs import make_run, rows_for
from workbench.errors import RunError, SettingError
from workbench.sharing import card

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
