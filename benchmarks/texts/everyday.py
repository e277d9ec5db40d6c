"""Everyday talk that people put around a question: in front of it, behind it, or both.

A message of 30 to 120 tokens beside the question. Where `marks` is False no question mark stands
in the whole message: that of the question becomes a full stop. Some messages ask something else in
passing, as people do. Odd seeds have other talk than even ones, so that what was chosen on one set
can be measured on the other.
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


FIRST = {
    "before": (
        Talk(
            "Hi there! I hope you are having a good day. I finally have a quiet minute with a cup "
            "of tea, so let me ask you something that has been on my mind since breakfast.",
            "",
        ),
        Talk(
            "hey, quick one before my train comes. the battery is nearly empty and my fingers are "
            "freezing, so please excuse the typing and the missing capitals. all i want to know "
            "is this.",
            "",
            marks=False,
        ),
        Talk(
            "Good evening, and sorry for writing so late! How has your week been? Mine was one "
            "long queue: first the dentist, then the garage, and on top of it the washing machine "
            "gave up in the middle of a load, so I spent two hours mopping the bathroom floor. My "
            "neighbour lent me hers, which was kind of her. Anyway, enough of my little "
            "disasters, I did not come here to complain. What I actually meant to ask:",
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
    ),
    "behind": (
        Talk(
            "",
            "I tried to remember it by myself on the way home, but it is just gone. Thank you so "
            "much in advance, you are really a great help to me!",
        ),
        Talk(
            "",
            "no hurry with this, i am off to the supermarket now and will look at my phone when i "
            "am back. the fridge is as good as empty and my sister is coming over for dinner "
            "tonight. just leave me a line.",
            marks=False,
        ),
        Talk(
            "",
            "I am asking because my cousin and I had a bet about it last night and neither of us "
            "wanted to give in. The loser cooks on Saturday, and I am a terrible cook, so you see "
            "that quite a lot depends on it. We agreed that nobody may look anything up before "
            "noon, which is why I waited until now. It is already half past twelve, the potatoes "
            "are waiting and everybody here is hungry. Would you be so kind? Thanks a million, "
            "and have a lovely weekend!",
        ),
        Talk(
            "",
            "That is all for today. You do not have to be long about it, one line is enough, I "
            "only need it for a little card that I am writing. The weather has turned and the "
            "children are at home with a cold, so I may not answer at once. Take care and thank "
            "you.",
            marks=False,
        ),
    ),
    "both": (
        Talk(
            "Hello again, it is me, hope I am not a bother!",
            "Please be honest if you are not sure about it. Thank you, and greetings from the "
            "balcony, where it is far too hot to think.",
        ),
        Talk(
            "ok so i was just making dinner and it came to me that i never found out about one "
            "thing.",
            "would be great to have that settled before the guests are here. thanks and talk soon",
            marks=False,
        ),
        Talk(
            "Good morning! I slept badly, the cat was on the pillow again and at five o'clock the "
            "rubbish was collected right under my window, so bear with me if I do not make much "
            "sense today. There is something I wanted to check with you.",
            "I know that you have better things to do, but it would make my day a good deal "
            "easier. After that I promise to leave you alone until Monday. Many thanks, and do "
            "not work too hard!",
        ),
        Talk(
            "I am tidying up my notes at the moment, as I do at the end of each month, and there "
            "is a gap that I would like to fill before I close the folder.",
            "If you know it, write it down for me in a few words. I will go and water the plants "
            "in the meantime, they have had nothing since Tuesday.",
            marks=False,
        ),
    ),
}
SECOND = {
    "before": (
        Talk(
            "Sorry to bother you on a Sunday. I am on the sofa with a bad back and a hot water "
            "bottle, bored to tears, and my thoughts go in circles. One of them is this:",
            "",
        ),
        Talk(
            "right, so the plumber has just left, the kitchen looks like a swimming pool and i "
            "have to kill half an hour until the floor is dry. that gives me time for something i "
            "have put off all week. help me out here and tell me",
            "",
            marks=False,
        ),
        Talk(
            "Did you see the fog this morning? I could not make out the other side of the street. "
            "Is it always like that at your end in November? Well, at least it kept the tourists "
            "away. By the way, thank you for the recipe, we had it with rice instead of noodles "
            "and there was nothing left in the pot. Before I forget it again, here is the thing "
            "that I wanted to know from you:",
            "",
        ),
        Talk(
            "I promised my mother to write everything down for her while I still have it in my "
            "head, and of course there is exactly one point where I draw a blank. I would be "
            "embarrassed to ask the people concerned, so I ask you. Kindly tell me this and I "
            "will put it into the notebook at once.",
            "",
            marks=False,
        ),
    ),
    "behind": (
        Talk(
            "",
            "Only if you have it at hand, please do not go to any trouble. I am stuck at the "
            "airport anyway and have all the time in the world, as it seems.",
        ),
        Talk(
            "",
            "below is the list for saturday, please ignore it, i only paste it so that i do not "
            "lose it. two loaves of bread, butter, a dozen eggs, washing powder, batteries for "
            "the torch, stamps, something nice for the neighbours, light bulbs with a small "
            "socket.",
            marks=False,
        ),
        Talk(
            "",
            "My colleague swears that it was otherwise, and he is so loud about it that the whole "
            "canteen has taken his side by now. I do not like to be laughed at over the soup. So "
            "would you do me the favour and settle it once and for all? If I was right he has to "
            "wash my car, and if he was I will never hear the end of it. Either way I shall sleep "
            "better. Greetings from the second floor, the heating is still broken.",
        ),
        Talk(
            "",
            "I will be in a meeting until four and cannot take calls, so a short written answer "
            "suits me best. Afterwards I have to catch the bus to my swimming lesson. Thank you "
            "for your patience with an old man and his many requests.",
            marks=False,
        ),
    ),
    "both": (
        Talk(
            "Me again! You must be tired of me by now.",
            "There is cake for you in it if you can tell me. Chocolate or lemon, as you like, and "
            "I mean it.",
        ),
        Talk(
            "so this popped into my head in the shower and now it will not leave me alone.",
            "just a word or two will do, i have shampoo in my eyes and a towel on my head.",
            marks=False,
        ),
        Talk(
            "Dear friend, the moving boxes are all over the flat, I have found three scarves but "
            "not one matching pair of socks, and the internet only works next to the window. "
            "While I stand here anyway I thought that I might as well use the time.",
            "Do you happen to have it in mind? I had written it on the back of an envelope, and "
            "that envelope went out with the waste paper on Wednesday. A hug from a very dusty "
            "place, and come and see the balcony soon!",
        ),
        Talk(
            "The report is due tomorrow and I have reached the last page. There is a single line "
            "in it that I cannot fill in by myself, and it would be a pity to leave it open.",
            "Write it as plainly as you can. I add the flourishes myself, my chief likes them, "
            "and then I switch off this machine and go for a walk along the river.",
            marks=False,
        ),
    ),
}
WRAPPED = ", wrapped"
"""Behind the name of a kind of questions, or of who answers them: inside everyday talk."""
TALK = (FIRST, SECOND)


def talk(place: str, number: int, seed: int = 0) -> Talk:
    """What is said around the question of this number; all talk of a place comes equally often.

    Args:
        place: one of `PLACES`.
        number: of the question.
        seed: even or odd, which set of talk is taken.

    Raises:
        KeyError: there is no such place.
    """
    told = TALK[seed % len(TALK)][place]
    return told[number % len(told)]


def wrapped(question: str, number: int, seed: int = 0) -> str:
    """The question inside everyday talk: places take turns, and the talk of each does."""
    return talk(PLACES[number % len(PLACES)], number // len(PLACES), seed).around(question)
