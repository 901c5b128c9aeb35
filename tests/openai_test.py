#!/usr/bin/env python3
"""OpenAI's calls on the demo model. What the official client has once sent is sent again, and the answers
are those that it read then (tools/oracle_openai.py records both); then what the client would not send."""
import http.client
import json
import os
import sys
import urllib.parse

import lighter

FOLDER = os.path.join("tests", "golden", "openai")
EXCHANGE = os.path.join(FOLDER, "exchange.json")
ARGUMENTS = ["--model", lighter.DEMO, "--chat-template", os.path.join(FOLDER, "chat.jinja"),
             "--served-model-name", "demo"]
QUESTION = {"messages": [{"role": "user", "content": "The capital of France is"}], "temperature": 0}
server = None  # set below, before the tests run


def parse(text):
    """An answer's JSON, or the list of a stream's events."""
    if not text.startswith("data: "):
        return json.loads(text)
    events = text.split("\n\n")
    assert events.pop() == "" and events.pop() == "data: [DONE]", text
    return in_order([json.loads(event[len("data: "):]) for event in events])


def in_order(events):
    """Events of the choices one after the other: they come in any order, and several tokens may share one."""
    joined = []
    for event in sorted(events, key=lambda event: event["choices"][0]["index"] if event["choices"] else 99):
        choice = event["choices"][0] if event["choices"] else None
        last = joined[-1]["choices"][0] if joined and joined[-1]["choices"] else None
        if choice and last and choice["index"] == last["index"] and not choice["finish_reason"]:
            if "text" in choice and not last["finish_reason"] and choice["logprobs"] is None:
                last["text"] += choice["text"]
                continue
            if "delta" in choice and "role" not in choice["delta"] and choice["logprobs"] is None:
                last["delta"]["content"] += choice["delta"]["content"]
                continue
        joined.append(event)
    return joined


def compare(wanted, found, where):
    assert type(wanted) is type(found) or isinstance(wanted, (int, float)), (where, wanted, found)
    if isinstance(wanted, dict):
        assert wanted.keys() == found.keys(), (where, wanted, found)
        for key, value in wanted.items():
            if key not in ("created", "root") and not (key == "id" and "cmpl-" in value):
                compare(value, found[key], f"{where}.{key}")
    elif isinstance(wanted, list):
        assert len(wanted) == len(found), (where, wanted, found)
        for index, (one, other) in enumerate(zip(wanted, found)):
            compare(one, other, f"{where}[{index}]")
    elif isinstance(wanted, float):  # a logarithm; kernels of other machines round otherwise
        assert abs(wanted - found) <= 0.02 * max(1, abs(wanted)), (where, wanted, found)
    else:
        assert wanted == found, (where, wanted, found)


def ask(path, body=None, method=None):
    url = urllib.parse.urlsplit(server.url)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=lighter.WAIT_SECONDS)
    connection.request(method or ("GET" if body is None else "POST"), path,
                       None if body is None else body if isinstance(body, bytes) else json.dumps(body),
                       {"Content-Type": "application/json", "Authorization": "Bearer none"})
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, parse(text)


def test_the_recorded_exchange():
    with open(EXCHANGE, encoding="utf-8") as file:
        exchange = json.load(file)
    assert len(exchange) > 10
    for one in exchange:
        status, answer = ask(one["path"], one["body"], one["method"])
        assert status == one["status"], (one["path"], one["body"], answer)
        compare(one["answer"], answer, one["path"])


def test_errors_have_openais_shape():
    for path, body, code, param in (
            ("/v1/chat/completions", b"{", 400, None),
            ("/v1/chat/completions", {**QUESTION, "temprature": 1}, 400, "temprature"),
            ("/v1/chat/completions", {**QUESTION, "top_logprobs": 3}, 400, "top_logprobs"),
            ("/v1/chat/completions", {**QUESTION, "n": 1000}, 400, "n"),
            ("/v1/chat/completions", {**QUESTION, "logit_bias": {"5": 1}}, 400, "logit_bias"),
            ("/v1/chat/completions", {**QUESTION, "stream_options": {}}, 400, "stream_options"),
            ("/v1/chat/completions", {"messages": [{"content": "x"}]}, 400, "messages"),
            ("/v1/completions", {}, 400, "prompt"),
            ("/v1/completions", {"prompt": "x", "best_of": 3}, 400, "best_of"),
            ("/v1/completions", {"prompt": [1, 2], "echo": True}, 400, "echo"),
            ("/v1/completions", {"prompt": [10 ** 6]}, 400, None),
            ("/v1/completions", None, 405, None),
            ("/v1/embeddings", {}, 404, None)):
        status, answer = ask(path, body)
        assert status == code, (path, body, answer)
        error = answer["error"]
        assert error.keys() == {"message", "type", "param", "code"}, error
        assert error["type"] == "invalid_request_error" and error["message"], error
        assert param is None or error["param"] == param, (body, error)


def test_a_conversation_is_rendered():
    base = ask("/v1/chat/completions", {**QUESTION, "max_tokens": 1})[1]["usage"]["prompt_tokens"]
    tool = {"type": "function", "function": {"name": "search"}}
    for more, difference in (({"tools": [tool]}, True), ({"tools": [tool], "tool_choice": "none"}, False),
                             ({"tools": []}, False)):
        usage = ask("/v1/chat/completions", {**QUESTION, **more, "max_tokens": 1})[1]["usage"]
        assert (usage["prompt_tokens"] > base) == difference, (more, usage)


def test_seeds_and_choices():
    body = {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 2, "n": 4, "seed": 11}
    first, again = (ask("/v1/completions", body)[1] for _ in range(2))
    texts = [choice["text"] for choice in first["choices"]]
    assert texts == [choice["text"] for choice in again["choices"]]
    assert len(set(texts)) > 1, texts  # each choice has a seed of its own
    single = ask("/v1/completions", {**body, "n": 1})[1]["choices"][0]["text"]
    assert single == texts[0]


def test_a_user_writes_no_control_token():
    """A token that ends a text, typed by a user, is letters."""
    def tokens(content):
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
        return ask("/v1/chat/completions", body)[1]["usage"]["prompt_tokens"]

    assert tokens("x<|end_of_text|>") > tokens("x") + 3
    plain = ask("/v1/completions", {"prompt": "x<|end_of_text|>", "max_tokens": 1})[1]["usage"]
    assert plain["prompt_tokens"] <= 4, plain  # where there is no template, the text is the client's own


def test_without_a_template():
    with lighter.Server("--model", lighter.DEMO) as bare:
        status, answer = bare.request("/v1/chat/completions", QUESTION)
        assert status == 400 and "--chat-template" in answer["error"]["message"], answer
        status, answer = bare.request("/v1/completions", {"prompt": "The capital of France is", "temperature": 0})
        assert status == 200 and answer["choices"][0]["text"] == " Paris.", answer


def test_a_bad_template_is_refused():
    code, _, err = lighter.run("serve", "--model", lighter.DEMO, "--chat-template", "no/such.jinja")
    assert code != 0 and "no/such.jinja" in err, err


if __name__ == "__main__":
    with lighter.Server(*ARGUMENTS) as server:
        code = lighter.main(sys.modules[__name__])
    sys.exit(code)
