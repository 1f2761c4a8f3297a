"""Which pair is suggested and how it is measured, on pictures whose worth is known."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

import imagic_lib as imagic
from imagic_lab import measures
from imagic_lab.measures import by_clip, clip_scores
from imagic_lab.toyworld import Scene, edits
from imagic_lib import models
from imagic_lib.models import DATA
from imagic_lib.suggestion import SEEDS, TRIES, best_pair, suggest


class Drawn:
    """An edit whose pictures only say how they were drawn."""

    pipe = SimpleNamespace(unet=torch.nn.Linear(1, 1))  # so small a UNet is the embedded model's

    def pictures(self, etas, seeds, *, scale, noise, **sampling):
        assert sampling == TRIES[noise].sampling
        return [[(eta, scale, seed) for eta in etas] for seed in seeds]


def best_at(**worth):
    return lambda pictures: [worth.get(f"at_{int(100 * eta)}_{int(100 * scale)}", 0.1) for eta, scale, _ in pictures]


@pytest.mark.parametrize("noise", TRIES)
def test_the_pair_that_measures_best_is_suggested_with_all_scores(noise):
    found = suggest(Drawn(), best_at(at_100_50=0.9), noise=noise)
    assert (found.eta, found.scale) == (1.0, 0.5)
    pairs = [(eta, scale) for eta in TRIES[noise].etas["tiny"] for scale in TRIES[noise].scales]
    assert found.scores == pytest.approx({pair: 0.9 if pair == (1.0, 0.5) else 0.1 for pair in pairs})


def test_of_pairs_that_measure_nearly_as_well_the_one_that_keeps_most_of_the_input_is_suggested():
    assert best_pair({(1.0, 0.5): 0.8, (0.8, 0.75): 0.79, (1.0, 0.75): 0.78, (0.8, 1.0): 0.75}) == (0.8, 0.75)
    assert best_pair({(1.0, 0.5): 0.8, (0.8, 0.75): 0.77, (1.0, 0.75): 0.77}) == (0.8, 0.75)
    assert best_pair({(1.0, 0.5): 0.0, (0.8, 0.75): 0.01}) == (0.8, 0.75)


def test_the_score_is_the_mean_over_the_seeds():
    found = suggest(Drawn(), lambda pictures: [float(seed) for *_, seed in pictures], seeds=(0, 1, 5))
    assert set(found.scores.values()) == {2.0}


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("a brown dog jumping on the grass", {"pose": "jumping"}),
        ("a cat", {"subject": "cat"}),
        ("a red car", {"subject": "car", "colour": "red", "pose": "parked"}),
        ("by the sea", {"place": "beach"}),
        ("a unicorn", {}),
    ],
)
def test_the_goal_of_an_edit_has_the_text_s_words_and_everything_else_from_the_input(text, changed):
    before = Scene.sample(3, subject="dog", colour="brown", pose="sitting", place="grass")
    assert edits.goal(before, text) == before.edit(**changed)


def test_a_drawing_scores_by_how_much_it_keeps_and_a_wrong_or_spoiled_one_scores_0():
    before = Scene.sample(3, subject="dog", colour="brown", pose="sitting", place="grass")
    edit = SimpleNamespace(image=imagic.pictures.to_tensor(before.render()), text="a brown dog jumping on the grass")
    truth, stranger = before.edit(pose="jumping"), Scene.sample(15, **before.edit(pose="jumping").attributes)
    spoiled = truth.render()
    spoiled.paste(spoiled.crop((0, 0, 64, 128)), (64, 0))  # half of it twice
    done, other, undone, broken = edits.read_by(edit)([p.render() for p in (truth, stranger, before)] + [spoiled])
    assert done > 0.9 and 0 < other < 0.8 and undone == 0 and broken == 0


@pytest.fixture(scope="module")
def clip():
    folder = DATA / "tiny-clip"
    return CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)


def test_clip_knows_what_a_picture_shows(clip):
    drawn = {
        pose: Scene.sample(3, subject="dog", colour="brown", pose=pose, place="grass")
        for pose in ("sitting", "jumping")
    }
    scores = {pose: clip_scores(*clip, [s.render() for s in drawn.values()], drawn[pose].caption()) for pose in drawn}
    assert scores["sitting"][0] > scores["sitting"][1] and scores["jumping"][1] > scores["jumping"][0]


def test_clip_s_measure_is_the_way_to_the_text_times_the_nearness_to_the_input(clip, monkeypatch):
    before = Scene.sample(3, subject="dog", colour="brown", pose="sitting", place="grass")
    truth = before.edit(pose="jumping")
    free = [Scene.sample(seed, **truth.attributes).render() for seed in SEEDS]
    monkeypatch.setattr(measures, "sample_text", lambda *_, **__: free)
    edit = SimpleNamespace(pipe=None, text=truth.caption(), reconstruction=before.render())
    undone, done, noise = by_clip(edit, *clip)([before.render(), truth.render(), Image.effect_noise((128, 128), 200)])
    assert undone < 1e-4 and 0.1 < done < 1 and noise < 0.1


def test_an_edit_measures_the_same_pictures_that_it_then_draws(pipe, image, monkeypatch):
    edit = imagic.run_edit(pipe, image, "a brown dog jumping on the grass", embedding_steps=1, unet_steps=1)
    monkeypatch.setattr(models, "name_of", lambda pipe: "tiny")  # whose folder names the reader of drawings
    etas, scales = TRIES["own"].etas["tiny"], TRIES["own"].scales
    monkeypatch.setitem(TRIES, "own", TRIES["own"]._replace(sampling={"steps": 1}))
    measured = []
    monkeypatch.setattr(edits, "read_by", lambda e: lambda pictures: measured.extend(pictures) or [0.5] * len(pictures))
    found = edit.suggest(seeds=(4,))
    expected = [edit.pictures(etas, (4,), scale=scale, steps=1)[0] for scale in scales]
    assert [p.tobytes() for p in measured] == [p.tobytes() for row in expected for p in row]
    assert (found.eta, found.scale) == (etas[0], scales[-1])
