"""The chat box without a browser: what it draws is what `policy.sample` draws, and the weights stay as they were."""

import json
import threading
import time

import numpy as np
import pytest

import workbench as wb
from tests.models import prompt_of, tiny_policy
from tests.runs import assert_same_metrics, assert_same_weights, make_run, weights
from workbench import playing, worker
from workbench.errors import SettingError
from workbench.sampling import decoder
from workbench.views.text import visible

ASKED = {"max_new_tokens": 12, "temperature": 1.3, "seed": 5}


class Page:
    """What a page is told, and what it asks."""

    def __init__(self, view):
        self.view, self.told = view, []
        view.send = lambda content, buffers=None: self.told.append((content, buffers or []))

    def ask(self, kind, **values):
        """The answer's words of trouble, or its content."""
        number = len(self.told) + 1000
        self.view._receive(self.view, {"kind": kind, "view": "page", "ask": number, **values}, [])
        answers = [content for content, _ in self.told if content.get("ask") == number]
        return answers[0] if answers else None

    def send(self, text, **values):
        answer = self.ask("send", text=text, **values)
        self.wait()
        return answer

    def wait(self):
        end = time.monotonic() + 20
        while self.view.turns and self.view.turns[-1].status != "done":
            assert time.monotonic() < end, "no end of the answer was heard"
            time.sleep(0.002)

    def streams(self):
        """(turn key, answer) -> the text and the tokens' ids, put together as the page does it."""
        made = {}
        for content, buffers in self.told:
            if content["kind"] != "tokens":
                continue
            ids = np.frombuffer(buffers[[name for name, _ in content["packed"]].index("id")], "<i4").tolist()
            for part in content["answers"]:
                text, known = made.get((content["turn"], part["answer"]), ("", []))
                assert part["from"] == len(known), "tokens come without gaps"
                kept = text.encode("utf-16-le")[: 2 * part["keep"]].decode("utf-16-le")
                known = known + [ids.pop(0) for _ in range(part["n"])]
                made[content["turn"], part["answer"]] = kept + part["add"], known
        return made


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("play") / "m", lora=True)


def opened(policy, **settings):
    page = Page(playing.play(policy, **{**ASKED, **settings}))
    return page.view, page


def answers(view):
    return [answer.text for answer in view.turns[-1].answers]


@pytest.mark.parametrize("mode", ["chat", "plain"])
@pytest.mark.parametrize("more", [{}, {"temperature": 0}, {"top_k": 3, "top_p": 0.6, "n": 3, "seed": 11}])
def test_it_says_what_sample_says(chatty, mode, more):
    view, page = opened(chatty, mode=mode, **more)
    page.send("Tell me")
    asked = {"n": 1, **ASKED, **more}
    prompt = [{"role": "user", "content": "Tell me"}] if mode == "chat" else "Tell me"
    assert answers(view) == chatty.sample([prompt], **asked).text
    assert len(view.turns[-1].answers) == asked["n"]


def test_turns_build_a_conversation_that_goes_on_from_the_picked_answer(chatty):
    view, page = opened(chatty, system="Be brief.", n=2)
    page.send("One")
    page.ask("pick", turn=0, answer=1)
    picked = view.turns[0].answers[1].text
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "One"}]
    said.append({"role": "assistant", "content": picked})
    assert view.messages == said and picked != view.turns[0].answers[0].text
    page.send("Two")
    assert answers(view) == chatty.sample([[*said, {"role": "user", "content": "Two"}]], n=2, **ASKED).text
    assert view.rows == [{"messages": [*said, {"role": "user", "content": "Two"}, view.messages[-1]]}]
    assert wb.rows(view.rows).form == "messages"
    page.send("Other", at=0)  # the first turn written anew: what followed is gone
    assert [turn.text for turn in view.turns] == ["Other"]
    page.ask("again", turn=0)
    page.wait()
    other = [said[0], {"role": "user", "content": "Other"}]
    assert answers(view) == chatty.sample([other], n=2, **ASKED | {"seed": 6}).text and view.settings["seed"] == 6
    page.ask("clear")
    assert view.messages == said[:1] and view.rows == []


def test_plain_turns_are_prompts_of_their_own(chatty):
    view, page = opened(chatty, mode="plain")
    page.send("One")
    page.send("Two")
    assert answers(view) == chatty.sample(["Two"], n=1, **ASKED).text
    assert [row["prompt"] for row in view.rows] == ["One", "Two"] and wb.rows(view.rows).form == "prompt_completion"


def test_the_page_has_every_token_and_the_text(chatty, monkeypatch):
    monkeypatch.setattr("workbench.views.play.FLUSH", 0.0)
    view, page = opened(chatty, n=2, max_new_tokens=40, seed=3, compare=["off"])
    page.send("Tell me")
    streams = page.streams()
    for i, answer in enumerate(view.turns[0].answers):
        text, ids = streams[view.turns[0].key, i]
        assert ids == answer.ids and text == visible(answer.text)
        assert len(answer.logprob) == len(answer.entropy) == len(ids)
    assert sum(content["kind"] == "tokens" for content, _ in page.told) >= 40
    assert any("⟨" in chatty.pieces[i][0] for i in view.turns[0].answers[0].ids), "bytes of part characters can be seen"
    # a page that comes later gets all of it at once
    again = Page(view)
    again.ask("hello")
    assert again.streams() == streams
    assert again.told[0][0]["to"] == again.told[1][0]["to"] == "page"


def test_at_most_thirty_messages_a_second(chatty):
    view, page = opened(chatty, max_new_tokens=100, temperature=0)
    started = time.monotonic()
    page.send("Tell me")
    count = sum(content["kind"] == "tokens" for content, _ in page.told)
    assert count <= 30 * (time.monotonic() - started) + 2
    assert len(page.streams()[view.turns[0].key, 0][1]) == 100, "what waited for its turn came, too"


def test_stop_comes_within_a_token_and_keeps_what_came(chatty, monkeypatch):
    view, page = opened(chatty, max_new_tokens=200, compare=["off"])
    heard = view.heard_token

    def stop_at_three(turn, side, sample, drawn):
        heard(turn, side, sample, drawn)
        if len(drawn.ids) == 3:
            page.ask("stop")

    monkeypatch.setattr(view, "heard_token", stop_at_three)
    before = {name: tensor.clone() for name, tensor in chatty.params().items()}
    page.send("Tell me")
    first, second = view.turns[0].answers
    assert len(first.ids) == 3 and first.finish == "stopped" and first.text == chatty.text_of(first.ids)
    assert second.ids == [] and second.finish == "stopped"
    assert view.messages[-1]["content"] == first.text
    assert_same_weights(before, chatty.params())
    page.send("And now")  # the box goes on
    assert len(view.turns) == 2 and view.turns[1].status == "done"


def test_each_side_answers_with_its_own_weights_and_leaves_the_model_as_it_was(tmp_path, monkeypatch):
    policy = tiny_policy(tmp_path / "m", lora=True)
    run = make_run("sft", tmp_path, policy, lr=0.3)
    run.run(2)
    policy = run.policy
    marks = {name: p.requires_grad for name, p in policy.model.named_parameters()}
    pointers = {name: tensor.data_ptr() for name, tensor in policy.params().items()}
    before = weights(run)
    view, page = opened(policy, mode="plain", temperature=0, compare=["now", "off", "start"])
    assert view.sides == ["opened", "now", "off", "start"] and view.player.opened == run.name
    page.send("Say 1:")
    trained = policy.sample("Say 1:", n=1, temperature=0, max_new_tokens=12).text[0]
    bare = wb.load(tmp_path / "m", dtype="float32")
    with_none = bare.sample("Say 1:", n=1, temperature=0, max_new_tokens=12).text[0]
    assert policy.holder == run.name and {n: t.data_ptr() for n, t in policy.params().items()} == pointers
    assert {name: p.requires_grad for name, p in policy.model.named_parameters()} == marks
    at_start = policy.reset().sample("Say 1:", n=1, temperature=0, max_new_tokens=12).text[0]
    assert answers(view) == [trained, trained, with_none, at_start]
    assert len({trained, with_none, at_start}) == 3
    assert view.turns[0].answers[1].holder == run.name
    assert_same_weights(before, weights(run))
    run.run(1)  # the run goes on: the box keeps the weights it was opened with
    page.send("Say 1:")
    said = answers(view)
    assert said[0] == trained and said[1] == run.policy.sample("Say 1:", n=1, temperature=0, max_new_tokens=12).text[0]
    assert said[1] != trained
    monkeypatch.setattr(playing, "PINNED", 0)  # too large to copy: they are talked to as they are
    assert list(playing.Player(run.policy).sides()) == ["now", "off", "start"]


def test_the_weights_come_back_after_an_error(chatty, monkeypatch):
    view, page = opened(chatty, compare=["off"])
    frozen = next(iter(chatty.trainable().values())).requires_grad_(False)  # as a method might: it has to stay so
    before = {name: tensor.clone() for name, tensor in chatty.params().items()}
    marks = [p.requires_grad for p in chatty.model.parameters()]
    monkeypatch.setattr(decoder, "draw", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    page.ask("change", sides=["off", "start"])
    page.send("Tell me")
    assert view.turns[0].trouble == "RuntimeError: out of memory" and view.messages == []
    assert not chatty.model._adapters_disabled and [p.requires_grad for p in chatty.model.parameters()] == marks
    assert_same_weights(before, chatty.params())
    frozen.requires_grad_(True)
    monkeypatch.undo()
    page = Page(view)
    page.send("Once more")
    assert view.turns[1].trouble == ""


def test_a_turn_waits_for_the_step_in_flight_and_can_be_taken_back(chatty):
    view, page = opened(chatty)
    gate = threading.Event()
    job = worker.submit(gate.wait)
    page.ask("send", text="Tell me")
    assert (
        view.turns[0].status == "waiting" and "An answer is being written" in page.ask("send", text="More")["trouble"]
    )
    page.ask("stop")
    assert view.turns[0].status == "done" and view.turns[0].answers[0].finish == "stopped"
    page.ask("send", text="Again")
    assert view.turns[1].status == "waiting"
    gate.set()
    page.wait()
    job.done.wait(5)
    assert view.turns[0].answers[0].ids == [] and view.turns[1].answers[0].ids != []
    told = [content["turn"] for content, _ in page.told if content["kind"] == "turn"]
    assert [turn["status"] for turn in told if turn["key"] == view.turns[0].key] == ["done"]
    assert [turn["status"] for turn in told if turn["key"] == view.turns[1].key][0] == "answering"


def test_what_was_cleared_away_is_not_heard_any_more(chatty, monkeypatch):
    monkeypatch.setattr("workbench.views.play.FLUSH", 0.0)
    view, page = opened(chatty, max_new_tokens=200)
    heard, began = view.heard_token, threading.Event()
    monkeypatch.setattr(view, "heard_token", lambda *args: (heard(*args), began.set(), time.sleep(0.005)))
    page.ask("send", text="Tell me")
    began.wait(10)
    page.ask("clear")
    told = len(page.told)
    worker.call(lambda: None)  # the answer has ended
    assert view.turns == [] and all(content["kind"] == "clear" for content, _ in page.told[told:])
    page.send("Anew")
    assert len(view.turns) == 1 and len(view.turns[0].answers[0].ids) > 0


def test_a_turn_comes_between_the_steps_of_a_run_and_changes_none(tmp_path):
    alone = make_run("grpo", tmp_path / "a", steps=4).run()
    run = make_run("grpo", tmp_path / "b", steps=4)
    view, page = opened(run.engine.policy, compare=["off", "start"], max_new_tokens=6)
    run.start()
    for _ in range(3):
        page.send("Tell me")
    run.wait()
    assert len(view.turns) == 3 and not any(turn.trouble for turn in view.turns)
    assert_same_metrics(alone.metrics, run.metrics)
    assert_same_weights(weights(alone), weights(run))


def test_what_cannot_be_is_said_in_words(chatty, tmp_path):
    view, page = opened(chatty)
    assert "write something first" in page.ask("send", text="")["trouble"]
    assert "temperature=-1" in page.ask("change", settings={"temperature": -1})["trouble"]
    assert "at most 4 answers" in page.ask("change", settings={"n": 9})["trouble"]
    assert "max_new_tokens=None" in page.ask("change", settings={"max_new_tokens": None})["trouble"]
    assert "choose at least one" in page.ask("change", sides=[])["trouble"]
    assert view.settings == playing.DEFAULTS | ASKED and view.sides == ["now"]
    page.send("x" * 300)
    assert view.turns[0].trouble.startswith("The prompt is too long: its ")
    assert "256 tokens this model can see" in view.turns[0].trouble and view.messages == []
    page.ask("clear")
    chatty.tokenizer.chat_template, kept = "{{ raise_exception('no system here') }}", chatty.tokenizer.chat_template
    page.send("Hello")
    chatty.tokenizer.chat_template = kept
    assert "no system here" in view.turns[0].trouble
    with pytest.raises(SettingError, match="Did you mean 'temperature'"):
        chatty.play(temprature=1)
    with pytest.raises(SettingError, match="compare='opened'"):
        chatty.play(compare="opened")
    with pytest.raises(SettingError, match="no chat template"):
        untaught = tiny_policy(tmp_path / "plain")
        untaught.tokenizer.chat_template = None
        untaught.play(mode="chat")


def test_hostile_text_is_text(chatty, monkeypatch):
    view, page = opened(chatty, system="<script>s</script>")
    page.send("<img src=x onerror=1>\x1b[31m\u202e\ud800")
    turn = view.turns[0]
    monkeypatch.setattr(view.player, "text_of", lambda ids: "<script>a</script>\x00")
    page.send("two")
    html = view.static_html()
    assert "<script" not in html and "<img" not in html and "&lt;script&gt;a&lt;/script&gt;⟨NUL⟩" in html
    assert "⟨ESC⟩[31m⟨U+202E⟩�" in html and "⟨ESC⟩" in view.static_text() and "\x1b" not in view.static_text()
    state = json.dumps(view._state(), ensure_ascii=False)
    state.encode()  # no half of a pair
    assert turn.text.endswith("�")
    assert page.streams()[view.turns[1].key, 0][0] == "<script>a</script>⟨NUL⟩"


def test_a_terminal_is_told_what_to_call(chatty, capsys):
    view = chatty.play(seed=3)
    assert "policy.sample([{" in capsys.readouterr().out and repr(view).endswith("0 turns>")
    tiny = wb.load("tiny")
    view = tiny.play()
    assert list(view.player.sides()) == ["now", "start"], "without an adapter there is none to leave out"
    for mode in ("chat", "plain"):
        assert all(text.startswith("Q: ") == (mode == "plain") for text in view.player.examples(mode))


def test_the_decoder_tells_each_token_and_draws_the_same(chatty, monkeypatch):
    prompts, row_keys = [prompt_of(chatty, t) for t in ("one", "another prompt", "x")], list(range(15))
    plain = chatty.sample_prompts(prompts, 5, keys=row_keys, max_new_tokens=7)
    for rows in (decoder.ROWS, 3):
        monkeypatch.setattr(decoder, "ROWS", rows)
        heard = {}
        told = chatty.sample_prompts(
            prompts, 5, keys=row_keys, max_new_tokens=7,
            on_token=lambda row, drawn, heard=heard: heard.setdefault(row, []).append((len(drawn.ids), drawn.ids[-1])),
        )  # fmt: skip
        assert told.ids == plain.ids and told.row == plain.row
        assert {row: list(enumerate(ids, 1)) for row, ids in enumerate(plain.ids)} == heard
