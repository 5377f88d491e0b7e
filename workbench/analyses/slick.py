"""What a model knows before it is tuned: a knowledge category for each question, by its own answers."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from workbench import keys, worker
from workbench.analyses import during, fits, picture
from workbench.analyses.paired import greedy
from workbench.analyses.picture import Result
from workbench.data import rows as read_rows
from workbench.errors import DataError, SettingError
from workbench.run import Run
from workbench.sampling.decoder import check_whole

CATEGORIES = ("HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown")
COLOURS = dict(zip(CATEGORIES, (2, 4, 5, 1), strict=True))
CHUNK = 64
"""prompts sampled at once"""


class Slick(Result):
    """A result that gives rows back by what was known of them."""

    source: list[dict[str, Any]]

    def rows(self, unknown: str = "drop", text: str = " I don't know.") -> list[dict[str, Any]]:
        """The rows that were asked about, with their `category`. `unknown`: "drop" leaves those out, "admit" makes
        `text` their completion, "keep" changes nothing."""
        if unknown not in ("drop", "admit", "keep"):
            raise SettingError(f"unknown={unknown!r}: give 'drop', 'admit' or 'keep'.")
        made = []
        for row, category in zip(self.source, self.frame["category"], strict=True):
            row = {**row, "category": category}
            if category == CATEGORIES[-1] and unknown != "keep":
                if unknown == "drop":
                    continue
                row["completion"] = text
            made.append(row)
        return made


def slick(
    policy: Any,
    rows: Any,
    *,
    answer: str = "answer",
    examples: int = 10,
    shots: int = 4,
    samples: int = 16,
    temperature: float = 0.5,
    top_k: int = 40,
    max_new_tokens: int = 16,
    extract: Callable[[str], Any] | None = None,
    seed: int = 0,
) -> Slick:
    """SLiCK: what the model knows of each question, seen in how often it answers it right.

    Each question is asked behind `examples` (N_ex) different sets of `shots` solved questions of the others, once
    greedily and `samples` (N_s) times at `temperature`:

        P0 = the share of the N_ex greedy answers that are right
        P1 = the share of the N_ex N_s sampled answers that are right

        HighlyKnown  P0 = 1              always right, greedily
        MaybeKnown   0 < P0 < 1          right with some examples
        WeaklyKnown  P0 = 0, P1 > 0      right only when sampled
        Unknown      P0 = P1 = 0

    Run it on the model before it is tuned. Unknown rows are learnt last, and once they are learnt the model errs more
    on what it knew; MaybeKnown rows help most. `result.rows("drop")` leaves the Unknown rows out,
    `result.rows("admit")` teaches "I don't know" for them. `followed` gives the four accuracies over a run, and
    `readout` what each kind of fitted row does to accuracy.

    `rows` have `prompt` and the column `answer`: text, a number, or a list of aliases, any of which is right. An answer
    is the first line of the completion, or what `extract` finds in it, compared after `normalised`: case, punctuation,
    articles and accents do not count. With few rows all others serve as examples. Sampling draws from the `top_k`
    likeliest tokens.

    The frame has a row a question: prompt, answer, p_greedy, p_sampled, category, said (the most frequent greedy
    answer). Raises SettingError for settings out of range, DataError for rows without answers or fewer than two rows.
    """
    for name, value, least in (("examples", examples, 1), ("samples", samples, 1), ("shots", shots, 0)):
        check_whole(name, value, least)
    if not hasattr(policy, "sample"):
        raise SettingError(f"slick asks a policy, not a {type(policy).__name__}; of a run, that is run.policy.")
    given = read_rows(rows)
    given.require("prompt", answer, what="SLiCK")
    table = given.to_list()
    right = [aliases(row[answer], i) for i, row in enumerate(table)]
    if len(table) < 2 and shots:
        raise DataError("SLiCK needs at least two rows: the examples of a question are other questions.")
    asked = [_shown(table, right, i, e, shots, seed) for i in range(len(table)) for e in range(examples)]
    find = extract or first_line
    drawing = {"max_new_tokens": max_new_tokens, "seed": seed}
    likeliest = _answers(policy, asked, 1, find, {**drawing, "temperature": 0})
    drawn = _answers(policy, asked, samples, find, {**drawing, "temperature": temperature, "top_k": top_k})
    is_right = [_right(said, right, examples) for said in (likeliest, drawn)]
    return _result(table, right, likeliest, is_right, examples)


def categories(p_greedy: np.ndarray, p_sampled: np.ndarray) -> list[str]:
    """The category of each of N questions, from P0 and P1 (N,)."""
    made = []
    for p0, p1 in zip(p_greedy, p_sampled, strict=True):
        known = 0 if p0 == 1 else 1 if p0 > 0 else 2 if p1 > 0 else 3
        made.append(CATEGORIES[known])
    return made


def normalised(text: object) -> str:
    """`text` as it is compared: lower case, without punctuation, articles, accents and doubled spaces."""
    plain = unicodedata.normalize("NFKD", str(text)).lower()
    plain = "".join(c for c in plain if c not in string.punctuation and not unicodedata.combining(c))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def first_line(text: str) -> str:
    """The first line of a completion that is not empty."""
    return text.strip().partition("\n")[0]


def aliases(value: Any, row: int) -> list[str]:
    """The answers that are right, the first one for examples. Raises DataError where there is none."""
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    found = [str(one) for one in listed if one is not None and str(one).strip()]
    if not found:
        raise DataError(f"Row {row} has no answer, so nothing can be called right.")
    return found


def _shown(table: list[dict], right: list[list[str]], i: int, number: int, shots: int, seed: int) -> Any:
    """The prompt of row `i` behind the `number`-th set of solved questions."""
    order = keys.permutation(keys.key(seed, "examples", i, number), len(table))
    chosen = [j for j in order.tolist() if j != i][:shots]
    prompt = table[i]["prompt"]
    if isinstance(prompt, str):
        solved = [f"{table[j]['prompt']}{_gap(table[j]['prompt'])}{right[j][0]}\n\n" for j in chosen]
        return "".join(solved) + prompt
    turns = [[*table[j]["prompt"], {"role": "assistant", "content": right[j][0]}] for j in chosen]
    return [message for turn in turns for message in turn if message["role"] != "system"] + list(prompt)


def _gap(prompt: str) -> str:
    return "" if prompt[-1:].isspace() else " "


def _answers(policy: Any, asked: list[Any], n: int, find: Callable, drawing: dict[str, Any]) -> list[list[Any]]:
    """What each prompt is answered, n times."""
    made: list[list[Any]] = []
    for first in range(0, len(asked), CHUNK):
        part = asked[first : first + CHUNK]
        how = {**drawing, "seed": keys.key(drawing["seed"], "slick", first) >> 1}
        said = [find(text) for text in policy.sample(part, n=n, **how).text]
        made += [said[i * n : (i + 1) * n] for i in range(len(part))]
    return made


def _right(said: list[list[Any]], right: list[list[str]], examples: int) -> np.ndarray:
    """(N,) the share of a question's answers that are right."""
    wanted = [{normalised(one) for one in some} for some in right]
    each = [
        np.mean([one is not None and normalised(one) in wanted[i // examples] for one in some])
        for i, some in enumerate(said)
    ]
    return np.asarray(each).reshape(-1, examples).mean(1)


def _result(
    table: list[dict], right: list[list[str]], likeliest: list[list[Any]], is_right: list[np.ndarray], examples: int
) -> Slick:
    import pandas as pd

    p0, p1 = is_right
    said = []
    for i in range(len(table)):
        mine = [str(one[0]) for one in likeliest[i * examples : (i + 1) * examples]]
        said.append(max(dict.fromkeys(mine), key=mine.count))
    named = {"prompt": [row["prompt"] for row in table], "answer": [some[0] for some in right]}
    numbers = {"p_greedy": p0, "p_sampled": p1, "category": categories(p0, p1), "said": said}
    frame = pd.DataFrame(named | numbers)
    counts = frame["category"].value_counts().reindex(CATEGORIES, fill_value=0)
    made = Slick(f"Knowledge of {len(table)} rows", frame, _draw, counts.to_dict(), {"counts": counts.reset_index()})
    made.source = table
    return made


def _draw(result: Result) -> Any:
    from plotly.graph_objects import Bar, Scatter

    figure = picture.sheet(result.title, ["rows by category", "right answers of each row"])
    counts = result["counts"]
    for category, count in counts.itertuples(index=False):
        colour = picture.tint(COLOURS[category], 0.8)
        bar = Bar(x=[category], y=[count], marker={"color": colour}, showlegend=False, text=[str(count)])
        picture.add(figure, bar)
        mine = result.frame[result.frame["category"] == category]
        said = [picture.told(f"{row.prompt} → {row.answer}", 60) for row in mine.itertuples()]
        look = {"mode": "markers", "marker": {"color": colour, "size": 8}, "name": category, "hovertext": said}
        picture.add(figure, Scatter(x=mine["p_greedy"], y=mine["p_sampled"], **look), panel=1)
    picture.axes(figure, "", "rows")
    unit = {"range": [-0.04, 1.04]}
    picture.axes(figure, "P0, greedily", "P1, sampled", panel=1, xaxis=unit, yaxis=unit)
    return figure


# -- over training --------------------------------------------------------------------------------------------


def followed(
    run: Run, known: Slick, *, every: int = 10, max_new_tokens: int = 16, extract: Callable | None = None
) -> Result:
    """The share of the rows of each category that the run answers right, greedily and without examples, every `every`
    steps while it is stepped to its end: Unknown rows are fitted last. `known` is what `slick` gave; a row's own
    completion, where it has one, is right, too. Raises SettingError."""
    import pandas as pd

    during.checked(run)
    find = extract or first_line
    frame, prompts = known.frame, [row["prompt"] for row in known.source]
    right = [{normalised(one) for one in aliases(row["answer"], i)} for i, row in enumerate(_named(known))]
    found = []
    for step, one in during.visits(run, every):
        texts = worker.call(greedy, one, prompts, max_new_tokens).text
        hits = [normalised(find(text)) in some for text, some in zip(texts, right, strict=True)]
        shares = pd.Series(hits).groupby(frame["category"].to_numpy()).mean()
        found += [{"step": step, "category": c, "accuracy": float(shares[c])} for c in CATEGORIES if c in shares]
    table = pd.DataFrame(found)
    last = {f"{c}, last": a for c, a in zip(table["category"], table["accuracy"], strict=True)}
    return Result(f"{run.name}: what it answers right", table, _draw_followed, last)


def _named(known: Slick) -> list[dict[str, Any]]:
    """The rows with their answers under that name; completions are right as well."""
    made = []
    for row, answer in zip(known.source, known.frame["answer"], strict=True):
        own = row.get("completion")
        made.append({"answer": [answer, *([first_line(own)] if isinstance(own, str) and own.strip() else [])]})
    return made


def _draw_followed(result: Result) -> Any:
    figure = picture.sheet(result.title)
    for category, part in result.frame.groupby("category", sort=False):
        picture.curve(figure, part["step"], part["accuracy"], category, COLOURS[category])
    picture.axes(figure, "step", "share of rows answered right", yaxis={"range": [-0.02, 1.02]})
    return figure


def readout(accuracy: Sequence[float], known: Sequence[float], unknown: Sequence[float], size: int) -> dict[str, float]:
    """What fitted rows do to accuracy, over several states or runs: the least squares of

        accuracy = intercept + known (fitted known rows / size) + unknown (fitted Unknown rows / size)

    The paper finds `unknown` below 0: what the model did not know costs what it did, once it is fitted."""
    if len({len(accuracy), len(known), len(unknown)}) != 1 or len(accuracy) < 3:
        raise DataError("readout: give three or more states, with one number of each kind a state.")
    columns = {"known": np.asarray(known) / size, "unknown": np.asarray(unknown) / size}
    return fits.plane(columns, accuracy)
