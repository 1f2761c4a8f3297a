"""Writes notebooks/11_evaluation.ipynb, not yet run: python draft.py"""
import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

cells = []
def md(text): cells.append(new_markdown_cell(text.strip("\n")))
def code(text, *tags): cells.append(new_code_cell(text.strip("\n"), metadata={"tags": list(tags)} if tags else {}))

md("""
# 11 · Evaluation: is it really better?

[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/)

A pretty picture proves nothing: somebody picked it. Here we measure Imagic and the methods that people use in its place,
on edits whose right answer is known. We also find out how far the usual measurements can be trusted where no answer is
known. **About three minutes of computing on a laptop** (2 CPU cores); a T4 is neither needed nor used.
""")
md("""
**Goals.** After this notebook you can

- compute a CLIP score and a distance to the input, and say what each of them does not see;
- read the paper's Fig. 9, and draw it for edits of your own;
- compare methods fairly: the same model, the same edits, a knob that was chosen on *other* edits, and intervals;
- vote blindly, and compare your eye with a measurement.

**Prerequisites:** [04 · Interpolation](04_interpolation.ipynb) for η and λ, [06 · Everything](06_everything.ipynb) for a
whole edit. **Download:** none.

| symbol | in code | what |
|---|---|---|
| $c$ | `clip_score` | the CLIP score: how well a picture fits a text, from -1 to 1 |
| $d$ | `rmse` | the distance between two pictures: root mean square over all pixels, from 0 to 1 |
| $\\eta$, $\\lambda$ | `eta`, `scale` | how far to the text; how much of the fine-tuning |
| success | `reader.success` | all four attributes are right, and the picture is drawn well |
| kept | `report.kept` | the share of unnamed details that are still the input's |
""")
code("", "colab")
code("""
import csv
import json
from statistics import fmean

import numpy as np
import torch
from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure
from PIL import Image as Pictures
from transformers import CLIPModel, CLIPProcessor

import imagic_lib as imagic
from imagic_lib.classroom import checks, plots
from imagic_lib.classroom.vote import Question, blind_vote
from imagic_lib.experiments import benchmark
from imagic_lib.experiments.methods import METHODS
from imagic_lib.pictures import rmse
from imagic_lib.suggestion import clip_scores
from imagic_lib.toyworld import load_reader, toyedit
from imagic_lib.toyworld.lineup import seen_again
from imagic_lib.toyworld.monsters import figure, two_heads

pipe, reader = imagic.load_pipeline("tiny"), load_reader()
experiments = imagic.DATA / "experiments"
stored = json.loads((experiments / "evaluation.json").read_text(encoding="utf-8"))
""")
md("""
## Two wishes, and how to measure them

An edit should do two things. The picture should show what the text says, and it should still be *this* picture. For a
photo there is no right answer to compare with, so people measure each wish in a roundabout way.

*Does it show the text?* CLIP (Radford et al. 2021, [arXiv 2103.00020](https://arxiv.org/abs/2103.00020)) turns a picture
and a text into vectors of one space. The **CLIP score** is the cosine of the angle between the two:

$$c(x, y) = \\frac{E_{img}(x) \\cdot E_{txt}(y)}{\\lVert E_{img}(x) \\rVert \\, \\lVert E_{txt}(y) \\rVert}$$

*Is it still this picture?* The paper takes LPIPS, a distance in the features of a network. We take the plain distance of
the pixels, `rmse`, because it needs no network that would have to be downloaded.

The embedded model has a CLIP of its own. Its text tower is the one that the UNet listens to.
""")
code("""
clip = CLIPModel.from_pretrained(imagic.DATA / "tiny-clip")
processor = CLIPProcessor.from_pretrained(imagic.DATA / "tiny-clip")


def clip_score(picture, text):
    inputs = processor(text=[text], images=[picture], return_tensors="pt", padding=True)
    with torch.no_grad():
        found = clip(**inputs)
    image, words = found.image_embeds[0], found.text_embeds[0]
    return float(image @ words / (image.norm() * words.norm()))
""")
md("""
Now five pictures for one text: the input; the right answer, which the toy world can draw; the right answer with a second
head; *another* animal of the same kind that does what the text says; and the input lightened a little.

**Predict.** Which of them has the highest CLIP score? Which one is nearest to the input? Write down your guess before you
run the next cell.
""")
code("""
before, change = toyedit("test")[0]
truth = before.edit(**change)
text, original = truth.caption(), before.render()
monster = Pictures.fromarray(two_heads(figure(truth), truth).round().astype("uint8"))
pictures = {
    "input": original,
    "right answer": truth.render(),
    "two heads": monster,
    "another one": seen_again(truth, 5).render(),
    "lighter": original.point(lambda v: min(255, v + 20)),
}
plots.show(
    plots.picture_grid([list(pictures.values())], list(pictures), title=f"“{text}”", inch=1.9),
    "Five pictures: the input, the right answer, the same with two heads, another animal, the input lightened.",
)
""")
code("""
lines = ["| picture | CLIP score | distance to the input | success |", "|---|---|---|---|"]
for name, picture in pictures.items():
    c, d = clip_score(picture, text), rmse(picture, original)
    lines.append(f"| {name} | {c:.2f} | {d:.3f} | {'yes' if reader.success(picture, truth) else 'no'} |")
display(Markdown("\\n".join(lines)))
""")
code("""
[theirs] = clip_scores(clip, processor, [monster], text)
assert abs(theirs - clip_score(monster, text)) < 1e-5
print(f"CLIP score of the right answer {clip_score(pictures['right answer'], text):.2f}, with two heads {theirs:.2f}")
""", "nbval-check-output")
md("""
**What to notice.** TODO
""")
md("""
## The paper's Fig. 9

The paper draws both numbers against η, as means over many inputs. [benchmarks/evaluation.py](../benchmarks/evaluation.py)
did the same for TODO edits of ToyEdit's test part, three seeds each. We add what the paper could not know: the share of
pictures that truly succeed.

**Predict.** Where on η do both wishes come true at once? Is the distance at η = 0 smaller with fine-tuning? Write down your
guess before you run the next cell.
""")
code("""
etas, edits = stored["etas"], list(stored["curves"].values())


def along_eta(way, what):
    \"\"\"(edits, η): the mean over the seeds.\"\"\"
    return np.array([[np.mean(seeds) for seeds in edit[way][what]] for edit in edits])


figure_9 = Figure(figsize=(12, 4), layout="constrained")
panels = {"clip": "CLIP score", "input": "distance to the input", "success": "share of successes"}
for axis, (what, label) in zip(figure_9.subplots(1, 3), panels.items(), strict=True):
    for way, colour in (("fine-tuned", "#0072B2"), ("not fine-tuned", "#D55E00")):
        values = along_eta(way, what)
        mean, error = values.mean(0), 1.96 * values.std(0, ddof=1) / len(values) ** 0.5
        axis.plot(etas, mean, color=colour, marker="o", label=way)
        axis.fill_between(etas, mean - error, mean + error, color=colour, alpha=0.2)
    axis.set_xlabel("η", fontsize=12)
    axis.set_ylabel(label, fontsize=12)
figure_9.axes[0].legend(fontsize=11)
plots.show(figure_9, "TODO")
""")
md("""
**What to notice.** TODO
""")
md("""
## How far can CLIP and distance be trusted?

On photos one would choose η by the two numbers alone. A common rule multiplies them: how far the CLIP score has come on
its way to that of the text, times how near the picture has stayed. Our library does the same where there is no reader
(`imagic_lib.suggestion.by_clip`).

We let this rule choose the η for each edit, on the first seed. Then we count how often *the other two seeds* succeed
there, and compare with the η that the truth would have chosen on the first seed.
""")
code("""
def chosen(edit, by):
    \"\"\"The index of the η that is best for the first seed.\"\"\"
    run = edit["fine-tuned"]
    c, d, s = (np.array(run[what])[:, 0] for what in ("clip", "input", "success"))
    start, goal = edit["clip of the input"], c[-1]
    done = np.clip((c - start) / max(goal - start, 1e-6), 0, 1)
    rule = done * (1 - d / max(d.max(), 1e-6))
    return int(np.argmax(rule if by == "CLIP and distance" else s - 1e-3 * d))


shares = {}
for by in ("CLIP and distance", "truth"):
    others = [np.mean(edit["fine-tuned"]["success"][chosen(edit, by)][1:]) for edit in edits]
    shares[by] = others
    print(f"η chosen by {by}: {benchmark.interval(others)} of the other pictures succeed")
""", "nbval-check-output")
code("""
def told_apart(what):
    \"\"\"How often a success has the higher value than a failure of the same edit: 0.5 is chance.\"\"\"
    wins = []
    for edit in edits:
        run = edit["fine-tuned"]
        right = np.array(run["right"]).ravel()
        value, good = (np.array(run[w]).ravel()[right] for w in (what, "success"))
        wins += [(a > b) + 0.5 * (a == b) for a in value[good] for b in value[~good]]
    return fmean(wins), len(wins)


share, pairs = told_apart("clip")
print(f"of {pairs} pairs that CLIP should tell apart it gets {share:.2f}")
""", "nbval-check-output")
md("""
**What to notice.** TODO
""")
md("""
## Other ways to edit a picture

All of these take the same model, the same picture and the same text. Each has one knob, and five values of it were tried
on the 40 edits of ToyEdit's part *dev*. The value with the most successes is used for the 60 edits of the part *test*.

- **Imagic**, and what is left of it without stage 1, without stage 2, or with a LoRA in stage 2.
- **SDEdit** (Meng et al. 2021): noise the picture half-way, and denoise it with the text.
- **DDIM inversion** (Song et al. 2020): run the sampler backwards to the noise of this very picture, then forwards with
  the other text. **Negative-prompt inversion** and **null-text inversion** make that exact under guidance.
- **Prompt-to-prompt** (Hertz et al. 2022): keep the old attention maps for the words that stay.
- **LEDITS++** (Brack et al. 2023): invert a sampler that adds noise, and guide only where the text matters.
- **The text alone**: no edit at all. Whatever keeps no more than this keeps nothing.

**Predict.** Which of them succeeds most often? Which keeps most? Which is fastest? Write down your guess before you go on.

First four of them live, on the first edit of each kind.
""")
code("""
rows = {split: list(csv.DictReader(open(experiments / f"toyedit-{split}.csv", encoding="utf-8"))) for split in ("dev", "test")}
live = ["imagic", "sdedit", "p2p", "text"]
knobs = {name: METHODS[name].values[benchmark.best_value(rows["dev"], name)] for name in live}
drawn, sheet = {}, []
for number, (before, change) in enumerate(toyedit("test")[:4]):
    truth, image = before.edit(**change), imagic.load_image(before.render(), pipe)
    line = [before.render(), truth.render()]
    for name in live:
        draw = METHODS[name].start(pipe, image, truth.caption(), before.caption())
        drawn[number, name] = draw(knobs[name], [0, 1])
        line.append(drawn[number, name][0])
    sheet.append(line)
""")
code("""
plots.show(
    plots.picture_grid(sheet, ["input", "right answer", *(METHODS[name].title for name in live)],
                       [next(iter(change.values())) for _, change in toyedit("test")[:4]], inch=1.6),
    "TODO",
)
""")
code("""
counts = {}
for name in live:
    good = [reader.success(p, before.edit(**change)) for number, (before, change) in enumerate(toyedit("test")[:4])
            for p in drawn[number, name]]
    counts[name] = sum(good)
    print(f"{METHODS[name].title}: {counts[name]} of {len(good)} succeed")
""", "nbval-check-output")
md("""
Four edits are anecdotes. The whole table, from the 60 edits of the test (`python -m imagic_lib benchmark`):
""")
code("""
methods = {name: method for name, method in METHODS.items() if benchmark.measured(rows["test"], name)}
display(Markdown(benchmark.tables(methods, rows["test"], rows["dev"])))
""")
code("""
display(Image(filename=str(experiments / "methods.png"), metadata={"alt": "TODO"}))
""")
md("""
**What to notice.** TODO
""")
md("""
## The pictures behind the numbers

A table can be right and still mislead. Here are twelve of the edits: the first seed of each, at the knob of the table.
""")
code("""
facts = json.loads((experiments / "methods.json").read_text(encoding="utf-8"))
display(Image(filename=str(experiments / "methods.jpg"), metadata={"alt": "TODO"}))
""")
md("""
**What to notice.** TODO: where Imagic fails.
""")
md("""
## A blind vote

Now your eye. The widget shows an edit and what the methods made of it, in an order that changes from edit to edit. Click
the pictures from the best to the worst. When all are ordered, or when you ask for it, it tells the names, and in how many
pairs of methods your order is the reader's.
""")
code("""
whole = Pictures.open(experiments / "methods.jpg")
columns = facts["columns"]


def tile(row, column):
    left, top = 128 * column, 128 * row
    return whole.crop((left, top, left + 128, top + 128))


names = columns[2:7]
titles = facts["titles"]
questions = [
    Question(tile(k, 0), row["text"], {titles[name]: tile(k, columns.index(name)) for name in names})
    for k, row in enumerate(facts["rows"])
]
vote = blind_vote(questions, {titles[name]: facts["points"][name]["success"] for name in names})
vote
""")
md("""
The next cell votes for the reader: it clicks first what succeeds and is nearest to the right answer. It shows that the
buttons work; your own vote is worth more.
""")
code("""
copy_of_vote = blind_vote(questions, {titles[name]: facts["points"][name]["success"] for name in names})
while len(copy_of_vote.ranks) < len(questions):
    for button in copy_of_vote.letters:
        button.click()
assert len(copy_of_vote.ranks) == len(questions)
print(f"{len(copy_of_vote.ranks)} questions of {len(names)} pictures")
""", "nbval-check-output")
md("""
## The paper's ablations

**Steps of stage 1.** The paper tries 10, 100 and 1000 steps, one timestep each.
""")
code("""
lines = ["| edit | steps | e_opt is away from e_tgt | PSNR at η = 0, dB | successes of 3 at η = 0.6, 0.8, 1 |", "|---|---|---|---|---|"]
for key, run in stored["steps"].items():
    edit, count = key.split(" / ")
    good = ", ".join(str(run[f"success at {eta}"]) for eta in ("0.6", "0.8", "1"))
    lines.append(f"| {stored['curves'][edit]['text']} | {count} | {run['moved']:.2f} | {min(run['psnr'])}–{max(run['psnr'])} | {good} |")
display(Markdown("\\n".join(lines)))
""")
md("""
**Seeds.** The paper draws eight pictures and shows one. How much does that help? For each edit of the test: the share of
its eight pictures that succeed.
""")
code("""
successes = [round(8 * edit["tuned"]["success"]) for edit in json.loads((experiments / "edits.json").read_text())["test"].values()]
histogram = Figure(figsize=(7, 3.4), layout="constrained")
axis = histogram.subplots()
axis.bar(range(9), [successes.count(k) for k in range(9)], color="#0072B2")
axis.set_xlabel("pictures of eight that succeed", fontsize=12)
axis.set_ylabel("edits", fontsize=12)
plots.show(histogram, "TODO")
""")
code("""
one, best = fmean(k / 8 for k in successes), fmean(k > 0 for k in successes)
print(f"one seed: {one:.2f} of the edits succeed; the best of eight: {best:.2f}")
""", "nbval-check-output")
md("""
**What to notice.** TODO. Picking is not cheating as long as one says so.
""")
md("""
## On photos

There is no reader for photos. What remains is the CLIP score, LPIPS and eyes. `torchmetrics` brings the first two (`pip
install "imagic-taught[metrics]"`); both download networks at their first use. The next cell does nothing unless it is
installed and a finished edit of a photo lies in the folder `out/my-edit` beside this notebook ([07](07_stable_diffusion.ipynb)
makes one).
""")
code("""
from importlib.util import find_spec
from pathlib import Path

folder = Path("out") / "my-edit"
if torch.cuda.is_available() and find_spec("torchmetrics") and folder.is_dir():
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    from torchmetrics.multimodal.clip_score import CLIPScore

    photo = imagic.ImagicEdit.load(folder, imagic.load_pipeline("CompVis/stable-diffusion-v1-4"))
    lpips, score = LearnedPerceptualImagePatchSimilarity(normalize=True), CLIPScore("openai/clip-vit-large-patch14")
    for eta in (0.0, 0.4, 0.6, 0.8, 1.0):
        [[picture]] = photo.pictures([eta], [0])
        x, y = (torch.from_numpy(np.array(p)).permute(2, 0, 1)[None] for p in (picture, photo.input_picture))
        c, d = score(x, photo.text).item() / 100, lpips(x / 255, y / 255).item()
        print(f"η = {eta:g}: CLIP score {c:.3f}, LPIPS {d:.3f}")
""", "gpu")
md("""
## Exercises

**1.** `cosine(a, b)`: the CLIP score of two vectors that are *not* of length 1.
""")
code("""
def cosine(a, b):
    return ...


checks.check_cosine(cosine)
""")
code("""
# @title Solution
checks.check_cosine(lambda a, b: a @ b / (a.norm() * b.norm()))
""", "solution", "nbval-check-output")
md("""
**2.** A method succeeds in 80 % of the edits. About how many edits does it take until the 95 % interval is ± 5 points?
(The standard error of a share $p$ of $n$ is $\\sqrt{p (1 - p) / n}$; the interval is 1.96 of them to each side.)
""")
code("""
answer = ...
checks.check_edits_needed(answer)
""")
code("""
# @title Solution
checks.check_edits_needed(1.96**2 * 0.8 * 0.2 / 0.05**2)
""", "solution", "nbval-check-output")
md("""
**3.** One seed of an edit succeeds with probability $p$, each on its own. `best_of(p, n)`: how probable is it that at
least one of $n$ seeds succeeds?
""")
code("""
def best_of(p, n):
    return ...


checks.check_best_of(best_of)
""")
code("""
# @title Solution
checks.check_best_of(lambda p, n: 1 - (1 - p) ** n)
""", "solution", "nbval-check-output")
md("""
## Summary

- TODO

**Limits.** TODO one small model, one world of drawings; the reader is a network, too.

**Next:** TODO
""")

notebook = new_notebook(cells=cells)
nbformat.write(notebook, "notebooks/11_evaluation.ipynb")
