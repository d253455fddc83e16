"""Conditioners of texts by an encoder that stays as it is: the text model of CLIP, and the encoder of T5."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import torch
import transformers
from diffkit_diffusers.errors import REFUSALS, misnamed, not_a_model
from diffkit_diffusers.folder import CONFIG, Folder, read_json
from huggingface_hub.errors import StrictDataclassError
from pydantic import Field, JsonValue
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

from diffkit import CheckpointError, Conditioner, ConditionSpec, FilePath, RecipeError, as_texts

from .lora_files import merge
from .tokens import as_buffer, from_buffer, limited, read_tokenizer, windows

TOKENIZER_BYTES = "tokenizer_bytes"
"""The entry of `config` that is the length of the tokenizer in bytes, which is kept among the weights."""
TOKENIZER_LENGTH = "tokenizer_length"
"""The entry of `config` that is the number of tokens of a text, if the tokenizer states fewer than the encoder can."""
STEM, PICKLE = "model", "pytorch_model.bin"
CONFIG_OF_FILE = ("architectures", "dtype", "model_type", "torch_dtype", "transformers_version", "_name_or_path")
"""Entries of a config.json of transformers that describe the file."""
CONDITION = ConditionSpec((24,), "text")


class FrozenText(Conditioner):
    """Base of text encoders of transformers with given weights, which do not train.

    `folder` holds config.json, the weights as safetensors and the tokenizer, or is a pipeline with `text_encoder` and
    `tokenizer`. With `config` in place of it, arguments of the configuration and the length of the tokenizer in
    bytes, weights and tokenizer come from the checkpoint of the run.
    """

    models: ClassVar[tuple[str, ...]]
    tokenizer_class: ClassVar[str]
    encoder: Any
    longer: ClassVar[str]
    """The option that takes longer texts."""

    def __init__(
        self, condition: ConditionSpec, folder: str | None, config: Mapping[str, JsonValue] | None, chunks: int = 1
    ) -> None:
        super().__init__()
        if condition.dtype != "text":
            raise ValueError(f"a text encoder requires a condition of texts, not one of dtype {condition.dtype}")
        if (folder is None) == (config is None):
            raise RecipeError("give either folder or config", code="DK140", fix="folder: the folder of a text encoder")
        self.condition, self.chunks = condition, chunks
        found = self.read(Path(folder)) if folder is not None else None
        self.config = dict(found[0] if found is not None else config or {})
        try:
            with without_initialisation():
                self.encoder = self._build()
        except (*REFUSALS, StrictDataclassError) as error:
            message = f"{self.models[0]} does not accept its config: {' '.join(str(error).split())[:240]}"
            fix = "compare it with config.json of a published model"
            raise RecipeError(message, code="DK140", fix=fix) from error
        self.register_buffer("tokenizer", torch.zeros(int(self.config[TOKENIZER_BYTES]), dtype=torch.uint8))
        if found is not None:
            load_exactly(self, found[1], str(folder))
        self.requires_grad_(False).eval()
        self._null: tuple[object, Tensor, Tensor] | None = None
        self._tokens: tuple[object, Tokenizer] | None = None

    @classmethod
    def read(cls, folder: Path, variant: str | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Read an encoder and its tokenizer.

        Args:
            folder: the folder of the encoder, or a pipeline.
            variant: part of the name of the weights, such as "fp16"; default: those without, or the only ones.

        Returns:
            The option `config`, and the state dict of the conditioner.

        Raises:
            UsageError: DK080, the folder holds another model, none, or a pickle.
        """
        inside = (folder / "text_encoder" / CONFIG).is_file()
        encoder, tokenizer = (folder / "text_encoder", folder / "tokenizer") if inside else (folder, folder)
        config = read_json(encoder / CONFIG)
        kinds = config.get("architectures") or cls.models
        if kinds[0] not in cls.models:
            message = f"{encoder} holds a {str(kinds[0])[:64]}, not a {cls.models[0]}"
            raise not_a_model(message, fix="name another folder")
        if config.get("use_attention_mask"):
            raise not_a_model(f"{encoder}: use_attention_mask is not supported", fix="name another folder")
        if (encoder / PICKLE).is_file() and not list(encoder.glob(f"{STEM}.*safetensors*")):
            fix = "convert it once: load the model in transformers and call its save_pretrained"
            raise not_a_model(f"{encoder / PICKLE} is a pickle, and only safetensors are read", fix=fix)
        known = {name: value for name, value in config.items() if name not in CONFIG_OF_FILE}
        weights = cls.present_names(Folder(encoder, stem=STEM).weights(variant, pickles=False))
        entries, data = cls.read_tokenizer(tokenizer, known)
        return {**known, **entries}, {**weights, "tokenizer": data}

    @classmethod
    def read_tokenizer(cls, folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, int], Tensor]:
        """Read the tokenizer of an encoder with this configuration.

        Returns:
            The entries of `config` that describe it, and its bytes, (N,) uint8.

        Raises:
            UsageError: DK080, the folder holds no tokenizer that can be read.
        """
        found = read_tokenizer(folder, cls.tokenizer_class, cls.longest(config))
        truncation: Any = found.truncation
        data, stated = as_buffer(found), int(truncation["max_length"])
        shorter = {TOKENIZER_LENGTH: stated} if stated < cls.longest(config) else {}
        return {TOKENIZER_BYTES: len(data), **shorter}, data

    @staticmethod
    @abstractmethod
    def longest(config: Mapping[str, Any]) -> int:
        """Return the largest number of tokens of one window."""

    @staticmethod
    @abstractmethod
    def present_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of any version of transformers by the names of this conditioner."""

    @abstractmethod
    def _build(self) -> nn.Module:
        """Return the encoder of `config`, whose output is (B, L, D) for tokens (B, L)."""

    def _arguments(self) -> dict[str, Any]:
        return {name: value for name, value in self.config.items() if name not in (TOKENIZER_BYTES, TOKENIZER_LENGTH)}

    @property
    def tokens(self) -> Tokenizer | None:
        """The tokenizer; None as long as no weights are loaded."""
        data = self.get_buffer("tokenizer")
        key = (data.data_ptr(), data._version)
        if self._tokens is None or self._tokens[0] != key:
            if not bool(data.any()):
                return None
            found = from_buffer(data)
            padding: Any = found.padding
            self._tokens = (key, limited(found, padding["pad_token"], self.length))
        return self._tokens[1]

    @property
    def length(self) -> int:
        """Number of tokens of one window: what the tokenizer states, at most what the encoder takes."""
        return min(int(self.config.get(TOKENIZER_LENGTH, self.longest(self.config))), self.longest(self.config))

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.chunks * self.length, self.width)

    @property
    @abstractmethod
    def width(self) -> int:
        """Numbers of one token, D."""

    def encode(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Return the values of B texts, (B, *shape), and which tokens belong to a text, (B, L) bool."""
        device = next(self.encoder.parameters()).device
        if self.tokens is None:  # before weights are loaded, only shapes are of use
            ids = torch.zeros(len(texts), self.chunks, self.length, dtype=torch.long)
            mask = torch.ones_like(ids, dtype=torch.bool)
        else:
            ids, mask = windows(self.tokens, texts, self.chunks, self.longer)
        with torch.no_grad():
            value: Tensor = self._values(ids.flatten(0, 1).to(device), mask.flatten(0, 1).to(device))
        return value.reshape(len(texts), *self.shape), mask.flatten(1).to(device)

    @abstractmethod
    def _values(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return (N, L, D) for tokens (N, L) and their mask (N, L)."""

    def _empty(self) -> tuple[Tensor, Tensor]:
        """Return value and mask of the empty text, computed once for each state of the weights."""
        weight = next(self.encoder.parameters())
        key = (weight.data_ptr(), weight._version, weight.device, weight.dtype)
        if self._null is None or self._null[0] != key:
            value, mask = self.encode([""])
            self._null = (key, value[0], mask[0])
        return self._null[1:]

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)


class ClipText(FrozenText):
    """The last hidden state of the text model of CLIP, (77 chunks, D), as in Stable Diffusion 1 and 2; frozen.

    A text of more than 77 tokens, or of fewer if the tokenizer states it (`model_max_length`), is cut with a warning;
    with several `chunks` it continues in further windows of as many tokens, whose values stand one after the other. The
    null is the value of the empty text. There is no mask: padded tokens are attended to, as in the training of these
    models.

    folder   text encoder and tokenizer, or a pipeline of diffusers; `config` in place of it, see `FrozenText`
    chunks   number of windows; Stable Diffusion is trained with 1

    Raises UsageError DK080 for a folder without this encoder, RecipeError DK140 for a config that transformers refuses,
    and ValueError for another condition.
    Source: Radford et al. 2021 (arXiv:2103.00020), sec. 2.4; Rombach et al. 2022 (arXiv:2112.10752), code.
    """

    models, tokenizer_class = ("CLIPTextModel",), "CLIPTokenizer"
    longer = "chunks"

    def __init__(
        self,
        condition: ConditionSpec,
        folder: FilePath | None = None,
        config: dict[str, JsonValue] | None = None,
        chunks: Annotated[int, Field(ge=1, le=16)] = 1,
    ) -> None:
        super().__init__(condition, folder, config, chunks)

    @staticmethod
    def law_example(folder: Path) -> ClipText:
        """Return an instance on which the laws are tested: random weights, and a token for each byte."""
        small = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
        tokenizer = as_buffer(byte_tokenizer(("<|startoftext|>", "<|endoftext|>"), 12))
        config: dict[str, JsonValue] = {
            **small,
            "vocab_size": 514,
            "max_position_embeddings": 12,
            TOKENIZER_BYTES: len(tokenizer),
        }
        made = ClipText(CONDITION, config=config)
        made.get_buffer("tokenizer").copy_(tokenizer)
        return made

    @staticmethod
    def longest(config: Mapping[str, Any]) -> int:
        return int(config.get("max_position_embeddings", 77))

    @staticmethod
    def present_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        plain = {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}
        return {f"encoder.{name}": tensor for name, tensor in plain.items() if not name.endswith("position_ids")}

    def adapt(self, weights: Mapping[str, Tensor], factor: float) -> Collection[str]:
        """Merge the updates of the text encoder in a LoRA file; see `lora.merge`."""
        return merge(self.encoder, "text_encoder", weights, factor)

    def _build(self) -> nn.Module:
        model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**self._arguments()))
        inner: nn.Module = getattr(model, "text_model", model)  # transformers before version 5 has a module in between
        return inner

    @property
    def width(self) -> int:
        return int(self.encoder.config.hidden_size)

    def _values(self, ids: Tensor, mask: Tensor) -> Tensor:
        value: Tensor = self.encoder(input_ids=ids)[0]
        return value

    def forward(self, raw: Tensor) -> Tensor:
        return self.encode(as_texts(raw))[0]

    def null(self) -> Tensor:
        return self._empty()[0]


class T5(FrozenText):
    """The encoder of T5, (length, D) with a mask, as in Imagen, PixArt and later models; frozen.

    A text of more than `length` tokens is cut with a warning. The null is the value of the empty text, whose only
    token is the one of the end.

    folder   encoder (or a whole T5) and tokenizer.json, or a pipeline; `config` in place of it, see `FrozenText`
    length   number of tokens

    Raises UsageError DK080 for a folder without this encoder, RecipeError DK140 for a config that transformers refuses,
    and ValueError for another condition.
    Source: Raffel et al. 2020 (arXiv:1910.10683); Saharia et al. 2022 (arXiv:2205.11487), sec. 2.1.
    """

    models, tokenizer_class = ("T5EncoderModel", "T5ForConditionalGeneration"), "T5Tokenizer"
    longer = "length"

    def __init__(
        self,
        condition: ConditionSpec,
        folder: FilePath | None = None,
        config: dict[str, JsonValue] | None = None,
        length: Annotated[int, Field(ge=1, le=4096)] = 128,
    ) -> None:
        self._length = length
        super().__init__(condition, folder, config)

    @staticmethod
    def law_example(folder: Path) -> T5:
        """Return an instance on which the laws are tested: random weights, and a token for each byte."""
        tokenizer = as_buffer(byte_tokenizer(("<pad>", "</s>"), 12))
        small = {"d_model": 8, "d_kv": 4, "num_heads": 2, "num_layers": 1, "d_ff": 8, "vocab_size": 514}
        made = T5(CONDITION, config={**small, TOKENIZER_BYTES: len(tokenizer)}, length=12)
        made.get_buffer("tokenizer").copy_(tokenizer)
        return made

    @property
    def length(self) -> int:
        return self._length

    @staticmethod
    def longest(config: Mapping[str, Any]) -> int:
        return int(config.get("n_positions", 512))

    @staticmethod
    def present_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ours = {name: one for name, one in weights.items() if name.startswith("encoder.")}
        return {"encoder.embed_tokens.weight": weights["shared.weight"], **ours} if "shared.weight" in weights else ours

    def _build(self) -> nn.Module:
        encoder: nn.Module = transformers.T5EncoderModel(transformers.T5Config(**self._arguments())).encoder
        return encoder

    @property
    def width(self) -> int:
        return int(self.encoder.config.d_model)

    def _values(self, ids: Tensor, mask: Tensor) -> Tensor:
        value: Tensor = self.encoder(input_ids=ids, attention_mask=mask.long())[0]
        return value

    def forward(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        return self.encode(as_texts(raw))

    def null(self) -> tuple[Tensor, Tensor]:
        return self._empty()


def byte_tokenizer(special: tuple[str, str], length: int) -> Tokenizer:
    """Return a tokenizer for tests: a token for each byte, numbers 0 to 511, and two special tokens.

    Args:
        special: the tokens of start and end of CLIP, which pads with the end; or those of padding and end of T5.
        length: number of tokens of a text.

    Returns:
        The tokenizer.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(f"{one}</w>" for one in alphabet), *special]
    numbers = {word: number for number, word in enumerate(words)}
    made = Tokenizer(models.BPE(numbers, [], end_of_word_suffix="</w>", unk_token=special[1]))
    made.add_special_tokens(list(special))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if special[0] == "<pad>":
        made.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", numbers["</s>"])]
        )
        return limited(made, special[0], length)
    made.post_processor = processors.RobertaProcessing(
        (special[1], numbers[special[1]]), (special[0], numbers[special[0]]), False, False
    )
    return limited(made, special[1], length)


@contextmanager
def without_initialisation() -> Iterator[None]:
    """Build models of transformers without its own initialisation, since their weights are read from a file next."""
    base: Any = transformers.PreTrainedModel
    kept = base.init_weights
    base.init_weights = lambda model: None
    try:
        yield
    finally:
        base.init_weights = kept


def load_exactly(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load weights that must have the names and shapes of a module.

    Args:
        module: the module.
        weights: its state dict, in any type.
        source: the origin of the weights, for messages.

    Raises:
        CheckpointError: DK603, a weight is missing, unknown, or of another shape.
    """
    own = module.state_dict()
    missing, extra = [n for n in own if n not in weights], [n for n in weights if n not in own]
    if missing or extra:
        raise misnamed(missing, extra)
    wrong = [name for name, tensor in weights.items() if tensor.shape != own[name].shape]
    if wrong:
        notes = [f"{n}: {tuple(weights[n].shape)}, but the config gives {tuple(own[n].shape)}" for n in wrong[:8]]
        message = f"the weights of {source} do not have the shapes of its config"
        raise CheckpointError(message, code="DK603", fix="take config and weights from the same model", notes=notes)
    module.load_state_dict(weights)
