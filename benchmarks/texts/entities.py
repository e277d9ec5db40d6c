"""Who and what the haystacks tell of: names by slot of a template, and other words for them."""

from __future__ import annotations

from benchmarks.texts import facts
from benchmarks.texts.words import listed

WOMEN = listed(
    "Maria Ingrid Helena Renata Leonie Dalia Priya Selma Tamsin Elif Noemi Agnes Lucia Astrid "
    "Bianca Carla Delphine Esther Fiona Greta Hanna Irina Johanna Katya Lotte Milena Nadia Olga "
    "Paula Rosa Silvia Teresa Ursula Wanda Yasmin Zoe"
)
MEN = listed(
    "Anton Pavel Tobias Kasper Mirko Oskar Gunnar Ruben Bruno Viktor Hamid Aldo Boris Cedric "
    "Dimitri Emil Felix Gregor Henrik Ivan Jonas Karim Lars Matteo Niklas Omar Pietro Rafael "
    "Stefan Timur Ulrich Vincent Wilhelm Xavier Yusuf Zoltan"
)
FAMILIES = facts.POOLS["last"]
OTHERS = listed(
    "Abbasi Bergstrom Cavallo Dragomir Eriksen Fontaine Gallo Hofmann Ivanov Jankowski Karlsen "
    "Lombardi Meszaros Nordin Olsen Pereira Quintana Rahman Santoro Takeda Ulvang Vasquez Winkler "
    "Yilmaz Zielinski Almeida Boukari Cernik Dupont Escobar Farkas Gruber Horvat Ibsen Jimenez "
    "Kaminski Lefevre Mazur Nygaard Okeke Pohl Rinaldi Sandoval Tanaka Vogel Weiss Zapata Amari "
    "Brodsky Colombo Duarte Engel Fischer Girard Huber Jokinen Koskela Leclerc Morelli Nyberg "
    "Orlov Pavlov Reyes Schreiber Tamm Ursin Valenta Wagner Yamada Zanetti"
)

# Each entity whose name can be avoided, told in other words.
DESCRIBED: dict[str, dict[str, str]] = {
    "institution": {
        "botanical garden": "the place where rare plants are grown",
        "city archive": "the place that keeps old municipal records",
        "state opera": "the national stage for arias",
        "weather institute": "the research centre for storms and rainfall",
        "youth orchestra": "the ensemble of teenage musicians",
        "film school": "the college for future moviemakers",
        "marine laboratory": "the research station for sea life",
        "city hospital": "the municipal clinic",
    },
    "product": {
        "Halden lamp": "the light for the desk",
        "Corvo kettle": "the device that boils water",
        "Nimbus tent": "the shelter for campers",
        "Tarn backpack": "the bag for hikers",
        "Fjord radio": "the set that receives broadcasts",
        "Solis heater": "the appliance that warms a room",
        "Brisk toaster": "the machine that browns slices of bread",
        "Quill printer": "the machine that puts ink on paper",
    },
    "building": {
        "north warehouse": "the depot where goods are stored",
        "boat house": "the hut where the canoes lie",
        "old library": "the place that lends ancient books",
        "garden shed": "the hut with the spades and rakes",
        "harbour office": "the bureau down at the port",
        "music school": "the place where pupils learn to sing",
        "wine cellar": "the vault with the bottles of red and white",
        "bell tower": "the tall structure that chimes the hours",
    },
    "company": {
        "Bluestone Shipping": "the firm that moves cargo by sea",
        "Alder Foods": "the grocery supplier",
        "Vantor Steel": "the metal producer",
        "Mayfield Textiles": "the makers of cloth",
        "Kestrel Optics": "the makers of lenses",
        "Larch Insurance": "the firm that sells policies against fire and theft",
        "Orion Paper": "the makers of stationery",
        "Dunmore Glass": "the makers of window panes",
    },
    "house": {
        "lake house": "the home by the water",
        "corner house": "the home where two roads meet",
        "parsonage": "the home of the vicar",
        "old mill": "the place where grain was once ground",
        "post office": "the place that handles letters and parcels",
        "fire station": "the base of the brigade with hoses and ladders",
        "guest house": "the lodging for visitors",
        "school house": "the place where children learn to read",
    },
    "event": {
        "pottery fair": "the show of clay jugs and bowls",
        "jazz festival": "the series of concerts with swing and saxophones",
        "boat show": "the exhibition of yachts",
        "flower market": "the sale of roses and tulips",
        "film week": "the series of movie screenings",
        "chess open": "the tournament of pawns and rooks",
        "book fair": "the gathering of publishers and novelists",
        "kite festival": "the gathering with paper dragons in the sky",
    },
    "dish": {
        "plum cake": "the gateau with stone fruit",
        "onion soup": "the hot broth that makes the cook weep",
        "almond bread": "the loaf with nuts",
        "lentil stew": "the pot of pulses",
        "fig tart": "the flat pastry with sweet fruit from the Mediterranean",
        "pumpkin pie": "the autumn dessert with orange squash",
        "ginger biscuits": "the spicy cookies",
        "potato dumplings": "the boiled balls of mashed tubers",
    },
    "ingredient": {
        "butter": "the dairy fat",
        "flour": "the milled wheat",
        "sugar": "the sweet crystals",
        "honey": "the syrup that bees make",
    },
    "hero": {
        "Captain Rourke": "the skipper",
        "Saint Odile": "the holy woman",
        "Queen Ysolde": "the female monarch",
        "General Farrow": "the army commander",
        "Doctor Amsel": "the physician",
        "Bishop Tolland": "the head of the diocese",
        "Mayor Quist": "the head of the town council",
        "Admiral Strand": "the commander of the fleet",
    },
    "club": {
        "rowing club": "the people who race with oars",
        "chess club": "the people who move pawns and rooks",
        "cycling club": "the people who ride on two wheels",
        "hockey club": "the people who chase a puck",
        "sailing club": "the people who race yachts",
        "archery club": "the people who let arrows fly",
        "climbing club": "the people who scale rock walls",
        "fencing club": "the people who duel with foils",
    },
    "museum": {
        "Harbour Museum": "the hall with exhibits about docks",
        "Castle Museum": "the hall with exhibits about knights",
        "Railway Museum": "the hall with exhibits about trains",
        "Textile Museum": "the hall with exhibits about weaving",
        "Museum of Toys": "the hall with exhibits about dolls",
        "Maritime Museum": "the hall with exhibits about seafaring",
        "Museum of Medicine": "the hall with exhibits about doctors",
        "Museum of Printing": "the hall with exhibits about type and ink",
    },
    "item": {
        "clocks": "timepieces",
        "maps": "charts",
        "coins": "pieces of old money",
        "vases": "vessels for flowers",
    },
    "shop": {
        "hat shop": "caps and bonnets",
        "violin shop": "fiddles and their strings",
        "cheese shop": "brie and gouda",
        "map shop": "atlases and charts",
        "tea shop": "dried leaves for a hot drink",
        "clock shop": "timepieces",
        "button shop": "fasteners for coats",
        "lamp shop": "lights for the ceiling",
    },
    "pet": {
        "parrot": "the talking bird",
        "tortoise": "the slow reptile with a shell",
        "donkey": "the beast with long ears",
        "goat": "the bearded animal that gives milk",
        "falcon": "the bird of prey",
        "hamster": "the rodent that runs in a wheel",
        "pony": "the small horse",
        "goose": "the big white bird that honks",
    },
}

_LOCAL: dict[str, tuple[str, ...]] = {
    "bridge": listed("Halvard Crane Millbrook Ferris Ottery Kingsley Dorran Wendell"),
    "museum": tuple(DESCRIBED["museum"]),
    "island": listed("Torsay Brenna Kelldo Marrow Sandray Ilvesk Corrin Puffholm"),
    "weekday": listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "fruit": listed("pear cherry quince apricot walnut peach mulberry hazelnut"),
    "things": listed("stamps seashells puppets postcards beetles thimbles marbles masks"),
    "vehicle": (
        "steam train", "ferry", "hay wagon", "tandem", "tram", "canoe", "hot-air balloon", "sledge",
    ),
    "subject": (
        "glassmaking", "lighthouses", "beekeeping", "paper money", "street lighting", "salt mines",
        "clockmaking", "river locks",
    ),
}  # fmt: skip
POOLS: dict[str, tuple[str, ...]] = {**facts.POOLS, "first": WOMEN + MEN, **_LOCAL}
# What may stand in several facts of one kind; all else names the entity and is drawn once a kind.
REPEATED = frozenset({"first", "city", "ingredient", "item"})
# Kinds whose paraphrase names a person: their family names recur over the kinds of a document.
OF_FAMILIES = frozenset(
    {"extension", "hometown", "pet", "job", "instrument", "meal", "flight", "locker", "ship"}
)
