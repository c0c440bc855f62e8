"""A bot that asks a model by OpenAI's SDK, unmodified, with a key that our library reads for each question.

One JSON request a line, one JSON answer a line; `python`, `python-asyncio`, or any other word for a key that is given to it.
"""

import asyncio
import json
import sys

import openai

import keyhatch

QUESTION = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def sync(request):
    key = lambda: keyhatch.get(request["name"]).reveal()
    return openai.OpenAI(api_key=key, max_retries=0).chat.completions.create(**QUESTION)


def awaited(request):
    async def ask():
        async with keyhatch.AsyncClient() as agent:
            async def key():
                return (await agent.get(request["name"])).reveal()

            return await openai.AsyncOpenAI(api_key=key, max_retries=0).chat.completions.create(**QUESTION)

    return asyncio.run(ask())


def given(request):
    return openai.OpenAI(api_key=request["key"], max_retries=0).chat.completions.create(**QUESTION)


def main(way):
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "quit":
            return
        try:
            answer = {"ok": True, "said": way(request).choices[0].message.content}
        except (openai.OpenAIError, keyhatch.KeyhatchError) as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main({"python": sync, "python-asyncio": awaited}.get(sys.argv[1], given))
