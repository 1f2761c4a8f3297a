"""A new word for one particular car, with LoRA: how many pictures, which layers, what texts, and pictures of others?

    python -m imagic_lab.numbers.new_word          # half an hour of one core; goes on where it was stopped

Each run is written into data/experiments/new-word.json at once; the sheet and the table are made at the end. Seconds
are of one processor core (`time.process_time`), so that other work on the machine does not count.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

import imagic_lib as imagic
from imagic_lab.classroom.plots import picture_grid
from imagic_lab.experiments.personalization import class_pictures
from imagic_lab.numbers.lora import TARGETS
from imagic_lab.numbers.report import README, put, table
from imagic_lab.numbers.results import Results, portion, read, rounded, strip, strips, write_sheet
from imagic_lab.toyworld import Scene, load_reader
from imagic_lab.toyworld.lineup import Lineup, seen_again
from imagic_lib.pictures import to_picture

RESULTS = "new-word.json"
SAMPLING_STEPS = 15
CARS = {"green emblem, roof rack": 1_500_033, "stripe, blue emblem": 1_600_235}  # scenes by seed, of no training
WORD, CLASS = "a photo of sks car", "a photo of a car"
PLACES = {"beach": "on the beach", "snow": "in the snow", "night": "at night", "grass": "on the grass"}
# the beach is never shown
SHOWN = [("grass", "parked"), ("snow", "driving"), ("night", "parked"), ("grass", "driving"),
         ("snow", "parked"), ("night", "driving"), ("grass", "parked"), ("snow", "driving")]  # fmt: skip
# what other cars are called, for a prior in many texts; red is left out, since a red car is what we test with
OTHER_CARS = (CLASS, "a photo of a blue car", "a blue car driving on the beach", "a white car parked in the snow",
              "a black car driving on the grass", "a grey car driving at night", "a white car driving on the beach",
              "a black car parked in the snow")  # fmt: skip


class Kind(NamedTuple):
    """How the word is taught."""

    pictures: int
    layers: str = "attention and convolutions"
    captions: bool = False  # each picture's own text, with pose and place, or WORD for all
    prior: tuple[str, ...] = ()  # texts of other cars
    steps: int = 300

    def cells(self) -> list[str]:
        """As the table and the results call it."""
        prior = {0: "–", 1: "one text"}.get(len(self.prior), f"{len(self.prior)} texts")
        return [str(self.pictures), self.layers, "captions" if self.captions else "word", prior, str(self.steps)]


KINDS = [
    Kind(1, "to_q, to_v"),  # the report's
    Kind(1),
    Kind(1, captions=True),
    Kind(1, captions=True, steps=100),
    Kind(1, captions=True, prior=OTHER_CARS, steps=100),
    Kind(4),
    Kind(4, captions=True, steps=200),
]
PRIOR_COUNT, WORD_SEEDS, OTHERS = 16, (0, 1, 2), 9


def car_of(label: str, place="grass", pose="parked") -> Scene:
    return Scene.sample(CARS[label], subject="car", colour="yellow", pose=pose, place=place)


def shown(label: str, count: int) -> list[Scene]:
    """The pictures of the car that are learned from: the first is its own scene, the rest other views."""
    car = car_of(label)
    return [car] + [seen_again(car, 1_800_000 + k, place=p, pose=q) for k, (p, q) in enumerate(SHOWN[1:count])]


@lru_cache(maxsize=1)
def lineups(label: str) -> dict[str, Lineup]:
    """For each place the car itself, first, and other yellow cars."""
    others = [Scene.sample(1_700_000 + k, subject="car", colour="yellow", pose="driving") for k in range(OTHERS)]
    cars = [car_of(label), *others]
    return {place: Lineup([scene.edit(place=place, pose="driving") for scene in cars]) for place in PLACES}


def looked_at(reader, label: str, place: str, pictures: list[Image.Image]) -> list[dict]:
    """Of each picture: how far from this car, is it picked in the line-up, and does the text hold?"""
    found = []
    for picture, seen in zip(pictures, read(reader, pictures), strict=True):
        distances = lineups(label)[place].distances(picture)
        found.append({"distance": rounded(distances[0]), "picked": distances[0] == min(distances)})
        found[-1] |= {"text": (seen["subject"], seen["pose"], seen["place"]) == ("car", "driving", place)}
        found[-1] |= {"yellow": seen["colour"] == "yellow"}
    return found


def mean_of(rows: list[dict]) -> dict:
    return {key: rounded(np.mean([row[key] for row in rows]), 3) for key in rows[0]} | {"n": len(rows)}


def look_at_words(pipe, reader, label: str, subject: str) -> tuple[dict, list[Image.Image]]:
    """Four places, and what has become of other cars; the pictures of one seed for the sheet."""
    found, row = {}, []
    for place, phrase in PLACES.items():
        drawn = imagic.sample_text(pipe, f"{subject} driving {phrase}", WORD_SEEDS, steps=SAMPLING_STEPS)
        found[place] = mean_of(looked_at(reader, label, place, drawn))
        row.append(drawn[0])
    red = imagic.sample_text(pipe, "a photo of a red car", WORD_SEEDS, steps=SAMPLING_STEPS)
    some = imagic.sample_text(pipe, CLASS, WORD_SEEDS, steps=SAMPLING_STEPS)
    found["red car is red"] = rounded(np.mean([r["colour"] == "red" for r in read(reader, red)]), 3)
    found["a car is yellow"] = rounded(np.mean([r["colour"] == "yellow" for r in read(reader, some)]), 3)
    return found, [*row, red[0], some[0]]


def limits(pipe, reader, label: str) -> tuple[dict, list[Image.Image]]:
    """The best that is possible: other views of the very car, drawn, then through the VAE."""
    found, row = {}, []
    for place in PLACES:
        scenes = [seen_again(car_of(label), 1_900_000 + k, place=place, pose="driving") for k in WORD_SEEDS]
        images = [imagic.load_image(scene.render(), pipe) for scene in scenes]
        drawn = [to_picture(imagic.decode_latents(pipe, imagic.encode_image(pipe, x))) for x in images]
        found[place] = mean_of(looked_at(reader, label, place, drawn))
        row.append(scenes[0].render())
    return found, row


def trained(pipe, reader, label: str, kind: Kind) -> tuple[dict, list[Image.Image]]:
    began = time.process_time()
    prior = class_pictures(pipe, kind.prior, PRIOR_COUNT, seed=5000, steps=15) if kind.prior else None
    scenes = shown(label, kind.pictures)
    images = [imagic.load_image(scene.render(), pipe) for scene in scenes]
    texts = [f"{WORD} {s.pose} {PLACES[s.place]}" if kind.captions else WORD for s in scenes]
    settings = {"lora": imagic.LoRA(targets=TARGETS[kind.layers]), "steps": kind.steps}
    settings["run"] = imagic.Run(probe_every=kind.steps // 2)
    generator = torch.Generator().manual_seed(kind.pictures)
    tuned, history = imagic.personalize(pipe, images, texts, prior=prior, generator=generator, **settings)
    found = {"seconds": rounded(time.process_time() - began, 1)}
    found |= {"probe": [rounded(history.probe_loss[0]), rounded(history.probe_loss[-1])]}
    more, row = look_at_words(tuned, reader, label, WORD)
    return found | more, row


def file_of(label: str, name: str) -> str:
    return f"word-{label}-{name}".replace(" / ", "-")


def words(results: Results, pipe, reader, label: str) -> None:
    """All runs of one car that are not there yet."""
    makers = {
        "limit": lambda: limits(pipe, reader, label),
        "loaded, a yellow car": lambda: look_at_words(pipe, reader, label, "a photo of a yellow car"),
        "loaded, sks car": lambda: look_at_words(pipe, reader, label, WORD),
    }
    makers |= {" / ".join(kind.cells()): lambda kind=kind: trained(pipe, reader, label, kind) for kind in KINDS}
    for name, make in makers.items():
        if f"{label} / {name}" not in results.found["words"]:
            found, row = make()
            strip(file_of(label, name), row)
            results.keep("words", f"{label} / {name}", found)


# --- the sheet and the table

NAMES = {
    "limit": ["", "the car itself, drawn", "–", "–", "–", "–"],
    "loaded, a yellow car": ["", "loaded model, ‘yellow car’", "–", "–", "–", "–"],
    "loaded, sks car": ["", "loaded model, ‘sks car’", "–", "–", "–", "–"],
} | {" / ".join(kind.cells()): [letter, *kind.cells()] for letter, kind in zip("ABCDEFG", KINDS, strict=True)}
DRAWN = tuple(name for name, cells in NAMES.items() if name != "loaded, sks car")


def sheet() -> None:
    """Both cars side by side: the beach, the place and red cars; rows by the letters of the table."""
    columns = ("beach", "grass", "red car")
    rows, labels = [], ["truth", "loaded", *(NAMES[name][0] for name in DRAWN[2:])]
    for name in DRAWN:
        of_cars = [dict(zip([*PLACES, "red car"], strips(file_of(label, name)), strict=False)) for label in CARS]
        rows.append(
            [
                one.get(column, car_of(label).render())
                for label, one in zip(CARS, of_cars, strict=True)
                for column in columns
            ]
        )
    write_sheet("new-word.jpg", picture_grid(rows, columns * len(CARS), labels, inch=1.5))


def runs_of(found: dict) -> dict[str, list[dict]]:
    """By kind of run its results, one for each car."""
    return {name: [found[f"{car} / {name}"] for car in CARS] for name in NAMES}


def share_of(runs: list[dict], key: str, places: Iterable[str]) -> tuple[int, int]:
    """(in how many pictures it is so, of how many)."""
    cells = [run[place] for run in runs for place in places]
    return sum(round(cell[key] * cell["n"]) for cell in cells), sum(cell["n"] for cell in cells)


def words_table(found: dict) -> str:
    rows = []
    for name, runs in runs_of(found).items():
        distance = np.mean([run[place]["distance"] for run in runs for place in PLACES])
        rows.append([*NAMES[name], f"{distance:.3f}"])
        for key in ("picked", "text"):
            rows[-1] += ["{} of {}".format(*share_of(runs, key, places)) for places in (["beach"], PLACES)]
        for key in ("red car is red", "a car is yellow"):
            rows[-1] += [f"{100 * np.mean([run[key] for run in runs]):.0f} %" if key in runs[0] else "–"]
    header = ["", "pictures", "layers", "texts", "prior", "steps", "distance", "picked: beach", "picked: all places"]
    header += ["text holds: beach", "text holds: all places", "‘a red car’ is red", "‘a car’ is yellow"]
    note = f"{len(KINDS) * len(CARS)} trainings: each line is of {len(CARS)} cars (counts are sums, all else means). "
    note += f"{len(WORD_SEEDS)} seeds in each of {len(PLACES)} places; a line-up of {OTHERS + 1} yellow cars.\n\n"
    return note + table(header, rows)


COMPARED = {  # one change each
    "convolutions and all of attention in place of to_q and to_v": (Kind(1, "to_q, to_v"), Kind(1)),
    "captions in place of the word alone": (Kind(1), Kind(1, captions=True)),
    "100 steps in place of 300": (Kind(1, captions=True), Kind(1, captions=True, steps=100)),
    "all three": (Kind(1, "to_q, to_v"), Kind(1, captions=True, steps=100)),
    "a prior of eight texts": (Kind(1, captions=True, steps=100), Kind(1, captions=True, prior=OTHER_CARS, steps=100)),
    "four pictures in place of one": (Kind(1), Kind(4)),
}


def verdicts(found: dict) -> list[str]:
    runs, lines = runs_of(found), []
    for what, kinds in COMPARED.items():
        both = [runs[" / ".join(kind.cells())] for kind in kinds]
        picked, text = ([portion(*share_of(some, key, PLACES)) for some in both] for key in ("picked", "text"))
        red = [f"{100 * np.mean([run['red car is red'] for run in some]):.0f} %" for some in both]
        lines.append(
            f"{what}: picked {picked[0]} → {picked[1]}; text holds {text[0]} → {text[1]}; "
            f"a red car is red {red[0]} → {red[1]}."
        )
    return lines


def tables_of(found: dict) -> dict:
    return {"words": words_table(found["words"]), "verdicts": verdicts(found["words"])}


def main() -> None:
    results = Results(RESULTS, "words")
    pipe, reader = imagic.load_pipeline("tiny"), load_reader()
    for label in CARS:
        words(results, pipe, reader, label)
    sheet()
    made = results.found["tables"] = tables_of(results.found)
    results.write()
    verdict = "\n".join(f"- {line}" for line in made["verdicts"])
    put(README, "new-word", "\n".join([made["words"], verdict]))


if __name__ == "__main__":
    main()
