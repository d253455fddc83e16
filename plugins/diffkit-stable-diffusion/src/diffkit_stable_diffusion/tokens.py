"""Tokens of a text: a tokenizer as one JSON text, which holds vocabulary, padding and length, and the tokens of texts.

The JSON text is the format of the library `tokenizers`; a conditioner keeps it among its weights, so that a checkpoint
needs no other file.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from diffkit import UsageError, plain

MAX_SHOWN = 60
"""Characters of a text that a warning shows."""


def read_tokenizer(folder: Path, kind: str, longest: int) -> Tokenizer:
    """Read the tokenizer of a text encoder; it truncates and pads texts.

    Args:
        folder: holds tokenizer.json, or vocab.json and merges.txt, and the names of special tokens.
        kind: the class in transformers, CLIPTokenizer or T5Tokenizer.
        longest: number of tokens that the encoder takes.

    Returns:
        The tokenizer, with tokens of start and end, padding to the length of the folder or to `longest`.

    Raises:
        UsageError: DK080, there is no tokenizer in the folder, or it cannot be read.
    """
    import transformers

    clip = kind == "CLIPTokenizer"
    if not (folder / "tokenizer.json").is_file() and not (
        clip and all((folder / name).is_file() for name in ("vocab.json", "merges.txt"))
    ):
        files = "tokenizer.json, or vocab.json and merges.txt" if clip else "tokenizer.json"
        fix = "name a folder that the tokenizer's save_pretrained of transformers has written"
        raise UsageError(f"{folder} holds no {files}", code="DK080", fix=fix)
    reader: Any = getattr(transformers, "CLIPTokenizerFast" if clip else "PreTrainedTokenizerFast")
    try:
        found = reader.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        message = f"the tokenizer in {folder} cannot be read: {str(error).splitlines()[0][:200]}"
        raise UsageError(message, code="DK080", fix="copy the folder again") from error
    return limited(found.backend_tokenizer, found.pad_token, min(int(found.model_max_length), longest))


def limited(tokenizer: Tokenizer, padding: str, length: int) -> Tokenizer:
    """Return a tokenizer that truncates and pads texts to one length.

    Args:
        tokenizer: the tokenizer, which is changed.
        padding: the padding token.
        length: number of tokens of every text.

    Returns:
        The tokenizer.

    Raises:
        UsageError: DK080, the tokenizer does not have the token.
    """
    number = tokenizer.token_to_id(padding)
    if number is None:
        raise UsageError(f"the tokenizer has no token {padding!r}", code="DK080", fix="copy the folder again")
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(pad_id=number, pad_token=padding, length=length)
    return tokenizer


def as_buffer(tokenizer: Tokenizer) -> Tensor:
    """Return a tokenizer as bytes, (N,) uint8."""
    text = json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":"))
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def from_buffer(data: Tensor) -> Tokenizer:
    """Return the tokenizer in bytes, (N,) uint8."""
    return Tokenizer.from_str(bytes(data.cpu().numpy()).decode())


def windows(tokenizer: Tokenizer, texts: Sequence[str], count: int, option: str) -> tuple[Tensor, Tensor]:
    """Return the tokens of texts in windows of the tokenizer's length; warns of texts that need more windows.

    Each window has tokens of start and end; windows without text are those of an empty text.

    Args:
        tokenizer: truncates and pads.
        texts: B texts.
        count: number of windows of each text.
        option: the option that takes longer texts, for the warning.

    Returns:
        The tokens (B, count, L) long, and a mask (B, count, L) bool, which is False for padding.
    """
    empty = tokenizer.encode("")
    rows = []
    for text, first in zip(texts, tokenizer.encode_batch(list(texts)), strict=True):
        found = [first, *first.overflowing]
        if len(found) > count:
            _warn(text, found[count], count * len(first.ids), option)
        rows.append((found + [empty] * count)[:count])
    ids = torch.tensor([[window.ids for window in row] for row in rows])
    mask = torch.tensor([[window.attention_mask for window in row] for row in rows], dtype=torch.bool)
    return ids, mask


def _warn(text: str, window: Encoding, most: int, option: str) -> None:
    """Warn of the part of a text from `window` on, which no token holds."""
    begin = next(start for (start, end), special in zip(window.offsets, window.special_tokens_mask) if not special)
    lost = text[begin:]
    shown = lost if len(lost) <= MAX_SHOWN else f"{lost[:MAX_SHOWN]}..."
    message = f"a text has more than {most} tokens and is cut: {shown!r} is lost; option `{option}` takes longer texts"
    warnings.warn(plain(message), stacklevel=4)
