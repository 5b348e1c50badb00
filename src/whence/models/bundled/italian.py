"""Words of the translation grammar, English with Italian, and the Italian article.

A line of an inflected word gives the English word, the Italian stem and four endings: masculine and
feminine singular, masculine and feminine plural.
"""

from __future__ import annotations

from dataclasses import dataclass

Forms = tuple[str, str, str, str]


@dataclass(frozen=True)
class Word:
    """An English word and its four Italian forms."""

    english: str
    forms: Forms


@dataclass(frozen=True)
class Verb:
    """An English past tense, its Italian participle, and whether the Italian verb is reflexive."""

    english: str
    forms: Forms
    reflexive: bool


def _words(table: str) -> tuple[Word, ...]:
    words = []
    for line in table.strip().splitlines():
        english, stem, *endings = line.rsplit(maxsplit=5)
        a, b, c, d = (stem + ending for ending in endings)
        words.append(Word(english.strip(), (a, b, c, d)))
    return tuple(words)


PROFESSIONS = _words("""
manager diret tore trice tori trici
doctor medic o a i he
teacher insegnant e e i i
lawyer avvocat o a i e
writer scrit tore trice tori trici
painter pit tore trice tori trici
singer cantant e e i i
journalist giornalist a a i e
dentist dentist a a i e
artist artist a a i e
pianist pianist a a i e
student student e essa i esse
professor professor e essa i esse
cook cuoc o a hi he
baker forna io ia i ie
farmer contadin o a i e
worker opera io ia i ie
nurse infermier e a i e
engineer ingegner e a i e
architect architett o a i e
scientist scienziat o a i e
psychologist psicolog o a i he
gardener giardinier e a i e
cashier cassier e a i e
hairdresser parrucchier e a i e
photographer fotograf o a i e
driver autist a a i e
secretary segretar io ia i ie
mayor sindac o a i he
minister ministr o a i e
judge giudic e e i i
librarian bibliotecar io ia i ie
translator tradut tore trice tori trici
swimmer nuota tore trice tori trici
dancer ballerin o a i e
skier scia tore trice tori trici
player gioca tore trice tori trici
coach allena tore trice tori trici
researcher ricerca tore trice tori trici
inventor inven tore trice tori trici
composer composi tore trice tori trici
sculptor scul tore trice tori trici
reader let tore trice tori trici
visitor visita tore trice tori trici
spectator spetta tore trice tori trici
employee impiegat o a i e
tailor sart o a i e
florist fiora io ia i ie
butcher macella io ia i ie
biologist biolog o a i he
chemist chimic o a i he
mathematician matematic o a i he
musician musicist a a i e
electrician elettricist a a i e
mechanic meccanic o a i he
plumber idraulic o a i he
carpenter falegnam e e i i
pharmacist farmacist a a i e
veterinarian veterinar io ia i ie
surgeon chirurg o a hi he
athlete atlet a a i e
cyclist ciclist a a i e
tourist turist a a i e
neighbor vicin o a i e
friend amic o a i he
colleague colleg a a hi he
guest ospit e e i i
patient pazient e e i i
prisoner prigionier o a i e
thief ladr o a i e
witness testimon e e i i
owner proprietar io ia i ie
winner vinci tore trice tori trici
stranger sconosciut o a i e
foreigner stranier o a i e
banker banchier e a i e
president president e e i i
inspector ispet tore trice tori trici
editor redat tore trice tori trici
explorer esplora tore trice tori trici
seller vendi tore trice tori trici
traveler viaggia tore trice tori trici
climber alpinist a a i e
accountant contabil e e i i
magician mag o a hi he
astronaut astronaut a a i e
pilot pilot a a i e
poet poet a essa i esse
philosopher filosof o a i e
""")

# Nouns whose gender is part of the word: masculine, then feminine; the Italian singular and plural.
_MASCULINE = """
man uomo uomini, boy ragazzo ragazzi, father padre padri, brother fratello fratelli, king re re,
prince principe principi, uncle zio zii, grandfather nonno nonni, husband marito mariti, son figlio figli,
monk monaco monaci, actor attore attori, waiter cameriere camerieri, groom sposo sposi,
widower vedovo vedovi, gentleman signore signori, nephew nipote nipoti, count conte conti,
duke duca duchi, hero eroe eroi, wizard stregone stregoni, emperor imperatore imperatori
"""
_FEMININE = """
woman donna donne, girl ragazza ragazze, mother madre madri, sister sorella sorelle, queen regina regine,
princess principessa principesse, aunt zia zie, grandmother nonna nonne, wife moglie mogli,
daughter figlia figlie, nun suora suore, actress attrice attrici, waitress cameriera cameriere,
bride sposa spose, widow vedova vedove, lady signora signore, niece nipote nipoti,
countess contessa contesse, duchess duchessa duchesse, heroine eroina eroine, witch strega streghe,
empress imperatrice imperatrici
"""


def _lexical(table: str) -> tuple[Word, ...]:
    entries = (entry.split() for entry in table.replace("\n", " ").split(","))
    return tuple(Word(english, (one, one, many, many)) for english, one, many in entries)


MASCULINE, FEMININE = _lexical(_MASCULINE), _lexical(_FEMININE)

ADJECTIVES = _words("""
tired stanc o a hi he
happy content o a i e
sad trist e e i i
worried preoccupat o a i e
angry arrabbiat o a i e
hungry affamat o a i e
sick malat o a i e
nervous nervos o a i e
calm tranquill o a i e
busy occupat o a i e
ready pront o a i e
alone sol o a i e
surprised sorpres o a i e
confused confus o a i e
bored annoiat o a i e
excited emozionat o a i e
satisfied soddisfatt o a i e
disappointed delus o a i e
injured ferit o a i e
frightened spaventat o a i e
proud orgoglios o a i e
jealous gelos o a i e
lucky fortunat o a i e
kind gentil e e i i
young giovan e e i i
rich ricc o a hi he
poor pover o a i e
famous famos o a i e
honest onest o a i e
generous generos o a i e
lazy pigr o a i e
strong fort e e i i
free liber o a i e
shy timid o a i e
cautious caut o a i e
elegant elegant e e i i
curious curios o a i e
embarrassed imbarazzat o a i e
distracted distratt o a i e
relieved sollevat o a i e
exhausted esaust o a i e
desperate disperat o a i e
innocent innocent e e i i
""")


def _verbs(table: str) -> tuple[Verb, ...]:
    verbs = []
    for entry in table.replace("\n", " ").split(","):
        *english, participle = entry.split()
        reflexive = english[-1] == "si"
        stem = participle[:-1]
        forms = (stem + "o", stem + "a", stem + "i", stem + "e")
        verbs.append(Verb(" ".join(english[: -1 if reflexive else None]), forms, reflexive))
    return tuple(verbs)


# All of these take essere, so the participle agrees with the subject.
AT_A_PLACE = _verbs("""
arrived arrivato, stayed rimasto, fell caduto, appeared apparso, fell asleep si addormentato,
got lost si perso, stopped si fermato, sat down si seduto, woke up si svegliato, hid si nascosto,
rested si riposato
""")
ANYWHERE = _verbs("""
left partito, went out uscito, escaped fuggito, came back tornato, disappeared scomparso, recovered guarito,
blushed arrossito, went in entrato, ran away scappato, got up si alzato, got bored si annoiato,
had fun si divertito, got angry si arrabbiato, got sick si ammalato, calmed down si calmato,
got married si sposato, moved si trasferito
""")
# Those that can carry a second predicate: "arrived tired", or company: "left with her dog".
MOVING = _verbs("""
arrived arrivato, came back tornato, left partito, went out uscito, went in entrato, ran away scappato
""")

# English, participle, what follows in English and in Italian; {self} is himself or herself.
REFLEXIVE: tuple[tuple[str, str, str], ...] = (
    ("looked at {self} in the mirror", "guardat", " allo specchio"),
    ("hurt {self} in the kitchen", "ferit", " in cucina"),
    ("defended {self} in court", "difes", " in tribunale"),
    ("introduced {self} to the class", "presentat", " alla classe"),
    ("prepared {self} for the party", "preparat", " per la festa"),
    ("washed {self} in the river", "lavat", " nel fiume"),
    ("dried {self} in the sun", "asciugat", " al sole"),
    ("covered {self} with a blanket", "copert", " con una coperta"),
    ("warmed {self} by the fire", "scaldat", " vicino al fuoco"),
    ("protected {self} from the rain", "protett", " dalla pioggia"),
    ("dressed {self} in a hurry", "vestit", " in fretta"),
    ("saved {self} with a rope", "salvat", " con una corda"),
)

SAYING: tuple[tuple[str, str], ...] = (
    ("said", "detto"),
    ("thought", "pensato"),
    ("admitted", "ammesso"),
    ("wrote", "scritto"),
    ("explained", "spiegato"),
    ("repeated", "ripetuto"),
    ("answered", "risposto"),
    ("declared", "dichiarato"),
)
HANDLING: tuple[tuple[str, str], ...] = (
    ("lost", "perso"),
    ("found", "trovato"),
    ("forgot", "dimenticato"),
    ("sold", "venduto"),
    ("took", "preso"),
    ("brought", "portato"),
    ("cleaned", "pulito"),
    ("looked for", "cercato"),
)
MEETING: tuple[tuple[str, str], ...] = (
    ("saw", "visto"),
    ("helped", "aiutato"),
    ("called", "chiamato"),
    ("thanked", "ringraziato"),
    ("followed", "seguito"),
    ("met", "incontrato"),
    ("greeted", "salutato"),
    ("recognized", "riconosciuto"),
    ("invited", "invitato"),
)
# English, the Italian article, the possessive and the noun.
THINGS: tuple[tuple[str, str, str, str], ...] = (
    ("keys", "le", "sue", "chiavi"),
    ("bag", "la", "sua", "borsa"),
    ("book", "il", "suo", "libro"),
    ("umbrella", "l'", "suo", "ombrello"),
    ("car", "la", "sua", "macchina"),
    ("bicycle", "la", "sua", "bicicletta"),
    ("glasses", "gli", "suoi", "occhiali"),
    ("phone", "il", "suo", "telefono"),
    ("hat", "il", "suo", "cappello"),
    ("suitcase", "la", "sua", "valigia"),
    ("notebook", "il", "suo", "quaderno"),
    ("letters", "le", "sue", "lettere"),
    ("shoes", "le", "sue", "scarpe"),
    ("ring", "l'", "suo", "anello"),
    ("watch", "l'", "suo", "orologio"),
    ("tickets", "i", "suoi", "biglietti"),
    ("documents", "i", "suoi", "documenti"),
    ("guitar", "la", "sua", "chitarra"),
)
COMPANIONS: tuple[tuple[str, str], ...] = (
    ("dog", "il suo cane"),
    ("cat", "il suo gatto"),
    ("horse", "il suo cavallo"),
    ("family", "la sua famiglia"),
    ("children", "i suoi figli"),
    ("parents", "i suoi genitori"),
    ("books", "i suoi libri"),
    ("suitcase", "la sua valigia"),
)
TIMES: tuple[tuple[str, str], ...] = (
    ("yesterday", "ieri"),
    ("on Monday", "lunedì"),
    ("on Friday", "venerdì"),
    ("this morning", "stamattina"),
    ("last night", "ieri sera"),
    ("after dinner", "dopo cena"),
    ("before lunch", "prima di pranzo"),
    ("at midnight", "a mezzanotte"),
    ("at noon", "a mezzogiorno"),
    ("in the afternoon", "nel pomeriggio"),
    ("after the party", "dopo la festa"),
    ("during the storm", "durante il temporale"),
    ("before the meeting", "prima della riunione"),
    ("last week", "la settimana scorsa"),
    ("two days ago", "due giorni fa"),
)
PLACES: tuple[tuple[str, str], ...] = (
    ("at the station", "alla stazione"),
    ("at the museum", "al museo"),
    ("at the market", "al mercato"),
    ("at the harbor", "al porto"),
    ("at the airport", "all'aeroporto"),
    ("at the theater", "a teatro"),
    ("at school", "a scuola"),
    ("at home", "a casa"),
    ("near the houses", "vicino alle case"),
    ("near the bridge", "vicino al ponte"),
    ("near the trees", "vicino agli alberi"),
    ("near the shops", "vicino ai negozi"),
    ("near the church", "vicino alla chiesa"),
    ("in front of the hotel", "davanti all'albergo"),
    ("in front of the windows", "davanti alle finestre"),
)

ARTICLES: tuple[str, ...] = ("il", "lo", "la", "l'", "i", "gli", "le")
IRREGULAR = {"man": "men", "woman": "women", "gentleman": "gentlemen", "wife": "wives", "thief": "thieves"}
TO_THE = {"il": "al", "lo": "allo", "la": "alla", "l'": "all'", "i": "ai", "gli": "agli", "le": "alle"}


def article(noun: str, *, feminine: bool, plural: bool) -> str:
    """Give the definite article of an Italian noun, which depends on the sound it begins with."""
    vowel = noun[0] in "aeiou"
    hard = noun[0] in "zxy" or noun[:2] in ("gn", "ps", "pn") or (noun[0] == "s" and noun[1] not in "aeiou")
    if plural:
        return "le" if feminine else "gli" if vowel or hard else "i"
    if vowel:
        return "l'"
    return "la" if feminine else "lo" if hard else "il"


def english_plural(noun: str) -> str:
    """Give the plural of an English noun of this grammar."""
    irregular = {
        "man": "men",
        "woman": "women",
        "gentleman": "gentlemen",
        "wife": "wives",
        "thief": "thieves",
    }
    if noun in irregular:
        return irregular[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "ch", "sh", "x")) or noun == "hero" else "s")
