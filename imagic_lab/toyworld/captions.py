"""Captions in natural variety: word order, synonyms, 'a photo of …', attributes left out."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from imagic_lab.toyworld.scene import COLOURS as SCENE_COLOURS
from imagic_lab.toyworld.scene import POSES_OF

if TYPE_CHECKING:
    from imagic_lab.toyworld.scene import Scene

# The first form of each is the plain one.
SUBJECTS = {
    "dog": ("dog", "puppy"),
    "cat": ("cat", "kitten"),
    "rabbit": ("rabbit", "bunny", "hare"),
    "bird": ("bird",),
    "car": ("car", "automobile"),
}
COLOURS = {"grey": ("grey", "gray"), "brown": ("brown", "chestnut"), "red": ("red", "scarlet")}
POSES = {
    "sitting": ("sitting", "seated", "sitting down"),
    "standing": ("standing", "standing up", "standing still"),
    "jumping": ("jumping", "leaping", "jumping up"),
    "lying down": ("lying down", "lying", "resting", "lying flat"),
    "flying": ("flying", "in flight", "flying up"),
    "parked": ("parked", "standing still", "parking"),
    "driving": ("driving", "speeding", "driving fast"),
}
PLACES = {
    "grass": ("on the grass", "in a meadow", "on a green field", "on the lawn", "in the park"),
    "beach": ("on the beach", "by the sea", "on the sand", "at the seaside", "near the water"),
    "snow": ("in the snow", "on the snow", "in winter", "on a snowy day", "on a snowy hill"),
    "night": ("at night", "under the moon", "under the stars", "in the dark", "in the moonlight"),
}
OPENINGS = ("", "a photo of ", "a picture of ", "an image of ", "a drawing of ", "an illustration of ")


def article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


@cache
def vocabulary() -> frozenset[str]:
    """Every word that a caption can hold."""
    phrases = [*OPENINGS, *SCENE_COLOURS, "a an is that"]
    for forms in (SUBJECTS, COLOURS, POSES, PLACES):
        phrases += [form for several in forms.values() for form in several]
    return frozenset(word for phrase in phrases for word in phrase.split())


def plain(scene: Scene) -> str:
    """'a brown dog jumping on the grass': every attribute, in the plain order."""
    noun = article(f"{scene.colour} {SUBJECTS[scene.subject][0]}")
    return f"{noun} {POSES[scene.pose][0]} {PLACES[scene.place][0]}"


def varied(scene: Scene, seed: int) -> str:
    """One of some thousand ways to say it; each part keeps its plain form more than half of the time."""
    rng = np.random.default_rng((seed, 77))

    def one(forms: tuple[str, ...]) -> str:  # the first form half of the time
        return forms[0] if rng.random() < 0.5 else forms[int(rng.random() * len(forms))]

    named = rng.random(3) < (0.94, 0.92, 0.92)  # colour, pose, place: sometimes not said
    subject = one(SUBJECTS[scene.subject])
    colour = one(COLOURS.get(scene.colour, (scene.colour,)))
    noun = f"{colour} {subject}" if named[0] else subject
    pose = one(POSES[scene.pose]) if named[1] else ""
    place = one(PLACES[scene.place]) if named[2] else ""
    opening, order = one(OPENINGS), rng.random()
    noun = noun if rng.random() < 0.08 else article(noun)
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


def named(text: str) -> dict[str, str]:
    """The attributes that a text names, in the words of the captions: the inverse of `plain`, as far as it goes.

    >>> named("a puppy leaping by the sea")
    {'subject': 'dog', 'pose': 'jumping', 'place': 'beach'}

    Words that are no caption's are passed over; of two values for one attribute the first counts.
    """
    colours = {colour: COLOURS.get(colour, (colour,)) for colour in SCENE_COLOURS}
    found: dict[str, str] = {}
    text = " ".join(re.findall(r"[a-z]+", text.lower()))
    for name, forms_of in {"subject": SUBJECTS, "colour": colours, "pose": POSES, "place": PLACES}.items():
        if name == "pose" and "subject" in found:  # 'standing still' is said of dogs and of cars
            forms_of = {pose: forms_of[pose] for pose in POSES_OF[found["subject"]]}
        forms = [(form, value) for value, several in forms_of.items() for form in several]
        places = [(match.start(), -len(form), value) for form, value in forms if (match := _phrase(form).search(text))]
        if places:
            found[name] = min(places)[2]
    return found


def _phrase(words: str) -> re.Pattern:
    return re.compile(rf"\b{words}\b")
