"""Markovian training: the answer is scored without the question, and both terms of the loss have their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import workbench as wb
from tests.models import exact_norms, tiny_policy
from tests.runs import weights
from workbench.analyses import reliance
from workbench.errors import DataError, SettingError
from workbench.launch import launch
from workbench.methods.actors import markovian

ROWS = [{"prompt": f"How much is {i} and {i}?", "answer": 2 * i} for i in range(8)]
SMALL = dict(steps=2, prompts_per_step=2, group_size=3, max_new_tokens=6, lr=1e-2, seed=3)


def nothing(completions, **kwargs):
    return [0.0] * len(completions)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("model"), lora=True)


@pytest.fixture
def make_run(policy, tmp_path):
    def made(method="markovian", out="run", rows=ROWS, using=None, **settings):
        task = wb.Task(rows, rewards=[nothing])
        return launch(method, (using or policy).reset(), task, tmp_path / out, None, SMALL | settings, None)

    return made


def encoded(policy, text):
    return policy.tokenizer.encode(text, add_special_tokens=False)


def test_the_answer_is_scored_without_the_question(make_run, policy):
    run = make_run()
    rollouts = next(iter(run)).rollouts
    context = run.engine.context_at(run.engine.state, 1)
    batch = markovian.answers(context, rollouts, rollouts.ids)
    for i, (ids, start) in enumerate(zip(batch.sequences, batch.starts, strict=True)):
        chain = [token for token in rollouts.ids[i] if token not in policy.stop_ids]
        assert ids[:start] == [*encoded(policy, "<Redacted>"), *chain, *encoded(policy, "\nAnswer:")]
        assert ids[start:] == encoded(policy, f" {rollouts.columns['answer'][i]}")
    whole, _ = markovian.batch(run.engine.state, context, rollouts)
    assert whole.unit == 2 and whole.columns["companion"] == [0.0, 1.0] * 6
    assert whole.sequences[1::2] == batch.sequences and whole.columns["keep"] == [1.0, 0.0] * 6


def test_the_control_keeps_the_question(make_run, policy):
    run = make_run(markovian=False)
    rollouts = next(iter(run)).rollouts
    batch = markovian.answers(run.engine.context_at(run.engine.state, 1), rollouts, rollouts.ids)
    assert policy.tokenizer.decode(batch.sequences[0]).startswith(rollouts.prompt[0])


def test_the_reward_is_what_the_chain_tells_beyond_a_frozen_one(make_run, policy):
    run = make_run()
    rollouts = next(iter(run)).rollouts
    policy.reset()
    greedy = policy.sample(list(dict.fromkeys(rollouts.prompt)), n=1, temperature=0.0, max_new_tokens=6)
    frozen = {prompt: ids for prompt, ids in zip(greedy.prompt, greedy.ids, strict=True)}

    def told(ids, answer):
        chain = [token for token in ids if token not in policy.stop_ids]
        before = [*encoded(policy, "<Redacted>"), *chain, *encoded(policy, "\nAnswer:")]
        return policy.score([before], [encoded(policy, f" {answer}")]).logprob[0].mean()

    for i, prompt in enumerate(rollouts.prompt):
        answer = rollouts.columns["answer"][i]
        wanted = told(rollouts.ids[i], answer) - told(frozen[prompt], answer)
        assert rollouts.reward[i] == pytest.approx(wanted, abs=1e-5)
    assert rollouts.reward == pytest.approx(rollouts.rewards["informativeness"])
    groups = np.array(rollouts.group)
    for group in set(rollouts.group):  # A of a group adds up to 0
        mine = rollouts.advantage[groups == group]
        assert abs(mine.sum()) < 1e-6 and np.abs(mine).max() > 0.5


def completions(policy, run):
    """Given rollouts: two groups, rewards of their own."""
    prompts = [ROWS[1]["prompt"]] * 3 + [ROWS[2]["prompt"]] * 2
    texts = ["one", "two words", "3!", "four", "a b c"]
    return wb.Rollouts.of(prompts, texts, rewards=[0.5, 1.0, -1.0, 0.2, 0.9], columns={"answer": [2, 2, 2, 4, 4]})


def plain_loss(policy, rollouts, coef):
    """mean_i [-A_i mean_t lp(c_it | q) - coef (r_i - mean) / std], std and mean constant."""
    model, tokenizer = policy.model, policy.tokenizer

    def mean_logp(before, after):
        logits = model(input_ids=torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
        return torch.log_softmax(logits, -1)[torch.arange(len(after)), torch.tensor(after)].mean()

    total, reward = 0.0, np.array(rollouts.reward)
    for i in range(len(rollouts)):
        mine = reward[np.array(rollouts.group) == rollouts.group[i]]
        scale = 1 / (mine.std(ddof=1) + 1e-4)
        chain = encoded(policy, rollouts.text[i])
        lp = mean_logp(tokenizer(rollouts.prompt[i])["input_ids"], chain)
        before = [*encoded(policy, "<Redacted>"), *chain, *encoded(policy, "\nAnswer:")]
        r = mean_logp(before, encoded(policy, f" {rollouts.columns['answer'][i]}"))
        total = total - scale * (reward[i] - mine.mean()) * lp - coef * scale * r
    return total / len(rollouts)


@pytest.mark.parametrize("coef", [0.0, 1.0, 0.4])
def test_gradients_are_those_of_both_terms(make_run, tmp_path, coef):
    exact = tiny_policy(tmp_path / "exact", lora=True, dtype="float64")
    exact_norms(exact)
    run = make_run(using=exact, beta=0.0, answer_coef=coef, micro_batch_size=2)
    rollouts = completions(exact, run)
    looked = run.gradients(rollouts)
    plain_loss(exact, rollouts, coef).backward()
    for name, p in exact.trainable().items():
        assert (looked.by_name[name] - p.grad).norm() <= 1e-9 * p.grad.norm(), name
    exact.model.zero_grad()
    if coef == 1.0:
        assert run.gradients(rollouts).norm() == pytest.approx(looked.norm(), rel=1e-12)
        assert abs(looked.loss) < 1e-9  # A adds up to 0 in either term


def test_answers_without_weight_leave_a_plain_policy_gradient(make_run, policy):
    run, base = make_run(answer_coef=0.0), make_run("grpo", "base", loss_type="grpo", beta=0.1)
    rollouts = completions(policy, run)
    ours, theirs = run.gradients(rollouts), base.gradients(rollouts)
    with_answers = make_run(out="third").gradients(rollouts)
    apart = sum(float((ours.by_name[n] - theirs.by_name[n]).norm() ** 2) for n in ours.by_name) ** 0.5
    assert apart < 5e-6 * theirs.norm() and ours.loss == pytest.approx(theirs.loss, abs=1e-6)
    assert abs(with_answers.norm() - ours.norm()) > 0.1 * ours.norm()


def test_equal_chains_teach_nothing(make_run, policy):
    run = make_run(beta=0.0)
    rollouts = completions(policy, run)
    rollouts.reward = np.array([0.3, 0.3, 0.3, -1.0, -1.0])
    rollouts.rewards = {"informativeness": rollouts.reward}
    assert run.gradients(rollouts).norm() < 1e-9


def test_updates_in_parts_and_going_back(make_run):
    run = make_run(steps_per_generation=2, num_iterations=2)
    after = [weights(run)] + [weights(run) for _ in run]
    run.engine.memory.clear()
    state = run.engine.restore(2)
    assert all(torch.equal(state.params[name], after[2][name]) for name in after[2])


@pytest.mark.parametrize(
    ("kind", "kept"),
    [("truncate_back", "12 ab "), ("truncate_front", " cd 34"), ("digits", None), ("characters", None)],
)
def test_spoilt_chains(kind, kept):
    chain = "12 ab cd 34"
    half, whole = (reliance.spoilt(chain, kind, share, key=3) for share in (0.5, 1.0))
    if kept is not None:
        assert (half, whole) == (kept, "")
        return
    apart = [sum(a != b for a, b in zip(chain, text, strict=True)) for text in (half, whole)]
    assert 0 < apart[0] <= apart[1] and [letter == " " for letter in whole] == [letter == " " for letter in chain]
    if kind == "digits":
        assert whole[3:8] == "ab cd" and whole[:2].isdigit() and whole[9:].isdigit()


def test_deleted_characters_leave_the_order():
    chain = "abcdefghij"
    half = reliance.spoilt(chain, "delete", 0.5, key=1)
    assert len(half) == 5 and "".join(sorted(half)) == half and half != chain[:5]
    assert reliance.spoilt(chain, "delete", 0.5, key=2) != half and reliance.spoilt(chain, "delete", 1.0, key=1) == ""


def test_the_drop_is_of_the_answers_log_prob(policy):
    policy.reset()
    made = reliance.chain_reliance(
        policy, ["Q1", "Q2"], ["one two", "six"], [7, 12], kinds=["truncate_back"], shares=[1.0]
    )
    first = policy.score(["<Redacted>one two\nAnswer:", "<Redacted>six\nAnswer:"], [" 7", " 12"]).logprob
    bare = policy.score(["<Redacted>\nAnswer:"] * 2, [" 7", " 12"]).logprob
    wanted = np.mean([a.mean() - b.mean() for a, b in zip(first, bare, strict=True)])
    assert made["markovian"][0] == pytest.approx(wanted, abs=1e-6)
    assert made["difference"][0] == pytest.approx(made["markovian"][0] - made["control"][0])
    for wrong, said in (({"kinds": ["cut"]}, "kind 'cut'"), ({"shares": [0]}, "share 0")):
        with pytest.raises(SettingError, match=said):
            reliance.chain_reliance(policy, ["Q"], ["c"], [1], **wrong)
    with pytest.raises(DataError, match="1 questions, 2 chains and 1 answers"):
        reliance.chain_reliance(policy, ["Q"], ["c", "d"], [1])


def test_rows_need_answers(make_run):
    with pytest.raises(DataError, match="Row 1 has no answer in the column 'answer'"):
        make_run(rows=[ROWS[0], {"prompt": "b", "answer": None}])
    with pytest.raises(DataError, match="column 'solution'"):
        make_run(answer_column="solution")
    with pytest.raises(DataError, match="have no column 'answer'"):
        make_run(out="looked").gradients(wb.Rollouts.of(["a", "a"], ["x", "y"], rewards=[0.0, 1.0]))
