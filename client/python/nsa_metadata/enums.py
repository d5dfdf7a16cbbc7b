"""The proto's enums by name: lower case and without the prefix, in the order of their numbers from 1."""

from typing import Literal, get_args

Mode = Literal["repeat", "causal"]
Output = Literal[
    "seqlens_expanded",
    "nsa_cache_seqlens",
    "token_to_batch_idx",
    "positions",
    "cu_seqlens_q",
    "cu_seqlens_k",
    "nsa_cu_seqlens_k",
    "ks",
    "ke",
]

MODES: tuple[Mode, ...] = get_args(Mode)
OUTPUTS: tuple[Output, ...] = get_args(Output)
BACKENDS = ("cuda", "cpu", "reference")


def number_of(argument: str, name: str, names: tuple[str, ...]) -> int:
    """The number of `name`. ValueError where `names` lacks it, naming the argument it was given as."""
    if name not in names:
        raise ValueError(f"{argument} is {name!r}, want one of {', '.join(names)}")
    return names.index(name) + 1


def name_of(number: int, names: tuple[str, ...]) -> str:
    """The name of `number`; the number itself where the server is newer than this client, or said nothing (0)."""
    return names[number - 1] if 1 <= number <= len(names) else str(number)
