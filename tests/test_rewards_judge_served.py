"""The judge against the server that transformers ships, with a tiny random model."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.graders import judge_all
from tests.models import tiny_model_folder
from workbench import rewards
from workbench.errors import RewardError


@pytest.fixture(scope="module")
def real_server(tmp_path_factory):
    """(address, model name) of `transformers serve` with a tiny random model."""
    for package in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(package, reason=f"transformers serve needs {package} (the dev extra)")
    folder = tiny_model_folder(tmp_path_factory.mktemp("judge"), max_position_embeddings=4096)
    log = folder.parent / "log.txt"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"
    command = [sys.executable, "-c", code, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen([*command, "--device", "cpu"], stdout=output, stderr=output)
    try:
        end = time.monotonic() + 150
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < end, log.read_text()[-2000:]
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_a_real_server_answers(real_server):
    """A random model writes nonsense: each request is accepted, and each answer is counted as unparsable."""
    url, model = real_server
    judge = rewards.judge(url, model, options={"max_tokens": 8}, timeout=60)
    found, metrics, told = judge_all(judge, ["4", "5", "\ud83d \u6211 {prompt}"])
    assert np.isnan(found).all() and metrics["judge/judge/unparsable"] == 3.0, told
    assert metrics["judge/judge/none_share"] == 1.0 and len(told) == 1
    with pytest.raises(RewardError, match="no score in the form asked for"):
        judge.check()


def test_numbers_come_back_from_a_real_server(real_server):
    url, model = real_server
    short = {"max_tokens": 8}
    judge = rewards.judge(url, model, options=short, timeout=60, parse=lambda answer: sum(map(ord, answer)) % 11)
    found, metrics, told = judge_all(judge, [f"completion {i}" for i in range(8)])
    assert metrics["judge/judge/none_share"] == 0.0 and told == []
    assert ((found >= 0) & (found <= 1)).all() and len(set(found)) > 1
    again, _, _ = judge_all(rewards.judge(url, model, options=short, parse=judge.parse), ["completion 0"])
    assert again[0] == found[0]  # temperature 0


def test_a_real_server_refuses_another_model(real_server):
    url, _ = real_server
    _, metrics, told = judge_all(rewards.judge(url, "another", timeout=60), ["a"])
    assert metrics["judge/judge/errors"] == 1.0 and "HTTP 400" in told[0] and "another" in told[0]
