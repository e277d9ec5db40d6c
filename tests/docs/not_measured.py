"""Numbers in the pages that are no measured figures, each kind with its reason.

Patterns of `re` in which a blank is any white space; every number inside of one is let be. A
pattern that is not in its page any more fails the test, so that none outlives what it was for.
"""

from __future__ import annotations

EVERYWHERE = {
    "seeds, of which rows tell": r"\bseeds? \d+(?:(?:, \d+)* and \d+)?",
    "what an interval is of": r"[\[(]95 %|\b95 % intervals?|\bare (?:of )?95 %",
    "names with a number": r"\b[A-Za-z]+[\w.]*(?:-[\w.]+)*-\d[\w.]*(?:-\w+)*",
    "versions": r"\b(?:Python|Triton|transformers|PyTorch|bitsandbytes|Gemma|Qwen|OLMo|Ministral|"
    r"Phi|Llama|EXAONE|version) \d[\d.]*(?:(?:,| and| to) \d[\d.]*)*",
    "widths of numbers": r"\b\d+-bit\b",
    "years of papers": r"\b(?:al\.,?|and \w+|,) (?:19|20)\d\d\b",
    "sizes of texts and stores, by which a row was asked for": r"\b\d+(?:,\d00)?,000\b(?!\.)",
}
"""Of all pages."""

TALK, WINDOW = "30 to 120 tokens", "(?:the last|a window of|window of) 512"
SETTINGS, PARTS = "settings and their defaults", "what the method and its benchmarks are made of"
EXAMPLES, ELSEWHERE = "examples", "said of a figure above, which is held there"

NOT_MEASURED: dict[str, dict[str, tuple[str, ...]]] = {
    "README.md": {
        SETTINGS: (WINDOW,),
        PARTS: (TALK, r"weights \(93 MB"),
        ELSEWHERE: ("about ±9 points",),
    },
    "docs/measured.md": {
        SETTINGS: (WINDOW, "by 1,024 random"),
        PARTS: (
            TALK, "chosen on 24 questions of seed 5: 0.7 for SmolLM2, 0.35 for Qwen",
            r"(?:at|At) (?:0.7|0.35)\b", "each keeps 642", "its window of 512",
            "kvpress 0.5.5", "fewer than 300 million", "less of the 96",
            "576 features, 1 to 512 queries",
            "4,096 entries with 32 queries",
            "at 65,536 entries", r"at 4,096\.",
        ),
    },
    "docs/memory.md": {
        SETTINGS: (
            "The last 32 passages", "so 0.7 means that 70 %", "at most 32 texts and 131,072 tokens",
            r"small: 8 MiB, or 1/512", "at 64 numbers",
            r"manifest of 256 MiB, a million sessions \(1,048,576\)",
            "names of 1,024 characters",
        ),
        PARTS: ("64 tokens of context", "more than 320 kills", "with 60 values"),
        EXAMPLES: ('a session "0"',),
    },
    "docs/serving.md": {
        "status codes of HTTP": (r"\| [45]\d\d\b", r"\([45]\d\d\)", "413, 408", "asked; 503"),
        SETTINGS: (
            "1 to 128 letters", r"\(0 to 32\)", r"\(default 0\)", r"\(0 where",
            "last 4,096 characters",
            r"recalled is 0, as", r"seconds \(60\), or does not let one connect within 10",
            r"seconds \(30\)",
            r"it has 30 s", "^\\| `--[^|]*\\| [^|]*\\|",
        ),
        PARTS: ("256 random bits", r"\*\* 16 clients"),
    },
    "docs/steering.md": {
        SETTINGS: ("newest 48 of them", "within 8 requests", r"\(300\)", "0.1 ms to a minute"),
        PARTS: ("the first 50 of each", "then 0.3 of it", "at 12 requests", "where 1 is a swing"),
    },
    "docs/halfway.md": {PARTS: ("sequences 0 to", "and 1,700 to")},
    "docs/evaluate.md": {
        SETTINGS: (r"\(192 where", WINDOW),
        PARTS: ("where 60 % of its tokens", "some 1,600 tokens", "Intervals are of 95 %"),
        ELSEWHERE: ("Of 96 questions, 9 points",),
    },
    "examples/README.md": {EXAMPLES: (r"our budget is \| 8500", r"transfer is \| 250 and 7741")},
    "docs/limits.md": {PARTS: ("135 million parameters", "fewer than 300 million")},
    "docs/use.md": {
        SETTINGS: (
            r"^\| `[^|]*` \| [^|]*\|", "13–83 % of the depth", "follows how sure .* 0 is off",
            "recalled; 0 always",
        ),
        PARTS: ("takes 1/", r"5\.0 to 5\.23 are tested"),
    },
    "docs/retrieval.md": {
        SETTINGS: (
            r"^\| `(?:blocks|gain|ratio|threshold|neighbours)` \| [^|]*\|", "at most; 0: none",
            "weight 0.2", "fewer than 16,384 blocks", "1,024 (?:random )?tokens",
            r"\(8\) equal slices", "and 0.05 of each", "known, 0.1 of",
            r"with b = 0", "Weights 1, 0.05 and 0.05 with a constant of 10",
            "Cormack's (?:constant of )?60",
            "recency 0.3:", "lexical weight 1:", ", 8 read", "weight of 0.3 on", "from 0.1 on",
            "`ratio` 0.6,",
        ),
        PARTS: (
            r"\b1 / 2 / 4(?: / 8)? passages", "at 2 passages",
            "(?:passage is|two blocks,) 64 tokens", "bar of 95 %",
            "13,600 to 25,600 tokens", "when 60 % of", TALK, "Of 96 questions", "best 16 passages",
            "with 48 planted facts", "layer 8 to 14", r"^\| layer \d+", "48 facts leave",
            "Found at 2", r"SmolLM2 36 questions of a kind",
            r"27\); the",
            "512 to 2,048 tokens, in rows of 128 to 512, and 90 to 96 %", "beyond 3 haystacks",
        ),
        ELSEWHERE: ("noise of about 0.02", "are 12 to 15 points"),
    },
    "docs/command-line.md": {EXAMPLES: ("exit code 2",)},
    "docs/concepts.md": {SETTINGS: (r"\(512\)", "is 32 tokens")},
    "docs/families.md": {
        SETTINGS: (
            r"Gemma \(1\)", "over 32 random",
            "tolerance is 0.001 in float32, 0.01 in float16 and 0.04", r"hand \(5\.0",
        ),
    },
    "docs/kernels.md": {PARTS: ("sm_80, 86, 89, 90, 100, 120",)},
    "docs/platforms.md": {
        SETTINGS: ("within 2e-4", r"^\| (?:Python|PyTorch|transformers) \|.*", "With 5.0 three"),
    },
    "docs/profiling.md": {
        SETTINGS: (
            "over 256 MiB", "far below 1 %", "more than 25 %", r"^\| `[^|]*` \| \d+ %",
            "over 2 GiB and more",
            "8 GiB at most", "one row and 32", "silent for 150 seconds", "of 32 steps",
        ),
    },
    "docs/tune.md": {
        SETTINGS: (
            "`threshold`; 0 always", "such as 0.88; 0.95 reads", "lower `focus`; 0 turns",
            "below 0.5",
        ),
    },
    "docs/next-token.md": {
        SETTINGS: (
            "60 %, 70 % and 80 %", r"\(16\)", r"\(0.7\) where",
            r"\(1.8 and more\), 1.2 where it is not \(1.2 and",
            "fewer than 12 stored", "4 at most", r"\(power 0.1\)", "from 1 to 1.5", "asked for 1.2",
        ),
        PARTS: ("norm 1,", "g = 0 keeps", "each of 48 questions"),
    },
    "docs/how-it-works.md": {
        SETTINGS: (
            "13 % to 83 %", "below 0.5", "over 1,024 random", "hold 94 %", "a = 1 for",
            "a = 2 elsewhere",
            "power of 2", r"by 1 \+ idf", "f is 1.4 for a part with a question mark and 1 for",
            r"\b0.4 (?:of|for)",
            "comes 0.7 of", r"`gain` \(0.2\)", "at a `ratio` of 0.6",
            r"`ratio` \(0.65\)", r"`blocks` \(3\)",
            "calibration 0.70 and 0.18",
            r"`threshold` \(0.8\)", r"−0.75 \+ 0.8 · ln n \+ 0.45", "12 to 900 blocks",
            "fewer than 12 blocks",
            r"certain \(1.4\)", r"middling 1.0", r"w = 0.5 is", "window; 0 turns",
            r"0.95 \(a bias of 3",
            "from 0 at 0.8 to 3 at 1.325", "Read at 0.88 in place of 0.95",
            "(?:at|At|than at) (?:0.7|0.35)\\b", "from 160 tokens on it", "from 320 on nothing",
            "default is 0.35, and 0.7 for a model of fewer than 300", "first 8 tokens",
            "over 16 neighbours", "with 16 neighbours", r"`auto`: 0.1\)",
        ),
        PARTS: (
            "about 1 where nothing fits, 1.3 and more", "position 0", r"min\(1, a", r"\(1 − w\)",
            r"max\(0, \(c",
            r"/ \(1 − c", r"√\(2 ln", "state and 0 without", "costs 2 ·",
        ),
    },
}  # fmt: skip
"""Of one page, by reasons."""
