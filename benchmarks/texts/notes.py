"""Short notes of people about themselves, and what they ask of them later, in the first person.

Each person has told `NOTES` things in passing, together fewer tokens than a search needs to know
what is usual. Odd seeds have other kinds of notes than even ones, so that what was chosen on one
set can be measured on the other.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from benchmarks.texts.documents import Question
from benchmarks.texts.facts import with_numbers
from benchmarks.texts.words import listed

NOTES = 6
"""Notes of a person, each asked about once."""
PEOPLE = 6


@dataclass(frozen=True)
class Person:
    """What one person told and asks: `questions[i]` is about `notes[i]`."""

    notes: tuple[str, ...]
    questions: tuple[Question, ...]


DAYS = listed("Monday Tuesday Wednesday Thursday Friday Saturday")
CITIES = listed("Oslo Lisbon Krakow Turin Ghent Leeds Porto Izmir Valencia Dresden")
NAMES = listed("Ingrid Pavel Helena Tobias Renata Kasper Leonie Dalia Oskar Selma")
# A note, the values of what is asked for, the question.
FIRST = (
    ("I am on the {} plan, I think I signed up for it in spring.",
     listed("Basic Family Student Premium"), "What plan am I on?"),
    ("My locker number is {}, it is the one next to the window.", ("<1200-9899>",),
     "What is my locker number?"),
    ("We moved to {} two years ago and like it a lot here.", CITIES, "Which city do I live in?"),
    ("I am allergic to {}, so please keep that in mind when we talk about food.",
     listed("peanuts shellfish strawberries celery mustard"), "What am I allergic to?"),
    ("My dog is called {} and he hates the rain.", listed("Biscuit Pepper Domino Waffle Clover"),
     "What is my dog called?"),
    ("I parked the car on level {} of the garage.", ("<11-98>",),
     "On which level did I park the car?"),
    ("My appointment at the dentist is on {}.", DAYS, "On which day is my dentist appointment?"),
    ("I play the {} in a small band.", listed("cello oboe harp trombone clarinet flute"),
     "Which instrument do I play?"),
    ("My manager is {}, we get along well.", NAMES, "Who is my manager?"),
    ("I paid {} dollars for the new bike.", ("<112-989>",), "How much did I pay for my bike?"),
    ("My favourite colour is {}, if that helps.",
     listed("turquoise crimson lavender orange purple yellow"), "What is my favourite colour?"),
    ("I am learning {} in the evenings.", listed("Finnish Turkish Polish Arabic Korean Danish"),
     "Which language am I learning?"),
)  # fmt: skip
SECOND = (
    ("The order number that I was given is {}.", ("<12000-98999>",), "What is my order number?"),
    ("My sister works as a {} in the old town.",
     listed("locksmith glassblower carpenter translator tailor florist"),
     "What does my sister work as?"),
    ("I usually go swimming on {} after work.", DAYS, "On which day do I go swimming?"),
    ("My flight to the wedding leaves from gate {}.", ("<11-98>",),
     "From which gate does my flight leave?"),
    ("I drink my coffee with {}, never black.", ("oat milk", "cinnamon", "honey", "cream"),
     "How do I drink my coffee?"),
    ("The password of my wifi at home is {}.", listed("lantern falcon walnut pebble thistle"),
     "What is the password of my wifi?"),
    ("My daughter is called {} and just started school.", NAMES, "What is my daughter called?"),
    ("I was born in {}, as the oldest of three.", ("<1951-1999>",), "In which year was I born?"),
    ("My car is {}, which makes it easy to find.", listed("green yellow white black silver purple"),
     "What colour is my car?"),
    ("I work in the {} office of the company.", CITIES, "In which office do I work?"),
    ("Our cat is {} years old and still very quick.", ("<3-19>",), "How old is my cat?"),
    ("I collect {} from all over the world.", listed("stamps coins maps clocks puppets postcards"),
     "What do I collect?"),
)  # fmt: skip
PASSING = (
    "Good morning, I hope the day treats you kindly.",
    "Thanks again for the help with the letter.",
    "It has been raining here since noon.",
    "The meeting went fine, by the way.",
    "I will be away for an hour now.",
    "That is it for the moment, talk to you later.",
)


def people(seed: int) -> list[Person]:
    """`PEOPLE` people, each with `NOTES` notes and something said in passing between them."""
    rng, kinds = random.Random(seed), FIRST if seed % 2 == 0 else SECOND
    out = []
    for _ in range(PEOPLE):
        notes, questions = [], []
        for note, values, question in rng.sample(kinds, NOTES):
            value = with_numbers(rng.choice(values), rng)
            notes.append(f"{note.format(value)} {rng.choice(PASSING)}")
            questions.append(Question(question, (value,)))
        out.append(Person(tuple(notes), tuple(questions)))
    return out
