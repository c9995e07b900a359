#!/usr/bin/env python3
"""Makes an adapter file of tikz.c from a LoRA adapter that PEFT saved.

    import_lora.py MODEL.safetensors PEFT_DIR ADAPTER.safetensors

PEFT_DIR has adapter_config.json and adapter_model.safetensors. The adapter was trained on MODEL: on the folder that export_hf.py
makes of it, or on the one that convert_hf.py made it from. PEFT does not save which weights that were, so only names and shapes can
be compared. `infer --model MODEL --lora ADAPTER` computes the same logits as PEFT. Scales of rsLoRA become an alpha; what tikz.c
cannot represent (DoRA, biases, whole layers, ranks of single layers) is refused by name.
"""
import argparse
import os
import sys

import tikzc  # first, because it says whether a package is missing

import files
from export_hf import Export
from hub.peft_adapter import import_adapter
from tikzc import FormatError

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="the tikz.c file of the base")
    parser.add_argument("folder", metavar="PEFT_DIR", help="the folder that PEFT's save_pretrained wrote")
    parser.add_argument("out", metavar="ADAPTER", help="the adapter file to write")
    options = parser.parse_args()
    try:
        files.check_output(options.out)
        for path in (options.model, *(os.path.join(options.folder, name) for name in ADAPTER_FILES)):
            if os.path.realpath(options.out) == os.path.realpath(path):
                raise FormatError(f"{options.out} is what the adapter is made from; name another file to write.")
        rank, layers = import_adapter(Export(options.model), options.folder, options.out)
    except FormatError as e:
        files.fail("import_lora.py", e)
    except OSError as e:
        files.fail("import_lora.py", f"{files.describe(e, options.out)}.")
    except KeyboardInterrupt:
        sys.exit("import_lora.py: interrupted; nothing was written.")
    print(f"{files.printable(options.out)}: an adapter of rank {rank} for {layers} layers")


if __name__ == "__main__":
    main()
