"""What a calibration looks at: a text with planted facts, prompts, and their states by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from cmr.integration.calibration.facts import Fact, encode
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.decoder.partial_pass import states_entering
from cmr.integration.requests.chat_template import Template

WINDOW, LEFT = 512, 128
"""Tokens of a window that reads the text, and those of it that only give context."""
TEXT_QUERY = 64
"""Newest tokens of a running text that ask."""
_WINDOWS, _PROMPTS = 4, 16


@dataclass(frozen=True)
class Planted:
    """A text with facts in it.

    Attributes:
        ids: `[tokens]` int64.
        spans: each fact's half-open range of tokens.
    """

    ids: torch.Tensor
    spans: list[tuple[int, int]]

    def background(self) -> torch.Tensor:
        """Which tokens belong to no fact, `[tokens]` bool; the first one, a sink, is left out."""
        found = torch.ones(len(self.ids), dtype=torch.bool)
        found[:1] = False
        for start, stop in self.spans:
            found[start:stop] = False
        return found


@dataclass(frozen=True)
class Prompt:
    """What asks: token ids, and which of them ask."""

    ids: list[int]
    asks: list[bool]


@dataclass(frozen=True)
class LayerStates:
    """States that enter one block.

    Attributes:
        text: `[tokens, hidden]` float16 of norm 1.
        text_norms: `[tokens]` float32, the norms that they had.
        prompts: `[asking, hidden]` float16 of norm 1, of all prompts' asking tokens in a row.
        prompt_norms: `[asking]` float32.
    """

    text: torch.Tensor
    text_norms: torch.Tensor
    prompts: torch.Tensor
    prompt_norms: torch.Tensor


def plant(tokenizer: Any, pieces: Sequence[list[int]], facts: Sequence[Fact]) -> Planted:
    """Put the facts behind pieces of a text, of which there are more, evenly over it."""
    # Not behind the last piece: what is left over at a text's end may fill no block.
    after = {(len(pieces) - 1) * (2 * n + 1) // (2 * len(facts)): n for n in range(len(facts))}
    ids: list[int] = []
    spans = [(0, 0)] * len(facts)
    for number, piece in enumerate(pieces):
        ids += piece
        if number in after:
            said = encode(tokenizer, facts[after[number]].sentence)
            spans[after[number]] = (len(ids), len(ids) + len(said))
            ids += said + encode(tokenizer, "\n\n")
    return Planted(torch.tensor(ids), spans)


def question(tokenizer: Any, text: str) -> Prompt:
    """A question as a user puts it, in the chat template if there is one; only itself asks."""
    template = Template.of(tokenizer)
    if template is not None:
        turn = [{"role": "user", "content": text}]
        said = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        ids = encode(tokenizer, said)
        found = template.question(torch.tensor([ids]))
        if found is not None:
            return Prompt(ids, [False, *found[0, 1:].tolist()])
    # The first token is a sink: it would find the beginning of every text.
    ids = list(tokenizer(text)["input_ids"])
    return Prompt(ids, [place > 0 for place in range(len(ids))])


def running(tokenizer: Any, text: str) -> Prompt:
    """A text whose newest tokens ask."""
    ids = encode(tokenizer, text)[-2 * TEXT_QUERY :]
    return Prompt(ids, [place > 0 and place >= len(ids) - TEXT_QUERY for place in range(len(ids))])


def read(
    adapter: ModelAdapter,
    planted: Planted,
    prompts: Sequence[Prompt],
    layers: Sequence[int],
    show: Callable[[int], None] = lambda tokens: None,
) -> dict[int, LayerStates]:
    """Run the model up to the highest of some layers over a text, in windows, and over prompts.

    `layers` come in rising order; `show` is told how many tokens were read since it was told last.
    """
    total = len(planted.ids)
    asking = sum(sum(prompt.asks) for prompt in prompts)
    found = {layer: _empty(adapter, total, asking) for layer in layers}
    # Each window begins with context that an earlier one has read: only what lies behind it counts.
    for places, keep in _windows(total, min(WINDOW, adapter.max_positions)):
        states = _states(adapter, planted.ids[places], layers)
        for layer, held in found.items():
            unit, norms = _unit(states[layer].to(held.text.device))
            at = places[:, keep:].to(unit.device)
            held.text[at], held.text_norms[at] = unit[:, keep:], norms[:, keep:]
        show(places[:, keep:].numel())
    # Prompts of about the same length go together: less padding is run.
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n].ids))
    ends = torch.tensor([0, *(sum(prompt.asks) for prompt in prompts)]).cumsum(0).tolist()
    for first in range(0, len(order), _PROMPTS):
        rows = order[first : first + _PROMPTS]
        longest = len(prompts[rows[-1]].ids)
        # Padding behind a text is never seen by it.
        ids = [prompts[n].ids + [0] * (longest - len(prompts[n].ids)) for n in rows]
        states = _states(adapter, torch.tensor(ids), layers)
        for layer, held in found.items():
            unit, norms = _unit(states[layer].to(held.text.device))
            for row, n in enumerate(rows):
                asks = torch.tensor(prompts[n].asks, device=unit.device).nonzero()[:, 0]
                part = slice(ends[n], ends[n + 1])
                held.prompts[part], held.prompt_norms[part] = unit[row, asks], norms[row, asks]
        show(sum(len(prompts[n].ids) for n in rows))
    for held in found.values():
        # The first token of a text is a sink and matches nothing.
        held.text[0] = 0
    return found


def _empty(adapter: ModelAdapter, total: int, asking: int) -> LayerStates:
    device = adapter.input_device
    return LayerStates(
        torch.zeros(total, adapter.hidden, dtype=torch.float16, device=device),
        torch.zeros(total, device=device),
        torch.zeros(asking, adapter.hidden, dtype=torch.float16, device=device),
        torch.zeros(asking, device=device),
    )


def _windows(total: int, window: int) -> list[tuple[torch.Tensor, int]]:
    """Batches of equally long windows as `[rows, tokens]` places, and how many are context."""
    left = window // (WINDOW // LEFT)
    step = window - left
    starts = list(range(step, total - step + 1, step))
    batches = [(torch.arange(min(step, total))[None], 0)]
    for first in range(0, len(starts), _WINDOWS):
        rows = torch.tensor(starts[first : first + _WINDOWS])[:, None] - left
        batches.append((rows + torch.arange(window), left))
    rest = step * (len(starts) + 1)
    if rest < total:
        batches.append((torch.arange(rest - left, total)[None], left))
    return batches


def _states(
    adapter: ModelAdapter, ids: torch.Tensor, layers: Sequence[int]
) -> dict[int, torch.Tensor]:
    """States `[rows, tokens, hidden]` that enter some blocks."""
    with states_entering(adapter, layers, stop=layers[-1] + 1) as found:
        adapter.decoder(input_ids=ids.to(adapter.input_device), use_cache=False)
    return found


def _unit(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """States of norm 1 in float16, and their norms."""
    norms = states.float().norm(dim=-1)
    return F.normalize(states.float(), dim=-1).half(), norms
