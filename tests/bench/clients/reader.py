"""Reads one secret on and on, in the way that is its argument: how many reads a second, and how long one takes.

A line with seconds comes in, a line with reads a second and the median in microseconds goes out. `keyhatch-bench` starts it.
"""

import asyncio
import os
import statistics
import sys
from time import perf_counter

NAME = sys.argv[2]
# So many reads before the clock is looked at.
BURST = 16


async def rate(read, seconds):
    count, begin = 0, perf_counter()
    while (now := perf_counter()) < begin + seconds:
        for _ in range(BURST):
            done = read()
            if done is not None:
                await done
        count += BURST
    return count / (now - begin)


async def median(read, seconds):
    times, end = [], perf_counter() + seconds
    while (begin := perf_counter()) < end:
        done = read()
        if done is not None:
            await done
        times.append(perf_counter() - begin)
    return 1e6 * statistics.median(times)


def keyhatch_way(cache):
    import keyhatch

    client = keyhatch.Client(cache=cache)

    def read():
        client.get(NAME).reveal()

    return read


def asyncio_way(cache):
    import keyhatch

    client = keyhatch.AsyncClient(cache=cache)

    async def read():
        (await client.get(NAME)).reveal()

    return read


def environ_way():
    os.environ["BENCH_KEY"] = "CANARY-bench"

    def read():
        os.environ["BENCH_KEY"]  # noqa: B018

    return read


def boto3_way(cache):
    import aws_secretsmanager_caching
    import boto3

    # The bridge's URL is in the environment, as every boto3 program gets it.
    client = boto3.client("secretsmanager", region_name="eu-west-1", aws_access_key_id="x", aws_secret_access_key="x")
    cached = aws_secretsmanager_caching.SecretCache(client=client)

    def read():
        cached.get_secret_string(NAME) if cache else client.get_secret_value(SecretId=NAME)

    return read


WAYS = {
    "python": lambda: keyhatch_way(False),
    "python-cached": lambda: keyhatch_way(True),
    "asyncio": lambda: asyncio_way(False),
    "asyncio-cached": lambda: asyncio_way(True),
    "environ": environ_way,
    "boto3": lambda: boto3_way(False),
    "boto3-cached": lambda: boto3_way(True),
}


async def main():
    read = WAYS[sys.argv[1]]()
    for line in sys.stdin:
        seconds = float(line) / 2
        # Awaited or not, both kinds of read are measured by the same loop.
        print(await rate(read, seconds), await median(read, seconds), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
