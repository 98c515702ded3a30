"""The tokenizer of a Hugging Face folder, made as transformers' CLIPTokenizer (5.x) makes it.

A bundle keeps it as one tokenizer.json of the package `tokenizers`. What decides its ids beside the
vocabulary are the added tokens: they are cut out of a text before anything else, and the word that
pads is one of them, "!" in Meissonic's.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from dimo_jax.common import readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import shown
from dimo_jax.conditions import clip_vocabulary
from dimo_jax.conditions.clip_vocabulary import END, START

TOKENIZER_FILE = "tokenizer.json"
_CONFIG_FILE, _SPECIAL_FILE = "tokenizer_config.json", "special_tokens_map.json"
_ADDED_FILE = "added_tokens.json"
# One of these makes a folder one that CLIPTokenizer loads.
_MARKS = (TOKENIZER_FILE, "vocab.json")
# Special tokens in the order in which transformers adds them, and what they are without a word.
_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_DEFAULTS = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
_FRAME = ("bos_token", "eos_token", "pad_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
# Settings that make other rows of ids than start, text, end, padding.
_USUAL = {
    "padding_side": "right",
    "truncation_side": "right",
    "split_special_tokens": False,
    "add_bos_token": True,
    "add_eos_token": True,
}
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>"
    r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def is_folder(path: Path) -> bool:
    """Return whether a folder holds such a tokenizer, rather than a vocabulary alone."""
    return any((path / name).is_file() for name in _MARKS)


@readers.well_typed("the tokenizer beside the text encoder")
def read(folder: Path, merges: Sequence[str], context: int, vocabulary: int) -> bytes:
    """Return the tokenizer of a folder.

    Args:
        folder: with tokenizer.json, or vocab.json and merges.txt; and with tokenizer_config.json,
            special_tokens_map.json and added_tokens.json as far as there are any.
        merges: of its vocabulary, of clip_vocabulary.read, which compares the ids.
        context: ids of a row.
        vocabulary: ids that the text tower has.

    Returns:
        A tokenizer.json, for `from_json`.

    Raises:
        InputError: a file is damaged, it is another tokenizer than CLIP's, or it makes ids that
            the text tower does not have.
    """
    config = _object(folder / _CONFIG_FILE)
    name = config.get("tokenizer_class", "CLIPTokenizer")
    if name not in ("CLIPTokenizer", "CLIPTokenizerFast"):
        raise InputError(
            f"{folder / _CONFIG_FILE} is of a {shown(name)}, expected a CLIPTokenizer; give the "
            "tokenizer of this text encoder"
        )
    for field, usual in _USUAL.items():
        if config.get(field) not in (usual, None):
            raise InputError(
                f"{folder / _CONFIG_FILE} has {field} {shown(config[field])}, which CLIP's text "
                f"encoders do not have here; expected {usual}"
            )
    whole = _object(folder / TOKENIZER_FILE)
    try:
        roles, added = _tokens(config, folder, whole)
        own = whole["model"]["vocab"] if whole else _object(folder / "vocab.json")
        made = _build(own or _pieces(merges), merges, roles, added)
        start, end, pad = _frame(made, roles)
    except InputError:
        raise
    except Exception as error:  # wrong types anywhere, and the package raises a bare Exception
        raise InputError(f"{folder} has no tokenizer of CLIP's kind: {shown(error)}") from error
    _check_frame(whole.get("post_processor"), start, end, folder)
    largest = max(made.get_vocab().values())
    if largest >= vocabulary:
        raise InputError(
            f"{folder} has ids up to {largest}, the text tower {vocabulary}; give the tokenizer of "
            "this text encoder"
        )
    return _written(made, roles, (start, end, pad), context)


def from_merges(merges: Sequence[str], context: int) -> bytes:
    """Return, as `read` does, a tokenizer of a vocabulary alone, padded with "!" as Meissonic's.

    Args:
        merges: of clip_vocabulary.read.
        context: ids of a row.
    """
    roles = {**_DEFAULTS, "pad_token": clip_vocabulary.byte_characters()[0]}
    added = [AddedToken(token, special=True) for token in dict.fromkeys(roles.values())]
    made = _build(_pieces(merges), merges, roles, added)
    return _written(made, roles, _frame(made, roles), context)


def _frame(made: Tokenizer, roles: Mapping[str, Any]) -> tuple[int, int, int]:
    start, end, pad = (made.token_to_id(str(roles[x])) for x in _FRAME)
    if start is None or end is None or pad is None:
        raise InputError("a tokenizer has no id of its own start, end or padding; expected CLIP's")
    return start, end, pad


def _written(
    made: Tokenizer, roles: Mapping[str, Any], special: tuple[int, int, int], context: int
) -> bytes:
    """Return a tokenizer.json of its own: with start, end and padding around a text."""
    start, end, pad = special
    made.post_processor = processors.RobertaProcessing(
        (str(roles["eos_token"]), end), (str(roles["bos_token"]), start), False, False
    )
    made.enable_padding(pad_id=pad, pad_token=str(roles["pad_token"]), length=context)
    made.enable_truncation(context)
    return made.to_str().encode()


def _object(path: Path) -> dict[str, Any]:
    return readers.json_object(path) if path.is_file() else {}


def _tokens(
    config: Mapping[str, Any], folder: Path, whole: Mapping[str, Any]
) -> tuple[dict[str, Any], list[AddedToken]]:
    """Return the special tokens by role, and all that are added, in transformers' order."""
    config = {**config}
    numbered: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in config:
        for number, fields in config["added_tokens_decoder"].items():
            numbered[int(number)] = _from_fields(fields)
    else:
        for name, value in _object(folder / _SPECIAL_FILE).items():
            if isinstance(value, dict):
                value = _from_fields({**value, "special": True})
            config[name] = value
        named = {str(_as_token(config[x])) for x in _role_names(config)}
        named |= set(map(str, _extra(config)))
        for text, number in _object(folder / _ADDED_FILE).items():
            special = text in named
            numbered[int(number)] = AddedToken(text, normalized=not special, special=special)
        for fields in whole.get("added_tokens", []):
            numbered[fields["id"]] = _from_fields(fields)
    by_text = {str(token): token for token in numbered.values()}
    roles = {name: _as_token(config[name]) for name in _role_names(config)}
    roles = {name: by_text.get(str(token), token) for name, token in roles.items()}
    roles = {**{k: by_text.get(v, v) for k, v in _DEFAULTS.items()}, **roles}
    ordered = {f"{x}_token": roles[f"{x}_token"] for x in _ROLES if f"{x}_token" in roles} | roles
    tokens: list[Any] = [numbered[number] for number in sorted(numbered)]
    known = set(map(str, tokens))
    for token in (*ordered.values(), *_extra(config)):
        if str(token) not in known and token not in tokens:
            tokens.append(token)
    special = set(map(str, ordered.values()))
    return roles, [_added(token, str(token) in special) for token in tokens]


def _role_names(config: Mapping[str, Any]) -> list[str]:
    """Fields that name a special token: the seven, and a model's own."""
    return [
        name
        for name, value in config.items()
        if name.endswith("_token") and isinstance(value, str | dict | AddedToken)
    ]


def _extra(config: Mapping[str, Any]) -> list[str | AddedToken]:
    """Return special tokens without a role."""
    found = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    return [_as_token(x) for x in (found.values() if isinstance(found, dict) else found)]


def _as_token(value: Any) -> str | AddedToken:
    return _from_fields(value) if isinstance(value, dict) else value


def _from_fields(fields: Mapping[str, Any]) -> AddedToken:
    # The package prints the names of others to the terminal, whatever characters they are of.
    return AddedToken(**{name: fields[name] for name in ("content", *_FLAGS) if name in fields})


def _added(token: str | AddedToken, special: bool) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=True)  # and so not looked for in the normalized text
    if special and not token.special:
        token.special = True
    return token


def _pieces(merges: Sequence[str]) -> dict[str, int]:
    return {piece: i for i, piece in enumerate([*clip_vocabulary.tokens(merges), START, END])}


def _build(
    vocabulary: Mapping[str, int],
    merges: Sequence[str],
    roles: Mapping[str, Any],
    added: Sequence[AddedToken],
) -> Tokenizer:
    pairs: list[Any] = [tuple(merge.split(" ")) for merge in merges]
    made = Tokenizer(
        models.BPE(
            vocab=dict(vocabulary),
            merges=pairs,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token=str(roles["unk_token"]),
        )
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    made.add_tokens(list(added))
    return made


def _check_frame(found: Mapping[str, Any] | None, start: int, end: int, folder: Path) -> None:
    """Refuse a tokenizer.json that puts other tokens around a text than start and end."""
    if found is None:
        return
    ids = [(found.get(name) or (None, None))[-1] for name in ("cls", "sep")]
    if found.get("type") != "RobertaProcessing" or ids != [start, end]:
        raise InputError(
            f"{folder / TOKENIZER_FILE} has the post-processor {shown(found.get('type'))} with "
            f"{shown(ids)}, expected RobertaProcessing with [{start}, {end}]; give CLIP's tokenizer"
        )


def from_json(data: bytes) -> tuple[Tokenizer, tuple[int, int, int]]:
    """Return the tokenizer of what `read` gave.

    Built anew from its vocabulary and tokens: the expressions of a file from elsewhere are not run.

    Returns:
        (tokenizer without padding and cutting, ids of (start, end, padding)).

    Raises:
        InputError: it is something else.
    """
    found = readers.as_object(readers.parse_json(data, TOKENIZER_FILE), TOKENIZER_FILE)
    try:
        model, frame = found["model"], found["post_processor"]
        # The package goes through all numbers to the largest, and ends a process without memory.
        if sorted(model["vocab"].values()) != list(range(len(model["vocab"]))):
            raise ValueError("the ids of its vocabulary are not 0, 1, 2, ...")
        tokens = sorted(found["added_tokens"], key=lambda token: token["id"])
        added = [AddedToken(token["content"], **{x: token[x] for x in _FLAGS}) for token in tokens]
        made = _build(model["vocab"], merges_of(data), {"unk_token": model["unk_token"]}, added)
        special = (frame["cls"][1], frame["sep"][1], found["padding"]["pad_id"])
        same = json.loads(made.to_str())
        wrong = [x for x in ("normalizer", "pre_tokenizer") if same[x] != found[x]]
        wrong += [t["content"] for t in tokens if made.token_to_id(t["content"]) != t["id"]]
        wrong += [x for x in special if made.id_to_token(x) is None]
    except Exception as error:  # wrong types anywhere, and the package raises a bare Exception
        raise InputError(
            f"{TOKENIZER_FILE} is no tokenizer of CLIP's kind ({shown(repr(error))}); convert the "
            "text encoder again"
        ) from error
    if wrong:
        raise InputError(
            f"{TOKENIZER_FILE} has another {shown(wrong[0])} than CLIP's tokenizer has here; "
            "convert the text encoder again"
        )
    return made, special


def merges_of(data: bytes) -> list[str]:
    """Return the merges of what `read` gave, each "left right".

    Raises:
        InputError: it is something else.
    """
    return clip_vocabulary.merges_in(readers.parse_json(data, TOKENIZER_FILE), TOKENIZER_FILE)


@readers.well_typed(TOKENIZER_FILE)
def to_folder(data: bytes, context: int) -> dict[str, bytes]:
    """Return the folder with which transformers' CLIPTokenizer makes the same ids.

    Args:
        data: of `read`.
        context: ids of a row.

    Returns:
        {file: content}.

    Raises:
        InputError: as `from_json`.
    """
    made, special = from_json(data)
    found = json.loads(data)
    added = {str(t["id"]): {x: t[x] for x in ("content", *_FLAGS)} for t in found["added_tokens"]}
    roles = {name: made.id_to_token(x) for name, x in zip(_FRAME, special, strict=True)}
    roles["unk_token"] = found["model"]["unk_token"]
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": context,
        **roles,
        "added_tokens_decoder": added,
        "do_lower_case": True,
        "add_prefix_space": False,
    }
    content = {
        _CONFIG_FILE: config,
        _SPECIAL_FILE: roles,
        "vocab.json": found["model"]["vocab"],
    }
    texts = {name: json.dumps(fields, ensure_ascii=False) for name, fields in content.items()}
    return {
        **{name: f"{text}\n".encode() for name, text in texts.items()},
        clip_vocabulary.MERGES_FILE: clip_vocabulary.to_text(merges_of(data)),
    }
