"""What the haystacks ask: paraphrases, facts told in two sentences, questions about two facts.

The facts told in one sentence are those of `benchmarks.texts.facts`; here is what goes beyond them.
"""

from __future__ import annotations

from dataclasses import dataclass

# By kind of fact: two wordings that share at most one content word with the fact's sentence.
# `{other_slot}` is the entity in other words.
PARAPHRASES: dict[str, tuple[str, str]] = {
    "extension": (
        "Which digits must I dial to reach {last} at work?",
        "How do I get {last} on the internal phone?",
    ),
    "director": (
        "Who has recently been put in charge of {other_institution}?",
        "Who has just taken over as head of {other_institution}?",
    ),
    "price": (
        "How much does one pay for {other_product}?",
        "What would {other_product} cost me?",
    ),
    "hometown": (
        "Where did {last} live as a child?",
        "In what place was {last} raised?",
    ),
    "door code": (
        "Which digits must I type to get into {other_building}?",
        "What combination unlocks {other_building}?",
    ),
    "pet": (
        "How does one call {other_pet}?",
        "What does {last} call the animal?",
    ),
    "room": (
        "Where do we sit down with {other_company}?",
        "Where will the talks with {other_company} be held?",
    ),
    "colour": (
        "Which shade does the entrance of {other_house} have?",
        "Which hue would a visitor see at the entrance to {other_house}?",
    ),
    "date": (
        "On what day does {other_event} begin?",
        "When does {other_event} start?",
    ),
    "job": (
        "How does {last} earn a living?",
        "What is the profession of {last}?",
    ),
    "recipe": (
        "How much of {other_ingredient} goes into {other_dish}?",
        "What weight of {other_ingredient} belongs in {other_dish}?",
    ),
    "password": (
        "What word must I type to log in to {server}?",
        "Which secret lets me into the machine called {server}?",
    ),
    "bus": (
        "Which line should I ride to reach {town}?",
        "By which line of public transport does one get to {town}?",
    ),
    "instrument": (
        "On what does {last} make music?",
        "What does {last} practise before a concert?",
    ),
    "length": (
        "How far is it from one end of the {bridge} crossing to the other?",
        "What distance does one walk to cross the river at {bridge}?",
    ),
    "material": (
        "What substance was used for the sculpture of {other_hero}?",
        "Out of what did the sculptor shape {other_hero}?",
    ),
    "year": (
        "When was the beacon at {lighthouse} erected?",
        "Since when has the beacon at {lighthouse} guided sailors?",
    ),
    "meal": (
        "What does {last} like to eat most?",
        "Which food does {last} enjoy above all others?",
    ),
    "flight": (
        "Which plane does {last} take?",
        "Which aircraft will {last} board at the airport?",
    ),
    "emblem": (
        "Which creature is on the crest of {other_club}?",
        "Which creature is the symbol of {other_club}?",
    ),
    "count": (
        "How many {other_item} belong to {other_museum}?",
        "How large is the stock of {other_item} at {other_museum}?",
    ),
    "street": (
        "Where would one go to purchase {other_shop}?",
        "At which address are {other_shop} sold?",
    ),
    "locker": (
        "Which compartment does {last} use?",
        "Where does {last} store what opens the doors?",
    ),
    "ship": (
        "Aboard which vessel did {last} travel?",
        "What was the vessel called on which {last} crossed the sea?",
    ),
}


@dataclass(frozen=True)
class Told:
    """A fact told in two sentences: the first names who or what, the second has the answer.

    Attributes:
        name: the kind.
        sentence: template of both; `{She}`, `{she}`, `{Her}`, `{her}` follow the first name.
        value: template of the answer, as in `benchmarks.texts.facts.Kind`.
        questions: two wordings that share words with both sentences.
    """

    name: str
    sentence: str
    value: str
    questions: tuple[str, str]


def _told(name: str, first: str, second: str, value: str, asked: str, also: str) -> Told:
    return Told(name, f"{first} {second}", value, (asked, also))


TOLD: tuple[Told, ...] = (
    _told("alarm code",
          "{first} {last} has moved to the {house} in {city}.",
          "{Her} new alarm code there is {value}.", "<10200-98999>",
          "What is the alarm code of {first} {last}, who moved to the {house} in {city}?",
          "Which new alarm code does {first} {last} have in the {house}?"),
    _told("partner",
          "{first} {last} joined the {club} in {town} last spring.",
          "Twice a week {she} trains there with a partner called {value}.", "{petname}",
          "With which partner does {first} {last} train at the {club} in {town}?",
          "What is the partner called with whom {first} {last} of the {club} trains?"),
    _told("plate",
          "{first} {last} bought a used van from a dealer in {city}.",
          "Its licence plate is yellow and ends in {value}.", "<112-989>",
          "In what does the licence plate of the van end that {first} {last} bought?",
          "What ends the licence plate of the used van of {first} {last}?"),
    _told("collection",
          "The {museum} in {city} will close for repairs in {month}.",
          "Its collection moves to the {value} until the work is done.", "{building}",
          "Where does the collection of the {museum} in {city} move during the repairs?",
          "To which building does the {museum} move its collection until the repairs are done?"),
    _told("bill",
          "{first} {last} stayed at the hotel beside the {bridge} Bridge.",
          "The bill for the whole week came to {value} euros.", "<112-989>",
          "How many euros was the bill of {first} {last} at the hotel beside the {bridge} Bridge?",
          "What did the bill for the week of {first} {last} at the hotel come to?"),
    _told("concert",
          "The youth choir of {town} gave a long concert in {city}.",
          "For the new roof of the chapel it raised {value} dollars.", "<1200-9899>",
          "How many dollars did the concert of the youth choir of {town} raise for the roof?",
          "How much was raised for the chapel roof by the choir of {town}?"),
    _told("expedition",
          "An expedition led by {first} {last} left {city} before dawn.",
          "Its destination was the small island of {value}.", "{island}",
          "Which island was the destination of the expedition led by {first} {last}?",
          "What was the destination of {first} {last}'s expedition from {city}?"),
    _told("bakery",
          "The bakery of {first} {last} supplies every cafe in {town}.",
          "Its best seller by a wide margin is the {value}.", "{dish}",
          "What is the best seller of the bakery of {first} {last}?",
          "Which best seller does the bakery of {first} {last} in {town} have?"),
    _told("tree",
          "A gnarled oak stands behind the {house} in {town}.",
          "According to the forester, the tree is {value} years old.", "<112-489>",
          "How many years old is the oak tree behind the {house} in {town}?",
          "How old, according to the forester, is the oak behind the {house}?"),
    _told("prize",
          "{first} {last} won the first prize at the {event} in {city}.",
          "The jury praised {her} life-sized model of a {value}.", "{animal}",
          "For a model of what did the jury give {first} {last} the prize at the {event}?",
          "Which model of {first} {last} did the jury of the {event} praise?"),
    _told("thesis",
          "{first} {last} handed in a thesis at the university of {city}.",
          "The subject of the work is the history of {value}.", "{subject}",
          "What is the subject of the thesis of {first} {last} at the university of {city}?",
          "The history of what is the subject of {first} {last}'s thesis?"),
    _told("parcel",
          "A parcel for {first} {last} arrived at the {building} yesterday.",
          "Its tracking number is long and ends in {value}.", "<1200-9899>",
          "In what does the tracking number of the parcel for {first} {last} end?",
          "What are the last digits of the tracking number of {first} {last}'s parcel?"),
    _told("classes",
          "{first} {last} has signed up for evening classes in {city}.",
          "The language that {she} is learning there is {value}.", "{language}",
          "Which language is {first} {last} learning in the evening classes in {city}?",
          "For which language did {first} {last} sign up at the evening classes?"),
    _told("skipper",
          "The fishing boat {ship} returned to {city} with a torn net.",
          "Her skipper on that stormy night was {value}.", "{first} {last}",
          "Who was the skipper of the fishing boat {ship} that returned to {city}?",
          "What is the name of the skipper of the fishing boat {ship} on that night?"),
    _told("well",
          "A deep well was found under the {building} in {town}.",
          "Its bottom lies exactly {value} feet below the floor.", "<112-489>",
          "How many feet below the floor is the bottom of the well under the {building} in {town}?",
          "How many feet down does the bottom of the well under the {building} lie?"),
    _told("novel",
          "The second novel by {first} {last} is set in {city}.",
          "Its main character is a retired {value} with a bad knee.", "{job}",
          "What is the main character of the second novel by {first} {last}?",
          "Which retired person is the main character of {first} {last}'s novel?"),
    _told("seat",
          "{first} {last} has a season ticket for the theatre in {city}.",
          "{Her} seat on the balcony is number {value}.", "<112-989>",
          "What is the number of {first} {last}'s seat at the theatre in {city}?",
          "Which seat on the balcony goes with the season ticket of {first} {last}?"),
    _told("outing",
          "The staff of {company} went on an outing to {town}.",
          "To everyone's delight they travelled there by {value}.", "{vehicle}",
          "By what did the staff of {company} travel on the outing to {town}?",
          "How did the {company} staff travel to {town} on their outing?"),
    _told("quartet",
          "The string quartet of {first} {last} has a cellar in {city} to rehearse in.",
          "Its members meet every {value} evening.", "{weekday}",
          "On which evening do the members of the string quartet of {first} {last} meet?",
          "Which evening do members of {first} {last}'s quartet meet to rehearse?"),
    _told("crossing",
          "A fast ferry now links {city} with the island of {island}.",
          "In calm weather a single crossing takes {value} minutes.", "<112-289>",
          "How many minutes does a crossing of the ferry to the island of {island} take?",
          "How many minutes does the ferry from {city} to {island} take in calm weather?"),
    _told("suitcase",
          "{first} {last} left a suitcase on the night train to {city}.",
          "Inside the case lay a large collection of {value}.", "{things}",
          "A collection of what lay in the suitcase that {first} {last} left on the train?",
          "What was inside the suitcase of {first} {last} on the night train to {city}?"),
    _told("hut",
          "The mountain hut above {town} is run by {first} {last}.",
          "In the summer months it sleeps {value} guests.", "<112-289>",
          "How many guests does the mountain hut above {town} sleep in summer?",
          "How many guests sleep in the hut run by {first} {last} in summer?"),
    _told("orchard",
          "{first} {last} inherited a neglected orchard outside {town}.",
          "Almost all of the trees that grow there are {value} trees.", "{fruit}",
          "Which trees grow in the orchard outside {town} that {first} {last} inherited?",
          "What kind of trees are almost all the trees in {first} {last}'s orchard?"),
    _told("claim",
          "The insurance claim of {first} {last} concerns a fire in {city}.",
          "Its file number at the head office is {value}.", "<10200-98999>",
          "What is the file number of the insurance claim of {first} {last}?",
          "Which file number does {first} {last}'s claim for the fire in {city} have?"),
)  # fmt: skip

# By kind of one-sentence fact: what it tells as a noun phrase; and, for two of a kind, its plural
# with the entity alone.
PHRASES: dict[str, tuple[str, str, str]] = {
    "extension": ("the extension of {first} {last}", "extensions", "{first} {last}"),
    "director": ("the director of the {institution}", "directors", "the {institution}"),
    "price": ("the price of the {product}", "prices", "the {product}"),
    "hometown": ("the town where {first} {last} grew up", "home towns", "{first} {last}"),
    "door code": ("the door code of the {building}", "door codes", "the {building}"),
    "pet": ("the name of {first} {last}'s {pet}", "names", "{first} {last}'s {pet}"),
    "room": ("the room of the meeting with {company}", "rooms", "the meeting with {company}"),
    "colour": ("the colour of the {house}'s front door", "colours", "the {house}'s front door"),
    "date": ("the date when the {event} in {city} opens", "opening dates", "the {event} in {city}"),
    "job": ("the job of {first} {last}", "jobs", "{first} {last}"),
    "recipe": (
        "the grams of {ingredient} in the recipe for {dish}",
        "amounts in grams", "{ingredient} in the recipe for {dish}",
    ),
    "password": ("the password of the {server} server", "passwords", "the {server} server"),
    "bus": (
        "the number of the bus from {city} to {town}",
        "bus numbers", "the bus from {city} to {town}",
    ),
    "instrument": ("the instrument of {first} {last}", "instruments", "{first} {last}"),
    "length": (
        "the length of the {bridge} Bridge in metres", "lengths in metres", "the {bridge} Bridge",
    ),
    "material": ("the material of the statue of {hero}", "materials", "the statue of {hero}"),
    "year": (
        "the year in which the {lighthouse} lighthouse was built",
        "years of building", "the {lighthouse} lighthouse",
    ),
    "meal": ("the favourite dish of {first} {last}", "favourite dishes", "{first} {last}"),
    "flight": ("the flight number of {first} {last}", "flight numbers", "{first} {last}"),
    "emblem": (
        "the animal on the emblem of the {town} {club}", "emblem animals", "the {town} {club}",
    ),
    "count": (
        "the number of {item} that the {museum} owns", "numbers", "{item} that the {museum} owns",
    ),
    "street": (
        "the street of the {shop} of {first} {last}", "streets", "the {shop} of {first} {last}",
    ),
    "locker": ("the locker of {first} {last}", "lockers", "{first} {last}"),
    "ship": ("the ship that carried {first} {last}", "ships", "{first} {last}"),
}  # fmt: skip

# Questions about two facts: {a}, {b} phrases; {qa}, {qb} questions; {many}, {ea}, {eb} as above.
JOINED: dict[str, str] = {
    "pair": "What are {a} and {b}?",
    "of one kind": "What are the {many} of {ea} and {eb}?",
    "questions": "{qa} And {qb}",
    "higher": "Which number is higher: {a} or {b}?",
    "as well": "Name {a} as well as {b}.",
    "two things": "I need two things: first {a}, then {b}.",
    "lower": "Which number is lower: {a} or {b}?",
    "also": "Tell me {a}, and also {b}.",
}
