"""Our tokenizers as the tokenizer files of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as FastTokenizer

from git_scale.checkpoint.folder import write_text
from git_scale.checkpoint.native import write_tokenizer
from git_scale.data.tokenizer import Tokenizer, WordPieceTokenizer
from git_scale.errors import CheckpointError

UNIGRAM = 1  # of sentencepiece's TrainerSpec.ModelType
SPELLED_BYTE = "<(?=0x[0-9A-F]{2}>)"  # the sign before the rest of what a byte's piece is called
PROBES: tuple[str, ...] = (
    "a red dog is sitting near the table.",
    "Caf\u00e9 \u2014 2  dogs,\tone \u4e2d cat!",
    "x",
    " a ",
)
PROBES += ("30\u00b0 \U0001f600\u4e2d\u6587", "a <0x41> b<0x0A>")


def write_tokenizer_files(tokenizer: Tokenizer, positions: int, folder: Path) -> None:
    """tokenizer.json, its configuration, and the tokenizer's own file. Raises CheckpointError."""
    if isinstance(tokenizer, WordPieceTokenizer):
        fast, names, config = _wordpiece(tokenizer)
    else:
        fast, names, config = _unigram(tokenizer.path)
    ids = {name: fast.token_to_id(token) for name, token in names.items()}
    fast.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in names.values()])
    begin, end = names["bos_token"], names["eos_token"]
    fast.post_processor = processors.TemplateProcessing(
        single=f"{begin}:0 $A:0 {end}:0",
        pair=f"{begin}:0 $A:0 {end}:0 $B:1 {end}:1",
        special_tokens=[(begin, ids["bos_token"]), (end, ids["eos_token"])],
    )
    _compare(tokenizer, fast)
    config |= names | {"model_max_length": positions, "processor_class": "GitProcessor"}
    config["model_input_names"] = [
        "input_ids",
        "attention_mask",
    ]  # BERT's third would be refused by generate()
    write_text(folder / "tokenizer.json", fast.to_str())
    write_text(folder / "tokenizer_config.json", json.dumps(config, indent=1))
    write_text(folder / "special_tokens_map.json", json.dumps(names, indent=1))
    write_tokenizer(tokenizer, folder)


def _compare(tokenizer: Tokenizer, fast: FastTokenizer) -> None:
    for text in PROBES:
        found, expected = fast.encode(text, add_special_tokens=False).ids, tokenizer.encode(text)
        if found != expected:
            raise CheckpointError(
                f"{tokenizer.path}: transformers would read {text!r} as {found} instead of {expected}:"
                " take --format native"
            )


Built = tuple[FastTokenizer, dict[str, str], dict[str, Any]]


def _wordpiece(tokenizer: WordPieceTokenizer) -> Built:
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]"}
    names |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    if "[MASK]" in tokenizer.vocabulary:
        names["mask_token"] = "[MASK]"
    return tokenizer.build_fast(), names, {"tokenizer_class": "BertTokenizer", "do_lower_case": True}


def _unigram(path: Path) -> Built:
    """A sentencepiece unigram model, step by step as its own library runs it."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    if proto.trainer_spec.model_type != UNIGRAM:
        raise CheckpointError(
            f"{path}: not a unigram model, the only kind for transformers; take --format native"
        )
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces = [
        (model.id_to_piece(number), model.get_score(number)) for number in range(model.get_piece_size())
    ]
    in_bytes = proto.trainer_spec.byte_fallback
    fast = FastTokenizer(models.Unigram(pieces, unk_id=model.unk_id(), byte_fallback=in_bytes))
    spec = proto.normalizer_spec
    steps: list[Any] = (
        [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    )
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("[ \u2581]+"), " "), normalizers.Strip()]
    fast.normalizer = normalizers.Sequence(steps)
    scheme = "always" if spec.add_dummy_prefix else "never"
    metaspace, spaces = (
        kind.Metaspace("\u2581", prepend_scheme=scheme) for kind in (pre_tokenizers, decoders)
    )
    if in_bytes:
        # A text that spells "<0x41>" is not that byte: no piece may hold the whole of it.
        apart = pre_tokenizers.Split(Regex(SPELLED_BYTE), "isolated")
        fast.pre_tokenizer = pre_tokenizers.Sequence([metaspace, apart])
        fast.decoder = decoders.Sequence([decoders.ByteFallback(), spaces])
    else:
        fast.pre_tokenizer, fast.decoder = metaspace, spaces
    kinds = {"pad": model.pad_id(), "unk": model.unk_id(), "bos": model.bos_id(), "eos": model.eos_id()}
    names = {f"{kind}_token": model.id_to_piece(number) for kind, number in kinds.items()}
    # GitProcessor's examples ask for cls_token
    names |= {"cls_token": names["bos_token"], "sep_token": names["eos_token"]}
    return fast, names, {"tokenizer_class": "PreTrainedTokenizerFast"}
