"""The token microscope in a page: painted fast, hovered, walked by keys, asked of a model, hostile to nobody."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import writer

from workbench.sampling.rollouts import Rollouts
from workbench.store import Store
from workbench.text import clean
from workbench.views import TokenView
from workbench.views.base import assets
from workbench.views.tokens import SCRIPTS

pytestmark = pytest.mark.browser

WORDS = (" the", " sum", "⟨AC⟩", " +", "7", ".\n", " so", "\n\n", " é", "⟨E2 82⟩", clean(writer.HOSTILE), "\t", " one")
END = len(WORDS)
PAINTED = "n => Number(document.querySelector('.wb-tokens')?.dataset.painted ?? 0) >= n"
IN_SIGHT = """() => {
    const [at, room] = ['.wb-marked', '.wb-scrolls'].map((one) => document.querySelector(one).getBoundingClientRect());
    return at.top >= room.top && at.bottom <= room.bottom;
}"""
SPANS = ".wb-block:not(.wb-context) span"


def store_of(folder, tokens: int, members: int = 3) -> Store:
    """One group; token i of each completion has log-prob -i / tokens, the last but one has none."""
    made = Rollouts.of(["Q"] * members, ["x"] * members, rewards=[float(i) for i in range(members)])
    made.ids = [[(7 * i + k) % END for i in range(tokens - 1)] + [END] for k in range(members)]
    made.prompt_ids = [[9, 2, 5]] * members
    made.logprob = [-np.arange(tokens, dtype="f4") / tokens for _ in range(members)]
    made.logprob[0][-2] = np.nan
    made.entropy = [np.full(tokens, 0.5, "f4") for _ in range(members)]
    made.advantage = made.reward - made.reward.mean()
    made.finish_reason = ["stop"] * members
    made.pieces = {i: (text, False) for i, text in enumerate(WORDS)} | {END: ("<|end|>", True)}
    store = writer.begin(folder)
    store.commit_step(1, 0, seconds=0.5, metrics={}, state={}, plan={}, threads=1, rollouts=made)
    return Store(store.folder)


class Model:
    """Answers when it is let; says nothing of a divergence."""

    def __init__(self):
        self.let, self.asked = threading.Event(), []

    def about(self, found):
        return {"able": True, "last": 2, "near": [0], "adapter": True, "line": [True] * len(found)}

    def ask(self, question, about, then, trouble, **how):
        self.asked.append((question, how))

        def work():
            self.let.wait(20)
            n = len(about.ids)
            if question == "divergence":
                return trouble("there is no <b>reference</b>")
            if question == "compare":
                return then({"said": "changed", "change": np.linspace(-1, 1, n, dtype="f4")})
            top = np.tile(np.array([3, 4], "i4"), n)
            share = np.tile(np.log([0.6, 0.25]).astype("f4"), n)
            moved = 1e-6 if how.get("at") == 2 else 1
            then({
                "said": f"step {how.get('at')}", "logprob": about.logprob - moved, "entropy": about.entropy,
                "rank": np.full(n, 40, "i4"), "top_id": top, "top_logprob": share,
                "pieces": {3: ("<img src=x onerror='window.hacked=5'>", False), 4: ("\n", False)},
            })  # fmt: skip

        threading.Thread(target=work, daemon=True).start()


def facts(page) -> dict[str, str]:
    names = page.locator(".wb-token-facts dt").all_inner_texts()
    return dict(zip(names, page.locator(".wb-token-facts dd").all_inner_texts(), strict=True))


def test_tokens_are_painted_hovered_and_walked(page, host, tmp_path, shot):
    host.open(page, TokenView(store_of(tmp_path / "run", 300), [1]))
    page.wait_for_function(PAINTED, arg=1)
    spans = page.locator(SPANS)
    assert spans.count() == 300 and page.locator(".wb-context span").count() == 3
    assert spans.nth(1).inner_text() == "⟨E2 82⟩" or "⟨E2 82⟩" in page.inner_text(".wb-strip")
    assert "<script>window.hacked=1</script>" in page.inner_text(".wb-strip")
    assert "↵" in page.inner_text(".wb-strip") and page.locator(".wb-special").last.inner_text() == "<|end|>"
    level = "n => document.querySelectorAll('.wb-block:not(.wb-context) span')[n].style.background"
    assert page.evaluate(level, 0) == "" and "60%" in page.evaluate(level, 299)
    assert "27%" in page.evaluate(level, 134), "18 of 40 levels: 0.4467 / 0.9735 of the full colour"
    assert page.evaluate(level, 298) == "var(--wb-hatch)", "a token without a number is hatched"
    assert page.inner_text(".wb-scale").split("\n") == ["−0.9735", "0 nats", "outer 2 % clipped"]
    page.locator(".wb-context span").nth(1).hover()
    assert facts(page)["bytes"] == "AC" and facts(page)["with its neighbours"] == "€"
    assert facts(page)["position"] == "1 of the prompt's 3"
    spans.nth(12).hover()
    seen = facts(page)
    assert seen["position"] == "12 of 300" and seen["log-prob"] == "−0.04" and seen["probability"] == "96.08 %"
    page.locator(".wb-scrolls").focus()
    page.keyboard.press("ArrowRight")
    assert facts(page)["position"] == "13 of 300" and page.locator(".wb-marked").count() == 1
    spans.nth(20).click()
    spans.nth(30).hover()
    assert facts(page)["position"] == "20 of 300", "a click pins the token"
    page.keyboard.press("n")
    page.wait_for_function(PAINTED, arg=2)
    assert "sample 1" in page.inner_text(".wb-member-now .wb-member-title") and facts(page)["position"] == "20 of 300"
    page.keyboard.press("Escape")
    page.keyboard.press("End")
    assert facts(page)["position"] == "299 of 300" and "special" in facts(page)["id"]
    assert page.evaluate(IN_SIGHT), "the cursor is in sight"
    shot("tokens-light")
    page.get_by_label("all of the group").check()
    page.get_by_label("ids", exact=True).check()
    page.wait_for_function(PAINTED, arg=3)
    assert page.locator(SPANS).count() == 900
    page.select_option("[aria-label='colour by']", "advantage")
    page.wait_for_function(PAINTED, arg=4)
    colours = [page.evaluate(level, n) for n in (0, 300, 600)]
    assert "--wb-low" in colours[0] and colours[1] == "" and "--wb-high" in colours[2], "one scale for the group"
    page.set_viewport_size({"width": 700, "height": 900})
    page.evaluate("() => window.theme('dark')")
    page.wait_for_function(
        "() => document.querySelector('.wb-tokens').style.getPropertyValue('--wb-high') === '#56b4e9'"
    )
    shot("tokens-dark-700")
    page.set_viewport_size({"width": 1400, "height": 1000})
    assert page.evaluate("() => [...document.querySelectorAll('option')].filter((o) => o.disabled).length") == 6
    assert "wb.resume" in page.inner_text(".wb-token-said")


def test_the_model_is_asked_when_the_pointer_rests_and_what_fails_is_said(page, host, tmp_path, shot):
    model = Model()
    host.open(page, TokenView(store_of(tmp_path / "run", 40), [2], model=model))
    page.wait_for_function(PAINTED, arg=1)
    page.locator(SPANS).nth(4).hover()
    page.wait_for_function("() => document.querySelector('.wb-token-card').textContent.includes('asked the model')")
    page.locator(SPANS).nth(6).hover()  # the page can be used while it waits
    assert facts(page)["position"] == "6 of 40"
    model.let.set()
    page.wait_for_selector(".wb-token-bar")
    assert model.asked[0] == ("alternatives", {"at": 0})
    bars = page.locator(".wb-token-bar").all_inner_texts()
    assert [bar.replace("\n", " ") for bar in bars[:2]] == ["<img·src=x·onerror='window.hacked=5'> 60 %", "↵ 25 %"]
    assert bars[2].replace("\n", " ").endswith("#41 32 %"), "the token itself, its rank and its share"
    page.locator(SPANS).nth(8).hover()
    page.wait_for_selector(".wb-token-bar")
    assert len(model.asked) == 1, "one answer holds the alternatives of all tokens"
    page.select_option("[aria-label='colour by']", "change")
    page.wait_for_function("() => document.querySelector('.wb-token-said').textContent === 'changed'")
    assert model.asked[-1] == ("compare", {"a": 0, "b": 1})
    page.locator(SPANS).nth(39).hover()
    assert facts(page)["change of log-prob"] == "1 nats"
    page.select_option("[aria-label='likely at']", "trained")
    page.get_by_role("button", name="what else was likely?").wait_for()  # step 1 is not at hand
    page.select_option("[aria-label='colour by']", "ratio")
    page.wait_for_function("() => document.querySelector('.wb-token-said').textContent === 'step 0'")
    page.locator(SPANS).nth(39).hover()
    assert facts(page)["ratio to the sampler"].strip() == "0.3679"
    page.select_option("[aria-label='at']", "step")
    page.get_by_label("at step", exact=True).fill("1")
    page.get_by_label("at step", exact=True).press("Enter")
    page.wait_for_function("() => document.querySelector('.wb-token-said').textContent === 'step 1'")
    page.get_by_label("at step", exact=True).fill("2")
    page.get_by_label("at step", exact=True).press("Enter")
    page.wait_for_function("() => document.querySelector('.wb-token-said').textContent === 'step 2'")
    assert page.inner_text(".wb-scale").split("\n") == ["0.999", "1.001"], "rounding has no colour"
    page.select_option("[aria-label='colour by']", "kl")
    page.wait_for_selector(".wb-token-said.wb-bad")
    assert page.inner_text(".wb-token-said") == "there is no <b>reference</b>"
    page.locator(SPANS).nth(39).hover()
    assert facts(page)["KL to the reference"] == "–" and page.inner_text(".wb-scale") == "no numbers"
    shot("tokens-model")


class Again(TokenView):
    """With a button that shows the completion anew."""

    _esm = (
        assets("frame.js", *SCRIPTS)
        + """
class WbAgain extends WbTokenView {
  constructor(model, el) {
    super(model, el);
    const button = wbButton("again", () => this.tokens.show(model.get("ids")));
    button.id = "again";
    this.root.prepend(button);
  }
}
export default wbMount(WbAgain);"""
    )


@pytest.mark.parametrize(("tokens", "most"), [(1000, 0.1), (8000, 0.5)])
def test_a_long_completion_is_painted_fast(page, host, tmp_path, tokens, most):
    """From a click to painted, through Python: the question for the completion is asked anew with each click."""
    host.open(page, Again(store_of(tmp_path / "run", tokens, members=1), [1]))
    page.wait_for_function(PAINTED, arg=1)
    took = []
    for _ in range(5):
        page.evaluate("() => { delete document.querySelector('.wb-tokens').dataset.took }")
        page.click("#again")
        page.wait_for_selector(".wb-tokens[data-took]")
        took.append(float(page.get_attribute(".wb-tokens", "data-took")))
    print(tokens, "tokens:", took, "ms")
    assert min(took) < 1000 * most, took  # the least: the machine may be busy
