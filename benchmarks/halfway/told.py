"""What each operation is to leave behind, told in plain Python: whose text, up to where, how much.

The states that are looked for after an operation was broken off are seen while it runs undisturbed;
these are held to what stands here first, which knows nothing of tensors.
"""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.halfway.oracle import View, canary

SLOTS, SIZE, SINKS = 32, 8, 4
ANNA, BEN, CARL = (
    canary(name, tokens, seed).tolist()
    for name, tokens, seed in (("anna", 96, 1), ("ben", 80, 2), ("carl", 12, 3))
)


class Told(NamedTuple):
    """What is to be there once an operation is over.

    Attributes:
        texts: of each session, in their order, all tokens that were ever to be stored for it.
        gone: positions of Anna's text that are to be forgotten.
        partly: whether the end of a text may still be in a window, or some of it was stored twice.
    """

    texts: dict[str, list[int]]
    gone: range = range(0)
    partly: bool = False


def _text(name: str, *parts: tuple[int, int]) -> list[int]:
    return [token for tokens, seed in parts for token in canary(name, tokens, seed).tolist()]


_FIRST = {"anna": ANNA, "ben": BEN, "carl": CARL}
_LATER = {"ben": BEN, "carl": CARL}

TOLD: dict[str, Told] = {
    "read": Told({**_FIRST, "dora": _text("dora", (80, 8))}),
    "read_recalling": Told(
        {"anna": ANNA + _text("anna", (40, 9)), "ben": BEN + _text("ben", (40, 9)), "carl": CARL}
    ),
    "generate": Told({**_FIRST, "anna": ANNA + _text("anna", (66, 4))[SINKS:]}, partly=True),
    "forward": Told({**_FIRST, "ben": BEN + _text("ben", (40, 5), (20, 6))[SINKS:]}, partly=True),
    "absorb": Told({**_FIRST, "ben": BEN + _text("ben", (30, 7))}),
    "forget_session": Told(_LATER),
    "forget_text": Told(_FIRST, gone=range(24, 56)),
    "forget_ids": Told(_FIRST, gone=range(16, 56)),
    "forget_saved": Told(_LATER),
    "clear": Told({}),
    "clear_session": Told(_LATER),
    "expire": Told(_FIRST, gone=range(24, 96)),
    "save": Told(_FIRST),
    "save_again": Told({**_FIRST, "dora": _text("dora", (20, 8))}),
    "load": Told(_FIRST),
    "load_beside": Told({"dora": _text("dora", (120, 8)), **_FIRST}),
    "consolidate": Told({**_FIRST, "ben": BEN + BEN[:24]}, partly=True),
    "lift": Told(_FIRST, partly=True),
    "fork": Told({**_FIRST, "dora": CARL}),
    "merge": Told({"ben": BEN + ANNA, "carl": CARL}),
    "rename": Told({"dora": ANNA, **_LATER}),
    "session": Told({**_FIRST, "dora": [], "eve": []}),
    **dict.fromkeys(("pin", "detach", "reattach"), Told(_FIRST)),
}


def unlike_told(seen: View, told: Told, over: bool) -> list[str]:
    """What a state has that was never told, and, once the operation is `over`, what it lacks."""
    wrong, places = [], set()
    for name, _, positions, ids, *_ in seen.blocks:
        # What an operation renames or joins is looked at once that is done.
        text = told.texts.get(name, _FIRST.get(name, []))
        for position, token in zip(positions, ids, strict=True):
            if position < 0:
                continue
            known = position < len(text) and text[position] == token
            if not known and (over or name in told.texts):
                wrong.append(f"token {token} at position {position} of {name}")
            if (name, position) in places:
                wrong.append(f"position {position} of {name} twice")
            places.add((name, position))
    if not over:
        return wrong
    if [session[0] for session in seen.sessions] != list(told.texts):
        names = [session[0] for session in seen.sessions]
        return [*wrong, f"sessions {list(told.texts)} expected, got {names}"]

    wrong += [
        f"{position} tokens of {name}"
        for name, position, *_ in seen.sessions
        if position > len(told.texts[name])
        or (position < len(told.texts[name]) and not told.partly)
    ]
    wrong += [f"position {n} of anna is still there" for n in told.gone if ("anna", n) in places]
    kept = sum(map(len, told.texts.values())) - len(told.gone)
    blocks = sum(-(-len(text) // SIZE) for text in told.texts.values()) - len(told.gone) // SIZE
    if not told.partly and blocks <= SLOTS and len(places) != kept:
        wrong.append(f"{kept} tokens expected, got {len(places)}")
    if not told.partly and blocks > SLOTS and len(seen.blocks) != SLOTS:
        wrong.append(f"{SLOTS} blocks expected, got {len(seen.blocks)}")
    return wrong
