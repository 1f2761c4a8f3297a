"""A tokenizer and a mini-CLIP, which learns words and pictures in one space by contrast, as Stable Diffusion's did."""

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from imagic_lab.toyworld.dataset import to_batch
from imagic_lab.toyworld.scene import Scene
from imagic_lab.toyworld.training import train_network

CONTEXT, EMBEDDING_WIDTH, LAYERS, HEADS = 77, 96, 2, 4
START, END = "<|startoftext|>", "<|endoftext|>"
STEPS, LR, BATCH = 1500, 1e-3, 96


def train_tokenizer(scenes: list[Scene], folder: Path) -> CLIPTokenizer:
    """Learn a byte-pair encoding of the captions and save it in CLIP's file format.

    The vocabulary has all 256 bytes, with and without the end-of-word mark, so every text has ids. A word that occurs
    in no caption is split into letters.
    """
    captions = [scene.caption(seed) for seed, scene in enumerate(scenes)]
    captions += [scene.caption() for scene in scenes[:1000]]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    whole_words = [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    bpe.pre_tokenizer = pre_tokenizers.Sequence(whole_words)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    size = {"vocab_size": 4000, "initial_alphabet": alphabet, "end_of_word_suffix": "</w>"}
    bpe.train_from_iterator(captions, trainers.BpeTrainer(**size, show_progress=False))
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    vocabulary = alphabet + [letter + "</w>" for letter in alphabet]
    vocabulary += [merged for a, b in merges if (merged := a + b) not in vocabulary]
    vocabulary += [START, END]  # CLIP pools at the highest id, so the end comes last
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | special, indent=2))
    return CLIPTokenizer.from_pretrained(folder)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Return ids (n, 77): start, text, end, and the end again as padding, as in CLIP. A longer text is cut."""
    return tokenizer(captions, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt").input_ids


def build_clip(vocabulary: int) -> CLIPModel:
    """Build the mini-CLIP with random weights. vocabulary: number of tokens."""
    tower = {
        "hidden_size": EMBEDDING_WIDTH,
        "intermediate_size": 4 * EMBEDDING_WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "projection_dim": EMBEDDING_WIDTH,
    }
    tokens = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    return CLIPModel(
        CLIPConfig(
            text_config={**tower, **tokens, "vocab_size": vocabulary, "max_position_embeddings": CONTEXT},
            vision_config={**tower, "num_hidden_layers": LAYERS + 1, "image_size": 128, "patch_size": 16},
            projection_dim=EMBEDDING_WIDTH,
        )
    )


def train_clip(
    pictures: np.ndarray, scenes: list[Scene], tokenizer: CLIPTokenizer, folder: Path, *, steps=STEPS, seed=0
):
    """Learn which caption belongs to which picture (n, 128, 128, 3) of a batch. Returns (clip, history)."""
    torch.manual_seed(seed)
    clip = build_clip(len(tokenizer))

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        which = torch.randint(len(scenes), (BATCH,), generator=generator).tolist()
        captions = [scenes[i].caption(step * BATCH + k) for k, i in enumerate(which)]
        ids = tokenize(tokenizer, captions)
        # Attention is causal, so nothing after the end mark can change what is pooled there. Most steps therefore
        # read only as far as the longest caption; each 8th reads all 77 places.
        reach = CONTEXT if step % 8 == 0 else 1 + int((ids == len(tokenizer) - 1).int().argmax(1).max())
        return clip(input_ids=ids[:, :reach], pixel_values=to_batch(pictures[which]), return_loss=True).loss

    history = train_network("clip", clip, loss_of, folder, steps=steps, lr=LR, seed=seed)
    return clip.eval(), history
