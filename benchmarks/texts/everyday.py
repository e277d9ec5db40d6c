"""Everyday talk that people put around a question: in front of it, behind it, or both.

A message of 30 to 120 tokens beside the question. Where `marks` is False no question mark stands
in the whole message: that of the question becomes a full stop. One message asks something else in
passing, as people do.
"""

from __future__ import annotations

from dataclasses import dataclass

PLACES = ("before", "behind", "both")
"""Where the talk stands, seen from the question."""


@dataclass(frozen=True)
class Talk:
    """What is said around a question, either part may be empty; `marks`: question marks stand."""

    before: str
    behind: str
    marks: bool = True

    def around(self, question: str) -> str:
        """The whole message."""
        text = question.strip()
        if not self.marks:
            text = text.replace("?", ".")
        return " ".join(part for part in (self.before, text, self.behind) if part)


BEFORE = (
    Talk(
        "Hi there! I hope you are having a good day. I finally have a quiet minute with a cup of "
        "tea, so let me ask you something that has been on my mind since breakfast.",
        "",
    ),
    Talk(
        "hey, quick one before my train comes. the battery is nearly empty and my fingers are "
        "freezing, so please excuse the typing and the missing capitals. all i want to know is "
        "this.",
        "",
        marks=False,
    ),
    Talk(
        "Good evening, and sorry for writing so late! How has your week been? Mine was one long "
        "queue: first the dentist, then the garage, and on top of it the washing machine gave up "
        "in the middle of a load, so I spent two hours mopping the bathroom floor. My neighbour "
        "lent me hers, which was kind of her. Anyway, enough of my little disasters, I did not "
        "come here to complain. What I actually meant to ask:",
        "",
    ),
    Talk(
        "Thanks again for your help yesterday, the list that you made for me was just what I "
        "needed and my boss liked it, too. Today it is something smaller. I have been sitting "
        "over it for a while and I keep mixing things up, so I would rather hear it from you "
        "than guess. Please tell me the following, short and simple.",
        "",
        marks=False,
    ),
)
BEHIND = (
    Talk(
        "",
        "I tried to remember it by myself on the way home, but it is just gone. Thank you so "
        "much in advance, you are really a great help to me!",
    ),
    Talk(
        "",
        "no hurry with this, i am off to the supermarket now and will look at my phone when i am "
        "back. the fridge is as good as empty and my sister is coming over for dinner tonight. "
        "just leave me a line.",
        marks=False,
    ),
    Talk(
        "",
        "I am asking because my cousin and I had a bet about it last night and neither of us "
        "wanted to give in. The loser cooks on Saturday, and I am a terrible cook, so you see "
        "that quite a lot depends on it. We agreed that nobody may look anything up before noon, "
        "which is why I waited until now. It is already half past twelve, the potatoes are "
        "waiting and everybody here is hungry. Would you be so kind? Thanks a million, and have "
        "a lovely weekend!",
    ),
    Talk(
        "",
        "That is all for today. You do not have to be long about it, one line is enough, I only "
        "need it for a little card that I am writing. The weather has turned and the children "
        "are at home with a cold, so I may not answer at once. Take care and thank you.",
        marks=False,
    ),
)
BOTH = (
    Talk(
        "Hello again, it is me, hope I am not a bother!",
        "Please be honest if you are not sure about it. Thank you, and greetings from the "
        "balcony, where it is far too hot to think.",
    ),
    Talk(
        "ok so i was just making dinner and it came to me that i never found out about one thing.",
        "would be great to have that settled before the guests are here. thanks and talk soon",
        marks=False,
    ),
    Talk(
        "Good morning! I slept badly, the cat was on the pillow again and at five o'clock the "
        "rubbish was collected right under my window, so bear with me if I do not make much sense "
        "today. There is something I wanted to check with you.",
        "I know that you have better things to do, but it would make my day a good deal easier. "
        "After that I promise to leave you alone until Monday. Many thanks, and do not work too "
        "hard!",
    ),
    Talk(
        "I am tidying up my notes at the moment, as I do at the end of each month, and there is a "
        "gap that I would like to fill before I close the folder.",
        "If you know it, write it down for me in a few words. I will go and water the plants in "
        "the meantime, they have had nothing since Tuesday.",
        marks=False,
    ),
)
WRAPPED = ", wrapped"
"""Behind the name of a kind of questions, or of who answers them: inside everyday talk."""
TALK = {"before": BEFORE, "behind": BEHIND, "both": BOTH}


def talk(place: str, number: int) -> Talk:
    """What is said around the question of this number; all talk of a place comes equally often.

    Args:
        place: one of `PLACES`.
        number: of the question.

    Raises:
        KeyError: there is no such place.
    """
    told = TALK[place]
    return told[number % len(told)]


def wrapped(question: str, number: int) -> str:
    """The question inside everyday talk: places take turns, and the talk of each does."""
    return talk(PLACES[number % len(PLACES)], number // len(PLACES)).around(question)
