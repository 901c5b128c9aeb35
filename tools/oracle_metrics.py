"""Asks a server on the demo model for /metrics and has prometheus_client's own parser read it."""
import os
import sys
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "tests"))
import lighter  # noqa: E402


def main():
    with lighter.Server("--model", lighter.DEMO, "--offload-group-size", "2",
                        "--device", "sim:memory=1GiB,link=1GB/s") as server:
        server.request("/generate", {"text": "Hello", "sampling_params": {"max_new_tokens": 4}})
        with urllib.request.urlopen(server.url + "/metrics") as response:
            families = list(text_string_to_metric_families(response.read().decode()))
    samples = [sample for family in families for sample in family.samples]
    assert len(families) > 20 and all(family.type in ("counter", "gauge") for family in families)
    assert any(sample.name == "lighter_steps_total" and sample.value > 0 for sample in samples)
    print(f"{len(families)} families, {len(samples)} samples: all read")


if __name__ == "__main__":
    main()
