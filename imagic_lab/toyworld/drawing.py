"""Draw a scene as a picture with Pillow, four times too large and then reduced.

The canvas is 128 wide and high, and y points down. Each figure has its own frame, in which it faces right and stands on
the ground at (0, 0). `Pen` scales, mirrors, rotates and moves that frame onto the canvas.
"""

from __future__ import annotations

import colorsys
import copy
import math
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from imagic_lab.toyworld.world import RGB, SceneFacts

SIZE = 128
OVERSAMPLING = 4

# Some parts are larger than in the first sketches, by these factors, because the VAE loses thin lines.
FIGURE, BIG_HEAD, EYE, LEG, COLLAR, SPOT, STAR = 1.10, 1.18, 1.45, 1.25, 1.75, 1.4, 1.3

Colour = tuple[int, int, int]
Point = tuple[float, float]
CIRCLE = [(math.cos(2 * math.pi * k / 36), math.sin(2 * math.pi * k / 36)) for k in range(36)]


def mix(a: Colour, b: Colour, share: float) -> Colour:
    return tuple(round(u + (v - u) * share) for u, v in zip(a, b, strict=True))


class Pen:
    """Draws in a frame that is scaled, mirrored, rotated and moved onto the canvas."""

    def __init__(self, image: Image.Image, at: Point = (0, 0), scale=1.0, flip=False, angle=0.0):
        self.draw = ImageDraw.Draw(image)
        self.at, self.scale, self.sign = at, scale, -1 if flip else 1
        self.cos, self.sin = math.cos(angle), math.sin(angle)

    def magnified(self, factor: float, around: Point) -> Pen:
        """Return a pen for the same frame, enlarged by `factor` around one of its points."""
        pen = copy.copy(self)
        x, y = around
        pen.at = tuple(c / OVERSAMPLING for c in self._to_canvas([(x - factor * x, y - factor * y)])[0])
        pen.scale = self.scale * factor
        return pen

    def _to_canvas(self, points) -> list[Point]:
        across, down = OVERSAMPLING * self.sign * self.scale, OVERSAMPLING * self.scale
        x0, y0 = OVERSAMPLING * self.at[0], OVERSAMPLING * self.at[1]
        c, s = self.cos, self.sin
        return [(x0 + across * (c * x - s * y), y0 + down * (s * x + c * y)) for x, y in points]

    def polygon(self, points, fill: Colour) -> None:
        self.draw.polygon(self._to_canvas(points), fill=fill)

    def ellipse(self, x, y, rx, ry, fill: Colour, angle=0.0) -> None:
        c, s = math.cos(angle), math.sin(angle)
        self.polygon([(x + c * rx * u - s * ry * v, y + s * rx * u + c * ry * v) for u, v in CIRCLE], fill)

    def line(self, points, width: float, fill: Colour, end_width: float | None = None) -> None:
        """Draw a limb, a thick line with round ends. `end_width` makes it thinner towards its last point."""
        end_width = width if end_width is None else end_width
        radii = [width / 2 + (end_width - width) / 2 * k / (len(points) - 1) for k in range(len(points))]
        joints = list(zip(points, radii, strict=True))
        for (x, y), r in joints:
            self.ellipse(x, y, r, r, fill)
        for ((x0, y0), r0), ((x1, y1), r1) in pairwise(joints):
            length = math.hypot(x1 - x0, y1 - y0) or 1.0
            nx, ny = (y0 - y1) / length, (x1 - x0) / length
            side = [(x0 + nx * r0, y0 + ny * r0), (x1 + nx * r1, y1 + ny * r1)]
            back = [(x1 - nx * r1, y1 - ny * r1), (x0 - nx * r0, y0 - ny * r0)]
            self.polygon(side + back, fill)

    def blob(self, points, fill: Colour) -> None:
        """Draw a smooth closed shape through the points (Catmull-Rom spline)."""
        p = np.array(points, dtype=float)
        a, b, c, d = (np.roll(p, k, 0)[:, None, :] for k in (1, 0, -1, -2))
        t = np.linspace(0, 1, 8, endpoint=False)[None, :, None]
        curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        self.polygon(curve.reshape(-1, 2).tolist(), fill)


def smooth_line(points: list[Point], steps: int = 5) -> list[Point]:
    """Return a quadratic Bezier curve from the first point to the last, for a tail."""
    times = [k / steps for k in range(steps + 1)]
    return [
        tuple((1 - t) ** 2 * a + 2 * t * (1 - t) * b + t * t * c for a, b, c in zip(*points, strict=True))
        for t in times
    ]


# ------------------------------------------------------------------------------------------ places
SKIES = {  # top and bottom of the sky, far and near ground, hills
    "grass": ((104, 178, 244), (196, 228, 252), (116, 186, 84), (74, 150, 62), (140, 196, 128)),
    "beach": ((86, 190, 232), (190, 234, 246), (246, 222, 166), (228, 194, 128), (84, 160, 200)),
    "snow": ((160, 184, 216), (222, 232, 246), (250, 252, 255), (222, 230, 242), (206, 218, 236)),
    "night": ((14, 18, 56), (44, 54, 118), (44, 80, 84), (28, 56, 62), (34, 50, 88)),
}


def vertical_gradient(image: Image.Image, y0: float, y1: float, top: Colour, bottom: Colour) -> None:
    """Fill the rows from y0 to y1, in canvas units."""
    rows = max(1, round(OVERSAMPLING * (y1 - y0)))
    ramp = np.linspace(0, 1, rows)[:, None, None]
    column = (np.array(top) * (1 - ramp) + np.array(bottom) * ramp).round().astype(np.uint8)
    strip = Image.fromarray(column).resize((image.width, rows), Image.NEAREST)
    image.paste(strip, (0, round(OVERSAMPLING * y0)))


def draw_place(image: Image.Image, scene: SceneFacts) -> None:
    me, pen = scene.identity, Pen(image)
    top, low, far, near, hill = SKIES[scene.place]
    horizon = horizon_of(scene)
    shift = 0.22 * (me.sky - 0.5)
    top = mix(top, (255, 255, 255) if shift > 0 else (60, 90, 160), abs(shift))
    vertical_gradient(image, 0, horizon, top, low)
    draw_lights(pen, scene)
    if scene.place != "night":
        draw_clouds(pen, scene)
    if scene.place == "beach":
        vertical_gradient(image, horizon - 11, horizon, (38, 128, 190), (92, 186, 216))
    else:
        for k in (0, 1):
            x, width, height = me.hills[3 * k : 3 * k + 3]
            fill = mix(hill, far, 0.35 * k)
            pen.ellipse(128 * x, horizon + 4, 30 + 26 * width, 10 + 14 * height, fill)
    vertical_gradient(image, horizon, SIZE, far, near)
    if scene.place == "snow":  # behind the figure, so that they don't hide its face
        draw_flakes(pen, scene)


def horizon_of(scene: SceneFacts) -> float:
    return 70 + 10 * scene.identity.horizon


def draw_lights(pen: Pen, scene: SceneFacts) -> None:
    """Draw the sun, or moon and stars, or a pale sun."""
    me = scene.identity
    x, y = 14 + 100 * me.light[0], 13 + 13 * me.light[1]
    if scene.place == "night":
        for k in range(0, 14, 2):
            u, v = me.sparks[k : k + 2]
            pen.ellipse(6 + 116 * u, 5 + 52 * v, 1.5 * STAR, 1.5 * STAR, (236, 238, 255))
        pen.ellipse(x, y, 9.5, 9.5, (252, 244, 208))
        pen.ellipse(x + 3, y - 1.5, 2.2, 2.2, (230, 218, 176))
        pen.ellipse(x - 3, y + 3, 1.6, 1.6, (230, 218, 176))
    elif scene.place == "snow":
        pen.ellipse(x, y, 8, 8, (252, 246, 222))
    else:
        pen.ellipse(x, y, 12, 12, mix(SKIES[scene.place][1], (255, 240, 150), 0.55))
        pen.ellipse(x, y, 8.5, 8.5, (255, 220, 74))


def draw_clouds(pen: Pen, scene: SceneFacts) -> None:
    for k in range(2):
        x, y, width = scene.identity.clouds[3 * k : 3 * k + 3]
        if width < 0.35:  # often there is only one cloud, or none
            continue
        x, y, w = 128 * x, 14 + 26 * y, 9 + 9 * width
        for dx, dy, r in ((-0.7, 1, 0.5), (0, 0, 0.72), (0.75, 0.8, 0.55)):
            pen.ellipse(x + dx * w, y + 3 * dy, w * r, w * r * 0.62, (250, 252, 255))


def draw_flakes(pen: Pen, scene: SceneFacts) -> None:
    for k in range(0, 16, 2):
        u, v = scene.identity.sparks[k : k + 2]
        pen.ellipse(4 + 120 * u, 4 + 66 * v, 1.8 * STAR, 1.8 * STAR, (255, 255, 255))


# ----------------------------------------------------------------------------------------- subjects
class Coat:
    """The colours of one figure, from its labelled colour and the shade in its identity."""

    def __init__(self, scene: SceneFacts):
        h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in RGB[scene.colour]))
        jitter = 2 * scene.identity.shade - 1
        v = min(1.0, v * (1 + 0.10 * jitter)) if scene.colour != "black" else v * (1 + 0.25 * jitter)
        base = tuple(round(255 * c) for c in colorsys.hsv_to_rgb(h, s, v))
        if scene.place == "night":  # moonlight makes it a little darker and bluer, but never invisible
            base = mix(base, (58, 70, 128), 0.10)
        self.base = base
        self.dark = mix(base, (0, 0, 0), 0.24)
        self.deep = mix(base, (0, 0, 0), 0.42)
        self.light = mix(base, (255, 250, 240), 0.5)
        if scene.colour == "white":
            self.light = mix(base, (120, 110, 100), 0.16)
        self.mark = self.light if scene.colour == "black" else self.deep
        self.ink = (24, 22, 26) if scene.colour != "black" else (10, 10, 12)
        wheel = ((214, 40, 60), (40, 120, 220), (250, 200, 40), (60, 170, 90), (160, 80, 190))
        self.collar = wheel[int(scene.identity.collar_colour * len(wheel))]


# The places of an animal's parts in each pose: hip, chest and head, each leg as start, knee and paw, and the root, bend
# and tip of the tail.
ANIMAL = {
    "standing": {
        "hip": (-15, -25), "chest": (13, -27), "head": (24, -43),
        "far": [((-17, -22), (-20, -11), (-19, -3)), ((16, -22), (19, -12), (18, -3))],
        "near": [((-12, -22), (-13, -11), (-11, -3)), ((11, -22), (11, -12), (11, -3))],
        "tail": ((-24, -29), (-35, -31), (-38, -46)),
    },
    "sitting": {
        "hip": (-9, -13), "chest": (6, -33), "head": (12, -52),
        "far": [((10, -30), (15, -16), (15, -3))],
        "near": [((6, -28), (9, -14), (9, -3)), ((-9, -8), (-2, -4), (3, -3))],
        "tail": ((-20, -7), (-33, -4), (-38, -16)),
    },
    "lying down": {
        "hip": (-17, -11), "chest": (11, -12), "head": (25, -25),
        "far": [((14, -8), (24, -5), (34, -4))],
        "near": [((10, -7), (20, -3), (31, -3)), ((-18, -6), (-12, -3), (-6, -3))],
        "tail": ((-26, -9), (-38, -3), (-46, -9)),
    },
    "jumping": {
        "hip": (-17, -25), "chest": (13, -27), "head": (27, -40),
        "far": [((-19, -24), (-30, -21), (-40, -14)), ((15, -24), (27, -22), (37, -25))],
        "near": [((-17, -22), (-28, -15), (-37, -6)), ((12, -22), (25, -15), (35, -17))],
        "tail": ((-26, -28), (-38, -34), (-42, -47)),
    },
}  # fmt: skip


def draw_animal(pen: Pen, scene: SceneFacts, coat: Coat) -> None:
    me, parts = scene.identity, ANIMAL[scene.pose]
    thin = {"dog": 1.0, "cat": 0.88, "rabbit": 1.05}[scene.subject]
    draw_tail(pen, scene, coat, parts["tail"])
    paw = coat.light if me.socks > 0.6 else None
    for leg in parts["far"]:
        draw_leg(pen, leg, 6.2 * thin * LEG, coat.dark, paw and mix(paw, coat.dark, 0.4))
    (hx, hy), (cx, cy) = parts["hip"], parts["chest"]
    if scene.pose == "sitting":
        pen.line([(hx, hy - 2), (cx, cy)], 24 * thin, coat.base, 19 * thin)
        pen.ellipse(hx - 1, hy, 14 * thin, 12.5, coat.base)
    else:
        pen.line([(hx, hy), (cx, cy)], 20 * thin, coat.base, 21 * thin)
    if me.belly > 0.5:
        draw_belly(pen, scene, coat, parts)
    draw_spots(pen, scene, coat, parts)
    for leg in parts["near"]:
        draw_leg(pen, leg, 6.8 * thin * LEG, coat.base if scene.pose != "sitting" else coat.dark, paw)
    neck = parts["head"]
    pen.line([(cx + 1, cy - 3), (neck[0] - 3, neck[1] + 4)], 13 * thin, coat.base)
    if me.collar > 0.45:
        draw_collar(pen, coat, (cx, cy), neck, thin)
    head = {"dog": draw_dog_head, "cat": draw_cat_head, "rabbit": draw_rabbit_head}[scene.subject]
    head(pen.magnified(BIG_HEAD, neck), scene, coat, *neck)


def draw_leg(pen: Pen, leg, width: float, fill: Colour, paw: Colour | None) -> None:
    pen.line(list(leg), width, fill, width * 0.86)
    x, y = leg[-1]
    pen.ellipse(x + 1.2, y + 0.3, width * 0.62, width * 0.46, paw or fill)


def draw_tail(pen: Pen, scene: SceneFacts, coat: Coat, tail) -> None:
    (x0, y0), (x1, y1), (x2, y2) = tail
    me = scene.identity
    if scene.subject == "rabbit":
        pen.ellipse(x0 - 1, y0 + 1, 5.5 + me.tail, 5.5 + me.tail, coat.light)
        return
    reach = 0.75 + 0.35 * me.tail
    x1, x2 = x0 + (x1 - x0) * reach, x0 + (x2 - x0) * reach
    y2 = y0 + (y2 - y0) * reach
    width = {"dog": (6.5, 3.5), "cat": (4.6, 4.0)}[scene.subject]
    pen.line(smooth_line([(x0 + 3, y0 + 1), (x1, y1), (x2, y2)]), width[0] * LEG, coat.dark, width[1] * LEG)


def draw_belly(pen: Pen, scene: SceneFacts, coat: Coat, parts) -> None:
    (hx, hy), (cx, cy) = parts["hip"], parts["chest"]
    if scene.pose == "sitting":
        pen.ellipse(cx + 4, cy + 5, 5, 10, coat.light, angle=-0.35)
    else:
        pen.ellipse((hx + cx) / 2 + 2, (hy + cy) / 2 + 6, 12, 4.2, coat.light)


def draw_spots(pen: Pen, scene: SceneFacts, coat: Coat, parts) -> None:
    me = scene.identity
    if me.spots[0] < 0.5:
        return
    (hx, hy), (cx, cy) = parts["hip"], parts["chest"]
    for k in range(3):
        along, across = me.spots[1 + 2 * k], me.spots[2 + 2 * k]
        x = hx + (cx - hx) * (0.15 + 0.33 * (k + 0.6 * along))
        y = hy + (cy - hy) * (0.15 + 0.33 * (k + 0.6 * along)) - 5 + 6 * across
        pen.ellipse(x, y, (3.4 + 1.2 * across) * SPOT, (2.9 + along) * SPOT, coat.mark)


def draw_collar(pen: Pen, coat: Coat, chest, head, thin: float) -> None:
    near = 0.58 - 0.75 * (BIG_HEAD - 1)  # of the way from chest to head; a large head leaves less neck
    x, y = (1 - near) * chest[0] + near * head[0] - 1, (1 - near) * chest[1] + near * head[1] + 1
    slope = math.atan2(head[1] - chest[1], head[0] - chest[0]) + math.pi / 2
    half = 6.2 * thin * (1 + 0.3 * (COLLAR - 1))
    dx, dy = half * math.cos(slope), half * math.sin(slope)
    pen.line([(x - dx, y - dy), (x + dx, y + dy)], 3.6 * COLLAR, coat.collar)


def draw_eye(pen: Pen, coat: Coat, x, y, radius=2.3, white: Colour = (255, 255, 255)) -> None:
    radius *= EYE / BIG_HEAD
    pen.ellipse(x, y, radius + 0.9, radius + 0.9, white)
    pen.ellipse(x + 0.4, y, radius * 0.78, radius * 0.86, (18, 18, 22))


def draw_dog_head(pen: Pen, scene: SceneFacts, coat: Coat, x, y) -> None:
    me = scene.identity
    pen.ellipse(x, y, 10.5, 10, coat.base)
    pen.ellipse(x + 9, y + 4, 8, 5.4, coat.light)
    pen.ellipse(x + 15.5, y + 2, 2.9, 2.5, (26, 22, 24))
    if me.eye_patch > 0.6:
        pen.ellipse(x + 3.6, y - 2, 5.6, 5.2, coat.mark)
    draw_eye(pen, coat, x + 4, y - 2.2)
    pen.ellipse(x - 6, y + 2, 4.2, 8 + 4 * me.ears, coat.deep, angle=0.28)


def draw_cat_head(pen: Pen, scene: SceneFacts, coat: Coat, x, y) -> None:
    me = scene.identity
    tall = 8 + 4 * me.ears
    for side in (-1, 1):
        ear = [(x + side * 10, y - 3), (x + side * 9, y - 7 - tall), (x + side * 1.5, y - 8)]
        pen.polygon(ear, coat.dark)
        mid = (x + side * 7, y - 7)
        pen.polygon([(mid[0] + 0.5 * (u - mid[0]), mid[1] + 0.5 * (v - mid[1])) for u, v in ear], (240, 168, 170))
    pen.ellipse(x, y, 11, 9.8, coat.base)
    if me.eye_patch > 0.6:
        pen.ellipse(x + 4.6, y - 1, 4.8, 4.8, coat.mark)
    for side in (-1, 1):
        draw_eye(pen, coat, x + side * 4.6, y - 1, 2.1, (176, 226, 120))
    pen.ellipse(x, y + 4.6, 5, 3.2, coat.light)
    pen.ellipse(x, y + 3.4, 1.8, 1.4, (226, 110, 120))


def draw_rabbit_head(pen: Pen, scene: SceneFacts, coat: Coat, x, y) -> None:
    me = scene.identity
    long = 11 + 3.5 * me.ears
    for dx, lean, fill in ((-2, -0.42, coat.dark), (3, -0.08, coat.base)):
        ex, ey = x + dx + long * math.sin(lean), y - 6 - long * math.cos(lean) + 2
        pen.ellipse(ex, ey, 4.0, long, fill, angle=lean)
        pen.ellipse(ex, ey, 1.9, long * 0.68, (242, 176, 180), angle=lean)
    pen.ellipse(x + 1, y, 10, 9.2, coat.base)
    pen.ellipse(x + 6.6, y + 3.4, 5.2, 4, coat.light)
    pen.ellipse(x + 10.6, y + 1.2, 1.9, 1.6, (226, 110, 120))
    if me.eye_patch > 0.6:
        pen.ellipse(x + 3.4, y - 2, 5, 4.8, coat.mark)
    draw_eye(pen, coat, x + 3.6, y - 2)


def draw_bird(pen: Pen, scene: SceneFacts, coat: Coat) -> None:
    me, flying = scene.identity, scene.pose == "flying"
    y = -18 if not flying else -24
    legs, beak = (226, 140, 50), (250, 166, 40)
    if scene.colour in ("orange", "yellow"):
        beak = (222, 92, 40)
    if not flying:
        for x in (-3, 4):
            pen.line([(x, y + 9), (x + 1, -1.5)], 2.4 * LEG, legs)
            pen.line([(x, -1.3), (x + 5.5, -1.3)], 2.2 * LEG, legs)
    reach = 17 + 6 * me.tail
    pen.polygon([(-10, y - 2), (-10 - reach, y - 7), (-9 - reach, y + 1), (-12, y + 6)], coat.deep)
    if flying:  # the far wing
        pen.blob([(-7, y - 4), (-2, y - 22), (10, y - 36), (12, y - 20), (8, y - 4)], coat.deep)
    pen.ellipse(0, y, 16.5, 11.5, coat.base, angle=-0.18)
    if me.belly > 0.5:
        pen.ellipse(4, y + 5, 9.5, 5.2, coat.light, angle=-0.18)
    head = pen.magnified(BIG_HEAD, (12, y - 9))
    head.ellipse(13, y - 11, 9, 8.6, coat.base)
    head.polygon([(20, y - 14), (30 + 2 * me.ears, y - 10), (20, y - 7.5)], beak)
    if me.eye_patch > 0.6:
        head.ellipse(15, y - 12.6, 4.8, 4.4, coat.mark)
    draw_eye(head, coat, x=15.4, y=y - 12.6, radius=2.1)
    if me.collar > 0.45:
        pen.line([(6, y - 8), (14, y - 2.5)], 3.2 * COLLAR, coat.collar)
    if flying:
        wing = [(6, y), (-4, y - 16), (-19, y - 34), (-20, y - 18), (-12, y - 1)]
        pen.blob(wing, coat.dark)
    else:
        pen.blob([(7, y - 4), (-6, y - 8), (-19, y + 1), (-10, y + 6), (3, y + 5)], coat.dark)
    if me.spots[0] >= 0.5:
        at = ((-13, y - 22), (-10, y - 13), (-6, y - 5)) if flying else ((-12, y), (-6, y - 1), (0, y))
        for (x, v), r in zip(at, me.spots[1:4], strict=True):
            pen.ellipse(x, v, (2.2 + r) * SPOT, (1.8 + r) * SPOT, coat.light)


def draw_car(pen: Pen, scene: SceneFacts, coat: Coat) -> None:
    me, driving = scene.identity, scene.pose == "driving"
    if driving:
        draw_speed(pen, scene)
    roof = 33 + 5 * me.ears
    pen.blob([(-22, -20), (-14, -roof), (10, -roof), (22, -20)], coat.base)
    glass = (196, 232, 250) if scene.place != "night" else (250, 232, 150)
    pen.polygon([(-17, -21), (-11.5, -roof + 2), (-1.5, -roof + 1), (-1.5, -21)], glass)
    pen.polygon([(1.5, -21), (1.5, -roof + 1), (8.5, -roof + 2), (16, -21)], glass)
    body = [(-37, -18), (-34, -22), (-20, -22), (24, -22), (36, -18), (39, -12), (37, -6), (-36, -6), (-38, -10)]
    pen.polygon(body, coat.base)
    pen.ellipse(-35, -13, 4, 8, coat.base)
    pen.ellipse(35.5, -12, 4.4, 7, coat.base)
    pen.line([(-36, -7), (37, -7)], 4, coat.dark)
    if me.belly > 0.5:
        pen.line([(-36, -12.5), (37, -12.5)], 3.4 * LEG, coat.light)
    if me.collar > 0.45:
        pen.ellipse(0, -14.5, 4.6 * SPOT, 4.6 * SPOT, (255, 255, 255))
        pen.ellipse(0, -14.5, 3.3 * SPOT, 3.3 * SPOT, coat.collar)
    if me.spots[0] >= 0.5:
        pen.line([(-12, -roof - 1.8), (8, -roof - 1.8)], 2.6 * SPOT, coat.deep)
    lamp = (255, 240, 130) if driving else (250, 250, 240)
    pen.ellipse(37, -14.5, 2.8, 3.2, lamp)
    if driving:
        pen.polygon([(40, -16), (58, -21), (58, -6), (40, -12)], mix(lamp, SKIES[scene.place][3], 0.35))
    pen.ellipse(-37.5, -14, 1.9, 2.8, (214, 40, 44))
    for x in (-20, 20):
        pen.ellipse(x, -6, 8.2, 8.2, (34, 34, 40))
        pen.ellipse(x, -6, 4.2, 4.2, (190, 194, 202))
        if driving:  # a turning wheel
            pen.line([(x - 3, -6), (x + 3, -6)], 1.6 * SPOT, (90, 94, 104))


def draw_speed(pen: Pen, scene: SceneFacts) -> None:
    """Draw streaks and dust behind a driving car."""
    streak = (250, 250, 252) if scene.place != "snow" else (150, 166, 194)
    for y, length in ((-24, 13), (-16, 20), (-8, 15)):
        pen.line([(-41, y), (-41 - length, y)], 2.6, streak, 1.2)
    for x, y, r in ((-40, -2.5, 3.6), (-47, -4.5, 4.4), (-55, -3, 3.2)):
        pen.ellipse(x, y, r, r, mix(streak, (170, 160, 150), 0.35))


def draw_scene(scene: SceneFacts, figure: bool = True) -> Image.Image:
    """Draw a scene as RGB, 128x128; with figure=False, only its place. The same scene gives the same bits."""
    me = scene.identity
    image = Image.new("RGB", (SIZE * OVERSAMPLING,) * 2)
    draw_place(image, scene)
    if not figure:
        return image.reduce(OVERSAMPLING)
    near = me.depth  # from 0, far (higher, smaller), to 1, near
    x, ground = 52 + 24 * me.x, horizon_of(scene) + 18 + 16 * near
    scale = (0.86 + 0.12 * near) * (0.94 + 0.16 * me.size) * FIGURE
    lift = {"jumping": 15.0, "flying": 24.0}.get(scene.pose, 0.0)
    angle = {"jumping": -0.30, "flying": -0.12}.get(scene.pose, 0.0)
    flip = me.flip < 0.5
    shade = mix(SKIES[scene.place][3], (20, 24, 40), 0.32)
    shrink = 0.72 if lift else 1.0
    Pen(image, (x, ground), scale, flip).ellipse(-2, 0, 32 * shrink, 5.2 * shrink, shade)
    pen = Pen(image, (x, ground - lift * scale), scale, flip, angle)
    {"bird": draw_bird, "car": draw_car}.get(scene.subject, draw_animal)(pen, scene, Coat(scene))
    return image.reduce(OVERSAMPLING)
