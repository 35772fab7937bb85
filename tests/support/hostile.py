"""A child for the guard that obeys orders: bytes behind the end of an image, which to the real decoder are garbage.

The guard runs this file by its path in place of `pipeline/images/codec.py`; it is the real child but for the orders.
"""

import os
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from wordsworth.pipeline.images import codec as decoder

ORDER = b"ORDER:"


def ordered(data: bytes, order: str) -> bytes:
    """The image with an order behind it."""
    return data + ORDER + order.encode()


def obey(order: str) -> None:
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
        case "deaf":
            os.close(1)
            time.sleep(600)
        case "lie":
            os.write(1, decoder.REPLY.pack(decoder.PIXELS, 1, 1, 60_000, 60_000, 0))
        case "babble":
            os.write(1, b"\xff" * 1000)
        case "half":
            os.write(1, decoder.REPLY.pack(decoder.PIXELS, 1, 1, 8, 8, 0)[:5])
            time.sleep(600)


def decode(data: bytes, *rest):
    _, found, order = data.rpartition(ORDER)
    if found:
        obey(order.decode())
    return real(data, *rest)


if __name__ == "__main__":
    real, decoder.decode = decoder.decode, decode
    decoder.main()
