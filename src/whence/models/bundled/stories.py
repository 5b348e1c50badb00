"""Short stories in which some words have exactly one right continuation.

A story introduces its hero, plants a few facts (a friend, a pet, a thing put away, a favorite color and
two places), lets a little time pass and then comes back to the facts. Each fact has a rival of the same
class in the same story, so that neither the nearest nor the first word of a class is a safe guess.
"""

from __future__ import annotations

import random

from whence.models.bundled.example import Draft, Example, Slot
from whence.models.bundled.lexicon import (
    ANIMALS,
    CLAUSES,
    COLORS,
    CONTAINERS,
    FEELINGS,
    GENDERED,
    LANDMARKS,
    MOODS,
    NEARBY,
    PEOPLE,
    PET_NAMES,
    PETS,
    THINGS,
    WEATHER,
)

OPENINGS = (
    "Once upon a time there was a {gender} named {hero}.",
    "Once upon a time there lived a {gender} named {hero}.",
    "Once upon a time a {gender} named {hero} came to the village.",
    "Long ago there was a {gender} named {hero}.",
    "In a small village there lived a {gender} named {hero}.",
    "One day a {gender} named {hero} came to the village.",
)
FRIEND_SETUP = (
    " {=hero} had a good friend, a {gender2} named {friend}.",
    " {=She} often played with a {gender2} named {friend}.",
    " {=She} had met a {gender2} named {friend}.",
)
PET_SETUP = (
    " {=hero} had a {pet_kind} named {pet}.",
    " At home {she} kept a {pet_kind} named {pet}.",
    " {=She} was the owner of a {pet_kind} named {pet}.",
)
PUT_SETUP = (
    " {=hero} put the {thing} in the {box}.",
    " In the morning {hero} put the {thing} in the {box}.",
    " {=She} put the {thing} in the {box}.",
)
PUT_RIVAL = (
    " An old {thing2} was in the {box2}.",
    " A lost {thing2} lay in the {box2}.",
)
COLOR_SETUP = (
    " The favorite color of {hero} was {liked}.",
    " {=She} loved the color {liked}.",
    " {=hero} liked everything that was {liked}.",
)
# Both places have the same role: only the color tells which is which.
COLOR_PLACES = (
    " Near the village there was a {color} {mark} and a {color2} {mark2}.",
    " Near the village there was a {color2} {mark2} and a {color} {mark}.",
)
AGREEMENT = (
    " The {head} {=clause} the {=near} {were} {=feeling}.",
    " All day the {head} {=clause} the {=near} {were} {=feeling}.",
)

HERO_END = (
    " Everybody in the village loved {hero}, because {she} was {=feeling}.",
    " In the evening the old neighbor told {hero} a story.",
    " The old teacher gave {hero} a present, and {she} felt {=feeling}.",
    " At last {hero} went home, because {she} was {=feeling}.",
    " When the moon came up, {hero} felt {=feeling}.",
)
FRIEND_END = (
    " At noon {hero} went to see {friend}.",
    " The friend of {hero} was {=feeling}, and {hero} thanked {friend}.",
    " After lunch {hero} shared a cake with {friend}, because {she} was {=feeling}.",
    " Then the good friend {friend} laughed, because {she2} was {=feeling}.",
    " Then the good friend {friend} said that {she2} felt {=feeling}.",
)
PET_END = (
    " The {pet_kind} was hungry, so {hero} called the name {pet}.",
    " Before bed {hero} fed the {pet_kind}, and {pet} fell asleep.",
    " At night {she} sang a song for the little {pet_kind} {pet}.",
)
PUT_END = (
    " Later {she} wanted the {thing} again, so {she} looked in the {box}.",
    " To find the {thing}, {hero} looked in the {box}.",
    " Soon {hero} needed the {thing}, and it was still in the {box}.",
    " Later {she} took the {thing} out of the {box}.",
)
COLOR_END = (
    " In the afternoon {hero} walked to the favorite place, the {liked} {sight}.",
    " After dinner {she} went to the favorite place, the {liked} {sight}.",
    " Every night {hero} dreamed of the favorite place, the {liked} {sight}.",
)
CLOSINGS = (
    " And so {hero} lived happily ever after.",
    " That was the best day of the life of {hero}.",
    " From then on {hero} was always {=feeling}.",
    " Nobody ever forgot {hero}.",
    " And that night {hero} slept well.",
)

SETUPS = {"friend": FRIEND_SETUP, "pet": PET_SETUP, "put": PUT_SETUP, "color": COLOR_SETUP}
# Looking things up is the hardest to learn, so it comes most often.
THEMES = (
    ("put", "color"),
    ("put", "color"),
    ("put", "friend"),
    ("put", "pet"),
    ("color", "friend"),
    ("color", "pet"),
    ("friend", "pet"),
    ("put",),
    ("color",),
)
ENDS = {"friend": FRIEND_END, "pet": PET_END, "put": PUT_END, "color": COLOR_END}


def _others(words: tuple[str, ...], word: str, *rivals: str) -> tuple[str, ...]:
    """All words of a class but one, those that stand in the same story first."""
    return (*rivals, *(other for other in words if other != word and other not in rivals))


def _gender(rng: random.Random, suffix: str, female: bool) -> dict[str, Slot]:
    key = "gender" + suffix
    noun = rng.choice(GENDERED)[female]
    pronoun, rival = ("she", "he") if female else ("he", "she")
    return {
        key: Slot(noun, key),
        "she" + suffix: Slot(pronoun, key, "pronoun", (key,), (rival,)),
        "She" + suffix: Slot(pronoun.capitalize(), key),
    }


def _facts(rng: random.Random) -> dict[str, Slot]:
    """Draw every filler of one story."""
    female = rng.random() < 0.5
    hero, friend = rng.sample(PEOPLE, 2)
    pet = rng.choice(PET_NAMES)
    slots = {
        **_gender(rng, "", female),
        # A friend of the other gender more often than not: the nearest person is then a wrong guess.
        **_gender(rng, "2", female if rng.random() < 0.3 else not female),
        "hero": Slot(hero, "hero", "name", ("hero",), _others(PEOPLE, hero, friend)),
        "friend": Slot(friend, "friend", "name", ("friend",), _others(PEOPLE, friend, hero)),
        "pet": Slot(pet, "pet", "name", ("pet",), _others(PET_NAMES, pet)),
        "pet_kind": Slot(rng.choice(PETS)),
    }
    things, boxes = rng.sample(THINGS, 2), rng.sample(CONTAINERS, 2)
    slots |= {
        "thing": Slot(things[0], "thing", "object", ("thing",), _others(THINGS, *things)),
        "box": Slot(boxes[0], "box", "object", ("box",), _others(CONTAINERS, *boxes)),
        "thing2": Slot(things[1], "thing2"),
        "box2": Slot(boxes[1], "box2"),
    }
    colors, marks = rng.sample(COLORS, 2), rng.sample(LANDMARKS, 2)
    slots["liked"] = Slot(colors[0], "liked", "two-hop", ("liked",), _others(COLORS, *colors))
    for suffix, color, mark in zip(("", "2"), colors, marks, strict=True):
        slots["color" + suffix] = Slot(color, "color" + suffix)
        slots["mark" + suffix] = Slot(mark, "mark" + suffix)
    slots["sight"] = Slot(marks[0], "mark", "two-hop", ("mark", "color", "liked"), _others(LANDMARKS, *marks))
    return slots


def _loose(rng: random.Random) -> dict[str, Slot]:
    """Fillers that are drawn anew for every sentence."""
    plural = rng.randrange(2)
    verbs = ("was", "were")
    return {
        "mood": Slot(rng.choice(MOODS)),
        "feeling": Slot(rng.choice(FEELINGS)),
        "clause": Slot(rng.choice(CLAUSES)),
        # The noun before the verb disagrees with the subject two times in three.
        "near": Slot(rng.choice(NEARBY)[plural if rng.random() < 1 / 3 else 1 - plural]),
        "head": Slot(rng.choice(ANIMALS)[plural], "head"),
        "were": Slot(verbs[plural], None, "agreement", ("head",), (verbs[1 - plural],)),
    }


def drill(rng: random.Random) -> Example:
    """Write an exercise in looking things up: colored places are named, then named again in another order.

    It is no story, and only part of the training: a model that can do it learns the two-hop facts sooner.

    Args:
        rng: Source of all choices.

    Returns:
        The first list as the prompt, and the second as the continuation.
    """
    count = rng.randint(2, len(COLORS))
    colors, marks = rng.sample(COLORS, count), rng.sample(LANDMARKS, count)
    slots: dict[str, Slot] = {}
    for place, (color, mark) in enumerate(zip(colors, marks, strict=True)):
        slots[f"color{place}"] = Slot(color, f"color{place}")
        needs = (f"mark{place}", f"color{place}")
        slots[f"mark{place}"] = Slot(mark, f"mark{place}", "two-hop", needs, _others(LANDMARKS, mark))
    draft = Draft()
    for _ in range(2):
        order = rng.sample(range(count), count)
        draft.write(" Near the village there was " + " and ".join(f"a {{color{k}}} {{mark{k}}}" for k in order), slots)
        draft.write(".", slots)
    cut = draft.text.index(".") + 1
    return draft.split(cut)


def _boundaries(text: str, start: int, stop: int) -> list[int]:
    return [place for place in range(start, stop) if text[place] == " "]


def story(rng: random.Random) -> tuple[Example, str]:
    """Write one story.

    Args:
        rng: Source of all choices.

    Returns:
        The example, and its facts in one line: two stories with the same facts could share sentences, so
        the facts decide whether a story belongs to the training or to the held-out part.
    """
    slots = _facts(rng)
    draft = Draft()

    def say(*templates: str) -> None:
        draft.write(rng.choice(templates), {**slots, **_loose(rng)})

    say(*OPENINGS)
    themes = list(rng.choice(THEMES))
    for theme in themes:
        rival_first = rng.random() < 0.5
        if theme == "put" and rival_first:
            say(*PUT_RIVAL)
        say(*SETUPS[theme])
        if theme == "put" and not rival_first:
            say(*PUT_RIVAL)
        if theme == "color":
            say(*COLOR_PLACES)
    if rng.random() < 0.6 or "color" not in themes:
        say(*(" " + sentence for sentence in WEATHER))
    if rng.random() < 0.35:
        # The prompt stops between subject and verb, or else the subject would not be part of it.
        say(*AGREEMENT)
        cut = rng.choice(_boundaries(draft.text, draft.marks["head"][0][1], draft.planned[-1].start))
    else:
        cut = len(draft.text)
    rng.shuffle(themes)
    begin = len(draft.text)
    # A fact that is never taken up again is one more rival.
    for theme in themes[: rng.choice((1, 2, 2))]:
        say(*ENDS[theme])
    if rng.random() < 0.25:
        say(*HERO_END)
    if cut == begin and rng.random() < 0.4:
        first = min(word.start for word in draft.planned if word.start >= begin)
        cut = rng.choice(_boundaries(draft.text, begin, first))
    say(*CLOSINGS)
    facts = " ".join(draft.text[slice(*places[0])] for _, places in sorted(draft.marks.items()))
    return draft.split(cut), facts
