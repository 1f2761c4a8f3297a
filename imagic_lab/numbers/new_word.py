"""A new word for one particular car, taught with LoRA: how many pictures, which layers, which texts, a prior?

    python -m imagic_lab.numbers.new_word              # the first two cars, some 20 minutes of one core each
    python -m imagic_lab.numbers.new_word --cars 6     # four more cars; results that are there are kept

Each run is written into data/experiments/new-word.json at once; the sheet and the table follow at the end. Seconds are
of one processor core (`time.process_time`), so other work on the machine does not count.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

import imagic_lib as imagic
from imagic_lab.benchmark import markdown_table
from imagic_lab.experiments.personalization import class_pictures, personalize
from imagic_lab.numbers.lora import TARGETS
from imagic_lab.numbers.report import README, command_line, put
from imagic_lab.numbers.results import (
    Results,
    attributes_of,
    count_with_parts,
    rounded,
    strip,
    strips,
    write_tiles,
)
from imagic_lab.toyworld import Scene, load_reader
from imagic_lab.toyworld.lineup import Lineup, seen_again
from imagic_lib.pictures import to_picture

WORD_RESULTS = "new-word.json"
WORD_SAMPLING = 15
CARS = {  # by their marks, the seed of a scene that was never in a training
    "green emblem, roof rack": 1_500_033,
    "stripe, blue emblem": 1_600_235,
    "violet emblem, roof rack": 1_600_238,
    "stripe, red emblem": 1_600_252,
    "stripe, red emblem, roof rack": 1_600_258,
    "stripe, roof rack": 1_600_236,
}
MEASURED = 2  # the number of cars, unless --cars asks for more
WORD, CLASS = "a photo of sks car", "a photo of a car"
PLACE_PHRASES = {"beach": "on the beach", "snow": "in the snow", "night": "at night", "grass": "on the grass"}
# (place, pose) of the pictures to learn from, which are never on the beach
VIEWS = [("grass", "parked"), ("snow", "driving"), ("night", "parked"), ("grass", "driving"),
         ("snow", "parked"), ("night", "driving"), ("grass", "parked"), ("snow", "driving")]  # fmt: skip
# texts of other cars, for a prior; none is red, because we test with a red car
OTHER_CARS = (CLASS, "a photo of a blue car", "a blue car driving on the beach", "a white car parked in the snow",
              "a black car driving on the grass", "a grey car driving at night", "a white car driving on the beach",
              "a black car parked in the snow")  # fmt: skip


class Teaching(NamedTuple):
    """A way to teach the word."""

    pictures: int
    layers: str = "attention and convolutions"
    captions: bool = False  # a text for each picture, with pose and place, instead of WORD for all
    prior: tuple[str, ...] = ()  # texts of other cars
    steps: int = 300

    def cells(self) -> list[str]:
        """Return the cells of the table, which are also the key in the results."""
        prior = {0: "–", 1: "one text"}.get(len(self.prior), f"{len(self.prior)} texts")
        return [str(self.pictures), self.layers, "captions" if self.captions else "word", prior, str(self.steps)]


TEACHINGS = [
    Teaching(1, "to_q, to_v", steps=500),  # the student report's way
    Teaching(1, "to_q, to_v"),
    Teaching(1),
    Teaching(1, captions=True),
    Teaching(1, captions=True, steps=100),
    Teaching(1, captions=True, prior=OTHER_CARS, steps=100),
    Teaching(4),
    Teaching(4, captions=True, steps=200),
]
PRIOR_COUNT, WORD_SEEDS, OTHERS = 16, (0, 1, 2), 9


def car_of(label: str, place="grass", pose="parked") -> Scene:
    return Scene.sample(CARS[label], subject="car", colour="yellow", pose=pose, place=place)


def scenes_to_learn(label: str, count: int) -> list[Scene]:
    """Return the scenes to learn from: first the car as it is, then other views."""
    car = car_of(label)
    return [car] + [seen_again(car, 1_800_000 + k, place=p, pose=q) for k, (p, q) in enumerate(VIEWS[1:count])]


@lru_cache(maxsize=1)
def lineups(label: str) -> dict[str, Lineup]:
    """Return a line-up for each place: first the car itself, then other yellow cars."""
    others = [Scene.sample(1_700_000 + k, subject="car", colour="yellow", pose="driving") for k in range(OTHERS)]
    cars = [car_of(label), *others]
    return {place: Lineup([scene.edit(place=place, pose="driving") for scene in cars]) for place in PLACE_PHRASES}


def check_pictures(reader, label: str, place: str, pictures: list[Image.Image]) -> list[dict]:
    """Measure how far each picture is from this car, whether the line-up picks it, and whether the text is right."""
    found = []
    for picture, seen in zip(pictures, attributes_of(reader, pictures), strict=True):
        distances = lineups(label)[place].distances(picture)
        found.append({"distance": rounded(distances[0]), "picked": distances[0] == min(distances)})
        found[-1] |= {"text": (seen["subject"], seen["pose"], seen["place"]) == ("car", "driving", place)}
        found[-1] |= {"yellow": seen["colour"] == "yellow"}
    return found


def mean_of(rows: list[dict]) -> dict:
    return {key: rounded(np.mean([row[key] for row in rows]), 3) for key in rows[0]} | {"n": len(rows)}


def look_at_words(pipe, reader, label: str, subject: str) -> tuple[dict, list[Image.Image]]:
    """Draw the word in four places, and other cars, which should not change. Pictures of one seed go on the sheet."""
    found, row = {}, []
    for place, phrase in PLACE_PHRASES.items():
        drawn = imagic.sample_text(pipe, f"{subject} driving {phrase}", WORD_SEEDS, steps=WORD_SAMPLING)
        found[place] = mean_of(check_pictures(reader, label, place, drawn))
        row.append(drawn[0])
    red = imagic.sample_text(pipe, "a photo of a red car", WORD_SEEDS, steps=WORD_SAMPLING)
    some = imagic.sample_text(pipe, CLASS, WORD_SEEDS, steps=WORD_SAMPLING)
    found["red car is red"] = rounded(np.mean([r["colour"] == "red" for r in attributes_of(reader, red)]), 3)
    found["a car is yellow"] = rounded(np.mean([r["colour"] == "yellow" for r in attributes_of(reader, some)]), 3)
    return found, [*row, red[0], some[0]]


def best_possible(pipe, reader, label: str) -> tuple[dict, list[Image.Image]]:
    """Measure the upper limit, from drawings of other views of the car itself, after the VAE."""
    found, row = {}, []
    for place in PLACE_PHRASES:
        scenes = [seen_again(car_of(label), 1_900_000 + k, place=place, pose="driving") for k in WORD_SEEDS]
        images = [imagic.load_image(scene.render(), pipe) for scene in scenes]
        drawn = [to_picture(imagic.decode_latents(pipe, imagic.encode_image(pipe, x))) for x in images]
        found[place] = mean_of(check_pictures(reader, label, place, drawn))
        row.append(scenes[0].render())
    return found, row


def teach(pipe, reader, label: str, teaching: Teaching) -> tuple[dict, list[Image.Image]]:
    """Teach the word in this way, and measure the pictures."""
    began = time.process_time()
    prior = class_pictures(pipe, teaching.prior, PRIOR_COUNT, seed=5000, steps=15) if teaching.prior else None
    scenes = scenes_to_learn(label, teaching.pictures)
    images = [imagic.load_image(scene.render(), pipe) for scene in scenes]
    texts = [f"{WORD} {s.pose} {PLACE_PHRASES[s.place]}" if teaching.captions else WORD for s in scenes]
    settings = {"lora": imagic.LoRA(targets=TARGETS[teaching.layers]), "steps": teaching.steps}
    settings["run"] = imagic.Run(probe_every=teaching.steps // 2)
    generator = torch.Generator().manual_seed(teaching.pictures)
    tuned, history = personalize(pipe, images, texts, prior=prior, generator=generator, **settings)
    found = {"seconds": rounded(time.process_time() - began, 1)}
    found |= {"probe": [rounded(history.probe_loss[0]), rounded(history.probe_loss[-1])]}
    more, row = look_at_words(tuned, reader, label, WORD)
    return found | more, row


def file_of(label: str, name: str) -> str:
    return f"word-{label}-{name}".replace(" / ", "-")


def measure_car(results: Results, pipe, reader, label: str) -> None:
    """Measure all runs of one car that are still missing."""
    makers = {
        "limit": lambda: best_possible(pipe, reader, label),
        "loaded, a yellow car": lambda: look_at_words(pipe, reader, label, "a photo of a yellow car"),
        "loaded, sks car": lambda: look_at_words(pipe, reader, label, WORD),
    }
    for teaching in TEACHINGS:
        makers[" / ".join(teaching.cells())] = partial(teach, pipe, reader, label, teaching)
    for name, make in makers.items():
        if f"{label} / {name}" not in results.found["words"]:
            found, row = make()
            strip(file_of(label, name), row)
            results.keep("words", f"{label} / {name}", found)


# --- the sheet and the table

TABLE_CELLS = {
    "limit": ["", "the car itself, drawn", "–", "–", "–", "–"],
    "loaded, a yellow car": ["", "loaded model, ‘yellow car’", "–", "–", "–", "–"],
    "loaded, sks car": ["", "loaded model, ‘sks car’", "–", "–", "–", "–"],
} | {" / ".join(one.cells()): [letter, *one.cells()] for letter, one in zip("RABCDEFG", TEACHINGS, strict=True)}
SHEET_COLUMNS = ("beach", "grass", "red car")
DRAWN_ROWS = tuple(name for name in TABLE_CELLS if name != "loaded, sks car")


def measured_cars(found: dict) -> list[str]:
    """Return the cars for which every row of the table is there."""
    return [car for car in CARS if all(f"{car} / {name}" in found for name in TABLE_CELLS)]


def word_sheet(found: dict) -> None:
    """Draw, for each row of the table, the tiles of two cars: on the beach, on grass, and a red car."""
    rows = []
    for name in DRAWN_ROWS:
        for car in measured_cars(found)[:2]:
            of_car = dict(zip([*PLACE_PHRASES, "red car"], strips(file_of(car, name)), strict=False))
            rows.append([of_car.get(column, car_of(car).render()) for column in SHEET_COLUMNS])
    write_tiles("new-word.jpg", [left + right for left, right in zip(rows[::2], rows[1::2], strict=True)])


def runs_of(found: dict) -> dict[str, list[dict]]:
    """Return the results of each row of the table, one for each car."""
    return {name: [found[f"{car} / {name}"] for car in measured_cars(found)] for name in TABLE_CELLS}


def true_of(runs: list[dict], key: str, places: Iterable[str] = tuple(PLACE_PHRASES)) -> list[int]:
    """Count, for each car, the pictures whose `key` is true."""
    if key in runs[0]:
        return [round(run[key] * len(WORD_SEEDS)) for run in runs]
    return [sum(round(run[place][key] * run[place]["n"]) for place in places) for run in runs]


def words_table(found: dict) -> str:
    rows, cars = [], measured_cars(found)
    drawn = len(WORD_SEEDS) * len(PLACE_PHRASES) * len(cars)
    for name, runs in runs_of(found).items():
        distances = [np.mean([run[place]["distance"] for place in PLACE_PHRASES]) for run in runs]
        rows.append([*TABLE_CELLS[name], ", ".join(f"{distance:.3f}" for distance in distances)])
        rows[-1] += [count_with_parts(true_of(runs, key), drawn) for key in ("picked", "text")]
        for key in ("red car is red", "a car is yellow"):
            rows[-1].append(
                count_with_parts(true_of(runs, key), len(WORD_SEEDS) * len(cars)) if key in runs[0] else "–"
            )
    header = ["", "pictures", "layers", "texts", "prior", "steps", "distance", "picked", "text holds"]
    header += ["‘a red car’ is red", "‘a car’ is yellow"]
    note = (
        f"{len(TEACHINGS) * len(cars)} trainings: each line is of {len(cars)} cars, each taught once; in parentheses "
    )
    note += f"car by car. {len(WORD_SEEDS)} seeds, the same for all, in each of {len(PLACE_PHRASES)} places; "
    note += f"a line-up of {OTHERS + 1} yellow cars.\n\n"
    return note + markdown_table(header, rows)


R, A, B, C, D, E, F, G = TEACHINGS
CHANGES_OF_TEACHING = {  # (new, old) rows that differ in this
    ("500 steps", "300, on to_q and to_v"): (A, R),
    ("convolutions and all of attention", "to_q and to_v"): (A, B),
    ("captions", "the word alone"): (B, C),
    ("100 steps", "300"): (C, D),
    ("a prior of eight texts", "none"): (D, E),
    ("four pictures", "one"): (B, F),
}


def word_verdicts(found: dict) -> list[str]:
    """Return a sentence on each change, with its counts, car by car."""
    runs, lines = runs_of(found), []
    for words, teachings in CHANGES_OF_TEACHING.items():
        old, new = (runs[" / ".join(one.cells())] for one in teachings)
        parts = []
        for key, what in (("picked", "picked"), ("text", "text holds"), ("red car is red", "a red car is red")):
            of_cars = zip(true_of(old, key), true_of(new, key), strict=True)
            parts.append(f"{what} {' and '.join(f'{before} → {after}' for before, after in of_cars)}")
        lines.append(f"{' instead of '.join(words)}: {'; '.join(parts)}.")
    return lines


def word_tables(found: dict) -> dict:
    return {"words": words_table(found["words"]), "verdicts": word_verdicts(found["words"])}


def main() -> None:
    options = command_line(__doc__)
    options.add_argument("--cars", type=int, choices=range(1, len(CARS) + 1), default=MEASURED, help="how many cars")
    cars = list(CARS)[: options.parse_args().cars]
    results = Results(WORD_RESULTS, "words")
    pipe, reader = imagic.load_pipeline("tiny"), load_reader()
    for label in cars:
        measure_car(results, pipe, reader, label)
    word_sheet(results.found["words"])
    made = results.found["tables"] = word_tables(results.found)
    results.write()
    verdict = "\n".join(f"- {line}" for line in made["verdicts"])
    put(README, "new-word", "\n".join([made["words"], verdict]))


if __name__ == "__main__":
    main()
