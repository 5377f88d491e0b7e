"""What each self-training method keeps of what was sampled, on numbers worked out by hand; TRICE's estimators."""

from __future__ import annotations

import numpy as np
import pytest

import workbench as wb
from workbench.launch import launch
from workbench.methods import answers, distinct
from workbench.methods.answers import TAG, Answer, Seen
from workbench.methods.selftraining import concise, dpo_st, fine_tune_cot, lmsi, rft, star, trice
from workbench.methods.tiers import TierSettings, targets
from workbench.rewards import number
from workbench.sampling.rollouts import Rollouts
from workbench.tasks.sums import correct, make_rows

SHORT = dict(max_new_tokens=24, lr=1e-3, seed=3, batch_size=4, rows_per_step=16)


@pytest.fixture(scope="module")
def policy():
    return wb.load("tiny").attach(wb.LoRA(r=4))


class Words:
    """A tokenizer of words."""

    def tokenize(self, text):
        return text.split()


def seen(settings, *answers: list[Answer], **columns):
    """Rows q0, q1, ... with these answers."""
    rows = [
        {"prompt": f"q{i}", "answer": i} | {n: values[i] for n, values in columns.items()} for i in range(len(answers))
    ]
    return Seen(wb.Task(rows, rewards=[number]), settings, dict(enumerate(answers)), Words())


def wrong(text: str, **more) -> Answer:
    return Answer(text, right=False, **more)


def begun(name, policy, folder, task=None, **settings):
    return launch(name, policy.reset(), task or wb.task("sums", size=12), folder, None, SHORT | settings, None)


# -- STaR ------------------------------------------------------------------------------------------------------


def test_star_keeps_right_answers_under_the_bare_question():
    answers = [Answer("a", tag="first")], [wrong("b", tag="first"), Answer("c", tag="hint")], [wrong("d", tag="first")]
    rows = star.keep(seen(star.StarSettings(), *answers))
    assert [(row["prompt"], row["completion"], row["source"]) for row in rows] == [
        ("q0", "a", "first"), ("q1", "c", "hint"),
    ]  # fmt: skip


def test_a_hint_adds_rows_and_takes_none_away(policy, tmp_path):
    kept = {}
    for hint in (None, "Add up with care: {sum}={answer}\n{prompt}"):
        run = begun("star", policy, tmp_path / str(bool(hint)), hint=hint, greedy=False, fit_steps=1, steps=1)
        list(run)
        frame = run.rollouts()
        kept[hint] = {tuple(row) for row in frame[frame["reward"] == 1][["row", "completion"]].values}
        if hint:
            first = frame[frame["template"] == "first"]
            asked_again = set(frame[frame["template"] == "hint"]["row"])
            assert asked_again == set(first[first["reward"] != 1]["row"]) != set()
            assert all("with care" in prompt for prompt in frame[frame["template"] == "hint"]["prompt"])
            assert not any("with care" in prompt for prompt in first["prompt"])
    assert kept[None] <= kept["Add up with care: {sum}={answer}\n{prompt}"]


# -- RFT -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(3+4)*2-1/4", 13.75), ("-3--2", -1.0), ("1,000*3", 3000.0), ("50%*8", 4.0), (" .5 + 2. ", 2.5),
        ("2*(1+(3-1))", 6.0), ("2**3", None), ("__import__('os')", None), ("1e9", None), ("3 4", None), ("1/0", None),
        ("", None), ("(1", None),
        ("(" * 60 + "1" + ")" * 60, None), ("9" * 400 + "*" + "9" * 400, float("inf")),
    ],
)  # fmt: skip
def test_arithmetic_is_read(text, value):
    assert distinct.value(text) == (pytest.approx(value) if value is not None else None)


def test_equations_of_texts():
    assert (
        distinct.equations("<<2+2=5>> so") is None
        and distinct.equations("<<2 + 2=4>><<4*3=12>> 1+1=3") == "2+2=4|4*3=12"
    )
    text = "1. 27+38=65, then\n2) (3 + 4) * 2 = 14, x=3. 1,000*3=3,000; 27 - 38=-11"
    assert distinct.equations_of(text) == ["27+38=65", "(3 + 4) * 2 = 14", "1,000*3=3,000", "27 - 38=-11"]
    assert distinct.equations(text) == "27+38=65|(3+4)*2=14|1,000*3=3,000|27-38=-11"
    assert distinct.holds("1/3=0.3333") and not distinct.holds("1/3=0.33") and not distinct.holds("3")
    assert distinct.equations("no sums") == "" and distinct.lines(" b \n\na\nb") == "a\nb"
    assert distinct.edits("kitten", "sitting") == 3 and distinct.edits("", "abc") == 3


def test_rft_keeps_one_solution_a_key_and_the_farther_of_two():
    near, far = "x <<1+2=3>>", "a quite different way <<1+2=3>>"
    b, c = "x <<3=3>>", "x <<2+1=3>>"
    answers = [Answer(near), Answer(b), Answer(c), Answer(far), wrong("<<9=9>>"), Answer("<<2+2=5>>")]
    settings = rft.RftSettings(gold="worked")
    rows = rft.written(seen(settings, answers, worked=["gold"])) + rft.kept(seen(settings, answers, worked=["gold"]))
    assert [row["completion"] for row in rows] == ["gold", far, b, c]
    assert [row["completion"] for row in rft.kept(seen(settings, [Answer(far), Answer(b), Answer(c), Answer(near)]))][
        0
    ] == far
    assert rft.distinct(answers, "text") == [near, b, c, far, "<<2+2=5>>"]


# -- concise, LMSI ---------------------------------------------------------------------------------------------


def test_concise_takes_the_shortest_right_answer():
    answers = [Answer("long", tokens=120), Answer("short", tokens=80, tag="short"), wrong("no", tokens=20)]
    rows = concise.keep(seen(concise.ConciseSettings(), answers, [wrong("x", tokens=1)]))
    assert [(row["prompt"], row["completion"], row["source"]) for row in rows] == [("q0", "short", "short")]


def test_concise_trains_on_the_prompt_without_examples(policy, tmp_path):
    examples = "Q: What is 20 + 30?\nA: 20+30=50\n#### 50\n\n{prompt}"
    task = wb.task("sums", size=12)
    run = begun("concise", policy, tmp_path / "run", task, short=examples, n=2, steps=1)
    list(run)
    frame = run.rollouts()
    assert frame.groupby("template").size().to_dict() == {"plain": 24, "short": 24}
    assert frame[frame["template"] == "short"]["prompt"].str.startswith("Q: What is 20 + 30").all()
    found = [Answer(text, True, tag) for text, tag in frame[["completion", "template"]].values]
    rows = concise.keep(Seen(task, concise.ConciseSettings(), {0: found}))
    assert rows[0]["prompt"] == task.rows[0]["prompt"]


def test_lmsi_writes_the_majority_in_four_formats():
    texts = ["so 3", "it is 3", "4, no: 3", "is 4", "is 5"]
    settings = lmsi.LmsiSettings(cot="C {prompt}", direct="D {prompt}", cue="{prompt} think", target=" {answer}!")
    sample = seen(settings, [Answer(text, right=False) for text in texts], [Answer("none")])
    assert lmsi.majority([3, 3, 3, 4, 5]) == (3, 0.6) and lmsi.majority([None, None]) == (None, 0.0)
    assert lmsi.majority([None, 4]) == (4, 0.5)
    sample.task.functions["number"].extract  # noqa: B018  (the verdict says what is answered)
    rows = lmsi.keep(sample)
    made = {
        name: [(row["prompt"], row["completion"]) for row in rows if row["source"] == name] for name in lmsi.FORMATS
    }
    assert made["cot"] == [("C q0", text) for text in texts[:3]] and made["cue"] == [("q0 think", t) for t in texts[:3]]
    assert made["direct"] == [("D q0", " 3!")] * 3 and made["bare"] == [("q0", " 3!")] * 3
    strict = Seen(sample.task, lmsi.LmsiSettings(min_consistency=0.61), sample.answers)
    assert lmsi.keep(strict) == []


def test_lmsi_lets_nobody_vote_who_was_cut_off():
    cut = [Answer(f"so 4{'.' * i}", right=False, whole=False) for i in range(3)]
    settings = lmsi.LmsiSettings(formats=("cot",), cot="C {prompt}")
    rows = lmsi.keep(seen(settings, [*cut, wrong("so 3")], cut))
    assert [(row["prompt"], row["completion"]) for row in rows] == [("C q0", "so 3")]
    strict = lmsi.LmsiSettings(formats=("cot",), min_consistency=0.26)  # 1 of 4: those cut off count among the n
    assert lmsi.keep(seen(strict, [*cut, wrong("so 3")])) == []


def test_lmsi_trains_on_nothing_where_all_are_cut_off(policy, tmp_path):
    def any_answer(completions, **columns):
        return [1.0] * len(completions)

    any_answer.extract = lambda text: "7"
    task = wb.Task(make_rows(3), rewards=[any_answer])
    run = begun("lmsi", policy, tmp_path / "run", task, n=2, fit_steps=1, max_new_tokens=2)
    with pytest.raises(wb.RunError, match="kept nothing"):
        list(run)
    assert set(run.engine.store.load_rollouts(1).finish_reason) == {"length"}


def test_settings_that_decide_nothing_are_said():
    assert "judge and accept" in lmsi.LmsiSettings().unread({"judge", "accept", "lr"})[0]
    assert lmsi.LmsiSettings().unread({"start", "lr"}) == []
    assert "start, loss_type change" in trice.TriceSettings().unread({"loss_type", "start"})[0]
    assert trice.TriceSettings().unread({"estimator", "lr"}) == []


# -- SSR, S3FT -------------------------------------------------------------------------------------------------


def test_targets_come_from_the_first_tier_that_is_accepted():
    golds = ["g0", "g1", "g2", "g3"]
    answers = (
        [Answer("own", tag="self")],
        [wrong("own", tag="self"), Answer("para", tag="paraphrase")],
        [wrong("own", tag="self"), wrong("para", tag="paraphrase")],
        [wrong("own", tag="self"), Answer(" g3\n", tag="paraphrase")],
    )
    settings = TierSettings(tiers=("self", "paraphrase", "gold"))
    rows = targets(seen(settings, *answers, completion=golds))
    assert [(row["completion"], row["source"]) for row in rows] == [
        ("own", "self"), ("para", "paraphrase"), ("g2", "gold"), ("g3", "gold"),
    ]  # fmt: skip
    only = targets(seen(TierSettings(tiers=("self", "paraphrase")), *answers, completion=golds))
    assert [row["source"] for row in only] == ["self", "paraphrase"]


def test_own_answers_are_likelier_than_written_ones(policy, tmp_path):
    rows = [row | {"completion": f" The sum is {row['answer']}. #### {row['answer']}"} for row in make_rows(12)]
    task = wb.Task(rows, rewards=[correct])
    run = begun("ssr", policy, tmp_path / "run", task, fit_steps=1)
    list(run)
    own = run.rollouts()
    own = own[own["reward"] == 1]
    assert len(own) and run.metrics["kept/self"].dropna().tolist() == [len(own)]
    prompts = [rows[i]["prompt"] for i in own["row"]]

    def nll(texts):
        return -np.mean([np.mean(one) for one in policy.reset().score(prompts, texts).logprob])

    assert nll(list(own["completion"])) < nll([rows[i]["completion"] for i in own["row"]])


def test_paraphrases_are_asked_for_only_where_the_own_answer_fails(policy, tmp_path):
    def picky(completions, answer, **columns):
        return [float(a % 2 == 0 and str(a) in text) for text, a in zip(completions, answer, strict=True)]

    rows = [row | {"completion": f" {row['sum']}={row['answer']}\n#### {row['answer']}"} for row in make_rows(12)]
    run = begun("s3ft", policy, tmp_path / "run", wb.Task(rows, rewards=[picky]), steps=1, fit_steps=1)
    list(run)
    frame = run.rollouts()
    failed = set(frame[(frame["template"] == "self") & (frame["reward"] != 1)]["row"])
    again = frame[frame["template"] == "paraphrase"]
    assert set(again["row"]) == failed and all(
        rows[i]["completion"] in p for i, p in zip(again["row"], again["prompt"], strict=True)
    )


# -- Fine-tune-CoT ---------------------------------------------------------------------------------------------


def test_chains_are_kept_where_they_or_the_answers_after_them_are_right():
    settings = fine_tune_cot.FineTuneCotSettings(target=" {completion} --> {answer}", train_prompt="{prompt} ###")
    chains = [Answer("r0", tag="chain"), wrong("r1", tag="chain", number=1), Answer("r2", tag="chain", number=2)]
    cut = [wrong("cut", tag="chain", number=3, whole=False), Answer("0", tag="answer", number=3)]
    rows = fine_tune_cot.keep(seen(settings, chains, []))
    assert [(row["prompt"], row["completion"]) for row in rows] == [("q0 ###", " r0 --> 0"), ("q0 ###", " r2 --> 0")]
    assert number(completions=[row["completion"] for row in rows], answer=[0, 0]) == [1.0, 1.0]
    after = fine_tune_cot.FineTuneCotSettings(answer=" so")
    followed = [wrong("0", tag="answer"), Answer("0", tag="answer", number=1)]
    assert [row["completion"] for row in fine_tune_cot.keep(seen(after, chains + followed + cut))] == ["r1"]


def test_a_teacher_may_be_asked_for_its_answer_after_each_chain(policy, tmp_path):
    judged = []

    def watching(completions, answer, **columns):
        judged.append(list(completions))
        return number(completions=completions, answer=answer)

    task = wb.Task(make_rows(6), rewards=[watching])
    run = begun(
        "fine_tune_cot", policy, tmp_path / "run", task, template="{prompt}", answer=" So the answer is", n=2, steps=1
    )
    list(run)
    chains, answers = (run.rollouts(where=None).query(f"template == '{tag}'") for tag in ("chain", "answer"))
    assert len(chains) == len(answers) == 12
    assert chains[["row", "sample"]].values.tolist() == answers[["row", "sample"]].values.tolist()
    for prompt, chain, asked, answer, whole in zip(
        chains["prompt"], chains["completion"], answers["prompt"], answers["completion"], judged[1], strict=True
    ):
        assert asked == prompt + chain + " So the answer is" and whole == chain + " So the answer is" + answer
    stored = run.engine.store.load_rollouts(1)
    ids = stored.prompt_ids[12]
    assert policy.tokenizer.decode(ids).endswith(" So the answer is") and policy.tokenizer.eos_token_id not in ids[1:]


def test_chains_of_a_column_are_judged_stored_and_trained_on(policy, tmp_path):
    rows = make_rows(6)
    rows = [row | {"chains": [f" {row['sum']}={row['answer']}\n#### {row['answer']}", " no\n#### 1"]} for row in rows]
    run = begun(
        "fine_tune_cot", policy, tmp_path / "run", wb.Task(rows, rewards=[correct]), chains="chains", fit_steps=2
    )
    list(run)
    frame = run.rollouts()
    assert list(frame["reward"]) == [1.0, 0.0] * 6 and run.metrics["kept/rows"].dropna().tolist() == [6]
    assert run.metrics["loss"].notna().sum() == 2
    with pytest.raises(wb.DataError, match="Row 1 has no chain"):
        begun(
            "fine_tune_cot",
            policy,
            tmp_path / "no",
            wb.Task([rows[0], rows[1] | {"chains": []}], [correct]),
            chains="chains",
        )


# -- TRICE -----------------------------------------------------------------------------------------------------


def test_coefficients_by_hand():
    proposed, solved = [True, False, False, True], [True, True, False, True]
    kept, drawn = trice.coefficients(proposed, solved, True)
    assert np.allclose(kept, [1 / 3, 1 / 3, 0, 1 / 3])
    # beta: (0+0+1)/2, (1+1)/2, unused, (1+0)/2
    assert np.allclose(drawn, [-1 / 6, -1 / 3, 0, -1 / 6])
    assert not trice.coefficients(proposed, solved, False)[1].any()
    assert not np.any(trice.coefficients([False] * 3, [False] * 3, True))
    alone = trice.coefficients([True, False], [True, False], True)
    assert np.allclose(alone[0], [1, 0]) and not alone[1].any(), "nobody else is solved: 0 / 0 is 0"


def test_where_all_proposals_are_right_nothing_is_left():
    kept, drawn = trice.coefficients([True] * 5, [True] * 5, True)
    texts = [[1, 2], [3], [4], [5], [6]]
    assert trice.signed(texts, texts, kept, drawn) == []
    assert trice.signed([[1], [2]], [[1], [3]], np.array([0.5, 0.5]), np.array([-0.2, -0.3])) == [
        (0, [1], 0.3), (1, [3], 0.5), (1, [2], -0.3),
    ]  # fmt: skip


@pytest.mark.parametrize(("right", "ratio"), [(0.33, 1.0), (0.91, 3.0), (0.995, 48.0)])
def test_estimators_average_to_the_gradient_and_the_control_variate_has_less_variance(right, ratio):
    """Six rationales, three right; the gradient of log p(y | x) by the logits is the posterior less the prior."""
    p = np.repeat([right / 3, (1 - right) / 3], 3)
    p[:3] *= np.array([0.5, 1.0, 1.5])
    posterior = np.where(np.arange(6) < 3, p, 0) / right
    rng, m, runs = np.random.default_rng(0), 8, 20_000
    memory, proposal = rng.choice(6, (runs, m), p=posterior), rng.choice(6, (runs, m), p=p)
    good = proposal < 3
    memory = np.where(good, proposal, memory)
    found = {}
    for control in (False, True):
        weights = [trice.coefficients(c, [True] * m, control) for c in good[:4000]]
        score = np.eye(6) - p  # grad log p(z) by the logits
        g = np.array([
            kept @ score[z] + drawn @ score[zz]
            for (kept, drawn), z, zz in zip(weights, memory, proposal, strict=False)
        ])  # fmt: skip
        assert np.abs(g.mean(0) - (posterior - p)).max() < 5 * g.std(0).max() / np.sqrt(len(g)) + 1e-12
        found[control] = g.var(0).sum()
    assert found[False] / found[True] == pytest.approx(ratio, rel=0.35)


def test_visits_of_an_epoch_take_distinct_rows_and_the_last_one_is_found():
    settings = trice.TriceSettings(batch_size=3)
    visits = [None, *(trice.visited(settings, 10, visit) for visit in range(1, 13))]
    for epoch in range(4):
        rows = sum(visits[1 + 3 * epoch : 4 + 3 * epoch], [])
        assert len(rows) == len(set(rows)) == 9
    for visit in range(1, 13):
        for row in range(10):
            before = [v for v in range(1, visit) if row in visits[v]]
            assert trice.last_visit(settings, 10, row, visit) == (before[-1] if before else 0)


def lucky(completions, answer, **columns):
    return [float(len(text) % 3 == 0 and text.count("=") > 0) for text in completions]


@pytest.mark.parametrize("estimator", ["control_variate", "basic"])
def test_trice_trains_on_what_is_remembered_and_what_was_proposed(policy, tmp_path, estimator):
    """Memories found again by going through the stored rollouts from the first; the loss from policy.score."""
    task = wb.Task(make_rows(8), rewards=[lucky])
    run = begun(
        "trice", policy, tmp_path / "run", task, estimator=estimator, hint="{answer} {prompt}", fit_steps=4, lr=0.0
    )
    list(run)
    memory, losses = {}, 0
    for step in range(1, 6):
        made = run.engine.store.load_rollouts(step)
        good = [r == 1 and reason != "length" for r, reason in zip(made.reward, made.finish_reason, strict=True)]
        if step == 1:
            memory = {row: (made.ids[i], good[i], step) for i, row in enumerate(made.row)}
            continue
        assert len(set(made.row)) == 4
        for i, row in enumerate(made.row):
            memory[row] = (made.ids[i], True, step) if good[i] else memory[row]
        assert made.columns["memory"] == [memory[row][2] for row in made.row]
        solved = [memory[row][1] for row in made.row]
        said = run.metrics.loc[step]
        assert said["trice/acceptance"] == np.mean(good) and said["trice/solved"] == np.mean(solved)
        kept, drawn = trice.coefficients(good, solved, estimator == "control_variate")
        loss = 0.0
        for i, row in enumerate(made.row):
            for ids, weight in ((memory[row][0], kept[i]), (made.ids[i], drawn[i])):
                logp = policy.score([policy.tokenizer.decode(made.prompt_ids[i])], [ids]).logprob[0]
                loss -= weight * float(np.sum(logp))
        if not np.isnan(said["loss"]):
            losses += 1
            assert said["loss"] == pytest.approx(loss, rel=1e-4, abs=1e-5)
        else:
            assert abs(loss) < 1e-5
    assert losses >= 1


# -- DPO-ST ----------------------------------------------------------------------------------------------------


def test_pairs_are_the_least_similar_of_what_is_left():
    settings = dpo_st.DpoStSettings(gold="gold", pairs=2)
    sampled = [
        Answer("a b c d", tag="sft"), Answer("a b c d e", tag="sft"), Answer("x y", tag="sft"), Answer("z", tag="dpo"),
        wrong("a b", tag="sft"), wrong("q r", tag="sft"), wrong("other", tag="dpo"),
    ]  # fmt: skip
    nothing_wrong = [Answer("a", tag="sft")]
    rows = dpo_st.pair_rows(seen(settings, sampled, nothing_wrong, gold=["a b c d", "g"]))
    # "a b c d e" is 4/5 = 0.8 like the written "a b c d": left out. Of 2 x 2 pairs: gold-"a b" is 0.5, the others 0
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("a b c d", "q r"), ("x y", "a b")]
    looser = dpo_st.DpoStSettings(gold="gold", pairs=9, similarity=0.8)
    assert len(dpo_st.pair_rows(seen(looser, sampled, gold=["a b c d"]))) == 6
    assert distinct.alike({"a", "b"}, {"b", "c"}) == pytest.approx(1 / 3)


def test_cut_off_and_unjudged_answers_are_on_no_side_of_a_pair():
    settings = dpo_st.DpoStSettings(gold=None, pairs=9)
    sampled = [
        Answer("a b", tag="sft"), wrong("c d", tag="sft"), wrong("e f", tag="sft", whole=False),
        wrong("g h", tag="sft", judged=False),
    ]  # fmt: skip
    rows = dpo_st.pair_rows(seen(settings, sampled))
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("a b", "c d")]


def test_what_is_seen_says_what_ended_and_what_was_judged():
    stored = Rollouts(["q"] * 4, ["a"] * 4, ids=[[1]] * 4, row=[0] * 4, sample=[0, 1, 2, 3])
    stored.finish_reason = ["stop", "stop", "length", "stop"]
    stored.rewards, stored.columns = {"number": np.array([1.0, 0.0, 1.0, np.nan])}, {TAG: ["sft"] * 4}
    task = wb.Task([{"prompt": "q", "answer": 0}], rewards=[number])
    found = answers.seen(task, dpo_st.DpoStSettings(), [stored]).answers[0]
    assert [answer.right for answer in found] == [True, False, False, False]
    assert [answer.wrong for answer in found] == [False, True, False, False]


def test_rows_for_sft_are_unlike_and_capped():
    settings = dpo_st.DpoStSettings(gold="gold")
    many = [Answer(f"w{i}", tag="dpo") for i in range(5)] + [Answer("g g", tag="dpo"), Answer("s", tag="sft")]
    rows = dpo_st.fit_rows(seen(settings, many, *([[]] * 9), gold=["g"] * 10))
    counts = [6] + [1] * 9  # "g g" has the tokens of the written "g"; the 90th percentile is 1.5
    assert int(np.percentile(counts, 90)) == 1
    assert [row["source"] for row in rows] == ["gold"] * 10
    rows = dpo_st.fit_rows(seen(settings, many, gold=["g"]))
    assert [row["completion"] for row in rows] == ["g", "w0", "w1", "w2", "w3", "w4"]
    assert [row["source"] for row in rows] == ["gold"] + ["own"] * 5
