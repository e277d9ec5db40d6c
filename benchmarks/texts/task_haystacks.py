"""Texts and questions of four kinds of tasks, each with the tokens that should be found.

- "question_answering": the haystacks of 5,000 tokens, see `haystack`.
- "code": modules of the standard library without docstrings; functions are asked for by the first
  line of their docstring ("described"), and by a call of them as another programmer would write it
  ("called"). The line that defines the function is to be found.
- "dialogue": statements planted in essays, each of which a later one contradicts in the same words.
  The later one is to be found.
- "summarising": four things are said of a person in four places of an essay, the first of them in
  two more places in other words. All four are to be found.
"""

from __future__ import annotations

import ast
import random
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.texts.essays import essays
from benchmarks.texts.haystack import Asked, Haystack, Planted, make_haystacks
from cmr.evaluation.prompts import encode

MODULES = ("textwrap", "heapq", "shutil", "statistics", "random", "glob", "calendar", "bisect")
SHORT, LONG = 20, 200  # characters of a docstring's first line
TOLD = {
    "Which dentist do I go to?": " These days I have my teeth done by {v}, the dentist.",
    "Whom do I pay my rent to?": " My landlord {v} takes the rent in cash.",
    "Who gives me piano lessons?": " I take piano lessons with {v} on Mondays.",
    "Which restaurant do I like best?": " The restaurant that I like best is {v}.",
    "Who runs with me in the morning?": " In the mornings I run along the canal with {v}.",
    "Where do I keep my savings?": " My savings are with the bank {v}.",
    "Who looks after my garden?": " {v} comes to look after the garden.",
    "Where do I stay in Lisbon?": " In Lisbon I always stay at the hotel {v}.",
    "Who makes my suits?": " My suits are made by the tailor {v}.",
    "Who does my taxes?": " {v} does my taxes every year.",
    "What is my boat called?": " The boat that I sail is called {v}.",
    "Who takes my dog when I am away?": " When I am away {v} takes the dog.",
}
NAMES = (
    "Aldersen", "Brockmere", "Casterby", "Dunmarrow", "Elvington", "Farrowgate", "Glenhart",
    "Holbecker", "Innesford", "Jessamy", "Kirkwell", "Lanthorne", "Merrivale", "Northolt",
    "Oakhampton", "Pellworth", "Quarrington", "Ravensby", "Stillwater", "Thornbury", "Umberleigh",
    "Vexford", "Wetherall", "Yarrowdale",
)  # fmt: skip
SAID = (
    ("{n} grew up in a lighthouse on the northern coast.",
     "As a child {n} lived in a lighthouse, far up on the coast.",
     "The childhood home of {n} was a lighthouse in the north."),
    ("{n} keeps forty hives of bees behind the mill.",),
    ("Last spring {n} sold the old printing press to a museum.",),
    ("Every Thursday {n} teaches chess at the town library.",),
)  # fmt: skip


def haystacks(task: str, tokenizer: Any, seed: int, count: int) -> list[Haystack]:
    """The first texts of a task.

    Args:
        task: one of the four.
        tokenizer: of the model.
        seed: of what is drawn.
        count: texts at most.
    """
    if task == "question_answering":
        return make_haystacks(tokenizer, 5_000, seed)[:count]
    make = {"code": _code, "dialogue": _dialogue, "summarising": _summary}[task]
    return [make(tokenizer, random.Random(f"{task} {seed} {i}"), i) for i in range(count)]


def _asked(kind: str, text: str, facts: list[int]) -> Asked:
    return Asked(kind, text, (), tuple(facts), tuple(map(str, facts)), 0, kind, ())


def _planted(tokenizer: Any, pieces: list[tuple[str, str]], name: str) -> tuple[Any, list[Planted]]:
    """Token ids of pieces of text one after the other, and where those with an id stand."""
    ids: list[int] = []
    facts = []
    for key, text in pieces:
        found = encode(tokenizer, text)
        if key:
            facts.append(Planted(key, text, len(ids), len(ids) + len(found), name))
        ids += found
    return ids, facts


def _code(tokenizer: Any, rng: random.Random, number: int) -> Haystack:
    modules = [MODULES[(2 * number + i) % len(MODULES)] for i in range(2)]
    pieces: list[tuple[str, str]] = []
    asked: list[Asked] = []
    taken: set[str] = set()
    for module in modules:
        path = Path(sysconfig.get_paths()["stdlib"]) / f"{module}.py"
        source = path.read_text(encoding="utf-8")
        lines = source.splitlines(keepends=True)
        asks: dict[int, tuple[str, str]] = {}
        nodes = list(ast.walk(ast.parse(source)))
        defined = Counter(node.name for node in nodes if isinstance(node, ast.FunctionDef))
        taken |= {name for name, count in defined.items() if count > 1 or name[:2] == "__"}
        for node in nodes:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)):
                continue
            told = ast.get_docstring(node)
            if told is None:
                continue
            where = node.body[0]
            for line in range(where.lineno - 1, where.end_lineno or where.lineno):
                lines[line] = ""
            first = told.splitlines()[0].strip()
            if not isinstance(node, ast.FunctionDef) or node.name in taken or node.name in first:
                continue
            taken.add(node.name)
            if SHORT <= len(first) <= LONG:
                given = [arg.arg for arg in node.args.args if arg.arg != "self"]
                call = f"result = {node.name}({', '.join(given)})"
                asks[node.lineno - 1] = first, call
        pieces.append(("", f"\n# {module}.py\n"))
        for line, text in enumerate(lines):
            if line in asks:
                fact = sum(bool(key) for key, _ in pieces)
                described, called = asks[line]
                asked.append(_asked("described", f"Which function does this: {described}", [fact]))
                asked.append(_asked("called", f"How is this defined: {called}", [fact]))
            pieces.append((f"{module}:{line}" if line in asks else "", text))
    ids, facts = _planted(tokenizer, pieces, "code")
    return Haystack(f"code-{number}", ids, tuple(facts), tuple(asked))


def _between(rng: random.Random, told: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What is told in this order, two paragraphs of an essay before each and at the end."""
    paragraphs = [" ".join(part) for _, parts in essays() for part in parts]
    paragraphs = [text for text in paragraphs if len(text) > 200]
    drawn = iter(rng.sample(paragraphs, 2 * len(told) + 2))
    pieces = []
    for one in told:
        pieces += [("", f" {next(drawn)} {next(drawn)}"), one]
    return [*pieces, ("", f" {next(drawn)} {next(drawn)}")]


def _dialogue(tokenizer: Any, rng: random.Random, number: int) -> Haystack:
    names = rng.sample(NAMES, len(NAMES))
    older = [
        (f"old {q}", text.format(v=name))
        for (q, text), name in zip(TOLD.items(), names[:12], strict=True)
    ]
    newer = [
        (f"new {q}", text.format(v=name))
        for (q, text), name in zip(TOLD.items(), names[12:], strict=True)
    ]
    told = [*rng.sample(older, len(older)), *rng.sample(newer, len(newer))]
    ids, facts = _planted(tokenizer, _between(rng, told), "dialogue")
    at = {fact.id: i for i, fact in enumerate(facts)}
    asked = [_asked("the newer one", question, [at[f"new {question}"]]) for question in TOLD]
    asked += [_asked("the older one", question, [at[f"old {question}"]]) for question in TOLD]
    return Haystack(f"dialogue-{number}", ids, tuple(facts), tuple(asked))


def _summary(tokenizer: Any, rng: random.Random, number: int) -> Haystack:
    people = rng.sample(NAMES, 6)
    told = [
        (f"{name} {i} {j}", " " + text.format(n=name))
        for name in people
        for i, wordings in enumerate(SAID)
        for j, text in enumerate(wordings)
    ]
    rng.shuffle(told)
    ids, facts = _planted(tokenizer, _between(rng, told), "summarising")
    at = {fact.id: i for i, fact in enumerate(facts)}
    asked = [
        _asked("all that is said", f"Summarise what is said about {name}.",
               [at[f"{name} {i} 0"] for i in range(len(SAID))])
        for name in people
    ]  # fmt: skip
    return Haystack(f"summarising-{number}", ids, tuple(facts), tuple(asked))
