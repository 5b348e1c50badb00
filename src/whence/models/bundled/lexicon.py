"""The words of the story grammar."""

from __future__ import annotations

import random


def _composed(count: int) -> tuple[str, ...]:
    """Names that nobody has, made of syllables: too many to learn by heart, so a model has to look them up."""
    begins = "B Br C Ch D Dr F Fl G Gr H J K Kr L M N P Pr R S Sh St T Th Tr V W Y Z".split()
    middles = "al am an ar av el em en er ev il im in ir iv ol om on or ul um un ur".split()
    ends = "a ac an ard bel da dan dor e el en eth i ia ian ic in is la len lo lyn mar na o on or ra ric us".split()
    names = [begin + middle + end for begin in begins for middle in middles for end in ends]
    return tuple(sorted(random.Random(0).sample(names, count)))


# Every name is used for boys and girls alike, so that only the noun before it tells the pronoun.
PEOPLE: tuple[str, ...] = _composed(1200) + tuple(
    """
    Adrian Alexis Amari Arden Ashley Ashton Aubrey Avery Bailey Billie Blair Bobbie Cameron Campbell Carey
    Carson Casey Charlie Corey Dakota Dana Devon Dorian Drew Eden Elliot Ellis Emerson Emery Evelyn Finley
    Frankie Georgie Greer Harley Harper Hayden Hollis Indigo Jackie Jaden Jamie Jesse Jody Jordan Jules
    Kelly Kendall Kerry Kieran Kim Laurie Lennon Leslie Lindsay Logan Mackenzie Madison Marley Marlowe
    Merritt Mika Milan Monroe Morgan Nico Noel Oakley Odell Palmer Parker Perry Peyton Phoenix Presley
    Quinn Ramsey Reese Regan Remy Riley Robin Rory Rowan Rudy Sam Sawyer Shannon Shelby Shiloh Sidney
    Skyler Sloane Spencer Stacy Sutton Tatum Taylor Teagan Toby Tony Tracy Tristan Vivian Whitney Wynn
    """.split()
)

PET_NAMES: tuple[str, ...] = tuple(
    """
    Acorn Bandit Barley Biscuit Bramble Bubbles Buttons Caramel Cinnamon Clover Comet Cookie Cricket Dusty
    Fudge Ginger Hazel Juniper Licorice Mango Marble Mittens Nibbles Noodle Nutmeg Oliver Pebbles Pepper
    Pickle Pumpkin Rascal Saffron Smoky Sparky Sprout Tango Thistle Tulip Waffles Whiskers Ziggy
    """.split()
)

PETS: tuple[str, ...] = (
    "dog",
    "cat",
    "pony",
    "rabbit",
    "parrot",
    "goat",
    "donkey",
    "hamster",
    "turtle",
    "lamb",
)

GENDERED: tuple[tuple[str, str], ...] = (
    ("boy", "girl"),
    ("man", "woman"),
    ("prince", "princess"),
    ("king", "queen"),
    ("wizard", "witch"),
    ("duke", "duchess"),
    ("monk", "nun"),
    ("lad", "lass"),
)

THINGS: tuple[str, ...] = tuple(
    """
    apple balloon bell blanket book bracelet brush button candle coin compass crayon crown cup diary doll
    drum feather flag flute fork glove hammer hat helmet jacket kite ladder lamp lantern letter locket map
    marble mask medal mirror mitten necklace needle notebook paintbrush pencil pillow puppet puzzle ribbon
    ring rope ruler scarf shell shovel spoon sweater telescope trumpet umbrella violin whistle
    """.split()
)

CONTAINERS: tuple[str, ...] = tuple(
    """
    attic bag barn barrel basket bathtub bowl box bucket cabin cabinet cart cellar chest closet cradle crate
    cupboard drawer envelope garage jar kettle kitchen oven pantry pocket pot sack shed sink stable suitcase
    tent trunk tunnel wagon wardrobe
    """.split()
)

COLORS: tuple[str, ...] = ("red", "blue", "green")

LANDMARKS: tuple[str, ...] = tuple(
    """
    bakery beach bridge canal castle cave chapel church cliff factory fountain forest garden harbor hill
    lake library lighthouse market meadow mill monument mountain museum ocean orchard palace park pond
    quarry river school stadium station statue swamp tower valley vineyard volcano waterfall well windmill
    """.split()
)

# Singular and plural.
ANIMALS: tuple[tuple[str, str], ...] = tuple(
    (pair.split("/")[0], pair.split("/")[1])
    for pair in """
    badger/badgers bear/bears beaver/beavers bee/bees bird/birds butterfly/butterflies camel/camels
    chicken/chickens cow/cows crow/crows dolphin/dolphins duck/ducks eagle/eagles elephant/elephants
    fox/foxes frog/frogs giraffe/giraffes goose/geese hedgehog/hedgehogs horse/horses lion/lions
    lizard/lizards monkey/monkeys mouse/mice otter/otters owl/owls ox/oxen penguin/penguins pig/pigs
    pigeon/pigeons raven/ravens seal/seals snail/snails sparrow/sparrows spider/spiders squirrel/squirrels
    stork/storks swan/swans tiger/tigers toad/toads whale/whales wolf/wolves worm/worms zebra/zebras
    """.split()
)

NEARBY: tuple[tuple[str, str], ...] = tuple(
    (pair.split("/")[0], pair.split("/")[1])
    for pair in """
    boat/boats bush/bushes fence/fences flower/flowers gate/gates log/logs mushroom/mushrooms path/paths
    pillar/pillars rock/rocks root/roots stone/stones tree/trees wall/walls window/windows
    """.split()
)

CLAUSES: tuple[str, ...] = (
    "that slept behind",
    "that played near",
    "that waited by",
    "that jumped over",
    "that hid under",
    "that danced around",
    "that came from behind",
    "that rested beside",
)

FEELINGS: tuple[str, ...] = tuple(
    """
    angry brave calm cheerful clever cold curious excited friendly funny gentle glad happy hungry kind
    lonely lucky nervous patient proud quiet sad scared shy sleepy strong surprised thirsty tired worried
    """.split()
)

WEATHER: tuple[str, ...] = (
    "It was a {=mood} day.",
    "The sun was warm and the sky was clear.",
    "That night it rained a lot.",
    "The wind was cold and {=mood}.",
    "Everybody in the village felt {=feeling}.",
    "The snow was deep that winter.",
    "It was a {=mood} morning in spring.",
    "By then the days were long and {=mood}.",
)
MOODS: tuple[str, ...] = ("quiet", "lovely", "stormy", "strange", "gloomy", "bright", "busy", "peaceful")
