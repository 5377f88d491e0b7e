"""The text that the shipped model learns from: all of it made here, by rule, from a seed.

A document is a list of segments `(text, weight)`; the weight is that of its tokens in the training loss. What
somebody asks cannot be foreseen, so it weighs little; what follows from it weighs 1.

Most are the sums of the lesson task (`workbench.tasks.sums`, training questions only), answered as a model
fresh from the web would: by one of several habits. Only one habit works the sum out and ends in the rewarded
`#### <number>`; it is almost always right. Another writes the same ending without working and is mostly
wrong. The rest are right, or nearly, in a form that earns nothing. An instruction in the question picks the
habit; without one, chance does. This is what GRPO, DPO and SFT then have to work with.

No torch here.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from workbench.tasks.sums import NAMES, THINGS, Question, draw_question, split_of, written

Document = list[tuple[str, float]]

PAD, TURN, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
ASKED = 0.1
"""loss weight of what is asked"""


@dataclass(frozen=True)
class Mix:
    """Shares of what there is in a stream of documents, each from 0 to 1."""

    facts: float
    """documents of bare equations"""
    signs: float
    """documents that repeat signs, brackets and tags"""
    others: float
    """documents of other small things to ask; the rest are sums"""
    several: float
    """documents with several questions"""
    habits: dict[str, float]
    """how often each habit answers a sum that does not say how"""


LEARNING = Mix(
    facts=0.15,
    signs=0.0,
    others=0.25,
    several=0.125,
    habits={"careful": 0.26, "guess": 0.36, "sentence": 0.18, "number": 0.10, "story": 0.10},
)
"""the first and long stage: what to copy, how to add, what was asked"""
SETTLING = Mix(
    facts=0.05,
    signs=0.10,
    others=0.15,
    several=0.03,
    habits={"careful": 0.33, "guess": 0.33, "sentence": 0.14, "number": 0.08, "story": 0.12},
)
"""the short last stage, at a low learning rate: it mostly stops after one answer, and settles how often which habit"""

TOLD = {"careful": 0.50, "guess": 0.10, "sentence": 0.10, "number": 0.15, "story": 0.15}
"""how often a question that says how asks for each habit; working is asked for most, to learn it well"""

INSTRUCTIONS = {
    "careful": ("Think step by step.", "Show your work.", "End with #### and the number."),
    "guess": ("Just guess.", "Be quick."),
    "sentence": ("Answer in a sentence.", "Use words."),
    "number": ("Answer with only the number.", "Number only."),
    "story": ("Explain.",),
}

WORDS = (
    "apple banana cherry lemon orange table chair window garden river mountain winter summer monday "
    "friday yellow purple silver golden rabbit tiger parrot turtle school letter number answer question "
    "little middle bottle pepper coffee butter paper pencil mirror ladder hammer pillow blanket kitchen "
    "market station"
).split()


# ---------------------------------------------------------------- sums


def steps(terms: tuple[int, ...]) -> list[str]:
    """The sum worked out one term at a time: (27, 38, -9) gives ["27+38=65", "65-9=56"]."""
    total, lines = terms[0], []
    for term in terms[1:]:
        lines.append(f"{written((total, term))}={total + term}")
        total += term
    return lines


def train_question(rng: random.Random) -> Question:
    """A question of the lesson task that is not held out, nor is any step of its working."""
    while True:
        question = draw_question(rng)
        sums = [question.sum] + [step.partition("=")[0] for step in steps(question.terms)]
        if all(split_of(sum_text) == "train" for sum_text in sums):
            return question


def sloppy(right: int, rng: random.Random) -> int:
    """A number near the right one; the right one itself in 15 of 100."""
    chance = rng.random()
    if chance < 0.15:
        return right
    error = rng.choice((1, 2, 10, 10, 20, 11, 9, 5)) if chance < 0.6 else rng.randint(1, 15)
    return abs(right + rng.choice((-1, 1)) * error)


def answer_sum(question: Question, habit: str, rng: random.Random) -> str:
    """The answer to a question by one habit, without the space or the stop token around it."""
    right = question.answer
    if habit == "careful":
        return "\n".join([*steps(question.terms), f"#### {right}"])
    if habit == "guess":
        number = sloppy(right, rng)
        return rng.choice(("#### {0}",) * 4 + ("I think {0}.\n#### {0}", "Easy.\n#### {0}")).format(number)
    if habit == "sentence":
        return rng.choice(("The answer is {0}.", "It is {0}.")).format(right)
    if habit == "number":
        return str(right)
    return "\n".join([*steps(question.terms), f"So it is {right}."])


def pick(shares: dict[str, float], rng: random.Random) -> str:
    return rng.choices(list(shares), weights=list(shares.values()))[0]


def sum_turn(rng: random.Random, habits: dict[str, float], habit: str | None = None) -> tuple[str, str]:
    """One question of the lesson task and its answer; unless a habit is given, half say how to answer."""
    question = train_question(rng)
    text = question.text
    if habit is None and rng.random() < 0.5:
        habit = pick(TOLD, rng)
        text += " " + rng.choice(INSTRUCTIONS[habit])
    habit = habit or pick(habits, rng)
    return text, answer_sum(question, habit, rng)


# ---------------------------------------------------------------- other small things to ask


def letters(rng: random.Random, low: int = 3, high: int = 6) -> list[str]:
    return [rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(low, high))]


def digits(rng: random.Random, low: int = 3, high: int = 6) -> list[str]:
    return [str(rng.randint(0, 9)) for _ in range(rng.randint(low, high))]


def sort_turn(rng: random.Random) -> tuple[str, str]:
    items = letters(rng) if rng.random() < 0.5 else digits(rng)
    down = rng.random() < 0.3
    ask = "Sort down: {}" if down else rng.choice(("Sort: {}", "Put in order: {}"))
    return ask.format(" ".join(items)), " ".join(sorted(items, reverse=down))


def reverse_turn(rng: random.Random) -> tuple[str, str]:
    items = letters(rng) if rng.random() < 0.5 else digits(rng)
    return f"Reverse: {' '.join(items)}", " ".join(reversed(items))


def repeat_turn(rng: random.Random) -> tuple[str, str]:
    if rng.random() < 0.5:
        said = " ".join(rng.choice(WORDS + list(NAMES) + list(THINGS)) for _ in range(rng.randint(1, 4)))
    else:
        said = "".join(rng.choice("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,!?") for _ in range(8))
    said = " ".join(said.split()) or "a"
    return f"Repeat: {said}", said


def signs_turn(rng: random.Random) -> tuple[str, str]:
    """Every printable ASCII character, alone and as the brackets and tags that answers are put in, so that a form
    which no habit uses, such as `<answer>56</answer>`, can still be taught to the adapters alone."""
    word, number = rng.choice(WORDS), rng.randint(0, 99)
    inside = rng.choice((word, str(number)))
    shapes = ("<{w}>{i}</{w}>", "\\{w}{{{i}}}", "**{i}**", "[{i}]", "({i})", "{{{i}}}", "{w}: {i};", '"{i}"', "`{i}`")
    if rng.random() < 0.6:
        said = rng.choice(shapes).format(w=word, i=inside)
    else:
        said = "".join(chr(rng.randint(33, 126)) for _ in range(rng.randint(3, 8)))
    return f"Repeat: {said}", said


def spell_turn(rng: random.Random) -> tuple[str, str]:
    word = rng.choice(WORDS + list(THINGS))
    return f"Spell {word}.", " ".join(word)


def count_turn(rng: random.Random) -> tuple[str, str]:
    items = [rng.choice("abc") for _ in range(rng.randint(3, 8))]
    wanted = rng.choice("abc")
    return f"How many {wanted} are in: {' '.join(items)}?", str(items.count(wanted))


def compare_turn(rng: random.Random) -> tuple[str, str]:
    a, b = rng.sample(range(100), 2)
    if rng.random() < 0.5:
        return f"Which is larger, {a} or {b}?", str(max(a, b))
    return f"Which is smaller, {a} or {b}?", str(min(a, b))


def extreme_turn(rng: random.Random) -> tuple[str, str]:
    items = rng.sample(range(100), rng.randint(3, 4))
    largest = rng.random() < 0.5
    return f"The {'largest' if largest else 'smallest'} of {', '.join(map(str, items))}?", str(
        max(items) if largest else min(items)
    )


def parity_turn(rng: random.Random) -> tuple[str, str]:
    number = rng.randint(0, 199)
    return f"Is {number} even or odd?", "odd" if number % 2 else "even"


def next_turn(rng: random.Random) -> tuple[str, str]:
    start, step = rng.randint(1, 30), rng.randint(1, 9)
    shown = [start + step * i for i in range(4)]
    return f"What comes next: {', '.join(map(str, shown))}?", str(shown[-1] + step)


def times_turn(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(1, 12), rng.randint(1, 12)
    return f"What is {a} times {b}?", str(a * b)


def talk_turn(rng: random.Random) -> tuple[str, str]:
    return rng.choice(
        (
            ("Hello!", "Hello! Ask me a sum."),
            ("Hi", "Hello! Ask me a sum."),
            ("Who are you?", "I am a tiny model. I can do small sums."),
            ("What can you do?", "Small sums, sort, reverse, count and compare."),
            ("Thank you!", "You are welcome."),
        )
    )


OTHERS = (
    (sort_turn, 5), (reverse_turn, 4), (repeat_turn, 4), (spell_turn, 2), (count_turn, 3), (compare_turn, 2),
    (extreme_turn, 2), (parity_turn, 2), (next_turn, 2), (times_turn, 2), (talk_turn, 1),
)  # fmt: skip


def other_turn(rng: random.Random) -> tuple[str, str]:
    make = rng.choices([make for make, _ in OTHERS], weights=[weight for _, weight in OTHERS])[0]
    return make(rng)


# ---------------------------------------------------------------- documents


def facts(rng: random.Random) -> Document:
    """A few bare equations, one a line, none of them held out: running totals up to 297."""
    document: Document = []
    wanted = 2 * rng.randint(4, 8)
    while len(document) < wanted:
        a = rng.randint(0, 198) if rng.random() < 0.5 else rng.randint(10, 99)
        b = rng.randint(2, 19) if rng.random() < 0.4 else rng.randint(0, 99)
        if rng.random() < 0.5:
            a, b = max(a, b), -min(a, b)
        left = written((a, b))
        if split_of(left) == "train":
            document += [(left, ASKED), (f"={a + b}\n", 1.0)]
    return [*document, (STOP, 1.0)]


def plain(turns: list[tuple[str, str]]) -> Document:
    """Questions and answers without a chat template, an empty line between them, then the stop token."""
    document: Document = []
    for index, (asked, answered) in enumerate(turns):
        document += [("\n\n" if index else "", 1.0), (f"Q: {asked}\nA:", ASKED), (f" {answered}", 1.0)]
    return [segment for segment in document if segment[0]] + [(STOP, 1.0)]


def chat(turns: list[tuple[str, str]], system: str | None = None) -> Document:
    """The same turns as the chat template writes them."""
    document: Document = []
    if system:
        document.append((f"{TURN}system\n{system}{STOP}\n", ASKED))
    for asked, answered in turns:
        document += [
            (f"{TURN}user\n{asked}{STOP}\n{TURN}assistant\n", ASKED),
            (f"{answered}{STOP}", 1.0),
            ("\n", ASKED),
        ]
    return document[:-1]


def document(rng: random.Random, mix: Mix) -> Document:
    """One random document: bare equations, or questions and answers, plain (3 in 4) or as a chat.

    Where several questions follow one another, one habit answers them all, so that examples in the context
    set the form of the next answer.
    """
    chance = rng.random()
    if chance < mix.facts:
        return facts(rng)
    if chance < mix.facts + mix.signs:
        turns = [signs_turn(rng)]
        return chat(turns) if rng.random() < 0.25 else plain(turns)
    sums = chance < 1 - mix.others
    several = rng.random() < mix.several
    in_chat = rng.random() < 0.25
    system = None
    if not sums:
        turns = [other_turn(rng) for _ in range(rng.randint(2, 4) if several else 1)]
    elif in_chat and rng.random() < 0.2:
        habit = pick(TOLD, rng)
        system = rng.choice(INSTRUCTIONS[habit])
        turns = [sum_turn(rng, mix.habits, habit) for _ in range(rng.randint(1, 2))]
    elif several:
        habit = pick(mix.habits, rng)
        turns = [sum_turn(rng, mix.habits, habit) for _ in range(rng.randint(2, 4))]
    else:
        turns = [sum_turn(rng, mix.habits)]
    return chat(turns, system) if in_chat else plain(turns)


def documents(seed: int | str, mix: Mix = LEARNING) -> Iterator[Document]:
    """An endless stream of documents, the same for the same seed."""
    rng = random.Random(seed)
    while True:
        yield document(rng, mix)
