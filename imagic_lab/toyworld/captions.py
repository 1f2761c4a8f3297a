"""Captions as varied as people write them: word order, synonyms, 'a photo of …', attributes left out."""

import re
from functools import cache
from types import SimpleNamespace

import numpy as np

from imagic_lab.toyworld.world import ATTRIBUTES, POSES_OF, SceneFacts

PHRASES = {  # the ways to say each value of an attribute; the first form is the plain one
    "subject": {
        "dog": ("dog", "puppy"),
        "cat": ("cat", "kitten"),
        "rabbit": ("rabbit", "bunny", "hare"),
        "bird": ("bird",),
        "car": ("car", "automobile"),
    },
    "colour": {colour: (colour,) for colour in ATTRIBUTES["colour"]}
    | {"grey": ("grey", "gray"), "brown": ("brown", "chestnut"), "red": ("red", "scarlet")},
    "pose": {
        "sitting": ("sitting", "seated", "sitting down"),
        "standing": ("standing", "standing up", "standing still"),
        "jumping": ("jumping", "leaping", "jumping up"),
        "lying down": ("lying down", "lying", "resting", "lying flat"),
        "flying": ("flying", "in flight", "flying up"),
        "parked": ("parked", "standing still", "parking"),
        "driving": ("driving", "speeding", "driving fast"),
    },
    "place": {
        "grass": ("on the grass", "in a meadow", "on a green field", "on the lawn", "in the park"),
        "beach": ("on the beach", "by the sea", "on the sand", "at the seaside", "near the water"),
        "snow": ("in the snow", "on the snow", "in winter", "on a snowy day", "on a snowy hill"),
        "night": ("at night", "under the moon", "under the stars", "in the dark", "in the moonlight"),
    },
}
OPENINGS = ("", "a photo of ", "a picture of ", "an image of ", "a drawing of ", "an illustration of ")


@cache
def caption_words() -> frozenset[str]:
    """Return every word that a caption can have."""
    phrases = [form for values in PHRASES.values() for forms in values.values() for form in forms]
    return frozenset(word for phrase in (*phrases, *OPENINGS, "a an is that") for word in phrase.split())


def plain_caption(scene: SceneFacts) -> str:
    """Name every attribute in the plain order: 'a brown dog jumping on the grass'."""
    subject, colour, pose, place = (values[getattr(scene, name)][0] for name, values in PHRASES.items())
    return f"{with_article(f'{colour} {subject}')} {pose} {place}"


def varied_caption(scene: SceneFacts, seed: int) -> str:
    """Describe the scene in one of thousands of ways. Each part has its plain form more than half of the time."""
    rng = np.random.default_rng((seed, 77))

    def one_of(forms: tuple[str, ...]) -> str:
        return forms[0] if rng.random() < 0.5 else forms[int(rng.random() * len(forms))]

    def phrase(name: str) -> str:
        return one_of(PHRASES[name][getattr(scene, name)])

    said = rng.random(3) < (0.94, 0.92, 0.92)  # is the colour, the pose, the place named?
    subject, colour = phrase("subject"), phrase("colour")
    noun = f"{colour} {subject}" if said[0] else subject
    pose = phrase("pose") if said[1] else ""
    place = phrase("place") if said[2] else ""
    opening, order = one_of(OPENINGS), rng.random()
    noun = noun if rng.random() < 0.08 else with_article(noun)
    if order < 0.70 or not (pose and place):
        words = [noun, pose, place]
    elif order < 0.78:
        words = [noun, "is", pose, place]
    elif order < 0.86:
        words = [noun, place + ",", pose]
    elif order < 0.93:
        words = [place + ",", noun, pose]
    else:
        words = [noun, "that is", pose, place]
    return opening * (order < 0.70) + " ".join(word for word in words if word)


def with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def attributes_in(text: str) -> dict[str, str]:
    """Return the attributes that a text names, in the words of the captions.

    >>> attributes_in("a puppy leaping by the sea")
    {'subject': 'dog', 'pose': 'jumping', 'place': 'beach'}

    Other words are ignored. If a text names two values of one attribute, the first one counts.
    """
    found: dict[str, str] = {}
    text = " ".join(re.findall(r"[a-z]+", text.lower()))
    for name, forms_of in PHRASES.items():
        if name == "pose" and "subject" in found:  # dogs and cars can both be 'standing still'
            forms_of = {pose: forms_of[pose] for pose in POSES_OF[found["subject"]]}
        forms = [(form, value) for value, several in forms_of.items() for form in several]
        matches = ((re.search(rf"\b{form}\b", text), form, value) for form, value in forms)
        if places := [(match.start(), -len(form), value) for match, form, value in matches if match]:
            found[name] = min(places)[2]  # the first; if two begin at the same place, the longer one
    return found


def values_beside(text: str) -> dict[str, tuple[str, ...]]:
    """Return the values that each attribute can have in this text. The poses are those of its subject."""
    poses = POSES_OF.get(attributes_in(text).get("subject"), ATTRIBUTES["pose"])
    return ATTRIBUTES | {"pose": poses}


def reworded(text: str, caption: str, **change: str) -> str:
    """Return the plain caption that differs from the text in these attributes. `caption` has what the text leaves out.

    >>> reworded("a dog in the snow", "a brown dog sitting on the grass", pose="jumping")
    'a brown dog jumping in the snow'
    """
    named = {name: values[0] for name, values in ATTRIBUTES.items()}
    named |= attributes_in(caption) | attributes_in(text) | change
    if named["pose"] not in (poses := POSES_OF[named["subject"]]):
        named["pose"] = poses[0]
    return plain_caption(SimpleNamespace(**named))
