"""What is planted: kinds of facts as templates, pools to fill them from, four questions a kind."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from benchmarks.texts.words import listed

_RANGE = re.compile(r"<(\d+)-(\d+)>")


POOLS: dict[str, tuple[str, ...]] = {
    "first": listed(
        "Maria Anton Ingrid Pavel Helena Tobias Renata Kasper Leonie Mirko Dalia Oskar Priya "
        "Gunnar Selma Ruben Tamsin Elif Bruno Noemi Viktor Agnes Hamid Lucia"
    ),
    "last": listed(
        "Lindgren Okafor Petrov Marchetti Haugen Varga Castellan Brandt Nakamura Osei Delgado "
        "Kowalski Ferreira Thorsen Adeyemi Rossi Zeman Keller Moreau Bakker Novak Aydin"
    ),
    "city": listed(
        "Oslo Lisbon Krakow Bergen Turin Ghent Malmo Graz Porto Tartu Utrecht Leeds Nantes Izmir "
        "Valencia Dresden"
    ),
    "town": listed(
        "Brackley Elmsford Wexholm Tarrow Dunmere Ashcombe Corvale Pellham Rookwood Silverton "
        "Marlow Fernhill Oakdale Hartwell"
    ),
    "month": listed(
        "January February March April May June July August September October November "
        "December"
    ),
    "product": (
        "Halden lamp", "Corvo kettle", "Nimbus tent", "Tarn backpack", "Fjord radio",
        "Solis heater", "Brisk toaster", "Quill printer",
    ),
    "building": (
        "north warehouse", "boat house", "old library", "garden shed", "harbour office",
        "music school", "wine cellar", "bell tower",
    ),
    "company": (
        "Bluestone Shipping", "Alder Foods", "Vantor Steel", "Mayfield Textiles", "Kestrel Optics",
        "Larch Insurance", "Orion Paper", "Dunmore Glass",
    ),
    "event": (
        "pottery fair", "jazz festival", "boat show", "flower market", "film week", "chess open",
        "book fair", "kite festival",
    ),
    "dish": (
        "plum cake", "onion soup", "almond bread", "lentil stew", "fig tart", "pumpkin pie",
        "ginger biscuits", "potato dumplings",
    ),
    "ingredient": ("butter", "flour", "sugar", "honey"),
    "bridge": listed("Halvard Crane Millbrook Saint-Anne Ferris Ottery Kingsley Dorran"),
    "lighthouse": listed("Skarven Whitmore Torrey Eastpoint Gullholm Rathlin Carrick Nash"),
    "museum": (
        "Fenwick Museum", "Harbour Museum", "Castle Museum", "Railway Museum", "Textile Museum",
        "Museum of Toys", "Maritime Museum", "Museum of Clocks",
    ),
    "item": ("clocks", "maps", "coins", "vases"),
    "institution": (
        "botanical garden", "city archive", "state opera", "weather institute", "youth orchestra",
        "film school", "marine laboratory", "city hospital",
    ),
    "pet": listed("parrot tortoise donkey goat falcon hamster pony goose"),
    "petname": listed("Biscuit Pepper Domino Marzipan Waffle Clover Pickle Bramble Noodle"),
    "house": (
        "lake house", "corner house", "parsonage", "old mill", "post office", "fire station",
        "guest house", "school house",
    ),
    "colour": listed("turquoise crimson lavender orange purple maroon yellow pink"),
    "job": (
        "beekeeper", "locksmith", "piano tuner", "glassblower", "carpenter", "translator",
        "tailor", "diver", "baker", "florist",
    ),
    "server": listed("Juniper Saturn Badger Cobalt Willow Zephyr Granite Heron"),
    "noun": listed("lantern falcon walnut anchor pebble thistle saddle candle"),
    "instrument": listed("cello oboe harp trombone clarinet bassoon violin flute"),
    "material": listed("granite bronze marble copper oak sandstone glass iron"),
    "hero": (
        "Captain Rourke", "Saint Odile", "Queen Ysolde", "General Farrow", "Doctor Amsel",
        "Bishop Tolland", "Mayor Quist", "Admiral Strand",
    ),
    "meal": (
        "mushroom risotto", "fish curry", "beetroot salad", "lamb stew", "cheese pancakes",
        "pea soup", "grilled trout", "spinach lasagne",
    ),
    "club": (
        "rowing club", "chess club", "cycling club", "hockey club", "sailing club", "archery club",
        "climbing club", "fencing club",
    ),
    "animal": listed("otter lynx heron badger stork hedgehog walrus beaver"),
    "street": listed("Candle Weaver Orchard Saddler Mint Lantern Cooper Tanner"),
    "shop": (
        "hat shop", "violin shop", "cheese shop", "map shop", "tea shop", "clock shop",
        "button shop", "lamp shop",
    ),
    "language": listed("Finnish Turkish Polish Arabic Korean Danish Greek Hungarian"),
    "ship": listed("Meridian Cormorant Persephone Aurelia Tempest Valkyrie Halcyon Nereid"),
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A kind of fact.

    Attributes:
        name: the kind.
        group: "number" or "name": what the answer is.
        sentence: template; `{slot}` is filled from the pools, `{value}` is the answer.
        value: template of the answer: pool names, or digits ranges `<low-high>`.
        questions: four wordings that share words with the sentence.
        accepted: further spellings of the answer that count as right.
        shared: slots that one look-alike shares with the fact (another person, the same office).
    """

    name: str
    group: str
    sentence: str
    value: str
    questions: tuple[str, str, str, str]
    accepted: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()


def _kind(name: str, group: str, sentence: str, value: str, *questions: str, **more: tuple) -> Kind:
    assert len(questions) == 4, name
    return Kind(name, group, sentence, value, questions, **more)  # type: ignore[arg-type]


KINDS: tuple[Kind, ...] = (
    _kind("extension", "number",
          "The extension of {first} {last} in the {city} office is {value}.", "<1200-9899>",
          "What is the extension of {first} {last} in the {city} office?",
          "Which extension does {first} {last} have in the {city} office?",
          "What is the extension number of {first} {last} in {city}?",
          "Tell me the extension of {first} {last}.", shared=("city",)),
    _kind("director", "name",
          "The new director of the {institution} is {value}.", "{first} {last}",
          "Who is the new director of the {institution}?",
          "What is the name of the new director of the {institution}?",
          "Which person is the new director of the {institution}?",
          "Tell me who the director of the {institution} is."),
    _kind("price", "number",
          "The price of the {product} is {value} dollars.", "<112-989>",
          "What is the price of the {product}?",
          "What is the price of the {product} in dollars?",
          "How many dollars is the price of the {product}?",
          "Tell me the price of the {product}."),
    _kind("hometown", "name",
          "{first} {last} grew up in the town of {value}.", "{town}",
          "In which town did {first} {last} grow up?",
          "What is the town that {first} {last} grew up in?",
          "Which town did {first} {last} grow up in?",
          "Tell me the name of the town where {first} {last} grew up."),
    _kind("door code", "number",
          "The door code of the {building} is {value}.", "<10200-98999>",
          "What is the door code of the {building}?",
          "Which door code opens the {building}?",
          "What door code does the {building} have?",
          "Tell me the door code of the {building}."),
    _kind("pet", "name",
          "The name of {first} {last}'s {pet} is {value}.", "{petname}",
          "What is the name of {first} {last}'s {pet}?",
          "Which name does {first} {last}'s {pet} have?",
          "What name did {first} {last} give to the {pet}?",
          "Tell me the name of {first} {last}'s {pet}.", shared=("pet",)),
    _kind("room", "number",
          "The meeting with {company} takes place in room {value}.", "<112-989>",
          "In which room does the meeting with {company} take place?",
          "What is the room of the meeting with {company}?",
          "Which room is the meeting with {company} in?",
          "Tell me the room number of the meeting with {company}."),
    _kind("colour", "name",
          "The front door of the {house} is painted {value}.", "{colour}",
          "What colour is the front door of the {house} painted?",
          "Which colour is the front door of the {house}?",
          "In what colour is the front door of the {house} painted?",
          "Tell me the colour of the front door of the {house}."),
    _kind("date", "number",
          "The {event} in {city} opens on {value}.", "{month} <2-28>",
          "When does the {event} in {city} open?",
          "On which date does the {event} in {city} open?",
          "What is the date on which the {event} in {city} opens?",
          "Tell me the date when the {event} in {city} opens.",
          accepted=("{1} {0}", "{1}th of {0}", "{0} {1}th", "{1}th {0}", "{0} {1}st", "{0} {1}nd",
                    "{0} {1}rd", "{1}st of {0}", "{1}nd of {0}", "{1}rd of {0}"),
          shared=("city",)),
    _kind("job", "name",
          "{first} {last} from {city} works as a {value}.", "{job}",
          "What does {first} {last} from {city} work as?",
          "What is the job of {first} {last} from {city}?",
          "As what does {first} {last} from {city} work?",
          "Tell me the job that {first} {last} from {city} works in.", shared=("city",)),
    _kind("recipe", "number",
          "The recipe for {dish} needs {value} grams of {ingredient}.", "<112-989>",
          "How many grams of {ingredient} does the recipe for {dish} need?",
          "What amount of {ingredient} does the recipe for {dish} need?",
          "How much {ingredient} is needed in the recipe for {dish}?",
          "Tell me how many grams of {ingredient} the recipe for {dish} needs.",
          shared=("ingredient",)),
    _kind("password", "name",
          "The password of the {server} server is {value}.", "{noun}",
          "What is the password of the {server} server?",
          "Which password does the {server} server have?",
          "What is the password for the {server} server?",
          "Tell me the password of the {server} server."),
    _kind("bus", "number",
          "The bus from {city} to {town} is number {value}.", "<112-989>",
          "What is the number of the bus from {city} to {town}?",
          "Which number is the bus from {city} to {town}?",
          "What number does the bus from {city} to {town} have?",
          "Tell me the number of the bus from {city} to {town}.", shared=("city",)),
    _kind("instrument", "name",
          "The instrument that {first} {last} plays is the {value}.", "{instrument}",
          "What instrument does {first} {last} play?",
          "Which instrument does {first} {last} play?",
          "What is the instrument that {first} {last} plays?",
          "Tell me the instrument that {first} {last} plays."),
    _kind("length", "number",
          "The {bridge} Bridge is exactly {value} metres long.", "<112-989>",
          "How many metres long is the {bridge} Bridge?",
          "How long is the {bridge} Bridge in metres?",
          "What is the exact length of the {bridge} Bridge in metres?",
          "Tell me how long the {bridge} Bridge is."),
    _kind("material", "name",
          "The statue of {hero} is made of {value}.", "{material}",
          "What is the statue of {hero} made of?",
          "Of which material is the statue of {hero} made?",
          "Which material is the statue of {hero} made of?",
          "Tell me what the statue of {hero} is made of."),
    _kind("year", "number",
          "The {lighthouse} lighthouse was built in the year {value}.", "<1702-1898>",
          "In which year was the {lighthouse} lighthouse built?",
          "What year was the {lighthouse} lighthouse built?",
          "When was the {lighthouse} lighthouse built?",
          "Tell me the year in which the {lighthouse} lighthouse was built."),
    _kind("meal", "name",
          "The favourite dish of {first} {last} is {value}.", "{meal}",
          "What is the favourite dish of {first} {last}?",
          "Which dish is the favourite of {first} {last}?",
          "What dish is {first} {last}'s favourite?",
          "Tell me the favourite dish of {first} {last}."),
    _kind("flight", "number",
          "{first} {last} flies to {city} on flight {value}.", "<1200-9899>",
          "On which flight does {first} {last} fly to {city}?",
          "What is the flight number of {first} {last} to {city}?",
          "Which flight does {first} {last} take to {city}?",
          "Tell me the number of the flight of {first} {last} to {city}.", shared=("city",)),
    _kind("emblem", "name",
          "The emblem of the {town} {club} shows a {value}.", "{animal}",
          "Which animal does the emblem of the {town} {club} show?",
          "What does the emblem of the {town} {club} show?",
          "What animal is shown on the emblem of the {town} {club}?",
          "Tell me the animal on the emblem of the {town} {club}.", shared=("club",)),
    _kind("count", "number",
          "The {museum} in {city} owns {value} {item}.", "<1200-9899>",
          "How many {item} does the {museum} in {city} own?",
          "What number of {item} does the {museum} in {city} own?",
          "How many {item} are owned by the {museum} in {city}?",
          "Tell me how many {item} the {museum} in {city} owns.", shared=("item",)),
    _kind("street", "name",
          "The {shop} of {first} {last} is on {value} Street.", "{street}",
          "On which street is the {shop} of {first} {last}?",
          "What street is the {shop} of {first} {last} on?",
          "Which street has the {shop} of {first} {last}?",
          "Tell me the street of the {shop} of {first} {last}.", shared=("shop",)),
    _kind("locker", "number",
          "{first} {last} keeps the keys in locker {value}.", "<112-989>",
          "In which locker does {first} {last} keep the keys?",
          "What is the number of the locker where {first} {last} keeps the keys?",
          "Which locker does {first} {last} keep the keys in?",
          "Tell me the locker in which {first} {last} keeps the keys."),
    _kind("ship", "name",
          "The ship that carried {first} {last} to {city} was the {value}.", "{ship}",
          "Which ship carried {first} {last} to {city}?",
          "What was the ship that carried {first} {last} to {city}?",
          "What was the name of the ship that carried {first} {last}?",
          "Tell me the name of the ship that carried {first} {last} to {city}.",
          shared=("city",)),
)  # fmt: skip


def slots(template: str) -> list[str]:
    """Names of the `{slot}`s of a template that are filled from the pools."""
    return [s for s in POOLS if "{" + s + "}" in template]


def draw_number(rng: random.Random, low: int, high: int) -> str:
    """A number in [low, high] whose digits are not all round, as text."""
    while True:
        text = str(rng.randint(low, high))
        if len(text) < 3 or (len(set(text)) > 2 and not text.endswith("0")):
            return text


def with_numbers(template: str, rng: random.Random) -> str:
    """The template with a number drawn for each `<low-high>` in it."""
    return _RANGE.sub(lambda found: draw_number(rng, int(found[1]), int(found[2])), template)
