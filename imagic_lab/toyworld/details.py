"""The details of a scene: those parts of its identity that a picture shows, as named numbers.

An identity has 48 random numbers, but a picture shows only some of them. A car has no ears, the night has no clouds,
and a dog without a collar gives no hint of the collar's colour. This module says which numbers are visible.
"""

from dataclasses import replace

import numpy as np

from imagic_lab.toyworld.scene import Scene
from imagic_lab.toyworld.world import SceneIdentity

# Yes or no: the detail is there if the number in the identity is above this bound, which is also in `drawing`.
SWITCHES = {"facing right": 0.5, "spots": 0.5, "belly": 0.5, "collar": 0.45, "socks": 0.6, "eye patch": 0.6}
SWITCHES |= {"first cloud": 0.35, "second cloud": 0.35}
CLOUD_IDS = {"first cloud": 1, "second cloud": 2}
COLLAR_COLOURS = ("red", "blue", "yellow", "green", "violet")
# How much: each a number in [0, 1).
AMOUNT_FIELDS = ("x", "depth", "size", "shade", "ears", "tail", "horizon", "sky")  # of SceneIdentity
LIGHT = ("light x", "light y")
SPOTS = tuple(f"spot {k} {axis}" for k in (1, 2, 3) for axis in ("along", "across"))
HILLS = tuple(f"hill {k} {what}" for k in (1, 2) for what in ("x", "width", "height"))
CLOUDS = tuple(f"cloud {k} {what}" for k in (1, 2) for what in ("x", "y", "width"))
AMOUNTS = AMOUNT_FIELDS + LIGHT + SPOTS + HILLS + CLOUDS


def canonical(scene: Scene) -> Scene:
    """Return the same scene with its clouds from left to right, because nothing else tells two clouds apart."""
    clouds = scene.identity.clouds[:3], scene.identity.clouds[3:]
    there = sorted(cloud for cloud in clouds if cloud[2] >= SWITCHES["first cloud"])
    absent = [(0.5, 0.5, 0.0)] * (2 - len(there))
    return replace(scene, identity=replace(scene.identity, clouds=sum([*there, *absent], ())))


def to_numbers(scene: Scene) -> dict[str, float]:
    """Return every switch (0 or 1), the collar's colour (0 to 4) and every amount of a scene, by name."""
    me = canonical(scene).identity
    raw = (me.flip, me.spots[0], me.belly, me.collar, me.socks, me.eye_patch, me.clouds[2], me.clouds[5])
    found = {name: float(value >= edge) for value, (name, edge) in zip(raw, SWITCHES.items(), strict=True)}
    found["collar colour"] = float(int(me.collar_colour * len(COLLAR_COLOURS)))
    amounts = (getattr(me, name) for name in AMOUNT_FIELDS)
    return found | dict(zip(AMOUNTS, (*amounts, *me.light, *me.spots[1:7], *me.hills, *me.clouds), strict=True))


def from_numbers(attributes: dict[str, str], found: dict[str, float]) -> Scene:
    """The inverse of `to_numbers`, given the four attributes. Amounts are clipped to [0, 1)."""

    def amounts(*names: str) -> tuple[float, ...]:
        return tuple(float(np.clip(found[name], 0.0, 0.999)) for name in names)

    def switch(name: str) -> float:  # the middle of the range that means yes or no
        edge = SWITCHES[name]
        return (1 + edge) / 2 if found[name] >= 0.5 else edge / 2

    clouds: tuple[float, ...] = ()
    for name, k in CLOUD_IDS.items():
        x, y, width = amounts(f"cloud {k} x", f"cloud {k} y", f"cloud {k} width")
        clouds += (x, y, max(width, SWITCHES[name]) if found[name] >= 0.5 else 0.0)
    identity = SceneIdentity(
        **dict(zip(AMOUNT_FIELDS, amounts(*AMOUNT_FIELDS), strict=True)),
        flip=switch("facing right"),
        spots=(switch("spots"), *amounts(*SPOTS), 0.5, 0.5),
        **{name: switch(name) for name in ("belly", "collar", "socks")},
        eye_patch=switch("eye patch"),
        collar_colour=(int(found["collar colour"]) + 0.5) / len(COLLAR_COLOURS),
        light=amounts(*LIGHT),
        hills=amounts(*HILLS),
        clouds=clouds,
        sparks=(-1.0,) * 16,  # stars and snowflakes are not read; this puts them outside the picture
    )
    return Scene(**attributes, identity=identity)


def visible(scene: Scene) -> frozenset[str]:
    """Return the names in `to_numbers` of the details that the picture of this scene shows."""
    found, subject = to_numbers(scene), scene.subject
    names = {"facing right", "spots", "belly", "collar", "x", "depth", "size", "shade", "horizon", "sky", *LIGHT}
    if found["collar"]:
        names.add("collar colour")
    if subject in ("dog", "cat", "rabbit"):
        names |= {"socks", "ears"} | (set(SPOTS) if found["spots"] else set())
    names.add("ears" if subject == "car" else "eye patch")  # a car's "ears" are the height of its roof
    if subject in ("dog", "cat", "bird"):
        names.add("tail")
    if scene.place != "beach":
        names |= set(HILLS)
    if scene.place != "night":
        names |= set(CLOUD_IDS)
        for name, k in CLOUD_IDS.items():
            if found[name]:
                names |= {f"cloud {k} {what}" for what in ("x", "y", "width")}
    return frozenset(names)


# Sixteen details, each with one vote in `share_kept`: its numbers, and the tolerance of each. The tables in
# data/reader/README.md show how often the reader agrees with a drawing within these tolerances, which is the ceiling.
# The widths of clouds and hills have no vote, because one cloud hides another and half of a hill is off the picture.
DETAILS: dict[str, dict[str, float]] = {
    "facing": {"facing right": 0},
    "place": {"x": 0.2, "depth": 0.2},
    "size": {"size": 0.3},
    "shade": {"shade": 0.3},
    **{name: {name: 0} for name in ("spots", "belly", "collar", "collar colour", "socks", "eye patch")},
    "ears": {"ears": 0.3},
    "tail": {"tail": 0.3},
    "horizon": {"horizon": 0.2},
    "sun or moon": {"light x": 0.1, "light y": 0.25},
    "clouds": {"first cloud": 0, "second cloud": 0} | {n: 0.2 for n in CLOUDS if "width" not in n},
    "hills": {n: 0.35 for n in HILLS if "width" not in n},
}


def share_kept(found: Scene, truth: Scene, before: Scene | None = None) -> float:
    """Return the share of details in which `found` agrees with the truth, from 0 to 1. Only details that the truth and,
    if given, `before` show count."""
    shown = visible(truth) if before is None else visible(truth) & visible(before)
    here, there = to_numbers(found), to_numbers(truth)
    votes = []
    for parts in DETAILS.values():
        if asked := [name for name in parts if name in shown]:
            votes.append(all(abs(here[name] - there[name]) <= parts[name] for name in asked))
    return sum(votes) / len(votes)
