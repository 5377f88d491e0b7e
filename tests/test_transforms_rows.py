"""Row transforms alone: what they make of rows, what they refuse, and their helpers with a stub of a policy."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from workbench.errors import DataError, SettingError
from workbench.sampling.rollouts import Rollouts
from workbench.tasks import Task
from workbench.transforms import (
    contextual,
    critique,
    ls_mixture,
    many_shot,
    parts,
    perturb,
    question_free,
    thought_mask,
    unfamiliar,
)

ROWS = [{"prompt": f"Q{i}?", "completion": f" say {i}", "answer": i} for i in range(20)]
TALK = [
    {"prompt": [{"role": "user", "content": ask}], "completion": [{"role": "assistant", "content": say}]}
    for ask, say in ((row["prompt"], row["completion"]) for row in ROWS)
]
CHAIN = "\n\n".join(f"step {letter} 1{i}, so 4.5" for i, letter in enumerate("abcdefgh"))
CHAINS = [{"prompt": "q", "completion": f"{CHAIN}\n\nanswer 12"}, {"prompt": "q", "completion": "x\n\ny\n\nanswer 7"}]


class Stub:
    """A policy that says `says(prompt, sample)`."""

    def __init__(self, says):
        self.says, self.asked = says, []

    def sample(self, prompts, n=4, seed=0, **how):
        self.asked.append(list(prompts))
        made = Rollouts.of([p for p in prompts for _ in range(n)], [self.says(p, k) for p in prompts for k in range(n)])
        made.row = [row for row in range(len(prompts)) for _ in range(n)]
        return made


def right(completions, answer, **kwargs):
    return [float(text.strip() == str(a)) for text, a in zip(completions, answer, strict=True)]


def text_of(row):
    return parts.answer_of(row, 0)


# -- shared


def test_shares_are_exact_and_nested():
    few, more = parts.drawn(20, 0.25, "a"), parts.drawn(20, 0.5, "a")
    assert len(few) == 5 and len(more) == 10 and few < more
    assert parts.drawn(20, 0.0, "a") == set() and parts.drawn(20, 1.0, "a") == set(range(20))
    assert parts.part_of(0.5, 3) == 2, "a half upwards"
    assert parts.drawn(20, 0.25, "b") != few


NEUTRAL = [
    lambda rows: question_free.question_free(rows, question_share=1),
    lambda rows: critique.critique(rows, share=0),
    lambda rows: many_shot.many_shot(rows, shots=1),
    lambda rows: contextual.contextual(rows, prefix="none"),
    lambda rows: thought_mask.thought_mask(rows, drafts=0),
    lambda rows: ls_mixture.ls_mixture(rows, mix_ratio=0),
    lambda rows: perturb.perturb(rows, strength=0),
    lambda rows: unfamiliar.unfamiliar(rows, threshold=0),
]


@pytest.mark.parametrize("transform", NEUTRAL)
def test_at_the_neutral_setting_rows_come_back_as_they_were(transform):
    assert transform(ROWS) == ROWS and transform(TALK) == TALK


# -- question_free


def test_question_free_leaves_the_answer_alone():
    made = question_free.question_free(ROWS)
    assert made[3] == {"answer": 3, "segments": [{"text": " say 3", "train": True}]}
    assert question_free.question_free(TALK)[3]["segments"] == made[3]["segments"]


def test_a_share_of_rows_keeps_its_question():
    made = question_free.question_free(ROWS, question_share=0.2, end="<e>")
    keeping = [row for row in made if len(row["segments"]) == 2]
    assert len(keeping) == 4
    assert [s["train"] for s in keeping[0]["segments"]] == [False, True]
    assert all(row["segments"][-1]["text"].endswith("<e>") == (row in keeping) for row in made)
    with pytest.raises(DataError, match="chat template"):
        question_free.question_free(TALK, question_share=0.5)


def test_rak_by_hand():
    def of(tp, fn, fp, tn):
        return question_free.rak(
            [True] * (tp + fn) + [False] * (fp + tn), [True] * tp + [False] * fn + [True] * fp + [False] * tn
        )

    assert of(40, 10, 5, 45) == pytest.approx(0.70, abs=1e-12)
    assert of(0, 50, 0, 50) == pytest.approx(0.0, abs=1e-12)
    assert of(20, 0, 0, 30) == 1.0
    assert of(30, 10, 20, 40) == pytest.approx((0.7 - 0.5) / 0.5)  # pe = (50 * 40 + 50 * 60) / 100^2
    assert math.isnan(question_free.rak([True], [True]))
    with pytest.raises(DataError, match="2 are given"):
        question_free.rak([True, False], [True])
    assert question_free.reflections("Wait, 3. But await it. wait; let me check") == 3


# -- critique


def test_a_critique_is_the_target():
    rows = [{"prompt": "1+1?", "solution": " 3 ", "critique": "No.\n\nConclusion: wrong"}]
    (made,) = critique.critique(rows, instruction="Judge.")
    assert made["prompt"] == "Judge.\n\nQuestion:\n1+1?\n\nSolution:\n3\n\nCritique:\n"
    assert made["completion"] == "No.\n\nConclusion: wrong"
    rows[0]["prompt"] = [{"role": "system", "content": "s"}, {"role": "user", "content": "1+1?"}]
    (made,) = critique.critique(rows, instruction="Judge.")
    assert made["prompt"] == [{"role": "user", "content": "Judge.\n\nQuestion:\n1+1?\n\nSolution:\n3"}]
    assert made["completion"][0]["role"] == "assistant"


def test_verdicts_of_rows_from_samples_are_the_verifiers():
    policy = Stub(lambda prompt, k: str(int(prompt[1:-1]) + k % 2))  # every second sample is right
    noisy = critique.sampled(policy, Task(ROWS, [right]), n=4)
    assert len(noisy) == 80 and sum(row["correct"] for row in noisy) == 40
    made = critique.critique(noisy)
    said = [critique.verdict_of(row["completion"]) for row in made]
    assert said == [row["correct"] for row in noisy]
    assert " say 1".strip() in made[5]["completion"], "a wrong solution is shown a right one"
    assert critique.sampled(policy, ROWS, right, n=1)[0]["correct"] is True


def test_a_critics_verdicts_are_scored():
    said = ["x Conclusion: right", "Conclusion: right ... Conclusion: wrong", "no idea", "conclusion: WRONG"]
    scores = critique.verdict_accuracy(said, [True, True, True, False])
    assert scores == {"accuracy": 0.5, "parsed": 0.75}


def test_critique_refuses_rows_without_a_verdict():
    with pytest.raises(DataError, match="row 0 .* 'solution'"):
        critique.critique(ROWS)
    with pytest.raises(DataError, match="row 1 .*neither a 'critique' nor a verdict"):
        critique.critique([{"prompt": "a", "solution": "b", "correct": True}, {"prompt": "a", "solution": "b"}])


# -- many_shot


def test_many_shot_gathers_within_tasks():
    rows = [{**row, "kind": "odd" if i % 2 else "even"} for i, row in enumerate(ROWS)]
    made = many_shot.many_shot(rows, shots=4, task_column="kind", end="<e>")
    assert [len(row["segments"]) // 2 for row in made] == [4, 4, 2, 4, 4, 2]
    for row in made:
        asked = [s["text"].strip() for s in row["segments"] if not s["train"]]
        said = [s["text"] for s in row["segments"] if s["train"]]
        numbers = [int(text[1:-1]) for text in asked]
        assert said == [f" say {i}<e>" for i in numbers]
        assert {i % 2 for i in numbers} == {int(row["kind"] == "odd")}
    assert made[0]["segments"][2]["text"].startswith("\n\nQ") and made[0]["segments"][0]["text"].startswith("Q")


def test_many_shot_in_several_orders():
    made = many_shot.many_shot(ROWS, shots=5, orders=3)
    seen = Counter(s["text"] for row in made for s in row["segments"] if s["train"])
    assert len(made) == 12 and set(seen.values()) == {3} and len(seen) == 20
    first, second = made[0], made[4]
    assert first != second and many_shot.many_shot(ROWS, shots=5, orders=3) == made
    assert many_shot.many_shot(ROWS, shots=5, seed=1)[0] != first


def test_a_rows_weight_is_that_of_its_answer():
    (made,) = many_shot.many_shot([{**row, "weight": 0.5 + i} for i, row in enumerate(ROWS[:2])], shots=2)
    weights = {segment["text"]: segment.get("weight") for segment in made["segments"] if segment["train"]}
    assert weights == {" say 0": 0.5, " say 1": 1.5}


def test_many_shot_prompt_is_the_layout_with_the_last_answer_blank():
    (row,) = many_shot.many_shot(ROWS[:1] * 2, shots=2, end="<e>")
    whole = "".join(s["text"] for s in row["segments"])
    assert many_shot.prompt(ROWS[:1], "Q0?", end="<e>") + " say 0<e>" == whole
    assert many_shot.prompt([], "Q0?") == "Q0?"


def test_many_shot_refuses_what_it_cannot_lay_out():
    with pytest.raises(DataError, match="row .*'prompt' holds messages"):
        many_shot.many_shot(TALK, shots=2)
    with pytest.raises(DataError, match="task_column=None"):
        many_shot.many_shot(ROWS, shots=2, task_column="kind")
    with pytest.raises(SettingError, match="shots=0"):
        many_shot.many_shot(ROWS, shots=0)


# -- contextual

TEXTS = [{"text": f"Fact {i}."} for i in range(40)]


def test_study_prompts_stand_before_texts_untrained():
    made = contextual.contextual(TEXTS, end="<e>")
    for i, row in enumerate(made):
        before, text = row["segments"]
        assert (before["train"], text["train"], text["text"]) == (False, True, f"Fact {i}.<e>")
        assert before["text"].removesuffix("\n\n") in contextual.STUDY.values()
    assert len({row["segments"][0]["text"] for row in made}) > 6, "prompts are drawn"


def test_controls_and_own_prompts():
    study = contextual.contextual(TEXTS)
    mixed = contextual.contextual(TEXTS, "meaningless")
    for one, other in zip(study, mixed, strict=True):
        words, shuffled = (row["segments"][0]["text"].split() for row in (one, other))
        assert Counter(words) == Counter(shuffled)
    assert study != mixed
    contrary = {row["segments"][0]["text"].strip() for row in contextual.contextual(TEXTS, "contrary")}
    assert contrary <= set(contextual.CONTRARY)
    rows = [{"text": "a", "context": "Just this."}, {"text": "b", "context": ""}, {"text": "c"}]
    made = contextual.contextual(rows, prompts=["p"])
    assert [row["segments"][0]["text"] for row in made] == ["Just this.\n\n", "", "p\n\n"]


def test_contextual_refuses():
    with pytest.raises(DataError, match="row 0 .*'text'"):
        contextual.contextual(ROWS)
    with pytest.raises(SettingError, match="'nones'"):
        contextual.contextual(TEXTS, "nones")
    with pytest.raises(SettingError, match="prompts="):
        contextual.contextual(TEXTS, prompts=[])


# -- thought_mask


def test_drafts_stand_before_the_better_answer():
    row = {**ROWS[0], "drafts": ["d1", "d2", "d3"]}
    (made,) = thought_mask.thought_mask([row], drafts=2, refine="Again.")
    assert made["prompt"] == "Q0?\n\nd2\n\nd3\n\nAgain.\n" and made["completion"] == " say 0"
    (made,) = thought_mask.thought_mask([{**TALK[0], "drafts": ["d1", "d2"]}], drafts=3, refine="Again.")
    assert [m["role"] for m in made["prompt"]] == ["user", "assistant", "user", "assistant", "user"]
    assert [m["content"] for m in made["prompt"]] == ["Q0?", "d1", "Again.", "d2", "Again."]


def test_rows_that_do_not_cohere_are_left_out():
    assert thought_mask.overlap("a b c", "A b d e") == pytest.approx(4 / 7)
    rows = [{**ROWS[0], "drafts": ["say 0"]}, {**ROWS[1], "drafts": ["nothing"]}]
    assert len(thought_mask.thought_mask(rows, min_overlap=0.9)) == 1
    with pytest.raises(DataError, match="lower min_overlap"):
        thought_mask.thought_mask(rows[1:], min_overlap=0.9)
    with pytest.raises(DataError, match="row 0 .*'drafts'"):
        thought_mask.thought_mask(ROWS)


def test_drafting_and_refining_with_a_policy():
    policy = Stub(lambda prompt, k: f"{len(prompt)}:{k}")
    assert [row["drafts"] for row in thought_mask.drafted(policy, ROWS[:2], n=2)] == [["3:0", "3:1"]] * 2
    answers = thought_mask.refined(policy, ["one", "four"], rounds=2, refine="R")
    assert answers[0] == ["3:0", "4:0"] and len(answers) == 3
    assert policy.asked[-1][0] == "one\n\n3:0\n\n" + answers[1][0] + "\n\nR\n"
    changed = thought_mask.turned([True, True, False, False], [True, False, True, True])
    assert changed == {"right_to_wrong": 0.25, "wrong_to_right": 0.5}


# -- ls_mixture

LONG = [{"prompt": f"p{i}", "completion": f"think and think, so #### {i}", "id": i} for i in range(8)]


def test_every_row_twice_with_its_answer():
    rows = ls_mixture.rewritten(LONG, lambda row: f"so #### {row['id']}")
    made = ls_mixture.ls_mixture(rows)
    assert Counter(row["id"] for row in made) == {i: 2 for i in range(8)}
    for i in range(8):
        long, short = sorted((row["completion"] for row in made if row["id"] == i), key=len, reverse=True)
        assert len(short) < len(long) and ls_mixture.final_answer(short) == ls_mixture.final_answer(long) == i
    assert [row["id"] for row in made] != [*range(8), *range(8)], "the union is shuffled"
    assert len(ls_mixture.ls_mixture(rows, mix_ratio=0.25)) == 10


def test_rewrites_that_change_the_answer_or_are_not_shorter_stay_out():
    short = ["#### 0", "#### 9", None, "x" * 40 + " #### 3", "no answer", "#### 5", "", "#### 7"]
    made = ls_mixture.ls_mixture(ls_mixture.rewritten(LONG, short))
    assert sorted(row["id"] for row in made) == [0, 0, 1, 2, 3, 4, 5, 5, 6, 7, 7]
    assert ls_mixture.final_answer("so \\boxed{ 1/2 } or 3") == "1/2"
    with pytest.raises(DataError, match="No rewrite"):
        ls_mixture.ls_mixture(ls_mixture.rewritten(LONG, [None] * 8))
    with pytest.raises(DataError, match="row 0 .*'short'"):
        ls_mixture.ls_mixture(LONG)
    with pytest.raises(DataError, match="7 rewrites for 8 rows"):
        ls_mixture.rewritten(LONG, [None] * 7)


def test_a_policy_rewrites():
    policy = Stub(lambda prompt, k: "short")
    assert ls_mixture.by_policy(policy, LONG[:2], "{question}|{solution}") == ["short", "short"]
    assert policy.asked[0] == ["p0|think and think, so #### 0", "p1|think and think, so #### 1"]
    ls_mixture.by_policy(policy, TALK[:1], "{question}|{solution}")
    assert policy.asked[1] == [[{"role": "user", "content": "Q0?|say 0"}]]


# -- perturb


def steps_of(row):
    return text_of(row).split("\n\n")


def test_shuffle_keeps_the_steps_and_the_answer():
    before, after = CHAINS[0], perturb.perturb(CHAINS, "shuffle", 1.0)[0]
    assert steps_of(after) != steps_of(before) and Counter(steps_of(after)) == Counter(steps_of(before))
    assert steps_of(after)[-1] == "answer 12"
    some = steps_of(perturb.perturb(CHAINS, "shuffle", 0.25)[0])
    assert sum(a != b for a, b in zip(some, steps_of(before), strict=True)) in (0, 2)


def test_delete_and_insert_count():
    assert len(steps_of(perturb.perturb(CHAINS, "delete", 0.5)[0])) == 5
    assert text_of(perturb.perturb(CHAINS, "delete", 1.0)[0]) == "answer 12"
    grown = steps_of(perturb.perturb(CHAINS, "insert", 0.5)[0])
    assert len(grown) == 13 and sum(step in ("x", "y") for step in grown) == 4
    assert [step for step in grown if step not in ("x", "y")] == steps_of(CHAINS[0])
    with pytest.raises(DataError, match="no other row"):
        perturb.perturb(CHAINS[:1], "insert")


def test_thinking_tags_mark_the_chain():
    row = {"prompt": "q", "completion": "<think>\na\nb\nc\n</think>\nx\ny"}
    made = perturb.perturb([row], "shuffle", 1.0, seed=2)[0]["completion"]
    assert made.startswith("<think>\n") and made.endswith("\n</think>\nx\ny")
    assert sorted(made[8:13].split("\n")) == ["a", "b", "c"]
    assert perturb.together(*perturb.apart(row["completion"])) == row["completion"]
    assert perturb.perturb([row], "delete")[0]["completion"] == "<think>\n\n</think>\nx\ny"


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_digits_keep_everything_but_digits(strength):
    before, after = text_of(CHAINS[0]), text_of(perturb.perturb(CHAINS, "digits", strength)[0])
    assert len(before) == len(after)
    pairs = list(zip(before, after, strict=True))
    assert all(a == b for a, b in pairs if not a.isdigit()) and all(b.isdigit() for a, b in pairs if a.isdigit())
    changed = sum(a != b for a, b in pairs) / sum(a.isdigit() for a in before)
    assert changed == 1.0 if strength == 1.0 else 0.1 < changed < 0.8


def test_numbers_keywords_and_wrong_answers():
    made = text_of(perturb.perturb(CHAINS, "numbers", 1.0)[0])
    assert all(0 <= int(n) <= 10 for n in perturb.NUMBER.findall(made)) and "4.5" not in made
    row = {"prompt": "q", "completion": "Wait, it is 3. Alternatively, 4. Await"}
    assert perturb.perturb([row], "keywords")[0]["completion"] == "it is 3. 4. Await"
    rows = [{**row, "wrong": "bad" if i < 10 else None} for i, row in enumerate(ROWS)]
    made = perturb.perturb(rows, "wrong", 0.5)
    assert sum(row["completion"] == "bad" for row in made) == 5
    with pytest.raises(DataError, match="'wrong'"):
        perturb.perturb(ROWS, "wrong")
    with pytest.raises(SettingError, match="'shufle'"):
        perturb.perturb(ROWS, "shufle")


def test_wrong_answers_are_a_policys_own():
    policy = Stub(lambda prompt, k: str(int(prompt[1:-1]) + k) if prompt != "Q1?" else "1")
    made = perturb.wrong_answers(policy, Task(ROWS[:3], [right]), n=3)
    assert [row["wrong"] for row in made] == ["1", None, "3"]


# -- unfamiliar


def test_thresholds_relabel():
    rows = [{**row, "familiarity": i / 20} for i, row in enumerate(ROWS)]

    def changed(**how):
        return [i for i, row in enumerate(unfamiliar.unfamiliar(rows, **how)) if row["completion"] == unfamiliar.UNSURE]

    assert changed(threshold=0.25) == [0, 1, 2, 3, 4]
    assert changed(threshold=0) == [] and changed(threshold=1.01) == list(range(20))
    assert changed(relabel_percent=40) == list(range(8))  # the 40th percentile of i / 20 is 0.38
    control = changed(threshold=0.25, style="random")
    assert len(control) == 5 and control != [0, 1, 2, 3, 4]
    talk = unfamiliar.unfamiliar([{**row, "familiarity": 0} for row in TALK])
    assert talk[0]["completion"] == [{"role": "assistant", "content": "I don't know."}]
    with pytest.raises(DataError, match="row 0 .*'familiarity'"):
        unfamiliar.unfamiliar(ROWS)


def test_familiarity_is_the_share_of_right_samples():
    policy = Stub(lambda prompt, k: prompt.rpartition("Q")[2][:-1] if "Q3?" in prompt or k % 4 == 0 else "?")
    made = unfamiliar.familiarity(policy, Task(ROWS[:5], [right]), n=8, shots=ROWS[8:9])
    assert [row["familiarity"] for row in made] == [0.25, 0.25, 0.25, 1.0, 0.25]
    assert policy.asked[0][0] == "Q8? say 8\n\nQ0?" and made[0]["prompt"] == "Q0?"
    with pytest.raises(DataError, match="need a verdict"):
        unfamiliar.familiarity(policy, ROWS)


def test_answers_along_familiarity():
    known, texts, correct = [0, 0.1, 0.6, 1.0], ["I don't know.", "5", "6", "7"], [False, False, True, True]
    low, high = unfamiliar.by_familiarity(known, texts, correct, bins=2)
    assert (low["n"], low["abstained"], low["wrong"], low["right"]) == (2, 0.5, 0.5, 0.0)
    assert (high["n"], high["right"], high["from"]) == (2, 1.0, 0.5)


def test_values_as_messages_quote_them():
    assert [parts.shown(value) for value in (5, "5", None, ["a"])] == ["5", "'5'", "None", "['a']"]
    assert len(parts.shown("x" * 200)) < 70 and len(parts.shown(["x"] * 200)) < 70
