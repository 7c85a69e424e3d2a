"""What tables are about: rows of a kind, and columns with the questions that people ask of them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from edgeprism.models.reader.recipe.world.words import (
    ANIMALS,
    BRANDS,
    CITIES,
    COLOURS,
    DAYS,
    MATERIALS,
    MONTHS,
    NAMES,
    SURNAMES,
    THINGS,
)

_COUNTRIES = (
    "Norway",
    "Kenya",
    "Japan",
    "Brazil",
    "Portugal",
    "Canada",
    "Vietnam",
    "Austria",
    "Peru",
    "Ireland",
    "Morocco",
    "Iceland",
    "Poland",
    "Chile",
)


_FLIGHTS = tuple(f"{k} {n}" for k in ("KX", "RO", "SU", "EV") for n in range(2, 91, 7))


@dataclass(frozen=True)
class Column:
    """A heading, what makes its cells, and questions as people ask them.

    ``ask`` asks a row ({r}) for its cell, ``back`` a cell ({v}) for its row; ``top`` and ``low``
    ask for the row with the largest and the smallest number. Several are divided by bars.
    """

    heading: str
    values: tuple[str, ...] = ()
    numbers: tuple[int, int] | None = None
    unit: str = ""
    most: str = "highest"
    least: str = "lowest"
    ask: str = ""
    back: str = ""
    top: str = ""
    low: str = ""

    def cells(self, rng: random.Random, count: int) -> list[str]:
        """Return the column's cells: numbers all differ, words may repeat."""
        if self.numbers is None:
            return [rng.choice(self.values) for _ in range(count)]
        low, high = self.numbers
        return [f"{value}{self.unit}" for value in rng.sample(range(low, high + 1), count)]


@dataclass(frozen=True)
class Subject:
    """What the rows of a table are: a noun, their names, and columns that suit them."""

    noun: str
    names: tuple[str, ...]
    columns: tuple[Column, ...]
    titles: tuple[str, ...]


SUBJECTS = (
    Subject("town", CITIES, (
        Column("inhabitants", numbers=(12, 980), unit=",000",
               ask="How many people live in {r}?|What is the population of {r}?",
               back="Where do {v} people live?", top="Which town is the most populous?",
               low="Where do the fewest people live?|Which town is the smallest by population?"),
        Column("country", _COUNTRIES,
               ask="In which country does {r} lie?|To what country does {r} belong?",
               back="Which of the towns is in {v}?"),
        Column("height", numbers=(4, 890), unit=" m", most="greatest", least="smallest",
               ask="How high above the sea is {r}?|At what altitude does {r} lie?",
               top="Which town lies highest?", low="Which town lies lowest?"),
        Column("hotels", numbers=(3, 95), ask="How many hotels does {r} have?",
               back="Which town has {v} hotels?", top="Where are there the most hotels?",
               low="Which town has the fewest hotels?"),
        Column("sunny days", numbers=(60, 320), ask="On how many days is it sunny in {r}?",
               top="Which town is the sunniest?", low="Which town is the least sunny?"),
        Column("district", ("north", "south", "east", "west"),
               ask="In which part does {r} lie?|Which district is {r} in?",
               back="Which town is in the {v}?"),
    ), ("Towns", "Places to visit", "Comparison of towns")),
    Subject("product", THINGS, (
        Column("price", numbers=(2, 140), unit=" euros",
               ask="How much does the {r} cost?|What does one pay for the {r}?",
               back="What can be bought for {v}?|Which article costs {v}?",
               top="What is the most expensive article?|What costs the most?",
               low="Which article is the cheapest?|What costs the least?"),
        Column("colour", COLOURS,
               ask="In which colour does the {r} come?|In what colour is the {r} sold?",
               back="Which product is {v}?"),
        Column("in stock", numbers=(0, 60),
               ask="How many of the {r} are left?|How many of the {r} are in stock?",
               top="Of which product are the most left?", low="Which article is nearly sold out?"),
        Column("material", MATERIALS, ask="What kind of {r} is it by material?",
               back="Which of the articles is {v}?"),
        Column("weight", numbers=(1, 45), unit=" kg", most="greatest", least="smallest",
               ask="How heavy is the {r}?|How much does the {r} weigh?", back="What weighs {v}?",
               top="What is the heaviest article?|Which weighs the most?",
               low="What is the lightest article?|Which weighs the least?"),
        Column("shelf", tuple("ABCDEFGH"),
               ask="On which shelf does the {r} stand?|Where in the shop is the {r} kept?",
               back="What is kept on shelf {v}?"),
        Column("maker", BRANDS, ask="Who makes the {r}?|By which company is the {r} made?",
               back="What does {v} make?"),
    ), ("Price list", "Stock", "Catalogue", "Articles on offer")),
    Subject("runner", NAMES, (
        Column("club", BRANDS, ask="For which club does {r} run?|To which club does {r} belong?",
               back="Who runs for {v}?"),
        Column("country", _COUNTRIES,
               ask="Where does {r} come from?|Which country does {r} represent?",
               back="Who comes from {v}?|Who represents {v}?"),
        Column("bib", tuple(map(str, range(1, 300))),
               ask="What number does {r} wear?|Which bib does {r} have?",
               back="Who wears number {v}?"),
        Column("points", numbers=(3, 90), ask="How many points did {r} get?|What did {r} score?",
               back="Who has {v} points?|Who scored {v}?", top="Who has the most points?|Who won?",
               low="Who has the fewest points?|Who came last on points?"),
        Column("age", numbers=(17, 64), ask="How old is {r}?|What is {r}'s age?",
               back="Who is {v} years old?", top="Who is the oldest?", low="Who is the youngest?"),
        Column("time", numbers=(31, 88), unit=" min", most="longest", least="shortest",
               ask="How long did {r} take?|In what time did {r} finish?", back="Who needed {v}?",
               top="Who was the slowest?", low="Who was the fastest?|Who needed the least time?"),
    ), ("Results", "Final standings", "Race on {d}")),
    Subject("employee", SURNAMES, (
        Column("department", ("sales", "kitchen", "repairs", "accounts", "delivery", "reception"),
               ask="Where does {r} work?|In which department is {r}?", back="Who works in {v}?"),
        Column("room", tuple(map(str, range(101, 500))),
               ask="In which room does {r} sit?|Where can {r} be found?",
               back="Who sits in room {v}?|Whose office is {v}?"),
        Column("day off", DAYS, ask="When is {r} off?|On which day does {r} not work?",
               back="Who is off on {v}?|Who does not work on {v}?"),
        Column("since", numbers=(1998, 2025), most="latest", least="earliest",
               ask="Since when has {r} been there?|In what year did {r} begin?",
               back="Who began in {v}?", top="Who was the last to join?|Who is the newest?",
               low="Who has been there longest?"),
        Column("extension", tuple(map(str, range(12, 100))),
               ask="Which number does one dial for {r}?|What must one dial to reach {r}?",
               back="Whose extension is {v}?"),
        Column("shift", ("early", "late", "night"),
               ask="Which shift does {r} work?|When is {r} on duty?",
               back="Who has the {v} shift?"),
    ), ("Staff", "Duty roster", "Who works where")),
    Subject("animal", ANIMALS, (
        Column("length", numbers=(5, 390), unit=" cm", most="greatest", least="smallest",
               ask="How long is the {r}?|What length does the {r} reach?",
               top="Which animal is the longest?", low="Which animal is the shortest?"),
        Column("food", ("grass", "insects", "shrimps", "roots", "seeds", "fruit", "meat"),
               ask="What does the {r} eat?|On what does the {r} live?",
               back="Which animal eats {v}?"),
        Column("lifespan", numbers=(1, 70), unit=" years", most="longest", least="shortest",
               ask="How old does the {r} get?|How long does the {r} live?",
               top="Which animal lives longest?", low="Which of them dies youngest?"),
        Column("habitat", ("forest", "desert", "river", "coast", "savannah", "meadow", "cave"),
               ask="Where does the {r} live?|What is the home of the {r}?",
               back="Which animal lives in the {v}?"),
        Column("number kept", numbers=(1, 40), ask="How many of the {r} are kept?",
               top="Of which animal are the most kept?",
               low="Of which animal are there the fewest?"),
    ), ("Animals at the zoo", "Animals compared")),
    Subject("month", MONTHS, (
        Column("rain", numbers=(2, 190), unit=" mm", most="most", least="least",
               ask="How much does it rain in {r}?|How much rain fell in {r}?",
               back="When did {v} of rain fall?", top="Which month is the wettest?",
               low="Which month is the driest?"),
        Column("visitors", numbers=(90, 3900), ask="How many people came in {r}?",
               back="In which month did {v} people come?", top="When did the most people come?",
               low="In which month did the fewest come?"),
        Column("exhibition", SURNAMES, ask="Whose work is shown in {r}?",
               back="When is {v} on show?"),
        Column("average", numbers=(0, 33), unit=" °C",
               ask="How warm is it in {r}?|What temperature is usual in {r}?",
               top="Which month is the warmest?", low="Which month is the coldest?"),
        Column("orders", numbers=(5, 240),
               ask="How many orders came in {r}?|How many orders did {r} bring?",
               back="When were there {v} orders?", top="Which month brought the most orders?",
               low="Which month was the poorest in orders?"),
    ), ("The year at a glance", "Monthly report", "Climate")),
    Subject("day", DAYS, (
        Column("soup", ("lentil", "barley", "leek", "pumpkin", "onion", "pea"),
               ask="Which soup is served on {r}?",
               back="When is there {v} soup?|On which day is {v} soup served?"),
        Column("main course", ("risotto", "curry", "goulash", "lasagne", "omelette", "stew"),
               ask="Which main course is cooked on {r}?|What is for lunch on {r}?",
               back="When can one eat {v}?"),
        Column("opens", tuple(f"{h}:{m}" for h in range(7, 12) for m in ("00", "15", "30")),
               ask="When does it open on {r}?|From what time is it open on {r}?"),
        Column("closes", tuple(f"{h}:{m}" for h in range(14, 22) for m in ("00", "30", "45")),
               ask="When does it close on {r}?|Until what time can one stay on {r}?"),
        Column("guide", NAMES, ask="Who guides the visitors on {r}?|Who is the guide on {r}?",
               back="On which day is {v} the guide?"),
        Column("classes", numbers=(1, 12), ask="How many classes are given on {r}?",
               top="Which day has the most classes?", low="Which day has the fewest classes?"),
    ), ("Menu of the week", "Timetable", "Opening hours")),
    Subject("flight", _FLIGHTS, (
        Column("destination", CITIES, ask="Where does the {r} go?|To what place does {r} run?",
               back="Which flight goes to {v}?|What must one take to get to {v}?"),
        Column("gate", tuple(map(str, range(1, 17))),
               ask="At which gate does {r} wait?|To which gate must passengers of {r} go?",
               back="Which flight waits at gate {v}?|What is called at gate {v}?"),
        Column("departs", tuple(f"{h:02}:{m}" for h in range(5, 23) for m in (12, 26, 41, 55)),
               ask="At what time does {r} leave?|When does {r} depart?",
               back="Which flight departs at {v}?"),
        Column("delay", numbers=(1, 50), unit=" min", most="longest", least="shortest",
               ask="How late is {r}?|By how much is {r} delayed?",
               top="Which flight is the latest?", low="Which flight has the least delay?"),
        Column("passengers", numbers=(31, 189), ask="How many passengers does {r} have?",
               top="Which flight is the fullest?", low="Which flight has the fewest passengers?"),
    ), ("Departures", "Flights this morning")),
    Subject("ship", tuple(f"{a} {b}" for a in ("Queen", "Spirit", "Lady") for b in NAMES[:9]), (
        Column("built", numbers=(1890, 2020), most="latest", least="earliest",
               ask="When was the {r} built?|From what year is the {r}?",
               back="What was built in {v}?", top="Which ship is the newest?",
               low="Which ship is the oldest?"),
        Column("flag", _COUNTRIES, ask="Under which flag does the {r} sail?",
               back="Which ship sails under the flag of {v}?"),
        Column("crew", numbers=(4, 240),
               ask="How many sailors does the {r} have?|How large is the crew of the {r}?",
               top="Which ship has the largest crew?", low="Which ship has the smallest crew?"),
        Column("length", numbers=(18, 320), unit=" m", most="greatest", least="smallest",
               ask="How long is the {r}?", top="Which ship is the longest?",
               low="Which is the shortest ship?"),
        Column("cargo", ("timber", "grain", "barley", "oil", "cocoa", "containers", "salt"),
               ask="What does the {r} carry?|With what is the {r} loaded?",
               back="Which ship carries {v}?"),
    ), ("Ships in port", "Fleet")),
    Subject("pupil", NAMES, (
        Column("maths", numbers=(31, 100),
               ask="How many points does {r} have in maths?|How did {r} do in maths?",
               top="Who is the best at maths?", low="Who is the weakest in maths?"),
        Column("history", numbers=(28, 99), ask="What is {r}'s mark in history?",
               top="Who did best in history?", low="Who has the poorest mark in history?"),
        Column("biology", numbers=(22, 98), ask="What did {r} get in biology?",
               back="Who got {v} in biology?", top="Who leads in biology?",
               low="Who did worst in biology?"),
        Column("absences", numbers=(0, 21),
               ask="How often was {r} absent?|How many days did {r} miss?",
               top="Who missed the most days?", low="Who was absent least often?"),
        Column("class", ("5a", "5b", "6a", "6b", "7a", "7c"),
               ask="Which class is {r} in?|What class does {r} attend?",
               back="Who attends class {v}?"),
        Column("sport", ("rowing", "hockey", "judo", "tennis", "fencing", "handball"),
               ask="Which sport does {r} do?|What does {r} play or practise?",
               back="Who does {v}?|Who has chosen {v}?"),
    ), ("Marks", "Class register", "Test scores")),
)  # fmt: skip
