"""Run a decoder process that obeys orders: bytes behind the end of an image, which the real one ignores.

The sandbox runs this file by its path in place of `pipeline/images/codec.py`. Without an order it is the real
decoder process.
"""

import os
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from wordsworth.pipeline.images import codec

ORDER = b"ORDER:"


def ordered(data: bytes, order: str) -> bytes:
    """Return the image with an order behind it."""
    return data + ORDER + order.encode()


def obey(order: str) -> None:
    """Do what an order says, instead of decoding."""
    word, _, argument = order.partition(" ")
    match word:
        case "signal":
            os.kill(os.getpid(), signal.Signals[argument])
        case "kill_once":
            if not os.path.exists(argument):
                Path(argument).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(7)
        case "hang":
            time.sleep(600)
        case "allocate":
            held = []
            while True:
                held.append(bytearray(32 << 20))
        case _:
            answer_wrongly(word)


def answer_wrongly(word: str) -> None:
    """Close the pipe, or send a reply that breaks the protocol."""
    match word:
        case "deaf":
            os.close(1)
            time.sleep(600)
        case "lie":
            os.write(1, codec.REPLY.pack(codec.PIXELS, 1, 1, 60_000, 60_000, 0))
        case "babble":
            os.write(1, b"\xff" * 1000)
        case "half":
            os.write(1, codec.REPLY.pack(codec.PIXELS, 1, 1, 8, 8, 0)[:5])
            time.sleep(600)


def decode(data: bytes, *rest):
    _, found, order = data.rpartition(ORDER)
    if found:
        obey(order.decode())
    return real(data, *rest)


if __name__ == "__main__":
    real, codec.decode = codec.decode, decode
    codec.main()
