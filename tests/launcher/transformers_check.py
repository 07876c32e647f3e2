#!/usr/bin/env python3
"""Hugging Face's side of tests/launcher/transformers_test.cpp.

    transformers_check.py FOLDER

FOLDER/exported/NAME is what Longspan exported, FOLDER/exported/NAME.json the logits it computes: {"tokens": [...],
"logits": [...], "torch_dtype": ...}. Loads each with transformers and prints a line of the largest difference; fails
where it is above 1e-4, where a tensor is missing, left over or of another shape, or where the type is another one.

Then makes models of its own, random in every parameter, and saves them as FOLDER/saved/NAME with their logits in
FOLDER/saved/NAME.json. Status 77 where torch or transformers are not installed.
"""

import json
import pathlib
import sys

try:
    import torch
    import transformers
except ImportError as missing:
    print(missing)
    sys.exit(77)

BOUND = 1e-4


def logits_of(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].float()


def check(folder):
    expected = json.loads(folder.with_suffix(".json").read_text())
    stored = transformers.AutoConfig.from_pretrained(folder)
    if str(stored.torch_dtype) != "torch." + expected["torch_dtype"]:
        return f"config.json says {stored.torch_dtype}, not {expected['torch_dtype']}"
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, torch_dtype=torch.float32, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        # A tied output is no tensor of its own.
        wrong = [key for key in info[kind] if not (key == "lm_head.weight" and stored.tie_word_embeddings)]
        if wrong:
            return f"{kind}: {wrong}"
    found = logits_of(model.eval(), expected["tokens"])
    wanted = torch.tensor(expected["logits"]).view(len(expected["tokens"]), -1)
    if stored.vocab_size != expected["vocabulary"] or found.shape[1] != stored.vocab_size:
        return f"vocab_size is {stored.vocab_size}, logits {list(found.shape)}"
    # What has no place in the file was padding.
    difference = (found - wanted[:, : stored.vocab_size]).abs().max().item()
    spread = wanted.std().item()
    print(f"{folder.name}: logits differ by {difference:.2e} at most, their standard deviation is {spread:.2f}")
    if not difference <= BOUND:
        return f"logits differ by {difference:.2e}"
    if not spread > 0.1:
        return f"logits are nearly the same everywhere ({spread:.2e}): nothing was compared"
    return None


def randomize(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def save(folder, model, dtype, saved=None, **options):
    """What is saved is in `dtype`; the logits are of these numbers, computed in fp32."""
    model = model.to(dtype)
    (saved or model).save_pretrained(folder, **options)
    # Loaded again: .to() has rounded the angles of the positions too.
    model = type(model).from_pretrained(folder, torch_dtype=torch.float32).eval()
    tokens = torch.randint(0, 250, (20,), generator=torch.Generator().manual_seed(3)).tolist()
    logits = logits_of(model, tokens)
    folder.with_suffix(".json").write_text(json.dumps({"tokens": tokens, "logits": logits.flatten().tolist()}))


def make(folder):
    folder.mkdir()
    # 257: no multiple of anything that would help.
    gpt2 = dict(n_layer=2, n_embd=32, n_head=4, n_positions=64, vocab_size=257, bos_token_id=None, eos_token_id=None)
    llama = dict(num_hidden_layers=2, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                 intermediate_size=48, vocab_size=257, max_position_embeddings=64, bos_token_id=None,
                 eos_token_id=None)
    GPT2, Llama = transformers.GPT2LMHeadModel, transformers.LlamaForCausalLM
    GPT2Config, LlamaConfig = transformers.GPT2Config, transformers.LlamaConfig

    save(folder / "gpt2", randomize(GPT2(GPT2Config(**gpt2)), 1), torch.float32)
    save(folder / "gpt2-shards", randomize(GPT2(GPT2Config(**gpt2, n_inner=80, layer_norm_epsilon=1e-3)), 2),
         torch.float32, max_shard_size="20KB")
    if not (folder / "gpt2-shards" / "model.safetensors.index.json").exists():
        sys.exit("gpt2-shards was saved in one file")
    whole = randomize(GPT2(GPT2Config(**gpt2)), 3)
    save(folder / "gpt2-without-output", whole, torch.float32, saved=whole.transformer)
    save(folder / "llama", randomize(Llama(LlamaConfig(**llama, rms_norm_eps=1e-5)), 4), torch.float32)
    save(folder / "llama-bf16", randomize(Llama(LlamaConfig(**llama, rope_theta=500000.0)), 5), torch.bfloat16,
         max_shard_size="20KB")
    save(folder / "llama-fp16-tied",
         randomize(Llama(LlamaConfig(**llama, tie_word_embeddings=True, attention_bias=True, mlp_bias=True)), 6),
         torch.float16)


def main():
    folder = pathlib.Path(sys.argv[1])
    torch.set_num_threads(1)
    problems = 0
    for case in sorted((folder / "exported").glob("*.json")):
        problem = check(case.with_suffix(""))
        if problem:
            problems += 1
            print(f"{case.stem}: {problem}")
    make(folder / "saved")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
