"""Prints hashes of what the package computes: python tests/same_bits.py old|new FOLDER (see test_same_bits.py)."""

import hashlib
import sys
import tempfile
from pathlib import Path

import torch

import imagic_lib as imagic

OLD, EDITS = sys.argv[1] == "old", Path(sys.argv[2])
TEXT = "a brown dog jumping on the grass"
if OLD:
    from imagic_lib.experiments import faster as schedules
    from imagic_lib.experiments import personalization
    from imagic_lib.toyworld import training
else:
    from imagic_lab.experiments import personalization, schedules
    from imagic_lab.toyworld import training


def bits(*values) -> str:
    digest = hashlib.sha256()
    for value in values:
        if torch.is_tensor(value):
            value = value.detach().contiguous().numpy()
        digest.update(value.tobytes() if hasattr(value, "tobytes") else repr(value).encode())
    return digest.hexdigest()[:12]


def unet(pipe) -> list[torch.Tensor]:
    return [value for _, value in sorted(pipe.unet.state_dict().items())]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


torch.set_num_threads(1)
pipe = imagic.load_pipeline("tiny")
image = imagic.load_image(imagic.DATA / "images" / "dog-sitting.png", pipe)
e_tgt = imagic.encode_text(pipe, TEXT)
e_opt, history = imagic.optimize_embedding(pipe, image, e_tgt, steps=6, generator=seeded())
print("stage 1 =", bits(e_opt, history.loss, history.probe_loss, history.learning_rate))
tuned, history = imagic.fine_tune(pipe, image, e_opt, steps=12, generator=seeded())
print("stage 2 =", bits(*unet(tuned), history.loss, history.probe_loss, history.learning_rate))
adapted, history = imagic.fine_tune(pipe, image, e_opt, method="lora", steps=6, generator=seeded())
print("stage 2, LoRA =", bits(*unet(adapted), history.loss, history.probe_loss))
bias = {"bias": 0} if OLD else {"run": imagic.Run(bias=0)}
unbiased, history = imagic.fine_tune(pipe, image, e_opt, steps=4, generator=seeded(), **bias)
print("stage 2, no bias =", bits(*unet(unbiased), history.loss))
e = imagic.interpolate(e_tgt, e_opt, [0, 0.5, 1])
print("pictures =", bits(*imagic.generate(tuned, e, [0, 1], scale=0.5, steps=5)))
print("pictures, LoRA =", bits(*imagic.generate(adapted, e, [0], scale=0.5, steps=5, scheduler="sde-dpm++")))
prior = personalization.class_pictures(pipe, "a photo of a car", 2, steps=3)
word, history = personalization.personalize(
    pipe, [image, image.flip(3)], "a photo of a red car", prior=prior, steps=5, generator=seeded()
)
print("a new word =", bits(*unet(word), history.loss, history.probe_loss))
train_on_schedule = schedules.train if OLD else schedules.train_on_schedule
for order in ("apart", "joint", "alternating"):
    for more in ({}, {"stratified": False}, {"layers": "attn"}):
        plan = schedules.Schedule(3, 4, (1e-2, 1e-3), batch=2, decay=0.5, bias=1.0, order=order, **more)
        _, found, made, history = train_on_schedule(pipe, image, TEXT, plan)
        print("schedule", order, *more, "=", bits(found, *unet(made), history.loss))
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.1), torch.nn.Linear(8, 2))
x = torch.randn(50, 6, generator=seeded())
with tempfile.TemporaryDirectory() as folder:
    curve = (training.train if OLD else training.train_network)(
        "net", net, lambda step, g: net(x[torch.randint(50, (16,), generator=g)]).square().mean(), Path(folder),
        steps=173, lr=1e-2, warmup=20, ema=0.99, seed=3,
    )  # fmt: skip
print("the toy world's training =", bits(*net.state_dict().values(), curve["step"], curve["loss"]))
short = {"embedding_steps": 3, "unet_steps": 4}
if OLD:  # folders for the new code to open: two that are finished, and one that was stopped
    for method in ("full", "lora"):
        imagic.run_edit(pipe, image, TEXT, method=method, folder=EDITS / method, **short)
    try:
        imagic.run_edit(
            pipe, image, TEXT, folder=EDITS / "begun", watch=lambda name, history: len(history.loss) == 2, **short
        )
    except KeyboardInterrupt:
        made = imagic.run_edit(pipe, image, TEXT, **short)
else:
    made = imagic.run_edit(pipe, image, TEXT, folder=EDITS / "begun", **short)
print("a stopped edit that goes on =", bits(made.e_opt, *unet(made.tuned), made.unet_history.loss))
for method in ("full", "lora"):
    made = imagic.ImagicEdit.load(EDITS / method, pipe)
    print("a folder that is opened,", method, "=", bits(made.e_opt, *unet(made.tuned), made.unet_history.loss))
