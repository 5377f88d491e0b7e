"""Tasks: what they check, how they are rebuilt in a new process, and the ready-made ones."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from workbench import rewards
from workbench.errors import DataError, RewardError, RunError, SettingError
from workbench.rewards.reference import refer, resolve
from workbench.tasks import Task, rebuild, task
from workbench.tasks.gsm8k import reference_answer
from workbench.tasks.gym import TEST_SEED, gym_names

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("WORKBENCH_DATA") or ROOT.parent / "shared" / "data")
GSM8K = DATA / "gsm8k"
needs_gsm8k = pytest.mark.skipif(
    not GSM8K.is_dir(), reason=f"no GSM8K in the shared data folder ({GSM8K}); set WORKBENCH_DATA"
)
ROWS = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "2+2=", "answer": "4"}]


def right(completions, answer, **kwargs):
    return [float(c == a) for c, a in zip(completions, answer, strict=True)]


def length(completions, limit=3, **kwargs):
    return [min(len(c), limit) for c in completions]


def score(made, completions, rows=None):
    """The task's rewards of one completion for each of its first rows."""
    rows = made.rows[: len(completions)] if rows is None else rows
    columns = {name: rows.column(name) for name in rows.columns}
    return made.score(rows.column("prompt"), completions, None, columns)


# Task


def test_a_task_and_its_defaults():
    made = Task(ROWS, [right, length, length])
    assert len(made) == 2
    assert made.reward_names == ["right", "length", "length_2"]
    assert made.weights == [1.0, 1.0, 1.0]
    assert (made.verdict, made.kind, made.args) == ("right", "rows", {})
    assert score(made, ["2", "five"]).total.tolist() == [1 + 1 + 1, 0 + 3 + 3]


def test_weights_names_and_verdict():
    made = Task(ROWS, {"short": length, "ok": right}, weights=(0.5, 2), verdict="ok", name="sum")
    table = score(made, ["22", "4"])
    assert list(table.parts) == ["short", "ok"]
    assert table.total.tolist() == [1.0, 2.5]
    assert made.verdict == "ok" and "'sum'" in repr(made)


def test_rows_of_any_source(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert Task(path, [right]).rows.to_list() == ROWS
    rows = Task(ROWS, [right]).rows
    assert Task(rows, [right]).rows is rows


def test_other_rewards_for_the_same_rows():
    made = Task(ROWS, [length, right], weights=[1, 2], verdict="right")
    assert made.with_rewards([right]).verdict == "right"
    other = made.with_rewards([length], weights=[3])
    assert (other.verdict, other.weights, other.rows) == ("length", [3.0], made.rows)
    assert (made.verdict, made.reward_names) == ("right", ["length", "right"])


def test_a_column_that_a_function_needs():
    def needs(completions, anser):
        return []

    def single(prompt, completions):
        return []

    def optional(completions, difficulty=None, **kwargs):
        return []

    with pytest.raises(DataError, match="'needs' needs 'anser'.*Did you mean 'answer'.*default"):
        Task(ROWS, [right, needs])
    with pytest.raises(DataError, match="'single' needs 'prompt'.*Did you mean 'prompts'"):
        Task(ROWS, [single])
    Task(ROWS, [optional])
    from trl.rewards import get_soft_overlong_punishment

    with pytest.raises(DataError, match="'get_soft_overlong_punishment' needs 'max_completion_len'"):
        Task(ROWS, [get_soft_overlong_punishment])  # forgotten: the call that makes the function


def test_rows_that_make_no_task():
    with pytest.raises(DataError, match="prompt"):
        Task([{"text": "a"}], [length])
    with pytest.raises(DataError, match="Rename the row column 'log_extra'"):
        Task([{"prompt": "a", "log_extra": "b"}], [length])


def test_functions_that_make_no_task():
    with pytest.raises(SettingError, match=r"rewards=\[right\]"):
        Task(ROWS, right)
    with pytest.raises(SettingError, match="at least one function"):
        Task(ROWS, [])
    with pytest.raises(SettingError, match="1 functions, 2 weights"):
        Task(ROWS, [right], weights=[1, 2])
    with pytest.raises(SettingError, match="verdict='rigth'.*Did you mean 'right'"):
        Task(ROWS, [right, length], verdict="rigth")


# Rebuilding


def test_what_can_be_imported_again():
    from trl.rewards import get_soft_overlong_punishment, think_format_reward

    def inner(completions, **kwargs):
        return []

    assert refer(right) == {"path": f"{__name__}:right"}
    assert resolve(refer(right)) is right
    assert refer(inner) is None
    assert refer(lambda completions: []) is None
    assert resolve(refer(think_format_reward)) is think_format_reward
    punished = resolve(json.loads(json.dumps(refer(get_soft_overlong_punishment(100, 20)))))
    assert punished(completion_ids=[[1] * 90]) == [-0.5]
    assert resolve(refer(rewards.matches("a+"))) == rewards.matches("a+")
    short = resolve(json.loads(json.dumps(refer(functools.partial(length, limit=2)))))
    assert short(["abcd"]) == [2]
    assert refer(functools.partial(length, limit=object())) is None
    assert refer(functools.partial(inner, limit=2)) is None


def test_a_function_of_a_notebook_or_script_cannot_be_imported_again(monkeypatch):
    def cell(completions, **kwargs):
        return []

    cell.__module__, cell.__qualname__ = "__main__", "cell"
    monkeypatch.setattr(sys.modules["__main__"], "cell", cell, raising=False)
    assert refer(cell) is None


def test_a_function_that_something_else_now_goes_by():
    def shadow(completions, **kwargs):
        return []

    shadow.__module__, shadow.__qualname__ = __name__, "right"
    assert refer(shadow) is None


def test_rebuild_in_this_process():
    made = Task(ROWS, [right, rewards.matches("[0-9]+")], weights=[1, 0.5], name="t", verdict="matches")
    again = rebuild(json.loads(json.dumps(made.spec())), ROWS)
    assert again.reward_names == made.reward_names and again.weights == [1.0, 0.5]
    assert (again.name, again.verdict, again.kind) == ("t", "matches", "rows")
    assert score(again, ["2", "x"]).total.tolist() == score(made, ["2", "x"]).total.tolist() == [1.5, 0.0]
    assert again.spec() == made.spec()


def test_rebuild_asks_for_what_it_cannot_import():
    def mine(completions, **kwargs):
        return [1.0] * len(completions)

    def other(completions, **kwargs):
        return [2.0] * len(completions)

    spec = json.loads(json.dumps(Task(ROWS, [right, mine]).spec()))
    with pytest.raises(
        RunError, match=r"'mine' \(defined in a notebook.*rewards=\[mine\].*rewards=\{'mine': fn\}"
    ):
        rebuild(spec, ROWS)
    assert rebuild(spec, ROWS, rewards=[mine]).rewards == [right, mine]
    named = rebuild(spec, ROWS, rewards={"mine": other})
    assert named.reward_names == ["right", "mine"] and named.rewards == [right, other]
    with pytest.raises(RunError, match=r"no reward function 'other'.*It has: right, mine"):
        rebuild(spec, ROWS, rewards=[other])


def test_rebuild_names_a_module_that_is_gone():
    spec = Task(ROWS, [right]).spec()
    spec["rewards"][0]["reference"]["path"] = "no_such_module:right"
    with pytest.raises(RunError, match="'right'.*no_such_module:right.*ModuleNotFoundError"):
        rebuild(spec, ROWS)
    spec["rewards"][0]["reference"]["path"] = f"{__name__}:gone"
    with pytest.raises(RunError, match="AttributeError.*gone"):
        rebuild(spec, ROWS)


def test_rebuild_in_a_new_process():
    tasks = [task("sums", size=3), task("chain_sum", size=3, seed=5), Task(ROWS, [rewards.number])]
    payload = json.dumps([[made.spec(), made.rows.to_list()] for made in tasks])
    code = (
        "import json, sys\n"
        "from workbench.tasks import rebuild\n"
        "for spec, rows in json.load(sys.stdin):\n"
        "    made = rebuild(spec, rows)\n"
        "    answers = [f'#### {row[\"answer\"]}' if made.kind != 'gym' else row['answer'] for row in rows]\n"
        "    columns = {name: made.rows.column(name) for name in made.rows.columns}\n"
        "    table = made.score(made.rows.column('prompt'), answers, None, columns)\n"
        "    print(made.kind, made.name, made.reward_names[0], table.total.tolist())\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=payload, capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "sums sums correct [1.0, 1.0, 1.0]",
        "gym chain_sum chain_sum [1.0, 1.0, 1.0]",
        "rows task number [1.0, 1.0]",
        "False",
    ]


# Ready-made tasks


def test_unknown_names_and_options():
    for call, words in [
        (lambda: task("chian_sum"), "no task 'chian_sum'.*Did you mean 'chain_sum'"),
        (lambda: task("gsm8"), "Did you mean 'gsm8k'"),
        (lambda: task("sums", terms=3), "sums.*no option 'terms'"),
        (lambda: task("gsm8k", tempalte="x"), "no option 'tempalte'.*Did you mean 'template'"),
        (lambda: task("chain_sum", min_term=3), "no setting 'min_term'.*Did you mean 'min_terms'"),
        (lambda: task("chain_sum", min_terms=0), "chain_sum refuses.*min_terms must be positive"),
        (lambda: task("chain_sum", path="x"), "takes no path"),
        (lambda: task("chain_sum", split="tst"), "not 'tst'.*Did you mean 'test'"),
        (lambda: task("chain_sum", size=0), "size must be a whole number of rows from 1, not 0"),
        (lambda: task("chain_sum", seed="a"), "seed must be a whole number from 0, not 'a'"),
        (lambda: task("chain_sum", min_terms=object()), "plain numbers"),
        (lambda: task(ROWS), r"Task\(rows, rewards\)"),
    ]:
        with pytest.raises(SettingError, match=words):
            call()


def test_sums():
    made = task("sums", size=4, seed=1)
    assert (made.kind, made.args) == ("sums", {"size": 4, "seed": 1, "split": "train"})
    answers = [f"#### {row['answer']}" for row in made.rows]
    assert score(made, answers).total.tolist() == [1.0] * 4
    assert score(made, ["#### -1"] * 4).total.tolist() == [0.0] * 4
    held_out = {row["prompt"] for row in task("sums", size=200, split="test").rows}
    assert not held_out & {row["prompt"] for row in task("sums", size=200).rows}


def test_a_reasoning_gym_data_set_is_scored_by_its_own_verifier():
    import reasoning_gym

    made = task("chain_sum", size=5, seed=42, min_terms=2, max_terms=2)
    data = reasoning_gym.create_dataset("chain_sum", size=5, seed=42, min_terms=2, max_terms=2)
    assert [row["prompt"] for row in made.rows] == [entry["question"] for entry in data]
    answers = [row["answer"] for row in made.rows]
    assert score(made, answers).total.tolist() == [1.0] * 5
    tagged = [f"I think <answer>1</answer>, no: <answer> {a} </answer> that is it" for a in answers]
    assert score(made, tagged).total.tolist() == [1.0] * 5
    loose = [f"it is {a}" for a in answers]
    expected = [data.score_answer(text, data[i]) for i, text in enumerate(loose)]
    assert score(made, loose).total.tolist() == expected
    assert all(0 < value < 1 for value in expected)  # part of the reward: the answer stands among other text


def test_reasoning_gym_splits_and_seeds():
    train, test = task("chain_sum", size=50), task("chain_sum", size=50, split="test")
    assert not {r["prompt"] for r in train.rows} & {r["prompt"] for r in test.rows}
    assert [r["prompt"] for r in task("chain_sum", size=50, seed=TEST_SEED).rows] == [
        r["prompt"] for r in test.rows
    ]
    assert [r["prompt"] for r in task("chain_sum", size=50).rows] == [r["prompt"] for r in train.rows]


def test_reasoning_gym_entries_that_json_would_spoil():
    """Verifiers that need tuples or whole numbers as keys in the entry, and no single right answer."""
    import reasoning_gym

    for name in ("countdown", "sudoku", "knights_knaves", "n_queens"):
        made = task(name, size=2, seed=3)
        again = rebuild(json.loads(json.dumps(made.spec())), json.loads(json.dumps(made.rows.to_list())))
        assert score(again, [row["answer"] for row in made.rows]).total.tolist() == [1.0, 1.0], name
    made = task("graph_color", size=2, seed=3)
    assert made.rows[0]["answer"] is None
    entry = reasoning_gym.create_dataset("graph_color", size=2, seed=3)[0]
    puzzle = entry["metadata"]["puzzle"]
    colors = {}
    for vertex in puzzle["vertices"]:  # greedy; these graphs are sparse enough for it
        near = {colors.get(b if a == vertex else a) for a, b in puzzle["edges"] if vertex in (a, b)}
        colors[vertex] = next(color for color in puzzle["color_options"] if color not in near)
    found = score(made, [json.dumps({str(v): c for v, c in colors.items()}), "no idea"])
    assert found.total[0] == 1.0 and found.total[1] < 0.1


def test_reasoning_gym_answers_that_the_verifier_cannot_read():
    made = task("prime_factorization", size=2)
    table = score(made, ["abc", made.rows[1]["answer"]])
    assert table.total.tolist() == [0.0, 1.0]
    assert table.logged_metrics == {"rewards/prime_factorization/unreadable": 0.5}


def test_reasoning_gym_rows_of_another_version():
    made = task("chain_sum", size=2)
    rows = [{**row, "answer": "-77"} for row in made.rows]
    with pytest.raises(
        RewardError, match="entry 0 has the answer.*the row '-77'.*another version of reasoning-gym"
    ):
        score(rebuild(made.spec(), rows), ["1", "2"])


def test_reasoning_gym_chat_prompts():
    made = task("chain_sum", size=1, chat=True, system="simple", template="{question}\nUse the tags.")
    system, user = made.rows[0]["prompt"]
    assert system["role"] == "system" and "<answer>" in system["content"]
    assert user["role"] == "user" and user["content"].endswith("\nUse the tags.")
    assert score(made, [f"<answer>{made.rows[0]['answer']}</answer>"]).total.tolist() == [1.0]
    with pytest.raises(SettingError, match="system needs chat=True"):
        task("chain_sum", size=1, system="simple")
    with pytest.raises(SettingError, match="question.* in it"):
        task("chain_sum", size=1, template="{qestion}")


def test_gym_names():
    assert len(gym_names()) > 100 and "chain_sum" in gym_names()


# GSM8K


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_gsm8k_from_a_folder_or_file(tmp_path):
    write(
        tmp_path / "train.jsonl", {"question": "How much?", "answer": "2*500=<<2*500=1000>>1000\n#### 1,000"}
    )
    write(tmp_path / "test.jsonl", {"question": "Left?", "answer": "so\n#### -3"})
    made = task("gsm8k", path=tmp_path)
    assert made.rows.to_list() == [
        {"prompt": "How much?", "answer": "1000", "worked": "2*500=<<2*500=1000>>1000\n#### 1,000"}
    ]
    assert (made.reward_names, made.kind) == (["number"], "gsm8k")
    texts = ["It is $1,000.", "#### 1000", "1000.00", "100", "1000 or 1001"]
    expected = [1.0, 1.0, 1.0, 0.0, 0.0]
    table = made.score(["How much?"] * 5, texts, None, {"answer": ["1000"] * 5})
    assert table.total.tolist() == expected
    other = task("gsm8k", path=tmp_path / "test.jsonl", chat=True, template="Q: {question}")
    assert other.rows[0]["prompt"] == [{"role": "user", "content": "Q: Left?"}]
    assert score(other, ["minus 3 is -3"]).total.tolist() == [1.0]


def test_gsm8k_files_that_are_wrong(tmp_path):
    with pytest.raises(DataError, match="there is no file .*train.jsonl"):
        task("gsm8k", path=tmp_path)
    path = write(
        tmp_path / "train.jsonl", {"question": "a", "answer": "#### 1"}, {"question": "b", "answer": "2"}
    )
    with pytest.raises(DataError, match=r"row 1 .*train.jsonl, line 2.*#### <number>"):
        task("gsm8k", path=tmp_path)
    assert len(task("gsm8k", path=tmp_path, size=1)) == 1
    with pytest.raises(SettingError, match="size=3: .*has 2 rows"):
        write(path, {"question": "a", "answer": "#### 1"}, {"question": "b", "answer": "#### 2"})
        task("gsm8k", path=tmp_path, size=3)
    write(path, {"question": "a", "reply": "#### 1"})
    with pytest.raises(DataError, match="gsm8k needs the row column 'answer'"):
        task("gsm8k", path=tmp_path)


def test_gsm8k_from_the_hub_without_a_network(monkeypatch):
    import datasets

    def refuse(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match="openai/gsm8k.*no network.*path="):
        task("gsm8k")


def test_reference_answer():
    assert reference_answer("a\n#### 1,234") == "1234"
    assert reference_answer("#### 1\n#### 2 ") == "2"
    assert reference_answer("a") is None and reference_answer("####") is None


@needs_gsm8k
@pytest.mark.parametrize("split, size", [("train", 7473), ("test", 1319)])
def test_gsm8k_reference_answers_all_score_one(split, size):
    made = task("gsm8k", path=GSM8K, split=split)
    assert len(made) == size
    worked = made.rows.column("worked")
    assert score(made, worked).total.tolist() == [1.0] * size
    wrong = [text + "1" for text in worked]
    assert score(made, wrong).total.max() == 0.0


@needs_gsm8k
def test_gsm8k_reward_agrees_with_the_marks_of_model_solutions():
    made = task("gsm8k", path=GSM8K, split="test")
    lines = (GSM8K / "example_model_solutions.jsonl").read_text(encoding="utf-8").split("\n")
    records = [json.loads(line) for line in lines if line]
    for model in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
        marks = np.array([record[model]["is_correct"] for record in records], dtype=float)
        ours = score(made, [record[model]["solution"] for record in records]).total
        agreement = float((marks == ours).mean())
        assert agreement >= 0.97, f"{model}: {agreement:.4f}"
        assert 0.1 < marks.mean() < 0.7
