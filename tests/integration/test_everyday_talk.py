"""A question inside everyday talk is found on the real model, and asks on while it is answered."""

from __future__ import annotations

from pydoc_data.topics import topics
from typing import Any

import pytest
import torch

import cmr

FACTS = (
    (" The spare key of the boat house hangs behind the third shutter. ", "spare key", "shutter"),
    (" Harald Brunner sold his violin to a collector in Bergen. ", "violin", "Bergen"),
    (" The password of the weather station is marmalade-77. ", "weather station", "marmalade"),
)
QUESTIONS = (
    "Where does the spare key of the boat house hang?",
    "Who bought the violin of Harald Brunner?",
    "What is the password of the weather station?",
)
FRONT = (
    "Good morning! I hope that you slept well. It has been raining here since Monday, so we stayed "
    "in, baked two cakes and played cards until late in the evening, which was lovely. "
)
BEHIND = (
    " There is no hurry at all, I am only curious. We are going to visit my aunt on Saturday if "
    "the trains run this time, and she has promised to show us how she makes her soup. Last year "
    "we never got there, as you may remember, and the children still talk about it. Anyway, have "
    "a good week, give my best to everybody at home, and do not work too much, my dear friend! "
)


@pytest.fixture(scope="module")
def memory(smollm2: Any) -> Any:
    model, tokenizer = smollm2
    prose = topics["class"] + topics["compound"] + topics["objects"]
    step = len(prose) // 4
    text = "".join(prose[n * step : (n + 1) * step] + (*FACTS, ("",))[n][0] for n in range(4))
    with cmr.attach(model, tokenizer=tokenizer) as memory:
        memory.read(tokenizer(text, return_tensors="pt").input_ids)
        yield memory


@pytest.mark.parametrize("number", range(len(FACTS)))
@pytest.mark.parametrize(
    "message",
    [
        "{}",
        FRONT + "{}",
        "{}" + BEHIND,
        FRONT + "{}" + BEHIND,
        "{}\n\n" + topics["lambda"] + topics["assert"] + topics["break"],
    ],
    ids=["bare", "before", "behind", "both", "pasted"],
)
def test_the_question_is_found(memory: Any, message: str, number: int) -> None:
    said = message.format(QUESTIONS[number])
    said = said.replace("?", ".") if number == 1 else said  # a mark is a hint and no condition
    found = memory.session("0").search(said)
    assert FACTS[number][2] in found[0].text, [passage.text for passage in found]


@pytest.mark.parametrize("number", range(len(FACTS)))
def test_it_goes_on_asking_while_it_is_answered(smollm2: Any, memory: Any, number: int) -> None:
    model, tokenizer = smollm2
    said = [{"role": "user", "content": QUESTIONS[number] + BEHIND}]
    prompt = tokenizer.apply_chat_template(
        said, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    searches = memory.stats()["searches"]
    with torch.inference_mode():
        model.generate(**prompt, max_new_tokens=40, min_new_tokens=40, do_sample=False)
    assert memory.stats()["searches"] == searches + 3  # the prompt, and twice behind it
    assert FACTS[number][2] in memory.recalled[0][0].text


@pytest.mark.parametrize(("number", "message"), [(0, "{}" + BEHIND), (1, FRONT + "{}")])
def test_the_talk_is_not_what_is_answered(
    smollm2: Any, memory: Any, number: int, message: str
) -> None:
    """Without `focus` the model is sorry for a loss, or for a misunderstanding."""
    model, tokenizer = smollm2
    said = [{"role": "user", "content": message.format(QUESTIONS[number])}]
    prompt = tokenizer.apply_chat_template(
        said, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        answer = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0]
    assert FACTS[number][2] in tokenizer.decode(answer[prompt.input_ids.shape[1] :])
