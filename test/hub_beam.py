"""Beam search of the C code (test_beam --ids) against transformers' generate(num_beams=N, length_penalty=X,
early_stopping=False), token for token.

A random model seldom ends a text, so a token that it writes when it is greedy becomes the end token. Where rounding decides,
transformers contradicts itself, in fp32 and in fp64: such texts are not compared, and they must be few.
"""
import torch

from hub_cases import TOKENS, check, make_case, must, oracle, round_to, run, script
import tikzc

NAMES = ("v2", "v2 llama3 bf16 shards padded", "v1 timm, inner layer, mixed types", "v2 wide heads")
LENGTH, IMAGES = 16, 2
SETTINGS = [(beams, penalty) for beams in (2, 3, 5) for penalty in (0.0, 1.0, 2.0)]


@torch.no_grad()
def search(tiny, pixels, prefix, forbidden, end, dtype, **options):
    """-> ids without the end token, and whether it came."""
    lm = tiny.lm.to(dtype)
    text = lm.get_input_embeddings()(torch.tensor([prefix], dtype=torch.long))
    out = lm.generate(inputs_embeds=torch.cat([tiny.image_tokens(pixels[None]).to(dtype), text], 1), do_sample=False,
                      early_stopping=False, max_new_tokens=LENGTH, suppress_tokens=forbidden,
                      begin_suppress_tokens=[end], eos_token_id=end, pad_token_id=oracle.PAD, **options)[0].tolist()
    tiny.lm.to(torch.float32)
    return (out[:out.index(end)], "end") if end in out else (out, "cut")


def check_case(build, name, folder, counts):
    tiny, arguments = make_case(name, folder)
    if not must(script("convert_hf.py", *arguments, folder / "model.safetensors"), f"beam: {name}: convert"):
        return
    if tiny.vision_dtype != tiny.dtype:
        round_to(tiny, oracle.TYPES[tiny.dtype])    # the tower is brought to the language model's type
    tensors, metadata = tikzc.read_safetensors(folder / "model.safetensors")
    images = [oracle.image(tiny.tower.config.image_size, i)[1] for i in range(IMAGES)]
    (folder / "pixels").write_bytes(torch.stack(images).numpy().tobytes())
    forbidden = [oracle.BOS, oracle.END, oracle.PAD, *range(TOKENS, tiny.lm.config.vocab_size)]
    greedy, _ = search(tiny, images[0], [], forbidden, oracle.END, torch.float32)
    for i, (beams, penalty) in enumerate(SETTINGS):
        end, prefix = greedy[3 + 5 * (i % 3) // 2], [5, 17] if i % 2 else []
        tikzc.write_safetensors(folder / "ends", tensors, {**metadata, "tokenizer.end": str(end)})
        result = run(build / "test_beam", "--ids", folder / "ends", folder / "pixels", beams, penalty, LENGTH, *prefix)
        if not must(result, f"beam: {name}: test_beam"):
            return
        for pixels, line in zip(images, result.stdout.splitlines(), strict=True):
            *ids, how, _, _ = line.split()
            single, double = (search(tiny, pixels, prefix, [x for x in forbidden if x != end], end, dtype,
                                     num_beams=beams, length_penalty=penalty)
                              for dtype in (torch.float32, torch.float64))
            counts["all"] += 1
            if single == double:
                counts["compared"] += 1
                counts[how] += 1
                check(([int(x) for x in ids], how) == single,
                      f"beam: {name}, {beams} beams, penalty {penalty}: {ids} {how}, transformers {single}")


def check_all(build, folder):
    counts = dict.fromkeys(("all", "compared", "end", "cut"), 0)
    for i, name in enumerate(NAMES):
        (folder / str(i)).mkdir()
        check_case(build, name, folder / str(i), counts)
    print(f"beam search: {counts}")
    check(counts["compared"] >= 0.9 * counts["all"] > 0 and min(counts.values()) > 0, f"beam search: {counts}")
