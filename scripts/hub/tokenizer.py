"""The tokenizer files of a Hub folder: tokenizer.json, tokenizer_config.json, and the end tokens that config.json or
generation_config.json names."""
from pathlib import Path

import tikzc
from hub.files import compact, parse_object, read_json, read_text, shown
from tikzc import FormatError

MAX_ENDS = 16       # end tokens of a model; as in lib/tokenizer.h


def read_tokenizer(folder, rows, ends, image, end_token, note):
    """-> (Tokenizer, metadata for exporting the model again). rows: of the embedding; ends: the eos_token_id of the
    model; image: id of the token at the image positions, None: choose one; end_token: --end-token or None."""
    path = Path(folder) / "tokenizer.json"
    if not path.exists():
        raise FormatError(f"{path}: no such file; transformers' AutoTokenizer makes one of tokenizer.model "
                          f"(save_pretrained), and --tokenizer names another folder.")
    text = read_text(path)
    names = token_names(text, path)
    given = read_json(Path(folder) / "tokenizer_config.json", needed=False) or {}
    end, *more = (end_token,) if end_token else end_tokens(names, given, ends, path, note)
    text = cut_added_tokens(parse_object(text, path), text, rows, path, note)
    try:
        tokenizer = tikzc.Tokenizer.from_json(text, end_token=end)
    except FormatError as e:
        raise FormatError(f"{path}: {e}")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, IndexError, RecursionError) as e:
        raise FormatError(f"{path}: not a tokenizer.json as the package tokenizers writes it ({e!r}).")
    if len(tokenizer.tokens) > rows:
        raise FormatError(f"{path}: the tokenizer has {len(tokenizer.tokens)} tokens, but the embedding has {rows} "
                          f"rows; they do not belong together.")
    tokenizer.more_ends = [i for i in more if i < len(tokenizer.tokens)]
    if image is not None and not (type(image) is int and 0 <= image < rows):
        raise FormatError(f"{folder}: the image token is {shown(image)}, but the embedding has {rows} rows.")
    if image is not None and image < len(tokenizer.tokens):
        tokenizer.special[image] = True         # so that it is never printed
    if image is None:
        image = image_token(tokenizer)
    metadata = {"hub.tokenizer_config": compact(tokenizer_settings(given, tokenizer, image), path)}
    if image is not None:
        metadata["hub.image_token"] = str(image)
    return tokenizer, metadata


def token_text(value):
    """The text of a special token in tokenizer_config.json, which is a string or an object with its content."""
    return value.get("content") if isinstance(value, dict) else value


def image_token(tokenizer):
    """The id of a token that can stand at the image positions if a checkpoint names none: a special token that does not
    end a text, or else a control character, since no program contains them. None if there is no such token."""
    ends = {tokenizer.end, *tokenizer.more_ends}
    special = [i for i, flag in enumerate(tokenizer.special) if flag and tokenizer.tokens[i] and i not in ends]
    control = [i for i, token in enumerate(tokenizer.tokens) if len(token) == 1 and token < b"\x09"]
    return next(iter(special + control), None)


def tokenizer_settings(given, tokenizer, image):
    """tokenizer_config.json, completed with the keys that loading requires, and without model_max_length, which is
    lm.max_positions of the configuration. What transformers 5 writes becomes what 4 and 5 read. Idempotent."""
    names = token_names(tokenizer.json_text, "tokenizer.json")
    settings = {key: value for key, value in given.items()
                if key not in ("model_max_length", "backend") and not (key.endswith("_token") and gone(value, names))}
    if str(settings.get("tokenizer_class", "Backend")).endswith("Backend"):
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):     # a dictionary in transformers 4
        extra = settings.pop("extra_special_tokens")
        settings.setdefault("additional_special_tokens", extra)
    if isinstance(settings.get("additional_special_tokens"), list):
        settings["additional_special_tokens"] = [t for t in settings["additional_special_tokens"] if not gone(t, names)]
    if isinstance(settings.get("added_tokens_decoder"), dict):
        known = set(map(str, names))
        settings["added_tokens_decoder"] = {i: t for i, t in settings["added_tokens_decoder"].items() if i in known}
    settings.setdefault("clean_up_tokenization_spaces", False)
    settings.setdefault("model_input_names", ["input_ids", "attention_mask"])   # otherwise with token types, for BERT
    settings["eos_token"] = names[tokenizer.end]
    if image in names:
        settings.setdefault("bos_token", names[image])
    return settings


def gone(token, names):
    """Whether a setting names a token that is not in the tokenizer (any more); loading it would add the token with an
    id beyond the embedding."""
    text = token_text(token)
    return isinstance(text, str) and text not in names.values()


def token_names(json_text, where):
    """{id: the text of the token in tokenizer.json}"""
    try:
        parsed = parse_object(json_text, where)
        names = {int(i): str(text) for text, i in parsed["model"]["vocab"].items()}
        return names | {int(token["id"]): str(token["content"]) for token in parsed.get("added_tokens") or []}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise FormatError(f"{where}: not a tokenizer.json with a BPE vocabulary; other kinds of tokenizers are not "
                          f"supported.")


def cut_added_tokens(parsed, text, rows, path, note):
    """Removes added tokens with ids beyond the rows of the embedding (mostly a padding token): the model has no
    embedding for them."""
    added = parsed.get("added_tokens") or []
    beyond = [token for token in added if token["id"] >= rows]
    vocabulary = parsed["model"]["vocab"]
    if not beyond or max(vocabulary.values(), default=0) >= rows:
        return text
    names = ", ".join(str(token["content"]) for token in beyond)
    note(f"{path}: left out {names}, beyond the {rows} rows of the embedding")
    parsed["added_tokens"] = [token for token in added if token["id"] < rows]
    return compact(parsed, path)


def end_tokens(names, settings, ids, path, note):
    """-> [text of the tokenizer's end token, ids of the model's other end tokens ...]. The tokenizer's must be one of
    the model's."""
    ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
    if not all(type(i) is int and i >= 0 for i in ids):
        raise FormatError(f"{path.parent}: eos_token_id is {shown(ids)}, expected the id of a token or several.")
    text = token_text(settings.get("eos_token"))
    if text is None:
        if not ids:
            raise FormatError(f"{path}: neither tokenizer_config.json nor config.json says which token ends a text; "
                              f"name it with --end-token.")
        text = names.get(ids[0])
    number = next((i for i, name in names.items() if name == text), None)
    if number is None:
        raise FormatError(f"{path}: the end token {text or ids[0]} is not in the tokenizer; the files do not belong "
                          f"together, or name it with --end-token.")
    if ids and number not in ids:
        raise FormatError(f"{path}: the tokenizer ends a text with {text} ({number}), the model's configuration with "
                          f"{shown(ids)}; the files do not belong together, or name the token with --end-token.")
    unknown = [i for i in ids if i not in names]
    if unknown:
        note(f"{path}: has no token {', '.join(map(str, unknown[:5]))}, with which the configuration would end a text")
    more = [i for i in dict.fromkeys(ids) if i != number and i in names]
    if len(more) >= MAX_ENDS:
        raise FormatError(f"{path.parent}: eos_token_id names {len(ids)} tokens, expected at most {MAX_ENDS}.")
    return [text, *more]
