"""Reads a tokenizer.json of the package `tokenizers`: BPE with a byte-level or a byte fallback decoder; anything else raises
FormatError, or where the JSON has another form KeyError, TypeError, AttributeError or ValueError.
"""
import json
import re
import reprlib

from files import FormatError

MAX_VOCABULARY = 1 << 20    # as in config.h


def byte_of_stand_in():
    """GPT-2's byte-level alphabet, as a dict from character to byte. A byte that is printable in Latin-1 is
    represented by that character; the others by the characters from U+0100 on, in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {**{chr(b): b for b in printable}, **{chr(256 + i): b for i, b in enumerate(others)}}


def with_plain_merges(json_text):
    """tokenizer.json with BPE merges written as "a b", which every version of `tokenizers` reads; versions from 0.20
    on write ["a", "b"], which earlier ones cannot read."""
    parsed = json.loads(json_text)
    merges = parsed["model"].get("merges") or []
    if not all(isinstance(m, list) and " " not in m[0] + m[1] for m in merges):
        return json_text
    parsed["model"]["merges"] = [" ".join(m) for m in merges]
    return json.dumps(parsed, ensure_ascii=False)


BYTE_TOKEN = re.compile(r"<0x(\+[0-9A-Fa-f]|[0-9A-Fa-f]{2})>")  # byte tokens of the decoder ByteFallback


def refuse_decoder(what):
    raise FormatError(f"The tokenizer's decoder {what}; a ByteLevel decoder, or a sequence of Replace, ByteFallback, "
                      f"Fuse and Strip as Llama's was expected.")


def decoder_steps(decoder):
    """The decoders of a (nested) Sequence as a flat list."""
    if not isinstance(decoder, dict):
        refuse_decoder("is missing")
    if decoder.get("type") != "Sequence":
        return [decoder]
    return [step for part in decoder.get("decoders", []) for step in decoder_steps(part)]


def read_decoder(decoder):
    """Reads the decoder of a tokenizer.json. Returns (kind, [(text, replacement)], whether <0x00> to <0xFF> are byte
    tokens, number of leading spaces to strip)."""
    steps = decoder_steps(decoder)
    names = [step.get("type") for step in steps]
    if names == ["ByteLevel"]:
        return "byte_level_bpe", [], False, 0
    replacements = []
    while names[:1] == ["Replace"]:
        step = steps.pop(0)
        names.pop(0)
        pattern = step.get("pattern", {}).get("String")
        if not pattern:
            refuse_decoder("replaces a regular expression")
        if max(len(pattern), len(step["content"])) > 100:
            refuse_decoder("replaces a text of more than 100 characters")
        replacements.append((pattern, step["content"]))
    known = [name for name in ("ByteFallback", "Fuse", "Strip") if name in names]
    if names != known or not names and not replacements or "Strip" in names and "Fuse" not in names:
        refuse_decoder(f"has the steps {', '.join(str(step.get('type')) for step in decoder_steps(decoder))}")
    strip = steps[-1] if "Strip" in names else {"content": " ", "start": 0, "stop": 0}
    if strip.get("content") != " " or strip.get("stop") != 0 or not 0 <= strip.get("start", -1) < 1000:
        refuse_decoder(f"strips something other than spaces at the beginning ({strip})")
    return "byte_fallback_bpe", replacements, "ByteFallback" in names, strip["start"]


def read_added_tokens(parsed):
    """{id: added token}, with the ids that the package `tokenizers` assigns."""
    vocabulary, ids, highest = parsed["model"]["vocab"], {}, -1
    for token in parsed.get("added_tokens") or []:
        text = token["content"]
        if not text or text in ids:
            continue
        beyond = highest + 1 if ids and (highest >= len(vocabulary) or not vocabulary) else len(vocabulary)
        ids[text] = vocabulary.get(text, beyond)
        highest = max(highest, ids[text])
        if token["id"] != ids[text]:
            raise FormatError(f"The tokenizer's added token '{text}' has the id {token['id']}, but `tokenizers` "
                              f"gives it {ids[text]}: an id before it is missing.")
    return {ids[token["content"]]: token for token in parsed.get("added_tokens") or [] if token["content"]}


def read_vocabulary(parsed):
    """{id: text} of the vocabulary of a BPE model, checked."""
    model = parsed.get("model") or {}
    kind = model.get("type") or ("BPE" if "merges" in model else "unknown")
    if kind != "BPE":
        raise FormatError(f"The tokenizer is of the kind {kind}; only BPE is supported.")
    if model.get("dropout"):
        raise FormatError("The tokenizer drops merges at random (model.dropout), so that a text has no fixed ids; "
                          "set it to null.")
    texts = {i: text for text, i in model["vocab"].items()}
    wrong = next((i for i in texts if type(i) is not int or not 0 <= i < MAX_VOCABULARY), None)
    if wrong is not None:
        raise FormatError(f"The tokenizer's token '{texts[wrong][:40]}' has the id {reprlib.repr(wrong)}; expected a "
                          f"number from 0 to {MAX_VOCABULARY - 1}.")
    if len(texts) != len(model["vocab"]):
        text = next(text for text, i in model["vocab"].items() if texts[i] != text)
        raise FormatError(f"The tokenizer's tokens '{text}' and '{texts[model['vocab'][text]]}' have the same id.")
    return texts
