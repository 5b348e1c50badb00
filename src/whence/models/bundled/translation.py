"""English sentences with their Italian translation, where one English word decides an Italian feature.

Three families. *gender*: a profession that says nothing about gender, and one word (he, her, himself ...)
that does; by the rule of this grammar that word always means the subject. *number*: the noun alone tells
one from many, as all verbs are in the past. *lexical*: nouns such as queen that bring their gender along.
Professions without any such word are masculine in Italian, as is usual.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from whence.models.bundled.example import Draft, Example, Slot
from whence.models.bundled.italian import (
    ADJECTIVES,
    ANYWHERE,
    ARTICLES,
    AT_A_PLACE,
    COMPANIONS,
    FEMININE,
    HANDLING,
    MASCULINE,
    MEETING,
    MOVING,
    PLACES,
    PROFESSIONS,
    REFLEXIVE,
    SAYING,
    THINGS,
    TIMES,
    TO_THE,
    Forms,
    Verb,
    Word,
    article,
    english_plural,
)

# {T} opens the English sentence, {L}{A} the Italian one; {_} is the space after an article that has one.
# {C} and {c} is where or when it happened.
GENDER = (
    ("{T} {noun} {said} that {he} was {adj}.", "{L}{A}{_}{N} ha {SAID} che era {ADJ}."),
    (
        "{T} {noun} told the {noun2} that {he} was {adj}.",
        "{L}{A}{_}{N} ha detto {TO2}{_2}{N2} che era {ADJ}.",
    ),
    ("{T} {noun} {lost} {his} {thing}{c}.", "{L}{A}{_}{N} ha {LOST} {HIS_THING}{C}."),
    ("{T} {noun} {past} {self}{rest}.", "{L}{A}{_}{N} si è {PART}{REST}."),
    ("{T} {noun} {verb}{c} because {he} was {adj}.", "{L}{A}{_}{N} {si}{is} {PART}{C} perché era {ADJ}."),
    ("When {he} {verb}{c}, the {noun} was {adj}.", "Quando {si}{is} {PART}{C}, {a}{_}{N} era {ADJ}."),
    ("{T} {noun} {verb} with {his} {pet}.", "{L}{A}{_}{N} {si}{is} {PART} con {HIS_PET}."),
    (
        "{T} {noun} {lost} {his} {thing} and {verb}{c}.",
        "{L}{A}{_}{N} ha {LOST} {HIS_THING} {and}{si}{is} {PART}{C}.",
    ),
)
NUMBER = (
    ("{T} {noun} {verb}{c}.", "{L}{A}{_}{N} {si}{is} {PART}{C}."),
    ("{T} {noun} {seemed} {adj}{c}.", "{L}{A}{_}{N} {SEEMED} {ADJ}{C}."),
    ("{T} {noun} {verb} {adj}.", "{L}{A}{_}{N} {si}{is} {PART} {ADJ}."),
    ("{T} {noun} {saw} the {noun2}{c}.", "{L}{A}{_}{N} {HAS} {SAW} {a2}{_2}{N2}{C}."),
    ("{T} {noun} {lost} the {thing}{c}.", "{L}{A}{_}{N} {HAS} {LOST} {THE_THING}{C}."),
    (
        "{T} {noun} {said} that the {noun2} {seemed2} {adj2}.",
        "{L}{A}{_}{N} {HAS} {SAID} che {a2}{_2}{N2} {SEEMED2} {ADJ2}.",
    ),
)

IS: Forms = ("è", "è", "sono", "sono")
HAS: Forms = ("ha", "ha", "hanno", "hanno")
SEEMED: Forms = ("sembrava", "sembrava", "sembravano", "sembravano")
VERBS: tuple[str, ...] = tuple(dict.fromkeys((*IS, *HAS, *SEEMED)))
POSSESSIVE = {"suo": "il", "sua": "la", "suoi": "i", "sue": "le"}


@dataclass(frozen=True)
class Referent:
    """Somebody in the sentence: the noun, its features, and which features the evidence decides."""

    word: Word
    feminine: bool
    plural: bool
    family: str
    key: str

    def form(self, forms: Forms) -> str:
        """Pick the form that fits this referent."""
        return forms[self.feminine + 2 * self.plural]

    def _rivals(self) -> tuple[tuple[bool, bool], ...]:
        if self.family == "gender":
            return ((not self.feminine, self.plural),)
        if self.family == "number":
            return ((self.feminine, not self.plural),)
        return tuple((f, p) for f in (False, True) for p in (False, True))

    def agreeing(self, part: str, forms: Forms) -> Slot:
        """Make a word agree with this referent; it is determined if its forms differ."""
        return self._slot(part, self.form(forms), [forms[f + 2 * p] for f, p in self._rivals()])

    def verb(self, forms: Forms, cue: str) -> Slot:
        """Make a finite verb agree; which verb it is depends on the English verb, filed under `cue`."""
        text = self.form(forms)
        if self.family == "gender":
            return Slot(text)
        others = tuple(verb for verb in VERBS if verb != text)
        return Slot(text, self.key, f"{self.family}-verb", (self.key, cue), others)

    def article(self, *, to: bool = False, capital: bool = False) -> Slot:
        """Give the definite article, or the preposition "a" that has swallowed it."""
        if self.family == "lexical":
            rivals = list(ARTICLES)
        else:
            rivals = [article(self.word.forms[f + 2 * p], feminine=f, plural=p) for f, p in self._rivals()]
        own = article(self.form(self.word.forms), feminine=self.feminine, plural=self.plural)
        words = [TO_THE[word] if to else word for word in (own, *rivals)]
        if capital:
            words = [word.capitalize() for word in words]
        return self._slot("article", words[0], words[1:])

    def _slot(self, part: str, text: str, rivals: list[str]) -> Slot:
        others = tuple(dict.fromkeys(rival for rival in rivals if rival != text))
        if not others:
            return Slot(text)
        return Slot(text, self.key, f"{self.family}-{part}", (self.key,), others)

    def slots(self, suffix: str) -> dict[str, Slot]:
        """Everything about this referent except verbs and adjectives."""
        english = english_plural(self.word.english) if self.plural else self.word.english
        small = self.article()
        return {
            "noun" + suffix: Slot(english, None if self.family == "gender" else self.key),
            "a" + suffix: small,
            "TO" + suffix: self.article(to=True),
            "_" + suffix: Slot("" if small.text.endswith("'") else " "),
            "N" + suffix: self.agreeing("noun", self.word.forms),
            "seemed" + suffix: Slot("seemed", "verb" + suffix),
            "SEEMED" + suffix: self.verb(SEEMED, "verb" + suffix),
        }


def _profession(rng: random.Random, key: str) -> Referent:
    return Referent(rng.choice(PROFESSIONS), False, rng.random() < 0.5, "number", key)


def _lexical(rng: random.Random, key: str, *, singular: bool = False) -> Referent:
    feminine = rng.random() < 0.5
    word = rng.choice(FEMININE if feminine else MASCULINE)
    return Referent(word, feminine, not singular and rng.random() < 0.5, "lexical", key)


def _verb_slots(rng: random.Random, english: str, subject: Referent) -> tuple[dict[str, Slot], str]:
    """Draw the verb of the subject; say also what may follow it: a place, a time or nothing."""
    if "{past}" in english:
        past, stem, rest = rng.choice(REFLEXIVE)
        before, after = past.split("{self}")
        forms: Forms = (stem + "o", stem + "a", stem + "i", stem + "e")
        slots = {"past": Slot(before.strip()), "rest": Slot(after), "REST": Slot(rest)}
        return {**slots, "PART": subject.agreeing("participle", forms)}, ""
    moving = "{verb} with" in english or "{verb} {adj}" in english
    verbs: tuple[Verb, ...] = MOVING if moving else rng.choice((AT_A_PLACE, ANYWHERE))
    verb = rng.choice(verbs)
    slots = {
        "verb": Slot(verb.english, "verb"),
        "si": Slot("si " if verb.reflexive else ""),
        "and": Slot("e " if verb.reflexive else "ed "),
        "is": subject.verb(IS, "verb"),
        "PART": subject.agreeing("participle", verb.forms),
    }
    return slots, "place" if verbs is AT_A_PLACE else "time"


def _frame(rng: random.Random, english: str, follows: str) -> dict[str, Slot]:
    """Draw the opening and the closing adverbials, which decide nothing."""
    time, place = rng.choice(TIMES), rng.choice(PLACES)
    after, lead = ("", ""), ("", "")
    if follows == "place" and "{verb}{c}" in english:
        after = place
    if rng.random() < 0.35:
        lead = time
    elif not after[0] and follows and rng.random() < 0.5:
        after = time if "{verb}" in english or rng.random() < 0.5 else place
    return {
        "T": Slot(lead[0][:1].upper() + lead[0][1:] + " the" if lead[0] else "The"),
        "L": Slot(lead[1][:1].upper() + lead[1][1:] + " " if lead[1] else ""),
        "c": Slot(" " + after[0] if after[0] else ""),
        "C": Slot(" " + after[1] if after[1] else ""),
    }


def _word_slots(rng: random.Random, subject: Referent, other: Referent) -> dict[str, Slot]:
    """Adjectives, objects and verbs with avere."""
    adjective, adjective2 = rng.choice(ADJECTIVES), rng.choice(ADJECTIVES)
    said, lost, saw = rng.choice(SAYING), rng.choice(HANDLING), rng.choice(MEETING)
    thing, the, possessive, italian = rng.choice(THINGS)
    pet, his_pet = rng.choice(COMPANIONS)
    pairs = {"said": said, "lost": lost, "saw": saw}
    slots = {key: Slot(pair[0], "verb") for key, pair in pairs.items()}
    slots |= {key.upper(): Slot(pair[1]) for key, pair in pairs.items()}
    return slots | {
        "pet": Slot(pet),
        "HIS_PET": Slot(his_pet),
        "thing": Slot(thing),
        "HIS_THING": Slot(f"{POSSESSIVE[possessive]} {possessive} {italian}"),
        "THE_THING": Slot(f"{the}{'' if the.endswith(chr(39)) else ' '}{italian}"),
        "adj": Slot(adjective.english),
        "ADJ": subject.agreeing("adjective", adjective.forms),
        "adj2": Slot(adjective2.english),
        "ADJ2": other.agreeing("adjective", adjective2.forms),
        "HAS": subject.verb(HAS, "verb"),
    }


def sentence(rng: random.Random) -> tuple[Example, str]:
    """Write one sentence and its translation.

    Args:
        rng: Source of all choices.

    Returns:
        The example, and the English sentence as its facts.
    """
    family = rng.choice(("gender", "gender", "number", "lexical"))
    english, italian = rng.choice(GENDER if family == "gender" else NUMBER)
    if family == "gender":
        subject = Referent(rng.choice(PROFESSIONS), rng.random() < 0.5, False, "gender", "first")
        other = _lexical(rng, "second", singular=True)
    else:
        subject = _profession(rng, "first") if family == "number" else _lexical(rng, "first")
        other = rng.choice((_profession, _lexical))(rng, "second")
    verb, follows = _verb_slots(rng, english, subject)
    cues = {"he": ("he", "she"), "his": ("his", "her"), "self": ("himself", "herself")}
    slots = {
        **{name: Slot(words[subject.feminine], "first") for name, words in cues.items()},
        **subject.slots(""),
        **other.slots("2"),
        **_word_slots(rng, subject, other),
        **verb,
        **_frame(rng, english, follows),
    }
    slots["A"] = subject.article(capital=not slots["L"].text)
    draft = Draft()
    draft.write(english, slots)
    facts, cut = draft.text, len(draft.text)
    draft.write(italian, slots)
    return draft.split(cut), facts
