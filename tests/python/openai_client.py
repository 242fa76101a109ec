"""OpenAI's own client against a server: `python openai_client.py URL KEY MODEL`. Prints `ok` at the end."""
import asyncio
import sys

import openai

URL, KEY, MODEL = sys.argv[1:4]
client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0)
ask = dict(model=MODEL, messages=[{"role": "user", "content": "What is E0117?"}], max_tokens=12, temperature=0)

assert MODEL in [model.id for model in client.models.list()]
assert client.models.retrieve(MODEL).object == "model"

whole = client.chat.completions.create(**ask)
text = whole.choices[0].message.content
assert whole.choices[0].finish_reason in ("stop", "length") and whole.usage.completion_tokens > 0

chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
assert chunks[-1].usage == whole.usage and not chunks[-1].choices

logs = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2).choices[0].logprobs.content
assert len(logs) == whole.usage.completion_tokens and all(len(log.top_logprobs) == 2 for log in logs)
assert all(log.logprob <= 0 and bytes(log.bytes).decode() == log.token for log in logs)

warm = dict(ask, temperature=1.2, top_p=0.9, seed=3, n=2, stop=["\n\n"], presence_penalty=0.5, frequency_penalty=0.5)
answers = [c.message.content for c in client.chat.completions.create(**warm).choices]
assert len(answers) == 2
assert answers == [c.message.content for c in client.chat.completions.create(**warm).choices]

tools = [{"type": "function", "function": {"name": "lookup", "parameters": {"type": "object", "properties": {}}}}]
client.chat.completions.create(**ask, tools=tools)
parts = [{"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "E0117?"}]}]
assert client.chat.completions.create(**dict(ask, messages=parts)).choices[0].message.content == text
client.chat.completions.create(**ask, extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True})

done = client.completions.create(model=MODEL, prompt=["The error", "A trait"], max_tokens=6, logprobs=1, temperature=0)
assert len(done.choices) == 2 and len(done.choices[0].logprobs.tokens) == len(done.choices[0].logprobs.token_logprobs)
told = "".join(c.choices[0].text for c in client.completions.create(model=MODEL, prompt="The error", max_tokens=6, temperature=0, stream=True))
assert told == done.choices[0].text


def refused(kind, **change):
    try:
        client.chat.completions.create(**dict(ask, **change))
    except kind as e:
        assert e.body["message"], e
    else:
        raise AssertionError(f"{change} was not refused with {kind}")


refused(openai.NotFoundError, model="nobody")
refused(openai.BadRequestError, temperature=-1)
refused(openai.BadRequestError, messages=[])
try:
    openai.OpenAI(base_url=URL, api_key="wrong", max_retries=0).models.list()
    raise AssertionError("a wrong key was taken")
except openai.AuthenticationError:
    pass


async def many(count):
    others = openai.AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0)

    async def one():
        said = ""
        async for chunk in await others.chat.completions.create(**ask, stream=True):
            said += chunk.choices[0].delta.content or ""
        return said

    assert set(await asyncio.gather(*[one() for _ in range(count)])) == {text}
    # a client that leaves in the middle
    stream = await others.chat.completions.create(**dict(ask, max_tokens=200), stream=True)
    async for _ in stream:
        break
    await stream.close()


asyncio.run(many(64))
print("ok")
