"""Write a model for the live page: `python -m imagic_lab.web.export FOLDER [MODEL]`.

graphs (.onnx)     text encoder, both halves of the VAE, UNet, and the training steps of stages 1 and 2, each checked
                   against torch. Weights are inputs, so that all graphs, for θ and for θ*, share one copy of them
weights.bin        all weights in float16
model.json         an index of the weights, the noise process, the library's defaults, the words that the model knows
drawings.png       drawings to edit, side by side; model.json says what they show
tokenizer.json     as in the folder of the model
"""

import json
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import onnx
import onnxruntime
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor, nn

from imagic_lab.toyworld import Scene
from imagic_lab.toyworld.captions import PHRASES
from imagic_lab.toyworld.scene import TEST_SEEDS
from imagic_lab.toyworld.world import POSES_OF
from imagic_lab.web.gradients import traced
from imagic_lab.web.onnx_graph import onnx_of
from imagic_lib import stage1_embedding, stage2_finetuning, stage4_inference
from imagic_lib.diffusion import mse
from imagic_lib.models import DATA, encode_text, load_pipeline, vocabulary

TOLERANCE = 1e-3  # of a tensor's largest number, unless that is tiny compared with the largest gradient of all
LOT = range(TEST_SEEDS + 500_000, TEST_SEEDS + 500_043)  # scenes that no model was trained on
OWN = "tiny"  # the model whose defaults the page has


class Part(NamedTuple):
    """A graph to export, which computes call(network, *inputs). learns: what gets gradients, if anything."""

    network: str
    call: Callable
    inputs: dict[str, Tensor]
    learns: str = ""  # "e" or "weights"
    free_batch: bool = False


class Called(nn.Module):
    def __init__(self, network: nn.Module, call: Callable):
        super().__init__()
        self.network, self.call = network, call

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.call(self.network, *inputs)


def graphs_of(pipe: StableDiffusionPipeline) -> dict[str, Part]:
    """Return the graphs of a model by name, with inputs for tracing them."""
    batch, config, tokens = stage1_embedding.DEFAULTS[OWN]["batch"], pipe.unet.config, pipe.tokenizer.model_max_length
    pixels, scaling = pipe.vae.config.sample_size, pipe.vae.config.scaling_factor
    shape = 2, batch, config.in_channels, config.sample_size, config.sample_size
    z, target = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    z_t = 0.3 * z + 0.95 * target  # for inputs unlike those in training, a UNet's gradients are badly conditioned
    t, e = torch.arange(batch) * 1000 // batch + 50, encode_text(pipe, "a brown dog jumping on the grass")

    def answer(unet, z_t, t, e):
        return unet(z_t, t, e).sample

    def loss(unet, z_t, t, e, target):
        return mse(answer(unet, z_t, t, e.expand(len(z_t), -1, -1)), target)

    two = {"z_t": z_t[:2], "t": t[:2], "e": e.repeat(2, 1, 1)}
    step = {"z_t": z_t, "t": t, "e": e, "target": target}
    x, ids = torch.randn(1, 3, pixels, pixels), torch.arange(tokens)[None]
    return {
        "text": Part("text_encoder", lambda encoder, ids: encoder(ids).last_hidden_state, {"ids": ids}),
        "encode": Part("vae", lambda vae, x: vae.encode(x).latent_dist.mode() * scaling, {"x": x}),
        "decode": Part("vae", lambda vae, z: vae.decode(z / scaling).sample.clamp(-1, 1), {"z": z_t[:1]}),
        "unet": Part("unet", answer, two, free_batch=True),
        "embedding": Part("unet", loss, step, learns="e"),
        "tuning": Part("unet", loss, step, learns="weights"),
    }


def plain_copy(pipe: StableDiffusionPipeline, name: str) -> nn.Module:
    """Return a copy of a network whose attention uses plain products."""
    network = deepcopy(getattr(pipe, name)).float().eval().requires_grad_(False)
    if name == "text_encoder":
        network.set_attn_implementation("eager")
    else:
        network.set_attn_processor(AttnProcessor())
    return network


def function_of(part: Part, network: nn.Module) -> tuple[Callable, dict[str, Tensor], list[str]]:
    """Return a function of the inputs and all weights, the weights by name, and the names of the function's results.
    With `learns`, these are the loss and its gradients."""
    called = Called(network, part.call)
    own, values = zip(*called.named_parameters(), strict=True)
    weights = {name.replace("network", part.network, 1): p.detach() for name, p in zip(own, values, strict=True)}
    names, count = [*part.inputs, *weights], len(part.inputs)
    learning = {"": [], "e": ["e"], "weights": list(weights)}[part.learns]

    def function(*given: Tensor) -> Tensor | tuple[Tensor, ...]:
        given = [x.detach().requires_grad_(name in learning) for name, x in zip(names, given, strict=True)]
        loss = torch.func.functional_call(called, dict(zip(own, given[count:], strict=True)), tuple(given[:count]))
        return (loss, *torch.autograd.grad(loss, [x for x in given if x.requires_grad])) if learning else loss

    return function, weights, ["loss", *(f"d {name}" for name in learning)] if learning else ["answer"]


def exported(part: Part, network: nn.Module) -> onnx.ModelProto:
    """Export the graph of a part and check it against torch. Raises ArithmeticError if their results differ."""
    function, weights, outputs = function_of(part, network)
    arguments = part.inputs | weights
    graph = traced(function, list(arguments.values()))
    model = onnx_of(graph, list(arguments), outputs, len(part.inputs) if part.free_batch else 0)
    check_graph(model, function, arguments)
    if part.free_batch:
        check_graph(model, function, {name: x[:1] for name, x in part.inputs.items()} | weights)
    return model


def check_graph(model: onnx.ModelProto, function: Callable, arguments: dict[str, Tensor]) -> None:
    """Raise ArithmeticError unless the results of graph and function agree up to `TOLERANCE`."""
    session = onnxruntime.InferenceSession(model.SerializeToString())
    asked = {one.name for one in session.get_inputs()}
    found = session.run(None, {name: x.numpy() for name, x in arguments.items() if name in asked})
    wanted = function(*arguments.values())
    wanted = [x.detach().numpy() for x in (wanted if isinstance(wanted, tuple) else [wanted])]
    least = 1e-3 * max(abs(x).max() for x in wanted[1:] or wanted)
    for one, a, b in zip(session.get_outputs(), wanted, found, strict=True):
        error = float(abs(a - b).max() / max(abs(a).max(), least))
        if not error <= TOLERANCE:
            raise ArithmeticError(f"the graph differs from torch in {one.name!r} by {error:.1e}: at most {TOLERANCE:g}")


def drawings() -> tuple[Image.Image, list[dict[str, str]]]:
    """Return drawings to edit, in one row, and what they show. Those of data/images come first."""
    known = json.loads((DATA / "images" / "scenes.json").read_text(encoding="utf-8"))
    pictures = [Image.open(DATA / "images" / name).convert("RGB") for name in known]
    facts = [{key: value for key, value in scene.items() if key != "seed"} for scene in known.values()]
    scenes = [Scene.sample(seed) for seed in LOT]
    pictures, facts = pictures + [scene.render() for scene in scenes], facts + [scene.attributes for scene in scenes]
    sheet = Image.new("RGB", (sum(picture.width for picture in pictures), pictures[0].height))
    for k, picture in enumerate(pictures):
        sheet.paste(picture, (k * picture.width, 0))
    return sheet, facts


def page_facts(pipe: StableDiffusionPipeline) -> dict:
    """Return what the page must know about the model and the library."""
    process = pipe.scheduler.config
    return {
        "process": {key: process[key] for key in ("beta_start", "beta_end", "num_train_timesteps", "steps_offset")},
        "latents": [pipe.unet.config.in_channels, *[pipe.unet.config.sample_size] * 2],
        "pixels": pipe.vae.config.sample_size,
        "tokens": pipe.tokenizer.model_max_length,
        "embedding": stage1_embedding.DEFAULTS[OWN],
        "tuning": stage2_finetuning.DEFAULTS["full"][OWN],
        "drawing": stage4_inference.DEFAULTS[OWN] | {"own_guidance": stage4_inference.OWN_GUIDANCE[OWN]},
        "words": sorted(vocabulary()),
        "phrases": {name: {value: forms[0] for value, forms in values.items()} for name, values in PHRASES.items()},
        "poses": POSES_OF,
    }


def write_model(pipe: StableDiffusionPipeline, folder: Path, say: Callable = print) -> None:
    """Write the model's files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = graphs_of(pipe)
    networks = {part.network: plain_copy(pipe, part.network) for part in parts.values()}
    graphs, facts = {}, page_facts(pipe)
    for name, part in parts.items():
        model = exported(part, networks[part.network])
        onnx.save(model, folder / f"{name}.onnx")
        graphs[name] = [one.name for one in model.graph.input if one.name not in part.inputs]
        say(f"{name}: {len(model.graph.node)} operations, checked against torch")
    weights = {f"{kind}.{name}": p for kind, network in networks.items() for name, p in network.named_parameters()}
    halves = {name: p.half().numpy() for name, p in weights.items()}
    (folder / "weights.bin").write_bytes(b"".join(half.tobytes() for half in halves.values()))
    sheet, facts["drawings"] = drawings()
    sheet.save(folder / "drawings.png", optimize=True)
    pipe.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    facts |= {"graphs": graphs, "weights": {name: list(half.shape) for name, half in halves.items()}}
    (folder / "model.json").write_text(json.dumps(facts), encoding="utf-8")


def main(arguments: Sequence[str]) -> None:
    folder, model = [*arguments, "tiny"][:2]
    write_model(load_pipeline(model), Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
