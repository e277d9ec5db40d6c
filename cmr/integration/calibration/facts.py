"""What a calibration reads: facts with questions about them, and text that every Python carries."""

from __future__ import annotations

import ast
import functools
import importlib.util
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHUNK = 1_600
"""Characters of a piece of text that stays together, about."""
_SHORTEST = 300
_MODULES = """
argparse bisect calendar collections configparser contextlib copy csv datetime decimal difflib
fractions functools heapq imaplib ipaddress locale logging mailbox mimetypes optparse pathlib pickle
platform random shelve shutil smtplib socketserver statistics string subprocess tempfile textwrap
threading timeit turtle typing uuid warnings weakref zipfile
"""


@dataclass(frozen=True)
class Fact:
    """A sentence to be found again.

    Attributes:
        sentence: what is planted.
        same: a question in its words.
        other: questions that share few words with it.
    """

    sentence: str
    same: str
    other: tuple[str, str]


def ordinary_text(tokenizer: Any, tokens: int, seed: int) -> list[list[int]]:
    """Documentation of Python and of its library, in pieces of some 1,600 characters, shuffled.

    Args:
        tokenizer: of the model.
        tokens: how many are wanted; fewer come where this Python carries less text.
        seed: of the order.

    Returns:
        Token ids of each piece.
    """
    pieces = list(_corpus())
    random.Random(seed).shuffle(pieces)
    found: list[list[int]] = []
    held = 0
    for piece in pieces:
        if held >= tokens:
            break
        found.append(encode(tokenizer, piece + "\n\n")[: tokens - held])
        held += len(found[-1])
    return found


def chunks(text: str, size: int = CHUNK) -> Iterator[str]:
    """Whole paragraphs of a text, some `size` characters at a time."""
    piece = ""
    for paragraph in text.split("\n\n"):
        while len(paragraph) > 2 * size:
            paragraph, rest = paragraph[:size], paragraph[size:]
            yield f"{piece}\n\n{paragraph}".strip()
            piece, paragraph = "", rest
        piece = f"{piece}\n\n{paragraph}".strip()
        if len(piece) >= size:
            yield piece
            piece = ""
    if len(piece) >= min(_SHORTEST, size):
        yield piece


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of `text` without special tokens added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@functools.cache
def _corpus() -> tuple[str, ...]:
    return tuple(piece for text in (*_topics(), *_docstrings()) for piece in chunks(text))


def _topics() -> Iterator[str]:
    if importlib.util.find_spec("pydoc_data.topics") is not None:
        from pydoc_data.topics import topics

        yield from topics.values()


def _docstrings() -> Iterator[str]:
    """The docstrings of each module, together, where its source is there."""
    for name in _MODULES.split():
        try:
            spec = importlib.util.find_spec(name)
            source = Path(spec.origin or "").read_text("utf-8") if spec is not None else ""
            nodes = list(ast.walk(ast.parse(source)))
        except (ImportError, OSError, SyntaxError, ValueError):
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        said = (ast.get_docstring(node) for node in nodes if isinstance(node, kinds))
        yield "\n\n".join(text for text in said if text)


# In pairs of a kind, so that each has a look-alike.
FACTS: tuple[Fact, ...] = (
    Fact("The orchard of Willa Stroud yields forty barrels of cider each autumn.",
         "How many barrels of cider does the orchard of Willa Stroud yield each autumn?",
         ("What quantity of apple drink does the Stroud farm make in a season?",
          "How productive are Willa's fruit trees?")),
    Fact("The hives of Perrin Ashgrove gave ninety jars of honey in one summer.",
         "How many jars of honey did the hives of Perrin Ashgrove give in one summer?",
         ("How much did Ashgrove's bees produce?",
          "What amount of sweet stuff was collected from Perrin's insects?")),
    Fact("Professor Adaora Nwosu discovered a blind beetle in a cave near Palermo.",
         "Where did Professor Adaora Nwosu discover a blind beetle?",
         ("In which underground place was the unknown insect found?",
          "Close to what city did the scholar Nwosu come across the bug without eyes?")),
    Fact("A road crew in Wyoming dug up the skeleton of a giant turtle.",
         "Who dug up the skeleton of a giant turtle in Wyoming?",
         ("Which workers found the remains of the huge reptile?",
          "By whom were the bones of the ancient sea animal brought to light?")),
    Fact("The mayor had the clock in the market square replaced by a sundial.",
         "By what did the mayor have the clock in the market square replaced?",
         ("How do people at the stalls now tell the time?",
          "What stands today where the hands used to turn in the town centre?")),
    Fact("The fountain in front of the courthouse was filled in and planted with roses.",
         "With what was the fountain in front of the courthouse planted?",
         ("Which flowers grow where water once splashed before the judges' steps?",
          "What became of the basin outside the halls of justice?")),
    Fact("Judge Harlan Pike sentenced the smuggler to six years in prison.",
         "To how many years in prison did Judge Harlan Pike sentence the smuggler?",
         ("How long must the man who dodged customs stay behind bars?",
          "What punishment did the court under Pike hand down?")),
    Fact("The jury fined the brewery two million for poisoning the creek.",
         "How much did the jury fine the brewery for poisoning the creek?",
         ("What penalty must the beer maker pay?",
          "How expensive did polluting the stream turn out for the company?")),
    Fact("The surgeon Ottilie Brandvold removed a fish hook from the boy's thumb.",
         "What did the surgeon Ottilie Brandvold remove from the boy's thumb?",
         ("Which object was stuck in the child's hand?",
          "What was taken out during the operation by Brandvold?")),
    Fact("Nurse Callum Reave gave the patient a second dose of quinine at midnight.",
         "When did Nurse Callum Reave give the patient a second dose of quinine?",
         ("At what hour was the medicine administered again?",
          "How late was it when Reave treated the sick man once more?")),
    Fact("Snow blocked the pass of Velmora until the end of May.",
         "Until when did snow block the pass of Velmora?",
         ("How long could nobody drive across the mountains at Velmora?",
          "In which season did the high road open to traffic once more?")),
    Fact("A flood swept away the footpath between Dunning and the quarry.",
         "What swept away the footpath between Dunning and the quarry?",
         ("Why can hikers no longer walk to the stone pit?",
          "By which disaster was the trail from Dunning destroyed?")),
    Fact("The astronomer Ilse Tarkovich named the comet after her grandmother.",
         "After whom did the astronomer Ilse Tarkovich name the comet?",
         ("Which relative is honoured by the celestial body?",
          "Whose memory does Tarkovich's find in the night sky keep alive?")),
    Fact("The satellite Polaris Nine fell into the sea off the coast of Chile.",
         "Where did the satellite Polaris Nine fall into the sea?",
         ("Near which country did the spacecraft crash?",
          "What was the end of Polaris Nine after its years in orbit?")),
    Fact("The violinist broke two strings during the encore in Salzburg.",
         "How many strings did the violinist break during the encore in Salzburg?",
         ("What mishap befell the soloist at the close of the concert?",
          "How badly was the fiddle damaged in Austria?")),
    Fact("The tenor Marek Dubiel lost his voice on the eve of the premiere.",
         "When did the tenor Marek Dubiel lose his voice?",
         ("What kept Dubiel from singing at the first performance?",
          "Which misfortune struck the opera star the night before?")),
    Fact("Grandfather hid the silver spoons beneath the cellar stairs.",
         "Where did grandfather hide the silver spoons?",
         ("In what spot was the precious cutlery concealed by the old man?",
          "What did grandpa put below the steps?")),
    Fact("Aunt Philippa keeps her diamond ring inside a tin of buttons.",
         "Inside what does Aunt Philippa keep her diamond ring?",
         ("Where would a burglar have to look for Philippa's jewel?",
          "What serves as the hiding place of the gem?")),
    Fact("The wolves of the northern reserve were counted from a helicopter.",
         "From what were the wolves of the northern reserve counted?",
         ("How did rangers find out the number of wild predators?",
          "Which aircraft was used for the census of the pack?")),
    Fact("The zoo feeds its penguins eleven kilos of herring every morning.",
         "How many kilos of herring does the zoo feed its penguins every morning?",
         ("What do the black and white birds get for breakfast?",
          "How much fish do the keepers need daily?")),
    Fact("The factory in Trebnitz makes zips for diving suits.",
         "What does the factory in Trebnitz make for diving suits?",
         ("Which product comes off the assembly line at Trebnitz?",
          "Where are fasteners for underwater clothing manufactured?")),
    Fact("The workshop of Benoit Lacasse repairs church organs with pipes of tin.",
         "What does the workshop of Benoit Lacasse repair?",
         ("Which things does the craftsman Lacasse mend?",
          "To whom should a parish turn when its keyboard falls silent?")),
    Fact("The treaty was signed aboard a frozen steamer on Lake Ladoga.",
         "Where was the treaty signed?",
         ("On which icebound ship did the two nations make peace?",
          "In what unusual setting did the diplomats put their names to the agreement?")),
    Fact("The rebels surrendered the fortress of Karsoum after nine weeks of siege.",
         "After how many weeks of siege did the rebels surrender the fortress of Karsoum?",
         ("How long did the insurgents hold out inside the castle?",
          "When did the defenders of Karsoum give up?")),
    Fact("The bank froze the account of Leopold Vance because of a forged signature.",
         "Why did the bank freeze the account of Leopold Vance?",
         ("For what reason can Vance no longer get at his money?",
          "Which fake made the lender suspicious?")),
    Fact("The insurer refused to pay for the barn since the lightning rod was missing.",
         "Why did the insurer refuse to pay for the barn?",
         ("What did the farmer lack when his claim was turned down?",
          "For want of which device was no compensation granted?")),
    Fact("The goalkeeper saved three penalties with a broken finger.",
         "How many penalties did the goalkeeper save with a broken finger?",
         ("What did the injured player achieve between the posts?",
          "Which feat of the footballer was done despite pain in the hand?")),
    Fact("The marathon was won by a postman from Nairobi in borrowed shoes.",
         "Who won the marathon in borrowed shoes?",
         ("Which runner crossed the finish line first?",
          "What is the occupation of the champion of the long race?")),
    Fact("The library of Count Estermann was sold to pay his gambling debts.",
         "Why was the library of Count Estermann sold?",
         ("What forced the nobleman to part with his books?",
          "For which purpose did Estermann's volumes go under the hammer?")),
    Fact("The portrait of the duchess hung upside down in the gallery for a month.",
         "For how long did the portrait of the duchess hang upside down in the gallery?",
         ("How much time passed before anyone noticed the mistake with the painting?",
          "What was wrong with the picture of the noble lady?")),
    Fact("The train to Szeged stopped for an hour because of a cow on the rails.",
         "Why did the train to Szeged stop for an hour?",
         ("What animal made the railway passengers late?",
          "What was the cause of the delay on the way to Szeged?")),
    Fact("The ferry to Jura sails only when the wind comes from the west.",
         "When does the ferry to Jura sail?",
         ("Under which weather can one cross by boat to Jura?",
          "From what direction must it blow for the ship to depart?")),
    Fact("Tessa Blomqvist teaches the deaf children of the village to dance.",
         "What does Tessa Blomqvist teach the deaf children of the village?",
         ("Which skill do the pupils who cannot hear learn from Blomqvist?",
          "Who instructs the local kids without hearing?")),
    Fact("Headmaster Rufus Ogilvie banned chewing gum from the playground.",
         "What did Headmaster Rufus Ogilvie ban from the playground?",
         ("Which habit is forbidden to the pupils during the break?",
          "What may students no longer have in their mouths under Ogilvie?")),
    Fact("The engineers lowered the tunnel by half a metre to let buses through.",
         "By how much did the engineers lower the tunnel to let buses through?",
         ("How much deeper was the underpass made?",
          "Which change gave tall vehicles enough room below ground?")),
    Fact("The elevator of the tower carries twenty people at most.",
         "How many people does the elevator of the tower carry at most?",
         ("What is the capacity of the lift?",
          "How big a group can ride up to the top at once?")),
    Fact("The cook at Madame Fournier's inn thickens every sauce with chestnuts.",
         "With what does the cook at Madame Fournier's inn thicken every sauce?",
         ("Which nut does the chef use for the gravy?",
          "What is the secret of the kitchen at Fournier's lodging?")),
    Fact("Old Demetrios smokes his cheese over the wood of fig trees.",
         "Over what wood does old Demetrios smoke his cheese?",
         ("What fuel gives the Greek's dairy product its flavour?",
          "Which timber burns under the food that Demetrios sells?")),
    Fact("The spy crossed the border dressed as a chimney sweep.",
         "How was the spy dressed when crossing the border?",
         ("Which disguise did the secret agent wear?",
          "As whom did the informer pass the guards of the frontier?")),
    Fact("The prisoner escaped through the laundry with the help of a guard.",
         "Through what did the prisoner escape with the help of a guard?",
         ("By which route did the convict flee from jail?",
          "Where did the inmate get out, thanks to a bribed warder?")),
    Fact("The vaccine against cattle fever must be stored below freezing.",
         "How must the vaccine against cattle fever be stored?",
         ("At what temperature should the vet keep the drug for cows?",
          "Which condition must hold so that the injection does not spoil?")),
    Fact("The seeds of the desert lily sprout only after a fire.",
         "When do the seeds of the desert lily sprout?",
         ("What does the plant of the dry lands need in order to germinate?",
          "Which event makes the flower grow in the arid region?")),
    Fact("The programmers renamed the database Walrus before its release.",
         "What did the programmers rename the database before its release?",
         ("Under which title was the storage software published?",
          "How is the developers' product called now?")),
    Fact("The robot Tilda sorts letters twice as fast as a clerk.",
         "How fast does the robot Tilda sort letters?",
         ("How does the machine for mail compare with a human worker?",
          "What is the speed of Tilda?")),
    Fact("The bishop's nephew inherited a windmill on the island of Fohr.",
         "What did the bishop's nephew inherit on the island of Fohr?",
         ("Which property was left to the clergyman's relative?",
          "What stood in the will for the young man of the cleric's family?")),
    Fact("The widow Sokolova left her fortune to a home for stray dogs.",
         "To whom did the widow Sokolova leave her fortune?",
         ("Who received Sokolova's money after her death?",
          "Which charity for animals was named in the testament?")),
    Fact("The poet Ansel Wray wrote his finest verses on the backs of receipts.",
         "On what did the poet Ansel Wray write his finest verses?",
         ("Which paper did Wray use for his best lines?",
          "Where were the famous rhymes jotted down?")),
    Fact("The composer Nils Aarestad burned his only symphony in a stove.",
         "What did the composer Nils Aarestad burn in a stove?",
         ("Which work of Aarestad was destroyed by flames?",
          "How was the orchestral piece lost forever?")),
)  # fmt: skip
