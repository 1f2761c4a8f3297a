"""Words and pictures in one space: a tokenizer and a mini-CLIP, trained contrastively as SD's was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from imagic_lab.toyworld.scene import Scene
from imagic_lab.toyworld.training import train
from imagic_lab.toyworld.vae import to_tensor

CONTEXT, WIDTH, LAYERS, HEADS = 77, 96, 2, 4
START, END = "<|startoftext|>", "<|endoftext|>"
STEPS, LR, BATCH = 1500, 1e-3, 96


def train_tokenizer(scenes: list[Scene], folder: Path) -> CLIPTokenizer:
    """Byte-pair encoding of the captions, in CLIP's own file format.

    All 256 bytes stand in the vocabulary with and without the end-of-word mark, so any text has ids:
    a word that no caption holds falls apart into letters.
    """
    captions = [scene.caption(seed) for seed, scene in enumerate(scenes)]
    captions += [scene.caption() for scene in scenes[:1000]]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=4000, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator(captions, trainer)
    merges = [
        tuple(m) if isinstance(m, list) else tuple(m.split()) for m in json.loads(bpe.to_str())["model"]["merges"]
    ]
    vocabulary = alphabet + [letter + "</w>" for letter in alphabet]
    vocabulary += [merged for a, b in merges if (merged := a + b) not in vocabulary]
    vocabulary += [START, END]  # CLIP pools at the highest id: the end comes last
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | special, indent=2))
    return CLIPTokenizer.from_pretrained(folder)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """(n, 77) ids; start, text, end, and the end again as padding, as in CLIP."""
    return tokenizer(captions, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt").input_ids


def build(vocabulary: int) -> CLIPModel:
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "projection_dim": WIDTH,
    }
    tokens = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    return CLIPModel(
        CLIPConfig(
            text_config={**tower, **tokens, "vocab_size": vocabulary, "max_position_embeddings": CONTEXT},
            vision_config={**tower, "num_hidden_layers": LAYERS + 1, "image_size": 128, "patch_size": 16},
            projection_dim=WIDTH,
        )
    )


def image_processor():
    """A `CLIPImageProcessor`, 128 px and pixels in [-1, 1]: what the image tower was trained on."""
    from transformers import CLIPImageProcessor

    half = [0.5, 0.5, 0.5]
    return CLIPImageProcessor(
        size={"shortest_edge": 128}, crop_size={"height": 128, "width": 128}, image_mean=half, image_std=half
    )


def train_clip(
    pictures: np.ndarray,
    scenes: list[Scene],
    tokenizer: CLIPTokenizer,
    folder: Path,
    *,
    steps=STEPS,
    seed=0,
    bf16=False,
):
    """Each picture must find its caption among the batch's, and each caption its picture."""
    torch.manual_seed(seed)
    clip = build(len(tokenizer))

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        which = torch.randint(len(scenes), (BATCH,), generator=generator).tolist()
        captions = [scenes[i].caption(step * BATCH + k) for k, i in enumerate(which)]
        ids = tokenize(tokenizer, captions)
        # Under causal attention nothing after the end mark can change what is pooled there, so most
        # steps read only as far as the longest caption; each 8th reads all 77 places.
        reach = CONTEXT if step % 8 == 0 else 1 + int((ids == len(tokenizer) - 1).int().argmax(1).max())
        return clip(input_ids=ids[:, :reach], pixel_values=to_tensor(pictures[which]), return_loss=True).loss

    history = train("clip", clip, loss_of, folder, steps=steps, lr=LR, seed=seed, bf16=bf16)
    return clip.eval(), history


@torch.no_grad()
def retrieval(clip: CLIPModel, tokenizer: CLIPTokenizer, pictures: Tensor, captions: list[str]) -> float:
    """Share of pictures (n, 3, 128, 128) whose own caption text scores highest among all captions."""
    scores = clip(input_ids=tokenize(tokenizer, captions), pixel_values=pictures).logits_per_image
    best = scores.argmax(dim=1)
    return sum(captions[i] == captions[k] for k, i in enumerate(best.tolist())) / len(captions)
