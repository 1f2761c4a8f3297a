"""The details of a scene: what a picture shows of its identity, and how it is written as numbers.

A scene holds 48 random numbers, but a picture shows only some of them: a car has no ears, the night no
clouds, and of a dog without a collar nobody can tell the collar's colour. This module says which.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from imagic_lab.toyworld.scene import Identity, Scene

# yes or no: the name, and the number in the identity from which on it is there (`drawing`)
SWITCHES = {"facing right": 0.5, "spots": 0.5, "belly": 0.5, "collar": 0.45, "socks": 0.6, "eye patch": 0.6}
SWITCHES |= {"first cloud": 0.35, "second cloud": 0.35}
COLLAR_COLOURS = ("red", "blue", "yellow", "green", "violet")
# how much: each a number in [0, 1)
AMOUNTS = ("x", "depth", "size", "shade", "ears", "tail", "horizon", "sky", "light x", "light y")
SPOTS = tuple(f"spot {k} {axis}" for k in (1, 2, 3) for axis in ("along", "across"))
HILLS = tuple(f"hill {k} {what}" for k in (1, 2) for what in ("x", "width", "height"))
CLOUDS = tuple(f"cloud {k} {what}" for k in (1, 2) for what in ("x", "y", "width"))
NUMBERS = AMOUNTS + SPOTS + HILLS + CLOUDS
ANIMALS = ("dog", "cat", "rabbit")


def canonical(scene: Scene) -> Scene:
    """The same picture with its clouds in order, from left to right: two clouds have no names of their own."""
    first, second = scene.identity.clouds[:3], scene.identity.clouds[3:]
    there = [cloud for cloud in (first, second) if cloud[2] >= SWITCHES["first cloud"]]
    absent = [(0.5, 0.5, 0.0)] * (2 - len(there))
    return replace(scene, identity=replace(scene.identity, clouds=sum([*sorted(there), *absent], ())))


def to_numbers(scene: Scene) -> dict[str, float]:
    """Every switch (0 or 1), the collar's colour (0 to 4) and every amount of a scene, by name."""
    me = canonical(scene).identity
    raw = {"facing right": me.flip, "spots": me.spots[0], "belly": me.belly, "collar": me.collar, "socks": me.socks}
    raw |= {"eye patch": me.eye_patch, "first cloud": me.clouds[2], "second cloud": me.clouds[5]}
    found = {name: float(value >= SWITCHES[name]) for name, value in raw.items()}
    found["collar colour"] = float(int(me.collar_colour * len(COLLAR_COLOURS)))
    amounts = (me.x, me.depth, me.size, me.shade, me.ears, me.tail, me.horizon, me.sky, *me.light)
    return found | dict(zip(NUMBERS, (*amounts, *me.spots[1:7], *me.hills, *me.clouds), strict=True))


def from_numbers(attributes: dict[str, str], found: dict[str, float]) -> Scene:
    """The inverse of `to_numbers`, given the four attributes. Amounts are clipped to [0, 1)."""

    def amount(name: str) -> float:
        return float(np.clip(found[name], 0.0, 0.999))

    def switch(name: str) -> float:  # the middle of the range that means yes, or no
        edge = SWITCHES[name]
        return (1 + edge) / 2 if found[name] >= 0.5 else edge / 2

    clouds: list[float] = []
    for k, name in ((1, "first cloud"), (2, "second cloud")):
        there = found[name] >= 0.5
        width = max(amount(f"cloud {k} width"), SWITCHES[name]) if there else 0.0
        clouds += [amount(f"cloud {k} x"), amount(f"cloud {k} y"), width]
    identity = Identity(
        **{name: amount(name) for name in ("x", "depth", "size", "shade", "ears", "tail", "horizon", "sky")},
        flip=switch("facing right"),
        spots=(switch("spots"), *(amount(name) for name in SPOTS), 0.5, 0.5),
        **{name: switch(name) for name in ("belly", "collar", "socks")},
        eye_patch=switch("eye patch"),
        collar_colour=(int(found["collar colour"]) + 0.5) / len(COLLAR_COLOURS),
        light=(amount("light x"), amount("light y")),
        hills=tuple(amount(name) for name in HILLS),
        clouds=tuple(clouds),
        sparks=(-1.0,) * 16,  # stars and snowflakes are not read: this puts them outside the picture
    )
    return Scene(**attributes, identity=identity)


def visible(scene: Scene) -> frozenset[str]:
    """The names of `to_numbers` that the picture of this scene shows."""
    found, subject = to_numbers(scene), scene.subject
    names = {"facing right", "spots", "belly", "collar", "x", "depth", "size", "shade", "horizon", "sky"}
    names |= {"light x", "light y"}
    if found["collar"]:
        names.add("collar colour")
    if subject in ANIMALS:
        names |= {"socks", "ears"} | (set(SPOTS) if found["spots"] else set())
    if subject == "car":
        names.add("ears")  # the height of the roof
    else:
        names.add("eye patch")
    if subject in ("dog", "cat", "bird"):
        names.add("tail")
    if scene.place != "beach":
        names |= set(HILLS)
    if scene.place != "night":
        names |= {"first cloud", "second cloud"}
        for k, name in ((1, "first cloud"), (2, "second cloud")):
            if found[name]:
                names |= {f"cloud {k} {what}" for what in ("x", "y", "width")}
    return frozenset(names)


# Sixteen details, each one vote in `share_kept`: the numbers that make it, and how far each may be off. How often the
# reader agrees with a drawing within these tolerances stands in data/reader/README.md: that is the ceiling. The widths
# of clouds and hills have no vote: one hides the other, and half of a hill is beyond the picture.
DETAILS: dict[str, dict[str, float]] = {
    "facing": {"facing right": 0},
    "place": {"x": 0.2, "depth": 0.2},
    "size": {"size": 0.3},
    "shade": {"shade": 0.3},
    "spots": {"spots": 0},
    "belly": {"belly": 0},
    "collar": {"collar": 0},
    "collar colour": {"collar colour": 0},
    "socks": {"socks": 0},
    "eye patch": {"eye patch": 0},
    "ears": {"ears": 0.3},
    "tail": {"tail": 0.3},
    "horizon": {"horizon": 0.2},
    "sun or moon": {"light x": 0.1, "light y": 0.25},
    "clouds": {"first cloud": 0, "second cloud": 0} | {n: 0.2 for n in CLOUDS if "width" not in n},
    "hills": {n: 0.35 for n in HILLS if "width" not in n},
}


def share_kept(found: Scene, truth: Scene, before: Scene | None = None) -> float:
    """The share of the details in DETAILS, as far as the truth (and `before`) shows them, that `found` has too."""
    shown = visible(truth) if before is None else visible(truth) & visible(before)
    here, there = to_numbers(found), to_numbers(truth)
    votes = []
    for parts in DETAILS.values():
        asked = [name for name in parts if name in shown]
        if asked:
            votes.append(all(abs(here[name] - there[name]) <= parts[name] for name in asked))
    return sum(votes) / len(votes)
