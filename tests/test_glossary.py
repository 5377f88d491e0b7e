"""The table of metrics: it has every metric that runs record, and none that no run does."""

import re
from pathlib import Path

import pytest

import workbench as wb
from tests.models import tiny_policy
from tests.runs import letters, rows_for
from workbench import glossary, methods
from workbench.errors import SettingError
from workbench.glossary import METRICS, metric

LOGGED = ("shortness",)
"""what the reward below logs: names of the user's own"""


def flat(completions, log_metric, **kwargs):
    log_metric("shortness", 1.0)
    return [1.0 if len(text) % 2 else None for text in completions]


SOURCE = {path: path.read_text(encoding="utf-8") for path in Path(wb.__file__).parent.rglob("*.py")}
LABELLED = [{"prompt": f"Say {i}:", "completion": f" {i}", "label": i % 2 == 0} for i in range(4)]
SMALL = dict(steps=1, lr=1e-3)
SAMPLED = SMALL | dict(prompts_per_step=2, group_size=2, max_new_tokens=4)
RUNS = [
    ("sft", dict(batch_size=2)),
    ("dpo", dict(batch_size=2, loss_type=["sigmoid", "sft"])),
    ("cpo", dict(batch_size=2, loss_type="simpo")),
    ("orpo", dict(batch_size=2)),
    ("kto", dict(batch_size=2)),
    ("grpo", dict(beta=0.05, num_iterations=2, steps_per_generation=2)),
    ("grpo", dict(loss_type="cispo", epsilon_high=5.0, sampler_correction="token_truncate")),
    ("grpo", dict(loss_type="vespo", top_entropy_quantile=0.5, entropy_coef=0.01)),
    ("grpo", dict(dynamic_sampling=True, overlong_cache=2)),
    ("rloo", {}),
]


def data_for(method: str):
    if method in ("grpo", "rloo"):
        return wb.Task(rows_for("grpo"), rewards=[letters, flat])
    return LABELLED if method == "kto" else rows_for("sft" if method == "sft" else "dpo", 4)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> dict[str, set[str]]:
    """Method -> the names in the stores of small runs over its main options."""
    folder = tmp_path_factory.mktemp("runs")
    policy = tiny_policy(folder / "model", lora=True)
    found: dict[str, set[str]] = {}
    held_out = wb.Task([{"prompt": "Say 2:", "answer": "2"}], rewards=[wb.rewards.number, flat])
    for number, (method, given) in enumerate(RUNS):
        sampled = method in ("grpo", "rloo")
        rows = held_out if sampled else data_for(method)
        settings = (SAMPLED if sampled else SMALL) | {"num_generations_eval": 2, "max_new_tokens": 4} | given
        run = getattr(wb, method)(policy, data_for(method), out=folder / str(number), eval_dataset=rows, **settings)
        run.run()
        found.setdefault(method, set()).update(run.metrics.columns)
        run.stop()
    return found


def test_every_metric_of_a_run_is_documented_for_its_method(recorded):
    for method, names in recorded.items():
        for name in sorted(names - {*LOGGED, *(f"eval/{own}" for own in LOGGED)}):
            known = metric(name)
            assert not known.methods or method in known.methods, f"{name} is recorded by {method}, too"


def test_every_documented_metric_is_recorded_by_some_run_or_named_in_the_source(recorded):
    names = set().union(*recorded.values())
    for known in METRICS:
        if not any(known.matches(name) for name in names):
            assert named_in_the_source(known.name), known.name


def test_a_metric_is_documented_for_methods_that_record_it(recorded):
    """Where a metric was recorded at all, each method it is said to belong to recorded it."""
    optional = {"nll_loss", "loss/<name>", "log_odds_chosen", "log_odds_ratio"}  # of some losses only
    for known in METRICS:
        owners = {method for method, names in recorded.items() if any(known.matches(name) for name in names)}
        if known.name in optional or not owners or not known.methods or owners & {"grpo"}:
            continue
        assert owners == set(known.methods), known.name


def named_in_the_source(name: str) -> bool:
    """Whether a string of the package makes this name: f"rewards/{...}/mean" makes `rewards/<name>/mean`.

    The judge's kinds of failure are keys of a table, and make their names in one f-string that ends in {kind}.
    """
    strings = "\n".join(text for path, text in SOURCE.items() if not path.name.startswith("glossary"))
    pattern = re.sub(r"<\w+>", r"\\{[^}]+\\}", name)
    head, _, kind = pattern.rpartition("/")
    return bool(
        re.search(f'"{pattern}"', strings)
        or (re.search(rf'"{head}/\{{kind\}}"', strings) and re.search(f'^    "{kind}": ', strings, re.M))
    )


def test_the_search_in_the_source_can_fail():
    assert named_in_the_source("judge/<name>/timeouts") and named_in_the_source("rewards/<name>/mean")
    assert not named_in_the_source("judge/<name>/moods") and not named_in_the_source("rewards/<name>/median")


def test_entries_are_whole():
    names = [known.name for known in METRICS]
    assert len(set(names)) == len(names)
    for known in METRICS:
        assert known.group in glossary.GROUPS and known.unit and known.what.endswith(".") and known.read.endswith(".")
        assert set(known.methods) <= {*methods.names(), "rloo"}
        example = re.sub(r"<\w+>", "some_name", known.name)
        assert metric(example).what == known.what, f"{example} is shadowed"


def test_lookup():
    assert metric("kl").unit.startswith("nats per token")
    own = metric("rewards/my reward/mean")
    assert own.name == "rewards/my reward/mean" and "one reward function" in own.what
    held_out = metric("eval/logps/chosen")
    assert held_out.what.startswith("Over held-out data: the mean of L") and held_out.group == glossary.HELD_OUT
    assert metric("eval/accuracy").what.startswith("The share of held-out")
    assert metric("eval/pass@8").name == "eval/pass@8"
    assert "grpo, rloo" in repr(metric("reward")) and "\n" in repr(metric("reward"))


@pytest.mark.parametrize(
    "name, hint", [("grad_nrm", "'grad_norm'"), ("reward/mean", "No run records"), ("eval/acuracy", "'eval/accuracy'")]
)
def test_an_unknown_name_is_answered_with_the_nearest(name, hint):
    with pytest.raises(SettingError, match=re.escape(hint)):
        metric(name)


def test_all_of_them_as_a_frame():
    frame = wb.metrics()
    assert list(frame["name"]) == [known.name for known in METRICS]
    assert set(frame.columns) == {"name", "unit", "what", "read", "group", "methods", "trl"}
    assert frame.set_index("name").loc["reward", "methods"] == "grpo, rloo"
    assert wb.metric("kl").name == "kl"
