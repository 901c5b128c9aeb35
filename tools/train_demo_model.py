#!/usr/bin/env python3
"""Trains the demo model in models/demo: a small DeepSeek-V3 that knows the world's capitals.

    python3 tools/train_demo_model.py --out models/demo

Everything is made here: a byte-level BPE tokenizer trained on the phrasings, and a model of DeepSeek-V3's
shape (multi-head latent attention with q_lora, a dense first layer, routed and shared experts, sigmoid
scoring with a correction bias that is balanced by the sign rule of arXiv 2408.15664, two expert groups),
trained with AdamW in float32 on the CPU, then rounded to BF16 and checked: every country in every
phrasing, greedy, on the rounded weights. Takes about a quarter of an hour on two cores. Versions that
made the committed model are written to models/demo/README.md.

Needs the PyPI packages torch, transformers, tokenizers and safetensors.
"""
import argparse
import json
import os
import random
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import tokenizers
import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from demo_facts import CAPITALS, PHRASINGS, examples

BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"
SEED = 20240501


def make_tokenizer(vocab_size):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
        pre_tokenizers.Split(Regex(r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
                                   r"|\s*[\r\n]+|\s+(?!\S)|\s+"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tok.decoder = decoders.ByteLevel()
    special = [AddedToken(t, special=True, normalized=False) for t in (BOS, EOS, PAD)]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator([p + a for _, _, p, a in examples()], trainer)
    bos = tok.token_to_id(BOS)
    tok.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)])
    return tok


def make_config(vocab_size, tok):
    return transformers.DeepseekV3Config(
        vocab_size=vocab_size, hidden_size=128, intermediate_size=384, moe_intermediate_size=96,
        num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=4,
        n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2, n_group=2, topk_group=1,
        first_k_dense_replace=1, norm_topk_prob=True, routed_scaling_factor=1.5,
        q_lora_rank=64, kv_lora_rank=48, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32,
        max_position_embeddings=512, rms_norm_eps=1e-6, num_mtp_layers=0, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, attention_bias=False,
        bos_token_id=tok.token_to_id(BOS), eos_token_id=tok.token_to_id(EOS),
        pad_token_id=tok.token_to_id(PAD))


class BalancedRouters:
    """Counts each expert's load and nudges the correction bias against it, once per step."""

    def __init__(self, model, rate):
        self.rate = rate
        self.routers = [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]
        self.loads = {}
        for router in self.routers:
            router.register_forward_hook(self.count)

    def count(self, router, _inputs, outputs):
        ids = outputs[2].reshape(-1)
        self.loads[router] = torch.bincount(ids, minlength=router.num_experts).float()

    def update(self):
        for router, load in self.loads.items():
            router.e_score_correction_bias += self.rate * torch.sign(load.mean() - load)


def batches(rows, batch_size, rng):
    """Rows of about equal length together, in random order."""
    rows = sorted(rows, key=lambda r: (len(r[0]), rng.random()))
    groups = [rows[i:i + batch_size] for i in range(0, len(rows), batch_size)]
    rng.shuffle(groups)
    return groups


def collate(group, pad):
    width = max(len(ids) for ids, _ in group)
    ids = torch.full((len(group), width), pad)
    labels = torch.full((len(group), width), -100)
    for i, (row, prompt_len) in enumerate(group):
        ids[i, :len(row)] = torch.tensor(row)
        labels[i, prompt_len:len(row)] = torch.tensor(row[prompt_len:])
    return ids, labels


@torch.no_grad()
def wrong_answers(model, rows, eos, pad):
    """Greedy answers that differ from the expected ones: teacher forcing suffices, as a greedy answer
    equals the expected one exactly when each next token is the argmax after the ones before."""
    wrong, margin = [], float("inf")
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    for at in range(0, len(order), 196):
        part = order[at:at + 196]
        ids, labels = collate([rows[i] for i in part], pad)
        logits = model(input_ids=ids).logits[:, :-1]
        want = labels[:, 1:]
        top = logits.topk(2, dim=-1)
        bad = ((top.indices[..., 0] != want) & (want != -100)).any(dim=1)
        gap = torch.where(want != -100, top.values[..., 0] - top.values[..., 1], torch.inf)
        margin = min(margin, gap.min().item())
        wrong += [part[i] for i in torch.nonzero(bad).flatten().tolist()]
    return wrong, margin


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", required=True)
    p.add_argument("--minutes", type=float, default=40, help="give up after this long (default: 40)")
    p.add_argument("--epochs", type=int, default=36)
    p.add_argument("--vocab", type=int, default=1280)
    p.add_argument("--lr", type=float, default=2e-3)
    a = p.parse_args()
    random.seed(SEED)
    torch.manual_seed(SEED)
    rng = random.Random(SEED)

    tok = make_tokenizer(a.vocab)
    eos, pad = tok.token_to_id(EOS), tok.token_to_id(PAD)
    rows = []
    for _, _, prompt, answer in examples():
        prompt_ids = tok.encode(prompt).ids
        # The answer is tokenised on its own: that is how it will be generated.
        rows.append((prompt_ids + tok.encode(answer, add_special_tokens=False).ids + [eos], len(prompt_ids)))
    config = make_config(a.vocab, tok)
    model = transformers.DeepseekV3ForCausalLM(config)
    for name, w in model.named_parameters():
        if name.endswith("gate.weight"):
            torch.nn.init.normal_(w, std=0.02)
    print(f"{sum(w.numel() for w in model.parameters()) / 1e6:.2f} M parameters, {len(rows)} examples, "
          f"{sum(len(r[0]) for r in rows) / len(rows):.1f} tokens each", flush=True)

    model.train()
    balance = BalancedRouters(model, 1e-3)
    decay = [w for n, w in model.named_parameters() if w.dim() > 1]
    plain = [w for n, w in model.named_parameters() if w.dim() <= 1]
    opt = torch.optim.AdamW([{"params": decay, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}],
                            lr=a.lr, betas=(0.9, 0.98))
    batch_size = 64
    steps = a.epochs * ((len(rows) + batch_size - 1) // batch_size)
    sched = torch.optim.lr_scheduler.LambdaLR(
        opt, lambda s: min(1.0, (s + 1) / 50) * max(0.03, 1 - s / steps))
    start = time.time()
    for epoch in range(a.epochs):
        total = 0.0
        groups = batches(rows, batch_size, rng)
        for group in groups:
            ids, labels = collate(group, pad)
            logits = model(input_ids=ids).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100)
            opt.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            sched.step()
            balance.update()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / len(groups):.4f}, {time.time() - start:.0f} s", flush=True)
        if time.time() - start > a.minutes * 60:
            break

    model.eval()
    with torch.no_grad(): # as the file will hold them: matrices and norms BF16, the bias F32
        for w in model.parameters():
            w.copy_(w.to(torch.bfloat16).float())
    wrong, margin = wrong_answers(model, rows, eos, pad)
    all_examples = list(examples())
    for i in wrong[:10]:
        print("wrong:", all_examples[i])
    print(f"{len(rows) - len(wrong)} of {len(rows)} right after rounding to BF16; "
          f"smallest margin between the best two logits {margin:.3f}")
    biases = {f"model.layers.{i}.mlp.gate.e_score_correction_bias": layer.mlp.gate.e_score_correction_bias.clone()
              for i, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "gate")}
    model.to(torch.bfloat16)
    for i, layer in enumerate(model.model.layers):
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.e_score_correction_bias = biases[f"model.layers.{i}.mlp.gate.e_score_correction_bias"]
    model.save_pretrained(a.out)
    tok.save(os.path.join(a.out, "tokenizer.json"), pretty=False)
    with open(os.path.join(a.out, "tokenizer_config.json"), "w") as f:
        json.dump({"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "model_max_length": 512,
                   "tokenizer_class": "PreTrainedTokenizerFast"}, f, indent=2)
        f.write("\n")
    with open(os.path.join(a.out, "README.md"), "w") as f:
        f.write(f"""# The demo model

A DeepSeek-V3-shaped language model of {sum(w.numel() for w in model.parameters()) / 1e6:.2f} million parameters that knows
the capitals of {len(CAPITALS)} countries, asked for in {len(PHRASINGS)} phrasings, and nothing else. Made by

    python3 tools/train_demo_model.py --out models/demo --epochs {a.epochs} --vocab {a.vocab} --lr {a.lr}

with seed {SEED}, Python {sys.version.split()[0]}, torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__},
tokenizers {tokenizers.__version__}. {len(rows) - len(wrong)} of {len(rows)} answers are right, greedy, with the weights rounded to BF16.
Licence: as the project's; the facts are common knowledge.
""")
    return 0 if not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
