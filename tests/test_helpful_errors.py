"""What people get wrong is answered before work starts, with what to write instead."""

from __future__ import annotations

import copy
import inspect
import warnings

import pytest

import workbench as wb
from tests.models import tiny_policy
from tests.runs import letters, make_run, rows_for
from workbench.errors import DataError, SettingError, StoreError, did_you_mean
from workbench.settings import make


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("answers") / "model", lora=True)


@pytest.mark.parametrize(
    "name, options, said",
    [
        ("bco", ["cpo", "bco_pair", "hinge"], " Did you mean 'bco_pair'?"),
        ("num_generation", ["num_generations_eval", "num_generations"], " Did you mean 'num_generations'?"),
        ("SEQ", ["token", "sequence_sum", "sequence"], " Did you mean 'sequence'?"),
        ("js", ["json"], " Did you mean 'json'?"),  # likeness: two letters begin too much
        ("k", ["kto"], ""),
        ("simgoid", ["hinge", "sigmoid"], " Did you mean 'sigmoid'?"),
        ("", ["kto"], ""),
    ],
)
def test_what_a_name_begins_comes_before_what_it_is_like(name, options, said):
    assert did_you_mean(name, options) == said


@pytest.mark.parametrize(
    "method, given, said",
    [
        ("sft", {"optim": "adamw"}, "Did you mean 'adamw_torch'"),
        ("sft", {"optim": "adam"}, "Did you mean 'adamw_torch'"),
        ("sft", {"loss_type": "chunked_nll"}, "is 'nll' under an older name"),
        ("dpo", {"lr_scheduler_type": "reduce_lr_on_plateau"}, r"run.set\(lr=...\)"),
        ("dpo", {"loss_type": "bco"}, "Did you mean 'bco_pair'"),
        ("cpo", {"loss_type": "cpo"}, "the CPO paper is 'sigmoid'"),
        ("grpo", {"importance_sampling_level": "seq"}, "Did you mean 'sequence'"),
        ("dpo", {"label_smoothing_factor": 0.1}, "Did you mean 'label_smoothing'. wb.sft has it"),
        ("sft", {"label_smoothing": 0.1}, "Did you mean 'label_smoothing_factor'. wb.dpo and wb.cpo have it"),
        ("grpo", {"eval_dataset": []}, "It is an argument of wb.grpo .held-out rows or a Task., given when"),
        ("grpo", {"track": "wandb"}, r"run.track\(...\)"),
        ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [0, 0]}, "loss_weights are all 0"),
    ],
)
def test_settings_of_trl_and_near_misses(method, given, said):
    with pytest.raises(SettingError, match=said):
        make(method, given)


@pytest.mark.parametrize(
    "name, ours", [("lora_alpha", "alpha"), ("rank", "r"), ("target_modules", "targets"), ("drop", "dropout")]
)
def test_lora_answers_the_names_of_peft(name, ours):
    with pytest.raises(SettingError, match=f"LoRA has no '{name}'. Did you mean '{ours}'.*peft.LoraConfig"):
        wb.LoRA(**{name: 8})


def test_lora_is_otherwise_the_dataclass_it_was():
    made = wb.LoRA(8, alpha=16)
    assert (made.r, made.alpha, made.dropout) == (8, 16, 0.0)
    assert made == copy.deepcopy(made) and list(inspect.signature(wb.LoRA).parameters) == list(vars(made))


def test_steps_are_whole_numbers(policy, tmp_path):
    run = make_run("sft", tmp_path, policy, steps=2).run()
    for wrong in (1.5, "1"):
        for call in (run.rewind, run.fork, run.run):
            with pytest.raises(SettingError, match=rf"steps?={wrong!r}: expected int"):
                call(wrong)
    with pytest.raises(SettingError, match="step=None: this setting needs a value"):
        run.rewind(None)
    assert run.step == 2 and run.rewind(1.0).step == 1
    assert [path.name for path in tmp_path.iterdir() if path.name != "model"] == ["run"]


@pytest.mark.parametrize("out", ["", ".", None, 5])
def test_a_run_needs_a_folder_with_a_name(policy, out):
    with pytest.raises(SettingError, match="out=.*: name the run's folder, such as out='runs/name'"):
        wb.sft(policy, rows_for("sft"), out=out)


def test_a_report_and_a_script_need_a_file_to_write(policy, tmp_path):
    run = make_run("sft", tmp_path, policy, steps=1).run()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StoreError, match="give the name of a file, such as run.html"):
        run.report("")
    for path in (run.folder, tmp_path / "nowhere" / "run.py"):
        with pytest.raises(StoreError, match="The script cannot be written to .*: give the name of a file in a folder"):
            run.script(path)
    assert sorted(tmp_path.iterdir()) == before  # no rows beside a script that is not there


def test_prompts_that_leave_no_room_are_refused_before_a_folder_is_made(policy, tmp_path):
    task = wb.Task(rows_for("grpo"), rewards=[letters])
    common = dict(steps=2, prompts_per_step=2, group_size=2, out=tmp_path / "run")
    with pytest.raises(DataError, match="Prompt 0 is too long: its 6 tokens and max_new_tokens=251 exceed the 256 tok"):
        wb.grpo(policy, task, max_new_tokens=251, **common)
    with pytest.raises(DataError, match="max_new_tokens=512 exceed"):  # a held-out task is sampled by any method
        wb.sft(policy, rows_for("sft"), eval_dataset=task, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run = wb.grpo(policy, task, max_new_tokens=4, **common).run(1)
    for change in (run.set, run.fork):
        with pytest.raises(DataError, match="max_new_tokens=251 exceed"):
            change(max_new_tokens=251)
    assert [path.name for path in tmp_path.iterdir()] == ["run"] and run.settings["max_new_tokens"] == 4


def labelled(*labels):
    return [{"prompt": f"Say {i}:", "completion": " yes", "label": label} for i, label in enumerate(labels)]


def test_kto_refuses_a_single_row_before_a_folder_is_made(policy, tmp_path):
    out = tmp_path / "run"
    for rows, held_out in ((labelled(True), None), (labelled(True, False), labelled(True))):
        with pytest.raises(DataError, match="give two rows or more that can be trained on"):
            wb.kto(policy, rows, eval_dataset=held_out, out=out)
    assert not out.exists()
    alone = dict(eval_dataset=labelled(True), loss_type="apo_zero_unpaired", batch_size=2, steps=2, out=out)
    run = wb.kto(policy, labelled(True, False), **alone).run(1)
    for change in (run.set, run.fork):
        with pytest.raises(DataError, match="give two rows or more"):
            change(loss_type="kto")


@pytest.mark.parametrize(
    "labels, given, said",
    [
        ([True, True], {}, "All rows have one label .desirable."),
        ([False, False], {}, "All rows have one label .undesirable."),
        ([True, False, False], {"undesirable_weight": 0}, "the 2 undesirable rows have weight 0"),
        ([True, False, False], {"desirable_weight": 0}, "the 1 desirable rows have weight 0"),
    ],
)
def test_kto_says_where_one_kind_of_answer_is_missing(policy, tmp_path, labels, given, said):
    with pytest.warns(UserWarning, match=said):
        wb.kto(policy, labelled(*labels), batch_size=2, out=tmp_path / "run", **given)


def nothing(completions, **kwargs):
    return [None] * len(completions)


@pytest.mark.parametrize(
    "reward, given, said",
    [
        (nothing, {}, "Step 1: none of the 8 completions has a reward"),
        (letters, {"mask_truncated_completions": True}, "Step 1: all 8 completions hit max_new_tokens=2, and"),
        (letters, {}, None),
    ],
)
def test_a_step_that_teaches_nothing_says_so(policy, tmp_path, reward, given, said):
    task = wb.Task(rows_for("grpo"), rewards=[reward])
    common = dict(steps=1, prompts_per_step=2, group_size=4, max_new_tokens=2, lr=1e-2, out=tmp_path / "run")
    run = wb.grpo(policy, task, **common, **given)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        list(run)
    found = [str(warning.message) for warning in caught if "Step 1" in str(warning.message)]
    assert len(found) == (said is not None) and all(text.startswith(said) for text in found)


def test_what_an_error_quotes_is_text_to_a_terminal(tmp_path):
    with pytest.raises(DataError, match="There is no file a⟨ESC⟩\\[31mb⟨U\\+202E⟩.jsonl"):
        wb.rows("a\x1b[31mb\u202e.jsonl")
    with pytest.raises(StoreError, match="⟨U\\+202E⟩"):
        wb.open(tmp_path / "run\u202e")
    assert str(SettingError("two\nlines\tof it")) == "two\nlines\tof it" and str(SettingError()) == ""
    assert "⟨U+202E⟩: new" in repr(wb.Run(tmp_path / "run\u202e", begin=({}, {})))
