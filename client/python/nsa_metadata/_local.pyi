# The extension module, client/python/local.cc.
from collections.abc import Callable
from typing import Any

def look_at_device(device: int, /) -> tuple[str, str, str]: ...
def fill(
    extend_seq_lens: Any, seq_lens: Any, nsa_index_topk: Any, outputs: tuple[Any, ...], mode: int, kernel: Any,
    stream: Any, synchronize: bool, backend_of: Callable[[int | None], tuple[str, str]], /,
) -> int | None: ...
