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
# Those of refusals, by their numbers, which have gaps.
REASONS = {
    1: "LENGTHS_DIFFER",
    2: "NEGATIVE_LENGTH",
    3: "TOP_K_TOO_SMALL",
    4: "UNKNOWN_ENUM",
    5: "MALFORMED",
    6: "TOO_MANY_SEQUENCES",
    7: "TOO_MANY_TOKENS",
    8: "OUTPUT_OVERFLOW",
    9: "REPLY_TOO_LARGE",
    10: "DUPLICATE_ID",
    11: "METADATA_TOO_LARGE",
    12: "NOT_ALLOWED",
    13: "UNKNOWN_NAME",
    14: "BAD_TENSOR",
    15: "MESSAGE_TOO_LARGE",
    16: "COMPRESSED",
    20: "QUEUE_FULL",
    21: "BUDGET_FULL",
    22: "CALLER_SHARE",
    23: "DRAINING",
    24: "DEADLINE",
    25: "CANCELLED",
    26: "INTERNAL",
}


def number_of(argument: str, name: str, names: tuple[str, ...]) -> int:
    """The number of `name`. ValueError where `names` lacks it, naming the argument it was given as."""
    if name not in names:
        raise ValueError(f"{argument} is {name!r}, want one of {', '.join(names)}")
    return names.index(name) + 1


def name_of(number: int, names: tuple[str, ...]) -> str:
    """The name of `number`; the number itself where the server is newer than this client, or said nothing (0)."""
    return names[number - 1] if 1 <= number <= len(names) else str(number)
