"""Small changes to a step of GRPO: neutral settings, exact replay of what they draw and keep, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import workbench as wb
from tests.models import tiny_policy
from tests.runs import assert_same_weights, weights
from workbench import keys
from workbench.errors import DataError, SettingError
from workbench.launch import launch
from workbench.methods import rl_batch
from workbench.methods.policy import uft
from workbench.tokenise import prompt as tokenised

ROWS = [
    {"prompt": f"Say {i}:", "answer": i, "demonstration": f" d{i}", "solution": ["a", "bc", f"{i}"]} for i in range(6)
]
SMALL = dict(steps=4, lr=1e-2, prompts_per_step=3, group_size=4, max_new_tokens=6, seed=3, snapshot_steps=100)


def third(completions, **kwargs):
    """Right a third of the time, whatever the model."""
    texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    return [float(sum(map(ord, text)) % 3 == 0) for text in texts]


TASK = wb.Task(ROWS, rewards=[third])
METHODS = {
    "aapo": {},
    "aapo, cached": {"reference_rewards": "cached"},
    "bon_aware": {"best_of": 4},
    "srft": {},
    "uft": {"hint_steps": 3, "hint_coef": 0.5},
    "relift": {"buffer_size": 2, "sft_lr": 1e-2},
    "entropy_band": {},
}
NEUTRAL = {
    "aapo": {"bonus_low": 0.0, "bonus_high": 0.0, "likelihood": False},
    "bon_aware": {"best_of": 1, "scale_rewards": "group"},
    "srft": {"imitation": 0.0, "off_policy": 0.0, "right_weight": None},
    "uft": {"hint_steps": 0, "beta": 0.05},
    "relift": {
        "buffer_size": 0, "clipped": True, "scale_rewards": "group", "loss_type": "dapo", "entropy_coef": 0.0,
        "max_grad_norm": 1.0,
    },
    "entropy_band": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("model"), lora=True)


def start(name, policy, out, task=TASK, **settings):
    return launch(name.split(",")[0], policy.reset(), task, out, None, SMALL | settings, None)


def trained(run):
    """The weights after each step, the start's first."""
    return [weights(run)] + [weights(run) for _ in run]


MORE = {"num_iterations": 2, "steps_per_generation": 2, "beta": 0.05, "steps": 2}


@pytest.fixture(scope="module")
def plain(policy, tmp_path_factory):
    run = start("grpo", policy, tmp_path_factory.mktemp("plain") / "run", **MORE)
    return run, trained(run)


@pytest.mark.parametrize("name", NEUTRAL)
def test_the_neutral_setting_is_grpo(name, plain, policy, tmp_path):
    base, expected = plain
    run = start(name, policy, tmp_path / "run", **MORE | NEUTRAL[name])
    made = trained(run)
    for before, after in zip(expected, made, strict=True):
        assert_same_weights(before, after)
    for metric in ("loss", "grad_norm", "reward", "kl"):
        assert base.metrics[metric].iloc[1:].equals(run.metrics[metric].iloc[1:]), metric
    for step in (1, 2):
        a, b = base.store.load_rollouts(step), run.store.load_rollouts(step)
        assert a.ids == b.ids and a.prompt_ids == b.prompt_ids and np.array_equal(a.advantage, b.advantage)


@pytest.mark.parametrize("name", METHODS)
def test_replay_gives_every_step_again_and_samples_nothing(name, policy, tmp_path, monkeypatch):
    run = start(name, policy, tmp_path / "run", num_iterations=2, **METHODS[name])
    after = trained(run)
    last, frame, optim = run.engine.state.clone(), run.metrics, run.engine.state.optim
    assert not torch.equal(*(next(iter(w.values())) for w in (after[3], after[4])))
    run.engine.memory.clear()
    with monkeypatch.context() as patch:
        patch.setattr(type(policy), "sample_prompts", None)
        run.rewind(2)
    assert_same_weights(weights(run), after[2])
    run.run()
    assert_same_weights(weights(run), after[4])
    now = run.engine.state
    assert now.json == last.json and now.optim.keys() == optim.keys()
    for kind in optim:
        for parameter, slots in optim[kind].items():
            assert all(torch.equal(slots[s], now.optim[kind][parameter][s]) for s in slots)
    assert frame.loc[3:, "loss"].equals(run.metrics.loc[3:, "loss"])


@pytest.mark.parametrize("name", ["srft", "uft", "relift", "aapo, cached"])
def test_a_stopped_run_goes_on(name, policy, tmp_path):
    whole = start(name, policy, tmp_path / "whole", **METHODS[name])
    expected = trained(whole)[-1]
    run = start(name, policy, tmp_path / "run", **METHODS[name])
    for step in run:
        if step.index == 3:
            break
    run.stop()
    again = wb.resume(tmp_path / "run", policy=policy.reset(), rewards={"third": third})
    again.run()
    assert_same_weights(weights(again), expected)


@pytest.mark.parametrize("name", ["srft", "uft", "aapo", "relift"])
def test_micro_batches_change_no_gradient(name, policy, tmp_path):
    """Plain gradient descent: AdamW's first step has the sign of each gradient, rounding and all."""
    made = []
    for size in (None, 2):
        more = METHODS[name] | {"micro_batch_size": size, "optim": "sgd", "lr": 0.1, "steps": 1, "sft_lr": 0.1}
        more = {k: v for k, v in more.items() if name == "relift" or k != "sft_lr"}
        made.append(trained(start(name, policy, tmp_path / f"{size}", **more)))
    (before, one), (_, other) = made
    change = sum(float((one[n] - before[n]).norm() ** 2) for n in one) ** 0.5
    apart = sum(float((one[n] - other[n]).norm() ** 2) for n in one) ** 0.5
    assert change > 0 and apart <= 5e-6 * change


# -- what each keeps with the rollouts


def test_aapo_asks_the_reference_and_not_the_policy(policy, tmp_path):
    run = start("aapo", policy, tmp_path / "run", lr=0.05)
    run.run(3)
    made = run.store.load_rollouts(3)
    policy.reset()
    for group in (0, 2):
        at = made.group.index(group)
        row = made.row[at]
        seeds = [keys.key(3, "sample", "reference", 3, 9, row, number, at) for number in range(4)]
        given = policy.sample_prompts([tokenised(f"Say {row}:", policy.tokenizer)], 4, max_new_tokens=6, keys=seeds)
        assert given.text == made.columns["reference_completion"][at : at + 4]
        assert third(given.text) == made.columns["reference_reward"][at : at + 4]
    plain = (made.reward.reshape(3, 4) - made.reward.reshape(3, 4).mean(1, keepdims=True)).ravel()
    spread = made.reward.reshape(3, 4).std(1, ddof=1, keepdims=True).repeat(4, 1).ravel() + 1e-4
    bonus = np.clip(made.reward - np.array(made.columns["reference_reward"]), -0.2, 0.28)
    assert made.advantage == pytest.approx(plain / spread + bonus)


def rises(completions, trainer_state, **kwargs):
    """A reward that knows how far the run is."""
    return [float(sum(map(ord, text)) % 3 == 0) + trainer_state.global_step for text in completions]


@pytest.mark.parametrize("snapshot_steps", [1, 100])
def test_what_the_reference_earned_is_kept_with_the_run(snapshot_steps, policy, tmp_path):
    """By another process too, with a snapshot or by replay, where the reward is another one by then."""
    how = dict(reference_rewards="cached", steps=5, snapshot_steps=snapshot_steps)
    whole = start("aapo", policy, tmp_path / "whole", wb.Task(ROWS, rewards=[rises]), **how)
    expected = trained(whole)[-1]
    earned = [whole.store.load_rollouts(step).columns["reference_reward"] for step in range(1, 6)]
    assert max(earned[0]) <= 1 and max(map(max, earned[2:])) < 2, "all six rows are drawn in steps 1 and 2"
    run = start("aapo", policy, tmp_path / "run", wb.Task(ROWS, rewards=[rises]), **how)
    for step in run:
        if step.index == 3:
            break
    run.stop()
    again = wb.resume(tmp_path / "run", policy=policy.reset(), rewards={"rises": rises})
    again.run()
    assert [again.store.load_rollouts(step).columns["reference_reward"] for step in range(1, 6)] == earned
    assert_same_weights(weights(again), expected)


@pytest.mark.parametrize("change", [{"rewards": {"rises": third}}, {"weights": [2.0]}, {"temperature": 0.5}])
def test_the_reference_is_asked_again_where_rewards_or_sampling_change(change, policy, tmp_path):
    run = start("aapo", policy, tmp_path / "run", wb.Task(ROWS, rewards=[rises]), reference_rewards="cached", steps=5)
    for step in run:
        if step.index == 3:
            break
    run.set(**change)
    asked, sample = [], type(policy).sample_prompts
    with pytest.MonkeyPatch.context() as patch:
        def counted(self, prompts, *args, **kwargs):
            asked.append(len(prompts))
            return sample(self, prompts, *args, **kwargs)

        patch.setattr(type(policy), "sample_prompts", counted)
        run.run()
    assert asked == [3, 3, 3, 1], "the policy and the reference in step 4; in step 5 one row is new to the reference"
    before, last = run.engine.state.tensors["aapo_reference"].clone(), run.engine.state.json
    run.engine.memory.clear()
    run.rewind(4)
    run.run()
    assert torch.equal(run.engine.state.tensors["aapo_reference"], before) and run.engine.state.json == last


def test_aapo_teaches_groups_of_equal_rewards(policy, tmp_path):
    def solved(completions, **kwargs):
        return [1.0] * len(completions)

    run = start("aapo", policy, tmp_path / "equal", wb.Task(ROWS, rewards=[solved]), steps=1)
    run.run()
    assert run.metrics.loc[1, "grad_norm"] == 0 and run.metrics.loc[1, "reference/revived_groups"] == 0
    calls = []

    def policy_only(completions, **kwargs):  # the reference is scored second
        calls.append(len(completions))
        return [float(len(calls) % 2)] * len(completions)

    run = start("aapo", policy, tmp_path / "run", wb.Task(ROWS, rewards=[policy_only]), steps=1)
    run.run()
    assert run.store.load_rollouts(1).advantage == pytest.approx(0.28)
    assert run.metrics.loc[1, "grad_norm"] > 0 and run.metrics.loc[1, "reference/revived_groups"] == 1


def test_a_demonstration_joins_its_group(policy, tmp_path):
    def shown(completions, **kwargs):
        return [float(text.startswith(" d")) for text in completions]

    run = start("srft", policy, tmp_path / "run", wb.Task(ROWS, rewards=[shown]), steps=1)
    step = next(iter(run))
    made = step.rollouts
    assert len(made) == 15 and made.group == [0] * 5 + [1] * 5 + [2] * 5
    assert made.columns["shown"] == [0, 0, 0, 0, 1] * 3 and made.finish_reason[4] == "given"
    assert made.text[4] == f" d{made.row[4]}" and made.ids[4][-1] in policy.stop_ids
    assert made.prompt_ids[4] == made.prompt_ids[0] and made.sample[4] == 4
    # rewards 0, 0, 0, 0, 1: mean 0.2, deviation 0.44721
    assert made.advantage[:5] == pytest.approx([-0.44711] * 4 + [1.78846], abs=1e-4)
    assert step.metrics["reward"] == 0, "the curve is the policy's own"
    assert np.isnan(made.logprob[4]).all() and run.rollouts()["completion"].tolist() == made.text


def test_hints_shorten_and_are_read_with_the_completion(policy, tmp_path):
    seen = []

    def reads(completions, **kwargs):
        seen.append(list(completions))
        return [float(len(text) % 2) for text in completions]

    task = wb.Task(ROWS, rewards=[reads])
    run = start("uft", policy, tmp_path / "run", task, hint_steps=1, hint_high=1.0, hint_low=1.0, lr=0.0, steps=3)
    made = [step.rollouts for step in run]
    first = made[0]
    whole = [f"abc{row}" for row in first.row]
    assert first.columns["hint"] == whole and first.columns["hint_tokens"] == [4] * 12
    assert [policy.text_of(p[-4:]) for p in first.prompt_ids] == whole
    assert first.prompt_text[0] == f"Say {first.row[0]}:abc{first.row[0]}"
    assert seen[0] == [hint + text for hint, text in zip(whole, first.text, strict=True)], "and once a step"
    assert list(first.reward) == [float(len(text) % 2) for text in seen[0]] and len(seen) == 3
    assert made[2].columns["hint_tokens"] == [0] * 12, "t = 2 is past T_hint"
    assert run.metrics["hint/share"].tolist()[1:] == [1.0, 1.0, 0.0]


def test_what_rewards_log_is_of_hint_and_completion(policy, tmp_path):
    def reads(completions, log_metric, **kwargs):
        assert "hint" not in kwargs and "hint_tokens" not in kwargs
        log_metric("hinted", float(np.mean([text.startswith("abc") for text in completions])))
        return [0.0] * len(completions)

    settings = dict(hint_steps=1, hint_high=1.0, hint_low=1.0, lr=0.0, steps=3)
    run = start("uft", policy, tmp_path / "run", wb.Task(ROWS, rewards=[reads]), **settings)
    run.run()
    (name,) = [name for name in run.metrics if name.endswith("hinted")]
    assert run.metrics[name].tolist()[1:] == [1.0, 1.0, 0.0]


def test_the_pieces_of_solutions_are_those_of_the_run(policy, tmp_path):
    run = start("uft", policy, tmp_path / "run")
    with pytest.raises(SettingError, match="hint_pieces cannot change within a run"):
        run.set(hint_pieces=2)


def test_one_hint_for_a_group_by_the_key_alone(policy, tmp_path):
    run = start("uft", policy, tmp_path / "run", hint_steps=50, hint_high=0.6, hint_low=0.6, steps=2)
    made = [step.rollouts for step in run]
    for one in made:
        for group in range(3):
            assert len({one.columns["hint"][i] for i in range(12) if one.group[i] == group}) == 1
    assert len({hint for one in made for hint in one.columns["hint_share"]}) > 1


def test_relift_fills_its_buffer_and_trains_once_it_is_full(policy, tmp_path):
    def never_row_0(completions, answer, **kwargs):
        return [-1.0 if a == 1 else float(a != 0 and i % 2) for i, a in enumerate(answer)]

    settings = dict(buffer_size=2, prompts_per_step=6, steps=5, sft_lr=1e-2, sft_entropy_coef=0.0)
    run = start("relift", policy, tmp_path / "run", wb.Task(ROWS, rewards=[never_row_0]), **settings)
    buffers, counts, moments = [], [], []
    for _ in run:
        state = run.engine.state
        buffers.append(state.json["relift_buffer"])
        slots = state.optim.get("relift_adamw", {})
        moments.append({name: s["exp_avg"].clone() for name, s in slots.items()})
        every = [*list(state.optim["adamw"].values())[:1], *slots.values()]
        counts.append([int(one["step"]) for one in every])
    assert buffers == [[0], [], [0], [], [0]], "row 0 alone is well formed and never right"
    assert [c[0] for c in counts] == [1, 2, 3, 4, 5] and [c[1:2] for c in counts] == [[], [1], [1], [2], [2]]
    assert all(torch.equal(moments[1][n], moments[2][n]) for n in moments[1])
    assert any(not torch.equal(moments[1][n], moments[3][n]) for n in moments[1])
    fired = run.metrics["sft/loss"]
    assert fired.notna().tolist() == [False, False, True, False, True, False]
    assert fired[4] < fired[2], "its demonstration became likelier"


def test_relifts_supervised_loss_is_the_mean_over_tokens(policy, tmp_path):
    def wrong(completions, **kwargs):
        return [0.0] * len(completions)

    more = dict(buffer_size=3, steps=1, lr=0.0, sft_entropy_coef=0.1, temperature=0.7, entropy_coef=0.0)
    run = start("relift", policy, tmp_path / "run", wb.Task(ROWS, rewards=[wrong]), **more)
    step = next(iter(run))
    policy.reset()
    rows = dict.fromkeys(step.rollouts.row)
    end = policy.tokenizer.eos_token_id
    answers = [[*policy.tokenizer(f" d{row}")["input_ids"], end] for row in rows]
    scores = policy.score([f"Say {row}:" for row in rows], answers)
    nll = -np.concatenate([np.asarray(one) for one in scores.logprob]).mean()
    entropy = np.concatenate([np.asarray(one) for one in scores.entropy]).mean()
    assert step.metrics["sft/nll"] == pytest.approx(nll, abs=1e-5)
    assert step.metrics["sft/loss"] == pytest.approx(nll - 0.1 * entropy, abs=1e-5)
    assert step.metrics["relift/solve_none"] == 1 and step.metrics["relift/buffer"] == 0


def test_supervised_moments_of_another_optimiser_are_dropped(policy, tmp_path):
    def wrong(completions, **kwargs):
        return [0.0] * len(completions)

    settings = dict(buffer_size=3, sft_lr=1e-2, steps=3)
    run = start("relift", policy, tmp_path / "run", wb.Task(ROWS, rewards=[wrong]), **settings)
    for optim, slots in (("adamw_torch", "adamw"), ("sgd", "sgd"), ("adamw_torch", "adamw")):
        run.set(optim=optim) if optim != run.settings["optim"] else None
        for _ in run:
            break
        kept = run.engine.state.optim
        assert kept.keys() == {slots, f"relift_{slots}"}
    counts = {name: [float(one["step"]) for one in kept[name].values()] for name in ("adamw", "relift_adamw")}
    assert set(counts["adamw"]) == set(counts["relift_adamw"]) == {1.0}


def test_the_entropy_band_warns_when_it_is_left(policy, tmp_path):
    run = start("entropy_band", policy, tmp_path / "run", entropy_low=0.1, entropy_high=0.5, lr=0.0)
    with pytest.warns(UserWarning, match="above the band of 0.1 to 0.5") as said:
        run.run(2)
    assert len([w for w in said if "band" in str(w.message)]) == 1, "not at every step"
    assert run.metrics["entropy_band/outside"].tolist()[1:] == [1.0, 1.0]
    made = run.store.load_rollouts(2)
    assert run.metrics.loc[2, "entropy_band/sampled"] == pytest.approx(float(np.concatenate(made.entropy).mean()))
    run.set(entropy_high=9.0)
    run.run(1)
    assert run.metrics.loc[3, "entropy_band/outside"] == 0


# -- demonstrations as given


def test_demonstrations_of_conversations_end_as_the_template_does(tmp_path):
    policy = tiny_policy(tmp_path / "model", lora=True)
    rows = [{"prompt": [{"role": "user", "content": "hi"}], "demonstration": "yes", "answer": 0}] * 2
    run = start("srft", policy, tmp_path / "run", wb.Task(rows, rewards=[third]), prompts_per_step=1, steps=1)
    made = next(iter(run)).rollouts
    end = policy.tokenizer.convert_tokens_to_ids("<end>")
    assert made.ids[4] == [*policy.tokenizer("yes")["input_ids"], end] and made.text[4].startswith("yes")
    assert made.prompt_ids[4] == made.prompt_ids[0]


def test_long_demonstrations_are_cut_and_said_to_be(policy, tmp_path):
    rows = [{**row, "demonstration": " much longer than six" if row["answer"] else None} for row in ROWS]
    with pytest.warns(UserWarning, match="5 of 5 demonstrations are longer than max_new_tokens=6"):
        run = start("srft", policy, tmp_path / "run", wb.Task(rows, rewards=[third]), prompts_per_step=6, steps=1)
    made = next(iter(run)).rollouts
    assert sum(made.columns["shown"]) == 5 and made.text[made.columns["shown"].index(1)] == " much "


# -- what is refused, before any work


@pytest.mark.parametrize(
    ("name", "rows", "settings", "error", "match"),
    [
        ("srft", [{"prompt": "x", "answer": 1}], {}, DataError, "give rows a column 'demonstration'"),
        ("relift", [{"prompt": "x", "answer": 1}], {}, DataError, "give rows a column 'demonstration'"),
        ("srft", [{"prompt": "x", "demonstration": 3}], {}, DataError, "Row 0: demonstration must be text"),
        ("srft", [{"prompt": "x", "demonstration": "y", "shown": 1}], {}, SettingError, "column 'shown'"),
        ("uft", [{"prompt": "x", "answer": 1}], {}, DataError, "solution"),
        ("uft", [{"prompt": "x", "solution": ["a"]}, {"prompt": "x", "solution": 4}], {}, DataError, "Row 1: solution"),
        ("uft", [{"prompt": "x", "solution": "long " * 60}], {}, DataError, "too long"),
        ("uft", [{"prompt": "x", "solution": "a", "hint": "b"}], {}, SettingError, "column 'hint'"),
        ("uft", ROWS, {"hint_high": 1.5}, SettingError, "hint_high=1.5 must be at most 1"),
        ("aapo", ROWS, {"bonus_low": 0.1}, SettingError, "bonus_low=0.1 must be at most 0"),
        ("aapo", ROWS, {"reference_rewards": "cached", "sync_ref_model": True}, SettingError, "stands still"),
        ("aapo", [{"prompt": "x", "reference_reward": 1}], {}, SettingError, "column 'reference_reward'"),
        ("relift", ROWS, {"dynamic_sampling": True}, SettingError, "what the buffer is for"),
        ("bon_aware", ROWS, {"form": "both"}, SettingError, "form='both' is not known"),
        ("bon_aware", ROWS, {"advantage_estimator": "none", "group_size": 1}, SettingError, "2 at least"),
        ("entropy_band", ROWS, {"entropy_low": 0.5}, SettingError, "must be below entropy_high"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_training(name, rows, settings, error, match, policy, tmp_path):
    with pytest.raises(error, match=match):
        start(name, policy, tmp_path / "run", wb.Task(rows, rewards=[third]), **settings)
    assert not (tmp_path / "run").exists()


def test_pieces_of_a_solution():
    assert uft.pieces("a\nb\nc", 5) == ["a\n", "b\n", "c"]
    assert uft.pieces("First. Second one. Third.", 2) == ["First. Second one. ", "Third."]
    assert uft.pieces([*"abcdefg"], 5) == ["a", "bc", "d", "ef", "g"], "cuts at round(i / 5 * 7): 1, 3, 4, 6"
    assert "".join(uft.pieces("one\ntwo three\n", 5)) == "one\ntwo three\n"


def test_the_first_of_each_group_in_the_order_of_groups(policy):
    made = policy.sample(["a", "b", "c", "d", "e"], max_new_tokens=1)
    made.group = [2, 0, 2, 1, 0]
    assert rl_batch.first_of_groups(made) == [0, 1, 3]


def test_a_reward_name_that_is_taken():
    rl_batch.check_free(["exploit"], ["right", "explore"], "memory_r_plus")
    with pytest.raises(SettingError, match="mind adds a reward named 'b', and the task has one.*, or set w=0\\."):
        rl_batch.check_free(["a", "b"], ["b"], "mind", ", or set w=0")
