"""Conditioners of texts against transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from diffkit_stable_diffusion.text import T5, byte_tokenizer

from diffkit import ConditionSpec, RecipeError, UsageError, as_bytes

CONDITION = ConditionSpec((64,), "text")
TEXTS = ["a red cat", ""]

pytestmark = pytest.mark.slow


def test_t5_computes_what_transformers_computes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(
        d_model=16, d_kv=8, num_heads=2, num_layers=2, d_ff=32, vocab_size=514, pad_token_id=512, eos_token_id=513
    )
    whole = transformers.T5ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(byte_tokenizer(("<pad>", "</s>"), 12).to_str())
    special = {"pad_token": "<pad>", "eos_token": "</s>", "model_max_length": 512}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(special))
    conditioner = T5(CONDITION, str(tmp_path), length=12)
    value, mask = conditioner(as_bytes(TEXTS, 64))
    tokens = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    given = tokens(TEXTS, padding="max_length", max_length=12, truncation=True, return_tensors="pt")
    with torch.no_grad():
        want = whole.encoder(given.input_ids, given.attention_mask).last_hidden_state
    assert torch.equal(mask, given.attention_mask.bool())
    assert mask.sum(1).tolist() == [10, 1]
    torch.testing.assert_close(value[mask], want[mask], rtol=0, atol=1e-5)
    torch.testing.assert_close(conditioner.null()[0][0], want[1, 0], rtol=0, atol=1e-5)
    with pytest.warns(UserWarning, match="more than 12 tokens.*' text' is lost; option `length`"):
        conditioner(as_bytes(["a very long text"], 64))


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="give either folder or config"):
        T5(CONDITION)
    with pytest.raises(ValueError, match="requires a condition of texts"):
        T5(ConditionSpec((3,)), str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    with pytest.raises(UsageError, match="holds a BertModel, not a T5EncoderModel"):
        T5(CONDITION, str(tmp_path))
