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
# of photographs.txt
_PHOTOGRAPHS: dict[str, Value] = {
    "phhe": lambda r: r.choice(
        ("Marcus", "Tomas", "Emil", "Rashid", "Bruno", "Felix", "Kenji", "Anton", "Louis", "Dmitri",
         "Gareth", "Idris", "Niels", "Rafael", "Stefan", "Tariq")),
    "phshe": lambda r: r.choice(
        ("Beatrice", "Clara", "Fatima", "Hanna", "Irina", "Julia", "Kirsten", "Leila", "Maria",
         "Noor", "Olga", "Paula", "Sofia", "Teresa", "Yvonne", "Agnes")),
    "phsur": lambda r: r.choice(
        ("Abbott", "Bergman", "Castro", "Delgado", "Eriksen", "Forster", "Gallagher", "Hoffmann",
         "Ibrahim", "Jansen", "Kaplan", "Laurent", "Mbeki", "Nakamura", "Osborne", "Pereira",
         "Quist", "Romano", "Sandberg", "Thorne", "Vogel", "Weber", "Yilmaz", "Zielinski")),
    "phtown": lambda r: r.choice(
        ("Elmstead", "Corrin Bay", "Lower Hatch", "Vendel", "Marisol", "Sandwick", "Altmoor",
         "Portrane", "Grafton", "Kestrel Point", "Bellamy", "Ostfeld", "Tarrant", "Whitby Ford")),
    "pholder": lambda r: str(r.randint(1884, 1939)), "phmid": lambda r: str(r.randint(1946, 1979)),
    "phnew": lambda r: str(r.randint(2011, 2025)), "phbig": lambda r: str(r.randint(110, 960)),
    "phage": lambda r: str(r.randint(21, 79)), "phday": lambda r: str(r.randint(2, 28)),
    "phpaper": lambda r: r.choice(
        ("Evening Courier", "Coast Gazette", "Morning Herald", "Valley Times", "Daily Ledger")),
    "phland": lambda r: r.choice(
        ("Iceland", "Morocco", "Chile", "Namibia", "Mongolia", "Scotland", "Bolivia", "Greenland")),
    "phflower": lambda r: r.choice(
        ("peonies", "lilies", "daisies", "freesias", "hydrangeas", "poppies", "lavender")),
    "phbreed": lambda r: r.choice(
        ("spaniel", "terrier", "collie", "poodle", "greyhound", "dachshund", "labrador", "beagle")),
    "phwader": lambda r: r.choice(
        ("heron", "puffin", "gannet", "kestrel", "osprey", "pelican", "curlew", "cormorant")),
    "phcoat": lambda r: r.choice(
        ("raincoat", "cardigan", "jumper", "parka", "tunic", "anorak", "blazer", "pullover")),
    "phherb": lambda r: r.choice(("parsley", "thyme", "basil", "rosemary", "chives", "mint")),
    "phbeast": lambda r: r.choice(
        ("walrus", "hippo", "leopard", "gorilla", "jaguar", "badger", "otter", "chimpanzee")),
    "phjob": lambda r: r.choice(
        ("nurse", "waitress", "cook", "ballerina", "cashier", "seamstress", "welder", "vet")),
    "phsold": lambda r: r.choice(
        ("socks", "novels", "ties", "eggs", "kites", "woollen gloves", "toy robots", "yo-yos")),
    "phcold": lambda r: r.choice(("Iceland", "Greenland", "Norway", "Sweden", "Canada")),
    "phbasket": lambda r: r.choice(("wicker", "straw", "plastic", "leather", "canvas", "felt")),
    "phpost": lambda r: r.choice(("wooden", "concrete", "iron", "stone", "rotten", "mossy")),
}  # fmt: skip
# of numbers.txt
_NUMBERS: dict[str, Value] = {
    "nutown": lambda r: r.choice(
        ("Aldvik", "Pellworth", "Castrona", "Lindholm", "Maresk", "Torrevale", "Ostby", "Kelder",
         "Fairmere", "Brunnau", "Valdora", "Westerholt", "Quarne", "Ilmstad")),
    "nuriver": lambda r: r.choice(
        ("Drava", "Tamar", "Ebro", "Neckar", "Morava", "Tagus", "Vistula", "Garonne", "Lule")),
    "nupeak": lambda r: r.choice(
        ("Mount Sorel", "the Grauhorn", "Ben Tarvie", "Pico Alto", "Stornfjell", "Mount Hadley")),
    "nuteam": lambda r: r.choice(
        ("Northgate", "Hillside Rovers", "Port Athletic", "Union Vale", "Eastbrook", "Kingsmead",
         "Southport Albion", "Riverton", "Old Mill United")),
    "nuland": lambda r: r.choice(
        ("Denmark", "Chile", "Kenya", "Slovenia", "Peru", "Ghana", "Iceland", "Nepal", "Uruguay")),
    "nuclock": lambda r: f"{r.randint(6, 22):02}:{r.choice(('05', '12', '20', '35', '48', '50'))}",
    "nuprice": lambda r: f"{r.randint(2, 48)}.{r.choice(('20', '40', '50', '75', '80', '95'))}",
    "nubig": lambda r: str(r.randint(105, 985)),
    "nulate": lambda r: str(r.randint(1996, 2024)), "nuold": lambda r: str(r.randint(1852, 1949)),
    "nucrop": lambda r: r.choice(
        ("barley", "rapeseed", "sugar beet", "potatoes", "oats", "lentils", "rye", "flax")),
    "nujob": lambda r: r.choice(
        ("economist", "geographer", "beekeeper", "retired teacher", "statistician", "engineer",
         "vet", "historian", "bookseller", "pharmacist")),
    "nuspice": lambda r: r.choice(
        ("cinnamon", "nutmeg", "paprika", "thyme", "cumin", "ginger", "saffron", "dill")),
    "nubake": lambda r: r.choice(
        ("scones", "flapjacks", "oat bars", "almond slices", "custard tarts", "gingerbread")),
}  # fmt: skip
# of reference.txt
_REFERENCE: dict[str, Value] = {
    "rftown": lambda r: r.choice(
        ("Ghent", "Kotor", "Tartu", "Evora", "Sibiu", "Cork", "Aarhus", "Basel", "Lucca", "Olomouc",
         "Winchester", "Dresden", "Avignon", "Tromso", "Girona", "Zwolle")),
    "rfriver": lambda r: r.choice(("Danube", "Tagus", "Loire", "Elbe", "Ebro", "Severn", "Oder")),
    "rfland": lambda r: r.choice(
        ("Iceland", "Morocco", "Finland", "Uruguay", "Estonia", "Nepal", "Ireland", "Ghana")),
    "rfcm": lambda r: str(r.randint(41, 195)), "rfbig": lambda r: str(r.randint(110, 980)),
    "rfold": lambda r: str(r.randint(1702, 1898)), "rflate": lambda r: str(r.randint(1903, 1994)),
    "rfprice": lambda r: str(r.choice((35, 48, 55, 60, 75, 90, 110, 125, 140, 180, 220))),
    "rfbeast": lambda r: r.choice(("leopard", "stag", "griffin", "boar", "wolf", "ram", "raven")),
    "rfwood": lambda r: r.choice(("oak", "walnut", "elm", "cedar", "ash", "maple", "yew", "teak")),
    "rfstone": lambda r: r.choice(("granite", "limestone", "sandstone", "marble", "basalt")),
    "rfcloth": lambda r: r.choice(("linen", "velvet", "tweed", "silk", "felt", "corduroy")),
    "rfmale": lambda r: r.choice(("Edwin", "Matteo", "Olaf", "Rashid", "Tomas", "Gilbert")),
    "rffemale": lambda r: r.choice(("Beatrix", "Leila", "Sigrid", "Noor", "Harriet", "Paloma")),
    "rftel": lambda r: f"555 {r.randint(1000, 9899)}",
}  # fmt: skip
# of scenes.txt
_SCENES: dict[str, Value] = {
    "scdish": lambda r: r.choice(
        ("barley soup", "onion tart", "chickpea stew", "spinach pie", "rice pudding", "goulash",
         "potato gratin", "fried noodles")),
    "sctown": lambda r: r.choice(
        ("Fenwick", "Larkmouth", "Osterby", "Valdora", "Kellhaven", "Montrieu", "Brackley")),
    "scstreet": lambda r: r.choice(
        ("Tanner Street", "Quay Lane", "Chapel Row", "Linden Avenue", "Orchard Road")),
    "scapp": lambda r: r.choice(("Parcely", "Notewell", "Tunebox", "Mealmap", "Ledgerly")),
    "scshop": lambda r: r.choice(
        ("butcher", "florist", "chemist", "tailor", "greengrocer", "cobbler", "jeweller")),
    "scflower": lambda r: r.choice(
        ("peonies", "irises", "lilies", "daffodils", "carnations", "anemones", "dahlias")),
    "scclock": lambda r: f"{r.randint(0, 23):02}:{r.randint(10, 59)}",
    "scpast": lambda r: str(r.randint(1903, 1979)), "scpct": lambda r: str(r.randint(11, 97)),
    "scbig": lambda r: str(r.randint(110, 980)),
    "scprice": lambda r: f"{r.randint(4, 79)}.{r.choice(('10', '30', '45', '60', '80', '99'))}",
    "scland": lambda r: r.choice(("Iceland", "Morocco", "Nepal", "Uruguay", "Latvia", "Ghana")),
    "scwood": lambda r: r.choice(("oak", "walnut", "pine", "cherry", "birch", "teak", "cedar")),
    "scher": lambda r: r.choice(("Elena", "Grace", "Ingrid", "Priya", "Tara", "Aisha", "Marta")),
    "schim": lambda r: r.choice(("Hugo", "Jonas", "Karim", "Walter", "Pablo", "Oscar", "Samuel")),
    "scplay": lambda r: r.choice(("cello", "flute", "banjo", "harp", "trombone", "viola", "oboe")),
    "scfruit": lambda r: r.choice(("plums", "figs", "quinces", "apricots", "melons", "limes")),
    "scfish": lambda r: r.choice(("herring", "mackerel", "sardines", "cod", "eels", "mussels")),
    "sccloth": lambda r: r.choice(("velvet", "linen", "tweed", "silk", "denim", "lace", "felt")),
}  # fmt: skip
SLOTS = (
    _EVERYWHERE | _COLLECTIONS | _GOODS | _VIEWS | _PHOTOGRAPHS | _NUMBERS | _REFERENCE | _SCENES
)
