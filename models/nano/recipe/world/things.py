"""The things that nano can name, and the icon sets that draw them.

``THINGS`` maps a name to the icon id that every set of ``STYLES`` uses for it. Variants (skin
tones, directions, faces of the same animals) are merged: one icon per thing and style.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class IconSet:
    """One npm package of SVG icons: its pinned version, licence, and authors."""

    package: str
    version: str
    licence: str
    title: str
    source: str


STYLES: dict[str, IconSet] = {
    "fluent": IconSet(
        "@iconify-json/fluent-emoji", "1.2.7", "MIT", "Fluent Emoji, Microsoft",
        "https://github.com/microsoft/fluentui-emoji",
    ),
    "fluent-flat": IconSet(
        "@iconify-json/fluent-emoji-flat", "1.2.6", "MIT", "Fluent Emoji Flat, Microsoft",
        "https://github.com/microsoft/fluentui-emoji",
    ),
    "noto": IconSet(
        "@iconify-json/noto", "1.2.9", "Apache-2.0", "Noto Emoji, Google",
        "https://github.com/googlefonts/noto-emoji",
    ),
    "noto-v1": IconSet(
        "@iconify-json/noto-v1", "1.2.5", "Apache-2.0", "Noto Emoji (v1), Google",
        "https://github.com/googlefonts/noto-emoji",
    ),
    "emojione": IconSet(
        "@iconify-json/emojione", "1.2.3", "CC-BY-4.0", "Emoji One (v2), EmojiOne",
        "https://github.com/EmojiTwo/emojitwo",
    ),
    "twemoji": IconSet(
        "@iconify-json/twemoji", "1.2.5", "CC-BY-4.0", "Twemoji, Twitter",
        "https://github.com/twitter/twemoji",
    ),
}  # fmt: skip
HELD_OUT_STYLE = "twemoji"  # never in training: it measures accuracy in a new drawing style
TRAINING_STYLES = tuple(style for style in STYLES if style != HELD_OUT_STYLE)

# name=icon id, if they differ
_NAMED = """
ant bear bee=honeybee bird butterfly camel cat cow crab crocodile dog dolphin duck eagle elephant
fish fox frog horse koala ladybird=lady-beetle lion monkey mouse octopus owl panda penguin pig
rabbit scorpion shark snail snake spider tiger turtle unicorn whale apple=red-apple avocado banana
bread burger=hamburger cake=birthday-cake carrot cheese=cheese-wedge cherries coffee=hot-beverage
cookie corn=ear-of-corn croissant cucumber doughnut eggplant fries=french-fries grapes
hot_dog=hot-dog ice_cream=ice-cream lemon lollipop mushroom peach pear pepper=hot-pepper pineapple
pizza popcorn strawberry tomato watermelon beer=beer-mug airplane bicycle bus car=automobile
helicopter motorcycle rocket sailboat taxi tractor train=locomotive truck=delivery-truck anchor
backpack balloon basketball bell bomb book=open-book camera candle crown die=game-die door dress
drum envelope eye glasses guitar hammer top_hat=top-hat headphones=headphone house key
knife=kitchen-knife laptop light_bulb=light-bulb lock=locked microphone phone=mobile-phone pencil
present=wrapped-gift scissors shoe=running-shoe shirt=t-shirt skull football=soccer-ball spoon
television=television trophy umbrella watch wrench cactus cloud fire sunflower leaf=maple-leaf
palm_tree=palm-tree rainbow rose snowflake sun tree=deciduous-tree tulip volcano
clover=four-leaf-clover ghost
"""

# The counting words of things that have no singular in English.
_MEASURES = {
    "cherries": "pair", "glasses": "pair", "headphones": "pair", "scissors": "pair",
    "fries": "packet", "grapes": "bunch",
}  # fmt: skip


def _named() -> dict[str, str]:
    pairs = (entry.partition("=") for entry in _NAMED.split())
    named = {name.replace("_", " "): icon or name for name, _, icon in pairs}
    return {f"{_MEASURES[n]} of {n}" if n in _MEASURES else n: icon for n, icon in named.items()}


THINGS: dict[str, str] = _named()
_PLURALS = {"mouse": "mice", "knife": "knives", "leaf": "leaves", "die": "dice", "fish": "fish"}


def to_plural(name: str) -> str:
    """Return the plural of a name: "leaf" → "leaves"."""
    measure, of, content = name.partition(" of ")
    if of:
        return to_plural(measure) + of + content
    if name in _PLURALS:
        return _PLURALS[name]
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    if name.endswith(("s", "x", "ch", "sh")) or name == "tomato":
        return name + "es"
    return name + "s"
