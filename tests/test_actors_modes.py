"""Two modes of thinking in one group (adaptive_thinking), and answers in turns (mind)."""

from __future__ import annotations

import math
import types

import numpy as np
import pytest
import torch

import workbench as wb
from tests.models import exact_norms, tiny_policy
from tests.runs import letters, rows_for, weights
from workbench.errors import DataError, SettingError
from workbench.launch import launch
from workbench.methods.actors import adaptive_thinking as adaptive
from workbench.objectives import companions
from workbench.rewards import turns
from workbench.scoring import TokenScores

SMALL = dict(steps=3, prompts_per_step=3, group_size=4, max_new_tokens=5, lr=1e-2, seed=3)
MODES = dict(long_opening="L", short_opening="S", long_instruction="Long.", short_instruction="Short.")


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("model"), lora=True)


@pytest.fixture
def make_run(policy, tmp_path):
    def made(name, out="run", rewards=(letters,), rows=None, using=None, **changes):
        task = wb.Task(rows or rows_for("grpo"), rewards=list(rewards))
        more = MODES if name == "adaptive_thinking" else {}
        return launch(name, (using or policy).reset(), task, tmp_path / out, None, SMALL | more | changes, None)

    return made


def fine(completions, **kwargs):
    return [1.0] * len(completions)


# -- long or short


def test_half_of_each_group_is_told_to_think_long(make_run):
    rollouts = next(iter(make_run("adaptive_thinking"))).rollouts
    assert rollouts.columns["mode"] == ["long", "long", "short", "short"] * 3
    assert rollouts.group == [g for g in range(3) for _ in range(4)] and rollouts.sample == [0, 1, 2, 3] * 3
    for i in range(12):
        words = {"long": "Long.", "short": "Short."}[rollouts.columns["mode"][i]]
        assert rollouts.prompt_text[i] == f"{words}\n{rollouts.prompt[i]}"


def test_an_instruction_follows_the_last_message():
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    assert adaptive.instructed(chat, "Short.") == [chat[0], {"role": "user", "content": "q\nShort."}]
    assert adaptive.instructed(chat, "") is chat and adaptive.instructed("q", "Short.") == "Short.\nq"


def judged(long, short):
    """One group: verdicts of its long rows, then of its short rows."""
    right = np.array([*long, *short], dtype=float)
    modes = ["long"] * len(long) + ["short"] * len(short)
    return types.SimpleNamespace(group=[0] * len(right), rewards={"fine": right}, columns={"mode": modes})


@pytest.mark.parametrize(
    ("long", "short", "sign"),
    [
        ([1, 1, 1, 1], [1, 1, 1, 0], 1),  # 0.75 is the threshold
        ([1, 1, 1, 1], [1, 1, 0, 0], -1),
        ([1, 1, 0, 0], [1, 1, 0, 0], 1),  # no worse than long
        ([1, 0, 0, 0], [0, 0, 0, 0], -1),  # 0.25 below
        ([0, 0], [0, 0], 1),
        ([1, 1], [math.nan, math.nan], 0),
        ([1, math.nan], [1, 0], -1),
    ],
)
def test_when_short_is_enough(long, short, sign):
    settings = adaptive.AdaptiveSettings()
    task = types.SimpleNamespace(verdict="fine")
    assert adaptive.signs(judged(long, short), task, settings) == {0: sign}


def test_the_bonus_goes_to_the_mode_that_is_called_for(make_run):
    def right(completions, prompts, **kwargs):
        return [1.0, 1.0, 0.0, 0.0] * 2 + [1.0] * 4  # short fails in two groups

    rollouts = next(iter(make_run("adaptive_thinking", rewards=(right,), mode_bonus=0.5))).rollouts
    assert rollouts.rewards["mode"].tolist() == [0.5, 0.5, 0, 0] * 2 + [0, 0, 0.5, 0.5]
    assert rollouts.reward.tolist() == [1.5, 1.5, 0, 0] * 2 + [1, 1, 1.5, 1.5]


def test_the_loss_on_the_first_token():
    logprob = torch.tensor([[-1.0], [-2.0], [-3.0], [-1.0]], requires_grad=True)
    mask = torch.ones(4, 1, dtype=torch.bool)
    scores = TokenScores(logprob, logprob.detach(), mask, mask)
    columns = {"sign": torch.tensor([1.0, 1, -1, -1])}
    loss, metrics = companions.switching(scores, columns, {"companions": 4.0}, coef=0.1, temperature=1.0)
    # -log sigmoid(1) = 0.313262 and, as s = -1, -log sigmoid(2) = 0.126928
    assert float(loss.detach()) == pytest.approx(0.1 * (0.3132617 + 0.1269280) / 2, rel=1e-6)
    assert float(metrics["mode/loss"][0] / 2) == pytest.approx(0.2200949, rel=1e-6)
    loss.backward()
    slope = 0.05 / (1 + math.e)  # coef / P * sigmoid(-1)
    assert logprob.grad[:2, 0].tolist() == pytest.approx([-slope, slope], rel=1e-5)
    warm = companions.switching(scores, columns, {"companions": 4.0}, coef=0.1, temperature=2.0)[0]
    assert float(warm.detach()) == pytest.approx(0.1 * (0.1269280 + math.log1p(math.exp(-4))) / 2, rel=1e-6)


def test_only_the_first_position_of_the_plain_prompt_gets_it(make_run, tmp_path):
    exact = tiny_policy(tmp_path / "exact", lora=True, dtype="float64")
    exact_norms(exact)
    run = make_run("adaptive_thinking", using=exact, rewards=(fine,), mode_bonus=0.0, mode_loss_coef=0.3, lr=0.0)
    rollouts = next(iter(run)).rollouts  # all are right: advantages are 0, and short is enough
    looked = run.gradients(rollouts)
    loss = 0.0
    for prompt in dict.fromkeys(rollouts.prompt):
        logits = exact.model(input_ids=torch.tensor([exact.tokenizer(prompt)["input_ids"]])).logits[0, -1]
        short, long = (logits[exact.tokenizer.encode(text)[-1]] for text in ("S", "L"))
        loss = loss - 0.3 * torch.nn.functional.logsigmoid(short - long) / 3
    loss.backward()
    assert looked.loss == pytest.approx(float(loss.detach()), rel=1e-9)
    for name, p in exact.trainable().items():
        assert (looked.by_name[name] - p.grad).norm() <= 1e-8 * p.grad.norm(), name
    exact.model.zero_grad()


def test_the_choice_moves_where_it_is_pushed(make_run):
    run = make_run(
        "adaptive_thinking", rewards=(fine,), mode_bonus=0.0, mode_loss_coef=1.0, steps=6, rows=rows_for("grpo", 3)
    )
    share = [step.metrics["mode/short_share"] for step in run]
    assert share == sorted(share) and share[-1] > share[0] + 0.05


def test_modes_in_parts_and_going_back(make_run):
    run = make_run("adaptive_thinking", steps_per_generation=2, num_iterations=2, top_entropy_quantile=0.8)
    after = [weights(run)] + [weights(run) for _ in run]
    run.engine.memory.clear()
    state = run.engine.restore(2)
    assert all(torch.equal(state.params[name], after[2][name]) for name in after[2])


def mode(completions, **kwargs):
    return [0.0] * len(completions)


def test_modes_that_cannot_be(make_run):
    with pytest.raises(SettingError, match="group_size=3 must be even"):
        make_run("adaptive_thinking", group_size=3)
    with pytest.raises(SettingError, match="two different tokens"):
        make_run("adaptive_thinking", short_opening="Lo!")
    with pytest.raises(SettingError, match="two different tokens"):
        make_run("adaptive_thinking", short_opening="")
    with pytest.raises(SettingError, match="a reward named 'mode'"):
        make_run("adaptive_thinking", rewards=(mode,))
    with pytest.raises(SettingError, match="a column named 'mode'"):
        make_run("adaptive_thinking", rows=[{"prompt": "a", "mode": "fast"}])


# -- turns

GOOD = "<think>3 + 4 = 8.</think> 8<think>Wait, count again: 7.</think>\n#### 7"


def test_turns_there_and_back():
    made = turns.parse(GOOD)
    assert made == [("3 + 4 = 8.", " 8"), ("Wait, count again: 7.", "\n#### 7")]
    assert turns.written(made) == GOOD
    many = [turns.Turn(f"thought {i}\n", f" answer {i}\n") for i in range(5)]
    assert turns.parse(turns.written(many)) == many
    bad = ["", "8", "<think>a</think>", "<think>a", "a</think> b", "x<think>a</think> b"]
    bad += ["<think>a<think>b</think></think> c", "<think>a</think> <think>b</think> c"]
    assert [turns.parse(text) for text in bad] == [None] * len(bad)
    assert (
        turns.until(GOOD, 1) == "<think>3 + 4 = 8.</think> 8"
        and turns.until(GOOD, 9) == GOOD
        and turns.until("8", 1) == "8"
    )


def test_lines_of_attack():
    assert turns.lines_of_attack("Wait, it is 7.") == 1  # a turn may begin so
    assert turns.lines_of_attack("It is 8. Wait, it is 7. Alternatively, count.") == 3
    assert turns.lines_of_attack("The waiter waited.") == 1
    chain = "It is 8. Wait, it is 7.\nAlternatively, count: 7. I wait for it."
    assert turns.units(chain) == ["It is 8. ", "Wait, it is 7.\n", "Alternatively, count: 7. I wait for it."]
    assert "".join(turns.units(chain)) == chain and turns.units("Wait. A.") == ["Wait. A."] and turns.units(" ") == []


def test_rewards_of_turns():
    mixed = "<think>8. Wait, 7.</think> 7"
    assert turns.turn_format([GOOD, mixed, "7"]) == [1.0, 1.0, 0.0]
    assert turns.one_unit_a_turn([GOOD, mixed, "7", "8. Hmm, 7."]) == [0.0, -1.0, 0.0, -1.0]


def test_what_stopping_earlier_would_have_cost():
    def right(texts):
        return [float(text.rstrip().endswith("7")) for text in texts]

    assert turns.accuracy_by_turn([GOOD, "<think>a</think> 7", "8"], right) == pytest.approx([1 / 3, 2 / 3])
    with pytest.raises(DataError, match="gave 1 numbers for 3 texts"):
        turns.accuracy_by_turn(["a", "b", "c"], lambda texts: [1.0])


def test_rows_of_turns():
    rows = [
        {"prompt": "q", "completion": "It is 8. Wait, it is 7.", "answer": 7},
        {"prompt": "q", "completion": "<think>It is 8. Hmm. 7.</think> So 7", "answer": 7},
        {"prompt": "q", "completion": "wrong", "answer": 7},
    ]
    made = turns.mind_rows(
        rows, lambda row, thoughts: f" {len(thoughts)}!", keep=lambda row: row["completion"] != "wrong"
    )
    assert [row["completion"] for row in made] == [
        "<think>It is 8. </think> 1!<think>Wait, it is 7.</think> 2!",
        "<think>It is 8. </think> 1!<think>Hmm. 7.</think> So 7",
    ]
    assert made[0]["answer"] == 7 and all(turns.parse(row["completion"]) for row in made)
    with pytest.raises(DataError, match="row 0 has no text in the column 'trace'"):
        turns.mind_rows(rows, lambda row, thoughts: "", column="trace")
    with pytest.raises(DataError, match="no row is left"):
        turns.mind_rows(rows, lambda row, thoughts: "", keep=lambda row: False)


def test_mind_adds_its_rewards(make_run, policy, monkeypatch):
    texts = [GOOD, "<think>8. Wait, 7.</think> 7", "7", GOOD] * 3
    given = iter(texts * 3)
    monkeypatch.setattr(policy, "text_of", lambda ids: next(given))
    step = next(iter(make_run("mind", rewards=(fine,), unit_weight=0.3)))
    assert step.rollouts.rewards["turn_format"].tolist() == [1, 1, 0, 1] * 3
    assert step.rollouts.rewards["one_unit"].tolist() == [0, -0.3, 0, 0] * 3
    assert step.rollouts.reward == pytest.approx([2, 1.7, 1, 2] * 3)
    assert step.metrics["turns/mean"] == pytest.approx(5 / 3) and step.metrics["turns/share"] == 0.75


def turn_format(completions, **kwargs):
    return [0.0] * len(completions)


def test_mind_refuses_a_reward_of_its_names(make_run):
    with pytest.raises(SettingError, match="a reward named 'turn_format'"):
        make_run("mind", rewards=(turn_format,))
    make_run("mind", rewards=(turn_format,), format_weight=0.0)
    run = make_run("mind", rewards=(fine,))
    with pytest.raises(SettingError, match="format"):
        run.set(rewards=[turn_format])
    run.set(rewards=[turn_format], format_weight=0.0)
