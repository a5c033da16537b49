"""Which emoji are held out, and what their names say: rules over English names only, for all to read and check.

The held-out names recombine words that training has seen, in three kinds:

* A: one skin tone in five of every toned emoji (four or five of the pairs where two people carry a tone each);
* B: every tone of one gender for 18 roles ("woman scientist" in all tones, while "man scientist" stays in training);
* C: recombinations without people ("six-thirty", "purple square").

Choices are made by the SHA-256 of a name, so that they look random, need no seed and do not depend on row order.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence


TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
GENDERS = ("man", "woman")

# Toned emoji have 5 variants, or 20 or 25 where two people are toned one by one: one in five is held out.
_TONED_FRACTION = 5
_ROLES_WITH_TONES_HELD_OUT = 17
_ROLES_WITHOUT_TONES_HELD_OUT = 1
_RECOMBINATIONS_HELD_OUT = 60
# A word of a held-out name of kind C is left in at least so many training names: seen once is hardly learnt.
_WORD_SUPPORT = 2

_TONE = re.compile(r"\b(light|medium-light|medium|medium-dark|dark) skin tone\b")
_TONE_SUFFIX = re.compile(r"(:|,) (?:(?:medium-)?(?:light|dark)|medium) skin tone\b")
_GENDERED = re.compile(r"(?:(deaf) )?(man|men|woman|women|person|people)(?::? (.+))?")


def _rank(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def words(name: str) -> list[str]:
    """Lower-cased words of a name; a hyphen separates ("two-thirty" is two words)."""
    return re.findall(r"[^\W_]+", name.lower())


def tones_of(name: str) -> list[str]:
    """Skin tones named, in order: none, one, or two."""
    return _TONE.findall(name)


def without_tones(name: str) -> str:
    """The name of the emoji without its skin tones: "man: light skin tone, beard" becomes "man: beard"."""
    bare = _TONE_SUFFIX.sub("", name)
    # What follows a dropped ": tone" hangs on a comma: restore the colon.
    return re.sub(r"^(man|woman|person), ", r"\1: ", bare)


def attributes(names: Sequence[str]) -> list[dict[str, str | None]]:
    """Tone, gender and role of each name; None where the name has no such thing.

    tone: one of `TONES`, for names with exactly one tone. gender and role: for the roles that exist both as man and as
    woman ("health worker", "bald", "deaf", "holding hands"); the gender of "person ..." and of bare roles is None.
    """
    parts = []
    for name in names:
        match = _GENDERED.fullmatch(without_tones(name))
        if match is None:
            parts.append((None, without_tones(name)))
            continue
        deaf, noun, rest = match.groups()
        gender = {"man": "man", "men": "man", "woman": "woman", "women": "woman"}.get(noun)
        parts.append((gender, deaf or rest or ""))
    genders = defaultdict(set)
    for gender, role in parts:
        if gender is not None:
            genders[role].add(gender)
    roles = {role for role, found in genders.items() if role and len(found) == 2}
    rows = []
    for name, (gender, role) in zip(names, parts):
        tones = tones_of(name)
        gender, role = (gender, role) if role in roles else (None, None)
        rows.append({"tone": tones[0] if len(tones) == 1 else None, "gender": gender, "role": role})
    return rows


def held_out_kinds(names: Sequence[str], groups: Sequence[str]) -> list[str | None]:
    """The kind ("A", "B", "C") for which each name is held out, None for training.

    Args:
        names: English names, one an emoji, without duplicates.
        groups: the group of each in emoji-test.txt ("People & Body", ...).
    """
    facts = attributes(names)
    kinds: dict[str, str] = {}

    # B first: a role's gender leaves as a whole, so A has nothing to pick from it.
    by_role: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, fact in zip(names, facts):
        # Couples carry the gender of two people; "deaf" is written before the noun: neither fits the pattern of B.
        role, gender = fact["role"], fact["gender"]
        if role and gender and role not in ("holding hands", "deaf"):
            by_role[role][gender].append(name)
    ranked = sorted(by_role, key=_rank)
    toned = [role for role in ranked if any(tones_of(name) for name in by_role[role]["man"])]
    untoned = [role for role in ranked if role not in toned]
    chosen = toned[:_ROLES_WITH_TONES_HELD_OUT] + untoned[:_ROLES_WITHOUT_TONES_HELD_OUT]
    for i, role in enumerate(chosen):
        for name in by_role[role][GENDERS[i % 2]]:
            kinds[name] = "B"

    # A: bases in the order of their hash take the tones in turn, so that every tone is held out equally often.
    by_base = defaultdict(list)
    for name in names:
        if tones_of(name) and name not in kinds:
            by_base[without_tones(name)].append(name)
    for i, base in enumerate(sorted(by_base, key=_rank)):
        variants = by_base[base]
        if len(variants) == len(TONES):
            picked = [name for name in variants if tones_of(name) == [TONES[i % len(TONES)]]]
        else:
            picked = sorted(variants, key=_rank)[: len(variants) // _TONED_FRACTION]
        kinds.update(dict.fromkeys(picked, "A"))

    # C: names outside People and Flags (a flag cannot be guessed from its words), while their words stay supported.
    support = Counter(word for name in names if name not in kinds for word in set(words(name)))
    candidates = [
        name
        for name, group in zip(names, groups)
        if group not in ("People & Body", "Flags") and len(set(words(name))) >= 2
    ]
    left = _RECOMBINATIONS_HELD_OUT
    for name in sorted(candidates, key=_rank):
        own = set(words(name))
        if left and all(support[word] > _WORD_SUPPORT for word in own):
            support.subtract(own)
            kinds[name] = "C"
            left -= 1
    return [kinds.get(name) for name in names]
