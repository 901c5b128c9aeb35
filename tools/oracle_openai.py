#!/usr/bin/env python3
"""The official openai client, unmodified, asks a server on the demo model for one example of each call.

    tools/oracle_openai.py [--record]

What the client sends and gets is compared with tests/golden/openai/exchange.json, which
tests/openai_test.py replays without the client; --record writes that file. Made with openai 3.54.0.
"""
import json
import os
import sys

import httpx2 as httpx
import openai

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "tests"))
import lighter  # noqa: E402
import openai_test  # noqa: E402

QUESTION = "The capital of France is"
TOOL = {"type": "function", "function": {"name": "search", "parameters": {
    "type": "object", "properties": {"query": {"type": "string"}}}}}


def user(content):
    return [{"role": "user", "content": content}]


def examples(client, model):
    """Makes every call; checks what the client makes of the answers."""
    assert client.models.list().data[0].id == model
    assert client.models.retrieve(model).owned_by == "lighter"

    done = client.completions.create(model=model, prompt=QUESTION, max_tokens=8, temperature=0, logprobs=2)
    assert done.choices[0].text == " Paris." and done.choices[0].finish_reason == "stop", done
    assert "".join(done.choices[0].logprobs.tokens) == done.choices[0].text
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens

    several = client.completions.create(model=model, prompt=[QUESTION, "The capital of Italy is"], n=2,
                                        max_tokens=8, seed=5, echo=True, temperature=0)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[2].text == "The capital of Italy is Rome.", several

    pieces = list(client.completions.create(model=model, prompt=QUESTION, max_tokens=8, temperature=0,
                                            stream=True, stream_options={"include_usage": True}))
    assert "".join(c.text for piece in pieces for c in piece.choices) == " Paris."
    assert pieces[-1].usage.completion_tokens == done.usage.completion_tokens

    chat = client.chat.completions.create(model=model, messages=user(QUESTION), temperature=0,
                                          max_completion_tokens=8, logprobs=True, top_logprobs=2)
    assert chat.choices[0].message.content == " Paris.", chat
    assert "".join(c.token for c in chat.choices[0].logprobs.content) == " Paris."

    tools = client.chat.completions.create(model=model, messages=user([{"type": "text", "text": QUESTION}]),
                                           tools=[TOOL], temperature=0, max_tokens=4)
    assert tools.usage.prompt_tokens > chat.usage.prompt_tokens

    streamed = list(client.chat.completions.create(
        model=model, messages=user(QUESTION), temperature=0, max_tokens=8, stop=["."], stream=True, n=2,
        frequency_penalty=0.1, presence_penalty=0.1, stream_options={"include_usage": True}))
    for index in (0, 1):
        mine = [c for piece in streamed for c in piece.choices if c.index == index]
        assert mine[0].delta.role == "assistant" and mine[-1].finish_reason == "stop"
        assert "".join(c.delta.content or "" for c in mine) == " Paris", mine

    for wrong in (dict(messages=[]), dict(messages=user("x"), temperature=-1),
                  dict(messages=user("x" * 5000)), dict(messages=user("x"), tool_choice="required")):
        try:
            client.chat.completions.create(model=model, **wrong)
            raise AssertionError(f"taken: {wrong}")
        except openai.BadRequestError as error:
            assert error.type == "invalid_request_error", error.body
    try:
        client.models.retrieve("nobody")
        raise AssertionError("there is no such model")
    except openai.NotFoundError as error:
        assert error.code == "model_not_found", error.body


def main():
    exchange = []

    def record(response):
        response.read()
        request = response.request
        body = request.read().decode()
        exchange.append({"method": request.method, "path": request.url.raw_path.decode(),
                         "body": json.loads(body) if body else None, "status": response.status_code,
                         "answer": openai_test.parse(response.text)})

    with lighter.Server(*openai_test.ARGUMENTS) as server:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0,
                               http_client=httpx.Client(event_hooks={"response": [record]}))
        examples(client, "demo")
    if "--record" in sys.argv:
        lines = ",\n".join(json.dumps(one).replace(lighter.DEMO, "models/demo") for one in exchange)
        with open(openai_test.EXCHANGE, "w", encoding="utf-8") as file:
            file.write(f"[\n{lines}\n]\n")
        return
    with open(openai_test.EXCHANGE, encoding="utf-8") as file:
        wanted = json.load(file)
    assert len(wanted) == len(exchange)
    for was, now in zip(wanted, exchange):
        openai_test.compare(was, now, was["path"])
    print(f"{len(exchange)} calls by the openai client: as recorded")


if __name__ == "__main__":
    main()
