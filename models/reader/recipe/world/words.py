"""The words that the descriptions are made of; none of them is the name of a thing of nano's."""

from __future__ import annotations

_KITCHEN = """kettle toaster mug saucer teapot jug pan pot ladle whisk grater tray napkin fork jar
thermos bowl plate cup pitcher oven sieve platter goblet tumbler blender colander corkscrew"""
_ROOM = """chair table sofa stool armchair cabinet wardrobe shelf desk bookcase bench cushion pillow
blanket rug carpet curtain mirror lamp vase clock lantern mattress hammock footstool dresser crib
radiator fan heater basket box bottle bag picture-frame"""
_TOOLS = """ladder bucket broom mop shovel rake spade saw drill screwdriver axe rope chain hose
wheelbarrow paintbrush toolbox crowbar chisel clamp nail bolt magnet torch funnel stapler ruler
eraser notebook binder folder calculator printer keyboard monitor tablet charger cable pen marker
notepad whiteboard calendar globe stamp briefcase paperclip projector speaker remote router"""
_CLOTHES = """hat cap scarf glove mitten boot sandal sneaker sock coat jacket jumper sweater hoodie
vest skirt blouse belt tie helmet handbag purse suitcase wallet bracelet necklace cardigan apron
raincoat beanie waistcoat ribbon badge"""
_ANIMALS = """goat sheep lamb donkey mule deer moose squirrel hedgehog badger otter seal walrus swan
goose hen rooster turkey pigeon crow seagull parrot peacock flamingo ostrich stork heron sparrow
robin kitten puppy foal calf hamster lizard gecko beetle moth wasp dragonfly grasshopper jellyfish
lobster squid salmon trout goldfish wolf hyena leopard cheetah jaguar gorilla chimpanzee kangaroo
zebra giraffe hippo rhino llama alpaca buffalo bison lynx raccoon beaver bat"""
_FOOD = """sandwich pancake waffle muffin pretzel bagel omelette sausage steak burrito taco dumpling
pie tart biscuit plum apricot mango papaya kiwi melon lime grapefruit fig olive onion potato turnip
beetroot radish cabbage lettuce leek pumpkin artichoke bean pea almond walnut egg chilli"""
_VEHICLES = """van lorry tram scooter moped ambulance minibus caravan trailer ferry canoe kayak
yacht
barge raft glider biplane drone skateboard sledge pram wheelchair tricycle forklift excavator crane
bulldozer jet tanker tugboat carriage cart boat ship"""
_TOWN = """tower bridge church castle lighthouse windmill barn shed tent cottage chapel mosque
temple
kiosk fountain statue fence gate wall signpost mailbox dustbin parasol chimney balcony window
staircase billboard pier well greenhouse stall"""
_NATURE = """bush hedge rock boulder pond river lake waterfall hill mountain island fern daisy poppy
lily orchid log stump oak pine birch willow shell pebble iceberg cliff dune flower moon pinecone"""
_PLAY = """kite ball doll puzzle swing slide seesaw trampoline racket net surfboard ski snowboard
skate dartboard frisbee piano violin flute trumpet cello harp saxophone trombone accordion banjo
ukulele tambourine xylophone harmonica robot marble whistle medal flag"""
_PEOPLE = """man woman boy girl child chef farmer waiter waitress nurse doctor teacher cyclist
runner
hiker painter photographer musician dancer soldier sailor pilot tourist shopper gardener carpenter
baker barista surfer skier climber referee student lady toddler baby grandmother grandfather clerk
guard mechanic postman plumber welder juggler violinist singer passenger customer worker player"""
_FORMS = """cone cylinder cube sphere rectangle pentagon octagon trapezoid spiral dot stripe block
pyramid prism zigzag blob rhombus ellipse semicircle tile bead disc"""


def _list(*texts: str) -> tuple[str, ...]:
    return tuple(word.replace("-", " ") for text in texts for word in text.split())


GROUPS = {
    "kitchen": _list(_KITCHEN, _FOOD), "room": _list(_ROOM, _KITCHEN),
    "workshop": _list(_TOOLS), "wardrobe": _list(_CLOTHES), "field": _list(_ANIMALS, _NATURE),
    "street": _list(_VEHICLES, _TOWN), "park": _list(_PLAY, _NATURE, _TOWN),
    "drawing": _list(_FORMS), "market": _list(_FOOD, _CLOTHES), "office": _list(_TOOLS, _ROOM),
}  # fmt: skip
PEOPLE = _list(_PEOPLE)
ANIMALS = _list(_ANIMALS)
CLOTHES = _list(_CLOTHES)
VEHICLES = _list(_VEHICLES)
THINGS = tuple(dict.fromkeys(word for group in GROUPS.values() for word in group))

COLOURS = _list(
    """red blue green yellow orange purple pink brown black white grey beige silver golden
    turquoise maroon navy violet cream teal crimson lavender tan cyan magenta bronze indigo ivory"""
)
SHADES = ("dark", "light", "pale", "bright", "deep")
MATERIALS = _list(
    """wooden metal glass plastic leather stone paper woollen ceramic brass steel cotton concrete
    porcelain straw wicker copper rubber velvet canvas"""
)
SIZES = _list("small large medium small large medium tiny big huge tall short wide narrow little")
NUMBERS = _list(
    """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
    fifteen sixteen seventeen eighteen nineteen twenty"""
)
NAMES = _list(
    """Anna Ben Carla David Elena Farid Grace Hugo Irene Jonas Karim Lucia Marta Nadia Oscar Priya
    Quentin Rosa Samuel Tara Ulrich Vera Walter Yusuf Zoe Mei Kofi Ingrid Pablo Aisha"""
)
SURNAMES = _list(
    """Miller Okafor Tanaka Lindqvist Moreau Rossi Novak Haddad Silva Kowalski Byrne Fischer Patel
    Nguyen Larsen Garcia Dubois Petrov Adeyemi Schmidt"""
)
CITIES = _list(
    """Lisbon Oslo Nairobi Kyoto Lima Vienna Porto Dublin Quito Havana Cairo Geneva Tallinn Perth
    Bergen Seville Krakow Delhi Hanoi Toronto Bristol Leipzig Naples Utrecht Malmo Santiago"""
)
MONTHS = _list(
    """January February March April May June July August September October November December"""
)
DAYS = _list("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
BRANDS = _list(
    """Norvik Alpina Zentra Luma Corvex Halden Mirado Tessel Polaris Bramble Ostra Kenzan Velora
    Quanta Sorrel Fjell Ardent Nimbus Brio Castell Delphi Ember Fennel Garnet"""
)
PRINTED = _list(
    """BAKERY HOTEL MUSEUM LIBRARY WELCOME PLATFORM PHARMACY PARKING CAUTION DANGER RESERVED CLOSED
    ENTRANCE OFFICE STATION MARKET GARDEN FRESH ORGANIC QUIET PRIVATE LIMIT DELIVERY TICKETS HARBOUR
    THEATRE CLINIC SCHOOL KITCHEN WINTER SUMMER FESTIVAL MARATHON CHAMPION LIBERTY VICTORY
    ORBIT CANDOR TEMPO ZEBRA AURORA MAGNOLIA VANGUARD EXPRESS SUPERIOR CLASSIC ORIGINAL SPECIAL"""
)
SAYINGS = (
    "Mind the gap", "No smoking", "Please wait here", "Fresh juice daily", "Keep off the grass",
    "Open until late", "Follow your dreams", "Wet paint", "Staff only", "Happy birthday, Zoe",
    "Beware of the goose", "Buy one, get one free", "Silence please", "Under new management",
    "Good morning", "Hard hats required", "Way out", "Thank you for visiting", "Do not disturb",
    "Handle with care", "This side up", "Made in Portugal", "Sold out", "Back in ten minutes",
)  # fmt: skip
ACTIONS = (
    "sleeping", "running", "reading a newspaper", "eating", "waving", "drinking water",
    "looking up", "sitting down", "jumping", "smiling", "sweeping the floor", "painting a fence",
    "talking to a friend", "climbing a ladder", "feeding the pigeons", "carrying a box",
    "writing a letter", "singing", "dancing", "pushing a pram", "taking a photo", "stretching",
    "digging a hole", "washing the dishes", "playing chess", "knitting", "juggling", "yawning",
    "repairing a pipe", "pouring tea", "leaning against the wall", "crossing the street",
    "kneeling", "chopping onions", "tying a rope", "laughing", "crying", "pointing at a map",
    "holding a parasol", "stirring a pot", "skating", "swimming", "rowing", "queueing", "resting",
)  # fmt: skip
IRREGULAR = {
    "man": "men", "woman": "women", "child": "children", "sheep": "sheep", "goose": "geese",
    "calf": "calves", "shelf": "shelves", "wolf": "wolves", "salmon": "salmon", "trout": "trout",
    "squid": "squid", "deer": "deer", "moose": "moose", "bison": "bison", "potato": "potatoes",
    "mango": "mangoes", "postman": "postmen", "toolbox": "toolboxes", "scarf": "scarves",
    "buffalo": "buffaloes", "person": "people",
}  # fmt: skip
