"""Decoding steps that are recorded once and replayed: which ones may be, and those that are.

A replay runs no Python: hooks of others, arguments that ask for more than the next token, and
whatever else would change what a step does from one time to the next, make a step a plain one. Each
reason is counted, and logged once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch.nn.modules import module as torch_module
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import DynamicCache

from cmr.errors import AttachError, ConfigError
from cmr.integration.core import Core
from cmr.integration.decoder.families import rope_types
from cmr.integration.decoder.wrapped import Wrapped
from cmr.integration.hooks.fixed_step import FixedStep
from cmr.integration.hooks.step import Step
from cmr.integration.requests.request import Request
from cmr.integration.reweave.attention import WATCH
from cmr.integration.reweave.fixed_recall import FixedRecall
from cmr.integration.window.fixed_window import FixedWindow
from cmr.integration.window.lasting import lasting
from cmr.integration.window.window_layer import is_windowed
from cmr.retrieval.selection import rule_for

if TYPE_CHECKING:
    from cmr.integration.hooks.forward import ForwardHooks

LOG = logging.getLogger("cmr")
MOST = 8
"""Widths of a batch whose steps are kept; each has a window of its own."""
ALIGNED = 16
"""Columns of a window are a multiple of it: kernels read whole tiles."""
LOOKED_AT = frozenset({
    "input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values", "use_cache",
    "cache_position", "return_dict",
})  # fmt: skip
"""Arguments of a decoder that a replayed step knows what to do with."""
HARMLESS = ("cmr.integration.hooks.", "transformers.")
"""Modules whose hooks in the decoder's layers do nothing that a replayed step lacks."""


class Replays:
    """The steps of one decoder that are replayed, one for each number of rows.

    Args:
        hooks: of the decoder.

    Raises:
        ConfigError: the model or the settings allow no step to be recorded.

    Attributes:
        counts: steps that were 'captured' and 'replayed'.
        plain: steps that were neither, by the reason.
    """

    def __init__(self, hooks: ForwardHooks) -> None:
        self._hooks, self._core = hooks, hooks.core
        require_fit(self._core)
        self.counts: Counter[str] = Counter(captured=0, replayed=0)
        self.plain: Counter[str] = Counter()
        self._steps: dict[int, FixedStep] = {}
        self._failed: str | None = None
        self._hooked: tuple[int, str | None] = (-1, None)
        self._attentions = [*self._core.adapter.attentions()]
        self._whole: WeakSet[Any] = WeakSet()
        self._wrapped: Wrapped | None = None

    def attach(self) -> None:
        """Stand around the decoder's own forward."""
        self._own_forward = self._core.adapter.decoder.forward
        self._wrapped = Wrapped(self._core.adapter.decoder, "forward", self._forward)

    def detach(self) -> None:
        """Let everything go that was recorded."""
        if self._wrapped is not None:
            self._wrapped.take_away()
            self._wrapped = None
        self.clear()

    def clear(self) -> None:
        """Let all steps go, and what their windows hold with them."""
        for fixed in self._steps.values():
            fixed.window.take_back()
            fixed.window.forget()
        self._steps.clear()

    def forget(self) -> None:
        """Zero what windows still hold of caches that are gone."""
        for fixed in self._steps.values():
            fixed.window.forget()

    def stats(self) -> dict[str, Any]:
        """Counts, widths, the bytes of their windows, and why steps were plain."""
        held = {rows: fixed.window.nbytes for rows, fixed in sorted(self._steps.items())}
        return {
            **self.counts,
            "rows": [*held],
            "bytes": sum(held.values()),
            "plain": {**self.plain},
        }

    # -- in front of a forward -------------------------------------------------------------------

    def prepare(
        self, step: Step, request: Request, kwargs: dict[str, Any], compiled: bool
    ) -> FixedStep | None:
        """The step to replay, all that it reads in place; None: the forward runs as it is."""
        cache = kwargs.get("past_key_values")
        if not is_windowed(cache) or not cache.layers[0].seen:  # type: ignore[union-attr]
            return None
        if step.token_ids.shape[1] != 1:
            # What is looked at once a text is looked at again in front of what comes now.
            self._whole.discard(step.record)
            self._hooked = -1, None
            _own(cache)
            return None
        why = "compiled" if compiled else self._why_plain(step, request, kwargs)
        fixed = None if why else self._fixed(step, kwargs)
        if fixed is None:
            self._tell(
                why or "what is recalled is copied, as a lower tier holds it or less is read"
            )
            _own(cache)
        return fixed

    def _why_plain(self, step: Step, request: Request, kwargs: dict[str, Any]) -> str | None:
        """Why a step is not replayed, as far as that is known without what it recalls."""
        core, mask, record = self._core, kwargs.get("attention_mask"), step.record
        layers = kwargs["past_key_values"].layers
        unable = self._unable()
        if unable is not None:
            return unable
        if record is None:
            return "the cache is not followed"
        if torch.is_grad_enabled():
            return "gradients"
        if step.query_mask is not None:
            return "the first tokens of a text, which do not read"
        if step.weights or core.adapter.config.output_hidden_states:
            return "attention weights or hidden states are wanted"
        for name, given in kwargs.items():
            if name not in LOOKED_AT and given is not None and given is not False:
                return f"the argument {name}"
        if kwargs.get("use_cache") is False or kwargs.get("return_dict") is False:
            return "use_cache=False or return_dict=False"
        if _positions(step, kwargs).ndim != 2:
            return "positions of several kinds"
        if any(x.sliding_window is not None and x.sliding_window <= x.owner.most for x in layers):
            return "a sliding window that is shorter than the memory's"
        return self._masked(request, mask, record)

    def _unable(self) -> str | None:
        """Why no step of the model as it is now is replayed."""
        adapter = self._core.adapter
        if self._failed is not None:
            return self._failed
        if adapter.decoder.training:
            return "the model is being trained"
        if torch.is_autocast_enabled(adapter.input_device.type):
            return "autocast"
        if "peft_config" in adapter.model.__dict__:
            return "adapters (LoRA)"
        if any(WATCH in vars(attention) for attention in self._attentions):
            return "attention weights are watched"
        # Every hook that is registered anywhere counts this on.
        now = RemovableHandle.next_id
        if self._hooked[0] != now:
            self._hooked = now, next(self._hooks_of_others(), None)
        return self._hooked[1]

    def _masked(self, request: Request, mask: Any, record: Any) -> str | None:
        """Whether a mask says more than where rows begin: looked at once for each text."""
        if mask is None:
            return "padded rows without a mask" if any(record.padding) else None
        if request.inputs is None or mask.ndim != 2:
            return "a mask outside of generate"
        if record not in self._whole:
            if int((mask == 0).sum()) != sum(record.padding):
                return "a mask with gaps"
            self._whole.add(record)
        return None

    def _hooks_of_others(self) -> Iterator[str]:
        """Where somebody's code runs between the decoder's layers."""
        adapter = self._core.adapter
        if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
            yield "hooks of all modules"
        wrapped = {*map(id, self._attentions)} if adapter.family.plug == "sdpa" else set()
        for module in adapter.decoder.modules():
            if module is adapter.decoder:
                continue  # what stands around it stands around a replay, too
            if "forward" in vars(module) and id(module) not in wrapped:
                yield "a module whose forward was replaced"
            for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
                if not str(getattr(hook, "__module__", "")).startswith(HARMLESS):
                    yield "hooks of others in the decoder's layers"

    def _fixed(self, step: Step, kwargs: dict[str, Any]) -> FixedStep | None:
        """The step for so many rows; None where it cannot read what is recalled."""
        core, recall, cache = self._core, step.recall, kwargs["past_key_values"]
        layers, reads = cache.layers, sorted(core.layout.read_layers)
        count: int | None = 0
        if recall is not None:
            count = FixedRecall.blocks_of(recall, core.ring, reads)
        if count is None:
            return None
        given = kwargs.get("input_ids")
        given = kwargs["inputs_embeds"] if given is None else given
        fixed = self._kept(len(given))
        fits = fixed is not None and fixed.takes(given) and fixed.window.fits(layers)
        if fixed is None or not fits or count > fixed.recall.entries:
            like = [(layer.keys, layer.values) for layer in layers]
            fixed = self._made(like, given, count)
        column = layers[0]._held()
        layers[0].owner.deferred = True  # nothing leaves in a replay, but behind it
        if not fixed.window.lends(layers[0]):
            _keep_left(step.record)
            fixed.window.lend(cache)
        starts = [0] * len(given)
        if layers[0].owner.padded is not None:
            assert step.record is not None
            gone = layers[0].seen - column
            rows = zip(step.record.padding, layers[0].gone, strict=True)
            starts = [padding + left - gone for padding, left in rows]
        fixed.recall.take(recall, reads)
        less = step.search.aside if recall is not None and column == layers[0].seen else None
        fixed.recall.look_less(less, step.search.asked_at - (0 if less is None else less.shape[1]))
        fixed.point(given, _positions(step, kwargs), column, starts)
        return fixed

    def _kept(self, rows: int) -> FixedStep | None:
        fixed = self._steps.pop(rows, None)
        if fixed is None:
            return None
        if fixed.turn != self._core.identity.turn:  # other weights by now
            fixed.window.take_back()
            return None
        self._steps[rows] = fixed  # the last one that was used stands last
        return fixed

    def _made(self, like: Any, given: torch.Tensor, count: int) -> FixedStep:
        """A step for the rows of such an input, in the place of any other one of as many."""
        core = self._core
        before = self._steps.pop(len(given), None)
        if before is not None:
            before.window.take_back()
        while len(self._steps) >= MOST:
            self._steps.pop(next(iter(self._steps))).window.take_back()
        most = core.config.memory.sinks + core.config.window + 1
        window = FixedWindow(like, len(given), -(-most // ALIGNED) * ALIGNED)
        found = core.standing_retriever.config
        rule = rule_for(False, config=found)
        usual = found.blocks * (rule.passage + 2 * rule.neighbours)
        fixed = FixedStep(self._hooks, window, max(count, usual), given)
        self._steps[len(given)] = fixed
        return fixed

    def _tell(self, why: str) -> None:
        self.plain[why] += 1
        if self.plain[why] == 1:
            LOG.warning(
                "graphs=True: a step runs as without it (%s); counted in "
                "memory.stats()['graphs'], not logged again", why,
            )  # fmt: skip

    # -- in the decoder's place ------------------------------------------------------------------

    def _forward(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        step = self._hooks.step
        fixed = None if step is None else step.fixed
        if step is None or fixed is None or self._hooks.busy:
            return own(*args, **kwargs)
        cache = kwargs["past_key_values"]
        try:
            out, noted = self._run(fixed, own)
        except Exception as error:
            if fixed.recorded or self._core.failures.strict:
                raise
            # It could not be recorded, and will not be another time.
            self._failed = f"it could not be recorded: {type(error).__name__}: {error}"
            self._tell(self._failed)
            step.fixed = None
            self.clear()
            self._hooks.reading.prepare(step, cache, False)
            return own(*args, **kwargs)
        # Copies: the next replay writes over what the record and the caller keep.
        step.index = None if noted.index is None else noted.index.clone()
        step.states = {number: states.clone() for number, states in noted.states.items()}
        if step.recall is not None:
            step.gates, step.entering = noted.gates, dict(noted.entering)
        for layer in cache.layers:
            layer.seen += 1
            layer.held += 1
        return type(out)(last_hidden_state=out.last_hidden_state.clone(), past_key_values=cache)

    def _run(self, fixed: FixedStep, own: Callable[..., Any]) -> tuple[Any, Step]:
        before = fixed.recorded
        out, noted = fixed.run(own)
        self.counts["replayed" if before else "captured"] += 1
        return out, noted

    # -- ahead -----------------------------------------------------------------------------------

    @lasting()
    def warm_up(self, rows: int) -> bool:
        """Record the step of so many rows; whether that had to be done. See `Memory.warm_up`."""
        core, unable = self._core, self._unable()
        if unable is not None:
            raise AttachError(
                f"warm_up: a model whose steps can be replayed expected, but: {unable}"
            )
        core.identity.require()
        if self._kept(rows) is not None:
            return False
        decoder, device = core.adapter.decoder, core.adapter.input_device
        ids = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        with self._hooks.alone():
            cache = DynamicCache(config=core.adapter.config)
            decoder(input_ids=ids[:1], past_key_values=cache, use_cache=True)
        like = [(layer.keys, layer.values) for layer in cache.layers]
        fixed = self._made(like, ids, 0)
        with self._hooks.alone():
            self._run(fixed, self._own_forward)
        return True


def require_fit(core: Core) -> None:
    """Raises `ConfigError` where the model or the settings allow no step to be recorded."""
    adapter, layout = core.adapter, core.layout
    device = adapter.input_device
    asked = "graphs=True replays decoding steps as CUDA graphs: "
    if device.type != "cuda":
        raise ConfigError(f"{asked}a model on a CUDA device expected, got one on {device}")
    spread = {device, core.ring.device, *(adapter.device(n) for n in range(adapter.depth))}
    if len(spread) > 1:
        raise ConfigError(f"{asked}a model on one device expected, got {sorted(map(str, spread))}")
    if layout.residual or layout.store != "kv":
        raise ConfigError(
            f"{asked}method='attention' and store='kv' expected, got "
            f"{core.config.reweave.method!r} and {layout.store!r}"
        )
    if core.config.reweave.positions != "constant":
        raise ConfigError(
            f"{asked}positions='constant' expected, got {core.config.reweave.positions!r}"
        )
    changing = {"dynamic", "longrope"} & set(rope_types(adapter.config))
    if changing:
        raise ConfigError(
            f"{asked}a rotary embedding that is the same for every length expected, got {changing}"
        )
    decoder: Any = adapter.decoder
    name = decoder.config._attn_implementation
    if name not in ("sdpa", "eager"):
        raise ConfigError(f"{asked}attention 'sdpa' or 'eager' expected, got {name!r}")


def _positions(step: Step, kwargs: dict[str, Any]) -> torch.Tensor:
    """The new tokens' positions as the decoder is given them."""
    given: torch.Tensor | None = kwargs.get("position_ids")
    return step.position_ids if given is None else given


def _own(cache: Any) -> None:
    """Let a cache have its keys and values for itself again."""
    for layer in cache.layers:
        lent: FixedWindow | None = getattr(layer, "lent", None)
        if lent is not None:
            lent.take_back()


def _keep_left(record: Any) -> None:
    """Copy what has left a window and could not be stored: it may lie where others write now."""
    if record.left:
        record.left = [
            ({n: (keys.clone(), values.clone()) for n, (keys, values) in layers.items()}, going)
            for layers, going in record.left
        ]
