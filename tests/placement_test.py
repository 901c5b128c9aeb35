#!/usr/bin/env python3
"""The answer does not depend on where weights live: homes x ways to choose what moves x budgets x chunks,
on the demo model, a dense model and a mixture of experts, the last two as quantised GGUF files, too, bit for
bit against everything resident. In every run the program checks by itself that the bytes moved are what plan
and misses demand (generate fails otherwise), and here that the memory taken never passed the budget."""
import concurrent.futures
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

import lighter

IDS = {"demo": list(range(5, 45)),
       **{name: list(range(1, 41)) for name in ("dense", "moe", "dense Q4_0", "moe Q8_0")}}
DEVICES = ["cpu", "sim:memory=256MiB,link=8GB/s"]
V2 = ["--offload-group-size", "2", "--offload-num-in-group", "1", "--offload-prefetch-step", "1"]
CHOICES = {
    "v1": ["--cpu-offload-gb", "0.001"],
    "v2": V2,
    "v2 all, far ahead": ["--offload-group-size", "1", "--offload-prefetch-step", "2", "--offload-slots", "5"],
}
EXPERTS = ["--offload-experts", "--offload-expert-slots", "12"]
MODES = ["cpu", "disk", "shm_cpu", "sharded_gpu"]
CHUNKS = [7, 64]
HAS_MPI = shutil.which("mpirun") is not None and os.path.exists(
    os.path.join(os.path.dirname(lighter.PROGRAM), "lighter_mpi.so"))


def make_model(path, preset, *more):
    subprocess.run(["/usr/bin/python3", os.path.join(lighter.ROOT, "tools/make_random_model.py"), "--preset", preset,
                    *more, path], check=True, stdout=subprocess.DEVNULL)
    return path


def make_models(folder):
    models = {"demo": lighter.DEMO}
    for name, preset in (("dense", "llama-tiny"), ("moe", "qwen3moe-tiny")):
        models[name] = make_model(os.path.join(folder, name), preset)
    for name, kind in (("dense", "Q4_0"), ("moe", "Q8_0")):
        models[f"{name} {kind}"] = os.path.join(folder, f"{name}-{kind}.gguf")
        lighter.run("quantize", "--model", models[name], "--type", kind, "--out", models[f"{name} {kind}"], "--quiet",
                    check=0)
    return models


class Bench:
    def __init__(self, folder):
        self.folder = folder
        self.models = make_models(folder)
        self.base = ["--offload-cache-dir", os.path.join(folder, "cache"), "--threads", "2", "--quiet",
                     "--max-total-tokens", "64", "--skip-tokenizer-init"]

    def logits(self, name, *options):
        out = os.path.join(self.folder, "logits.npy")
        lighter.run("logits", "--model", self.models[name], "--input-ids", ",".join(map(str, IDS[name])), "--out",
                    out, *self.base, *options, check=0)
        with open(out, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()

    def generate_arguments(self, name, *options):
        ids = ",".join(map(str, IDS[name][:12]))
        return ("generate", "--model", self.models[name], "--input-ids", ids, "--max-new-tokens", "6", "--temperature",
                "0", "--ignore-eos", *self.base, *options)

    def generate(self, name, *options):
        return lighter.run_json(*self.generate_arguments(name, *options))

    def ids(self, name, *options):
        """As text: nobody sees a forecast then, and none is measured, which takes most of a small run's time."""
        return lighter.run(*self.generate_arguments(name, *options), check=0)[1]


def test_every_home_and_choice_gives_the_same_bits():
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder)
        for name in bench.models:
            wanted = bench.logits(name)
            ids = bench.ids(name)
            for device in DEVICES:
                for mode in MODES:
                    for choice, options in CHOICES.items():
                        if choice == "v1" and mode == "sharded_gpu":
                            continue
                        run = ["--device", device, "--offload-mode", mode, *options]
                        chunk = CHUNKS[len(choice) % 2]
                        assert bench.logits(name, *run, "--chunked-prefill-size", chunk) == wanted, (name, run)
                        assert bench.ids(name, *run) == ids, (name, run)


def test_experts_as_units_give_the_same_bits():
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder)
        for name in ("demo", "moe", "moe Q8_0"):
            wanted = bench.logits(name)
            ids = bench.ids(name)
            for device in DEVICES:
                for mode in ("cpu", "disk"):
                    for chunk in CHUNKS:
                        run = ["--device", device, "--offload-mode", mode, *EXPERTS, "--chunked-prefill-size", chunk]
                        assert bench.logits(name, *run) == wanted, (name, run)
                        assert bench.ids(name, *run) == ids, (name, run)


def test_batches_give_the_same_ids_wherever_weights_live():
    placements = (["--offload-mode", "disk", *V2], ["--offload-mode", "shm_cpu", *V2],
                  ["--offload-mode", "sharded_gpu", *V2], ["--offload-mode", "disk", *EXPERTS],
                  ["--offload-mode", "auto", "--memory-budget", "5MiB", "--assume", "disk=1GB/s"])
    prompts = [list(range(5 + i, 10 + 3 * i)) for i in range(5)]
    sampling = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}
    cache = ["--max-total-tokens", "512", "--max-running-requests", "5", "--chunked-prefill-size", "16"]
    with lighter.Server("--model", lighter.DEMO, *cache) as server:
        wanted = [server.generate(input_ids=prompt, sampling_params=sampling)["output_ids"] for prompt in prompts]
    for device in DEVICES:
        for placement in placements:
            with lighter.Server("--model", lighter.DEMO, *cache, "--device", device, *placement) as server:
                answers = server.generate(input_ids=prompts, sampling_params=sampling)
            assert [answer["output_ids"] for answer in answers] == wanted, (device, placement)


def check_ranks_reports(server, count, budget):
    """Each rank has worked, moved what its plan and its misses demand, and kept its budget."""
    info = server.request("/get_server_info")[1]
    reports = [rank["report"] for rank in info["ranks"]] if count > 1 else [info["engine"]]
    for report in reports:
        offload = report["offload"]
        assert report["finished"] >= 1 and report["failed_steps"] == 0, report
        assert offload["bytes_moved"] == offload["bytes_planned"], offload
        assert budget is None or offload["memory"]["peak_bytes"] <= budget, offload["memory"]


def test_ranks_give_the_same_bits_whatever_the_placement():
    """1, 2 and 3 ranks x homes and choices x batches x chunks, a dense model and a mixture in turn: the mixture's ids
    and log probabilities, to the last digit, and the dense one's draws at a high temperature are those of one rank
    with everything resident."""
    sim = ["--device", "sim:memory=256MiB,link=8GB/s"]
    placements = (
        (None, ["--offload-mode", "cpu", "--cpu-offload-gb", "0.001", *sim]),
        (None, ["--offload-mode", "shm_cpu", *V2]),
        (None, ["--offload-mode", "shm_cpu", *CHOICES["v2 all, far ahead"], *sim]),
        (None, ["--offload-mode", "sharded_gpu", *V2, *sim]),
        (None, ["--offload-mode", "disk", *CHOICES["v2 all, far ahead"], *sim]),
        (None, ["--offload-mode", "disk", *EXPERTS]),
        (6 << 20, ["--assume", "disk=1GB/s"]),
        (6 << 20, ["--assume", "disk=1GB/s", "--host-memory-budget", "40MiB", *sim]),
    )
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder)
        bench.models["dense"] = make_model(os.path.join(folder, "dense-small"), "llama-small")
        cache = ["--max-total-tokens", "256", "--threads", "1", "--offload-cache-dir", os.path.join(folder, "cache")]
        prompts = [list(range(5 + i, 12 + 4 * i)) for i in range(6)]

        def ask(server, name, prompt):
            if name == "dense":  # has no tokenizer
                return server.generate(input_ids=prompt, sampling_params={
                    "max_new_tokens": 6, "temperature": 2, "sampling_seed": 7, "ignore_eos": True})["output_ids"]
            status, answer = server.request("/v1/completions", {
                "model": "m", "prompt": prompt, "max_tokens": 4, "temperature": 0, "logprobs": 5, "ignore_eos": True})
            assert status == 200, answer
            return answer["choices"][0]["logprobs"]

        wanted = {}
        for name in ("demo", "dense"):
            with lighter.Server("--model", bench.models[name], *cache) as server:
                wanted[name] = [ask(server, name, prompt) for prompt in prompts]
        for count in (1, 2, 3) if HAS_MPI else (1,):
            for number, (budget, options) in enumerate(placements):
                name = "demo" if "--offload-experts" in options or (number + count) % 2 else "dense"
                batch, chunk = (1, 5)[number % 2], CHUNKS[(number + count) % 2]
                more = [] if budget is None else ["--memory-budget", budget]
                with lighter.Server("--model", bench.models[name], *cache, *options, *more, "--dp-size", count,
                                    "--max-running-requests", batch, "--chunked-prefill-size", chunk) as server:
                    with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
                        answers = list(pool.map(lambda prompt: ask(server, name, prompt), prompts))
                    assert answers == wanted[name], (count, name, options, batch, chunk)
                    check_ranks_reports(server, count, budget)


def check_smallest_budget(bench, name, *run):
    """A budget that is too small is refused with one that works, and nothing below it does."""
    def refused(budget):
        code, _, err = lighter.run("generate", "--model", bench.models[name], "--input-ids", "1,2,3", "--max-new-tokens",
                                   "2", "--ignore-eos", *bench.base, *run, "--memory-budget", budget)
        found = re.search(r"the smallest budget that would do is (\d+) bytes", err)
        assert (code, found is None) in ((0, True), (1, False)), (name, run, budget, err)
        return found and int(found.group(1))

    smallest = refused("100KiB")
    assert refused(smallest) is None, (name, run, smallest)
    assert refused(smallest - 1) == smallest, (name, run, smallest)


def host_plan(bench, name, *run):
    """The plan's bytes at home on the host and on the disk, the host memory it needs, and a token's bytes."""
    plan = lighter.run_json("plan", "--model", bench.models[name], *bench.base, *run)
    homes, step = plan["homes"], plan["forecast"]["decode"]
    assert plan["host"]["home_bytes"] >= homes.get("host", 0)
    assert abs(sum(step["bytes_by_home"].values()) - step["link_bytes"]) < 1
    assert step["disk_bytes"] == step["bytes_by_home"].get("disk", 0)
    return homes.get("host", 0), homes.get("disk", 0), plan["host"]["needed_bytes"], step


def test_auto_mixes_device_host_and_disk():
    """On a device with a link, what does not fit it is on the host as far as that has room, and else on the disk:
    the same bits, as many bytes from each home as planned, never more host memory than its budget; and a budget of
    host memory that is too small is refused with one that works."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder)
        for name, preset in (("dense-small", "llama-small"), ("moe-small", "qwen3moe-small")):
            bench.models[name] = make_model(os.path.join(folder, name), preset)
            IDS[name] = list(range(1, 41))
        for name, share in (("dense-small", 0.4), ("moe-small", 0.3)):
            wanted = bench.logits(name)
            ids = bench.generate(name)["output_ids"]
            weights = lighter.run_json("plan", "--model", bench.models[name], *bench.base, "--assume",
                                       "disk=1GB/s")["weight_bytes"]
            run = ["--device", DEVICES[1], "--offload-mode", "auto", "--memory-budget", int(weights * share) +
                   (1 << 20), "--assume", "disk=1GB/s", "--chunked-prefill-size", "16"]
            code, _, err = lighter.run("plan", "--model", bench.models[name], *bench.base, *run,
                                       "--host-memory-budget", "1KiB")
            assert code == 1, (name, err)
            smallest = int(re.search(r"that would do is (\d+) bytes", err).group(1))
            host, disk, needed, _ = host_plan(bench, name, *run, "--host-memory-budget", "256MiB")
            assert host > 0 and disk == 0, (name, host, disk)
            seen = set()
            for budget in [smallest] + [smallest + (needed + (3 << 20) - smallest) * i // 2 for i in (1, 2)]:
                options = [*run, "--host-memory-budget", budget]
                host, disk, needs, step = host_plan(bench, name, *options)
                assert needs <= budget, (name, budget, needs)
                seen.add((host > 0, disk > 0))
                assert bench.logits(name, *options) == wanted, (name, options)
                answer = bench.generate(name, *options)
                assert answer["output_ids"] == ids, (name, options)
                memory, moved = answer["report"]["offload"]["memory"], answer["report"]["offload"]["homes"]
                assert memory["host_peak_bytes"] <= budget, (name, memory, budget)
                assert set(moved) == set(home for home, is_used in (("host", host), ("disk", disk)) if is_used)
                if name == "dense-small":  # each pass moves all of it
                    passes = answer["report"]["offload"]["passes"]
                    for home, planned in step["bytes_by_home"].items():
                        assert moved[home]["bytes_moved"] in range(int(planned) * passes, int(planned) * (passes + 2))
            assert (True, False) in seen, (name, seen)
            assert (True, True) in seen, (name, seen)


def test_what_routers_choose_is_remembered():
    """The first start of a mixture can only say a range; the next one knows what its routers favour, says how many
    of a token's experts will be there, and has the favourites there. A file that is bad, or of a checkpoint that has
    changed since, is as good as none. The answer is the same in any case."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder)
        model = bench.models["moe"] = make_model(os.path.join(folder, "moe"), "qwen3moe-small", "--router-skew", "0.7")
        for device, more in (("cpu", []), (DEVICES[1], ["--host-memory-budget", "80MiB"])):
            # all are experts but 3.5 MiB; a quarter of them fit
            run = ["--device", device, "--offload-mode", "auto", "--memory-budget", "24MiB", "--assume", "disk=1GB/s",
                   *more, "--max-total-tokens", "128"]

            def generate(count):
                answer = lighter.run_json("generate", "--model", model, "--input-ids", "5,6,7,8", "--max-new-tokens",
                                          count, "--temperature", "1", "--random-seed", "3", "--ignore-eos",
                                          *bench.base, *run)
                homes = answer["report"]["offload"]["homes"].values()
                hits, misses = sum(home["hits"] for home in homes), sum(home["misses"] for home in homes)
                return answer, hits / (hits + misses)

            def files():
                cache = os.path.join(folder, "cache")
                return [os.path.join(place, name) for place, _, names in os.walk(cache) for name in names]

            first, cold = generate(60)
            experts, forecast = first["forecast"]["experts"], first["forecast"]
            assert not experts["is_known"] and experts["tokens"] == 0, experts
            assert forecast["decode_tokens_per_s_most"] > forecast["decode_tokens_per_s"], forecast
            [path] = files()
            assert path.endswith(".routing") and os.path.getsize(path) < 100000, path

            second, warm = generate(60)
            experts, forecast = second["forecast"]["experts"], second["forecast"]
            assert second["output_ids"] == first["output_ids"]
            assert experts["is_known"] and experts["tokens"] >= 25, experts
            assert forecast["decode_tokens_per_s_most"] == forecast["decode_tokens_per_s"], forecast
            assert warm > cold, (warm, cold)
            assert abs(experts["hit_rate"] - warm) < 0.1, (experts, warm)

            with open(path, "r+b") as file:
                file.seek(70)
                byte = file.read(1)
                file.seek(70)
                file.write(bytes([byte[0] ^ 1]))
            third, _ = generate(10)  # and writes a good one
            assert not third["forecast"]["experts"]["is_known"], third["forecast"]
            assert third["output_ids"] == first["output_ids"][:10]

            os.utime(os.path.join(model, "model.safetensors"), (1, 1))
            changed, _ = generate(10)
            assert not changed["forecast"]["experts"]["is_known"], changed["forecast"]
            assert len(files()) == 1, files()
            for path in files():
                os.unlink(path)


def test_favourites_that_cannot_be_read_are_no_failure():
    """They are guesses. The same read, of what is demanded, fails the run."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder)
        model = make_model(os.path.join(folder, "moe"), "qwen3moe-small", "--router-skew", "0.7")
        for device in DEVICES:
            ask = ("generate", "--model", model, "--input-ids", "5,6,7,8", "--max-new-tokens", "20", "--temperature", "0",
                   "--ignore-eos", "--device", device, "--offload-experts", "--offload-mode", "disk",
                   "--offload-expert-slots", "64", "--max-total-tokens", "64", "--assume", "disk=1GB/s",
                   "--offload-cache-dir", os.path.join(folder, device.split(":")[0]))
            broken = (*ask, "--offload-disk", "eio=3:2")
            status, _, err = lighter.run(*broken)
            assert status == 1 and "nput/output error" in err and "favourite" not in err, err
            wanted = lighter.run_json(*ask)["output_ids"]
            assert lighter.run_json(*broken)["output_ids"] == wanted
            err = lighter.run(*broken, check=0)[2]
            assert err.count("warning: favourite experts: ") == 1 and "model.safetensors" in err, err
            assert "nput/output error" in err and "is read when it is asked for" in err, err


def test_auto_keeps_within_every_budget():
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder)
        for name in bench.models:
            wanted = bench.logits(name)
            plan = lighter.run_json("plan", "--model", bench.models[name], *bench.base, "--assume", "disk=1GB/s")
            weights = plan["weight_bytes"]
            for device in DEVICES:
                check_smallest_budget(bench, name, "--device", device, "--offload-mode", "auto", "--assume",
                                      "disk=1GB/s")
                check_smallest_budget(bench, name, "--device", device, "--offload-mode", "disk", *V2)
                if not name.startswith("dense"):
                    check_smallest_budget(bench, name, "--device", device, "--offload-mode", "cpu",
                                          "--offload-experts")
                fitted = 0
                for share in (0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.5):
                    budget = int(weights * share) + (1 << 20)
                    run = ["--device", device, "--offload-mode", "auto", "--memory-budget", budget, "--assume",
                           "disk=1GB/s", "--chunked-prefill-size", "16"]
                    code, out, err = lighter.run("generate", "--model", bench.models[name], "--input-ids", "5,6,7,8",
                                                 "--max-new-tokens", "4", "--temperature", "0", "--json",
                                                 *bench.base, *run)
                    if code != 0:
                        assert code == 1 and re.search(r"would do|smallest", err), (run, err)
                        assert fitted == 0, (run, err)  # a larger budget never fits less
                        continue
                    fitted += 1
                    assert json.loads(out)["report"]["offload"]["mode"] == "auto"
                    assert bench.logits(name, *run) == wanted, (name, run)
                assert fitted >= 3, (name, device)


if __name__ == "__main__":
    sys.exit(lighter.main(sys.modules[__name__]))
