"""The line-up, whose cut-outs fit at the position of their own car, and what stays with a car in other pictures."""

import pytest
import torch
from PIL import Image

from imagic_lab.toyworld import Scene
from imagic_lab.toyworld.lineup import MARKS, Lineup, cutout, seen_again

CAR = Scene.sample(1_500_033, subject="car", colour="yellow", pose="driving", place="beach")
OTHERS = [Scene.sample(1_700_000 + k, subject="car", colour="yellow", pose="driving", place="beach") for k in range(3)]


@pytest.fixture(scope="module")
def lineup():
    return Lineup([CAR, *OTHERS])


@pytest.mark.parametrize("who", range(3))
def test_the_very_car_is_picked_wherever_it_stands(lineup, who):
    for seed in range(3):
        again = seen_again([CAR, *OTHERS][who], 1_900_000 + seed).render()
        distances = lineup.distances(again)
        assert distances.index(min(distances)) == who and min(distances) < 0.1


def test_a_mirrored_or_shifted_picture_has_the_same_distance(lineup):
    picture = CAR.render()
    first = lineup.distances(picture)[0]
    assert lineup.distances(picture.transpose(Image.FLIP_LEFT_RIGHT))[0] == pytest.approx(first, abs=0.02)
    moved = picture.transform(picture.size, Image.AFFINE, (1, 0, 4, 0, 1, 3))
    assert lineup.distances(moved)[0] == pytest.approx(first, abs=0.01)


def test_the_distance_is_the_rmse_inside_the_cutout(lineup):
    """A picture is pasted together here, and a plain loop sums over all places."""
    colours, cover = cutout(CAR, 1.0)
    height, width = cover.shape[1:]
    canvas = torch.full((3, 128, 128), 0.5)
    window = (slice(None), slice(40, 40 + height), slice(20, 20 + width))
    canvas[window] = torch.where(cover > 0.5, colours + 0.1, canvas[window])
    picture = Image.fromarray((canvas.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())
    alone = Lineup([CAR], scales=[1.0])
    pixels = (canvas.clamp(0, 1) * 255).round() / 255
    expected = min(
        (((pixels[:, y : y + height, x : x + width] - colours) ** 2 * cover).sum() / (3 * cover.sum())).sqrt().item()
        for y in range(35, 45)
        for x in range(15, 25)
    )
    assert alone.distances(picture)[0] == pytest.approx(expected, abs=1e-3)


def test_what_stays_and_what_changes():
    again = seen_again(CAR, 7, place="snow", pose="parked")
    assert all(getattr(again.identity, name) == getattr(CAR.identity, name) for name in MARKS)
    assert again.identity.hills != CAR.identity.hills and again.identity.x != CAR.identity.x
    assert again.attributes == CAR.attributes | {"place": "snow", "pose": "parked"}
    assert seen_again(CAR, 7) == seen_again(CAR, 7) != seen_again(CAR, 8)


def test_the_cutout_has_no_dust_no_light_and_no_background():
    _, driving = cutout(CAR, 1.0)
    _, parked = cutout(CAR.edit(pose="parked"), 1.0)
    assert torch.equal(driving, parked) and 0.5 < driving.mean() < 0.8
    with pytest.raises(ValueError, match="this is a dog"):
        cutout(Scene.sample(1, subject="dog"), 1.0)
