#!/usr/bin/env python3
"""`lighter quantize`: files of every type answer as the model does, tokenizers are carried over, and a run that is
killed is taken up by the next."""
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile

import lighter

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_0", "Q3_K_S", "Q2_K")
QUESTIONS = (("The capital of France is", " Paris."), ("The capital of Japan is", " Tokyo."))
GREEDY = ("--temperature", "0", "--max-new-tokens", "8", "--quiet")
TEXTS = os.path.join(lighter.ROOT, "tests", "golden", "text")
folder = None  # set below, before the tests run


def path(name):
    return os.path.join(folder, name)


def quantize(model, name, kind, *more):
    return lighter.run_json("quantize", "--model", model, "--out", path(name), "--type", kind, "--quiet", *more)


def demo(name, kind, *more):
    return quantize(lighter.DEMO, name, kind, "--pre", "deepseek-v3", *more)


def fails(code, words, *arguments):
    status, _, err = lighter.run("quantize", *arguments)
    assert status == code and all(word in err for word in words), (status, err)


def difference(model, other, *arguments):
    """The largest of the logits of two models, in standard deviations."""
    first, second = (lighter.run_json("logits", "--model", one, *arguments) for one in (model, other))
    assert first["input_ids"] == second["input_ids"] and first["shape"] == second["shape"]
    rows = list(zip(sum(first["logits"], []), sum(second["logits"], [])))
    deviation = (sum(one * one for one, _ in rows) / len(rows)) ** 0.5
    return max(abs(one - other) for one, other in rows) / deviation


def test_every_type_answers_as_the_model_does():
    """The demo model's rows are shorter than a block of 256, so types with K become Q8_0 there, and Q4_0 is what
    loses most."""
    sizes = {}
    for kind in TYPES:
        done = demo("demo.gguf", kind)
        assert done["out_bytes"] == os.path.getsize(path("demo.gguf")) and done["type"] == kind
        assert done["weight_count"] > 3e6 and done["resumed_bytes"] == 0
        sizes[kind] = done["out_bytes"]
        for question, answer in QUESTIONS:
            found = lighter.run_json("generate", "--model", path("demo.gguf"), "--prompt", question, *GREEDY)
            assert found["text"] == answer, (kind, found["text"])
    assert sizes["F32"] > 1.9 * sizes["F16"] and sizes["F16"] > 1.5 * sizes["Q8_0"] > 1.5 * sizes["Q4_0"], sizes
    assert os.listdir(folder) == ["demo.gguf"], os.listdir(folder)


def test_logits_of_a_file_are_those_of_the_folder():
    """F32 loses nothing of BF16; kernels may add up in another order for it."""
    demo("demo.gguf", "F32")
    prompt = ("--prompt", "What is the capital of Peru?", "--quiet")
    assert difference(lighter.DEMO, path("demo.gguf"), *prompt) < 1e-4


def test_quantised_folders_become_files():
    """FP8 and its scales, which files have no type for, are exact in F32; packed INT4 multiplies other x than F32."""
    for name, bound in (("qwen3_fp8", 1e-4), ("llama_fp8_channel", 1e-4), ("llama_fp8_short", 1e-4),
                        ("qwen3_gptq_asym", 0.2), ("llama_w8a8", 0.2)):
        model = os.path.join(lighter.ROOT, "tests", "golden", "packed", name)
        quantize(model, "packed.gguf", "F32")
        found = difference(model, path("packed.gguf"), "--input-ids", "1,2,3,4,5,6,7", "--quiet")
        assert found < bound, (name, found)


def test_a_file_becomes_another():
    demo("once.gguf", "F16")
    quantize(path("once.gguf"), "twice.gguf", "Q8_0")
    demo("direct.gguf", "Q8_0")
    with open(path("twice.gguf"), "rb") as twice, open(path("direct.gguf"), "rb") as direct:
        assert len(twice.read()) == len(direct.read())
    for name in ("once.gguf", "twice.gguf"):
        found = lighter.run_json("generate", "--model", path(name), "--prompt", QUESTIONS[0][0], *GREEDY)
        assert found["text"] == QUESTIONS[0][1], (name, found["text"])
    code, _, err = lighter.run("quantize", "--model", path("twice.gguf"), "--out", path("thrice.gguf"), "--type", "Q4_0")
    assert code == 0 and "lose more than once" in err, err


def test_a_file_may_be_several():
    """Of any of them the model opens, they hold the bytes of the one, and a set takes another's place."""
    whole = demo("demo.gguf", "Q8_0")
    limit = whole["out_bytes"] // 3
    names = [f"parts-{i + 1:05}-of-00004.gguf" for i in range(4)]
    for size in (limit, limit):
        done = demo("parts.gguf", "Q8_0", "--split-max-size", str(size))
        assert (done["file_count"], done["out"]) == (4, path(names[0])) and done["resumed_bytes"] == 0, done
        assert sorted(name for name in os.listdir(folder) if "parts" in name) == names, os.listdir(folder)
        sizes = [os.path.getsize(path(name)) for name in names]
        assert max(sizes) <= limit and sum(sizes) == done["out_bytes"], (sizes, limit)
    for name in (names[0], names[2]):
        first, second = (lighter.run_json("logits", "--model", path(one), "--prompt", QUESTIONS[0][0], "--quiet")
                         for one in ("demo.gguf", name))
        assert first["logits"] == second["logits"]
    done = quantize(path(names[0]), "joined.gguf", "Q8_0")
    assert done["out_bytes"] == whole["out_bytes"] and done["file_count"] == 1
    with open(path("joined.gguf"), "rb") as joined, open(path("demo.gguf"), "rb") as one:
        assert joined.read() == one.read()
    fails(1, ["--split-max-size is too small", "alone takes"], "--model", lighter.DEMO, "--out", path("no.gguf"),
          "--type", "Q8_0", "--pre", "deepseek-v3", "--split-max-size", "4096")
    fails(1, ["is a file of the model itself"], "--model", path(names[0]), "--out", path("parts.gguf"), "--type", "Q8_0",
          "--split-max-size", str(limit))
    assert done["type"] == "Q8_0" and not [name for name in os.listdir(folder) if ".part" in name]


def test_several_files_go_on():
    """Killed at several moments, the next run goes on, or begins anew, and makes the same bytes."""
    limit = str(quantize(lighter.DEMO, "demo.gguf", "F16", "--pre", "deepseek-v3")["out_bytes"] // 3)
    demo("wanted.gguf", "F16", "--split-max-size", limit)
    for delay in (0.02, 0.05, 0.1):
        command = [lighter.PROGRAM, "quantize", "--model", lighter.DEMO, "--out", path("killed.gguf"), "--type", "F16",
                   "--pre", "deepseek-v3", "--split-max-size", limit, "--threads", "1", "--quiet"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    demo("killed.gguf", "F16", "--split-max-size", limit)
    names = [name for name in os.listdir(folder) if name.startswith("wanted-")]
    assert len(names) == 4 and not [name for name in os.listdir(folder) if ".part" in name], os.listdir(folder)
    for name in names:
        with open(path(name), "rb") as wanted, open(path(name.replace("wanted", "killed")), "rb") as killed:
            assert wanted.read() == killed.read(), name


def test_tensors_have_types_of_their_own():
    demo("demo.gguf", "Q8_0", "--tensor-type", "blk.1.*=F16", "--tensor-type", "*.ffn_down_exps.weight=Q4_0")
    report = lighter.run_json("inspect", "--model", path("demo.gguf"), "--tensors")
    types = {one["name"]: one["dtype"] for one in report["tensors"]}
    assert types["model.layers.1.mlp.experts.down_proj.weight"] == "F16", types
    assert types["model.layers.2.mlp.experts.down_proj.weight"] == "Q4_0", types
    assert types["model.layers.2.mlp.experts.up_proj.weight"] == "Q8_0", types
    assert types["model.layers.2.mlp.gate.weight"] == types["model.norm.weight"] == "F32", types
    assert report["will_run"], report["reason"]


def test_what_is_wrong_is_said():
    model = ("--model", lighter.DEMO)
    out = ("--out", path("x.gguf"))
    fails(2, ["needs --out"], *model, "--type", "Q8_0")
    fails(2, ["needs --type"], *model, *out)
    fails(2, ["there is no 'Q9'", "Q4_K_M"], *model, *out, "--type", "Q9")
    fails(2, ["GLOB=TYPE"], *model, *out, "--type", "Q8_0", "--tensor-type", "Q4_0")
    fails(2, ["there is no type 'IQ4_XS'"], *model, *out, "--type", "Q8_0", "--tensor-type", "*=IQ4_XS")
    fails(1, ["no name for", "--pre NAME", "deepseek-v3"], *model, *out, "--type", "Q8_0")
    fails(1, ["--pre: 'qwen9'", "qwen2"], *model, *out, "--type", "Q8_0", "--pre", "qwen9")
    fails(1, ["no/such"], "--model", "no/such", *out, "--type", "Q8_0")
    fails(1, ["does not end in .gguf"], *model, "--out", path("x.bin"), "--type", "F16", "--pre", "gpt-2")
    fails(1, ["--memory-budget 64.0 KiB is too small"], *model, *out, "--type", "Q8_0", "--pre", "gpt-2",
          "--memory-budget", "64KiB")
    assert not [name for name in os.listdir(folder) if name.startswith("x")], os.listdir(folder)


def tiny_model(name, tokenizer):
    """A folder with the tokenizer and a llama of one layer, of zeros, as large as that needs."""
    place = path(name)
    os.mkdir(place)
    if tokenizer == "sentencepiece":
        shutil.copy(os.path.join(TEXTS, tokenizer, "tokenizer.model"), place)
        size, ids = 703, [1]
    else:
        shutil.copy(os.path.join(TEXTS, tokenizer + ".tokenizer.json"), os.path.join(place, "tokenizer.json"))
        with open(os.path.join(place, "tokenizer.json"), encoding="utf-8") as file:
            content = json.load(file)
        size = 1 + max([*content["model"]["vocab"].values(), *(one["id"] for one in content["added_tokens"])]) + 3
        by_text = {one["content"]: one["id"] for one in content["added_tokens"]}
        ids = [by_text[text] for text in ("<s>", "<|begin_of_text|>", "<\uff5cbegin\u2581of\u2581sentence\uff5c>")
               if text in by_text]
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 1, "hidden_size": 32,
              "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
              "max_position_embeddings": 64, "vocab_size": size, "rope_theta": 10000.0, "tie_word_embeddings": True,
              "bos_token_id": ids[0] if ids else None, "eos_token_id": [3, 4]}
    with open(os.path.join(place, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file)
    with open(os.path.join(place, "tokenizer_config.json"), "w", encoding="utf-8") as file:
        json.dump({"legacy": True, "chat_template": [{"name": "default", "template": "A{{ messages[0].content }}"},
                                                    {"name": "tool_use", "template": "B"}]}, file)
    shapes = {"model.embed_tokens.weight": [size, 32], "model.norm.weight": [32]}
    for base in ("input_layernorm", "post_attention_layernorm"):
        shapes[f"model.layers.0.{base}.weight"] = [32]
    for base in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"):
        shapes[f"model.layers.0.{base}_proj.weight"] = [32, 32]
    header, at = {}, 0
    for key, shape in shapes.items():
        bytes_of = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + bytes_of]}
        at += bytes_of
    text = json.dumps(header).encode()
    with open(os.path.join(place, "model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + bytes(at))
    return place


def test_tokenizers_are_carried_over():
    with open(os.path.join(TEXTS, "corpus.json"), encoding="utf-8") as file:
        corpus = json.load(file)["texts"]
    texts = [one for one in corpus if isinstance(one, str)]
    for tokenizer in ("llama2", "mistral", "llama3", "qwen2", "deepseek_v2", "deepseek_v3", "gpt2", "tekken",
                      "sentencepiece"):
        # Mistral's puts a space before the first word only; a file's puts one behind control tokens as well.
        text = "\n".join(one for one in texts if tokenizer != "mistral" or not set("<[") & set(one))
        model = tiny_model(tokenizer, tokenizer)
        code, _, err = lighter.run("quantize", "--model", model, "--out", path("t.gguf"), "--type", "F16")
        assert code == 0 and "differs" not in err, (tokenizer, err)
        ids = lighter.run_json("tokenize", "--model", model, stdin=text)["ids"]
        assert len(ids) > 1000 and lighter.run_json("tokenize", "--model", path("t.gguf"), stdin=text)["ids"] == ids, \
            tokenizer
        with lighter.Server("--model", path("t.gguf"), "--max-total-tokens", 64) as server:
            body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
            assert server.request("/v1/chat/completions", body)[0] == 200, tokenizer  # there is a template
        shutil.rmtree(model)
    for tokenizer in ("metaspace", "words"):
        model = tiny_model(tokenizer, tokenizer)
        fails(1, ["no name for", "--pre NAME"], "--model", model, "--out", path("t.gguf"), "--type", "F16")
        shutil.rmtree(model)


def test_what_was_killed_goes_on():
    model = path("small")
    subprocess.run(["/usr/bin/python3", os.path.join(lighter.ROOT, "tools/make_random_model.py"), "--preset",
                    "llama-small", "--dtype", "BF16", model], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    wanted = quantize(model, "wanted.gguf", "Q4_K_S", "--threads", 2)
    command = [lighter.PROGRAM, "quantize", "--model", model, "--out", path("killed.gguf"), "--type", "Q4_K_S",
               "--threads", "1", "--quiet"]
    part = path("killed.part.gguf")

    def saved():
        """How often is noted how far it is, as the last bytes of the partial file say."""
        if not os.path.exists(part) or os.path.getsize(part) < wanted["out_bytes"] + 128:
            return 0
        with open(part, "rb") as file:
            file.seek(wanted["out_bytes"])
            slots = file.read(128)
        return max(int.from_bytes(slots[at + 8:at + 16], "little") for at in (0, 64))

    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    lighter.wait_until("the first note", lambda: saved() >= 2 or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was done too soon"
    assert not os.path.exists(path("killed.gguf"))
    done = quantize(model, "killed.gguf", "Q4_K_S", "--threads", 2)
    assert 0 < done["resumed_bytes"] < done["out_bytes"], done
    assert not os.path.exists(part)
    with open(path("wanted.gguf"), "rb") as one, open(path("killed.gguf"), "rb") as other:
        assert one.read() == other.read()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        code = lighter.main(sys.modules[__name__])
    sys.exit(code)
