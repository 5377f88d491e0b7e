"""The benchmarks work at tiny sizes, count what they say they count, and do the same work on both sides."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from docs.generator import speed

BENCH = Path(__file__).parent / "bench"
sys.path.insert(0, str(BENCH))

import bench_generation  # noqa: E402
import bench_gpu  # noqa: E402
import bench_grpo  # noqa: E402
import bench_memory  # noqa: E402
import bench_recording  # noqa: E402
import bench_start  # noqa: E402
import collect  # noqa: E402
import common  # noqa: E402
import floor  # noqa: E402
import training  # noqa: E402
from bench_dpo import DPO  # noqa: E402
from bench_sft import SFT  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


def options(*more: str, script=None) -> SimpleNamespace:
    given = ["--small", "--rounds", "2", *more]
    return script.arguments(given) if script else common.parser("A benchmark.").parse_args(given)


def check(line: dict, bench: str, sides: set[str]) -> None:
    """The line has what every reader of it needs, and its ratios are those of its numbers."""
    assert json.loads(json.dumps(line)) == line
    assert line["bench"] == bench and re.fullmatch(r"\d{4}-\d\d-\d\d", line["date"]) and line["seconds"] > 0
    assert line["machine"].keys() >= {"processor", "cores", "threads", "device", "versions"}
    assert line["machine"]["versions"].keys() == {"python", "workbench", "torch", "transformers", "peft", "trl"}
    for case in line["cases"]:
        assert case.keys() >= {"case", "unit", "better", "sides", "ratio"} and set(case["sides"]) == sides
        assert set(case["ratio"]) == sides - {"workbench"}
        for name, side in case["sides"].items():
            assert 0 < side["best"] <= side["median"] <= max(side["all"])
            if name != "workbench":
                ours = case["sides"]["workbench"]
                assert case["ratio"][name]["median"] == pytest.approx(side["median"] / ours["median"], rel=2e-3)


# -- the arithmetic


def test_floor_by_hand():
    config = SimpleNamespace(
        hidden_size=4, intermediate_size=6, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
        head_dim=2, vocab_size=10,
    )  # fmt: skip
    made = floor.Floor.of(config, r=5)
    # q 4x4, k 4x2, v 4x2, o 4x4, and three of 4x6
    assert made.linear == 3 * (16 + 8 + 8 + 16 + 72) and made.head == 40 and made.attention == 3 * 4
    assert made.lora == 3 * 5 * (8 + 6 + 6 + 8 + 30)
    groups = [(3, [2, 1]), (1, [4])]
    # the prompt once, every completion but its last token: 3 + 1 + 0 and 1 + 3
    assert floor.passed(groups) == (8, 7)
    # prompt 1+2+3, first completion one token at place 4; the other group: 1, then places 2, 3, 4
    assert floor.seen(groups) == 6 + 4 + 1 + 2 + 3 + 4
    assert made.sampling(groups) == 2 * 360 * 8 + 4 * 12 * 20 + 2 * 40 * 7
    assert made.forward(groups) == made.sampling(groups) + 2 * made.lora * 8
    back = 2 * (360 + 2 * made.lora) * 8 + 8 * 12 * 20 + 2 * 40 * 7
    assert made.update(groups) == made.forward(groups) + back


def test_a_case_by_hand():
    sides = {"workbench": {"best": 2.0, "median": 3.0, "cpu": 2.0}, "trl": {"best": 6.0, "median": 12.0, "cpu": 5.0}}
    case = common.case("x", sides, floor=1.0)
    assert case["ratio"] == {"trl": {"best": 3.0, "median": 4.0, "cpu": 2.5}} and case["near"] == 0.5
    case = common.case("x", sides, better="more", floor=8.0)
    assert case["ratio"]["trl"]["best"] == pytest.approx(1 / 3) and case["near"] == 0.25
    assert common.summary([{"seconds": 3.0, "n": 1}, {"seconds": 1.0, "n": 3}, {"seconds": 1.5, "n": 2}]) == {
        "best": 1.0, "median": 1.5, "all": [3.0, 1.0, 1.5], "n": 2.0,
    }  # fmt: skip


def test_turns_alternate_and_the_warm_up_does_not_count():
    taken = []
    sides = {name: lambda name=name: taken.append(name) or {"at": float(len(taken))} for name in "ab"}
    turns = common.interleave(sides, rounds=2)
    assert "".join(taken) == "ababab"
    assert [t["at"] for t in turns["a"]] == [3.0, 5.0]
    assert all(t["seconds"] >= 0 and t["cpu"] >= 0 for t in turns["b"])


def test_models_are_chosen_by_name():
    assert list(common.sizes(common.parser("").parse_args([]))) == ["256x6", "512x8"]
    assert common.sizes(common.parser("").parse_args(["--models", "512x8"])) == {"512x8": (512, 8)}
    with pytest.raises(SystemExit, match="no model 512"):
        common.sizes(common.parser("").parse_args(["--models", "512"]))


def test_a_symbol_is_a_token():
    for vocab in (48, 60_000):
        tokenizer = common.symbol_tokenizer(vocab)
        assert len(tokenizer) == vocab == 3 + len(set(common.symbols(vocab - 3)))
        text = common.symbol_text(20, vocab, seed=1)
        assert len(tokenizer(text)["input_ids"]) == 20 and text != common.symbol_text(20, vocab, seed=2)
    assert tokenizer.decode([59_999, 55_100, 3]) == "".join(common.symbols(59_997)[i] for i in (59_996, 55_097, 0))


# -- both sides


@pytest.mark.parametrize("kind", [SFT, DPO], ids=lambda kind: kind.name)
def test_sft_and_dpo_do_the_same_work(kind, tmp_path):
    line = training.measure(kind, options(), tmp_path)
    check(line, kind.name.lower(), {"workbench", "trl", "trl_default"})
    (case,) = line["cases"]
    assert case["apart"] < training.AGREE and 0 < case["near"] < 1 and case["floor"] > 0
    assert case["sides"]["workbench"]["loss"] == pytest.approx(case["sides"]["trl"]["loss"], abs=2e-3)
    speeds = case["sides"]["workbench"]
    assert speeds["tokens_per_second"] == pytest.approx(case["settings"]["tokens"] / speeds["median"], rel=2e-3)


def test_losses_that_differ_stop_the_benchmark():
    assert training.same_losses([1.0, 2.0], [1.0, 2.00005]) == pytest.approx(5e-5)
    for other in ([1.0, 2.001], [1.0, float("nan")]):
        with pytest.raises(RuntimeError, match="losses differ"):
            training.same_losses([1.0, 2.0], other)


def test_groups_count_the_tokens_that_are_trained_on():
    words = lambda text: {"input_ids": text.split()}  # noqa: E731
    rows = [{"prompt": "a b c", "chosen": "d", "rejected": "e f"}]
    assert DPO.groups(words, rows) == [(3, [2, 3])]
    assert SFT.groups(words, [{"prompt": "a", "completion": "b c"}]) == [(1, [3])]


def test_gsm8k_rows(gsm8k_folder):
    assert set(SFT.read(gsm8k_folder, 2)[0]) == {"prompt", "completion"}
    pairs = DPO.read(gsm8k_folder, 5)
    assert len(pairs) == 5 and all(pair["chosen"] != pair["rejected"] for pair in pairs)


def test_steps_of_grpo_sample_as_many_tokens(tmp_path):
    chosen = options(script=bench_grpo)
    line = bench_grpo.measure(chosen, tmp_path)
    check(line, "grpo", {"workbench", "trl"})
    fixed, varied = line["cases"]
    for side in fixed["sides"].values():
        assert side["mean_length"] == 6 and side["tokens"] == 2 * 2 * 6
    assert varied["settings"]["vocab"] == 48 and 0 < fixed["near"] < 1
    assert fixed["ratio"]["trl"]["per_token"] == pytest.approx(
        sum(fixed["sides"]["trl"]["all"]) / sum(fixed["sides"]["workbench"]["all"]), rel=5e-3
    )


def test_growth_changes_one_setting_at_a_time():
    plan = list(bench_grpo.plan(bench_grpo.arguments(["--grow"])))
    assert len(plan) == 10 and {size for _, size, _, _ in plan} == {(256, 6)}
    for _, _, settings, fixed in plan:
        usual = bench_grpo.SETTINGS | {"tokens": 64}
        assert fixed and sum(settings[name] != usual[name] for name in usual) <= 1


def test_sampling_on_three_sides(tmp_path):
    how = dict(fixed=True, device="cpu", rounds=1, rate=1e11)
    case = bench_generation.compare(tmp_path / "a", "fixed", (64, 2), bench_generation.SMALL, **how)
    assert {side["tokens"] for side in case["sides"].values()} == {24.0}
    assert set(case["ratio"]["generate_batch"]) == {"best", "median", "cpu", "per_token"}
    assert bench_generation.tokens_before([[5, 1, 2], [3, 3]], 1) == 4
    assert bench_generation.tokens_before([[5, 1, 2], [3, 3]], None) == 5


# -- memory, recording, waiting, GPU


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are read from Linux's /proc")
def test_the_peak_is_what_was_held_at_once(monkeypatch):
    monkeypatch.setattr(bench_memory, "give_back_freed", lambda: None)  # blocks this large go back by themselves

    def update() -> None:
        torch.ones(96 * 2**18)  # 96 MiB, let go
        torch.ones(64 * 2**18)

    update()
    assert bench_memory.added(update) == pytest.approx(96, abs=3)
    assert bench_memory.added(lambda: None) < 3


def test_rows_of_the_memory_benchmark_have_the_length_they_say():
    settings = bench_memory.SMALL
    tokenizer = common.symbol_tokenizer(bench_memory.SYMBOLS)
    for kind in bench_memory.SIDES:
        rows = bench_memory.rows_of(settings, kind)
        done = bench_memory.completion_ids(rows, tokenizer)
        assert {len(tokenizer(r["prompt"])["input_ids"]) + len(d) for r, d in zip(rows, done, strict=True)} == {24}
        assert len({row["prompt"] for row in rows}) == (1 if kind == "grpo" else 4)


def test_every_side_of_an_update_can_be_made(tmp_path):
    for kind, sides in bench_memory.ALL.items():
        for side in sides:
            if not side.startswith("trl"):  # theirs.steps is tried above
                bench_memory.prepared(side, kind, bench_memory.SMALL, tmp_path / f"{kind}-{side}", "cpu")()


def test_recorded_numbers_are_right_and_the_tokens_the_same():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [9.0, -9.0, -9.0, -9.0]])
    uniform = torch.tensor([0.6, 0.5], dtype=torch.float64)
    tokens, logprob, entropy = bench_recording.drawn_and_recorded(logits, uniform)
    assert tokens.tolist() == bench_recording.drawn(logits, uniform).tolist() == [2, 0]
    assert logprob[0] == pytest.approx(-1.3862943611) and entropy[0] == pytest.approx(1.3862943611)
    assert entropy[1] < 1e-5 and bench_recording.recording_seconds(4, 8, 2, rounds=1) >= 0


def test_processes_that_fail_are_not_measured(tmp_path):
    assert bench_start.imported("pass")() == {}
    with pytest.raises(subprocess.CalledProcessError):
        bench_start.imported("import nothing_of_this_name")()
    with pytest.raises(RuntimeError, match="gone wrong"):
        bench_start.first_step("raise SystemExit('gone wrong')", tmp_path / "rows", tmp_path)()
    assert bench_start.first_step("print('done')", tmp_path / "rows", tmp_path)()["first_step"] > 0
    for code in (bench_start.OUR_STEP, bench_start.THEIR_STEP):
        compile(code, "step", "exec")


def test_without_a_gpu_the_benchmark_says_so(monkeypatch, tmp_path):
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="needs a CUDA GPU"):
            bench_gpu.arguments([])
    chosen = bench_gpu.arguments(["--device", "cpu", "--rounds", "1"])
    assert chosen.small
    cases = bench_gpu.decode(tmp_path, chosen)
    assert [case["case"] for case in cases] == ["decode, batch 1", "decode, batch 8"]
    assert all(0 < case["near"] < 1 and case["unit"] == "tokens/s" for case in cases)


def test_traffic_by_hand():
    weight = torch.nn.Linear(3, 5, bias=False).requires_grad_(False)
    weight.config = SimpleNamespace(
        num_hidden_layers=2, num_key_value_heads=1, head_dim=4, hidden_size=8, num_attention_heads=2
    )
    # two tokens: the weights twice; keys and values of 10 and 11 places in 2 layers of 4, for 3 sequences
    assert bench_gpu.traffic(SimpleNamespace(model=weight), 3, 10, 2) == 2 * 15 * 4 + 3 * 2 * 2 * 4 * 4 * (10 + 11)


# -- the page


LINES = [
    {
        "bench": "grpo", "date": "2026-11-21", "machine": {
            "processor": "A CPU", "cores": 2, "threads": 1, "device": "cpu", "gflops": 123.4,
            "versions": {"torch": "2"},
        },
        "cases": [
            {
                "case": "256x6, fixed length", "unit": "s", "better": "less", "floor": 0.5, "near": 0.25,
                "sides": {"workbench": {"best": 2.0, "median": 2.5}, "trl": {"best": 5.0, "median": 6.0}},
                "ratio": {"trl": {"best": 2.5, "median": 2.4, "per_token": 2.45}},
            }
        ],
    },
    {
        "bench": "memory",
        "cases": [
            {
                "case": "sft update", "ratio": {"trl": {"best": 3.0}}, "time_ratio": {"trl": 1.5},
                "sides": {"workbench": {"best": 100.0, "seconds": 2.0}, "trl": {"best": 300.0, "seconds": 3.0}},
            }
        ],
    },
    {"bench": "forecast", "ratios": {"sft lora": 0.9876}},
    {"bench": "recording", "cases": [{"parts": {"commit": 0.002}, "shares": {"commit": 0.01}}]},
]  # fmt: skip


def test_the_tables_are_what_was_measured(tmp_path):
    path = tmp_path / "speed.jsonl"
    assert speed.speed_times(path) == speed.speed_memory(path) == speed.speed_machines(path) == speed.NOTHING
    for line in [LINES[0] | {"cases": []}, *LINES]:
        speed.keep(line, path)
    assert speed.read(path) == sorted(LINES, key=lambda line: line["bench"])
    assert speed.speed_growth(path) == speed.NOTHING
    row = "| a step of GRPO: 256x6, fixed length | 2 (2.5) s | TRL | 5 (6) s | **2.50** (2.40); 2.45 per token |"
    assert f"{row} 0.5 (25%) |" in speed.speed_times(path)
    assert "| sft update | TRL | 300 MiB | **3.00** | 3 s | 1.50 |" in speed.speed_memory(path)
    assert "| sft lora | 0.988 |" in speed.speed_forecast(path)
    assert "| commit | 2.0 ms | 1.0% |" in speed.speed_recording(path)
    assert "| `grpo` | 2026-11-21 | A CPU, 2 cores | 1 | 123 GFLOP/s | torch 2 |" in speed.speed_machines(path)


def test_which_benchmarks_run():
    usual = collect.chosen(None, False, False)
    assert {(BENCH / command[0]).exists() for command in usual.values()} == {True} and "gpu" not in usual
    assert "gpu" in collect.chosen(None, False, True)
    longer = collect.chosen(None, True, False)
    assert longer["memory"] == ("bench_memory.py", "--all") and "--grow" in longer["grpo_growth"]
    assert collect.chosen("memory", False, True) == {"memory": ("bench_memory.py",)}
    with pytest.raises(SystemExit, match="There is no benchmark speed"):
        collect.chosen("speed", False, False)
    scripts = {path.name for path in BENCH.glob("bench_*.py")}
    assert scripts == {command[0] for command in (longer | collect.GPU).values()}
