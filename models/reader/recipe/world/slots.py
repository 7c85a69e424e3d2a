"""What fills the slots of stories: a kind's name → one of its values, drawn."""

from __future__ import annotations

import random
from collections.abc import Callable

from edgeprism.models.reader.recipe.world.text import plural
from edgeprism.models.reader.recipe.world.words import (
    ACTIONS,
    ANIMALS,
    BRANDS,
    CITIES,
    CLOTHES,
    COLOURS,
    DAYS,
    MATERIALS,
    MONTHS,
    NAMES,
    NUMBERS,
    PEOPLE,
    PRINTED,
    SAYINGS,
    SURNAMES,
    THINGS,
    VEHICLES,
)

Value = Callable[[random.Random], str]
_EVERYWHERE: dict[str, Value] = {
    "c": lambda r: r.choice(COLOURS), "o": lambda r: r.choice(THINGS),
    "pl": lambda r: plural(r.choice(THINGS)), "n": lambda r: NUMBERS[r.randint(2, 12)],
    "num": lambda r: str(r.randint(2, 99)), "p": lambda r: r.choice(PEOPLE),
    "people": lambda r: plural(r.choice(PEOPLE)), "g": lambda r: r.choice(CLOTHES),
    "m": lambda r: r.choice(MATERIALS), "w": lambda r: r.choice(PRINTED),
    "say": lambda r: r.choice(SAYINGS), "y": lambda r: str(r.randint(1861, 2025)),
    "city": lambda r: r.choice(CITIES), "name": lambda r: r.choice(NAMES),
    "sur": lambda r: r.choice(SURNAMES), "brand": lambda r: r.choice(BRANDS),
    "van": lambda r: r.choice(VEHICLES), "act": lambda r: r.choice(ACTIONS),
    "mon": lambda r: r.choice(MONTHS), "day": lambda r: r.choice(DAYS),
    "an": lambda r: r.choice(ANIMALS), "side": lambda r: r.choice(("left", "right")),
    "dir": lambda r: r.choice(("south", "west", "south-east")),
    "hair": lambda r: r.choice(("grey", "long", "curly", "short", "white", "braided")),
    "adj": lambda r: r.choice(("small", "quiet", "rural", "lavish", "cheerful")),
    "weather": lambda r: r.choice(("sunny", "foggy", "overcast", "windy", "raining")),
    "time": lambda r: r.choice(("dawn", "noon", "dusk", "night")),
    "hour": lambda r: f"{r.randint(1, 12)}:{r.choice(('05', '10', '15', '25', '40', '55'))}",
}  # fmt: skip
# of collections.txt
_COLLECTIONS: dict[str, Value] = {
    "muyear": lambda r: str(r.randint(1593, 1859)), "muold": lambda r: str(r.randint(1862, 1938)),
    "mubig": lambda r: str(r.randint(105, 985)),
    "mucent": lambda r: r.choice(
        ("twelfth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth")),
    "muwood": lambda r: r.choice(
        ("oak", "walnut", "beech", "maple", "ebony", "lime wood", "ash", "elm", "boxwood")),
    "mustone": lambda r: r.choice(
        ("granite", "limestone", "sandstone", "marble", "basalt", "slate", "alabaster", "tuff")),
    "mumetal": lambda r: r.choice(("iron", "brass", "pewter", "copper", "steel", "tin", "zinc")),
    "mucloth": lambda r: r.choice(
        ("silk", "linen", "wool", "damask", "cotton", "taffeta", "hemp", "muslin")),
    "mubeast": lambda r: r.choice(
        ("wolf", "stag", "heron", "boar", "griffin", "swan", "ram", "raven", "otter", "dragon",
         "stork", "bull", "badger")),
    "mutown": lambda r: r.choice(
        ("Alnwick", "Bruges", "Trieste", "Riga", "Coimbra", "Lucerne", "Visby", "Ravenna", "Kazan",
         "Cuzco", "Salem", "Gdansk", "Toledo", "Bamberg", "Dundee", "Nantes", "Lublin", "Zadar")),
    "musaint": lambda r: r.choice(
        ("Saint Nicholas", "Saint Barbara", "Saint Olaf", "Saint Martin", "Saint Agnes",
         "Saint Roch", "Saint Brigid", "Saint Florian", "Saint Clare")),
}  # fmt: skip
# of goods.txt
_GOODS: dict[str, Value] = {
    "gprice": lambda r: f"{r.randint(3, 89)}.{r.choice(('20', '40', '50', '75', '90', '95'))}",
    "gspice": lambda r: r.choice(
        ("cinnamon", "nutmeg", "paprika", "thyme", "oregano", "cumin", "ginger", "saffron", "dill")
    ),
    "gfruit": lambda r: r.choice(
        ("blackcurrant", "raspberry", "cranberry", "rhubarb", "quince", "gooseberry", "apricot")
    ),
    "gwood": lambda r: r.choice(("oak", "beech", "walnut", "ash", "maple", "birch", "larch")),
    "gcode": lambda r: f"{r.choice('ABDEHKLMPRT')}{r.choice('ACEKLNRX')}-{r.randint(1000, 9899)}",
    "gyear": lambda r: str(r.randint(2009, 2029)), "gpast": lambda r: str(r.randint(1956, 2004)),
    "gmin": lambda r: r.choice(("15", "20", "25", "30", "35", "40", "45", "50")),
    "gbig": lambda r: str(r.randint(105, 985)),
    "gclock": lambda r: f"{r.randint(6, 22):02}:{r.choice(('05', '12', '20', '35', '48', '50'))}",
    "gcountry": lambda r: r.choice(
        ("Portugal", "Denmark", "Chile", "Kenya", "Vietnam", "Austria", "Peru", "Slovenia", "Japan")
    ),
}  # fmt: skip
# of views.txt
_VIEWS: dict[str, Value] = {
    "vland": lambda r: r.choice(("Brazil", "Norway", "Kenya", "Japan", "Canada", "Poland")),
    "vtown": lambda r: r.choice(("Ashcombe", "Redlow", "Marwick", "Tillbury", "Eastry", "Dunmere")),
    "vroad": lambda r: r.choice(("Mill Lane", "Canal Street", "Station Road", "Harbour Row")),
    "vwood": lambda r: r.choice(("oak", "birch", "pine", "willow", "elm", "maple", "beech")),
    "vdish": lambda r: r.choice(("lentil stew", "vegetable curry", "noodle soup", "lamb tagine")),
    "vdrink": lambda r: r.choice(("lemonade", "iced tea", "mango juice", "mint tea", "cider")),
    "vwader": lambda r: r.choice(("heron", "stork", "cormorant", "egret", "kingfisher", "curlew")),
    "vbeast": lambda r: r.choice(("lynx", "wolf", "badger", "otter", "stag", "wild boar", "bison")),
    "vhall": lambda r: r.choice(("town hall", "post office", "library", "courthouse", "theatre")),
    "vherd": lambda r: r.choice(("giraffe", "zebra", "antelope", "donkey", "goat", "hyena")),
    "vware": lambda r: r.choice(("earthenware", "wooden", "copper", "porcelain", "enamel")),
    "vyear": lambda r: str(r.randint(1988, 2025)),
    "vage": lambda r: str(r.randint(29, 88)),
    "vlate": lambda r: str(r.randint(2010, 2025)),
    "vmale": lambda r: r.choice(("Hugo", "Jonas", "Karim", "Walter", "Pablo", "Oscar")),
    "vfemale": lambda r: r.choice(("Elena", "Grace", "Ingrid", "Priya", "Tara", "Aisha")),
    "vcloth": lambda r: r.choice(("linen", "denim", "tweed", "velvet", "corduroy", "flannel")),
    "vmood": lambda r: r.choice(("calm", "tense", "festive", "melancholy", "playful", "solemn")),
    "vhe": lambda r: r.choice(("fisherman", "waiter", "monk", "blacksmith", "groom", "ferryman")),
    "vshe": lambda r: r.choice(("nurse", "ballerina", "nun", "waitress", "bride", "saleswoman")),
    "vgame": lambda r: r.choice(("handball", "hockey", "rugby", "volleyball", "water polo")),
}  # fmt: skip
SLOTS = _EVERYWHERE | _COLLECTIONS | _GOODS | _VIEWS
