"""Random 64-bit words for sampling and noise: AES-256-CTR under a key from the operating system, never replayed.

The key comes from the `Entropy` port once, at construction; there is no seed, no state to read, copy or pickle, and
a process that was forked from the owner is refused, because it would repeat the owner's words.
"""

import os
from typing import Final, NoReturn

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from modelkeep_platform.core.ports import Entropy

Words = npt.NDArray[np.uint64]

_KEY_BYTES: Final = 32
_BLOCK_BYTES: Final = 16
_WORD_BYTES: Final = 8


class Keystream:
    """An endless stream of random words; each is given out once.

    Args:
        entropy: gives the 48 bytes of key and first counter block.
    """

    __slots__ = ("_encryptor", "_owner")

    def __init__(self, *, entropy: Entropy) -> None:
        key, block = entropy.random_bytes(_KEY_BYTES), entropy.random_bytes(_BLOCK_BYTES)
        self._encryptor = Cipher(AES(key), CTR(block)).encryptor()
        self._owner = os.getpid()

    def words(self, count: int) -> Words:
        """Return the next `count` words, uniform on [0, 2**64).

        Raises:
            RuntimeError: called in another process than the one it was made in.
        """
        if os.getpid() != self._owner:
            message = "a keystream does not survive a fork; make another in the child"
            raise RuntimeError(message)
        size = count * _WORD_BYTES
        out = np.empty(count + _BLOCK_BYTES // _WORD_BYTES, dtype=np.uint64)
        self._encryptor.update_into(bytes(size), out.view(np.uint8).data)
        return out[:count]

    def __reduce__(self) -> NoReturn:
        message = "a keystream is neither copied nor stored"
        raise TypeError(message)

    def __repr__(self) -> str:
        return "Keystream(…)"
